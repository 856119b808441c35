"""`tfssl-train --dry_run`: what a run would do, on which images, before it costs anything."""

import math
import time

import tensorflow as tf

from tfssl.runtime import strategy as strategies
from tfssl.runtime import summaries
from tfssl.runtime.callbacks import _clock, say


def describe(model, strategy, source, validation, plan, values, picture="dry_run.png", timed_steps=3):
    """Print the images by split and class, the unreadable ones and the duplicates, the network, the plan and an estimate of its time;
    write the first views to `picture`."""
    for split in filter(None, (source, validation)):
        _describe_source(split)
    say(plan.summary(model, source))
    for part in (model.backbone, getattr(model, "head", None)):
        if part is not None:
            trainable = sum(math.prod(v.shape) for v in part.trainable_variables)
            say(f"  {part.name}: {trainable:,} trainable parameters")
    source.probe()
    tf.io.gfile.GFile(picture, "wb").write(
        tf.io.encode_png(summaries.grid(summaries.first_views(model, source, values["batch_size"], values["seed"]))).numpy()
    )
    say(f"first images as the network sees them: {picture}")
    _estimate(model, strategy, source, plan, values, timed_steps)


def _describe_source(source):
    say(f"{source.spec}, split {source.split}: {source.num_examples:,} images, " + (f"{source.num_classes} classes" if source.num_classes else "no labels"))
    report = source.scan(progress=True)
    for name, count in report.counts.items():
        say(f"  {name}: {count:,}")
    if report.unreadable:
        say(f"  unreadable, would be skipped: {len(report.unreadable)}")
        for name, reason in report.unreadable[:20]:
            say(f"    {name}: {reason}")
        if len(report.unreadable) > 20:
            say(f"    and {len(report.unreadable) - 20} more")
    copies = sum(len(group) - 1 for group in report.duplicates)
    say(f"  images whose content occurs before: {copies}" + (f", such as {report.duplicates[0][0]} = {report.duplicates[0][1]}" if copies else ""))


def _estimate(model, strategy, source, plan, values, steps):
    executions = values["steps_per_execution"]
    data = iter(strategies.training_data(strategy, model, source, values["batch_size"], values["seed"], 0, (steps + 1) * executions))
    step = model.make_train_function()
    step(data)["loss"].numpy()  # traces and warms up
    start = time.perf_counter()
    for _ in range(steps):
        loss = step(data)["loss"]
    loss.numpy()
    seconds = (time.perf_counter() - start) / (steps * executions)
    rate = values["batch_size"] / seconds
    say(f"estimated time: {_clock(seconds * plan.total_steps)} for {plan.total_steps} steps at {rate:.0f} images/s (measured over {steps * executions} steps)")
