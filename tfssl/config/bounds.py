"""What a numeric flag may be: one table for all binaries, to which classes add what they say of
their own settings. A value outside, or none at all (nan, inf), ends before any work in one line
that names the flag and its range."""

import math
from collections.abc import Sequence
from typing import Any

from absl import flags

from tfssl.errors import UserError

SEED = 2**32 - 1  # NumPy and Keras take 32 bits
COUNT = 2**31 - 1
RATE = 1e38  # of what float32 holds

_TABLE = (  # least, greatest, both allowed: names of flags, the same in every binary
    (0, SEED, "seed subset_seed permutation_seed"),
    (0, COUNT, "train_subset num_images samples_per_class negatives recalibrate step train_steps "
    "calibration_images keep_every validation_steps knn_probe "
    "freeze_prototypes_steps"),
    (1, COUNT, "checkpoint_steps keep_checkpoints log_steps images"),
    (1, 1_000_000, "steps_per_execution max_iterations knn_k sgd_epochs mlp_epochs dense_epochs "
    "few_shot_episodes low_shot_samples "
    "prototypes permutations_per_image clusters clusterings kmeans_iterations"),
    (1, COUNT, "background_neighbors window_stride min_gap"),
    (0, COUNT, "window max_gap"),
    (2, COUNT, "max_span"),
    (2, 1_000_000, "permutations"),
    (2, 1000, "light_bins"),
    (0, 1_000_000, "num_classes top few_shot_ways few_shot_queries"),
    (-1_000_000, 1_000_000, "label_offset"),
    (0, 2**24, "loss_batch_size bn_group_size queue_size"),
    (1, 2**20, "batch_size accumulate_steps sgd_batch_size mlp_batch_size dense_batch_size"),
    (0, 2**20, "split_batch_norm"),
    (2, 1024, "copies"),
    (0, 16_384, "image_size resize evaluation_resize"),  # pixels
    (1, 16_384, "scaled_size patch_size jigsaw_size jigsaw_patch_size small_size mask_unit"),
    (0, 2**16, "patch_embedding_size prediction_hidden"),  # units
    (1, 2**16, "projection_size projection_hidden prediction_size embedding_size head_units "
    "mlp_hidden detection_units pca_size neck_width fcos_neck_width"),
    (1, 2**16, "decoder_channels directions"),
    (1, 128, "decoder_depth decoder_heads"),
    (1, 16, "projection_layers"),
    (0, 2, "transform_layers"),
    (0, 16, "strong_ops randaugment"),
    (0, 10, "randaugment_magnitude"),
    (0, 100, "mixup cutmix"),
    (1e-3, 100, "threshold"),  # diagonals of a cell
    (0, 100, "sharpness"),
    (0, 16, "head_layers head_endpoints detection_layers neck_tower"),
    (0, 64, "small_crops"),
    (2, 128, "grid"),
    (1, 1000, "nearest sinkhorn_iterations"),
    (2, 1000, "svm_folds normals_clusters"),
    (0, 1000, "neighbors"),
    (-1, 65_535, "ignore_class"),
    (0, 65_535, "port"),
    (0, 1e6, "epochs warmup_epochs decay_epochs queue_start_epoch budget_minutes weight_decay"
    " final_weight_decay sgd_weight_decay"),
    (0, 1e6, "head_rate dense_trunk_rate margin bias_rate teacher_warmup_epochs"
    " instance_epochs"),
    (0, 1e6, "freeze_prototypes_epochs redundancy_weight invariance_weight variance_weight"),
    (0, 1e6, "covariance_weight instance_weight strong_weight"),
    (0, 1e9, "lr_scaling"),
    (0, RATE, "learning_rate initial_rate final_rate clipnorm global_clipnorm sgd_learning_rate "
    "mlp_learning_rate"),
    (1e-8, RATE, "dense_learning_rate"),
    (0, 1, "head_bn_momentum bank_momentum key_momentum target_momentum momentum decay_factor "
    "min_area small_area small_max_area "
    "jigsaw_area jigsaw_weight rebalance distill_weight max_translation max_offset max_hue"),
    (0, 1, "center_momentum sigreg_weight min_score"),
    (0.001, 0.999, "mask_ratio positives"),
    (0, 1, "random_erasing mix_switch mix_probability"),
    (0, 0.99, "mlp_dropout head_dropout drop_path label_smoothing"),
    (0, 0.99999, "beta_2"),
    (1e-30, 1, "optimizer_epsilon"),
    (0, 0.9, "val_fraction"),
    (1e-6, 1, "layer_decay"),
    (1e-6, 1e6, "temperature knn_temperature sinkhorn_epsilon loss_factor svm_positive_weight "
    "svm_intercept_scaling"),
    (1e-6, 1e6, "teacher_temperature warmup_teacher_temperature"),
    (1e-3, 1e6, "distill_temperature beta"),
    (2, COUNT, "unsupervised_images"),
    (0, 100, "strength"),
    (0, 128, "gray"),  # a probability, or a distance in ab: each task refuses what is not its own
    (1e-6, 1e6, "clustering_epochs"),
    (1e-3, 1000, "sigma"),
    (0, 1e3, "smooth sgd_init_std"),
    (1, 100, "max_scale max_contrast max_power max_factor"),
    (0, 180, "max_rotation"),  # degrees
    (1, 86_400, "data_service_timeout host_timeout"),  # seconds
)  # fmt: skip
OF_FLAG: dict[str, tuple[float, float]] = {
    name: (least, greatest) for least, greatest, names in _TABLE for name in names.split()
}


def apply(values: flags.FlagValues = flags.FLAGS) -> None:
    """From here on the numeric flags among absl's `FlagValues` take only what the table permits,
    Boolean ones say what they take, and lists have no empty items: a,,b is a,b."""
    for name in values:
        if type(values[name].parser) is flags.BooleanParser:  # not one that takes more words
            values[name].parser = _Boolean()
        elif type(values[name].parser) is flags.ListParser:
            values[name].parser = _List()
        elif name in OF_FLAG and values[name].flag_type() in ("int", "float"):
            values[name].parser = _Number(values[name].flag_type(), *OF_FLAG[name])


def numbers(name: str, texts: Sequence[str]) -> list[float]:
    """The numbers of a flag that is a list of them.

    Raises:
      UserError: one is none, or outside the flag's bounds.
    """
    parser = _Number("float", *OF_FLAG[name])
    try:
        return [parser.parse(text) for text in texts if text]
    except ValueError as e:
        given = ",".join(texts)
        raise UserError(f"--{name}={given}: {e} each, separated by commas") from e


class _Boolean(flags.BooleanParser):
    def parse(self, argument: Any) -> bool:
        try:
            return super().parse(argument)
        except (TypeError, ValueError) as e:
            raise ValueError("give true or false") from e


class _List(flags.ListParser):
    def parse(self, argument: Any) -> list[str]:
        return [item for item in super().parse(argument) if item]


class _Number(flags.ArgumentParser):
    def __init__(self, kind: str, least: float, greatest: float) -> None:
        self.kind, self.least, self.greatest = kind, least, greatest
        self.number = flags.IntegerParser() if kind == "int" else flags.FloatParser()
        kind = "an integer" if kind == "int" else "a number"
        self.syntactic_help = f"{kind} from {_spelled(least)} to {_spelled(greatest)}"

    def parse(self, argument: Any) -> float:
        try:
            value = self.number.convert(argument)
        except ValueError:
            value = math.nan
        if not self.least <= value <= self.greatest:
            raise ValueError(f"give {self.syntactic_help}")
        return value

    def flag_type(self) -> str:
        return self.kind


def _spelled(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"
