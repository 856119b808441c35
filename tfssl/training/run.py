"""A run between its first and its last step: restored, fitted over whole checkpoint intervals,
saved."""

import math
import os
from collections.abc import Callable
from typing import Any, Optional

import tensorflow as tf

from tfssl.config import generated
from tfssl.config.configs import Config
from tfssl.config.plan import Plan
from tfssl.data.sources import identity
from tfssl.data.sources.base import Source
from tfssl.errors import UserError
from tfssl.pretext.task import Pretext
from tfssl.runtime import preemption, tracking, watchdog
from tfssl.runtime import strategy as strategies
from tfssl.step import phases
from tfssl.storage import locks
from tfssl.training import callbacks, checkpoints, summaries
from tfssl.training.knn_probe import KnnProbe
from tfssl.training.provenance import Provenance
from tfssl.training.workdir import OF_HOST, check_data, claim_workdir


def know_data(
    config: Config, strategy: tf.distribute.Strategy, source: Source, validation: Optional[Source]
) -> Provenance:
    """The `Provenance` of a run, once its data are known to be its own, and the same on all
    hosts."""
    flags = config.flags()
    used = {name: str(flags[name]) for name in ("module", "teacher") if flags.get(name)}
    provenance = Provenance(config.run.folder(), source, used)
    if strategies.several_workers(strategy):
        facts = provenance.digests()
        here = (
            f"{source.num_examples} images of {source.spec} ({source.split}), {facts['versions']}"
        )
        strategies.compare_hosts(
            strategy, {"versions": facts.pop("versions")}, here
        )  # what flags there are depends on them
        facts |= {
            f"--{name}": generated.as_text(value)
            for name, value in config.flags().items()
            if name not in OF_HOST
        }
        facts["validation data"] = identity.text(identity.of(validation)) if validation else ""
        strategies.compare_hosts(strategy, facts, here)
    say = callbacks.say if strategies.is_chief(strategy) else lambda text: None
    provenance.check(config.run.accept_changed_data, config.accelerators.deterministic, say)
    return provenance


def train(
    model: Pretext,
    strategy: tf.distribute.Strategy,
    source: Source,
    validation: Optional[Source],
    plan: Plan,
    config: Config,
    provenance: Provenance,
    summary: str,
    following: str,
) -> None:
    """Restore, then fit to the end, while no other process uses the workdir. What is told the user:
    the `summary` of a new run, and `following`, the command that comes next."""
    run = model, strategy, source, validation, plan, config, provenance, summary, following
    if not strategies.is_chief(strategy):
        return _train(*run)
    workdir = config.run.folder()
    with locks.workdir_lock(workdir, config.run.steal_lock) as check:
        with tracking.tracked(config.run.track, workdir, config.flags(), callbacks.say) as tracker:
            _train(*run, check, tracker)


def _train(
    model: Pretext,
    strategy: tf.distribute.Strategy,
    source: Source,
    validation: Optional[Source],
    plan: Plan,
    config: Config,
    provenance: Provenance,
    summary: str,
    following: str,
    check: Callable[[], None] = lambda: None,
    tracker: Optional[tracking.Tracker] = None,
) -> None:
    """Once over the whole checkpoint intervals, and once over the rest, where there is one. `check`
    refuses when the lock is lost."""
    run, batch_size, seed = config.run, config.optimization.batch_size, config.optimization.seed
    watchdog.WATCHDOG.start()
    chief = strategies.is_chief(strategy)
    say = callbacks.say if chief else lambda text: None
    images = [source] if validation is None else [source, validation]
    for note in dict.fromkeys(note for part in images for note in part.notes()):
        say(note)
    model.require(source)
    if model.chance().get("accuracy", 0.0) >= 1:
        raise UserError(
            "there is nothing to learn: one answer alone is possible, so that chance is always "
            "right; it takes two classes, prototypes or clusters"
        )
    for part in images:
        part.check_readable()
    if model.order(source) is not source and config.accelerators.data_service:
        raise UserError(
            "--data_service delivers images in an order of its own, and this task has one too: "
            "leave it out"
        )
    probe = (
        KnnProbe(model, source, validation, run.knn_probe)
        if run.knn_probe and validation and chief
        else None
    )
    check_data(config)
    workdir = run.folder()
    folder, keep = os.path.join(workdir, "checkpoints"), (run.keep_checkpoints, run.keep_every)
    saver = checkpoints.Checkpoints(model, folder, *keep, writes=chief, guard=check)
    step = saver.restore(say)
    here = f"step {step} of {folder}, which all hosts have to see alike"
    strategies.compare_hosts(strategy, {"the checkpoint": str(step)}, here)
    if chief:
        claim_workdir(config, source)
        provenance.write(step)
    validation_every = run.validation_steps or run.checkpoint_steps

    def is_due(at: int) -> bool:
        return validation is not None and (at % validation_every == 0 or at == plan.total_steps)

    # A validation that a signal cut off, after which the state was saved, is made up for.
    owed = chief and step > 0 and is_due(step) and not callbacks.has_validation(workdir, step)
    owed = bool(strategies.sum_over_workers(strategy)(float(owed)))
    if step >= plan.total_steps and not owed:
        say(f"finished: {workdir} is at step {step} of {plan.total_steps}; next: {following}")
        return
    say(f"resuming at step {step} of {plan.total_steps}" if step else summary)
    log = callbacks.Log(
        model,
        workdir if chief else None,
        step,
        plan.total_steps,
        batch_size,
        plan.epoch_steps,
        run.log_steps,
        saver.last_good,
        probe,
        summaries.pictures(model, validation) if validation and chief else None,
        source.unreadable,
        tracker,
    )
    if step == 0 and chief:
        summaries.write_start(log.writer("train"), model, source, config)
    restored = step
    stop = preemption.Preemption(
        lambda: saver.save(log.step) if log.step > restored else None, lambda: log.step, strategy
    )

    def validation_pass(of: Source) -> tuple[tf.data.Dataset, int]:
        """(The validation images, batches of them) for one pass."""
        images = strategies.evaluation_data(strategy, model, of, batch_size)
        return images, math.ceil(of.num_examples / batch_size)

    if owed and validation is not None:
        stop.on_train_begin()
        data, steps = validation_pass(validation)
        keras: dict[str, Any] = {"verbose": 0, "return_dict": True, "callbacks": [stop]}
        log.validated(model.evaluate(data, steps=steps, **keras))
        stop.on_train_end()
    between, context = (
        model.phases(),
        phases.Context(
            strategy,
            lambda: strategies.evaluation_data(strategy, model, source, batch_size),
            max(source.places, model.num_images),  # of more entries than images, some stay unseen
            seed,
            model.to_float,
        ),
    )
    while step < plan.total_steps:
        report = phases.run_due(between, context, step)
        if report:
            say(
                f"between steps, at step {step}  "
                + "  ".join(f"{name} {value:.4g}" for name, value in report.items())
            )
        # A run that was told to stop goes on at any step: first to the end of its checkpoint
        # interval, then over all whole ones.
        until = phases.next_due(between, step, plan.total_steps)
        interval = min(run.checkpoint_steps - step % run.checkpoint_steps, until - step)
        intervals = (until - step) // interval if interval == run.checkpoint_steps else 1
        batches = strategies.training_data(
            strategy,
            model,
            source,
            batch_size,
            seed,
            step,
            interval * intervals,
            config.accelerators.data_service,
        )
        if validation is None:
            validating = {}
        else:
            ends = [step + interval * (i + 1) for i in range(intervals)]
            data, steps = validation_pass(validation)
            validating = {
                "validation_data": data,
                "validation_freq": [i for i, end in enumerate(ends, 1) if is_due(end)],
                "validation_steps": steps,
            }
        model.fit(
            batches,
            epochs=intervals,
            steps_per_epoch=interval,
            verbose=0,
            callbacks=[log, callbacks.Save(saver, log), stop],
            **validating,
        )
        step += interval * intervals
    say(f"done: {workdir} is at step {step}; next: {following}")
