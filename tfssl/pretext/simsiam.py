"""SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv 2011.10566)."""

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.losses import contrastive
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views


class SimSiam(Views):
    """One view's prediction is to have the direction of the other view's projection, through which no gradient flows. Nothing else keeps
    all projections from becoming one.

    Args:
      augmentation: policy of the views (the paper: MoCo v2's).
      projection_layers: layers of the projection (the paper: 3; for CIFAR-10 2).
      projection_size: outputs of each of them (the paper: 2048).
      prediction_size: hidden units of the prediction (the paper: 512).
      fixed_prediction_rate: the predictor trains at the peak learning rate throughout, as the paper's does. It needs sgd or nesterov, for
        it is a factor on the predictor's gradients, which other optimizers normalize away.
    """

    task = "simsiam"

    def __init__(
        self,
        backbone,
        augmentation="moco_v2",
        projection_layers=3,
        projection_size=2048,
        prediction_size=512,
        fixed_prediction_rate=True,
        **common,
    ):
        super().__init__(backbone, augmentation=augmentation, **common)
        sizes = [projection_size] * projection_layers
        self.projection = MLP("projection", sizes, bias=False, norm=self.head_norm, last_norm="nothing")
        self.prediction = MLP("prediction", [prediction_size, projection_size], bias=(False, True), norm=self.head_norm)
        self.fixed_prediction_rate = fixed_prediction_rate

    def call(self, batch, training=False):
        return self.embed_each(batch, {"z": self.projection, "p": self.prediction}, training)  # Nx2xE both

    def contrast(self, batch, outputs):
        z, p = outputs["z"], outputs["p"]
        distance = contrastive.cosine_distance(p[:, 0], z[:, 1]) + contrastive.cosine_distance(p[:, 1], z[:, 0])
        return distance / 4 - 1, {}  # -cos, from -1 to 1

    def compile(self, *args, **keras):
        super().compile(*args, **keras)
        if self.fixed_prediction_rate and not isinstance(self._plain_optimizer, tf.keras.optimizers.SGD):
            name = type(self._plain_optimizer).__name__
            raise UserError(
                f"--fixed_prediction_rate (the default) holds with --optimizer=sgd or nesterov only, not with {name}: take one of them, or "
                "--nofixed_prediction_rate"
            )

    @property
    def _plain_optimizer(self):
        return getattr(self.optimizer, "inner_optimizer", self.optimizer)  # float16 wraps it in loss scaling

    def adjust(self, gradients):
        schedule = getattr(self._plain_optimizer, "_learning_rate", None)
        if not self.fixed_prediction_rate or not hasattr(schedule, "peak"):
            return gradients
        # These optimizers multiply a gradient by the rate before anything else, so a factor on it is one on the rate.
        factor = tf.math.divide_no_nan(schedule.peak, schedule(self.optimizer.iterations))
        mine = {id(variable) for variable in self.prediction.trainable_variables}
        pairs = zip(gradients, self.trainable_variables)  # noqa: B905 (Python 3.9)
        return [g * tf.cast(factor, g.dtype) if id(v) in mine else g for g, v in pairs]

    def chance(self):
        return {**super().chance(), "loss": 0.0}
