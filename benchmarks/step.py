"""How fast is one training step of ours, beside the same network written as plain Keras layers, and
in PyTorch?

    python benchmarks/step.py                                        # ResNet-50, v1 and v2, float32 and bfloat16, beside plain Keras
    python benchmarks/step.py --backbone resnet18_v2 --batch 64 --image_size 64 --precision float32 --rounds 20
    python benchmarks/step.py --method simclr --backbone resnet18_v1 --batch 128 --image_size 32
    python benchmarks/step.py --method rotation --backbone resnet18_v2 --width 0.25 --batch 64 --image_size 32
    python benchmarks/step.py --method fcos --backbone resnet18_v1 --batch 8 --image_size 256 --precision float32 --contenders torch,torch_nhwc --torch ~/torch/bin/python
    python benchmarks/step.py --backbone vit_small --batch 8 --contenders plain,torch --torch ~/torch/bin/python   # ViT-S/16 (to 64 pixels: /4)
    python benchmarks/step.py --isa AVX2 --contenders default,plain,torch,torch_nhwc --torch ~/torch/bin/python   # as on an older processor
    python benchmarks/step.py --contenders default --backbone vgg11,alexnet,revnet18,resnet18_v1   # what oneDNN is worth, any backbone

A step is forward, backward and SGD with momentum, supervised with 1000 classes, on random images
already in memory. With --method simclr it is a step of SimCLR on two views of each image, with the
stem for CIFAR and weight decay; with rotation likewise, of four copies of each image: ours is what
tfssl-train runs, with its augmentation and metrics; the others are network, head, loss and
optimizer. With --method fcos it is a step of the protocol fcos that fine-tunes a published module,
with its pyramid and head, by Adam: in float32, and beside PyTorch alone. The contenders beside ours:

  default     tfssl, with oneDNN left as TensorFlow has it (off where the processor has no AVX512-VNNI, AVX-VNNI or AMX)
  plain       Keras, the functional API, no tfssl; oneDNN as for ours
  torch       PyTorch in the interpreter --torch (which needs no TensorFlow), images as NCHW; torch_nhwc: in the channels_last format

Each contender has its own process, and so its own peak memory; they take turns step by step (the
order turns round from one round to the next), so that a busy machine slows all alike. --isa AVX2
has them compute as on a processor without AVX-512: oneDNN, TensorFlow's matrix products and
PyTorch's own kernels.

How to read the table: images/s are medians over the rounds; they depend on the machine and on what
else it does. The ratios are what to look at: their time / ours within a round, above 1 where ours
is faster; their medians, and their quartiles. We promise 0.97 or more of plain Keras. The first is
of wall time, the second of processor time, which is the steadier one on a busy CPU and says nothing
about an accelerator. Peak memory is the host's (resident, GB), the libraries included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

CLASSES = 1000
VOC, OBJECTS, LAYERS, WIDTH = 20, 10, 2, 128  # of fcos: classes, objects of an image, the head's


def plain_resnet(name, image_size, width=1.0, small=False):
    """ResNet with the study's geometry as anybody would write it: Keras's own layers, the
    functional API, no tfssl. Up to the mean."""
    import tensorflow as tf
    from tensorflow.keras import layers

    depth, version = (int(number) for number in name[len("resnet") :].split("_v"))
    units = {
        18: (2, 2, 2, 2),
        34: (3, 4, 6, 3),
        50: (3, 4, 6, 3),
        101: (3, 4, 23, 3),
        152: (3, 8, 36, 3),
    }[depth]

    def conv(x, channels, size, stride=1):
        if size > 1:
            x = layers.ZeroPadding2D(size // 2)(x)
        return layers.Conv2D(channels, size, stride, use_bias=False)(x)

    def norm(x, relu=True):
        x = layers.BatchNormalization()(x)
        return layers.ReLU()(x) if relu else x

    def unit_v1(x, width, stride):
        channels = width * (4 if depth >= 50 else 1)
        shortcut = x
        if stride > 1 or x.shape[-1] != channels:
            shortcut = norm(conv(x, channels, 1, stride), relu=False)
        if depth >= 50:
            x = norm(conv(x, width, 1))
            x = norm(conv(x, width, 3, stride))
            x = norm(conv(x, channels, 1), relu=False)
        else:
            x = norm(conv(x, width, 3, stride))
            x = norm(conv(x, width, 3), relu=False)
        return layers.ReLU()(layers.Add()([shortcut, x]))

    def unit_v2(x, width, stride):
        channels = width * (4 if depth >= 50 else 1)
        shortcut, project = x, stride > 1 or x.shape[-1] != channels
        x = norm(x)
        if project:
            shortcut = conv(x, channels, 1, stride)
        if depth >= 50:
            x = conv(x, width, 1)
            x = conv(norm(x), width, 3, stride)
            x = conv(norm(x), channels, 1)
        else:
            x = conv(x, width, 3, stride)
            x = conv(norm(x), width, 3)
        return layers.Add()([shortcut, x])

    images = x = tf.keras.Input([image_size, image_size, 3])
    root = int(64 * width + 0.5)
    x = conv(x, root, 3) if small else conv(x, root, 7, 2)
    if version == 1:
        x = norm(x)
    x = x if small else layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for block in range(4):
        for i in range(units[block]):
            x = (unit_v1 if version == 1 else unit_v2)(
                x, root * 2**block, 2 if i == 0 and block > 0 else 1
            )
    if version == 2:
        x = norm(x)
    return tf.keras.Model(images, layers.GlobalAveragePooling2D(dtype="float32")(x))


VITS = {"vit_tiny": (192, 3), "vit_small": (384, 6), "vit_base": (768, 12)}  # channels, heads


def patch_of(image_size):
    return 16 if image_size > 64 else 4


def plain_vit(name, image_size, width=1.0):
    """A vision transformer of twelve blocks, likewise. Up to the class token."""
    import tensorflow as tf
    from tensorflow.keras import layers

    channels, heads = int(VITS[name][0] * width + 0.5), VITS[name][1]

    class Tokens(layers.Layer):
        """The class token in front, and positions."""

        def build(self, shape):
            self.cls = self.add_weight("cls", [1, 1, channels])
            self.positions = self.add_weight("positions", [1, 1 + shape[1], channels])

        def call(self, x):
            cls = tf.tile(tf.cast(self.cls, x.dtype), [tf.shape(x)[0], 1, 1])
            return tf.concat([cls, x], 1) + tf.cast(self.positions, x.dtype)

    def norm(x):
        return layers.LayerNormalization(epsilon=1e-6)(x)

    patch = patch_of(image_size)
    images = tf.keras.Input([image_size, image_size, 3])
    x = layers.Conv2D(channels, patch, patch)(images)
    x = Tokens()(layers.Reshape([-1, channels])(x))
    for _ in range(12):
        y = norm(x)
        x = layers.Add()([x, layers.MultiHeadAttention(heads, channels // heads)(y, y)])
        y = layers.Dense(4 * channels, activation="gelu")(norm(x))
        x = layers.Add()([x, layers.Dense(channels)(y)])
    return tf.keras.Model(images, layers.Lambda(lambda x: x[:, 0], dtype="float32")(norm(x)))


def our_network(name, image_size, width):
    import tensorflow as tf

    import tfssl

    images = tf.keras.Input([image_size, image_size, 3])
    stem = {"stem": "imagenet" if image_size > 64 else "small"}
    own = {"patch": patch_of(image_size)} if name in VITS else stem
    network = tfssl.backbones.build(name, width, **own)
    return tf.keras.Model(images, network(images)["pre_logits"])


def supervised(make, name, batch, image_size, width):
    """A function that takes one step, and the trained variables."""
    import tensorflow as tf

    features = make(name, image_size, width)
    model = tf.keras.Sequential([features, tf.keras.layers.Dense(CLASSES, dtype="float32")])
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    loss_function = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images = tf.random.stateless_uniform([batch, image_size, image_size, 3], seed=[0, 0])
    labels = tf.random.stateless_uniform([batch], seed=[0, 1], maxval=CLASSES, dtype=tf.int32)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(images, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss

    return lambda: step().numpy(), model.trainable_variables


def our_supervised(*settings):
    return supervised(our_network, *settings)


def plain_supervised(name, batch, image_size, width):
    def make(*args):
        return plain_vit(*args) if name in VITS else plain_resnet(*args, small=image_size <= 64)

    return supervised(make, name, batch, image_size, width)


def our_task(task, name, batch, image_size, width, images, **settings):
    import tensorflow as tf

    import tfssl

    backbone = tfssl.backbones.build(name, width, stem="small")
    model = tfssl.pretext.build(task, backbone, image_size=image_size, **settings)
    model.batch_size = batch
    model.compile(tf.keras.optimizers.SGD(0.01, momentum=0.9))
    model.prepare()
    step = model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(with_rows(images, batch)).repeat())
    return lambda: float(step(batches)["loss"]), model.trainable_variables


def our_simclr(name, batch, image_size, width):
    settings = {"augmentation": "crop", "temperature": 0.5}
    images = (random_bytes([batch, 2, image_size, image_size, 3]),)
    return our_task("simclr", name, batch, image_size, width, images, **settings)


def our_rotation(name, batch, image_size, width):
    return our_task(
        "rotation", name, batch, image_size, width, random_bytes([batch, image_size, image_size, 3])
    )


def plain_rotation(name, batch, image_size, width):
    import tensorflow as tf

    features = plain_resnet(name, image_size, width, small=True)
    model = tf.keras.Sequential([features, tf.keras.layers.Dense(4, dtype="float32")])
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    images = random_bytes([batch, image_size, image_size, 3])
    batches = iter(tf.data.Dataset.from_tensors(images).repeat())
    turns = tf.repeat(tf.range(4), batch)

    @tf.function
    def step():
        images = tf.cast(next(batches), tf.float32) / 127.5 - 1
        images = tf.concat([tf.image.rot90(images, turn) for turn in range(4)], 0)
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(turns, logits)
            ) + decay(model)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss

    return lambda: step().numpy(), model.trainable_variables


def decay(model):
    import tensorflow as tf

    return 1e-4 * tf.add_n(
        [tf.nn.l2_loss(v) for v in model.trainable_variables if "kernel" in v.name]
    )


def plain_simclr(name, batch, image_size, width):
    import tensorflow as tf
    from tensorflow.keras import layers

    model = plain_resnet(name, image_size, width, small=True)
    width = model.output.shape[-1]
    head = tf.keras.Sequential(
        [
            layers.Dense(width, use_bias=False, dtype="float32"),
            layers.BatchNormalization(dtype="float32"),
            layers.ReLU(dtype="float32"),
            layers.Dense(128, use_bias=False, dtype="float32"),
            layers.BatchNormalization(center=False, dtype="float32"),
        ]
    )
    model = tf.keras.Sequential([model, head])
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    batches = iter(
        tf.data.Dataset.from_tensors(random_bytes([batch, 2, image_size, image_size, 3])).repeat()
    )
    labels = tf.concat([tf.range(batch, 2 * batch), tf.range(batch)], 0)

    @tf.function
    def step():
        views = tf.cast(next(batches), tf.float32) / 255
        views = tf.concat([views[:, 0], views[:, 1]], 0)
        with tf.GradientTape() as tape:
            z = tf.math.l2_normalize(model(views, training=True), 1)
            logits = tf.matmul(z, z, transpose_b=True) / 0.5 - 1e9 * tf.eye(2 * batch)
            loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            ) + decay(model)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        )
        return loss

    return lambda: step().numpy(), model.trainable_variables


def random_bytes(shape):
    import tensorflow as tf

    return tf.cast(
        tf.random.stateless_uniform(shape, seed=[0, 0], maxval=256, dtype=tf.int32), tf.uint8
    )


def with_rows(images, batch):
    """A batch as the input pipeline delivers it."""
    import tensorflow as tf

    index = tf.range(batch, dtype=tf.int64)
    rows = {name: index for name in ("label", "index", "number", "seed")}
    return {
        "image": images,
        **rows,
        "weight": tf.ones([batch]),
        "replaced": tf.zeros([batch], bool),
    }


def our_fcos(name, batch, image_size, width):
    """A step of `tfssl-eval --protocol=fcos --dense_trunk=fine_tuned`, on a published module."""
    import tempfile

    import numpy as np
    import tensorflow as tf

    import tfssl
    from tfssl.downstream.protocols import dense, fcos
    from tfssl.hub import load

    backbone = tfssl.backbones.build(name, width, "imagenet")
    model = tfssl.pretext.build("simclr", backbone, image_size=image_size)
    model.prepare()
    with tempfile.TemporaryDirectory() as folder:
        module = load.load(tfssl.export.save(model, f"{folder}/module"))
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, [batch, OBJECTS, 2])
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, [batch, OBJECTS, 2])], -1)
    targets = {
        "boxes": tf.constant(boxes * image_size, tf.float32),
        "classes": tf.constant(rng.integers(0, VOC, [batch, OBJECTS]), tf.int32),
        "difficult": tf.zeros([batch, OBJECTS], tf.bool),
    }
    task = fcos.FCOSTask(WIDTH, LAYERS, WIDTH, (1.0, 1.0), 0, (image_size, image_size))
    task.names = [str(c) for c in range(VOC)]
    images = random_bytes([batch, image_size, image_size, 3])

    class Images:  # of them `DenseModel` asks for the size alone
        arrays = {"images": images.numpy()}

    levels = ["block2", "block3", "block4"]
    network = dense.DenseModel(task.head(), module, Images, levels, np.arange(batch), "fine_tuned")
    step = tf.function(dense.step_of(network, task.loss, 1e-3, 1000), autograph=False)
    return lambda: float(step(images, targets)), network.trainable_variables


METHODS = {
    "supervised": {"ours": our_supervised, "plain": plain_supervised},
    "simclr": {"ours": our_simclr, "plain": plain_simclr},
    "rotation": {"ours": our_rotation, "plain": plain_rotation},
    "fcos": {"ours": our_fcos},
}
CONTENDERS = ("default", "plain", "torch", "torch_nhwc")


def work(method, who, precision, *network):
    """The process of a contender in TensorFlow: see `take_turns`."""
    import tfssl  # noqa: F401 - before TensorFlow: it chooses Keras 2 behind tf.keras, and oneDNN
    import tensorflow as tf  # isort: skip

    tf.keras.mixed_precision.set_global_policy(
        "float32" if precision == "float32" else f"mixed_{precision}"
    )
    step, variables = METHODS[method][who](*network)
    take_turns(step, sum(v.shape.num_elements() for v in variables))


def take_turns(step, parameters):
    """Print the number of parameters; then, per line of input, take a step, and print [wall
    seconds, CPU seconds, peak memory in GB]."""
    print(json.dumps(parameters), flush=True)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            json.dumps([wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]),
            flush=True,
        )


class Contender:
    """A process of its own that takes a step when it is told to."""

    def __init__(self, who, name, precision, args):
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
        if args.isa:
            environment |= {"ONEDNN_MAX_CPU_ISA": args.isa, "ATEN_CPU_CAPABILITY": args.isa.lower()}
        if who == "default":
            environment["TF_ENABLE_ONEDNN_OPTS"] = "0" if args.isa else tensorflows_default()
        script, python, role = __file__, sys.executable, "ours" if who == "default" else who
        if who.startswith("torch"):
            script, python = os.path.join(os.path.dirname(__file__), "step_torch.py"), args.torch
        network = (name, args.batch, args.image_size, args.width)
        command = [python, script, "--work", json.dumps([args.method, role, precision, *network])]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.parameters = self.read()

    def read(self):
        return json.loads(self.process.stdout.readline() or sys.exit("a contender died: see above"))

    def step(self):
        print(file=self.process.stdin, flush=True)
        return self.read()

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def tensorflows_default():
    """Whether TensorFlow uses oneDNN on this processor by itself: "0" or "1"."""
    program = (
        "from tensorflow.python.util._pywrap_util_port import IsMklEnabled; "
        "print(int(IsMklEnabled()))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TF_ENABLE_ONEDNN_OPTS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def compare(name, precision, args):
    """Prints the table's lines for one backbone in one precision."""
    names = ["ours", *args.contenders.split(",")]
    contenders = [Contender(who, name, precision, args) for who in names]
    sizes = dict(zip(names, (contender.parameters for contender in contenders)))
    assert len(set(sizes.values())) == 1, (
        f"{name}: not the same networks, but of so many parameters: {sizes}"
    )

    rounds = []  # of [wall, cpu, memory] of each
    for number in range(args.warmup + args.rounds):
        order = range(len(names)) if number % 2 else reversed(range(len(names)))
        taken = {who: contenders[who].step() for who in order}
        rounds.append([taken[who] for who in range(len(names))])
    for contender in contenders:
        contender.end()

    memory = [taken[2] for taken in rounds[-1]]
    rounds = rounds[args.warmup :]
    for i, who in enumerate(names):
        speed = args.batch / statistics.median(taken[i][0] for taken in rounds)
        ratios = [
            quartiles([taken[i][clock] / taken[0][clock] for taken in rounds]) if i else ""
            for clock in (0, 1)
        ]
        print(
            "|",
            " | ".join([name, precision, who, f"{speed:.2f}", *ratios, f"{memory[i]:.2f}"]),
            "|",
            flush=True,
        )


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--method", default="supervised", choices=METHODS)
    parser.add_argument(
        "--backbone", default="resnet50_v1,resnet50_v2", help="comma list of tfssl.backbones.NAMES"
    )
    parser.add_argument(
        "--precision", default="float32,bfloat16", help="comma list of float32, bfloat16, float16"
    )
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument(
        "--image_size",
        type=int,
        default=224,
        help="side of the square images, in pixels; up to 64: the stem for CIFAR",
    )
    parser.add_argument("--width", type=float, default=1.0, help="times all channels")
    parser.add_argument(
        "--contenders",
        default="plain",
        help=f"comma list of {', '.join(CONTENDERS)}; plain and torch: ResNets and ViTs (supervised)",
    )
    parser.add_argument(
        "--torch", default=sys.executable, help="interpreter of the contenders in PyTorch"
    )
    parser.add_argument(
        "--isa",
        default="",
        help="newest instruction set to use, as AVX2; default is then as where oneDNN is off by itself",
    )
    parser.add_argument(
        "--rounds", type=int, default=12, help="timed steps of each contender (2 or more)"
    )
    parser.add_argument(
        "--warmup", type=int, default=2, help="steps of each before those, the first being traced"
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(*json.loads(args.work))
        return
    print(
        f"{args.method}, batch {args.batch}, {args.image_size} pixels, width {args.width:g}, "
        f"{args.rounds} rounds, {args.isa or 'native'}"
    )
    print(
        "| backbone | precision | contender | images/s | wall ratio (quartiles) | CPU ratio "
        "(quartiles) | GB |\n|" + "---|" * 7
    )
    for name in args.backbone.split(","):
        for precision in args.precision.split(","):
            compare(name, precision, args)


if __name__ == "__main__":
    main()
