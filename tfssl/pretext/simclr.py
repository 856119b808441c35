"""SimCLR: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020 (arXiv 2002.05709)."""

import math

from tfssl.losses import contrastive
from tfssl.pretext.heads import MLP
from tfssl.pretext.views import Views


class SimCLR(Views):
    """Each view is to be told, by the direction of its projection, to be the other view of the same image, among all views of the batch.

    The projection is that of the published code: layers without biases, each with batch normalisation, the last one's without an offset.

    Args:
      temperature: what cosines are divided by (the paper: 0.1; 0.5 for CIFAR-10).
      projection_layers: layers of the projection (SimCLR: 2; SimCLR v2: 3).
      projection_size: outputs of its last layer; the others have as many as the features.
      normalization: the published code shows the network images in [0, 1] as they are.
    """

    task = "simclr"

    def __init__(
        self, backbone, temperature=0.1, projection_layers=2, projection_size=128, normalization="none", **common
    ):
        super().__init__(backbone, normalization=normalization, **common)
        self.temperature = temperature
        sizes = [0] * (projection_layers - 1) + [projection_size]
        self.projection = MLP("projection", sizes, bias=False, norm=self.head_norm, last_norm="scale", stddev=0.01)

    def call(self, batch, training=False):
        return self.embed(batch["image"][0], {"z": self.projection}, training)  # Nx2xE

    def contrast(self, batch, outputs):
        z = outputs["z"]
        found = contrastive.nt_xent(z[:, 0], z[:, 1], self.temperature, batch["weight"] > 0)
        return found.loss, {"accuracy": found.accuracy}

    def chance(self):
        others = 2 * self.batch_size - 1 if self.batch_size else math.nan
        return {**super().chance(), "loss": math.log(others), "accuracy": 1 / others}
