"""Pretrain an encoder: images in, checkpoints out; `tfssl-export` publishes the result.

  tfssl-train --dataset=folder:photos --workdir=runs/photos              rotation prediction with a ResNet-50, 35 epochs
  tfssl-train --dataset=folder:photos --dry_run                          what would be done, on which images
  tfssl-train --flagfile=tfssl:glyphs/rotation.flags --workdir=runs/try  an installed recipe; flags after it override it

The same command again resumes a run that was stopped, or killed; the result is the same.
"""

import math
import os
from typing import Any

from absl import flags, logging

from tfssl import optim, pretext
from tfssl.config import bounds, data_flags, flagfile
from tfssl.config.generated import Generated, as_text
from tfssl.errors import UserError, check_choice
from tfssl.runtime import cli

FLAGS = flags.FLAGS
TASK_FLAGS = Generated("task", {name: pretext.TASKS.source(name) for name in pretext.NAMES})
OPTIMIZER_FLAGS = Generated("optimizer", {name: optim.OPTIMIZERS.source(name) for name in optim.NAMES})


# fmt: off
@cli.section("Data")
def define_data():
    flags.DEFINE_string("dataset", "glyphs", "tfds:NAME[/CONFIG], folder:PATH, tfrecord:GLOB, or glyphs, the embedded letters.")
    flags.DEFINE_string("data_dir", None, "Where TensorFlow Datasets are, and archives are unpacked. Default: their own places.")
    flags.DEFINE_string("train_split", "train", "Images to train on, in TFDS's grammar: train, train[:90%], train+validation.")
    flags.DEFINE_string("val_split", "", "Images to validate on; none if empty. 2019 study: the last 40 of 1024 train shards.")
    flags.DEFINE_integer("train_subset", 0, "Train on so many images, drawn by --subset_seed; smaller ones lie within larger ones. 0: all.")
    flags.DEFINE_integer("subset_seed", 0, "Of the choice of --train_subset.")
    flags.DEFINE_integer("label_offset", 0, "tfrecord: subtracted from the labels; 1 for ImageNet's records, whose labels are 1 to 1000.")
    data_flags.define_record_keys()


@cli.section("Task and network")
def define_network():
    flags.DEFINE_enum("task", "rotation", pretext.NAMES, "What the network learns to predict.")
    flags.DEFINE_string("backbone", "resnet50_v2", "resnet{18,34,50,101,152,200}_v{1,2}, revnet{18,34,50,101,152}, vgg{11,13,16,19}, "
        "alexnet or alexnet_lrn. "
        "2019 study: resnet50_v1, resnet50_v2, revnet50, vgg19.")
    flags.DEFINE_float("width_multiplier", 1.0, "Times all channels; 1 is the standard network (2019 study: 4x; its 16x is 4.0).")
    flags.DEFINE_string("stem", "imagenet", "imagenet (7x7 stride 2, pooling), small (3x3, for 32 pixels), patch (7x7 stride 1), "
        "stride16 (imagenet's, but no stride in the last block). vgg: small leaves out the first pooling.")
    flags.DEFINE_float("bn_momentum", 0.99, "Share of the moving statistics kept per step (2019 study: 0.99); at step t at most "
        "(1 + t) / (10 + t).")
    flags.DEFINE_float("bn_epsilon", 1e-3, "Batch normalisation: added to the variance (2019 study: 0.001).")
    flags.DEFINE_boolean("last_relu", True, "A ReLU before the mean over the map; --nolast_relu: the 2019 study's (-) networks.")
    flags.DEFINE_boolean("skip_connections", True, "ResNets with the connections that make them ResNets (2019 study: its ablation).")
    flags.DEFINE_integer("representation_size", 0, "Outputs of a linear layer after the mean (2019 study: Figure 6).")
    flags.DEFINE_float("sk_ratio", 0.0, "Above 0: SimCLR v2's selective kernels and stem, in resnet{50..200}_v1 (0.0625).")
    flags.DEFINE_boolean("zero_init_residual", False, "Residual units of v1 networks begin as their shortcuts (SimCLR, SimSiam).")
    flags.DEFINE_string("initializer", "glorot_uniform", "Of the backbone's kernels: glorot_uniform (2019 study), he_fan_out "
        "(torchvision's ResNets), lecun_normal (SimCLR), torch_uniform (PyTorch's default).")
    flags.DEFINE_boolean("sync_batch_norm", False, "Batch statistics of all replicas together, not of each by itself.")
    flags.DEFINE_integer("bn_group_size", 0, "Images whose batch statistics are one; 0: all of a replica's.")
    flags.DEFINE_string("init_module", None, "Start from this Hub module's weights, where names and shapes match.")


@cli.section("Settings of the task")
def define_settings_of_the_task():
    TASK_FLAGS.define()


@cli.section("Optimization")
def define_optimization():
    flags.DEFINE_integer("batch_size", 256, "Images per step over all replicas, before rotations (2019 study: 1024).")
    flags.DEFINE_float("epochs", 35.0, "Passes over the images (2019 study: 35).")
    flags.DEFINE_integer("train_steps", 0, "Length in steps; overrides --epochs where it is not 0.")
    flags.DEFINE_string("optimizer", "sgd", f"{', '.join(optim.NAMES)} (2019 study: sgd; SimCLR: lars; BYOL: lars_byol; SwAV: larc).")
    OPTIMIZER_FLAGS.define()
    flags.DEFINE_float("learning_rate", 0.1, "Peak rate at a batch of --lr_scaling images (2019 study: 0.1).")
    flags.DEFINE_float("lr_scaling", 256, "Peak rate = learning_rate * batch_size / this (2019 study: 256); 0: unscaled.")
    flags.DEFINE_string("schedule", "piecewise", "piecewise (2019 study), cosine or constant; each after a linear warm-up.")
    flags.DEFINE_list("decay_epochs", ["15", "25"], "piecewise: --decay_factor applies after these (2019 study: 15,25).")
    flags.DEFINE_float("decay_factor", 0.1, "piecewise: see --decay_epochs (2019 study: 0.1).")
    flags.DEFINE_float("warmup_epochs", 5.0, "The rate rises linearly from --initial_rate over these epochs (2019 study: 5).")
    define_ends()
    flags.DEFINE_integer("seed", 0, "Of initial weights, order and augmentation: the same seed, the same run.")


def define_ends() -> None:
    """Where schedules begin and end."""
    flags.DEFINE_float("initial_rate", 0.0, "Learning rate at step 0, where there is a warm-up; scaled as --learning_rate is.")
    flags.DEFINE_float("final_rate", 0.0, "cosine: learning rate at the end; scaled as --learning_rate is (Barlow Twins: 0.001 times "
        "the peak).")
    flags.DEFINE_float("final_weight_decay", None, "Weight decay at the end of the run, along half a cosine from --weight_decay (DINO: "
        "0.4 from 0.04); with optimizers that carry it themselves, such as adamw. Default: it stays.")


@cli.section("Accelerators")
def define_accelerators(own_graph=True):
    """`own_graph`: whether the network is built here, and can be in another way; a Hub module's cannot."""
    flags.DEFINE_string("strategy", "auto", "auto (all GPUs, else one device), default (one device), mirrored, multi_worker, tpu.")
    flags.DEFINE_integer("host_timeout", 600, "multi_worker: seconds to wait for the other hosts, which are named meanwhile.")
    flags.DEFINE_string("tpu", "", "Name or address of the TPU; local on a TPU VM.")
    flags.DEFINE_string("tpu_zone", None, "Google Cloud zone of a TPU given by name. Default: this machine's.")
    flags.DEFINE_string("gcp_project", None, "Google Cloud project of a TPU given by name. Default: this machine's.")
    if own_graph:
        flags.DEFINE_string("precision", "float32", "float32, mixed_bfloat16 (TPUs, new GPUs and CPUs), mixed_float16 (GPUs; with loss "
            "scaling), or auto: mixed_bfloat16 where the device computes in it, else float32; a resumed run keeps its own.")
    flags.DEFINE_boolean("jit_compile", False, "Compile the step with XLA. A TPU always does; on CPUs it is slower.")
    flags.DEFINE_integer("steps_per_execution", 1, "Steps per call from Python; 100 helps TPUs and small networks.")
    flags.DEFINE_integer("accumulate_steps", 1, "Compute a batch in so many parts, one after the other: less memory.")
    if own_graph:
        flags.DEFINE_integer("loss_batch_size", 0, "Images that one loss compares and one step learns from, computed in parts of "
            "--batch_size: more than fit in memory (by gradient caching; 0: --batch_size).")
        flags.DEFINE_boolean("rematerialize", False, "Compute activations again in the backward pass: less memory, a third more "
            "computation.")
    flags.DEFINE_string("data_service", "", "grpc://HOST:PORT of a tf.data service whose workers prepare the images (see docs).")
    flags.DEFINE_float("data_service_timeout", 60.0, "Seconds that the service may take to answer, before a run begins.")
    flags.DEFINE_boolean("deterministic", False, "Bit-identical results from run to run on the same kind of processor or GPU, with as many "
        "threads (by default, cores that the process may use), and the same oneDNN setting, TensorFlow and tfssl; elsewhere a resumed run "
        "says so. Costs speed on GPUs.")


@cli.section("The run")
def define_run():
    flags.DEFINE_string("workdir", None, "Folder of the run: flags, checkpoints, logs. Required, except with --dry_run.")
    flags.DEFINE_integer("checkpoint_steps", 1000, "Steps between checkpoints; a killed run loses at most these.")
    flags.DEFINE_integer("keep_checkpoints", 3, "How many of the newest checkpoints to keep.")
    flags.DEFINE_integer("keep_every", 0, "Keep each checkpoint whose step is a multiple of this for ever; 0: none.")
    flags.DEFINE_integer("validation_steps", 0, "Between validations, a multiple of --checkpoint_steps; 0: those.")
    flags.DEFINE_integer("knn_probe", 0, "At each validation, accuracy of nearest neighbours among so many labelled images; 0: none.")
    flags.DEFINE_integer("log_steps", 100, "Steps between lines of the log.")
    flags.DEFINE_boolean("extend_schedule", False, "Permit a resumed cosine run to change its length: its rate then jumps.")
    flags.DEFINE_boolean("accept_changed_data", False, "Go on with other data than the run in --workdir began with; provenance.json tells.")
    flags.DEFINE_boolean("steal_lock", False, "Take over a --workdir that another process uses; it ends at its next checkpoint.")
    flags.DEFINE_boolean("dry_run", False, "Read all images, show the first batch, estimate the time; train nothing.")
# fmt: on


def define_flags():
    """In the order of `--help`."""
    for define in (define_data, define_network, define_settings_of_the_task, define_optimization, define_accelerators):
        define()
    define_run()


# What a resumed run may change: where and how fast it computes, how long, and what it tells of itself.
FREE = (
    "workdir", "data_dir", "data_service", "epochs", "train_steps", "strategy", "host_timeout", "tpu", "tpu_zone", "gcp_project",
    "jit_compile", "rematerialize", "steps_per_execution", "checkpoint_steps", "keep_checkpoints", "keep_every", "val_split",
    "validation_steps", "knn_probe", "log_steps", "data_service_timeout", "skip_damaged_shards",
)  # fmt: skip
NOT_STORED = ("extend_schedule", "dry_run", "steal_lock", "accept_changed_data")
# What the hosts of a run may have each for itself: where things are.
OF_HOST = (
    "workdir",
    "data_dir",
    "dataset",
    "data_service",
    "host_timeout",
    "init_module",
    "module",
    "teacher",
    "train_list",
)


def main(_):
    values = resolve_flags()
    choose_precision(values)
    if not FLAGS.dry_run:
        check_workdir(values)
    from tfssl import data
    from tfssl.data import overlap, service
    from tfssl.data.sources.subset import nested
    from tfssl.runtime import strategy as strategies

    strategies.start(values["seed"], values["precision"], values["deterministic"])
    strategy = strategies.build(*(values[n] for n in ("strategy", "tpu", "tpu_zone", "gcp_project", "host_timeout")))
    strategies.check_batch(strategy, values["batch_size"], values["accumulate_steps"], values["bn_group_size"])
    service.check(values["data_service"], values["data_service_timeout"])
    where = data_flags.where(values)
    source = data.open_source(values["dataset"], values["train_split"], **where)
    validation = data.open_source(values["dataset"], values["val_split"], **where) if values["val_split"] else None
    if (
        validation and "num_images" not in values
    ):  # where each training image is a class, there are no others to validate on
        overlap.check({"train": source, "val": validation})
    if values["train_subset"]:
        source = nested(source, values["train_subset"], values["subset_seed"])
    for name, found in {"num_classes": source.num_classes or 0, "num_images": source.num_examples}.items():
        if values.get(name) == 0:
            values[name] = found
    provenance = None if FLAGS.dry_run else know_data(values, strategy, source, validation)
    if not FLAGS.dry_run:
        pretext.task_class(values["task"]).from_data(values, source, values["workdir"])
    plan = Plan(values, source.num_examples)
    with strategy.scope():
        model = build_model(values)
        set_up(model, values, plan)
        if values["init_module"]:
            from tfssl.training import initial_weights as init

            init.from_module(model.backbone, values["init_module"])
            model.start()
    if FLAGS.dry_run:
        from tfssl.training import dry_run

        dry_run.describe(model, strategy, source, validation, plan, values)
    else:
        following = f"tfssl-export --workdir={values['workdir']}"
        train(model, strategy, source, validation, plan, values, following, provenance)


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


def know_data(values, strategy, source, validation):
    """The `Provenance` of a run, once its data are known to be its own, and the same on all hosts."""
    from tfssl.data.sources import identity
    from tfssl.runtime import strategy as strategies
    from tfssl.training import callbacks
    from tfssl.training.provenance import Provenance

    provenance = Provenance(values["workdir"], source)
    if strategies.several_workers(strategy):
        facts = provenance.digests()
        here = f"{source.num_examples} images of {source.spec} ({source.split}), {facts['versions']}"
        strategies.compare_hosts(
            strategy, {"versions": facts.pop("versions")}, here
        )  # what flags there are depends on them
        facts |= {f"--{name}": as_text(value) for name, value in values.items() if name not in OF_HOST}
        facts["validation data"] = identity.text(identity.of(validation)) if validation else ""
        strategies.compare_hosts(strategy, facts, here)
    say = callbacks.say if strategies.is_chief(strategy) else lambda text: None
    provenance.check(FLAGS.accept_changed_data, values["deterministic"], say)
    return provenance


def train(model, strategy, source, validation, plan, values, following, provenance):
    """Restore, then fit to the end, while no other process uses the workdir. `following` is the command that comes next, for the user."""
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import locks

    run = model, strategy, source, validation, plan, values, following, provenance
    if not strategies.is_chief(strategy):
        return _train(*run)
    with locks.workdir_lock(values["workdir"], FLAGS.steal_lock) as check:
        _train(*run, check)


def _train(model, strategy, source, validation, plan, values, following, provenance, check=lambda: None):
    """Once over the whole checkpoint intervals, and once over the rest, where there is one. `check` refuses when the lock is lost."""
    from tfssl.runtime import preemption, watchdog
    from tfssl.runtime import strategy as strategies
    from tfssl.step import phases
    from tfssl.training import callbacks, checkpoints, summaries
    from tfssl.training.knn_probe import KnnProbe

    watchdog.WATCHDOG.start()
    chief = strategies.is_chief(strategy)
    say = callbacks.say if chief else lambda text: None
    images = [source] if validation is None else [source, validation]
    for note in dict.fromkeys(note for part in images for note in part.notes()):
        say(note)
    for part in images:
        part.probe()
    neighbours = values.get("knn_probe") if chief else 0  # fine-tuning has none
    probe = KnnProbe(model, source, validation, neighbours) if neighbours else None
    check_data(values)
    workdir = values["workdir"]
    folder, keep = os.path.join(workdir, "checkpoints"), (values["keep_checkpoints"], values["keep_every"])
    saver = checkpoints.Checkpoints(model, folder, *keep, writes=chief, guard=check)
    step = saver.restore(say)
    if chief:
        claim_workdir(values, source)
        provenance.write(step)
    if step >= plan.total_steps:
        say(f"finished: {workdir} is at step {step} of {plan.total_steps}; next: {following}")
        return
    say(f"resuming at step {step} of {plan.total_steps}" if step else plan.summary(model, source))
    log = callbacks.Log(
        model,
        workdir if chief else None,
        step,
        plan.total_steps,
        values["batch_size"],
        plan.epoch_steps,
        values["log_steps"],
        saver.last_good,
        probe,
        summaries.pictures(model, validation) if validation and chief else None,
        source.unreadable,
    )
    if step == 0 and chief:
        summaries.write_start(log.writer("train"), model, source, values)
    stop = preemption.Preemption(lambda: saver.save(log.step), lambda: log.step, strategy)
    between, context = (
        model.phases(),
        phases.Context(
            strategy,
            lambda: strategies.evaluation_data(strategy, model, source, values["batch_size"]),
            source.places,
            values["seed"],
            model.to_float,
        ),
    )
    while step < plan.total_steps:
        report = phases.run_due(between, context, step)
        if report:
            say(f"between steps, at step {step}  " + "  ".join(f"{name} {value:.4g}" for name, value in report.items()))
        # A run that was told to stop goes on at any step: first to the end of its checkpoint interval, then over all whole ones.
        until = phases.next_due(between, step, plan.total_steps)
        interval = min(values["checkpoint_steps"] - step % values["checkpoint_steps"], until - step)
        intervals = (until - step) // interval if interval == values["checkpoint_steps"] else 1
        batches = strategies.training_data(
            strategy,
            model,
            source,
            values["batch_size"],
            values["seed"],
            step,
            interval * intervals,
            values["data_service"],
        )
        if validation is None:
            validating = {}
        else:
            ends = [step + interval * (i + 1) for i in range(intervals)]
            every = values["validation_steps"] or values["checkpoint_steps"]
            due = [i for i, end in enumerate(ends, 1) if end % every == 0 or end == plan.total_steps]
            pass_ = strategies.evaluation_data(strategy, model, validation, values["batch_size"])
            steps = math.ceil(validation.num_examples / values["batch_size"])
            validating = {"validation_data": pass_, "validation_freq": due, "validation_steps": steps}
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


def resolve_flags():
    """{flag: value} of the whole run, the task's own settings resolved; contradictions are refused here, before any work."""
    names = [n for heading in cli._SECTIONS.values() for n in heading if n not in NOT_STORED]
    values = {n: FLAGS[n].value for n in names if n not in TASK_FLAGS.flags and n not in OPTIMIZER_FLAGS.flags}
    values |= settings_of(TASK_FLAGS, FLAGS.task) | settings_of(OPTIMIZER_FLAGS, FLAGS.optimizer)
    check_flags(values)
    if values["loss_batch_size"]:
        parts, rest = divmod(values["loss_batch_size"], values["batch_size"])
        if rest or values["accumulate_steps"] > 1:
            raise UserError(
                f"--loss_batch_size={values['loss_batch_size']} must be a multiple of --batch_size={values['batch_size']}, and stands "
                "in for --accumulate_steps"
            )
        values |= {"batch_size": values["loss_batch_size"], "accumulate_steps": parts, "loss_batch_size": 0}
    if values["sync_batch_norm"] and values["bn_group_size"]:
        raise UserError("--sync_batch_norm and --bn_group_size contradict each other: choose one")
    return values


def settings_of(generated: Generated, name: str) -> dict[str, Any]:
    """{flag: value} of the class's own settings; those of others are refused."""
    check_choice(f"--{generated.kind}", name, tuple(generated.settings))
    generated.check(name, {n: FLAGS[n].value for n in generated.flags})
    own = generated.defaults(name)
    return {n: default if FLAGS[n].value is None else FLAGS[n].value for n, default in own.items()}


def check_flags(values):
    """Refuse contradictions among {flag: value}, and make --decay_epochs numbers."""
    from tfssl.runtime import strategy as strategies
    from tfssl.storage import files

    choices = {
        "optimizer": optim.NAMES,
        "schedule": optim.SCHEDULES,
        "strategy": strategies.NAMES,
        "precision": ("auto", *strategies.PRECISIONS),
    }
    for name in choices.keys() & values.keys():
        check_choice(f"--{name}", values[name], choices[name])
    values["decay_epochs"] = bounds.numbers("decay_epochs", values["decay_epochs"])
    own_decay = optim.own_decay(values["optimizer"])
    if values.get("decay") == "all" and own_decay == ("kernels",):
        raise UserError(
            f"--decay=all: --optimizer={values['optimizer']} decays kernels alone; leave --decay out, or take another"
        )
    if values.get("final_weight_decay") is not None and not own_decay:
        raise UserError(
            f"--final_weight_decay={values['final_weight_decay']:g} needs an optimizer that carries weight decay itself, and "
            f"--optimizer={values['optimizer']} leaves it to the loss: choose adamw, lamb or a form of LARS"
        )
    if values.get("final_rate") and values["schedule"] != "cosine":
        raise UserError(
            f"--final_rate={values['final_rate']:g} is where a cosine ends, and --schedule={values['schedule']} has none: leave one out"
        )
    if values.get("initial_rate") and not values["warmup_epochs"]:
        raise UserError(
            f"--initial_rate={values['initial_rate']:g} is where warm-up begins: give --warmup_epochs, or leave it out"
        )
    if values["data_service"] and values["deterministic"]:
        raise UserError(
            "--data_service delivers images in an order of its own: it contradicts --deterministic; choose one"
        )
    if not values["train_steps"] and not values["epochs"]:
        raise UserError(
            f"--epochs={values['epochs']:g}: a run has a length above 0; --dry_run tells what would be done"
        )
    if not values["workdir"] and not FLAGS.dry_run:
        raise UserError("--workdir is missing: name a folder for the run's checkpoints and logs (or try --dry_run)")
    if FLAGS.dry_run:
        files.check_writable(".", "--dry_run writes a picture into the current folder, which")
    if values["knn_probe"] and not values["val_split"]:
        raise UserError(f"--knn_probe={values['knn_probe']} needs images to measure on: give --val_split")
    if values["validation_steps"] % values["checkpoint_steps"]:
        raise UserError(
            f"--validation_steps={values['validation_steps']} is not a multiple of --checkpoint_steps={values['checkpoint_steps']}: "
            "validation runs between checkpoint intervals"
        )


def choose_precision(values):
    """Replace the precision auto by the run's own, or the device's for a new run; warn of one that this processor emulates."""
    import tensorflow as tf

    from tfssl.runtime import strategy as strategies
    from tfssl.training.callbacks import say

    if values["precision"] == "auto":
        path = os.path.join(values["workdir"] or "", "flags.flags")
        if values["workdir"] and tf.io.gfile.exists(path):
            values["precision"], why = flagfile.read(path).get("precision", "float32"), f"as in {path}"
        else:
            values["precision"], why = strategies.auto_precision(values["strategy"])
        say(f"--precision=auto: {values['precision']} ({why})")
    costly = strategies.emulated(values["precision"], values["strategy"])
    if costly:
        logging.warning("%s", costly)


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
    own = TASK_FLAGS.arguments(task, values)
    own |= pretext.task_class(task).from_data(own, None, values["workdir"])
    if optim.own_decay(values["optimizer"]):
        own["weight_decay"] = 0.0  # the optimizer's takes its place
    return pretext.build(task, backbone, **own)


def bn_groups(values):
    """How many groups of --bn_group_size a replica computes at once."""
    import tensorflow as tf

    at_once = values["batch_size"] // (tf.distribute.get_strategy().num_replicas_in_sync * values["accumulate_steps"])
    return at_once // (values["bn_group_size"] or at_once)


def build_optimizer(values: dict[str, Any], plan: "Plan") -> Any:
    """The optimizer from {flag: value}; call it in the strategy's scope."""
    name, decay, end = (values[n] for n in ("optimizer", "weight_decay", "final_weight_decay"))
    if not optim.own_decay(name):
        decay = 0.0  # the loss has it
    elif end is not None:
        decay = optim.schedule("cosine", decay, plan.total_steps, end=end)
    return optim.build(name, plan.learning_rate(), weight_decay=decay, **OPTIMIZER_FLAGS.arguments(name, values))


class Plan:
    """Lengths in steps: what epochs and batch size mean for a data set of `images`."""

    def __init__(self, values, images):
        self.values, self.images = values, images
        self.epoch_steps = images / values["batch_size"]
        self.total_steps = values["train_steps"] or math.ceil(values["epochs"] * self.epoch_steps)
        scale = values["batch_size"] / values["lr_scaling"] if values["lr_scaling"] else 1.0
        self.start, self.peak, self.end = (scale * values[n] for n in ("initial_rate", "learning_rate", "final_rate"))

    def learning_rate(self):
        steps = [e * self.epoch_steps for e in self.values["decay_epochs"]]
        warmup = self.values["warmup_epochs"] * self.epoch_steps
        form = self.values["schedule"], self.peak, self.total_steps, warmup, steps, self.values["decay_factor"]
        return optim.schedule(*form, self.start, self.end)

    def summary(self, model, source):
        v = self.values
        million = sum(math.prod(w.shape) for w in model.trainable_variables) / 1e6
        return (
            f"{v['task']}: {v['backbone']} x{v['width_multiplier']:g} ({million:.2f} M parameters), "
            f"{source.num_examples} images of {source.spec}, {self.total_steps} steps of {v['batch_size']} images "
            f"({self.total_steps / self.epoch_steps:.1f} epochs), {v['optimizer']}, peak rate {self.peak:.3g}, {v['schedule']}"
        )


def check_workdir(values, free=FREE):
    """Refuse a workdir that cannot be written or holds another run; `free`: flags that may differ."""
    import tensorflow as tf

    from tfssl.storage import files
    from tfssl.training import provenance

    if values["strategy"] != "multi_worker":  # of whose processes one writes, and says so itself
        files.check_writable(values["workdir"], "--workdir")
    path = os.path.join(values["workdir"], "flags.flags")
    if not tf.io.gfile.exists(path):
        if tf.io.gfile.isdir(os.path.join(values["workdir"], "checkpoints")):
            raise UserError(
                f"{values['workdir']!r} has checkpoints but no flags.flags that says whose they are: use another --workdir"
            )
        return
    # A flag that is younger than the run stands for what was done before there was a choice: its default.
    task = values.get("task")  # fine-tuning has none, nor settings of it
    own = OPTIMIZER_FLAGS.defaults(values["optimizer"]) | (TASK_FLAGS.defaults(task) if task else {})
    defaults = {n: own.get(n, FLAGS[n].default) for n in values}
    stored = {name: as_text(d) for name, d in defaults.items() if d is not None} | flagfile.read(path)
    found = {n: values[n] or stored.get(n) for n in ("num_classes", "num_images") if n in values}  # 0: the data set's
    values = {**values, **found}
    if provenance.known(values["workdir"]) or FLAGS.accept_changed_data:
        free = (*free, "dataset")  # what it holds is known, and compared when it is opened
    for name, old, new in flagfile.differences(stored, values, free):
        same = ", or if these are the same images elsewhere, --accept_changed_data" if name == "dataset" else ""
        raise UserError(
            f"{values['workdir']!r} holds another run: its --{name} is {old}, not {new}; use another --workdir, or go on with that run by "
            f"--flagfile={path}{same}"
        )
    lengths = [name for name, _, _ in flagfile.differences(stored, values) if name in ("epochs", "train_steps")]
    if lengths and values["schedule"] == "cosine" and not FLAGS.extend_schedule:
        raise UserError(
            f"--{lengths[0]} differs from the run's own, and its cosine schedule ends with it: "
            "--extend_schedule accepts the jump of the rate"
        )


def check_data(values):
    """Refuse data of another number of classes or images than the run in the workdir began with, where its network depends on it."""
    import tensorflow as tf

    path = os.path.join(values["workdir"], "flags.flags")
    stored = flagfile.read(path) if tf.io.gfile.exists(path) else {}
    for name in ("num_classes", "num_images"):
        if name in values and stored.get(name, str(values[name])) != str(values[name]):
            raise UserError(
                f"{values['workdir']!r} holds a run on data with --{name}={stored[name]}, and --dataset={values['dataset']} "
                f"({values['train_split']}) has {values[name]}: give it the data of that run, or use another --workdir"
            )


def claim_workdir(values, source):
    """Record the run in its workdir."""
    from tfssl.storage import files

    flagfile.write(os.path.join(values["workdir"], "flags.flags"), values)
    if source.class_names:
        files.write_file(os.path.join(values["workdir"], "classes.txt"), "\n".join(source.class_names) + "\n")


def run():
    """Entry point of `tfssl-train`."""
    define_flags()
    cli.run(main, "tfssl-train", "the same command goes on from the last checkpoint, or begins where there is none")


if __name__ == "__main__":
    run()
