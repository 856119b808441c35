"""Measure encoders: Hub modules in, accuracies of simple classifiers on their frozen features out, endpoint by
endpoint.

  tfssl-eval --module=runs/photos/module/1000 --dataset=folder:photos --train_split=train[:90%] --test_split=train[90%:]
  tfssl-eval --module=rotation=modules/a,random=modules/b --dataset=folder:cifar10 --protocol=logistic,knn
  --train_labels=1%,all --workdir=eval

Any module that takes float32 RGB images in [0, 1] will do. Settings are chosen on a part of the training labels, never
on the test split. Give an untrained module too (tfssl-export --random_init): raw pixels and an untrained network are
the baselines to beat.
"""

import os
import platform
import sys
import time

from absl import flags

from tfssl import downstream
from tfssl.errors import UserError
from tfssl.runtime import cli

FLAGS = flags.FLAGS


# fmt: off
def define_flags():
    with cli.section("Modules and images"):
        flags.DEFINE_list("module", None,
            "Required. A comma list of Hub modules: folders (local or gs://), .tar.gz, https handles; or NAME=HANDLE each.")
        flags.DEFINE_string("dataset", "glyphs",
            "Labelled images: tfds:NAME[/CONFIG], folder:PATH, tfrecord:GLOB, or glyphs, the embedded set of letters.")
        flags.DEFINE_string("data_dir", None,
            "Where TensorFlow Datasets are, and where archives are unpacked. Default: each library's own place.")
        flags.DEFINE_string("train_split", "train",
            "Images that classifiers learn from, in TFDS's grammar: train, train[:90%], train+validation (2019 study: "
            "ImageNet's train).")
        flags.DEFINE_string("test_split", "test",
            "Images that accuracy is measured on; nothing is chosen on them (2019 study: ImageNet's validation).")
        flags.DEFINE_integer("label_offset", 0,
            "tfrecord: subtracted from the labels; 1 for ImageNet's records, whose labels are 1 to 1000.")
        flags.DEFINE_integer("image_size", 0, lower_bound=0, help=
            "Side of the central crop, in pixels; 0: the module's own (2019 study: 224, patch tasks 192).")
        flags.DEFINE_integer("resize", 0, lower_bound=0, help=
            "Shorter side before the crop, in pixels; 0: the module's own, or image_size * 256 / 224 (2019 study: 256, "
            "patch tasks 224).")
    with cli.section("Features"):
        flags.DEFINE_list("endpoints", ["all"],
            "A comma list of names, or all: the module's, and pixels, the images themselves (2019 study: the module's).")
        flags.DEFINE_enum("pool", "max", ("max", "avg", "adaptive_max", "adaptive_avg"),
            "How maps of more than 9000 values are pooled (2019 study: max).")
        flags.DEFINE_enum("feature_dtype", "float32", ("float32", "float16"),
            "How features are kept; float16 takes half the memory and disk.")
        flags.DEFINE_integer("batch_size", 64, lower_bound=1, help=
            "Images at a time through the module; it changes speed and memory only.")
        flags.DEFINE_boolean("cache", True,
            "Keep features in --workdir, and use those there of the same module, data and settings.")
    with cli.section("Protocols"):
        flags.DEFINE_list("protocol", ["logistic"], f"A comma list of: {', '.join(downstream.NAMES)}.")
        flags.DEFINE_list("train_labels", ["all"],
            "How many training labels are used, a comma list with a column of the table each: all (2019 study), a "
            "percentage such as 1%, or a number of images. Class-balanced; the 1% lie within the 10%.")
        flags.DEFINE_float("val_fraction", 0.2, lower_bound=0.01, upper_bound=0.9, help=
            "Part of the training labels that l2 and the starred endpoint are chosen on.")
        flags.DEFINE_integer("seed", 0, lower_bound=0, help="Of the subset of labels, and of the validation part.")
    with cli.section("logistic: mean cross-entropy + l2 * ||W||^2, by L-BFGS"):
        flags.DEFINE_string("l2", "select",
            "select (on the validation part), published (2019 study: 100 / (features * classes)), or a number.")
        flags.DEFINE_integer("max_iterations", 800, lower_bound=1, help="L-BFGS updates, at most (2019 study: 800).")
        flags.DEFINE_boolean("standardize", False, "Scale features to mean 0 and deviation 1 first (2019 study: no).")
        flags.DEFINE_boolean("precondition", True,
            "Minimise the same objective in better coordinates, with far fewer updates (2019 study: no).")
    with cli.section("knn: cosine similarity, votes weighted by exp(similarity / temperature)"):
        flags.DEFINE_integer("knn_k", 20, lower_bound=1, help=
            "Neighbours (solo-learn, DINO: 20; lightly's CIFAR-10 tables: 200).")
        flags.DEFINE_float("knn_temperature", 0.07, lower_bound=1e-6, help=
            "Of the votes (solo-learn, DINO: 0.07; lightly's CIFAR-10 tables: 0.1).")
    with cli.section("The run"):
        flags.DEFINE_string("workdir", None,
            "Folder for results.json, results.png and cached features. Default: nothing is written.")
# fmt: on


def main(_):
    start = time.time()
    handles, protocols = named_modules(FLAGS.module), check_protocols()
    from tfssl.data import open_source
    from tfssl.downstream import features, logistic, modules, report, splits

    logistic.check_l2(FLAGS.l2)
    opened = {name: modules.load(handle) for name, handle in handles.items()}
    where = {"data_dir": FLAGS.data_dir, "label_offset": FLAGS.label_offset}
    sources = [open_source(FLAGS.dataset, split, **where) for split in (FLAGS.train_split, FLAGS.test_split)]
    check_sources(*sources)
    for amount in FLAGS.train_labels:
        splits.label_count(amount, sources[0].num_examples, sources[0].num_classes or 1)
    wanted = choose_endpoints(opened, features)
    say(f"{FLAGS.dataset}: {sources[0].num_examples} images to learn from, {sources[1].num_examples} to test on")

    results, facts = [], {}
    for name, endpoints in wanted.items():
        train = test = None  # the last module's features: memory is for one
        train, test = (extract(features, opened[name], source, endpoints) for source in sources)
        facts[name] = about(opened[name], train, test)
        took = facts[name]["extraction_seconds"]
        say(f"{name}: {', '.join(endpoints)}: " + (f"extracted in {took:.1f} s" if took else "from the cache"))
        results += evaluate(name, train, test, protocols, splits)

    baselines = report.baselines(train, test)
    report.mark_chosen(results)
    say("\n" + report.table(results, baselines))
    if FLAGS.workdir:
        record = os.path.join(os.path.expanduser(FLAGS.workdir), "results.json")
        report.write(
            record,
            results,
            command=["tfssl-eval", *sys.argv[1:]],
            flags={name: FLAGS[name].value for names in cli._SECTIONS.values() for name in names},
            versions=versions(),
            seconds=time.time() - start,
            num_classes=train.num_classes,
            train_examples=len(train.labels),
            test_examples=len(test.labels),
            modules=facts,
            baselines=baselines,
        )
        plot = record[: -len(".json")] + ".png"
        report.plot(plot, results, baselines, title=f"{FLAGS.dataset} {FLAGS.test_split}")
        say(f"written: {record}, {plot}")


def extract(features, module, source, endpoints):
    """The features of one source; cached ones are memory-mapped, so that only a local --workdir keeps any."""
    keep = FLAGS.cache and FLAGS.workdir and "://" not in FLAGS.workdir
    return features.extract(
        module,
        source,
        endpoints,
        FLAGS.image_size or None,
        FLAGS.resize or None,
        batch_size=FLAGS.batch_size,
        pool=FLAGS.pool,
        dtype=FLAGS.feature_dtype,
        cache_dir=os.path.join(os.path.expanduser(FLAGS.workdir), "features") if keep else None,
    )


def evaluate(name, train, test, protocols, splits):
    """All protocols, numbers of labels and endpoints of one module: a list of results."""
    results = []
    counts = dict.fromkeys(splits.label_count(amount, len(train.labels)) for amount in FLAGS.train_labels)
    for protocol, settings in protocols.items():
        for count in counts:
            for endpoint in train.endpoints:
                common = {"train_labels": count, "val_fraction": FLAGS.val_fraction, "seed": FLAGS.seed}
                (result,) = downstream.run(protocol, train, test, endpoints=[endpoint], **common, **settings)
                results.append({"module": name, **result})
                how = f"l2 {result['l2']:.2g}, {result['iterations']} updates" if protocol == "logistic" else ""
                how = ", ".join([how] * bool(how) + [f"{result['seconds']:.1f} s"])
                say(f"{name} {endpoint} {protocol}@{count}: {100 * result['value']:.1f}% ({how})")
    return results


def about(module, train, test):
    """What results.json says of one module."""
    size, resize = module.sizes(FLAGS.image_size or None, FLAGS.resize or None)
    return {
        "handle": module.handle,
        "identity": module.identity,
        "image_size": size,
        "resize": resize,
        "extraction_seconds": train.seconds + test.seconds,
        "unreadable": {"train": train.dropped, "test": test.dropped},
    }


def named_modules(values):
    """{name to show: handle} of --module's values, NAME=HANDLE or HANDLE, in their order."""
    if not values:
        raise UserError(
            "--module is missing: name a folder that tfssl-export wrote, a .tar.gz of it, or an https handle"
        )
    names, handles = [], []
    for value in values:
        name, equals, handle = value.partition("=")
        named = equals and not set(name) & set("/:")  # an URL may hold a = further on
        names.append(name if named else None)
        handles.append(handle if named else value)
    short = [name or short_name(handle) for name, handle in zip(names, handles)]  # noqa: B905 (Python 3.9)
    shown = [names[i] or (s if short.count(s) == 1 else handles[i]) for i, s in enumerate(short)]
    if not all(handles):
        raise UserError(f"--module={','.join(values)}: a handle is empty")
    if len(set(shown)) < len(shown):
        raise UserError(f"--module={','.join(values)}: two modules have one name; give NAME=HANDLE")
    return dict(zip(shown, handles))  # noqa: B905 (Python 3.9)


def short_name(handle):
    """What tells modules apart at a glance: the last part of the path that is neither a number nor "module"."""
    parts = [part for part in handle.split("/") if part]
    telling = [part for part in parts if not part.isdigit() and part != "module"]
    name = (telling or parts or [handle])[-1]
    return next((name[: -len(end)] for end in (".tar.gz", ".tgz", ".tar") if name.endswith(end)), name)


def check_protocols():
    """{protocol: its settings} of the flags."""
    settings = {
        "logistic": {
            "l2": FLAGS.l2,
            "max_iterations": FLAGS.max_iterations,
            "standardize": FLAGS.standardize,
            "precondition": FLAGS.precondition,
        },
        "knn": {"k": FLAGS.knn_k, "temperature": FLAGS.knn_temperature},
    }
    for name in FLAGS.protocol:
        if name not in settings:
            raise UserError(f"--protocol={name}: there is {', '.join(settings)}")
    if not FLAGS.protocol or not FLAGS.endpoints or not FLAGS.train_labels:
        raise UserError("--protocol, --endpoints and --train_labels each need a value")
    return {name: settings[name] for name in FLAGS.protocol}


def check_sources(train, test):
    """Raise UserError where the first image that can be read has no label, or both parts are the same: before any work."""
    if train.split == test.split:
        raise UserError(
            f"--train_split and --test_split are both {train.split}: nothing would be measured; take train[:90%] and "
            "train[90%:] where there is no test split"
        )
    for source in (train, test):
        for label in source.records().map(lambda record: source.fetch(record)["label"]).ignore_errors().take(1):  # noqa: B023
            if label < 0:
                raise UserError(
                    f"--dataset={source.spec} ({source.split}) has no labels, and accuracy needs them: sort the images "
                    "into a folder per class, or evaluate on another data set"
                )


def choose_endpoints(opened, features):
    """{module: endpoints to extract}; pixels, which are the same for all modules, of the first that is evaluated."""
    chosen = {}
    for name, module in opened.items():
        size, _ = module.sizes(FLAGS.image_size or None, FLAGS.resize or None)
        if FLAGS.endpoints == ["all"]:
            endpoints = [*features.check_endpoints(module, size), features.PIXELS]
        else:
            endpoints = features.check_endpoints(module, size, FLAGS.endpoints)
        if chosen and features.PIXELS in endpoints:
            endpoints.remove(features.PIXELS)
        if endpoints:
            chosen[name] = endpoints
    return chosen


def versions():
    import numpy
    import scipy
    import tensorflow

    import tfssl

    libraries = {m.__name__: m.__version__ for m in (tfssl, tensorflow, numpy, scipy)}
    return {"python": platform.python_version(), **libraries}


def say(text):
    print(text, flush=True)


def run():
    """Entry point of `tfssl-eval`."""
    define_flags()
    cli.run(main, "tfssl-eval")


if __name__ == "__main__":
    run()
