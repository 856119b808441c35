"""The end of a fine-tuning: its classifier is published, and measured on the test split."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

from tfssl.classifiers import predictions
from tfssl.classifiers.build import build_model
from tfssl.classifiers.images import LabeledData
from tfssl.config.configs import FinetuneConfig
from tfssl.data.sources import identity
from tfssl.data.sources.base import Source
from tfssl.downstream.report import save as report
from tfssl.errors import UserError, one_line
from tfssl.export.module import save_classifier
from tfssl.hub import handles
from tfssl.hub import load as modules
from tfssl.training import checkpoints
from tfssl.training.callbacks import say


def finish(
    config: FinetuneConfig,
    images: LabeledData,
    start: float,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Publish the newest checkpoint and measure it, as far as that is not done.

    Args:
      start: when the command began, in seconds of `time.time`.
      check: refuses when the workdir's lock is lost.
    """
    workdir, test_split = config.run.folder(), config.labels.test_split
    step, checkpoint = checkpoints.saved(os.path.join(workdir, "checkpoints"))[-1]
    where = os.path.join(workdir, "classifier", str(step))
    check()
    last = os.path.join(
        where, "saved_model.pb"
    )  # of a module's files, and in an object store the mark that it is whole
    if not tf.io.gfile.exists(last):
        publish(config, images, checkpoint, step, where)
        say(f"classifier: {where}")
    record = os.path.join(workdir, "results.json")
    if images.test is None:
        return
    data = {
        part: identity.described(source)
        for part, source in (("train", images.train), ("test", images.test))
    }
    *of, digest = measured(record) or (None, None)
    if of == [where, test_split]:
        if digest in (None, data["test"]["digest"]):  # None: written before there was one
            return
        say(f"{record} is about other test images: they are measured again")
    facts = measure(config, images.test, where)
    common = {
        "module": handles.short_name(config.classifier.handle()),
        "endpoint": facts.pop("endpoint"),
        "chosen": False,
    }
    common |= {
        "train_labels": images.labels,
        "val_value": None,
        "reported_on": f"{images.test.spec} {images.test.split}",
    }
    results = [
        {**common, "protocol": protocol, "metric": metric, "value": facts[metric]}
        for protocol, metric in (("finetune", "accuracy"), ("top-5", "top5_accuracy"))
    ]
    assert images.num_classes  # there is a classifier of them
    chance = {"chance": 1 / images.num_classes}
    say("\n" + report.table(results, chance))
    check()
    report.write(
        record,
        results,
        command=["tfssl-finetune", *sys.argv[1:]],
        flags=config.flags(),
        versions=report.versions(),
        seconds=time.time() - start,
        num_classes=images.num_classes,
        train_examples=images.train.num_examples,
        train_labels=images.labels,
        test_split=test_split,
        step=step,
        classifier=where,
        baselines=chance,
        data=data,
        **facts,
    )
    say(f"written: {record}")


def publish(
    config: FinetuneConfig, images: LabeledData, checkpoint: str, step: int, where: str
) -> None:
    """Write the classifier of a checkpoint, in float32 and on one device, whatever it was trained
    on.

    Raises:
      UserError: the checkpoint is damaged.
    """
    # By the module's own graph, in which no path is dropped: the checkpoint has its variables.
    model = build_model(config.replace(drop_path=0.0), images)
    model.backbone.trainable = True  # for whoever trains the classifier further
    model.prepare()
    reason = checkpoints.load(checkpoint, tf.train.Checkpoint(model=model))
    if reason:
        raise UserError(
            f"checkpoint {checkpoint} is damaged ({reason}): the same command again goes on from "
            "the one before, or trains anew"
        )
    save_classifier(model, where, step, images.class_names, config.published())


def measured(record: str) -> Optional[tuple[Optional[str], Optional[str], Optional[str]]]:
    """(classifier, test split, digest of its images) that results.json is about; None where there
    is none, or half of one."""
    if not tf.io.gfile.exists(record):
        return None
    try:
        with tf.io.gfile.GFile(record, "rb") as f:
            found = json.loads(f.read())
        digest = ((found.get("data") or {}).get("test") or {}).get("digest")
        return found.get("classifier"), found.get("test_split"), digest
    except (ValueError, AttributeError) as e:
        say(f"{record} is damaged ({one_line(e)}) and is written anew")
        return None


def measure(config: FinetuneConfig, test: Source, where: str) -> dict[str, Any]:
    """What results.json says of the classifier, read from its files."""
    begun = time.time()
    module = modules.load(where)
    # Of one device, whatever shared the batches of training; the size changes nothing.
    found = predictions.accuracy(module, test, batch_size=min(64, test.num_examples))
    return {
        "accuracy": found["accuracy"],
        "top5_accuracy": found["top5_accuracy"],
        "test_examples": found["images"],
        "test_seconds": time.time() - begun,
        "endpoint": module.facts["endpoint"],
        "modules": {
            "encoder": {
                "handle": config.classifier.module,
                "identity": module.facts["encoder"]["identity"],
            },
            "classifier": {"handle": where, "identity": module.identity},
        },
    }
