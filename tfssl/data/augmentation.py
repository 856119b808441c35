"""What a view of an image goes through, as data: the published augmentation policies, on the device
over a batch or on the host.

A policy is applied with an object that draws: `tfssl.data.ops.draws.Draws` for a batch on the
device, `HostDraws` inside tf.data for the views of one image. The ops and the distribution are the
same. On the host, what a coin does not ask for is not computed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from tfssl.data.ops import image as image_ops
from tfssl.data.ops import photometric, randaugment
from tfssl.data.ops.draws import Draws, fork
from tfssl.data.ops.photometric import Jitter
from tfssl.errors import UserError, check_choice, one_line

# What is drawn for images beside their crops: coins, amounts, the plan of the jitter, layers of
# RandAugment, the photometric step.
_Drawn = tuple[tf.Tensor, tf.Tensor, Jitter, tf.Tensor, tf.Tensor]
_LAYERS = 0x1000  # RandAugment's
_ENHANCE = 0x2000  # the photometric step's: coin, and three amounts
# the draws of views 0, 1, ... are numbered from here on: below are those of the crops and of a task
_VIEW = 0x100

# What is drawn for every image, in one go: coins, and amounts in the ranges of the policy.
_COINS = "flip jitter gray blur solarize rotate sobel cutout noise".split()
_AMOUNTS = (
    "brightness contrast saturation hue brightness_at contrast_at saturation_at hue_at sigma turns "
    "center_y center_x noise_scale noise_key"
).split()


def host_views(
    image: tf.Tensor, seed: tf.Tensor, policies: Sequence[Policy], size: int
) -> tf.Tensor:
    """The views of one image, made on the host from beginning to end: decoded once, and nothing is
    rounded to 8 bits in between.

    Args:
      image: encoded, or uint8 [H, W, C].
      seed: int64 [2], (run seed, example number).
      policies: one for each view, see `per_view`.
      size: side of the views, in pixels.

    Returns:
      float [views, size, size, 3] in [0, 1], of Keras's floatx.
    """
    regions = [Region(policy, view, size) for view, policy in enumerate(policies)]
    crops = []
    for region, part in zip(regions, _cut(image, seed, regions)):
        crop = tf.cast(
            image_ops.resize_levels(part, size, region.policy.crop_method),
            tf.keras.backend.floatx(),
        )
        crop = photometric.clip(crop * (1 / 255) if part.dtype == tf.uint8 else crop)
        # cubic kernels overshoot
        crops.append(tf.reshape(crop, [1, size, size, part.shape[-1]]))
    draws = HostDraws(seed, len(crops))
    drawn = {policy: policy._draw(draws, 0, crops[0].shape) for policy in set(policies)}
    return tf.concat(
        [
            policy._apply(crop, *_row(drawn[policy], view))
            for view, (policy, crop) in enumerate(zip(policies, crops))
        ],
        0,
    )


def crops(image: tf.Tensor, seed: tf.Tensor, regions: Sequence[Region]) -> list[tf.Tensor]:
    """Random resized crops of one image, decoded once: list of uint8 [size, size, 3], one for each
    `Region`.

    Args:
      image: encoded, or uint8 [H, W, C].
      seed: int64 [2], (run seed, example number).
      regions: list of `Region`.
    """
    parts = _cut(image, seed, regions)
    return [
        image_ops.resize(part, region.size, region.policy.crop_method)
        for part, region in zip(parts, regions)
    ]


def crop_boxes(image: tf.Tensor, seed: tf.Tensor, regions: Sequence[Region]) -> tf.Tensor:
    """Where `crops` with the same arguments cuts: float32 [R, 4], (ymin, xmin, ymax, xmax) of the
    crops' edges as fractions of the image's sides. The size is read from a JPEG's header; an image
    in another format is decoded for it."""
    height, width = tf.unstack(image_ops.image_size(image))
    chosen = _choose(tf.stack([height, width, 3]), seed, regions)
    corners = [tf.concat([begin[:2], begin[:2] + extent[:2]], 0) for begin, extent in chosen]
    return tf.cast(tf.stack(corners), tf.float32) / tf.cast(
        tf.stack([height, width] * 2), tf.float32
    )


def _cut(image: tf.Tensor, seed: tf.Tensor, regions: Sequence[Region]) -> list[tf.Tensor]:
    """The crops before they are resized."""
    sizes = [(region.size, region.size) for region in regions]
    return image_ops.cut(image, lambda shape: _choose(shape, seed, regions), sizes)


def _choose(
    shape: tf.Tensor, seed: tf.Tensor, regions: Sequence[Region]
) -> list[tuple[tf.Tensor, tf.Tensor]]:
    """(begin, extent) of each region in an image of `shape`."""
    return [region.policy.sample_crop(shape, fork(seed, region.number)) for region in regions]


class Region(NamedTuple):
    """A crop by a policy, resized to `size` pixels; `number` tells apart the crops of one image."""

    policy: Policy
    number: int
    size: int


@dataclasses.dataclass(frozen=True)
class Policy:
    """How one view of an image is made. Its fields are probabilities and ranges;
    `dataclasses.replace` makes variants.

    Order: crop, flip, gray ("before"), jitter, photometric step, gray ("after"), blur, solarize,
    RandAugment, gray ("last"), rotate, sobel, cutout, noise. Of images of other than three
    channels the jitter changes brightness and contrast, and gray nothing; RandAugment and the
    photometric step need three; all others take any number.

    Args:
      crop_area: least and largest area of the crop, as shares of the image's.
      crop_sampler: how area, aspect and place are drawn: "tf", "torch" or "byol", see
        `image.sample_crop`.
      crop_covered: of the sampler "tf": crops of a smaller share of the image are drawn again (its
        `min_object_covered`).
      crop_method: of `image.resize`.
      flip: probability of mirroring left and right.
      jitter: probability of the color jitter.
      brightness: factors in max(0, 1 - b) to 1 + b; if additive, shifts in -b to b.
      contrast: factors in max(0, 1 - c) to 1 + c.
      saturation: factors in max(0, 1 - s) to 1 + s.
      hue: shifts in -h to h, in turns of the color circle.
      additive: brightness is added and not multiplied.
      random_order: the four ops of the jitter come in a random order, or else in this one.
      photometric: probability of PIRL's photometric step, on the host only: see
        `randaugment.enhance`.
      gray: probability of dropping the colors.
      gray_at: "before" the jitter, "after" it, or "last".
      blur: probability of the Gaussian blur.
      blur_sigma: the range of its sigma, in pixels.
      blur_edges: "zero" or "reflect", see `photometric.gaussian_blur`.
      blur_taps: width of its window, in pixels; 0: SimCLR's for the size of the view,
        `photometric.blur_taps`.
      solarize: probability of solarizing.
      solarize_threshold: values from here on are inverted.
      randaugment: how many ops of RandAugment follow one another, on the host only; 0 is none.
      randaugment_magnitude: their mean magnitude, up to 10.
      randaugment_deviation: its standard deviation.
      randaugment_pool: its ops and their ranges: infomin; increasing, as DeiT and MAE fine-tune;
        or clsa, whose magnitudes are 1 to 9, all as likely.
      rotate: probability of a turn by 90, 180 or 270 degrees.
      sobel: probability of showing the edges instead of the image.
      cutout: probability of a gray square.
      cutout_side: its side, as a share of the image's.
      noise: probability of Gaussian noise.
      noise_scale: the largest standard deviation of the noise; it is uniform from 0 on.
    """

    crop_area: tuple[float, float] = (0.08, 1.0)
    crop_sampler: str = "tf"
    crop_covered: float = 0.1
    crop_method: str = "bicubic"
    flip: float = 0.5
    jitter: float = 0.8
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    additive: bool = False
    random_order: bool = True
    photometric: float = 0.0
    gray: float = 0.2
    gray_at: str = "after"
    blur: float = 0.5
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    blur_edges: str = "zero"
    blur_taps: int = 0
    solarize: float = 0.0
    solarize_threshold: float = 0.5
    randaugment: int = 0
    randaugment_magnitude: float = 10.0
    randaugment_deviation: float = 0.5
    randaugment_pool: str = "infomin"
    rotate: float = 0.0
    sobel: float = 0.0
    cutout: float = 0.0
    cutout_side: float = 0.5
    noise: float = 0.0
    noise_scale: float = 0.1

    def __post_init__(self) -> None:
        if self.gray_at not in ("before", "after", "last"):
            raise UserError(f"a policy with gray_at={self.gray_at!r}: choose before, after or last")
        check_choice("crop_sampler", self.crop_sampler, image_ops.SAMPLERS)
        check_choice("randaugment_pool", self.randaugment_pool, randaugment.POOLS)
        for name in (*_COINS, "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(
                    f"a policy with {name}={getattr(self, name)}: it is a probability, from 0 to 1"
                )

    def scaled(self, strength: float) -> Policy:
        """The same policy with the ranges of the jitter times `strength` (SimCLR's s: 1 for
        ImageNet, 0.5 for CIFAR)."""
        ranges = {
            name: strength * getattr(self, name)
            for name in ("brightness", "contrast", "saturation", "hue")
        }
        return dataclasses.replace(self, **ranges)

    def with_area(self, low: float, high: float) -> Policy:
        """The same policy with crops of these areas, all of them: what the policy wants covered
        gives way."""
        return dataclasses.replace(
            self, crop_area=(low, high), crop_covered=min(self.crop_covered, low)
        )

    def sample_crop(self, shape: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Where a crop lies in an image of `shape` int32 [3]: (begin, extent), int32 [3] both."""
        return image_ops.sample_crop(
            shape,
            seed,
            self.crop_area,
            min_object_covered=self.crop_covered,
            sampler=self.crop_sampler,
        )

    def crop(self, image: tf.Tensor, seed: tf.Tensor, size: int) -> tf.Tensor:
        """The random resized crop of one image (encoded or uint8), on the host: uint8
        [size, size, 3]."""
        part = image_ops.cut(image, lambda shape: [self.sample_crop(shape, seed)], [(size, size)])[
            0
        ]
        return image_ops.resize(part, size, self.crop_method)

    def apply(self, images: tf.Tensor, draws: Draws | HostDraws, view: int = 0) -> tf.Tensor:
        """All but the crop.

        Args:
          images: float [N, H, W, C] in [0, 1]; with `HostDraws` the N views of one image, and N is
            static.
          draws: a `Draws` of these images, or `HostDraws`.
          view: tells apart the views of the same images, where each is a batch of its own.

        Returns:
          [N, H, W, C] of the same dtype in [0, 1]; with noise, beyond.

        Raises:
          UserError: RandAugment of images of other than three channels.
        """
        drawn = self._draw(draws, view, images.shape)
        if not isinstance(draws, HostDraws):
            return self._apply(images, *drawn)
        return tf.concat(
            [
                self._apply(image[None], *_row(drawn, i))
                for i, image in enumerate(tf.unstack(images))
            ],
            0,
        )

    def mirrors(self, draws: Draws | HostDraws, view: int = 0) -> tf.Tensor:
        """Which images `apply` mirrors with the same draws: bool [N]."""
        random = self._random(draws, view)[:, _COINS.index("flip")]
        return random < tf.constant(self.flip, random.dtype)

    def _random(self, draws: Draws | HostDraws, view: int) -> tf.Tensor:
        """Uniform in [0, 1): [N, coins and amounts]."""
        return draws.uniform(shape=[len(_COINS) + len(_AMOUNTS)], view=_VIEW + view)

    def _draw(self, draws: Draws | HostDraws, view: int, shape: tf.TensorShape) -> _Drawn:
        """What `_apply` wants beside the images: tensors [N, ...]."""
        if shape[-1] != 3 and (self.photometric or self.randaugment):
            raise UserError(
                f"RandAugment and PIRL's photometric step of images with {shape[-1]} channels: "
                "they need 3 (RGB); take a policy with photometric=0 and randaugment=0"
            )
        if (self.randaugment or self.photometric) and not isinstance(draws, HostDraws):
            name = "RandAugment" if self.randaugment else "PIRL's photometric step"
            raise UserError(
                f"{name} runs on the host only: take augment_on=host, or a policy without it"
            )
        random = self._random(draws, view)
        coins = random[:, : len(_COINS)] < tf.constant(
            [getattr(self, name) for name in _COINS], random.dtype
        )
        low, high = (tf.constant(ends, random.dtype) for ends in zip(*self._ranges()))
        amounts = low + (high - low) * random[:, len(_COINS) :]
        brightness, contrast, saturation, hue = tf.unstack(amounts[:, :4], 4, axis=1)
        plan = photometric.plan_jitter(
            brightness, contrast, saturation, hue, amounts[:, 4:8], self.additive
        )
        layers = (
            draws.uniform(shape=[self.randaugment, randaugment.DRAWS], view=_LAYERS + view)
            if self.randaugment
            else ()
        )
        enhance = draws.uniform(shape=[4], view=_ENHANCE + view) if self.photometric else ()
        return coins, amounts, plan, layers, enhance

    def _ranges(self) -> list[tuple[float, float]]:
        """(low, high) for each of `_AMOUNTS`."""
        ranges = {
            name: (max(0, 1 - getattr(self, name)), 1 + getattr(self, name))
            for name in ("brightness", "contrast", "saturation")
        }
        if self.additive:
            ranges["brightness"] = (-self.brightness, self.brightness)
        if not self.random_order:
            ranges.update(
                brightness_at=(0, 0), contrast_at=(1, 1), saturation_at=(2, 2), hue_at=(3, 3)
            )
        ranges.update(
            hue=(-self.hue, self.hue),
            sigma=self.blur_sigma,
            turns=(1, 4),
            noise_scale=(0, self.noise_scale),
        )
        return [ranges.get(name, (0, 1)) for name in _AMOUNTS]

    def _apply(
        self,
        images: tf.Tensor,
        coins: tf.Tensor,
        amounts: tf.Tensor,
        plan: Jitter,
        layers: tf.Tensor,
        enhance: tf.Tensor,
    ) -> tf.Tensor:
        """With N = 1, what the coins do not ask for is not computed."""
        coins = dict(zip(_COINS, tf.unstack(coins, axis=1)))
        drawn = dict(zip(_AMOUNTS, tf.unstack(amounts, axis=1)))
        threshold = tf.fill(
            tf.shape(drawn["sigma"]), tf.cast(self.solarize_threshold, amounts.dtype)
        )
        layer_settings = (
            self.randaugment_magnitude,
            self.randaugment_deviation,
            self.randaugment_pool,
        )
        center = tf.stack([drawn["center_y"], drawn["center_x"]], 1)
        ops = [
            ("flip", photometric.mirror),
            ("jitter", lambda x: photometric.run_jitter(x, plan, self.additive)),
            (
                "blur",
                lambda x: photometric.gaussian_blur(
                    x, drawn["sigma"], self.blur_taps, self.blur_edges
                ),
            ),
            ("solarize", lambda x: photometric.solarize(x, threshold)),
            ("rotate", lambda x: photometric.quarter_turns(x, tf.cast(drawn["turns"], tf.int32))),
            ("sobel", photometric.sobel),
            (
                "cutout",
                lambda x: photometric.cutout(x, center, round(self.cutout_side * x.shape[1])),
            ),
            (
                "noise",
                lambda x: photometric.gaussian_noise(x, drawn["noise_scale"], drawn["noise_key"]),
            ),
        ]
        if self.randaugment:  # one image
            ops.insert(
                4,
                (
                    "randaugment",
                    lambda x: randaugment.rand_augment(x[0], layers[0], *layer_settings)[None],
                ),
            )
        ops.insert(
            {"before": 1, "after": 2, "last": 4 + bool(self.randaugment)}[self.gray_at],
            ("gray", photometric.drop_color if images.shape[-1] == 3 else lambda x: x),
        )
        if self.photometric:  # one image
            after_jitter = [name for name, _ in ops].index("jitter") + 1
            ops.insert(
                after_jitter,
                ("photometric", lambda x: randaugment.enhance(x[0], enhance[0, 1:])[None]),
            )
            coins["photometric"] = enhance[:, 0] < self.photometric
        for name, op in ops:
            if name == "randaugment":
                images = op(images)
            elif getattr(self, name):
                images = _some(coins[name], op, images)
        return images


class HostDraws:
    """`Draws` for the views of one image, inside tf.data.

    Args:
      seed: int64 [2], (run seed, example number).
      views: how many.
    """

    def __init__(self, seed: tf.Tensor, views: int) -> None:
        self.seed, self.views = seed, views

    def uniform(
        self, low: float = 0.0, high: float = 1.0, shape: Sequence[int] = (), view: int = 0
    ) -> tf.Tensor:
        """[views, *shape] of Keras's floatx in [low, high); `view` tells apart independent draws
        for one image."""
        drawn = tf.random.stateless_uniform([self.views, *shape], fork(self.seed, view), low, high)
        return tf.cast(drawn, tf.keras.backend.floatx())

    def keep(self, probability: float, shape: Sequence[int] = (), view: int = 0) -> tf.Tensor:
        """bool [views, *shape], each true with a probability."""
        return (
            tf.random.stateless_uniform([self.views, *shape], fork(self.seed, view)) < probability
        )


def _row(drawn: _Drawn, i: int) -> _Drawn:
    """What is drawn for the i-th image alone."""
    return tf.nest.map_structure(lambda x: x[i : i + 1], drawn)


def _some(
    mask: tf.Tensor, function: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor
) -> tf.Tensor:
    """function(images) where mask [N] is true. Of one image alone it is not computed otherwise."""
    if images.shape[0] == 1:
        return tf.cond(mask[0], lambda: function(images), lambda: images)
    return tf.where(mask[:, None, None, None], function(images), images)


_SIMCLR = Policy()
_BYOL = Policy(
    crop_sampler="byol",
    brightness=0.4,
    contrast=0.4,
    saturation=0.2,
    hue=0.1,
    additive=True,
    blur=1.0,
)
# Pillow's blur has no window, but is as good as none beyond three standard deviations.
_TORCH: dict[str, Any] = {
    "crop_sampler": "torch",
    "crop_method": "pillow",
    "blur_edges": "reflect",
    "blur_taps": 2 * 3 * 2 + 1,
}
_MOCO: dict[str, Any] = {
    **_TORCH,
    "crop_area": (0.2, 1.0),
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
}
_PAIR = Policy(**_TORCH, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, blur=1.0)
_BICUBIC = dataclasses.replace(_PAIR, crop_method="pillow_bicubic")
_CIFAR = dataclasses.replace(_SIMCLR.scaled(0.5), blur=0.0)
_CIFAR_BYOL = dataclasses.replace(_CIFAR, saturation=0.2, hue=0.1)
_PIRL = Policy(**{**_MOCO, "crop_area": (0.08, 1.0)}, hue=0.2, jitter=1.0, blur=0.0)

# A policy for all views, or a tuple of one for each view.
POLICIES: dict[str, Policy | tuple[Policy, ...]] = {
    "crop": Policy(
        jitter=0.0, gray=0.0, blur=0.0
    ),  # crop and flip alone, which SimCLR's ablation finds not to be enough
    "torch_crop": Policy(**_TORCH, jitter=0.0, gray=0.0, blur=0.0),  # likewise, as in PyContrast
    "simclr": _SIMCLR,  # arXiv 2002.05709, and the brightness of its second code
    "moco_v1": Policy(
        **_MOCO, hue=0.4, jitter=1.0, gray_at="before", blur=0.0
    ),  # arXiv 1911.05722, as InstDisc
    # arXiv 1912.01991, for images and for patches, without its code's photometric step; and with it
    "pirl": _PIRL,
    "pirl_photometric": dataclasses.replace(_PIRL, photometric=0.66),
    "moco_v2": Policy(**_MOCO, hue=0.1),  # arXiv 2003.04297, and SimSiam
    "byol": (_BYOL, dataclasses.replace(_BYOL, blur=0.1, solarize=0.2)),  # arXiv 2006.07733
    "moco_v3": (_PAIR, dataclasses.replace(_PAIR, blur=0.1, solarize=0.2)),  # arXiv 2104.02057
    # arXiv 2103.03230, and VICReg
    "barlow_twins": (_BICUBIC, dataclasses.replace(_BICUBIC, blur=0.1, solarize=0.2)),
    "dino": (  # arXiv 2104.14294: two large views, and any number of small ones
        dataclasses.replace(_BICUBIC, crop_area=(0.14, 1.0)),
        dataclasses.replace(_BICUBIC, crop_area=(0.14, 1.0), blur=0.1, solarize=0.2),
        *[dataclasses.replace(_BICUBIC, crop_area=(0.14, 1.0), blur=0.5)] * 30,
    ),
    "lejepa": dataclasses.replace(
        _PAIR, crop_area=(0.3, 1.0), blur=0.5, solarize=0.2
    ),  # arXiv 2511.08544
    "swav": Policy(
        **_TORCH, crop_area=(0.14, 1.0)
    ),  # arXiv 2006.09882; the small crops take areas of 0.05 to 0.14
    "infomin": Policy(
        **_TORCH, crop_area=(0.2, 1.0), gray_at="last", randaugment=2
    ),  # arXiv 2005.10243
    "cifar": _CIFAR,  # SimCLR's for 32 pixels
    "cifar_byol": (_CIFAR_BYOL, dataclasses.replace(_CIFAR_BYOL, solarize=0.2)),  # lightly's BYOL
}


def from_file(path: str) -> tuple[Policy, ...]:
    """The policies of a JSON file: one object of the fields of `Policy`, or a list of such, one for
    each view. What it leaves out has its default there, which is SimCLR's.

    Raises:
      UserError: it cannot be read; a field is unknown, has another type, or is out of range.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            content = json.load(file)
    except (tf.errors.OpError, ValueError) as error:
        raise UserError(f"augmentation={path} cannot be read: {one_line(error)}") from error
    views = content if isinstance(content, list) else [content]
    if not views or not all(isinstance(view, dict) for view in views):
        raise UserError(f"augmentation={path}: it holds no object {{field: value}}, nor a list")
    defaults = {field.name: field.default for field in dataclasses.fields(Policy)}
    policies = []
    for view in views:
        for name, value in view.items():
            if name not in defaults:
                raise UserError(
                    f"augmentation={path}: a policy has no field {name!r}; there are "
                    f"{', '.join(defaults)}"
                )
            if not _is_like(value, defaults[name]):
                raise UserError(
                    f"augmentation={path}: {name} is {json.dumps(value)}, and takes "
                    f"{_kind_of(defaults[name])}, such as {json.dumps(defaults[name])}"
                )
        known: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in view.items()
        }
        try:
            policies.append(Policy(**known))
        except UserError as error:
            raise UserError(f"augmentation={path}: {error}") from error
    return tuple(policies)


def _kind_of(default: object) -> str:
    kinds = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}
    return kinds.get(type(default), "two numbers, the smaller first")


def _is_like(value: object, default: object) -> bool:
    """Whether a value of JSON has the type of a default."""
    if isinstance(default, tuple):
        pair = isinstance(value, list) and len(value) == 2 and all(_is_like(v, 0.5) for v in value)
        return isinstance(value, list) and pair and value[0] <= value[1]
    if isinstance(default, float):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return type(value) is type(default)


def per_view(
    policy: str | Policy | Sequence[Policy], views: int, strength: float = 1.0
) -> tuple[Policy, ...]:
    """One policy for each view.

    Args:
      policy: a name in `POLICIES`, the path of a file that ends in .json (see `from_file`), a
        `Policy`, or a tuple of them; a tuple is repeated where there are more views.
      views: how many views.
      strength: scales the ranges of the color jitter.

    Returns:
      A tuple of `views` policies.

    Raises:
      UserError: an unknown name, or what `from_file` raises.
    """
    if isinstance(policy, str):
        if policy.endswith(".json"):
            policy = from_file(policy)
        elif policy not in POLICIES:
            raise UserError(
                f"no augmentation policy {policy!r}: choose one of {', '.join(POLICIES)}, or a "
                "file, FILE.json"
            )
        else:
            policy = POLICIES[policy]
    policies = (policy,) if isinstance(policy, Policy) else tuple(policy)
    return tuple(policies[i % len(policies)].scaled(strength) for i in range(views))
