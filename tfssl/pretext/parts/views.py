"""Views of an image: what all joint-embedding methods share."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.backbones.norm import Norm
from tfssl.data import augmentation
from tfssl.data.ops.draws import Draws, fork
from tfssl.data.sources.base import Source
from tfssl.errors import UserError, check_choice
from tfssl.losses import contrastive
from tfssl.pretext.parts.online_probe import Probed
from tfssl.pretext.task import Batch, Example, Measured, image_major

_Group = TypeVar("_Group")
_OTHER_FRAME = 0x80  # its draw: above those of the crops and of a task, below those of the policies
Crops = collections.namedtuple("Crops", ["count", "size", "area"])
Crops.__doc__ = """So many views of `size` pixels; `area` (low, high) as a share of the image's, or
None for the policy's."""


class Views(Probed):
    """Base class of the methods that bring views of one image together. A subclass gives `call` ->
    {"z": embeddings [N, V, E], ...}, by `embed`, and `contrast(batch, outputs)` -> (loss per image
    [N], {metric: [N]}).

    A view is a random crop of the image, made on the host as bytes, and then mirrored, colored and
    blurred by a policy of `tfssl.data.augmentation`. In validation the crops are drawn from one
    fixed seed, and no policy acts.

    Args:
      image_size: side of the views, in pixels.
      augmentation: policy of the views: simclr, moco_v1, moco_v2, pirl, pirl_photometric, byol,
        barlow_twins, moco_v3, dino, lejepa, swav, infomin, cifar (SimCLR's for 32 pixels),
        cifar_byol, crop (crops and flips alone) or torch_crop (likewise, by torchvision's sampler);
        see tfssl/data/augmentation.py. Or a file of your own, FILE.json: the fields of its Policy.
      strength: scales the policy's color jitter (SimCLR: 1 for ImageNet, 0.5 for CIFAR-10; the
        policy cifar has its 0.5 already).
      min_area: smallest area of a crop, as a share of the image; 0 takes the policy's.
      augment_on: where the policy acts: device (a batch at once) or host (each image in the input
        pipeline, rounded to bytes again).
      resize: shorter side, in pixels, to which an evaluation image is scaled before its central
        square of `image_size` is cut; 0 means image_size / 0.875.
      max_gap: of sequences (frames:PATH): views are cut in turn from the image and from another
        frame of its sequence, drawn among those at most so many frames before or after it; 0: all
        from the image.
    """

    needs_of = {"max_gap": ("frames",)}
    spans_batch = True  # if not by its loss, then by its spread, or by what it remembers
    # whether batches hold where each view lies: "crop_box" and "flipped", see `cell_centers`
    located = False

    def __init__(
        self,
        backbone: tf.keras.Model,
        image_size: int = 224,
        augmentation: str = "simclr",
        strength: float = 1.0,
        min_area: float = 0.0,
        augment_on: str = "device",
        resize: int = 0,
        max_gap: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(backbone, image_size=image_size, **common)
        check_choice("augment_on", augment_on, ("device", "host"))
        self.max_gap = max_gap
        self.augmentation, self.strength, self.min_area, self.augment_on = (
            augmentation,
            strength,
            min_area,
            augment_on,
        )
        self.resize = resize or round(image_size / 0.875)
        policies = self.policies()  # an unknown name is refused here
        if self.located and any(policy.rotate or policy.randaugment for policy in policies):
            raise UserError(
                f"augmentation={augmentation} turns or moves what views show, and this task maps "
                "their pixels on one another by their boxes: take a policy with rotate=0 and "
                "randaugment=0"
            )
        if max_gap:
            self._check_views()

    def _check_views(self) -> None:
        """Refuse `max_gap` where views of two frames would make no sense."""
        cut = [self.regions(*numbered) for numbered in self._numbered(self.crops())]
        if not self.located and sum(map(len, cut)) > 1:
            return
        reason = "compares locations of one image" if self.located else "has one view of each image"
        raise UserError(
            f"max_gap={self.max_gap}: task {self.task or type(self).__name__!r} {reason}: leave it "
            "out, or take a task that compares two views, such as simclr"
        )

    # What a method may define.

    def crops(self) -> list[Crops]:
        """The groups of views, a list of `Crops`; the two of SimCLR by default."""
        return [Crops(2, self.image_size, None)]

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        raise NotImplementedError

    # What all share.

    def policies(self) -> Sequence[augmentation.Policy]:
        """One policy for each view, in the order of the groups."""
        views = sum(group.count for group in self.crops())
        return augmentation.per_view(self.augmentation, views, self.strength)

    def example(self, example: Example, seed: tf.Tensor | None) -> Example:
        """{"image": a tuple of one uint8 [V, S, S, 3] for each group of crops}, and where `located`
        two more such tuples: "crop_box", float32 [V, 4], (ymin, xmin, ymax, xmax) as fractions of
        the image's sides, and "flipped", bool [V]; of two frames, the number of their
        "sequence"."""
        training, seed = seed is not None, tf.zeros([2], tf.int64) if seed is None else seed
        numbered = self._numbered(self.crops())
        regions = [self.regions(group, first) for group, first in numbered]
        images = example["frames"] if self.max_gap else (example["image"],)
        cut: dict[int, tf.Tensor] = {}
        for i, image in enumerate(images):  # each is decoded once
            own = [region for region in sum(regions, []) if region.number % len(images) == i]
            cut.update(zip([r.number for r in own], augmentation.crops(image, seed, own)))
        groups = [
            self.group([cut[region.number] for region in own], seed, group, first)
            for own, (group, first) in zip(regions, numbered)
        ]
        if training and self.augment_on == "host":
            draws = augmentation.HostDraws(seed, 1)
            deep = groups[0].dtype == tf.float32  # in full depth, which bytes would not keep
            groups = [
                self._policed((x if deep else _to_float(x))[None], draws, n)[0]
                for x, n in self._numbered(groups)
            ]
            groups = groups if deep else [to_bytes(x) for x in groups]
        if not self.located:
            of_frames = {"sequence": example["sequence"]} if self.max_gap else {}
            return {"image": tuple(groups), **of_frames}
        boxes = tuple(augmentation.crop_boxes(example["image"], seed, own) for own in regions)
        flipped = tuple(tf.zeros([group.count], tf.bool) for group in self.crops())
        if training and self.augment_on == "host":
            flipped = tuple(x[0] for x in self._flipped(draws))
        return {"image": tuple(groups), "crop_box": boxes, "flipped": flipped}

    def with_frames(self, source: Source) -> Source:
        framed = super().with_frames(source)
        if self.max_gap and len(np.unique(source.sequences())) == 1:
            logging.warning(
                "%s (%s) is one sequence, whose frames are not each other's negatives: a loss that "
                "needs negatives learns and measures nothing",
                source.spec,
                source.split,
            )
        return framed

    def clip(self, position: tf.Tensor, length: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """The image, and a frame drawn uniformly among those of its sequence within `max_gap`, of
        which it is one itself."""
        low = tf.maximum(position - self.max_gap, 0)
        high = tf.minimum(position + self.max_gap, length - 1)
        other = tf.random.stateless_uniform([], fork(seed, _OTHER_FRAME), low, high + 1, tf.int64)
        return tf.stack([position, other])

    def regions(self, group: Crops, first: int) -> list[augmentation.Region]:
        """What is cut from an image for a group, whose views are numbered from `first` on: list of
        `augmentation.Region`."""
        found = []
        for number, policy in enumerate(self.policies()[first : first + group.count], first):
            area = group.area or (self.min_area and (self.min_area, policy.crop_area[1]))
            policy = policy.with_area(*area) if area else policy
            found.append(augmentation.Region(policy, number, group.size))
        return found

    def group(
        self, crops: Sequence[tf.Tensor], seed: tf.Tensor, group: Crops, first: int
    ) -> tf.Tensor:
        """The views of a group, uint8 [V, S, S, 3], from the crops of its regions."""
        return tf.stack(crops)

    def augment(self, batch: Batch, draws: Draws) -> Batch:
        if self.augment_on == "host":
            return batch
        flipped = {"flipped": self._flipped(draws)} if self.located else {}
        images = tuple(
            self._policed(x, draws, first) for x, first in self._numbered(batch["image"])
        )
        return {**batch, "image": images, **flipped}

    def _flipped(self, draws: Draws | augmentation.HostDraws) -> tuple[tf.Tensor, ...]:
        """Which views the policies mirror: bool [N, V] for each group."""
        mirrored = [policy.mirrors(draws, view) for view, policy in enumerate(self.policies())]
        return tuple(
            tf.stack(mirrored[first : first + group.count], 1)
            for group, first in self._numbered(self.crops())
        )

    def _policed(
        self, images: tf.Tensor, draws: Draws | augmentation.HostDraws, first: int
    ) -> tf.Tensor:
        """Images [N, V, S, S, 3] after the policies of views `first`, `first` + 1, ..."""
        policies = self.policies()[first:]
        views = [
            policies[v].apply(x, draws, view=first + v)
            for v, x in enumerate(tf.unstack(images, axis=1))
        ]
        return tf.stack(views, 1)

    def _numbered(self, groups: Iterable[_Group]) -> list[tuple[_Group, int]]:
        """(group, number of its first view) of each group."""
        counts = [group.count for group in self.crops()]
        return [(x, sum(counts[:i])) for i, x in enumerate(groups)]

    def embed(
        self,
        images: tf.Tensor | tuple[tf.Tensor, ...],
        heads: Mapping[str, tf.keras.layers.Layer],
        training: bool,
    ) -> dict[str, tf.Tensor]:
        """Views [N, V, S, S, 3] through the network and {name: head}, each head after the one
        before it: {name: [N, V, outputs]}, and the online probe's logits as "probe". Given a tuple
        of groups of views, one for each size, the backbone takes size by size, and a head the views
        of all sizes at once."""
        groups = images if isinstance(images, tuple) else (images,)
        counts = [group.shape[1] for group in groups]

        def rows(encode: Callable[..., dict[str, tf.Tensor]]) -> tf.Tensor:
            # Image by image, so that the parts of a batch are groups of successive rows for batch
            # normalization too.
            x = [
                encode(tf.reshape(group, [-1, *group.shape[2:]]), training)["pre_logits"]
                for group in groups
            ]
            x = tf.concat(
                [tf.reshape(y, [-1, count, y.shape[-1]]) for y, count in zip(x, counts)], 1
            )  # NxVxD
            return tf.reshape(x, [-1, x.shape[-1]])

        x = rows(self.endpoints)
        found = self.probe_logits(x, lambda: rows(self.encode))
        for name, head in heads.items():
            x = found[name] = head(x, training=training)
        return {name: tf.reshape(y, [-1, sum(counts), y.shape[-1]]) for name, y in found.items()}

    def embed_each(
        self, batch: Batch, heads: Mapping[str, tf.keras.layers.Layer], training: bool
    ) -> dict[str, tf.Tensor]:
        """The same, each view by itself: batch normalization then sees one view at a time."""
        found = [self.embed(view, heads, training) for view in self.each(batch)]
        return {name: tf.concat([outputs[name] for outputs in found], 1) for name in found[0]}

    def each(self, batch: Batch) -> list[tf.Tensor]:
        """The views of a batch one by one: a list of [N, 1, S, S, 3]."""
        return [x[:, v : v + 1] for x in batch["image"] for v in range(x.shape[1])]

    def objective(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        loss, metrics = self.contrast(batch, outputs)
        z = outputs["z"]
        weight = tf.repeat(batch["weight"], z.shape[1])
        metrics["spread"] = tf.ones_like(loss) * contrastive.embedding_std(
            tf.reshape(z, [-1, z.shape[-1]]), weight
        )
        return self.probed(batch, loss, metrics, outputs["probe"][:, 0] if self.probe else None)

    def alarm(self, measured: Mapping[str, float]) -> str | None:
        if measured["spread"] < 0.05:
            return (
                "the embeddings have collapsed into one direction (spread "
                f"{measured['spread']:.2g}; 1 is healthy): see docs/methods.md"
            )
        return super().alarm(measured)

    def chance(self) -> dict[str, float]:
        """`spread`: of the embeddings' directions, 1 where they fill the sphere, 0 where they are
        one point."""
        return {"loss": float("nan"), "spread": 0.0, **super().chance()}

    @property
    def head_norm(self) -> Norm:
        """The batch normalization of heads spans what the backbone's does."""
        return self.backbone.norm_policy

    @property
    def evaluation_size(self) -> tuple[int, int]:
        return self.image_size, self.resize

    def preview(self, batch: dict) -> tf.Tensor:
        return image_major(batch["image"][0])


def cell_centers(crop_box: tf.Tensor, flipped: tf.Tensor, cells: int) -> tf.Tensor:
    """Where a map of views looks at their images: the centers of its cells, in the order of the
    view as the network sees it.

    Args:
      crop_box: [..., 4], (ymin, xmin, ymax, xmax) as fractions of the image's sides.
      flipped: bool [...].
      cells: side of the map.

    Returns:
      [..., cells, cells, 2], (y, x) as fractions of the image's sides.
    """
    ticks = (tf.range(cells, dtype=crop_box.dtype) + 0.5) / cells
    top, left, bottom, right = (x[..., None] for x in tf.unstack(crop_box, axis=-1))
    y = top + ticks * (bottom - top)  # ...xS
    x = left + tf.where(flipped[..., None], 1 - ticks, ticks) * (right - left)
    side = [1] * len(y.shape[:-1])
    return tf.stack(
        [tf.tile(y[..., :, None], [*side, 1, cells]), tf.tile(x[..., None, :], [*side, cells, 1])],
        -1,
    )


def _to_float(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / 255


def to_bytes(images: tf.Tensor) -> tf.Tensor:
    """Images in [0, 1] as uint8, rounded."""
    return tf.cast(tf.round(255 * tf.clip_by_value(images, 0.0, 1.0)), tf.uint8)
