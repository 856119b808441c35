"""PixPro and PixContrast: Xie et al., "Propagate Yourself", CVPR 2021 (arXiv 2011.10043)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf

from tfssl.backbones.necks import Necked
from tfssl.backbones.norm import Norm
from tfssl.errors import UserError, check_choice
from tfssl.losses import contrastive
from tfssl.precision import at_least_float32
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.parts.maps import last_map, mean_pool
from tfssl.pretext.parts.target import MomentumNetwork, cosine_momentum
from tfssl.pretext.parts.views import Views, cell_centers
from tfssl.pretext.task import Batch, Measured

MOST = 14  # locations along a side: what is compared grows with the fourth power


class PixPro(Views):
    """Each location of one view's map agrees with those of the other view's that lie near it in the
    image: after propagation, by which similar locations of a map smooth one another (PixPro), or by
    a softmax over all locations of the other view (PixContrast).

    The networks of the other view are moving averages. A location is taken to lie at the center of
    its cell, as in the published code, though with zeros on both sides a convolution of stride 32
    looks half a cell up and left of it. A low loss does not tell a good encoder: it falls fast, and
    rises again; `match`, beside `match_chance`, and `smoothness` tell more.

    Args:
      kind: propagation (PixPro) or contrast (PixContrast, of which no code was published).
      augmentation: policy of the views (the paper: BYOL's pair in torchvision's form, which
        barlow_twins is).
      map_endpoints: comma list of the endpoints that are compared, each with its like: one
        projection for all of them, and the loss is their mean. Default: the levels of the
        backbone's neck that have more than one location, or else its deepest map. Maps of more than
        14 locations along a side are averaged to 14.
      projection_hidden: hidden units of the projection, by location (the paper: 4096).
      projection_size: its outputs (the paper: 256).
      threshold: locations whose centers are nearer than this are positives of each other; in
        diagonals of the larger cell (the paper: 0.7).
      sharpness: propagation: exponent of the cosines that weigh it (the paper: 2).
      transform_layers: propagation: layers of what is propagated: 0 (as it is), 1 or 2 (the paper:
        1).
      temperature: contrast: of the softmax (the paper: 0.3).
      instance_weight: factor of BYOL's loss on the mean over the locations, with a projection and a
        prediction of its own; 0 leaves them out (the paper: 1, the published recipe: 0).
      target_momentum: EMA decay of the target network per step, at the start (the paper: 0.99).
      momentum_schedule: cosine, up to 1 at the end of the run, as in the paper; or constant.
    """

    task = "pixpro"
    located = True

    def __init__(
        self,
        backbone: tf.keras.Model,
        kind: str = "propagation",
        augmentation: str = "barlow_twins",
        map_endpoints: str = "",
        projection_hidden: int = 4096,
        projection_size: int = 256,
        threshold: float = 0.7,
        sharpness: float = 2.0,
        transform_layers: int = 1,
        temperature: float = 0.3,
        instance_weight: float = 0.0,
        target_momentum: float = 0.99,
        momentum_schedule: str = "cosine",
        **common: Any,
    ) -> None:
        super().__init__(backbone, augmentation=augmentation, **common)
        check_choice("kind", kind, ("propagation", "contrast"))
        check_choice("momentum_schedule", momentum_schedule, ("cosine", "constant"))
        if not 0 <= transform_layers <= 2:
            raise UserError(f"transform_layers={transform_layers}: 0, 1 or 2")
        self.kind, self.threshold, self.temperature = kind, threshold, temperature
        self.levels = tuple(name.strip() for name in map_endpoints.split(",") if name.strip())
        self.target_momentum, self.momentum_schedule = target_momentum, momentum_schedule
        self.instance_weight = instance_weight
        sizes = projection_hidden, projection_size
        raw = bool(getattr(backbone, "raw_maps", False))
        self.projection = Projection("projection", sizes, self.head_norm, raw)
        layers = [self.backbone, self.projection]
        self.propagation = None
        if kind == "propagation":
            self.propagation = Propagation(sharpness, transform_layers, self.head_norm)
        self.instance = self.prediction = None
        if instance_weight:
            self.instance = Projection("instance_projection", sizes, self.head_norm, raw)
            self.prediction = MLP("instance_prediction", sizes, norm=self.head_norm)
            layers.append(self.instance)
        self.target = MomentumNetwork(*layers)

    def start(self) -> None:
        self.target.copy()

    def maps(self, endpoints: Mapping[str, tf.Tensor]) -> list[tf.Tensor]:
        """The endpoints that are compared: a list of [N, h, w, D]."""
        names = self.levels
        if not names and isinstance(self.backbone, Necked):
            names = tuple(n for n in self.backbone.levels if 1 not in endpoints[n].shape[1:3])
        names = names or (last_map(self.backbone, endpoints, self.task),)
        kinds = self.backbone.endpoint_kinds
        wrong = [n for n in names if kinds.get(n) != "map" or 1 in endpoints[n].shape[1:3]]
        if wrong or len({endpoints[name].shape[-1] for name in names}) > 1:
            found = {n: x.shape[1:].as_list() for n, x in endpoints.items() if kinds[n] == "map"}
            raise UserError(
                f"map_endpoints={','.join(names)}: maps of more than one location, all of as many "
                f"channels, are compared; this backbone gives {found} for images of "
                f"{self.image_size} pixels"
            )
        return [endpoints[name] for name in names]

    def call(self, batch: Batch, training: bool = False) -> dict[str, Any]:
        found = [self._online(view[:, 0], training) for view in self.each(batch)]
        targets = [self._target(view[:, 0], training) for view in self.each(batch)]
        views = [{**one, **other} for one, other in zip(found, targets)]
        return tf.nest.map_structure(lambda *both: tf.stack(both, 1), *views)  # Nx2x...

    def _online(self, images: tf.Tensor, training: bool) -> dict[str, Any]:
        """Of images [N, S, S, 3]: {"y": a tuple of one [N, h, w, E] for each level, "z": [N, E]},
        and what the probe and the instance branch add."""
        endpoints = self.endpoints(images, training)
        maps = self.maps(endpoints)
        x = [self.projection(level, training) for level in maps]
        y = [self.propagation(level, training) for level in x] if self.propagation else x
        outputs = {"y": tuple(y), "z": tf.reduce_mean(x[-1], [1, 2])}
        if self.instance and self.prediction:
            p = self.prediction(self.instance(maps[-1], training), training=training)
            outputs["p"] = tf.reduce_mean(p, [1, 2])
        logits = self.probe_logits(
            endpoints["pre_logits"], lambda: self.encode(images, training)["pre_logits"]
        )
        return {**outputs, **logits}

    def _target(self, images: tf.Tensor, training: bool) -> dict[str, Any]:
        """Of images [N, S, S, 3]: {"targets": a tuple of one [N, h, w, E] for each level}, and of
        the instance branch "instances": [N, E]."""
        backbone, projection, *instance = self.target.twins
        maps = self.maps(backbone(self.normalize(images), training=training))
        outputs: dict[str, Any] = {"targets": tuple(projection(x, training) for x in maps)}
        if instance:
            outputs["instances"] = tf.reduce_mean(instance[0](maps[-1], training), [1, 2])
        return tf.nest.map_structure(tf.stop_gradient, outputs)

    def contrast(self, batch: Batch, outputs: dict[str, Any]) -> tuple[tf.Tensor, Measured]:
        box, flipped = batch["crop_box"][0], batch["flipped"][0]  # Nx2x4, Nx2
        of_levels = [
            self._compared(box, flipped, y, targets)
            for y, targets in zip(outputs["y"], outputs["targets"])
        ]
        loss = sum(of_level[0] for of_level in of_levels) / len(of_levels)
        metrics: Measured = {
            name: _mean([of_level[1][name] for of_level in of_levels]) for name in of_levels[0][1]
        }
        if self.instance_weight:
            p, targets = outputs["p"], outputs["instances"]
            # -2 cos, whose level is not 2 - 2 cos
            of_instances = sum(
                contrastive.cosine_distance(p[:, i], targets[:, 1 - i]) - 2 for i in (0, 1)
            )
            loss += self.instance_weight * of_instances
        return loss, metrics

    def _compared(
        self, box: tf.Tensor, flipped: tf.Tensor, y: tf.Tensor, targets: tf.Tensor
    ) -> tuple[tf.Tensor, dict[str, tuple[tf.Tensor, tf.Tensor]]]:
        """(Loss [N], {metric: ([N], weights [N])}) of maps [N, 2, h, w, E], of both directions."""
        side, places = y.shape[2], y.shape[2] * y.shape[3]
        y, targets = (
            tf.math.l2_normalize(tf.reshape(x, [-1, 2, places, x.shape[-1]]), -1)
            for x in (y, targets)
        )
        mask, inside = positives(box, flipped, side, self.threshold)
        masks = tf.cast(mask, y.dtype), tf.cast(tf.linalg.matrix_transpose(mask), y.dtype)
        losses, found = [], []
        for i, near in enumerate(masks):  # NxPxP: locations of view i, of the other view
            cosines = tf.matmul(y[:, i], targets[:, 1 - i], transpose_b=True)  # NxPxP
            if self.kind == "propagation":
                losses.append(-2 * mean_at(cosines, near))
            else:
                within = tf.cast(inside[:, i], y.dtype)
                losses.append(among_locations(cosines / self.temperature, near, within) / 2)
            alike = tf.matmul(targets[:, i], targets[:, 1 - i], transpose_b=True)  # NxPxP
            found.append(_measured(cosines, alike, near, targets[:, i]))
        return losses[0] + losses[1], {
            name: _mean([one[name] for one in found]) for name in found[0]
        }

    def after_step(self, batch: Batch, outputs: dict[str, Any]) -> None:
        length = self.total_steps if self.momentum_schedule == "cosine" else 0
        step = self.optimizer.iterations - 1  # this one's
        self.target.follow(cosine_momentum(self.target_momentum, step, length))

    def alarm(self, measured: Mapping[str, float]) -> str | None:
        if measured["smoothness"] > 0.98:
            return (
                "all locations of a map are embedded alike (smoothness "
                f"{measured['smoothness']:.3f}; 1: one vector for each image): see docs/methods.md"
            )
        return super().alarm(measured)

    def chance(self) -> dict[str, float]:
        """Levels of directions that are independent of one another. How many locations are
        positives, and so how many match by chance, depends on the images and the crops: the metric
        `match_chance`."""
        loss = {"loss": 0.0} if self.kind == "propagation" else {}
        of_crops = dict.fromkeys(("positives", "match", "match_chance"), float("nan"))
        return {**super().chance(), **of_crops, "similarity": 0.0, "smoothness": 0.0, **loss}

    def pictures(self, batch: Batch) -> tf.Tensor | None:
        """[3 n, S, S, 3] in [0, 1]: for each image one view with a square of a color of its own in
        each cell, the other view, and that with, in each cell, the color of the cell of the first
        that it is most similar to, by the target network."""
        images = self.to_float(batch)["image"]
        targets = self({**batch, "image": images})["targets"][-1]  # Nx2xhxwxE
        side = targets.shape[2]
        maps = tf.reshape(targets, [-1, 2, side * side, targets.shape[-1]])
        shown, other = tf.unstack(tf.math.l2_normalize(maps, -1), axis=1)  # NxPxE
        like = tf.argmax(tf.matmul(other, shown, transpose_b=True), -1)  # NxP: a cell of the first
        ticks = (tf.range(side, dtype=shown.dtype) + 0.5) / side
        down, right = tf.meshgrid(ticks, ticks, indexing="ij")
        palette = tf.reshape(tf.stack([right, down, 1 - (down + right) / 2], -1), [-1, 3])  # Px3
        first, second = images[0][:, 0], images[0][:, 1]  # NxSxSx3
        own = tf.broadcast_to(palette, [first.shape[0] or tf.shape(first)[0], side * side, 3])
        rows = [_tinted(first, own), second, _tinted(second, tf.gather(palette, like))]
        return tf.reshape(tf.stack(rows, 1), [-1, *first.shape[1:]])


class Projection(tf.keras.layers.Layer):
    """An MLP by location, after the normalization and ReLU that raw maps want, and after means down
    to 14 locations along a side: [N, H, W, D] -> [N, h, w, sizes[-1]].

    Args:
      name: of the layer.
      sizes: outputs of the MLP's layers.
      norm: the policy of its batch normalization.
      raw: the maps are sums, which a normalization and a ReLU follow first.
    """

    def __init__(self, name: str, sizes: Sequence[int], norm: Norm, raw: bool) -> None:
        super().__init__(name=name)
        self.settings: dict[str, Any] = {"name": name, "sizes": sizes, "norm": norm, "raw": raw}
        self.opening = norm.batch("opening_bn") if raw else None
        self.mlp = MLP("mlp", sizes, norm=norm)

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        if self.opening:
            x = tf.nn.relu(self.opening(x, training=training))
        if max(x.shape[1:3]) > MOST:
            x = mean_pool(x, [min(side, MOST) for side in x.shape[1:3]])
        return self.mlp(x, training=training)

    def twin(self) -> Projection:
        """A layer of the same form, with weights of its own."""
        return Projection(**self.settings)


class Propagation(tf.keras.layers.Layer):
    """Pixel propagation: each location becomes a sum over all locations of its map, transformed and
    of length 1, weighed by max(cosine, 0) ** sharpness: [N, h, w, E] -> [N, h, w, E], in float32 at
    least.

    Args:
      sharpness: the exponent; 0 weighs all alike.
      layers: of the transformation: 0, 1 (one dense layer by location) or 2 (with normalization and
        ReLU between them).
      norm: the policy of that normalization.
    """

    def __init__(self, sharpness: float, layers: int, norm: Norm) -> None:
        super().__init__(name="propagation")
        self.sharpness = sharpness
        self.transform = MLP("transform", [0] * layers, norm=norm) if layers else None

    def call(self, x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        shape = [-1, x.shape[1] * x.shape[2], x.shape[3]]
        g = self.transform(x, training=training) if self.transform else at_least_float32(x)
        g = tf.math.l2_normalize(tf.reshape(g, shape), -1)
        like = tf.math.l2_normalize(tf.reshape(at_least_float32(x), shape), -1)
        cosines = tf.nn.relu(tf.matmul(like, like, transpose_b=True))  # NxPxP
        if self.sharpness < 1:  # whose slope at 0 is infinite
            cosines += 1e-6
        return tf.reshape(tf.matmul(cosines**self.sharpness, g), [-1, *x.shape[1:]])


def positives(
    crop_box: tf.Tensor, flipped: tf.Tensor, side: int, threshold: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Which locations of two views lie near each other in their image.

    Args:
      crop_box: [N, 2, 4], (ymin, xmin, ymax, xmax) as fractions of the image's sides.
      flipped: bool [N, 2].
      side: locations along a side of the maps.
      threshold: the largest distance, in diagonals of the larger cell. Rows are measured in heights
        of the image, and columns in widths, as in the published code.

    Returns:
      (bool [N, P, P]: locations of the first view by those of the second; bool [N, 2, P]: which of
      a view's locations have their center in the other view), P = side ** 2.
    """
    centers = tf.reshape(cell_centers(crop_box, flipped, side), [-1, 2, side**2, 2])
    diagonals = tf.norm((crop_box[..., 2:] - crop_box[..., :2]) / side, axis=-1)  # Nx2
    distances = tf.norm(centers[:, 0, :, None] - centers[:, 1, None], axis=-1)  # NxPxP
    near = distances < threshold * tf.reduce_max(diagonals, 1)[:, None, None]
    others = crop_box[:, ::-1, None]  # Nx2x1x4
    inside = tf.reduce_all((centers >= others[..., :2]) & (centers <= others[..., 2:]), -1)
    return near, inside


def mean_at(cosines: tf.Tensor, positive: tf.Tensor) -> tf.Tensor:
    """Mean cosine [N] of the positives among cosines [N, P, P]; 0 where there are none.
    `positive`: 0 or 1, [N, P, P]."""
    return tf.reduce_sum(positive * cosines, [1, 2]) / (tf.reduce_sum(positive, [1, 2]) + 1e-6)


def among_locations(logits: tf.Tensor, positive: tf.Tensor, within: tf.Tensor) -> tf.Tensor:
    """Mean over the locations with positives, [N], of the negative logarithm of the share that a
    softmax over all locations of the other view gives to the positives; 0 where there are none.

    Args:
      logits: [N, P, P].
      positive: 0 or 1, [N, P, P].
      within: 0 or 1, [N, P]: locations that count.
    """
    least = tf.constant(-1e9, logits.dtype)
    share = tf.reduce_logsumexp(tf.where(positive > 0, logits, least), -1)
    share -= tf.reduce_logsumexp(logits, -1)  # NxP
    count = within * tf.reduce_max(positive, -1)
    share = tf.where(count > 0, share, tf.zeros_like(share))
    return -tf.reduce_sum(share, -1) / tf.maximum(tf.reduce_sum(count, -1), 1)


def _measured(
    cosines: tf.Tensor, alike: tf.Tensor, positive: tf.Tensor, targets: tf.Tensor
) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
    """{metric: ([N], weights [N])} of the cosines of the loss [N, P, P], those of the target
    embeddings of both views, likewise, and those of one view [N, P, E], of norm 1.

    `match` is the targets': propagation sums a map, and while maps are smooth each of its sums has
    the same nearest location, whatever the embeddings tell apart.
    """
    places = cosines.shape[-1]
    having = tf.reduce_max(positive, -1)  # NxP: locations with positives
    best = tf.one_hot(tf.argmax(alike, -1), places, dtype=positive.dtype)  # NxPxP
    any_positive = tf.reduce_max(having, -1)  # N
    total = tf.reduce_sum(tf.square(tf.reduce_sum(targets, 1)), -1)  # N: all pairs, and P of 1
    count = tf.maximum(tf.reduce_sum(having, 1), 1)  # N
    one = tf.ones_like(total)
    return {
        "positives": (tf.reduce_mean(positive, [1, 2]), one),
        "similarity": (mean_at(cosines, positive), any_positive),
        "match": (tf.reduce_sum(positive * best, [1, 2]) / count, any_positive),
        "match_chance": (tf.reduce_sum(positive, [1, 2]) / (count * places), any_positive),
        "smoothness": ((total - places) / (places * (places - 1)), one),
    }


def _mean(measured: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tuple[tf.Tensor, tf.Tensor]:
    """Of ([N], weights [N])s that have the same images."""
    values, weights = ([one[i] for one in measured] for i in (0, 1))
    weight = sum(weights)
    total = sum(value * w for value, w in zip(values, weights))
    return tf.math.divide_no_nan(total, weight), weight / len(measured)


def _tinted(images: tf.Tensor, colors: tf.Tensor) -> tf.Tensor:
    """Images [N, S, S, 3] with a square in the middle of each cell, of colors [N, P, 3]."""
    size, side = images.shape[1], int(colors.shape[1] ** 0.5)
    places = tf.constant([(2 * i + 1) * side // (2 * size) for i in range(size)])
    within = tf.constant([0.3 < (i + 0.5) * side / size % 1 < 0.7 for i in range(size)])
    squares = (within[:, None] & within[None])[..., None]  # SxSx1
    grid = tf.reshape(colors, [-1, side, side, 3])
    grid = tf.gather(tf.gather(grid, places, axis=1), places, axis=2)  # NxSxSx3
    return tf.where(squares, grid, images)
