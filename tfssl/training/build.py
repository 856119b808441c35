"""What a run is built of: where it computes, its model and its optimizer."""

import dataclasses

import tensorflow as tf

from tfssl import backbones, optim, pretext
from tfssl.config.configs import Config, TrainConfig
from tfssl.config.plan import Plan
from tfssl.config.schema import Accelerators, Optimization
from tfssl.data import service
from tfssl.data.sources.base import Source
from tfssl.pretext.task import Pretext
from tfssl.runtime import strategy as strategies


def start(
    optimization: Optimization,
    accelerators: Accelerators,
    precision: str = "float32",
    bn_group_size: int = 0,
) -> tf.distribute.Strategy:
    """Set up the process, and where it computes; nothing of TensorFlow may exist before.

    Raises:
      UserError: there are no such accelerators, they cannot share the batch, or the data service
        does not answer.
    """
    a, batch = accelerators, optimization.batch_size
    strategies.start(optimization.seed, precision, a.deterministic)
    strategy = strategies.build(a.strategy, a.tpu, a.tpu_zone, a.gcp_project, a.host_timeout)
    strategies.check_batch(strategy, batch, a.accumulate_steps, bn_group_size)
    service.check(a.data_service, a.data_service_timeout)
    return strategy


def of_data(config: TrainConfig, source: Source) -> TrainConfig:
    """The config with what the task takes from the data: numbers of classes and images where they
    are 0."""
    known = {"num_classes": source.num_classes or 0, "num_images": source.num_examples}
    found = {name: value for name, value in known.items() if config.task_settings.get(name) == 0}
    return dataclasses.replace(config, task_settings={**config.task_settings, **found})


def build_model(config: TrainConfig, publish: bool = False) -> Pretext:
    """The task's model, untrained; call it in the strategy's scope. `publish`: without what only
    training needs, such as a distillation's teacher."""
    network, given = config.network, dict(config.backbone_settings)
    if config.accelerators.rematerialize:
        given["remat"] = True
    backbone = backbones.build(
        network.backbone,
        **given,
        neck=network.neck,
        neck_width=network.neck_width,
        neck_tower=network.neck_tower,
        bn_sync=network.sync_batch_norm,
        bn_groups=bn_groups(config),
    )
    own = dict(config.task_settings)
    own |= pretext.task_class(config.task).from_data(own, None, config.run.workdir)
    if publish:
        own |= pretext.task_class(config.task).training_only
    if optim.own_decay(config.optimization.optimizer):
        own["weight_decay"] = 0.0  # the optimizer's takes its place
    return pretext.build(config.task, backbone, **own)


def bn_groups(config: TrainConfig) -> int:
    """How many groups of --bn_group_size a replica computes at once."""
    parts = tf.distribute.get_strategy().num_replicas_in_sync * config.accelerators.accumulate_steps
    at_once = config.optimization.batch_size // parts
    return at_once // (config.network.bn_group_size or at_once)


def build_optimizer(
    config: Config, plan: Plan, weight_decay: float
) -> tf.keras.optimizers.Optimizer:
    """The optimizer with its schedules; `weight_decay` is its own only where it carries some."""
    o, steps = config.optimization, list(plan.decay_steps)
    rate = optim.schedule(
        o.schedule,
        plan.peak,
        plan.total_steps,
        plan.warmup_steps,
        steps,
        o.decay_factor,
        plan.start,
        plan.end,
    )
    decay = weight_decay if optim.own_decay(o.optimizer) else 0.0  # else the loss has it
    if optim.own_decay(o.optimizer) and o.final_weight_decay is not None:
        decay = optim.schedule("cosine", decay, plan.total_steps, end=o.final_weight_decay)
    return optim.build(o.optimizer, rate, weight_decay=decay, **config.optimizer_settings)


def said(plan: Plan, optimization: Optimization) -> str:
    """Length and rates, for people to read."""
    epochs = plan.total_steps / plan.epoch_steps
    return (
        f"{plan.total_steps} steps of {optimization.batch_size} images ({epochs:.1f} epochs), "
        f"{optimization.optimizer}, "
        f"peak rate {plan.peak:.3g}, {optimization.schedule}"
    )


def set_up(model: Pretext, config: Config, plan: Plan, weight_decay: float) -> None:
    """Compile the model and create all variables; call it in the strategy's scope."""
    accelerators = config.accelerators
    model.compile(
        optimizer=build_optimizer(config, plan, weight_decay),
        accumulate_steps=accelerators.accumulate_steps,
        jit_compile=accelerators.jit_compile,
        steps_per_execution=accelerators.steps_per_execution,
    )
    model.batch_size = config.optimization.batch_size
    model.epoch_steps, model.total_steps = plan.epoch_steps, plan.total_steps
    model.prepare()
