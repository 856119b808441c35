"""Do our training steps compile for TPUs, and do they fit? Answered by Google's own TPU compiler,
without a TPU.

    python3 -m venv tpu-compiler && tpu-compiler/bin/pip install jax==0.10.2 libtpu==0.0.51      # once, apart from tfssl's environment
    python benchmarks/tpu_compile.py --compiler tpu-compiler/bin/python --task rotation,supervised --backbone resnet50_v2 --batch 64
    python benchmarks/tpu_compile.py --compiler tpu-compiler/bin/python --kind v5e --largest     # the largest batch that fits
    python benchmarks/tpu_compile.py --compiler tpu-compiler/bin/python --step extract,linear_sgd --batch 128   # of an evaluation

TensorFlow lowers the real step (augmentation, forward, backward, optimizer, metrics) to HLO; libtpu
compiles it ahead of time for one core of each TPU kind. So it does with steps of tfssl-eval: the
forward pass of an extraction, of all endpoints and pixels, and that of linear_sgd with new crops, of a
head of 1000 classes for each endpoint; the task is then that of the exported network. And with what
protocols compute of features, 2048 values of --batch rows: logistic (loss and gradient of 1000 classes),
knn (20 neighbors among 16384 rows), mlp (a step of four networks); network and task play no part.

How to read the table: `batch` is images per core, before rotations. TFLOP is what one step
computes, by the compiler's count. `arguments` are weights, optimizer state and input, `temporaries`
all that lives within a step, `peak` both and the outputs, in GiB of the core's HBM; "no" under
`fits` is the compiler's own refusal. `estimate` is a roofline, not a measurement: the longer of
FLOPs over the core's published peak and bytes over its published bandwidth; a real step takes
longer.

What this shows: every operation of the step exists on a TPU, shapes are static, memory suffices.
What it does not: collectives between cores, the input pipeline, speed, and operations that
TensorFlow lowers otherwise on a TPU than on the CPU, where this lowering is done.
"""

import argparse
import dataclasses
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time

GIB = 2**30
# Topology, peak bfloat16 FLOP/s, HBM bytes/s and bytes (cloud.google.com/tpu/docs); of v4 and v5p:
# of a chip, two cores joined.
KINDS = {
    "v4": ("v4:2x2x1", 275e12, 1228e9, 32 * GIB),
    "v5e": ("v5e:2x2", 197e12, 819e9, 16 * GIB),
    "v5p": ("v5p:2x2x1", 459e12, 2765e9, 95 * GIB),
    "v6e": ("v6e:2x2", 918e12, 1640e9, 32 * GIB),
}


def lower(row, path):
    """Write the HLO of one training step to `path`: TensorFlow's half, run in a process of its
    own."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if row["step"] in ("logistic", "knn", "mlp"):
        return lower_solver(row["step"], int(row["flags"]["batch_size"]), path)
    from absl import flags

    from tfssl.config.configs import TrainConfig
    from tfssl.config.plan import plan
    from tfssl.runtime import cli
    from tfssl.training import build, checks
    from tfssl.training.registered import registered
    import tensorflow as tf  # isort: skip

    values, registered = flags.FlagValues(), registered({})
    TrainConfig.define(*registered, values)
    given = [f"--{name}={value}" for name, value in row["flags"].items()]
    values(cli.expand_flagfiles(["tpu_compile", *given, "--workdir=unused"]))
    config = checks.pretraining(TrainConfig.from_flags(values, *registered))
    if config.task_settings.get("num_classes") == 0:
        config = dataclasses.replace(
            config, task_settings={**config.task_settings, "num_classes": 1000}
        )
    if row["step"] != "train":
        return lower_evaluation(row["step"], config, path)
    tf.keras.mixed_precision.set_global_policy(config.accelerators.precision)
    model = build.build_model(config)
    decay = config.task_settings["weight_decay"]
    optimizer = build.build_optimizer(config, plan(config.optimization, 1_281_167), decay)
    model.compile(optimizer, config.accelerators.accumulate_steps)
    model.prepare()
    batch = model.zero_batch(config.optimization.batch_size)
    step = tf.function(model.train_step, jit_compile=True)
    with open(path, "wb") as f:
        f.write(step.experimental_get_compiler_ir(batch)(stage="hlo_serialized"))


def lower_evaluation(kind, config, path):
    """The same with a step of an evaluation."""
    import numpy as np
    import tensorflow as tf

    import tfssl
    from tfssl.downstream.features import encoder
    from tfssl.downstream.protocols.linear_sgd import Linear
    from tfssl.downstream.solvers import sgd
    from tfssl.hub import precision
    from tfssl.training import build

    batch, classes = config.optimization.batch_size, 1000
    model = build.build_model(config)
    model.prepare()
    with tempfile.TemporaryDirectory() as folder:
        saved = tfssl.export.save(model, os.path.join(folder, "module"))
        module = precision.load(saved, config.accelerators.precision)
    size, _ = module.sizes()
    names = (*module.shapes(size), "pixels")
    spec = tf.TensorSpec([batch, size, size, 3], tf.uint8)
    compute = encoder.encoder(module, names, spec, "max", 9000, "float32")
    images, arguments = tf.zeros(spec.shape, spec.dtype), ()
    if kind == "linear_sgd":
        dims = {name: x.shape[1] for name, x in compute(images).items()}
        heads = [Linear(name, dims[name], classes) for name in names]
        settings = sgd.SGDSettings(70, (30, 50), batch, 0.1)
        labels = np.arange(batch) % classes
        compute, _ = sgd.step_of(heads, compute, labels, labels >= 0, settings, steps=1000)
        arguments = tf.range(batch, dtype=tf.int64), tf.constant(0, tf.int64)
    step = tf.function(compute, jit_compile=True, autograph=False)
    with open(path, "wb") as f:
        f.write(step.experimental_get_compiler_ir(images, *arguments)(stage="hlo_serialized"))


def lower_solver(kind, batch, path):
    """The same with what a protocol computes of features, in the precision that it asks for."""
    import tfssl  # noqa: F401, I001 (before TensorFlow)
    import numpy as np
    import tensorflow as tf

    from tfssl.downstream.protocols.knn import KNN
    from tfssl.downstream.protocols.logistic import Logistic
    from tfssl.downstream.protocols.mlp import MLP, Perceptron
    from tfssl.downstream.solvers import lbfgs, nearest, sgd

    dims, classes, k = 2048, 1000, 20
    x, rows = tf.zeros([batch, dims]), tf.zeros([batch], tf.int32)
    protocol = {"logistic": Logistic, "knn": KNN, "mlp": MLP}[kind]
    tf.config.experimental.enable_tensor_float_32_execution(not protocol.exact)
    if kind == "logistic":
        compute = lbfgs._cross_entropy.python_function
        arguments = rows, tf.zeros([dims, classes]), tf.zeros([classes])
    elif kind == "knn":
        found = tf.zeros([batch, k]), tf.zeros([batch, k], tf.int32)
        arguments = tf.zeros([1 << 14, dims]), *found, tf.constant(0)

        def compute(x, block, similarity, position, low):
            return nearest._nearest(x, block, similarity, position, tf.constant(k), low)

    else:
        networks = [Perceptron("x", dims, classes, l2=l2) for l2 in (1e-2, 1e-3, 1e-4, 1e-5)]
        labels, settings = np.arange(batch) % classes, sgd.SGDSettings(180, (60, 120), batch, 0.01)
        learn, _ = sgd.step_of(
            networks, lambda x: {"x": x}, labels, labels >= 0, settings, steps=1000
        )
        compute, arguments = learn, (tf.range(batch, dtype=tf.int64), tf.constant(0, tf.int64))
    step = tf.function(compute, jit_compile=True, autograph=False)
    with open(path, "wb") as f:
        f.write(step.experimental_get_compiler_ir(x, *arguments)(stage="hlo_serialized"))


def compile_ahead(path, kind):
    """{"temporaries": bytes, ...} of the HLO in `path` compiled for one core: JAX's half, run by
    the interpreter that has libtpu."""
    os.environ |= {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "0",
        "JAX_PLATFORMS": "cpu",
    }
    import numpy as np
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, xla_client
    from jax._src.lib.mlir import ir
    from jax.experimental import topologies

    with open(path, "rb") as f:
        text = _jax.mlir.xla_computation_to_mlir_module(xla_client.XlaComputation(f.read()))
    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(text.replace("mhlo.copy", "stablehlo.optimization_barrier"))
    device = topologies.get_topology_desc(KINDS[kind][0], "tpu").devices[0]
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(np.array([[device.id]]))
    begun = time.perf_counter()
    try:
        program = device.client.compile(module, xla_client.DeviceList((device,)), options)
    except Exception as e:  # noqa: BLE001 (whatever the compiler has against it is the answer)
        used = re.search(r"Used ([\d.]+)([GM]) of ([\d.]+)([GM]) hbm", str(e))
        return {
            "error": "out of memory: " + used.group(0) if used else str(e).splitlines()[0][:300]
        }
    memory, cost = program.get_compiled_memory_stats(), program.cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return {
        "flops": cost["flops"],
        "bytes": cost["bytes accessed"],
        "arguments": arguments,
        "temporaries": temporaries,
        "peak": arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "seconds": time.perf_counter() - begun,
    }


def measure(row, kinds, compiler):
    """{kind: what `compile_ahead` found}; the step is lowered once for all kinds."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "step.hlo")
        child([sys.executable, __file__, "--lower", path, "--row", json.dumps(row)])
        return {
            kind: json.loads(
                child([compiler, __file__, "--ahead", path, "--kind", kind]).splitlines()[-1]
            )
            for kind in kinds
        }


def child(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)[:200]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def line(row, kind, found):
    f = row["flags"]
    levers = [
        name
        for name in ("rematerialize", "accumulate_steps", "loss_batch_size")
        if str(f.get(name, "1")).lower() not in ("1", "false")
    ]
    task = f["task"] if row["step"] == "train" else f"{row['step']} ({f['task']})"
    task = row["step"] if row["step"] in ("logistic", "knn", "mlp") else task
    cells = [
        task,
        f["backbone"],
        f["width_multiplier"],
        f["batch_size"],
        f["precision"].replace("mixed_", ""),
    ]
    if row["step"] in ("logistic", "knn", "mlp"):
        cells[1:3] = ["", ""]
    cells += [", ".join(levers) or "none", kind]
    if "error" in found:
        fits = "out of memory" in found["error"]
        return [
            *cells,
            "yes" if fits else "NO",
            "",
            "",
            "",
            "",
            "no: " + found["error"] if fits else "",
            "",
        ]
    _, peak_flops, bandwidth, _ = KINDS[kind]
    milliseconds = 1000 * max(found["flops"] / peak_flops, found["bytes"] / bandwidth)
    gib = [f"{found[key] / GIB:.2f}" for key in ("arguments", "temporaries", "peak")]
    return [*cells, "yes", f"{found['flops'] / 1e12:.2f}", *gib, "yes", f"{milliseconds:.0f} ms"]


HEADER = (
    "task backbone width batch precision levers TPU compiles TFLOP arguments temporaries peak fits "
    "estimate"
).split()


def show(cells):
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def largest(row, kind, compiler, unit=16):
    """The largest multiple of `unit` that fits, found from a straight line through two small
    batches and then tried."""

    def peak(batch):
        row["flags"]["batch_size"] = batch
        found = measure(row, [kind], compiler)[kind]
        show(line(row, kind, found))
        return found.get("peak")

    small = (unit, 2 * unit)
    at = [peak(b) for b in small]
    batch = int(small[0] + (KINDS[kind][3] - at[0]) / ((at[1] - at[0]) / unit)) // unit * unit
    if peak(batch):
        while peak(batch + unit):
            batch += unit
    else:
        batch -= unit
        while not peak(batch):
            batch -= unit
    return batch


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--compiler", default="tpu-compiler/bin/python", help="the Python that has jax and libtpu"
    )
    parser.add_argument("--flagfile", help="of training, below all that is said here")
    parser.add_argument("--task", default="rotation", help="comma list; also of the next four")
    parser.add_argument("--backbone", default="resnet50_v2")
    parser.add_argument("--width", default="1.0", help="width multipliers")
    parser.add_argument("--batch", default="64", help="images per core")
    parser.add_argument("--precision", default="mixed_bfloat16")
    parser.add_argument(
        "--step", default="train", help="train, extract, linear_sgd, logistic, knn, mlp"
    )
    parser.add_argument("--rematerialize", default="false", help="false, true, or both")
    parser.add_argument("--kind", default="v4,v5e,v6e", help=f"comma list of {', '.join(KINDS)}")
    parser.add_argument(
        "--flags", default="", help="more training flags, as name=value, separated by blanks"
    )
    parser.add_argument(
        "--largest", action="store_true", help="find the largest batch of each row that fits"
    )
    parser.add_argument("--lower", help=argparse.SUPPRESS)
    parser.add_argument("--ahead", help=argparse.SUPPRESS)
    parser.add_argument("--row", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.lower:
        return lower(json.loads(args.row), args.lower)
    if args.ahead:
        return print(json.dumps(compile_ahead(args.ahead, args.kind)))
    show(HEADER)
    show(["---"] * len(HEADER))
    axes = [args.task, args.backbone, args.width, args.batch, args.precision, args.rematerialize]
    names = ["task", "backbone", "width_multiplier", "batch_size", "precision", "rematerialize"]
    axes.append(args.step)
    for cell in itertools.product(*(axis.split(",") for axis in axes)):
        first = {"flagfile": args.flagfile} if args.flagfile else {}  # what comes later goes before
        more = dict(flag.split("=", 1) for flag in args.flags.split())
        row = {"flags": first | dict(zip(names, cell)) | more, "step": cell[-1]}
        if args.largest:
            for kind in args.kind.split(","):
                print(
                    f"\n{kind}: at most {largest(row, kind, args.compiler)} images per core\n",
                    flush=True,
                )
            continue
        for kind, found in measure(row, args.kind.split(","), args.compiler).items():
            show(line(row, kind, found))


if __name__ == "__main__":
    main()
