"""How fast is one training step of our backbones, beside the same network written as plain functional Keras layers?

    python benchmarks/step.py                                        # ResNet-50, v1 and v2, float32 and bfloat16
    python benchmarks/step.py --backbone resnet18_v2 --batch 64 --image_size 64 --precision float32 --rounds 20
    python benchmarks/step.py --method simclr --backbone resnet18_v1 --batch 128 --image_size 32

A step is forward, backward and SGD with momentum, supervised with 1000 classes, on random images already in memory. With --method simclr
it is a step of SimCLR on two views of each image, with the stem for CIFAR and weight decay: ours is what tfssl-train runs, with flips
and its metrics; the plain one is network, head, NT-Xent and optimizer in a tf.function.
Each contender has its own process, and so its own peak memory; they take turns step by step (whoever came first in a
round comes second in the next), so that a busy machine slows both alike.

How to read the table: images/s are medians over the rounds; they depend on the machine and on what else it does. The
ratios are what to look at: plain time / our time within a round, above 1 where ours is faster; their medians, and their
quartiles. We promise 0.97 or more. The first is of wall time, the second of processor time, which is the steadier one
on a busy CPU and says nothing about an accelerator. Peak memory is the host's (resident, GB), TensorFlow included.
"""

import argparse
import multiprocessing
import resource
import statistics
import time

CLASSES = 1000


def plain_resnet(name, image_size, small=False):
    """ResNet with the study's geometry as anybody would write it: Keras's own layers, the functional API, no tfssl. Up to the mean."""
    import tensorflow as tf
    from tensorflow.keras import layers

    depth, version = (int(number) for number in name[len("resnet") :].split("_v"))
    units = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]

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
    x = conv(x, 64, 3) if small else conv(x, 64, 7, 2)
    if version == 1:
        x = norm(x)
    x = x if small else layers.MaxPooling2D(3, 2)(layers.ZeroPadding2D(1)(x))
    for block in range(4):
        for i in range(units[block]):
            x = (unit_v1 if version == 1 else unit_v2)(x, 64 * 2**block, 2 if i == 0 and block > 0 else 1)
    if version == 2:
        x = norm(x)
    return tf.keras.Model(images, layers.GlobalAveragePooling2D(dtype="float32")(x))


def our_resnet(name, image_size):
    import tensorflow as tf

    import tfssl

    images = tf.keras.Input([image_size, image_size, 3])
    return tf.keras.Model(images, tfssl.backbones.build(name)(images)["pre_logits"])


def supervised(make, name, batch, image_size):
    """A function that takes one step, and the trained variables."""
    import tensorflow as tf

    features = make(name, image_size)
    model = tf.keras.Sequential([features, tf.keras.layers.Dense(CLASSES, dtype="float32")])
    optimizer = tf.keras.optimizers.SGD(0.01, momentum=0.9)
    loss_function = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    images = tf.random.stateless_uniform([batch, image_size, image_size, 3], seed=[0, 0])
    labels = tf.random.stateless_uniform([batch], seed=[0, 1], maxval=CLASSES, dtype=tf.int32)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = loss_function(labels, model(images, training=True))
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return lambda: step().numpy(), model.trainable_variables


def our_supervised(*settings):
    return supervised(our_resnet, *settings)


def plain_supervised(*settings):
    return supervised(plain_resnet, *settings)


def our_simclr(name, batch, image_size):
    import tensorflow as tf

    import tfssl

    backbone = tfssl.backbones.build(name, stem="small")
    model = tfssl.pretext.build("simclr", backbone, image_size=image_size, augmentation="crop", temperature=0.5)
    model.batch_size = batch
    model.compile(tf.keras.optimizers.SGD(0.01, momentum=0.9))
    model.prepare()
    step = model.make_train_function()
    batches = iter(tf.data.Dataset.from_tensors(simclr_batch(batch, image_size)).repeat())
    return lambda: float(step(batches)["loss"]), model.trainable_variables


def plain_simclr(name, batch, image_size):
    import tensorflow as tf
    from tensorflow.keras import layers

    model = plain_resnet(name, image_size, small=True)
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
    batches = iter(tf.data.Dataset.from_tensors(simclr_batch(batch, image_size)["image"][0]).repeat())
    labels = tf.concat([tf.range(batch, 2 * batch), tf.range(batch)], 0)

    @tf.function
    def step():
        views = tf.cast(next(batches), tf.float32) / 255
        views = tf.concat([views[:, 0], views[:, 1]], 0)
        with tf.GradientTape() as tape:
            z = tf.math.l2_normalize(model(views, training=True), 1)
            logits = tf.matmul(z, z, transpose_b=True) / 0.5 - 1e9 * tf.eye(2 * batch)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits))
            kernels = [v for v in model.trainable_variables if "kernel" in v.name]
            loss += 1e-4 * tf.add_n([tf.nn.l2_loss(v) for v in kernels])
        optimizer.apply_gradients(zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables))
        return loss

    return lambda: step().numpy(), model.trainable_variables


def simclr_batch(batch, image_size):
    """Two views of each image, as the input pipeline delivers them."""
    import tensorflow as tf

    views = tf.random.stateless_uniform([batch, 2, image_size, image_size, 3], seed=[0, 0], maxval=256, dtype=tf.int32)
    index = tf.range(batch, dtype=tf.int64)
    return {
        "image": (tf.cast(views, tf.uint8),),
        **{name: index for name in ("label", "index", "number", "seed")},
        "weight": tf.ones([batch]),
        "replaced": tf.zeros([batch], bool),
    }


METHODS = {"supervised": (our_supervised, plain_supervised), "simclr": (our_simclr, plain_simclr)}


def worker(make, name, precision, batch, image_size, pipe):
    """Sends the number of parameters; then takes a step per message, and sends its wall and CPU time and peak memory."""
    import tfssl  # noqa: F401 - before TensorFlow: it chooses Keras 2 behind tf.keras
    import tensorflow as tf  # isort: skip

    tf.keras.mixed_precision.set_global_policy("float32" if precision == "float32" else f"mixed_{precision}")
    step, variables = make(name, batch, image_size)
    pipe.send(sum(v.shape.num_elements() for v in variables))
    while pipe.recv():
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        pipe.send((wall, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))


def compare(name, precision, args):
    """Prints the table's line for one backbone in one precision."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for make in METHODS[args.method]:
        pipe, end = context.Pipe()
        settings = (make, name, precision, args.batch, args.image_size, end)
        processes.append(context.Process(target=worker, args=settings, daemon=True))
        processes[-1].start()
        pipes.append(pipe)
    sizes = [pipe.recv() for pipe in pipes]
    assert sizes[0] == sizes[1], f"{name}: {sizes[0]} parameters, but the plain network has {sizes[1]}"

    rounds = []  # of ((wall, cpu, memory) of ours, the same of the plain network)
    for number in range(args.warmup + args.rounds):
        taken = [None, None]
        for who in (0, 1) if number % 2 else (1, 0):
            pipes[who].send(True)
            taken[who] = pipes[who].recv()
        rounds.append(taken)
    for pipe, process in zip(pipes, processes):
        pipe.send(False)
        process.join()

    memory = [taken[2] for taken in rounds[-1]]
    rounds = rounds[args.warmup :]
    speeds = [args.batch / statistics.median(taken[who][0] for taken in rounds) for who in (0, 1)]
    ratios = [quartiles(plain[clock] / ours[clock] for ours, plain in rounds) for clock in (0, 1)]
    print(
        f"{name:14} {precision:9} {speeds[0]:13.2f} {speeds[1]:14.2f}   {ratios[0]}   {ratios[1]} "
        f"{memory[0]:9.2f} {memory[1]:10.2f}",
        flush=True,
    )


def quartiles(values):
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="supervised", choices=METHODS)
    parser.add_argument("--backbone", default="resnet50_v1,resnet50_v2", help="comma list of tfssl.backbones.NAMES")
    parser.add_argument("--precision", default="float32,bfloat16", help="comma list of float32, bfloat16, float16")
    parser.add_argument("--batch", type=int, default=16, help="images per step")
    parser.add_argument("--image_size", type=int, default=224, help="side of the square images, in pixels")
    parser.add_argument("--rounds", type=int, default=12, help="timed steps of each contender (2 or more)")
    parser.add_argument("--warmup", type=int, default=2, help="steps of each before those, the first being traced")
    args = parser.parse_args()
    print(f"{args.method}, batch {args.batch}, {args.image_size} pixels, {args.rounds} rounds")
    print(
        "backbone       precision ours images/s plain images/s   wall ratio               CPU ratio "
        "                 ours GB   plain GB"
    )
    for name in args.backbone.split(","):
        for precision in args.precision.split(","):
            compare(name, precision, args)


if __name__ == "__main__":
    main()
