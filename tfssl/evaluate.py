"""Measure encoders: Hub modules in, accuracies of simple classifiers on their frozen features out, endpoint by
endpoint.

  tfssl-eval --module=runs/photos/module/1000 --dataset=folder:photos --train_split=train[:90%] --test_split=train[90%:]
  tfssl-eval --module=rotation=modules/a,random=modules/b --dataset=folder:cifar10 --protocol=logistic,knn
  --train_labels=1%,all --workdir=eval

Any module that takes float32 RGB images in [0, 1] will do. Settings are chosen on --val_split, or on a part of the
training labels, never on the test split. Raw pixels and an untrained network are the baselines to beat: --protocol=all measures
all that the images permit, with both beside it. WORKDIR/report.html is the page to look at.
"""

import contextlib
import os
import sys
import tempfile
import time

from absl import flags

from tfssl import downstream
from tfssl.config import data_flags
from tfssl.errors import UserError
from tfssl.hub import handles
from tfssl.runtime import cli

FLAGS = flags.FLAGS
BUDGET_MINUTES = 5.0  # of --protocol=all


# fmt: off
def define_flags():
    with cli.section("Modules and images"):
        flags.DEFINE_list("module", None,
            "Required. A comma list of Hub modules: folders (local or gs://), .tar.gz, https handles; or NAME=HANDLE each. What exists "
            "goes first: lr=0.1,wd=0/module/4 is that folder if there is one; else quote a handle that holds a comma: '\"a,b\",c'.")
        flags.DEFINE_string("dataset", "glyphs",
            "Labelled images: tfds:NAME[/CONFIG], folder:PATH, tfrecord:GLOB, voc:PATH (several classes in an image), masks:PATH, "
            "boxes:PATH, normals:PATH, or glyphs, the embedded set of letters.")
        flags.DEFINE_string("data_dir", None,
            "Where TensorFlow Datasets are, and where archives are unpacked. Default: each library's own place.")
        flags.DEFINE_string("train_split", "train",
            "Images that classifiers learn from, in TFDS's grammar: train, train[:90%], train+validation (2019 study: "
            "ImageNet's train).")
        flags.DEFINE_string("test_split", "test",
            "Images that accuracy is measured on; nothing is chosen on them (2019 study: ImageNet's validation).")
        flags.DEFINE_string("val_split", None,
            "Images that l2, the starred endpoint and the epoch are chosen on (2019 study: train[984shard:], the last 40 of "
            "ImageNet's 1024 training files, beside --train_split=train[:984shard]). Default: see --val_fraction.")
        flags.DEFINE_integer("label_offset", 0,
            "tfrecord: subtracted from the labels; 1 for ImageNet's records, whose labels are 1 to 1000.")
        data_flags.define_record_keys()
        flags.DEFINE_integer("image_size", 0, help=
            "Side of the central crop, in pixels; 0: the module's own (2019 study: 224, patch tasks 192).")
        flags.DEFINE_integer("resize", 0, help=
            "Shorter side before the crop, in pixels; 0: the module's own, or image_size * 256 / 224 (2019 study: 256, "
            "patch tasks 224).")
    with cli.section("Features"):
        flags.DEFINE_list("endpoints", ["all"],
            "A comma list of names, or all: the module's, and pixels, the images themselves (2019 study: the module's).")
        flags.DEFINE_enum("pool", "max", ("max", "avg", "adaptive_max", "adaptive_avg"),
            "How maps of more than 9000 values are pooled (2019 study: max).")
        flags.DEFINE_enum("feature_dtype", "float32", ("float32", "float16"),
            "How features are kept; float16 takes half the memory and disk.")
        flags.DEFINE_integer("batch_size", 64, help=
            "Images at a time through the module; it changes speed and memory only.")
        cli.define_switch("cache", True, ("verify",),
            "Keep features in --workdir, and what linear_sgd has reached; and use those there of the same module, data and settings "
            "whose checksums are right. --cache=verify: compute 64 images of each again, and all where these differ. --nocache: neither.")
        flags.DEFINE_boolean("prune", False,
            "First remove the features in --workdir that nobody can use any more: of other versions, of data that have changed, not "
            "finished. Without --module that is all. (What killed processes left goes at any start.)")
    with cli.section("Protocols"):
        flags.DEFINE_list("protocol", ["logistic"],
            f"A comma list of: {', '.join(downstream.NAMES + downstream.DENSE)}; all: those that the images permit, as far as "
            "--budget_minutes go, but not linear_sgd, which asks logistic's question again, slowly; features writes "
            "WORKDIR/MODULE_PART.npz of each split, for programs of your own (no labels needed; alone, --test_split may be empty).")
        flags.DEFINE_float("budget_minutes", None, help=
            "With --protocol=all: minutes for the protocols that it adds, of all modules together, beside the passes of the images "
            "through the modules. Each is estimated by trials before it starts, the cheapest first; where the time is short it runs with "
            "quick settings, or is left out, and that is told. Protocols that are named are never cut. 0: no limit. Default: 5.")
        flags.DEFINE_boolean("random_init", None,
            "Measure the same network untrained beside each module of tfssl-export's; equal networks once. Default: with --protocol=all.")
        flags.DEFINE_list("train_labels", ["all"],
            "How many training labels are used, a comma list with a column of the table each: all (2019 study), a "
            "percentage such as 1%, or a number of images. Class-balanced; the 1% lie within the 10%.")
        flags.DEFINE_float("val_fraction", 0.2, help=
            "Without --val_split: the part of the training labels that l2, the starred endpoint and the epoch are chosen on; "
            "what is reported then learns from all of them. 0: nothing is chosen.")
        flags.DEFINE_boolean("standardize", False,
            "logistic, linear_sgd, mlp: scale features to mean 0 and deviation 1 first (2019 study: no).")
        flags.DEFINE_integer("seed", 0, help=
            "Of the subset of labels and the validation part; linear_sgd, mlp: and of weights, order, crops and dropout; "
            "low_shot, few_shot: and of samples and episodes.")
    with cli.section("logistic: mean cross-entropy + l2 * ||W||^2, by L-BFGS"):
        flags.DEFINE_string("l2", "select",
            "select (on the validation part), published (2019 study: 100 / (features * classes)), or a number.")
        flags.DEFINE_integer("max_iterations", 800, help="L-BFGS updates, at most (2019 study: 800).")
        flags.DEFINE_boolean("precondition", True,
            "Minimise the same objective in better coordinates, with far fewer updates (2019 study: no).")
    with cli.section("knn: cosine similarity, votes weighted by exp(similarity / temperature)"):
        flags.DEFINE_integer("knn_k", 20, help=
            "Neighbours (solo-learn, DINO: 20; lightly's CIFAR-10 tables: 200).")
        flags.DEFINE_float("knn_temperature", 0.07, help=
            "Of the votes (solo-learn, DINO: 0.07; lightly's CIFAR-10 tables: 0.1).")
    with cli.section("linear_sgd: softmax regression on new random crops in each epoch, all endpoints in one pass"):
        flags.DEFINE_boolean("augment", True,
            "Random crops of --image_size from the image resized to --resize, through the module in each epoch (2019 study: "
            "yes). --noaugment: the extracted features, without passes through the module.")
        flags.DEFINE_integer("sgd_epochs", 70, help="Length (2019 study: 520; its code: 70).")
        flags.DEFINE_list("sgd_decay_epochs", ["30", "50"],
            "The rate is divided by ten after each (2019 study: 480,500; its code: 30,50).")
        flags.DEFINE_integer("sgd_batch_size", 256, help=
            "Images per step, at most all (2019 study: 2048, patch tasks 1024; its code: 512).")
        flags.DEFINE_float("sgd_learning_rate", 0.1, help=
            "At the first step, times sgd_batch_size / 256 (2019 study: 0.1).")
        flags.DEFINE_float("sgd_weight_decay", 0.0, help=
            "Adds 0.5 * this * ||W||^2 to the loss (2019 study's code: 0; Goyal et al.: 1e-4, AlexNet 5e-4).")
        flags.DEFINE_boolean("sgd_nesterov", False, "Nesterov's momentum (Goyal et al.: for ResNets).")
        flags.DEFINE_enum("sgd_batch_norm", "none", ("none", "fixed", "learned"),
            "Batch normalisation of the pooled maps before each classifier; learned: with scale and shift (Goyal et al.: fixed; "
            "colorization's ResNet: learned).")
        flags.DEFINE_float("sgd_init_std", 0.0, help=
            "Deviation of the initial weights, normally distributed (Goyal et al.: 0.01); 0: Glorot's uniform distribution.")
        flags.DEFINE_enum("sgd_crops", "random", ("random", "random_flip", "resized_flip"),
            "What --augment means: a random crop (2019 study); that, mirrored or not (Goyal et al. for colorization); a crop of 8 to "
            "100 % of the image, resized, mirrored or not (VISSL).")
    with cli.section("mlp: one hidden layer of ReLUs with dropout on extracted features, by SGD"):
        flags.DEFINE_integer("mlp_hidden", 1000, help="Hidden units (2019 study: 1000).")
        flags.DEFINE_float("mlp_dropout", 0.5, help=
            "Part of the hidden units that each step leaves out (2019 study: 0.5).")
        flags.DEFINE_string("mlp_l2", "select",
            "l2 * (||V||^2 + ||W||^2): select (of 1e-2 to 1e-5, on validation), published (2019 study: 100 / (features * "
            "classes)), or a number.")
        flags.DEFINE_integer("mlp_epochs", 180, help="Length (2019 study: 180).")
        flags.DEFINE_list("mlp_decay_epochs", ["60", "120"], "The rate is divided by ten after each (2019 study: 60,120).")
        flags.DEFINE_integer("mlp_batch_size", 512, help="Rows per step, at most all (2019 study: 512).")
        flags.DEFINE_float("mlp_learning_rate", 0.01, help=
            "At the first step, whatever the batch (2019 study: 0.01).")
    with cli.section("linear_sgd and mlp"):
        flags.DEFINE_enum("epoch", "last", ("last", "best"),
            "Which epoch's accuracy is reported; best: that of the highest accuracy on validation (2019 study: last).")
    with cli.section("svm, low_shot: an SVM with squared hinge loss for each class, on features of norm 1; average precision"):
        flags.DEFINE_string("svm_costs", "vissl",
            "What C is chosen from: vissl (11 from 0.01 to 1000, as in papers since 2020), goyal (26 from 1e-7 to 100, the 2019 "
            "paper's code), or a comma list.")
        flags.DEFINE_integer("svm_folds", 3, help=
            "svm: parts of the cross-validation that chooses C for each class (Goyal et al.: 3). With --val_split there is none.")
        flags.DEFINE_boolean("svm_shuffle_folds", False,
            "svm: folds at random, from --seed. Default: in the order of the images, as published.")
        flags.DEFINE_enum("svm_ap", "area", ("area", "11-point", "raw"),
            "Average precision: area under the best precision at each recall or above (VOC since 2010, Goyal et al.), its mean "
            "at 11 recalls (VOC 2007), or under precision as it is (scikit-learn).")
        flags.DEFINE_float("svm_positive_weight", 2.0, help=
            "Of positives in the loss, where negatives have 1 (Goyal et al.: 2).")
        flags.DEFINE_float("svm_intercept_scaling", 1.0, help=
            "The constant feature whose weight is the bias; the larger, the less a bias costs (Goyal et al.: 1).")
        flags.DEFINE_list("low_shot_k", ["1", "2", "4", "8", "16", "32", "64", "96"],
            "low_shot: positives of each class, a comma list with a column of the table each (Goyal et al.: 1 to 96).")
        flags.DEFINE_integer("low_shot_samples", 5, help=
            "low_shot: random samples for each k; their mean is reported (Goyal et al.: 5).")
        flags.DEFINE_enum("low_shot_choose", "validation", ("validation", "test"),
            "low_shot: what C is chosen on, one for all classes: --val_split, or else training images outside of the sample; "
            "or the test images (Goyal et al.; optimistic).")
    with cli.section("few_shot: ridge regression on k images of each of a few classes, on features of norm 1"):
        flags.DEFINE_list("few_shot_k", ["1", "5"],
            "Images of each class to learn from, a comma list with a column of the table each.")
        flags.DEFINE_integer("few_shot_ways", 5, help="Classes in an episode; 0: all.")
        flags.DEFINE_integer("few_shot_queries", 15, help="Test images of each class in an episode; 0: all.")
        flags.DEFINE_integer("few_shot_episodes", 600, help=
            "Random episodes whose mean is reported; ridges are compared on a sixth as many.")
        flags.DEFINE_string("few_shot_ridges", "1e-4,1e-3,1e-2,1e-1,1,10,100",
            "What the penalty of squared weights is chosen from, on validation; a comma list.")
    with cli.section("segmentation, detection, surface_normals: a head on each map [N, h, w, C] that a module gives of whole images"):
        flags.DEFINE_list("dense_size", ["0", "0"],
            "HEIGHT,WIDTH that images are brought to (detection: scaled to fit, and padded); 0,0: those of the first one.")
        flags.DEFINE_enum("dense_trunk", "frozen", ("frozen", "fine_tuned"),
            "Whether the module learns too, by batch statistics where it has BN.")
        flags.DEFINE_float("dense_trunk_rate", 1.0, help="fine_tuned: factor of the module's learning rate.")
        flags.DEFINE_integer("dense_epochs", None, help=
            "Passes over the images. Default: 60 (detection: 40).")
        flags.DEFINE_float("dense_learning_rate", None, help=
            "Of Adam, at the first step; it falls along a cosine. Default: 0.01 (detection: 0.001).")
        flags.DEFINE_integer("dense_batch_size", 8, help="Images per step, at most all.")
        flags.DEFINE_boolean("dense_mirrored", None, "Learn from mirrored images too. Default: detection does.")
        flags.DEFINE_enum("dense_head", "linear", ("linear", "dilated"),
            "segmentation, surface_normals: linear; or two 3x3 convolutions of dilation 6 before it, as MoCo's FCN has.")
        flags.DEFINE_integer("ignore_class", 255, "segmentation: number of a mask's pixels that have no class (VOC: 255).")
        flags.DEFINE_integer("detection_layers", 2, help="Convolutions of each of the head's two towers (FCOS: 4).")
        flags.DEFINE_integer("detection_units", 128, help="Their channels (FCOS: 256).")
        flags.DEFINE_list("detection_jitter", ["1", "1"],
            "LEAST,LARGEST scale of four more views of each training image, at random (large-scale jitter: 0.1,2); 1,1: none.")
        flags.DEFINE_integer("normals_clusters", 40, help=
            "Directions, by k-means, of which surface_normals tells a probability (Goyal et al.: 40).")
    with cli.section("The run"):
        flags.DEFINE_string("workdir", None,
            "Folder for report.html, results.json, results.png, results_curve.png (accuracy over epochs) and cached features. Default: "
            "nothing is written.")
        flags.DEFINE_integer("neighbors", None, help=
            "Above 0: WORKDIR/MODULE_neighbors.png shows so many nearest training images of ten test images, by the starred "
            "endpoint (of the first protocol), or the last. Default: 5 with --protocol=all and --workdir, else 0.")
        flags.DEFINE_boolean("steal_lock", False,
            "Take over a --workdir that another process uses; it ends before it writes there again.")
# fmt: on


def main(_):
    with contextlib.ExitStack() as held:
        evaluate(held)


def evaluate(held):
    """Measure what the flags name. `held`: an `ExitStack`, which keeps the lock of --workdir."""
    if FLAGS.prune and not FLAGS.module:
        return prune({})
    start = time.time()
    named, (protocols, optional), minutes = handles.named(FLAGS.module), read_protocols(), read_budget()
    from tfssl.data import open_source, overlap
    from tfssl.data.sources import identity
    from tfssl.downstream import budget, needs, splits
    from tfssl.downstream import runner as measure
    from tfssl.downstream.report.record import Record
    from tfssl.hub import load as modules
    from tfssl.storage import files

    if FLAGS.workdir:
        files.check_writable(FLAGS.workdir, "--workdir")
    needs.check_settings(protocols, FLAGS.val_split or FLAGS.val_fraction)
    opened = {name: modules.load(handle) for name, handle in named.items()}
    where = data_flags.where(FLAGS.flag_values_dict())
    parts = {"train": FLAGS.train_split, "test": FLAGS.test_split, "val": FLAGS.val_split}
    sources = {part: open_source(FLAGS.dataset, split, **where) for part, split in parts.items() if split}
    if FLAGS.prune:
        prune(sources)
    if protocols:
        overlap.check(sources)
    left_out = list(dict.fromkeys(note for source in sources.values() for note in source.notes()))
    table_order = sorted(protocols, key=lambda protocol: protocol in downstream.DENSE)
    protocols = needs.permitted(protocols, sources.values(), optional, left_out.append)
    if minutes:  # the cheapest first
        protocols = dict(
            sorted(protocols.items(), key=lambda item: item[0] in optional and 1 + budget.ORDER.index(item[0]))
        )
    of_maps = {name: settings for name, settings in protocols.items() if name in downstream.DENSE}
    of_features = {name: settings for name, settings in protocols.items() if name not in of_maps}
    common = {"val_fraction": FLAGS.val_fraction, "seed": FLAGS.seed}
    if of_features:
        for amount in FLAGS.train_labels:
            splits.label_count(amount, sources["train"].num_examples, sources["train"].num_classes or 1)
        by_name = {name: settings for name, settings in of_features.items() if name not in optional}
        needs.check_images(by_name, sources, FLAGS.train_labels, **common)
    names = None if FLAGS.endpoints == ["all"] else FLAGS.endpoints
    extracting = of_features or FLAGS.neighbors or "features" in FLAGS.protocol
    measure.endpoints(opened, names, *sizes()) if extracting else {}
    purpose = {"train": "images to learn from", "val": "to choose on", "test": "to test on"}
    counts = [f"{sources[part].num_examples} {purpose[part]}" for part in purpose if part in sources]
    check = claim_workdir(held) if FLAGS.workdir else lambda: None
    say(f"{FLAGS.dataset}: {', '.join(counts)}")
    data = {part: identity.described(source) for part, source in sources.items()}
    if FLAGS.workdir:
        tell_of_other_data(data)
    record = Record(
        FLAGS.workdir,
        table_order,
        say,
        check,
        command=["tfssl-eval", *sys.argv[1:]],
        flags={name: FLAGS[name].value for names in cli._SECTIONS.values() for name in names},
        date=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(start)),
        data=data,
        **{f"{part}_examples": source.num_examples for part, source in sources.items()},
    )
    for line in left_out:
        record.note(line)
    untrained = make_untrained(opened, record.note) if FLAGS.random_init else {}
    opened |= {name: module for name, (module, _) in untrained.items()}
    wanted = measure.endpoints(opened, names, *sizes()) if extracting else {}
    common |= {"optional": optional, "left_out": record.note, "refused": record.refuse}
    if minutes:
        may = set(optional) & set(protocols)
        kept = {protocol for protocol in may if any(FLAGS[flag].present for flag in QUICK_FLAGS.get(protocol, ()))}
        common["budget"] = budget.Budget(minutes, len(opened), may, kept, say, record.note)
    for name, module in opened.items():
        record.modules[name] = {"handle": module.handle, "identity": module.identity}
        if name in untrained:
            record.modules[name]["untrained_of"] = untrained[name][1]
        try:
            if name in wanted:
                with_features(name, module, sources, wanted[name], of_features, common, record)
        except UserError as error:
            record.refuse(error, name)
        try:
            if of_maps:
                pixels_of = {r["protocol"] for r in record.results if r["endpoint"] == "pixels"}
                found = measure.on_maps(of_maps, module, sources, endpoints=names, pixels_of=pixels_of, **common)
                record.add(name, found)
        except UserError as error:
            record.refuse(error, name)
    if protocols and not record.results and not record.refused:
        raise UserError(f"--protocol=all: nothing could be measured: {'; '.join(record.notes)}")
    record.finish(f"{FLAGS.dataset} {FLAGS.test_split}", seconds=time.time() - start)


def claim_workdir(held):
    """Lock --workdir, as `locks.workdir_lock`, and mark it: what lies in it is no data (see `tfssl.data.listing.outputs`)."""
    from tfssl.data.listing import outputs
    from tfssl.storage import locks

    check = held.enter_context(locks.workdir_lock(FLAGS.workdir, FLAGS.steal_lock))
    outputs.mark(FLAGS.workdir)
    return check


def tell_of_other_data(data):
    """Say where --workdir holds results of other data than {part: as `identity.described`}: they are replaced, not mixed."""
    import json

    from tfssl.storage import files

    path = os.path.join(FLAGS.workdir, "results.json")
    try:
        with open(path, encoding="utf-8") as f:
            found = json.load(f)
        then, date = found.get("data") or {}, found.get("date")
        other = [part for part in data if part in then and then[part]["digest"] != data[part]["digest"]]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):  # none, a remote one, or a damaged one
        return
    if other:
        beside = [name for name in files.listdir(FLAGS.workdir) if name.endswith((".png", ".html", ".npz"))]
        kept = f"; until they are written anew, so are {', '.join(beside)}" if beside else ""
        say(
            f"{path}, of {date}, is about other images ({', '.join(other)}) than this evaluation, and is replaced{kept}"
        )


def make_untrained(opened, note):
    """{name: (module, names of the modules whose network it is)} beside the modules, in --workdir if that is local."""
    from tfssl.export import untrained

    with tempfile.TemporaryDirectory() as folder:
        local = FLAGS.workdir and "://" not in FLAGS.workdir
        return untrained.beside(opened, workdir_file("untrained") if local else folder, FLAGS.seed, *sizes(), say=note)


def with_features(name, module, sources, endpoints, protocols, common, record):
    """Extract a module's features, and measure them; `common`: settings of all protocols; `record`: of the evaluation."""
    from tfssl.downstream import runner as measure
    from tfssl.downstream.features import extract as features
    from tfssl.downstream.report import neighbors
    from tfssl.downstream.report import save as report
    from tfssl.storage import files

    parts = {part: endpoints for part in sources}
    if not reads_train(protocols):
        parts["train"] = []
    found = {part: extract(module, sources[part], parts[part]) for part in sources}
    train, test = found["train"], found.get("test")
    size, resize = module.sizes(*sizes())
    took = sum(its.seconds for its in found.values())
    verified = ", verified" if FLAGS.cache == "verify" else ""
    how = f"extracted in {took:.1f} s" if took else f"from the cache{verified}"
    say(f"{name}: {', '.join(endpoints)}: {how}; the module gets {size}x{size} RGB images in [0, 1]")
    record.modules[name] |= {
        "image_size": size,
        "resize": resize,
        "extraction_seconds": took,
        "unreadable": {part: its.dropped for part, its in found.items()},
    }
    if protocols:
        record.facts |= {
            "num_classes": train.num_classes,
            **{f"{part}_examples": len(its.labels) for part, its in found.items()},
            "baselines": report.baselines(train, test),
        }
        asked = {"endpoints": endpoints, "train_labels": FLAGS.train_labels}
        record.add(name, measure.on_features(protocols, **found, **asked, **common))
    if "features" in FLAGS.protocol:
        for part, its in found.items():
            say(f"written: {its.save(workdir_file(f'{name}_{part}.npz'))}")
    if FLAGS.neighbors:
        mine = [r for r in record.results if r["module"] == name]
        chosen = [r["endpoint"] for r in mine if r["chosen"] and report.column(r) == report.largest(mine)[0]]
        endpoint = (chosen or [e for e in endpoints if e != features.PIXELS] or endpoints)[-1]
        for its in (train, test):
            its.check([endpoint])
        png = neighbors.plot(train, test, endpoint, FLAGS.neighbors, FLAGS.seed, f"{name}, {endpoint}")
        record.check()
        files.write_file(workdir_file(f"{name}_neighbors.png"), png)
        record.panels[name] = endpoint, png
        say(f"written: {workdir_file(f'{name}_neighbors.png')}")


def extract(module, source, endpoints):
    """The features of one source; cached ones are memory-mapped, so that only a local --workdir keeps any."""
    from tfssl.downstream.features import extract as features

    return features.extract(
        module,
        source,
        endpoints,
        *sizes(),
        batch_size=FLAGS.batch_size,
        pool=FLAGS.pool,
        dtype=FLAGS.feature_dtype,
        cache_dir=features_folder() if FLAGS.cache else None,
        verify=FLAGS.cache == "verify",
    )


def features_folder():
    """Where extracted features are kept; None without a local --workdir."""
    local = FLAGS.workdir and "://" not in FLAGS.workdir
    return os.path.join(os.path.expanduser(FLAGS.workdir), "features") if local else None


def prune(sources):
    """Remove the features in --workdir that nobody can use any more, those of changed `sources` among them."""
    from tfssl.data.sources import identity
    from tfssl.downstream.features import cache
    from tfssl.downstream.features import extract as features
    from tfssl.storage import locks

    folder = features_folder()
    if not folder:
        raise UserError("--prune removes features from a local --workdir: name it")
    known = [(source.spec, source.split, identity.of(source)) for source in sources.values()]
    with locks.workdir_lock(FLAGS.workdir, FLAGS.steal_lock):
        removed = cache.prune(folder, features.versions(), known)
    for path, reason, size in removed:
        say(f"pruned: {path} ({size / 1e6:.1f} MB; {reason})")
    say(f"pruned: {len(removed)} sets of features, {sum(size for *_, size in removed) / 1e6:.1f} MB, from {folder}")


def reads_train(protocols):
    """Whether features of the training images are needed: not where all that learns takes new crops of them."""
    held_out = not FLAGS.val_split and FLAGS.val_fraction
    others = set(protocols) != {"linear_sgd"} or FLAGS.neighbors or "features" in FLAGS.protocol
    return others or not FLAGS.augment or FLAGS.standardize or held_out


QUICK_FLAGS = {  # those that `budget.QUICK` sets: a user's own values stay
    "svm": ("svm_costs", "svm_folds"),
    "few_shot": ("few_shot_episodes",),
    "low_shot": ("low_shot_samples", "low_shot_k", "svm_costs"),
    "mlp": ("mlp_epochs", "mlp_decay_epochs", "mlp_l2"),
    **dict.fromkeys(downstream.DENSE, ("dense_epochs",)),
}


def read_budget():
    """Minutes for the protocols of --protocol=all; None: as many as it takes."""
    if "all" not in FLAGS.protocol:
        if FLAGS.budget_minutes:
            raise UserError(
                f"--budget_minutes={FLAGS.budget_minutes:g} is of --protocol=all: a protocol that is named is never cut"
            )
        return None
    return BUDGET_MINUTES if FLAGS.budget_minutes is None else FLAGS.budget_minutes or None


def read_protocols():
    """({protocol: its settings} of the flags, names of those that may be left out); UserError where flags contradict each other."""
    svm = {
        "costs": FLAGS.svm_costs,
        "positive_weight": FLAGS.svm_positive_weight,
        "intercept_scaling": FLAGS.svm_intercept_scaling,
        "ap": FLAGS.svm_ap,
    }
    dense = {
        "size": sides("dense_size"),
        "trunk": FLAGS.dense_trunk,
        "trunk_rate": FLAGS.dense_trunk_rate,
        "batch_size": FLAGS.dense_batch_size,
    }
    own = {"epochs": FLAGS.dense_epochs, "learning_rate": FLAGS.dense_learning_rate, "mirrored": FLAGS.dense_mirrored}
    dense |= {name: value for name, value in own.items() if value is not None}  # others: each protocol's
    settings = {
        "logistic": {
            "l2": FLAGS.l2,
            "max_iterations": FLAGS.max_iterations,
            "standardize": FLAGS.standardize,
            "precondition": FLAGS.precondition,
        },
        "knn": {"k": FLAGS.knn_k, "temperature": FLAGS.knn_temperature},
        "linear_sgd": {
            "augment": FLAGS.augment,
            "crops": FLAGS.sgd_crops,
            "epochs": FLAGS.sgd_epochs,
            "decay_epochs": FLAGS.sgd_decay_epochs,
            "batch_size": FLAGS.sgd_batch_size,
            "learning_rate": FLAGS.sgd_learning_rate,
            "weight_decay": FLAGS.sgd_weight_decay,
            "nesterov": FLAGS.sgd_nesterov,
            "batch_norm": FLAGS.sgd_batch_norm,
            "init_std": FLAGS.sgd_init_std,
            "standardize": FLAGS.standardize,
            "epoch": FLAGS.epoch,
            "state_dir": workdir_file("heads") if FLAGS.workdir and FLAGS.cache else None,
        },
        "mlp": {
            "hidden": FLAGS.mlp_hidden,
            "dropout": FLAGS.mlp_dropout,
            "l2": FLAGS.mlp_l2,
            "epochs": FLAGS.mlp_epochs,
            "decay_epochs": FLAGS.mlp_decay_epochs,
            "batch_size": FLAGS.mlp_batch_size,
            "learning_rate": FLAGS.mlp_learning_rate,
            "standardize": FLAGS.standardize,
            "epoch": FLAGS.epoch,
        },
        "svm": {**svm, "folds": FLAGS.svm_folds, "shuffle_folds": FLAGS.svm_shuffle_folds},
        "low_shot": {
            **svm,
            "shots": FLAGS.low_shot_k,
            "samples": FLAGS.low_shot_samples,
            "choose": FLAGS.low_shot_choose,
        },
        "few_shot": {
            "shots": FLAGS.few_shot_k,
            "ways": FLAGS.few_shot_ways,
            "queries": FLAGS.few_shot_queries,
            "episodes": FLAGS.few_shot_episodes,
            "ridges": FLAGS.few_shot_ridges,
        },
        "segmentation": {**dense, "head": FLAGS.dense_head, "ignore": FLAGS.ignore_class},
        "detection": {
            **dense,
            "layers": FLAGS.detection_layers,
            "units": FLAGS.detection_units,
            "jitter": FLAGS.detection_jitter,
        },
        "surface_normals": {**dense, "head": FLAGS.dense_head, "clusters": FLAGS.normals_clusters},
    }
    for name in FLAGS.protocol:
        if name not in (*settings, "all", "features"):
            raise UserError(f"--protocol={name}: there is {', '.join(settings)}, all, features")
    if not FLAGS.protocol or not FLAGS.endpoints or not FLAGS.train_labels:
        raise UserError("--protocol, --endpoints and --train_labels each need a value")
    protocols = {name: settings[name] for name in FLAGS.protocol if name not in ("all", "features")}
    optional = [name for name in settings if "all" in FLAGS.protocol and name not in (*protocols, "linear_sgd")]
    protocols |= {name: settings[name] for name in optional}
    if FLAGS.random_init is None:
        FLAGS.random_init = "all" in FLAGS.protocol
    if FLAGS.neighbors is None:
        FLAGS.neighbors = 5 if "all" in FLAGS.protocol and FLAGS.workdir else 0
    if not FLAGS.test_split and (protocols or FLAGS.neighbors):
        raise UserError("--test_split is empty, which only --protocol=features alone can do without")
    if not FLAGS.workdir and ("features" in FLAGS.protocol or FLAGS.neighbors):
        raise UserError("--workdir is missing: name a folder for the features, or the picture of neighbours")
    return protocols, optional


def sizes():
    """(side of the crop, shorter side before it), in pixels; None where the module's own is meant."""
    return FLAGS.image_size or None, FLAGS.resize or None


def sides(flag):
    """(height, width) of a flag."""
    try:
        height, width = map(int, FLAGS[flag].value)
        return height, width
    except ValueError as e:
        raise UserError(f"--{flag}={','.join(FLAGS[flag].value)}: give HEIGHT,WIDTH in pixels, such as 360,480") from e


def workdir_file(name):
    return os.path.join(FLAGS.workdir, name.replace("/", "_"))


def say(text):
    print(text, flush=True)


def run():
    """Entry point of `tfssl-eval`."""
    define_flags()
    cli.run(main, "tfssl-eval", goes_on="the same command goes on from what --workdir has cached")


if __name__ == "__main__":
    run()
