"""Pretrain an encoder: images in, checkpoints out; `tfssl-export` publishes the result.

  tfssl-train --dataset=folder:photos --workdir=runs/photos              rotation prediction with a ResNet-50, 35 epochs
  tfssl-train --dataset=folder:photos --dry_run                          what would be done, on which images
  tfssl-train --flagfile=tfssl:glyphs/rotation.flags --workdir=runs/try  an installed recipe; flags after it override it

The same command again resumes a run that was stopped, or killed; the result is the same.
"""

import math

from absl import flags

from tfssl import pretext
from tfssl.config import bounds, data_flags
from tfssl.errors import UserError, check_choice
from tfssl.runtime import cli

FLAGS = flags.FLAGS
TASK_FLAGS = pretext.task_flags()
NOT_STORED = ("extend_schedule", "dry_run", "steal_lock", "accept_changed_data")


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
    flags.DEFINE_string("optimizer", "sgd", "sgd (with momentum; 2019 study), nesterov, adam, lars (as in SimCLR), lars_byol, larc (as in "
        "SwAV), or lamb (tensorflow-addons, Python < 3.12).")
    flags.DEFINE_float("momentum", 0.9, "Share of the last step that the next one keeps (2019 study: 0.9); beta_1 of adam and lamb.")
    flags.DEFINE_float("learning_rate", 0.1, "Peak rate at a batch of --lr_scaling images (2019 study: 0.1).")
    flags.DEFINE_float("lr_scaling", 256, "Peak rate = learning_rate * batch_size / this (2019 study: 256); 0: unscaled.")
    flags.DEFINE_string("schedule", "piecewise", "piecewise (2019 study), cosine or constant; each after a linear warm-up.")
    flags.DEFINE_list("decay_epochs", ["15", "25"], "piecewise: --decay_factor applies after these (2019 study: 15,25).")
    flags.DEFINE_float("decay_factor", 0.1, "piecewise: see --decay_epochs (2019 study: 0.1).")
    flags.DEFINE_float("warmup_epochs", 5.0, "The rate rises linearly from 0 over these epochs (2019 study: 5).")
    flags.DEFINE_integer("seed", 0, "Of initial weights, order and augmentation: the same seed, the same run.")


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


def main(_):
    values = resolve_flags()
    from tfssl.training.build import build_model, set_up
    from tfssl.training.run import know_data, train
    from tfssl.training.workdir import check_workdir, choose_precision

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


def resolve_flags():
    """{flag: value} of the whole run, the task's own settings resolved; contradictions are refused here, before any work."""
    task = FLAGS.task
    TASK_FLAGS.check(task, {n: FLAGS[n].value for n in TASK_FLAGS.flags})
    names = [n for heading in cli._SECTIONS.values() for n in heading if n not in NOT_STORED]
    values = {n: FLAGS[n].value for n in names if n not in TASK_FLAGS.flags}
    own = TASK_FLAGS.defaults(task)
    values |= {n: default if FLAGS[n].value is None else FLAGS[n].value for n, default in own.items()}
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


def check_flags(values):
    """Refuse contradictions among {flag: value}, and make --decay_epochs numbers."""
    from tfssl import optim
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
    if values.get("decay") == "all" and values["optimizer"] in optim.OWN_DECAY and values["optimizer"] != "larc":
        raise UserError(
            f"--decay=all: --optimizer={values['optimizer']} decays kernels alone; leave --decay out, or take larc, which decays all"
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


class Plan:
    """Lengths in steps: what epochs and batch size mean for a data set of `images`."""

    def __init__(self, values, images):
        self.values, self.images = values, images
        self.epoch_steps = images / values["batch_size"]
        self.total_steps = values["train_steps"] or math.ceil(values["epochs"] * self.epoch_steps)
        self.peak = values["learning_rate"] * (
            values["batch_size"] / values["lr_scaling"] if values["lr_scaling"] else 1.0
        )

    def learning_rate(self):
        from tfssl import optim

        steps = [e * self.epoch_steps for e in self.values["decay_epochs"]]
        warmup = self.values["warmup_epochs"] * self.epoch_steps
        return optim.schedule(
            self.values["schedule"], self.peak, self.total_steps, warmup, steps, self.values["decay_factor"]
        )

    def summary(self, model, source):
        v = self.values
        million = sum(math.prod(w.shape) for w in model.trainable_variables) / 1e6
        return (
            f"{v['task']}: {v['backbone']} x{v['width_multiplier']:g} ({million:.2f} M parameters), "
            f"{source.num_examples} images of {source.spec}, {self.total_steps} steps of {v['batch_size']} images "
            f"({self.total_steps / self.epoch_steps:.1f} epochs), {v['optimizer']}, peak rate {self.peak:.3g}, {v['schedule']}"
        )


def run():
    """Entry point of `tfssl-train`."""
    define_flags()
    cli.run(main, "tfssl-train")


if __name__ == "__main__":
    run()
