"""k-means (Lloyd's algorithm): ours, scikit-learn's KMeans from the same start, and the floor of its
matrix products.

    python benchmarks/kmeans.py                        # 100,000 x 128, 3000 clusters, 5 iterations: a minute or two
    python benchmarks/kmeans.py --rows 20000 --clusters 500

Rows are made: as many clusters as are asked for, with noise, of norm 1, as a memory bank's. The
floor is the product of all rows with all centroids, once for each iteration and once for the
labels, in parts of the size that is fastest here. All use all processors, and take turns, so that a
busy machine slows them alike.

How to read the table: `of the floor` is the median over the rounds of the time over the floor's of
the same round; we promise 1.5 or less, and less than scikit-learn's. `objective` is the sum of
squared distances over scikit-learn's, less 1: we promise less than 1e-4 either way.
"""

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def make(rows, dims, clusters):
    """float32 [rows, dims] of norm 1."""
    import numpy as np

    rng = np.random.default_rng(0)
    centers = rng.standard_normal((clusters, dims))
    x = centers[rng.integers(0, clusters, rows)] + rng.standard_normal((rows, dims))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def product(x, centroids, chunk, times):
    """All rows with all centroids, so many times: one number of them."""
    import tensorflow as tf

    parts = x.shape[0] // chunk
    total = tf.zeros([], x.dtype)
    for i in tf.range(parts * times):
        part = tf.slice(x, [i % parts * chunk, 0], [chunk, x.shape[1]])
        total += tf.matmul(part, centroids, transpose_b=True)[0, 0]
    return total


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()

    import tensorflow as tf
    from sklearn.cluster import KMeans

    from tfssl.losses.kmeans import lloyd

    rows = make(args.rows, args.dims, args.clusters)
    x, start = tf.constant(rows), tf.constant(rows[: args.clusters])
    ours = tf.function(lambda x, start: lloyd(x, start, args.iterations, split=False).objective)
    floor = tf.function(product)

    def theirs():
        with warnings.catch_warnings():  # it says that it did not converge
            warnings.simplefilter("ignore")
            model = KMeans(
                args.clusters, init=start.numpy(), n_init=1, max_iter=args.iterations, tol=0,
                algorithm="lloyd",
            )  # fmt: skip
            return model.fit(rows).inertia_

    def timed(call):
        begun = time.perf_counter()
        value = float(call())
        return time.perf_counter() - begun, value

    chunks = [c for c in (256, 1024, 4096) if c <= args.rows]
    for chunk in chunks:
        floor(x, start, chunk, 1)
    fastest = min(chunks, key=lambda chunk: timed(lambda: floor(x, start, chunk, 1))[0])
    floor(x, start, fastest, args.iterations + 1)
    ours(x, start)
    rounds = [
        (
            timed(lambda: floor(x, start, fastest, args.iterations + 1))[0],
            timed(lambda: ours(x, start)),
            timed(theirs),
        )
        for _ in range(args.rounds)
    ]
    inertia = rounds[-1][2][1]
    print(f"{'':14}{'seconds':>9}{'of the floor':>14}{'objective':>12}")
    for name, found in (
        ("floor", [(r[0], inertia) for r in rounds]),
        ("ours", [r[1] for r in rounds]),
        ("scikit-learn", [r[2] for r in rounds]),
    ):
        ratio = statistics.median(t / r[0] for (t, _), r in zip(found, rounds))
        apart = "" if name == "floor" else f"{found[-1][1] / inertia - 1:12.1e}"
        print(f"{name:14}{statistics.median(t for t, _ in found):9.2f}{ratio:14.2f}{apart}")


if __name__ == "__main__":
    main()
