"""A method of one's own, in a file outside the package: trained, published and measured like any
other.

    python examples/new_method.py                              # the embedded letters, one or two minutes
    python examples/new_method.py --dataset folder:photos --image_size 96 --stem imagenet

docs/add_a_method.md walks through it.
"""

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any, Optional

import tensorflow as tf
from scipy.special import hyp0f1

import tfssl
from tfssl.losses import replicas
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.views import Views


class AlignmentUniformity(Views):
    """Alignment and uniformity on the hypersphere: Wang and Isola, ICML 2020 (arXiv 2005.10242).

    The two views of an image are pulled together, and all embeddings are spread over the unit
    sphere by a Gaussian potential; there is no softmax over negatives.

    Args:
      projection_size: size of the embeddings, which are L2-normalized.
      uniformity_weight: weight of the uniformity loss; alignment has weight 1.
      potential: t of the potential exp(-t ||x - y||^2) (the paper: 2).
    """

    def __init__(
        self,
        backbone: tf.keras.Model,
        projection_size: int = 128,
        uniformity_weight: float = 1.0,
        potential: float = 2.0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, **common)
        self.uniformity_weight, self.potential = uniformity_weight, potential
        self.projection = MLP("projection", [0, projection_size], norm=self.head_norm)

    def call(self, batch: dict, training: bool = False) -> dict[str, tf.Tensor]:
        return self.embed(batch["image"][0], {"z": self.projection}, training)  # Nx2xE

    def contrast(self, batch: dict, outputs: dict) -> tuple[tf.Tensor, dict]:
        z = tf.math.l2_normalize(outputs["z"], -1)  # Nx2xE
        alignment = tf.reduce_sum(tf.square(z[:, 0] - z[:, 1]), -1)  # N
        valid = tf.cast(batch["weight"] > 0, z.dtype)  # N: an evaluation may end in empty rows
        uniformity = (self.uniformity(z[:, 0], valid) + self.uniformity(z[:, 1], valid)) / 2
        uniformity *= tf.ones_like(alignment)  # N: a loss for each image
        loss = alignment + self.uniformity_weight * uniformity
        return loss, {"alignment": alignment, "uniformity": uniformity}

    def uniformity(self, z: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
        """Logarithm of the mean potential over all pairs of embeddings z [N, E], those of the other
        replicas among them: a scalar."""
        z, valid = replicas.gather(z), replicas.gather(valid)  # MxE, M
        squared = 2 - 2 * tf.matmul(z, z, transpose_b=True)  # MxM
        pairs = valid[:, None] * valid[None, :] * (1 - tf.eye(z.shape[0], dtype=z.dtype))
        potential = tf.reduce_sum(pairs * tf.exp(-self.potential * squared))
        mean = potential / tf.maximum(tf.reduce_sum(pairs), 1)
        return tf.math.log(tf.maximum(mean, 1e-30))

    def chance(self) -> dict[str, float]:
        """Both terms for independent embeddings, uniform on the sphere:
        E exp(2 t cos) = 0F1(; E / 2; t^2)."""
        t, size = self.potential, self.projection.sizes[-1]
        uniformity = -2 * t + float(tf.math.log(hyp0f1(size / 2, t**2)))
        loss = 2 + self.uniformity_weight * uniformity
        return {**super().chance(), "loss": loss, "alignment": 2.0, "uniformity": uniformity}


def measure(task: tf.keras.Model, folder: str, dataset: str, splits: Sequence[str]) -> dict:
    """Publish the encoder, and classify by nearest neighbors: the result of the endpoint that is
    best on held-out training images."""
    module = tfssl.export.save(task, folder)
    train, test = (
        tfssl.downstream.extract(module, tfssl.open_source(dataset, split)) for split in splits
    )
    return max(tfssl.downstream.run("knn", train, test), key=lambda result: result["val_value"])


def main(argv: Optional[Sequence[str]] = None) -> dict[str, dict]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--dataset",
        default="glyphs",
        help="labeled images, to measure with; training ignores the labels",
    )
    parser.add_argument("--train_split", default="train")
    parser.add_argument("--test_split", default="test")
    parser.add_argument("--image_size", type=int, default=24)
    parser.add_argument(
        "--min_area",
        type=float,
        default=0.5,
        help="smallest area of a crop: letters are small already",
    )
    parser.add_argument(
        "--stem",
        default="small",
        help="small for images of about 32 pixels, imagenet for larger ones",
    )
    parser.add_argument("--width", type=float, default=0.125, help="times ResNet-18's channels")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=300)
    args = parser.parse_args(argv)

    backbone = tfssl.backbones.build("resnet18_v2", args.width, args.stem, bn_momentum=0.9)
    settings = {"image_size": args.image_size, "augmentation": "cifar", "min_area": args.min_area}
    task = tfssl.pretext.build("new_method:AlignmentUniformity", backbone, **settings)
    rate = tf.keras.optimizers.schedules.CosineDecay(0.12, args.steps)
    task.compile(optimizer=tf.keras.optimizers.SGD(rate, momentum=0.9))

    splits, results = (args.train_split, args.test_split), {}
    with tempfile.TemporaryDirectory() as folder:
        results["untrained"] = measure(task, f"{folder}/untrained", args.dataset, splits)
        source = tfssl.open_source(args.dataset, args.train_split)
        task.fit(task.dataset(source, args.batch_size, seed=0), steps_per_epoch=args.steps)
        results["trained"] = measure(task, f"{folder}/trained", args.dataset, splits)
    for name, result in results.items():
        print(
            f"{name}: {result['value']:.1%} by nearest neighbors on {result['endpoint']}, "
            f"{args.dataset} {args.test_split}"
        )
    return results


if __name__ == "__main__":
    main()
