"""What a run is built of: the model and its optimizer."""

from tfssl import optim, pretext


def build_model(values):
    """The task's model from {flag: value}, untrained; call it in the strategy's scope."""
    from tfssl import backbones

    width, stem, momentum, epsilon = (values[n] for n in ("width_multiplier", "stem", "bn_momentum", "bn_epsilon"))
    backbone = backbones.build(
        values["backbone"],
        width,
        stem,
        bn_momentum=momentum,
        bn_epsilon=epsilon,
        last_relu=values["last_relu"],
        skip=values["skip_connections"],
        representation_size=values["representation_size"],
        sk_ratio=values["sk_ratio"],
        zero_init_residual=values["zero_init_residual"],
        initializer=values["initializer"],
        bn_sync=values["sync_batch_norm"],
        bn_groups=bn_groups(values),
        remat=values["rematerialize"],
    )
    task = values["task"]
    own = pretext.task_flags().arguments(task, values)
    own |= pretext.task_class(task).from_data(own, None, values["workdir"])
    if values["optimizer"] in optim.OWN_DECAY:
        own["weight_decay"] = 0.0  # the optimizer's takes its place
    return pretext.build(task, backbone, **own)


def bn_groups(values):
    """How many groups of --bn_group_size a replica computes at once."""
    import tensorflow as tf

    at_once = values["batch_size"] // (tf.distribute.get_strategy().num_replicas_in_sync * values["accumulate_steps"])
    return at_once // (values["bn_group_size"] or at_once)


def build_optimizer(values, plan):
    decay = values["weight_decay"] if values["optimizer"] in optim.OWN_DECAY else 0.0
    return optim.build(values["optimizer"], plan.learning_rate(), values["momentum"], decay)


def set_up(model, values, plan):
    """Compile the model and create all variables; call it in the strategy's scope."""
    model.compile(
        optimizer=build_optimizer(values, plan),
        accumulate_steps=values["accumulate_steps"],
        jit_compile=values["jit_compile"],
        steps_per_execution=values["steps_per_execution"],
    )
    model.batch_size = values["batch_size"]
    model.epoch_steps, model.total_steps = plan.epoch_steps, plan.total_steps
    model.prepare()
