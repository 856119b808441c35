"""Contradictions between settings, refused before any work."""

from tfssl import optim, pretext
from tfssl.config import schema
from tfssl.config.configs import Config, FinetuneConfig, TrainConfig
from tfssl.config.schema import Optimization
from tfssl.data.sources.base import Source
from tfssl.errors import UserError, check_choice
from tfssl.pretext.task import require_all
from tfssl.runtime import strategy as strategies
from tfssl.storage import files


def pretraining(config: TrainConfig) -> TrainConfig:
    """The config without contradictions: what --loss_batch_size stands for, the batch and its
    parts, are in its place.

    Raises:
      UserError: there are some.
    """
    check_choice("--precision", config.accelerators.precision, ("auto", *strategies.PRECISIONS))
    _optimization_and_run(config, config.task_settings.get("decay", "kernels"))
    batch, parts = config.optimization.batch_size, config.accelerators.accumulate_steps
    compared = config.accelerators.loss_batch_size
    if compared:
        if compared % batch or parts > 1:
            raise UserError(
                f"--loss_batch_size={compared} must be a multiple of --batch_size={batch}, and "
                "stands in for --accumulate_steps"
            )
        config = config.replace(
            batch_size=compared, accumulate_steps=compared // batch, loss_batch_size=0
        )
    if config.network.sync_batch_norm and config.network.bn_group_size:
        raise UserError("--sync_batch_norm and --bn_group_size contradict each other: choose one")
    return config


def neck(network: schema.Network) -> None:
    """Refuse the settings of a neck that there is not.

    Raises:
      UserError: it is so.
    """
    for name in ("neck_tower", "neck_width"):
        given = getattr(network, name)
        if not network.neck and given != getattr(schema.Network, name):
            raise UserError(f"--{name}={given} is a neck's, and there is none: give --neck=fpn")


def images(config: TrainConfig, *sources: Source) -> None:
    """Refuse images that lack what the task `needs`.

    Raises:
      UserError: it names what is missing, and who has it.
    """
    for source in sources:
        task = pretext.task_class(config.task)
        require_all(task, config.task_settings, source, f"--task={config.task}")


def finetuning(config: FinetuneConfig) -> FinetuneConfig:
    """The config without contradictions.

    Raises:
      UserError: there are some.
    """
    _optimization_and_run(config)
    classifier, labels = config.classifier, config.labels
    classifier.handle()  # refuses to be without
    if classifier.layer_decay != 1 and classifier.freeze:
        raise UserError(
            f"--layer_decay={classifier.layer_decay:g} and --freeze contradict each other: one is "
            "of the encoder's rates, and the other "
            "keeps it as it is"
        )
    _regularization(config)
    if labels.train_list and labels.train_labels != "all":
        raise UserError("--train_labels and --train_list contradict each other: choose one")
    return config


def _regularization(config: FinetuneConfig) -> None:
    r, batch = config.regularization, config.optimization.batch_size
    if r.drop_path and config.classifier.freeze:
        raise UserError(
            f"--drop_path={r.drop_path:g} and --freeze contradict each other: an encoder that does "
            "not learn skips nothing"
        )
    if (r.mixup or r.cutmix) and batch % 2:
        raise UserError(
            f"--mixup and --cutmix mix pairs of images, and --batch_size={batch} is odd: give an "
            "even number"
        )
    if r.mix_probability != schema.Regularization.mix_probability and not (r.mixup or r.cutmix):
        raise UserError(
            f"--mix_probability={r.mix_probability:g} is that of mixup or CutMix: give --mixup or "
            "--cutmix, or leave it out"
        )
    if r.mix_switch != schema.Regularization.mix_switch and not (r.mixup and r.cutmix):
        raise UserError(
            f"--mix_switch={r.mix_switch:g} chooses between mixup and CutMix: give both --mixup "
            "and --cutmix, or leave it out"
        )


def _optimization_and_run(config: Config, decay: str = "kernels") -> None:
    o, a, run = config.optimization, config.accelerators, config.run
    check_choice("--schedule", o.schedule, optim.SCHEDULES)
    check_choice("--strategy", a.strategy, strategies.NAMES)
    _decay_and_rates(o, decay)
    if a.data_service and a.deterministic:
        raise UserError(
            "--data_service delivers images in an order of its own: it contradicts "
            "--deterministic; choose one"
        )
    if not o.train_steps and not o.epochs:
        raise UserError(
            f"--epochs={o.epochs:g}: a run has a length above 0; --dry_run tells what would be done"
        )
    if run.dry_run:
        files.check_writable(".", "--dry_run writes a picture into the current folder, which")
    else:
        run.folder()  # refuses to be without
    if run.knn_probe and not config.data.val_split:
        raise UserError(f"--knn_probe={run.knn_probe} needs images to measure on: give --val_split")
    if run.validation_steps % run.checkpoint_steps:
        raise UserError(
            f"--validation_steps={run.validation_steps} is not a multiple of "
            f"--checkpoint_steps={run.checkpoint_steps}: "
            "validation runs between checkpoint intervals"
        )


def _decay_and_rates(o: Optimization, decay: str) -> None:
    own_decay = optim.own_decay(o.optimizer)
    if decay == "all" and own_decay == ("kernels",):
        raise UserError(
            f"--decay=all: --optimizer={o.optimizer} decays kernels alone; leave --decay out, or "
            "take another"
        )
    if o.final_weight_decay is not None and not own_decay:
        raise UserError(
            f"--final_weight_decay={o.final_weight_decay:g} needs an optimizer that carries weight "
            "decay itself, and "
            f"--optimizer={o.optimizer} leaves it to the loss: choose adamw, lamb or a form of LARS"
        )
    if o.final_rate and o.schedule != "cosine":
        raise UserError(
            f"--final_rate={o.final_rate:g} is where a cosine ends, and --schedule={o.schedule} "
            "has none: leave one out"
        )
    if o.initial_rate and not o.warmup_epochs:
        raise UserError(
            f"--initial_rate={o.initial_rate:g} is where warm-up begins: give --warmup_epochs, or "
            "leave it out"
        )
