"""What reversible units save in memory, and what they cost in time, beside ordinary
back-propagation of the same RevNet and a ResNet v2.

    python benchmarks/revnet.py                                      # some minutes; small images and channels
    python benchmarks/revnet.py --backbone revnet18,revnet34 --rounds 0

A step is forward, backward and SGD with momentum on random images. `ordinary` is the same RevNet,
differentiated by TensorFlow itself.

How to read the first table: `temporaries` is what XLA sets aside for all that lives within a step
(its own figure, from the buffer assignment of the compiled step; nothing is run), less 4 bytes per
trainable parameter for the gradients, in MiB; `growth` is how much more that is than in the line of
the first backbone. With reversible units we promise at most 10 % from 50 to 152 layers; elsewhere
it follows the depth. The products are the compiled step's convolutions and matrix products: the
reversible step has about a third more.

How to read the second: the two steps take turns within one process, and the ratio is their quotient
within a round: median and quartiles. We promise at most 1.6; a third more products make 1.33.
Without XLA, as TensorFlow runs by default.

Memory at full size, as Google's TPU compiler plans it: `benchmarks/tpu_compile.py --backbone
revnet50,revnet152,resnet50_v2,resnet152_v2`.
"""

import argparse
import glob
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

# Nothing is run, so that LLVM need not optimize: XLA's own passes and its plan of memory stay the
# same.
FLAGS = (
    "--xla_dump_hlo_as_text --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
)
# Newer versions order a CPU's step for threads rather than for memory, unlike an accelerator's;
# older ones do not know the flag.
IN_ORDER = " --xla_cpu_enable_concurrency_optimized_scheduler=false"


def make_step(name, mode, args, **compiled):
    """(model, a function that takes one step on images already in memory)."""
    import tfssl  # isort: skip (before TensorFlow: it chooses Keras 2)
    import tensorflow as tf

    from tfssl.backbones import revnet

    revnet.reversible = (
        revnet.forward if mode == "ordinary" else REVERSIBLE.setdefault("", revnet.reversible)
    )
    model = tfssl.backbones.build(name, args.width, args.stem)
    images = tf.random.stateless_uniform([args.batch, args.image_size, args.image_size, 3], [0, 0])
    model.build(images.shape)
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    optimizer.build(model.trainable_variables)

    @tf.function(autograph=False, **compiled)
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(images, training=True)["pre_logits"] - 1))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss

    step.get_concrete_function()  # traced while `revnet.reversible` is what it should be
    return model, step


REVERSIBLE = {}  # the function itself, once it has been replaced


def plan(name, mode, args):
    """What XLA plans for one step, by a process of its own: {"parameters", "temporaries" (bytes),
    "products"}."""
    for more in (IN_ORDER, ""):
        with tempfile.TemporaryDirectory() as folder:
            environment = {
                **os.environ,
                "XLA_FLAGS": f"--xla_dump_to={folder} {FLAGS}{more}",
                "TF_CPP_MIN_LOG_LEVEL": "3",
            }
            command = [
                sys.executable,
                os.path.abspath(__file__),
                "--plan",
                name,
                "--mode",
                mode,
                *map(str, sizes(args)),
            ]
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                found = json.loads(done.stdout.splitlines()[-1])
                largest = [
                    max(glob.glob(f"{folder}/*after_optimizations{end}.txt"), key=os.path.getsize)
                    for end in ("-buffer-assignment", "")
                ]
                assignment, program = (open(path, encoding="utf-8").read() for path in largest)
                found["temporaries"] = sum(
                    map(int, re.findall(r"size (\d+), preallocated-temp", assignment))
                )
                found["products"] = len(
                    re.findall(
                        r"= \S+ (?:convolution|dot)\(|custom_call_target=\"[^\"]*(?:onv|atMul)",
                        program,
                    )
                )
                return found
    raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def sizes(args):
    return [
        "--width",
        args.width,
        "--batch",
        args.batch,
        "--image_size",
        args.image_size,
        "--stem",
        args.stem,
    ]


def show_memory(args):
    print(
        "backbone       back-propagation   parameters   temporaries MiB   growth   products",
        flush=True,
    )
    backbones = args.backbone.split(",")
    of_resnet = [f"{name.replace('revnet', 'resnet')}_v2" for name in backbones]
    rows = [(backbones, "reversible"), (backbones, "ordinary"), (of_resnet, "ordinary")]
    for names, mode in rows:
        first = None
        for name in names:
            found = plan(name, mode, args)
            left = found["temporaries"] - 4 * found["parameters"]
            first = first or left
            print(
                f"{name:14} {mode:16} {found['parameters']:12,} {left / 2**20:17.2f} "
                f"{left / first - 1:+8.1%} {found['products']:10}",
                flush=True,
            )


def show_time(args):
    print("\nbackbone       reversible s   ordinary s   ratio", flush=True)
    for name in args.backbone.split(","):
        steps = [make_step(name, mode, args)[1] for mode in ("reversible", "ordinary")]
        rounds = []
        for number in range(args.warmup + args.rounds):
            taken = [None, None]
            for who in (0, 1) if number % 2 else (1, 0):
                begun = time.perf_counter()
                steps[who]().numpy()
                taken[who] = time.perf_counter() - begun
            rounds.append(taken)
        rounds = rounds[args.warmup :]
        seconds = [statistics.median(taken[who] for taken in rounds) for who in (0, 1)]
        low, middle, high = statistics.quantiles(
            (a / b for a, b in rounds), n=4, method="inclusive"
        )
        print(
            f"{name:14} {seconds[0]:12.3f} {seconds[1]:12.3f}   {middle:.2f} ({low:.2f} to "
            f"{high:.2f})",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--backbone",
        default="revnet50,revnet101,revnet152",
        help="comma list of RevNets, the shallowest first",
    )
    parser.add_argument("--width", type=float, default=0.25, help="width multiplier")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument(
        "--image_size", type=int, default=32, help="side of the square images, in pixels"
    )
    parser.add_argument("--stem", default="small", help="see tfssl.backbones.build")
    parser.add_argument(
        "--rounds",
        type=int,
        default=12,
        help="timed steps of each kind (2 or more); 0: memory alone",
    )
    parser.add_argument("--warmup", type=int, default=2, help="steps of each before those")
    parser.add_argument("--plan", help=argparse.SUPPRESS)
    parser.add_argument("--mode", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plan:
        model, step = make_step(args.plan, args.mode, args, jit_compile=True)
        step.experimental_get_compiler_ir()(stage="optimized_hlo")
        return print(
            json.dumps(
                {"parameters": sum(v.shape.num_elements() for v in model.trainable_variables)}
            )
        )
    print(f"batch {args.batch}, {args.image_size} pixels, width {args.width}, stem {args.stem}")
    show_memory(args)
    if args.rounds:
        show_time(args)


if __name__ == "__main__":
    main()
