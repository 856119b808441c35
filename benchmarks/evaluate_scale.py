"""How long does an evaluation of a million images take, and how much disk and memory?

    python benchmarks/evaluate_scale.py --rows 1000000                   # features of 2048 values in float16
    python benchmarks/evaluate_scale.py --rows 1000000 --parts write,read,knn
    python benchmarks/evaluate_scale.py --parts extract --network resnet50_v2 --image_size 224

Features are synthetic: a direction for each class, and noise, written by the cache of tfssl-eval as an
extraction writes them. Each part runs in a process of its own.

How to read the table: `seconds` are of the part alone, without imports; `each` is what a unit of it takes,
by which to estimate other sizes (all parts but logistic grow with rows x values; knn with rows x queries x
values; logistic with rows x values x classes x evaluations). `memory` is the most that the process held,
TensorFlow's own half gigabyte included, and memory-mapped pages too; `disk` is what it left.

- write: an endpoint's array, without the network. read: its checksums, as each evaluation does. check:
  finite values. knn: --queries against all rows, k 20. logistic: L-BFGS, --updates of one l2; the first
  evaluations look for the preconditioner. sgd: an epoch of a linear classifier on the features.
- svm: --svm_classes SVMs of C = 1 on all rows, without cross-validation. low_shot: --shots images of each class,
  two samples, C = 1. few_shot: 600 episodes of five classes and five images.
- extract: tfssl-eval's extraction of --images from a folder of JPEGs, against the network alone, on one
  batch that stays in memory: `each` is images/s of the first, and their ratio, aimed at 0.95. On a
  processor, decoding takes a part of the cores: there the ratio is lower.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CHUNK = 1 << 13  # rows that are made at once
PARTS = (
    "write",
    "read",
    "check",
    "knn",
    "logistic",
    "sgd",
    "svm",
    "low_shot",
    "few_shot",
    "extract",
)


def rows_of(args, low, high, seed):
    """(features float16 [n, D], labels [n]) of some rows, the same each time."""
    import numpy as np

    centers = np.random.default_rng(0).standard_normal((args.classes, args.dims), np.float32)
    rng = np.random.default_rng([seed, low])
    labels = rng.integers(0, args.classes, high - low)
    noise = rng.standard_normal((high - low, args.dims), np.float32)
    return (centers[labels] + args.noise * noise).astype(np.float16), labels


def cache_of(args):
    from tfssl.downstream.features.cache import FeatureCache

    facts = [args.rows, args.dims, args.classes, args.noise]
    return FeatureCache(args.folder, {"synthetic": facts})


def stored(args):
    """The `Features` that `write` has written."""
    from tfssl.downstream.features.extract import Features

    rows, arrays = cache_of(args).read(["pre_logits"])
    if not arrays:
        raise SystemExit(f"no features in {args.folder}: the part write makes them")
    return Features(arrays, rows["labels"], rows["index"], num_classes=args.classes)


def asked(args):
    """`Features` of the queries."""
    import numpy as np

    from tfssl.downstream.features.extract import Features

    x, labels = rows_of(args, 0, args.queries, 1)
    return Features({"pre_logits": x}, labels, np.arange(len(x)), num_classes=args.classes)


def write(args):
    import numpy as np

    cache = cache_of(args)
    arrays = {"pre_logits": cache.create("pre_logits", (args.rows, args.dims), "float16")}
    labels = []
    for low in range(0, args.rows, CHUNK):
        high = min(low + CHUNK, args.rows)
        x, y = rows_of(args, low, high, 0)
        arrays["pre_logits"][low:high] = x
        labels.append(y)
        rows = {"labels": np.concatenate(labels), "index": np.arange(high)}
        cache.keep(arrays, high, lambda rows=rows: rows)
    cache.commit(arrays, {**rows, "dropped": np.array([], str)})
    cache.discard()
    size = sum(os.path.getsize(entry.path) for entry in os.scandir(cache.folder))
    return {"disk": size, "each": args.rows, "unit": "rows/s"}


def read(args):
    features = stored(args)
    return {"each": features.endpoints["pre_logits"].nbytes / 1e9, "unit": "GB/s"}


def check(args):
    features = stored(args)
    begun = time.perf_counter()
    features.check(["pre_logits"])
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "each": features.endpoints["pre_logits"].nbytes / 1e9,
        "unit": "GB/s",
    }


def knn(args):
    import numpy as np

    from tfssl.downstream.solvers import nearest

    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    votes = nearest.vote(
        train.endpoints["pre_logits"],
        train.labels,
        np.arange(args.rows),
        test.endpoints["pre_logits"],
        min(20, args.rows),
        0.07,
    )
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "each": args.queries,
        "unit": "queries/s",
        "accuracy": float(np.mean(votes == test.labels)),
    }


def logistic(args):
    import numpy as np

    from tfssl.downstream.protocols import logistic as protocol
    from tfssl.downstream.solvers.lbfgs import Problem, Rows

    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    rows = Rows(train.endpoints["pre_logits"], train.labels, np.arange(args.rows))
    problem, evaluations = Problem([rows], args.classes), 0
    prepared = time.perf_counter() - begun
    objective = problem.objective

    def counted(*arguments):
        nonlocal evaluations
        evaluations += 1
        return objective(*arguments)

    problem.objective = counted
    fit = problem.fit(1e-4 * problem.variance, args.updates)
    seconds = time.perf_counter() - begun
    predicted = protocol.predict(test.endpoints["pre_logits"], fit)
    return {
        "seconds": seconds,
        "each": evaluations / (seconds - prepared),
        "unit": "evaluations/s",
        "note": f"{prepared:.0f} s of them for the preconditioner",
        "accuracy": float(np.mean(predicted == test.labels)),
    }


def sgd(args):
    from tfssl import downstream

    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    settings = {"augment": False, "epochs": 1, "decay_epochs": (), "batch_size": 1024}
    (result,) = downstream.run("linear_sgd", train, test, val_fraction=0, **settings)
    return {
        "seconds": time.perf_counter() - begun,
        "each": args.rows,
        "unit": "rows/s",
        "accuracy": result.value,
    }


def svm(args):
    import numpy as np

    from tfssl.downstream.protocols import svm as protocol
    from tfssl.downstream.solvers import squared_hinge

    squared_hinge._RESIDENT = args.resident * 1e9
    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    y = np.where(train.labels[:, None] == np.arange(args.svm_classes), 1, -1)
    y, weights = protocol.signed(y, 2.0)
    rows = squared_hinge.Rows(train.endpoints["pre_logits"], prepare=protocol.unit)
    (fit,) = rows.path(y, weights, [1.0])
    seconds = time.perf_counter() - begun
    decision = protocol.decide(test.endpoints["pre_logits"], *rows.weights(fit))
    shown = test.labels[:, None] == np.arange(args.svm_classes)
    return {
        "seconds": seconds,
        "each": int(fit.steps.sum()),
        "unit": "steps/s",
        "note": f"{fit.steps.sum()} steps of Newton's method for {args.svm_classes} SVMs",
        "accuracy": float(np.mean((decision > 0) == shown)),
    }


def low_shot(args):
    from tfssl import downstream

    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    settings = {"shots": [args.shots], "samples": 2, "costs": [1.0]}
    (result,) = downstream.run("low_shot", train, test, **settings)
    seconds = time.perf_counter() - begun
    return {
        "seconds": seconds,
        "each": 2 * args.classes,
        "unit": "SVMs/s",
        "accuracy": result.value,
    }


def few_shot(args):
    from tfssl import downstream

    train, test = stored(args), asked(args)
    begun = time.perf_counter()
    (result,) = downstream.run("few_shot", train, test, shots=[5], ridges=[1.0])
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "each": 600, "unit": "episodes/s", "accuracy": result.value}


def extract(args):
    import numpy as np
    import tensorflow as tf

    import tfssl
    from tfssl.downstream.features.encoder import Encoder
    from tfssl.hub import precision
    from tfssl.runtime import strategy as strategies

    backbone = tfssl.backbones.build(args.network, **json.loads(args.settings))
    model = tfssl.pretext.build("rotation", backbone, image_size=args.image_size)
    model.prepare()
    with tempfile.TemporaryDirectory() as folder:
        path = tfssl.export.save(model, os.path.join(folder, "module"))
        photos = os.path.join(folder, "photos")
        os.mkdir(photos)
        side = args.image_size * 5 // 4
        ramp = np.linspace(0, 200, side)[:, None, None]
        for i in range(args.images):  # few: names that share their bytes are read like others
            target = os.path.join(photos, f"{i:07}.jpg")
            if i < 64:
                noise = np.random.default_rng(i).integers(0, 55, [side // 8, side // 8, 3])
                pixels = ramp + np.kron(noise, np.ones([9, 9, 1]))[:side, :side]
                with open(target, "wb") as f:
                    f.write(tf.io.encode_jpeg(pixels.astype(np.uint8)).numpy())
            else:
                os.link(os.path.join(photos, f"{i % 64:07}.jpg"), target)
        strategy = strategies.build(args.strategy)
        with strategy.scope():
            module = precision.load(path, args.precision)
            source = tfssl.open_source(f"folder:{photos}")
            settings = {"batch_size": args.batch, "jit_compile": args.jit_compile}
            run = functools.partial(
                tfssl.downstream.extract, module, source, ["pre_logits"], **settings
            )
            run(progress=False)  # traced, and the files are in the system's cache
            begun = time.perf_counter()
            run(cache_dir=os.path.join(folder, "features"), progress=False)
            rate = args.images / (time.perf_counter() - begun)
            encoder = Encoder(module, source, *module.sizes(), **settings)
            step = encoder.step(["pre_logits"], args.batch)
            images = tf.zeros([args.batch, args.image_size, args.image_size, 3], tf.uint8)
            if strategies.distributed(strategy):
                images = strategy.experimental_distribute_values_from_function(lambda _: images)

        def bare(count):
            for _ in range(count):
                outputs = step(images)
            [x.numpy() for x in strategy.experimental_local_results(outputs["pre_logits"])]

        count = max(1, args.images // args.batch // strategy.num_replicas_in_sync)
        bare(1)
        begun = time.perf_counter()
        bare(count)
        bound = count * args.batch * strategy.num_replicas_in_sync / (time.perf_counter() - begun)
    return {
        "seconds": args.images / rate,
        "each": args.images,
        "unit": "images/s",
        "note": f"{rate / bound:.2f} of the network alone, {bound:.0f} images/s",
    }


def peak():
    """The most memory that this process has held, in bytes."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dims", type=int, default=2048, help="values of an image's features")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=50_000, help="test images")
    parser.add_argument("--noise", type=float, default=8.0, help="beside a class's direction of 1")
    parser.add_argument("--updates", type=int, default=3, help="of L-BFGS")
    parser.add_argument("--svm_classes", type=int, default=10, help="svm: the first so many")
    parser.add_argument("--resident", type=float, default=2, help="svm: GB that stay in memory")
    parser.add_argument("--shots", type=int, default=16, help="low_shot: images of each class")
    parser.add_argument("--parts", default=",".join(PARTS[:-1]), help=f"of {', '.join(PARTS)}")
    parser.add_argument("--folder", help="for the features; default: a new one, which goes again")
    parser.add_argument("--network", default="resnet50_v2", help="extract: the backbone")
    parser.add_argument("--settings", default="{}", help="extract: the backbone's, as JSON")
    parser.add_argument("--image_size", type=int, default=224, help="extract")
    parser.add_argument("--images", type=int, default=2048, help="extract")
    parser.add_argument("--batch", type=int, default=64, help="extract: images on each replica")
    parser.add_argument("--strategy", default="auto", help="extract")
    parser.add_argument("--precision", default="float32", help="extract")
    parser.add_argument("--jit_compile", action="store_true", help="extract")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.part:
        begun = time.perf_counter()
        import tfssl  # noqa: F401, I001 (before TensorFlow: it chooses Keras 2 and oneDNN)
        import tensorflow  # noqa: F401

        begun = time.perf_counter()
        found = globals()[args.part](args)
        return print(
            json.dumps({"seconds": time.perf_counter() - begun, "memory": peak(), **found})
        )
    with tempfile.TemporaryDirectory() as folder:
        print(
            f"{args.rows} rows of {args.dims} float16, {args.classes} classes, {args.queries} queries\n"
        )
        print("| part | seconds | each | memory, GB | disk, GB | accuracy |")
        print("| --- | --- | --- | --- | --- | --- |")
        for part in args.parts.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
            command += [] if args.folder else ["--folder", folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found = json.loads(done.stdout.splitlines()[-1])
            each = found["each"] if part == "logistic" else found["each"] / found["seconds"]
            cells = [
                part,
                f"{found['seconds']:.1f}",
                f"{each:.3g} {found['unit']}" + (f" ({found['note']})" if "note" in found else ""),
                f"{found['memory'] / 1e9:.1f}",
                f"{found['disk'] / 1e9:.1f}" if "disk" in found else "",
                f"{100 * found['accuracy']:.1f}" if "accuracy" in found else "",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
