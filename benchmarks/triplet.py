"""The triplet loss with semi-hard negatives, forward and backward: ours, TensorFlow Addons', and
the least that any would cost.

    python benchmarks/triplet.py                      # batch 1024 and 4096, plain TensorFlow and XLA; Addons once at 1024: 6 s and 16 GB
    python benchmarks/triplet.py --reference ""       # without Addons (Python 3.12 and newer has none)

Embeddings are random and of norm 1, eight of each label; one call gives the loss and its gradient.
The floor is one product of the embeddings with themselves, B x B, and one sort of its rows.

How to read the table: each row has a process of its own. `ms` is the median of the calls after the
first, and depends on the machine and on what else it does. `of the floor` is what to look at: our
time over the floor's, which take turns in one process, so that a busy machine slows both alike; the
median of the rounds, and its quartiles. We promise 4 or less. (Addons' row has no turns: it is
called once, and its floor after it.) `growth` is by how many GB the process's peak memory rises
over what it held before, for the compiled program too: we promise less than 2 at batch 4096. The
last lines compare with Addons: we promise 40 times its speed and a tenth of its memory.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import time


def peak():
    """Of this process's memory, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def resident():
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30


def measure(who, batch, size, rounds, jit, pipe):
    """Sends {"ms": milliseconds, "ratios": those to the floor's, "growth": GB}."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tfssl  # noqa: F401 - before TensorFlow: it chooses Keras 2 behind tf.keras
    import tensorflow as tf  # isort: skip

    from tfssl.losses.triplet import triplet_semihard

    if who == "addons":
        import tensorflow_addons as tfa

        def loss_of(labels, embeddings):
            return tfa.losses.triplet_semihard_loss(
                labels, embeddings, 0.5, distance_metric="squared-L2"
            )
    else:
        loss_of = triplet_semihard

    def loss_and_gradient(labels, embeddings):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            loss = loss_of(labels, embeddings)
        return loss, tape.gradient(loss, embeddings)

    def floor(labels, embeddings):
        return tf.sort(tf.matmul(embeddings, embeddings, transpose_b=True), axis=1)

    def seconds(function):
        start = time.perf_counter()
        tf.nest.map_structure(lambda x: x.numpy(), function(labels, embeddings))
        return time.perf_counter() - start

    embeddings = tf.math.l2_normalize(tf.random.stateless_normal([batch, size], [0, 0]), 1)
    labels = tf.range(batch) // 8
    ours, floor = (tf.function(f, jit_compile=jit) for f in (loss_and_gradient, floor))
    before = resident()
    ours.get_concrete_function(labels, embeddings)
    first = seconds(ours)
    growth = peak() - before
    seconds(floor)
    if who == "addons":
        pairs = [(first, seconds(floor))]  # traced, not compiled: the first call is as good as any
    else:
        pairs = [(seconds(ours), seconds(floor)) for _ in range(rounds)]
    pipe.send(
        {
            "ms": 1e3 * statistics.median(a for a, _ in pairs),
            "ratios": [a / b for a, b in pairs],
            "growth": growth,
        }
    )


def row(who, batch, jit, args):
    """Measures in a process of its own, prints the table's line, returns what was measured."""
    context = multiprocessing.get_context("spawn")
    pipe, end = context.Pipe()
    process = context.Process(
        target=measure, args=(who, batch, args.size, args.rounds, jit, end), daemon=True
    )
    process.start()
    end.close()
    found = pipe.recv()
    process.join()
    ratio = f"{statistics.median(found['ratios']):6.2f}"
    if len(found["ratios"]) > 1:
        low, _, high = statistics.quantiles(found["ratios"], n=4, method="inclusive")
        ratio += f" ({low:.2f} to {high:.2f})"
    mode = "XLA" if jit else "graph"
    print(
        f"{batch:5} {who:8} {mode:6} {found['ms']:9.1f}   {ratio:24} {found['growth']:7.3f}",
        flush=True,
    )
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", default="1024,4096", help="comma list of batch sizes")
    parser.add_argument(
        "--reference",
        default="1024",
        help="those at which Addons' loss is measured too; memory is cubic",
    )
    parser.add_argument("--size", type=int, default=1000, help="of an embedding")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls (2 or more)")
    args = parser.parse_args()
    references = [int(b) for b in args.reference.split(",") if b]
    print("batch loss     mode          ms   of the floor               growth")
    for batch in map(int, args.batch.split(",")):
        ours = {jit: row("ours", batch, jit, args) for jit in (False, True)}
        if batch in references:
            addons = row("addons", batch, False, args)
            for jit, found in ours.items():
                print(
                    f"      Addons / ours, {'XLA' if jit else 'graph'}: "
                    f"{addons['ms'] / found['ms']:.0f} in time, "
                    f"{addons['growth'] / found['growth']:.0f} in memory"
                )


if __name__ == "__main__":
    main()
