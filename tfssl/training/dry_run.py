"""`tfssl-train --dry_run`: what a run would do, on which images, before it costs anything."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence

import tensorflow as tf

from tfssl.config.configs import Config
from tfssl.config.plan import Plan
from tfssl.data.sources.base import Source
from tfssl.pretext.task import Pretext
from tfssl.runtime import strategy as strategies
from tfssl.storage.files import write_file
from tfssl.training import summaries
from tfssl.training.callbacks import _clock, say


def describe(
    model: Pretext,
    strategy: tf.distribute.Strategy,
    source: Source,
    validation: Source | None,
    plan: Plan,
    config: Config,
    summary: str,
    picture: str = "dry_run.png",
    timed_steps: int = 3,
) -> None:
    """Print the images by split and class, the unreadable ones and the duplicates, the network, the
    plan and an estimate of its time; write the first views to `picture`."""
    for split in filter(None, (source, validation)):
        _describe_source(split)
    say(summary)
    for part in (*dict.fromkeys((model.backbone, *model.published)), getattr(model, "head", None)):
        if part is not None:
            trainable = sum(math.prod(v.shape) for v in part.trainable_variables)
            say(f"  {part.name}: {trainable:,} trainable parameters")
    source.check_readable()
    views = summaries.first_views(
        model, source, config.optimization.batch_size, config.optimization.seed
    )
    if views is not None:
        write_file(picture, tf.io.encode_png(summaries.grid(views)).numpy())
        say(f"first images as the network sees them: {picture}")
    _describe_banks(model, source)
    _estimate(model, strategy, source, plan, config, timed_steps)


def _describe_source(source: Source) -> None:
    labels = f"{source.num_classes} classes" if source.num_classes else "no labels"
    if source.class_names and not source.num_classes:
        labels = f"several of {len(source.class_names)} classes in an image"
    say(f"{source.spec}, split {source.split}: {source.num_examples:,} images, {labels}")
    found = source.scan(_show_progress if sys.stdout.isatty() else None)
    for name, count in found.per_class.items():
        say(f"  {name}: {count:,}")
    if found.sizes:
        heights, widths = zip(*found.sizes)
        say(f"  sizes: {min(heights)} to {max(heights)} high, {min(widths)} to {max(widths)} wide")
    for reason, names in source.left_out.items():
        _list(f"left out: {reason}", names)
    for remark in source.remarks:
        say(f"  {remark}")
    if found.ignored:
        say(
            "  other files, ignored: "
            + ", ".join(
                f"{count} {ending or 'without ending'}" for ending, count in found.ignored.items()
            )
        )
    _list(
        "unreadable, would be skipped", [f"{name}: {reason}" for name, reason in found.unreadable]
    )
    copies = sum(len(group) - 1 for group in found.duplicates)
    _list(
        f"images whose content occurs before: {copies}, in groups",
        [" = ".join(group) for group in found.duplicates],
    )


def _describe_banks(model: Pretext, source: Source) -> None:
    """What is kept of each image, and so grows with the data set."""
    banks = [
        v
        for v in model.non_trainable_variables
        if model.num_images >= source.num_examples > 1 and model.num_images in v.shape
    ]
    if banks:
        size = sum(math.prod(v.shape) * v.dtype.size for v in banks)
        say(
            f"kept of {model.num_images:,} images, on each replica and in each checkpoint: "
            f"{size / 2**20:,.1f} MiB"
        )


def _list(heading: str, lines: Sequence[str], shown: int = 20) -> None:
    if lines:
        say(f"  {heading}: {len(lines)}")
        for line in [
            *lines[:shown],
            *([f"and {len(lines) - shown} more"] if len(lines) > shown else []),
        ]:
            say(f"    {line}")


def _show_progress(done: int, total: int) -> None:
    print(f"\r  read {done:,} of {total:,} ", end="\n" if done == total else "", flush=True)


def _estimate(
    model: Pretext,
    strategy: tf.distribute.Strategy,
    source: Source,
    plan: Plan,
    config: Config,
    steps: int,
) -> None:
    executions, batch_size = config.accelerators.steps_per_execution, config.optimization.batch_size
    data = iter(
        strategies.training_data(
            strategy,
            model,
            source,
            batch_size,
            config.optimization.seed,
            0,
            (steps + 1) * executions,
        )
    )
    step = model.make_train_function()
    step(data)["loss"].numpy()  # traces and warms up
    start = time.perf_counter()
    for _ in range(steps):
        loss = step(data)["loss"]
    loss.numpy()
    seconds = (time.perf_counter() - start) / (steps * executions)
    rate = batch_size / seconds
    total = _clock(seconds * plan.total_steps)
    say(
        f"estimated time: {total} for {plan.total_steps} steps at {rate:.0f} images/s, measured "
        f"over {steps * executions} steps"
    )
    for phase in model.phases():
        count = -(-plan.total_steps // phase.every)
        # A pass is a third of the training of as many images.
        each = phase.flops / _flops_per_second(strategy)
        each += phase.passes * source.num_examples / (3 * rate)
        images = f" and {phase.passes:g} pass over all images" if phase.passes else ""
        say(
            f"between steps: {_clock(count * each)} more for {count} phases, one each "
            f"{phase.every} steps, of {phase.flops / 1e12:.3g} TFLOP{images}, about "
            f"{each:.2g} s each"
        )


def _flops_per_second(strategy: tf.distribute.Strategy, size: int = 2048) -> float:
    """Of a product of matrices, on all replicas together; measured."""
    x = tf.random.normal([size, size])
    product = tf.function(lambda x: tf.reduce_sum(tf.matmul(x, x)))
    product(x).numpy()
    start = time.perf_counter()
    product(x).numpy()
    replicas = strategy.num_replicas_in_sync if tf.config.list_logical_devices("GPU") else 1
    return replicas * 2 * size**3 / (time.perf_counter() - start)
