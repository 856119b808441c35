"""Fine-tune an encoder: a Hub module and labelled images in, a classifier out, measured and ready to deploy.

  tfssl-finetune --module=runs/photos/module/1000 --dataset=folder:photos --train_split=train[:80%] --test_split=train[80%:] \\
      --workdir=runs/classifier                                            the whole network learns
  tfssl-finetune --module=... --train_labels=1% --workdir=...              from a few labels, the same number of each class
  tfssl-finetune --module=... --freeze --workdir=...                       a linear classifier on the encoder as it is
  tfssl-finetune --module=SMALL --teacher=CLASSIFIER --workdir=...         from a larger classifier's probabilities: needs no labels

It writes WORKDIR/classifier/STEP, a SavedModel, and WORKDIR/results.json; tfssl-predict applies the classifier to images.
The same command again resumes a run that was stopped, or killed; the result is the same.
"""

import dataclasses
import os
import sys
import time
from typing import Any

from absl import flags

from tfssl import train
from tfssl.config import data_flags
from tfssl.errors import UserError, one_line
from tfssl.runtime import cli

FLAGS = flags.FLAGS


# fmt: off
@cli.section("Encoder and classifier")
def define_classifier():
    flags.DEFINE_string("module", None, "Required. The encoder: a Hub module's folder (local or gs://), .tar.gz or https handle.")
    flags.DEFINE_string("endpoint", "", "What the linear classifier sits on. Default: pre_logits. SimCLR v2 fine-tunes from head1, of a "
        "module that tfssl-export wrote with --head_endpoints=1.")
    flags.DEFINE_boolean("freeze", False, "The encoder stays as it is, its batch statistics too; the linear classifier alone learns.")
    flags.DEFINE_float("head_rate", 1.0, "The classifier learns at so many times the rate of the encoder: sgd, nesterov, lars, lars_byol "
        "(SwAV: 250 with 1% of the labels, 20 with 10%).")
    flags.DEFINE_integer("image_size", 0, "Side of the crops, in pixels; 0: the module's own (SimCLR, SwAV: 224).")
    flags.DEFINE_integer("resize", 0, "Shorter side of an evaluation image before its central crop, in pixels; 0: the module's own, or "
        "image_size * 256 / 224.")
    flags.DEFINE_float("min_area", 0.08, "Smallest area of a training crop, as a share of the image (SimCLR, SwAV: 0.08).")
    flags.DEFINE_boolean("flip", True, "Flip half of the training images left to right. Colours stay as they are.")


@cli.section("Labels")
def define_labels():
    flags.DEFINE_string("train_labels", "all", "How many training labels are used: all, a percentage such as 1%, or a number of images. "
        "Class-balanced, and tfssl-eval's own of that --seed; the 1% lie within the 10%. Other images are left out (with --teacher: stay, "
        "without their labels).")
    flags.DEFINE_string("train_list", "", "In place of --train_labels: a file with the name of an image on each line, as the published "
        "imagenet_subsets/1percent.txt.")
    flags.DEFINE_string("test_split", "test", "Images that the finished classifier is measured on; empty: it is not.")


@cli.section("Distillation: a teacher's probabilities in place of labels, or beside them")
def define_distillation():
    flags.DEFINE_string("teacher", "", "A classifier that tfssl-finetune wrote. It infers, on the same crops, and does not learn.")
    flags.DEFINE_float("distill_temperature", 1.0, "What the logits of both are divided by (SimCLR v2: 1; self-distillation 0.1).")
    flags.DEFINE_float("distill_weight", 1.0, "Share of the teacher in the loss; the rest is cross-entropy, where there is a label "
        "(SimCLR v2: 1).")
    flags.DEFINE_boolean("distill_scale_by_t2", False, "Times the temperature's square: gradients of one size (SimCLR v2's notebook).")


@cli.section("Optimization")
def define_optimization():
    flags.DEFINE_integer("batch_size", 256, "Images per step over all replicas (SimCLR: 4096; v2: 1024; SwAV: 256).")
    flags.DEFINE_float("epochs", 60.0, "Passes over the images that are used (SimCLR: 60 with 1% of the labels, 30 with 10%; SwAV: 20).")
    flags.DEFINE_integer("train_steps", 0, "Length in steps; overrides --epochs where it is not 0.")
    flags.DEFINE_string("optimizer", "nesterov", "sgd, nesterov (SimCLR), adam, lars (SimCLR v2), lars_byol, larc, or lamb. The forms of "
        "LARS treat the linear classifier as nesterov's momentum would, but for larc, which adapts all.")
    flags.DEFINE_float("momentum", 0.9, "Share of the last step that the next one keeps (SimCLR, SwAV: 0.9); beta_1 of adam and lamb.")
    flags.DEFINE_float("learning_rate", 0.05, "Peak rate at a batch of --lr_scaling images (SimCLR: 0.05).")
    flags.DEFINE_float("lr_scaling", 256, "Peak rate = learning_rate * batch_size / this (SimCLR: 256); 0: unscaled.")
    flags.DEFINE_string("schedule", "cosine", "cosine (SimCLR), piecewise (SwAV) or constant; each after a linear warm-up.")
    flags.DEFINE_list("decay_epochs", ["12", "16"], "piecewise: --decay_factor applies after these (SwAV: 12,16).")
    flags.DEFINE_float("decay_factor", 0.2, "piecewise: see --decay_epochs (SwAV: 0.2).")
    flags.DEFINE_float("warmup_epochs", 0.0, "The rate rises linearly from 0 over these epochs (SimCLR, SwAV: 0).")
    flags.DEFINE_float("weight_decay", 0.0, "Factor w of 0.5 * w * sum ||kernel||^2 in the loss (SimCLR, SwAV: 0).")
    flags.DEFINE_integer("seed", 0, "Of the labels' choice, order and augmentation: the same seed, the same run.")
# fmt: on


def define_flags():
    """In the order of `--help`."""
    define_classifier()
    train.define_data()
    define_labels()
    define_distillation()
    define_optimization()
    train.define_accelerators(own_graph=False)
    train.define_run()


PLAIN_RATE = (
    "sgd",
    "nesterov",
    "lars",
    "lars_byol",
)  # they multiply the classifier's gradient by the rate, and by nothing else


def main(_):
    start = time.time()
    values = resolve_flags()
    from tfssl.data import service
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import locks
    from tfssl.training import build, workdir
    from tfssl.training import run as training

    if not FLAGS.dry_run:
        workdir.check_workdir(values)

    strategies.start(values["seed"], "float32", values["deterministic"])
    strategy = strategies.build(*(values[n] for n in ("strategy", "tpu", "tpu_zone", "gcp_project", "host_timeout")))
    strategies.check_batch(strategy, values["batch_size"], values["accumulate_steps"])
    service.check(values["data_service"], values["data_service_timeout"])
    images = open_images(values)
    provenance = None if FLAGS.dry_run else training.know_data(values, strategy, images.train, images.validation)
    with strategy.scope():
        model = build_model(values, images, load_teacher(values, images), values["freeze"])
        plan = Plan(values, images)
        build.set_up(model, values, plan)
    if FLAGS.dry_run:
        from tfssl.training import dry_run

        return dry_run.describe(model, strategy, images.train, images.validation, plan, values)
    following = f"tfssl-predict --module={values['workdir']}/classifier/{plan.total_steps} --images=FOLDER"
    run = model, strategy, images.train, images.validation, plan, values, following, provenance
    if not strategies.is_chief(strategy):
        return training.train(*run)
    with locks.workdir_lock(values["workdir"], FLAGS.steal_lock) as check:  # the one that training takes
        training.train(*run)
        finish(values, images, start, check)


def resolve_flags():
    """{flag: value} of the whole run; contradictions are refused here, before any work."""
    names = [n for heading in cli._SECTIONS.values() for n in heading if n not in train.NOT_STORED]
    values = {n: FLAGS[n].value for n in names}
    train.check_flags(values)
    if not values["module"]:
        raise UserError(
            "--module is missing: name the encoder, a folder that tfssl-export wrote or any Hub module of images"
        )
    if values["head_rate"] != 1 and values["optimizer"] not in PLAIN_RATE:
        raise UserError(
            f"--head_rate={values['head_rate']:g} is a factor on the classifier's gradients, which --optimizer={values['optimizer']} "
            f"divides by their size: choose one of {', '.join(PLAIN_RATE)}"
        )
    if values["train_list"] and values["train_labels"] != "all":
        raise UserError("--train_labels and --train_list contradict each other: choose one")
    return values


@dataclasses.dataclass
class Images:
    """What a run reads: sources, of which `validation` and `test` may be None; and how many labels of `train` it uses. Its classes are
    those of the first source that has any."""

    train: Any
    validation: Any
    test: Any
    labels: int

    def __post_init__(self):
        labelled = [source for source in (self.train, self.validation, self.test) if source and source.num_classes]
        self.num_classes = labelled[0].num_classes if labelled else None
        self.class_names = labelled[0].class_names if labelled else None


def open_images(values):
    """`Images` of the flags."""
    from tfssl import data
    from tfssl.classifiers import labels
    from tfssl.data import overlap
    from tfssl.data.listing import checks
    from tfssl.data.sources import subset
    from tfssl.downstream import splits
    from tfssl.downstream.features import extract as features

    where = data_flags.where(values)
    parts = {part: values[f"{part}_split"] for part in ("train", "val", "test")}
    sources = {part: data.open_source(values["dataset"], split, **where) for part, split in parts.items() if split}
    overlap.check(sources)
    for part in ("val", "test"):
        missing = checks.unlabelled(sources[part]) if part in sources else None
        if missing:
            raise UserError(missing)
        if part in sources:
            sources[part].probe()  # what nothing can be measured on is refused before the training
    source = sources["train"]
    others = sources.get("val"), sources.get("test")
    if checks.unlabelled(source):
        given = [n for n, default in (("train_labels", "all"), ("train_list", "")) if values[n] != default]
        if not values["teacher"] or values["distill_weight"] < 1 or given:
            because = (
                f"--{given[0]}" if given else "fine-tuning" if not values["teacher"] else "--distill_weight below 1"
            )
            raise UserError(
                f"--dataset={source.spec} ({source.split}) has no labels, and {because} needs them: {source.unlabelled_because}, or "
                "learn from a classifier alone (--teacher, --distill_weight=1)"
            )
        return Images(source, *others, labels=0)
    if source.random_access and not values["teacher"]:  # of records labels are not known before they are read
        known = features.read_labels(source)["labels"]
        splits.check_classes(known[known >= 0], source)
    chosen = labels.choose(source, values["train_labels"], values["train_list"], values["seed"])
    if chosen is None:
        return Images(source, *others, labels=source.num_examples)
    some = subset.LabelledAt(source, chosen) if values["teacher"] else subset.Subset(source, chosen)
    return Images(some, *others, labels=len(chosen))


def build_model(values, images, teacher=None, freeze=False):
    """The classifier's model, untrained; call it in the strategy's scope."""
    from tfssl import optim
    from tfssl.backbones.hub import Hub
    from tfssl.classifiers.classifier import Classifier
    from tfssl.hub import load as modules

    module = modules.load(values["module"])
    size, resize = module.sizes(values["image_size"] or None, values["resize"] or None)
    backbone = Hub(module, size, trainable=not freeze)
    if not freeze and not backbone.learned:
        raise UserError(
            f"module {module.handle!r} has no variable that training could change: --freeze takes it as it is"
        )
    return Classifier(
        backbone,
        images.num_classes,
        backbone.choose(values["endpoint"]),
        head_rate=values["head_rate"],
        teacher=teacher,
        temperature=values["distill_temperature"],
        distill_weight=values["distill_weight"],
        scale_by_t2=values["distill_scale_by_t2"],
        labelled=images.labels > 0 or images.validation is not None,
        image_size=size,
        resize=resize,
        min_area=values["min_area"],
        flip=values["flip"],
        weight_decay=0.0 if values["optimizer"] in optim.OWN_DECAY else values["weight_decay"],
    )


def load_teacher(values, images):
    """The function images -> logits, or None; call it in the strategy's scope. Images without classes get the teacher's."""
    from tfssl.classifiers import predictions as classify
    from tfssl.hub import load as modules

    if not values["teacher"]:
        return None
    module = modules.load(values["teacher"])
    classes, names = classify.num_classes(module), module.facts.get("class_names")
    if images.num_classes is None:
        images.num_classes, images.class_names = classes, names
    if classes != images.num_classes:
        raise UserError(
            f"--teacher={values['teacher']} tells {classes} classes apart, and --dataset={values['dataset']} has {images.num_classes}"
        )
    if names and images.class_names and list(names) != list(images.class_names):
        odd = sorted(set(names) ^ set(images.class_names))[:5]
        raise UserError(
            f"--teacher={values['teacher']} and --dataset={values['dataset']} have different classes: "
            f"{', '.join(odd) or 'in another order'}"
        )
    return lambda crops: module.endpoints(crops)["logits"]


class Plan(train.Plan):
    """Lengths in steps, of the images that are used."""

    def __init__(self, values, images):
        super().__init__(values, images.train.num_examples)
        self.labels = images.labels

    def summary(self, model, source):
        v = self.values
        million = sum(w.shape.num_elements() for w in model.trainable_variables) / 1e6
        return (
            f"{v['module']}, {model.endpoint}: {million:.2f} M parameters learn, {self.labels} labels, {source.num_examples} images of "
            f"{source.spec}, {self.total_steps} steps of {v['batch_size']} images ({self.total_steps / self.epoch_steps:.1f} epochs), "
            f"{v['optimizer']}, peak rate {self.peak:.3g}, {v['schedule']}"
        )


def finish(values, images, start, check=lambda: None):
    """Publish the newest checkpoint and measure it, as far as that is not done. `check` refuses when the workdir's lock is lost."""
    from tfssl.downstream.report import save as report
    from tfssl.hub import handles
    from tfssl.training import checkpoints
    from tfssl.training.callbacks import say

    step, checkpoint = checkpoints.saved(os.path.join(values["workdir"], "checkpoints"))[-1]
    where = os.path.join(values["workdir"], "classifier", str(step))
    import tensorflow as tf

    check()
    last = os.path.join(
        where, "saved_model.pb"
    )  # of a module's files, and in an object store the mark that it is whole
    if not tf.io.gfile.exists(last):
        publish(values, images, checkpoint, step, where)
        say(f"classifier: {where}")
    record = os.path.join(values["workdir"], "results.json")
    if images.test is None or measured(record) == (where, values["test_split"]):
        return
    facts = measure(values, images, where)
    common = {"module": handles.short_name(values["module"]), "endpoint": facts.pop("endpoint"), "chosen": False}
    common |= {
        "train_labels": images.labels,
        "val_value": None,
        "reported_on": f"{images.test.spec} {images.test.split}",
    }
    results = [
        {**common, "protocol": protocol, "metric": metric, "value": facts[metric]}
        for protocol, metric in (("finetune", "accuracy"), ("top-5", "top5_accuracy"))
    ]
    chance = {"chance": 1 / images.num_classes}
    say("\n" + report.table(results, chance))
    check()
    report.write(
        record,
        results,
        command=["tfssl-finetune", *sys.argv[1:]],
        flags=values,
        versions=report.versions(),
        seconds=time.time() - start,
        num_classes=images.num_classes,
        train_examples=images.train.num_examples,
        train_labels=images.labels,
        test_split=values["test_split"],
        step=step,
        classifier=where,
        baselines=chance,
        **facts,
    )
    say(f"written: {record}")


def publish(values, images, checkpoint, step, where):
    """Write the classifier of a checkpoint, in float32 and on one device, whatever it was trained on."""
    import tensorflow as tf

    from tfssl.export.module import save_classifier
    from tfssl.training import checkpoints

    model = build_model(values, images, freeze=values["freeze"])
    model.backbone.trainable = True  # for whoever trains the classifier further
    model.prepare()
    reason = checkpoints.load(checkpoint, tf.train.Checkpoint(model=model))
    if reason:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({reason}): the same command again goes on from the one before, or trains anew"
        )
    recorded = {name: value for name, value in values.items() if value is not None and name != "workdir"}
    save_classifier(model, where, step, images.class_names, recorded)


def measured(record):
    """(classifier, test split) that results.json is about; None where there is none, or half of one."""
    import json

    import tensorflow as tf

    from tfssl.training.callbacks import say

    if not tf.io.gfile.exists(record):
        return None
    try:
        with tf.io.gfile.GFile(record, "rb") as f:
            found = json.loads(f.read())
        return found.get("classifier"), found.get("test_split")
    except (ValueError, AttributeError) as e:
        say(f"{record} is damaged ({one_line(e)}) and is written anew")
        return None


def measure(values, images, where):
    """What results.json says of the classifier, read from its files."""
    from tfssl.classifiers import predictions as classify
    from tfssl.hub import load as modules

    begun = time.time()
    module = modules.load(where)
    found = classify.accuracy(module, images.test, batch_size=values["batch_size"])
    return {
        "accuracy": found["accuracy"],
        "top5_accuracy": found["top5_accuracy"],
        "test_examples": found["images"],
        "test_seconds": time.time() - begun,
        "endpoint": module.facts["endpoint"],
        "modules": {
            "encoder": {"handle": values["module"], "identity": module.facts["encoder"]["identity"]},
            "classifier": {"handle": where, "identity": module.identity},
        },
    }


def run():
    """Entry point of `tfssl-finetune`."""
    define_flags()
    cli.run(main, "tfssl-finetune")


if __name__ == "__main__":
    run()
