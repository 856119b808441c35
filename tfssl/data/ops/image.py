"""Operations on one image, for the host: decoding, crops, resizing, flips. uint8 in, uint8 out.

Every function takes an image as the scalar string of an encoded file (JPEG, PNG, GIF, BMP, and what
else the installed TensorFlow decodes), or as a uint8 tensor [H, W, C] with C = 1, 2 (gray and
alpha), 3 or 4 (RGB and alpha), and gives RGB as uint8 [H, W, 3]: bytes are a quarter of floats in
memory and on the way to the device, where floats are made. Functions run eagerly and inside
tf.data. Where the format is JPEG, crops are taken while decoding.

Or it is float32 [H, W, C] in [0, 1], with any static number of channels (`pixels`): then so is the
result, with as many, and nothing is rounded.

- An EXIF orientation is honored (`orientation`): for a rotation task a sideways photograph is a
  wrong label. Sizes and boxes are those of the upright image.
- An alpha channel is dropped, 16 bits are cut to the upper 8, of an animation the first frame is
taken.
- JPEGs are decoded with libjpeg's accurate integer transform and smooth chroma upsampling: the
  pixels are Pillow's. TensorFlow's default transform is off by up to 7 levels and measured no
  faster.
- What cannot be decoded (no image, truncated, empty) raises `tf.errors.InvalidArgumentError` when
  the op runs. A crop does not read a JPEG below its last row, so it succeeds where only later rows
  are missing.
- So does what would take memory out of all proportion to its file: before it is decoded, an image
  of more than `PIXELS` pixels that has more than `PIXELS_PER_BYTE` of them in each byte of its
  file; and where it is cropped or resized, one with a side more than `LONGEST` times the other (by
  its shorter side to 256, 1 x 2000 pixels would become 256 x 512,000).

Randomness is stateless: `seed` is int64 [2], (run seed, example number), and the same seed gives
the same draw; where one image is drawn for several times, `draws.fork` the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Union

import tensorflow as tf

from tfssl.data.ops import orientation
from tfssl.data.ops.apart import apart
from tfssl.errors import UserError, check_choice

Size = Union[int, tuple[int, int]]  # in pixels: a side, or (height, width)

DECODING = 2  # counts on where the same file gives other pixels; 2: EXIF orientations are honored
SAMPLERS = ("tf", "torch", "byol")  # of `sample_crop`
LONGEST = 50  # a side, in units of the other one
PIXELS, PIXELS_PER_BYTE = (
    24 << 20,
    24,
)  # what any file may have; what a large one may have, for its size
_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}
_RATIOS = (1, 2, 4, 8)  # by which libjpeg reduces while it decodes


def image_size(image: tf.Tensor) -> tf.Tensor:
    """Height and width, int32 [2]. Of a JPEG only the header is read; other formats are decoded."""
    image = _checked(image)
    if image.dtype != tf.string:
        return tf.shape(image)[:2]
    return tf.cond(
        _is_jpeg(image),
        lambda: orientation.size(_jpeg_shape(image), orientation.of_file(image))[:2],
        lambda: tf.shape(_decode_other(image))[:2],
    )


def decode(image: tf.Tensor) -> tf.Tensor:
    """The whole image, uint8 [H, W, 3]."""
    image = _checked(image)
    if image.dtype != tf.string:
        return _rgb(image)

    def of_jpeg() -> tf.Tensor:
        with tf.control_dependencies([_bounded(_jpeg_shape(image), image)]):
            pixels = tf.io.decode_jpeg(image, **_JPEG)
        return _upright(pixels, orientation.of_file(image))

    return tf.cond(_is_jpeg(image), of_jpeg, lambda: _decode_other(image))


def decode_to_crop(image: tf.Tensor) -> tf.Tensor:
    """`decode`, of an image that is not too thin to be cropped and resized; uint8 [H, W, 3]."""
    image = decode(image)
    with tf.control_dependencies([_not_thin(tf.shape(image))]):
        return tf.identity(image)


def decode_crop(image: tf.Tensor, box: tf.Tensor) -> tf.Tensor:
    """The part in `box` = int32 [y, x, h, w], uint8 [h, w, 3]: equal to slicing `decode(image)`,
    but faster.

    Raises InvalidArgumentError when the box leaves the image.
    """
    y, x, height, width = tf.unstack(tf.cast(box, tf.int32), num=4)
    return _crop(image, lambda shape: (tf.stack([y, x, 0]), tf.stack([height, width, shape[2]])))


def resize(image: tf.Tensor, size: Size, method: str = "bilinear") -> tf.Tensor:
    """Resized to `size` (side, or (height, width)) and rounded to the nearest level; uint8
    [h, w, 3].

    Args:
      method: of `tf.image.resize`, not antialiased, except by the nature of "area"; or "pillow" and
        "pillow_bicubic": antialiased, as Pillow and torchvision resize, whose pixels they give up
        to 1 level.
    """
    image = decode_to_crop(image)
    if method == "nearest":
        return tf.image.resize(image, _pair(size), method)
    pixels = resize_levels(image, size, method)
    if image.dtype == tf.float32:
        return tf.clip_by_value(pixels, 0.0, 1.0)
    if method not in ("bilinear", "area", "pillow"):
        pixels = tf.clip_by_value(pixels, 0.0, 255.0)  # cubic and Lanczos kernels overshoot
    return tf.cast(tf.round(pixels), tf.uint8)


def resize_levels(image: tf.Tensor, size: Size, method: str) -> tf.Tensor:
    """`resize` of uint8 [H, W, 3] before it is rounded: float32 [h, w, 3], 0 to 255, and a little
    beyond by cubic kernels; of floats in their own range."""
    # The kernel of "area" reads bytes as they are; as floats, a large image is four times as much.
    if method == "area":
        return tf.cast(tf.image.resize(image, _pair(size), method), tf.float32)
    # TensorFlow's bilinear kernel is vectorized for floats only: with the cast before it, it takes
    # half the time.
    pixels = tf.cast(image, tf.float32)
    if method not in _KERNELS:
        return tf.image.resize(pixels, _pair(size), method)
    # tf.image.resize's antialias takes three times as long. Pillow's first pass, along rows,
    # gives bytes again, which cuts what a cubic kernel overshoots. (Its newest versions begin with
    # columns where that is less work.)
    height, width = _pair(size)
    pixels = _resize_rows(tf.transpose(pixels, [1, 0, 2]), width, *_KERNELS[method])
    if method == "pillow_bicubic" and image.dtype == tf.uint8:
        pixels = tf.clip_by_value(tf.round(pixels), 0.0, 255.0)
    return _resize_rows(tf.transpose(pixels, [1, 0, 2]), height, *_KERNELS[method])


def resize_small(image: tf.Tensor, smaller: int) -> tf.Tensor:
    """AREA resize that brings the shorter side to `smaller` and keeps the aspect (sides rounded);
    uint8 [h, w, 3]."""
    image = decode_to_crop(image)
    size = tf.shape(image)[:2]
    shorter = tf.reduce_min(size)
    height, width = tf.unstack((2 * size * smaller + shorter) // (2 * shorter))
    return resize(image, (height, width), "area")


def central_crop(image: tf.Tensor, size: Size | float) -> tf.Tensor:
    """The central part, uint8 [h, w, 3].

    `size` is in pixels (side, or (height, width); of an odd margin the smaller half is above and to
    the left), or a float in (0, 1], the part of each side as in `tf.image.central_crop`.
    """
    if isinstance(size, float):
        if not 0.0 < size <= 1.0:
            raise UserError(
                f"a central crop of {size}: it takes a part in (0, 1], or pixels as an integer"
            )

        def choose(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            sides = tf.cast(shape[:2], tf.float64)
            margin = tf.cast((sides - sides * size) / 2, tf.int32)
            return tf.concat([margin, [0]], 0), tf.concat([shape[:2] - 2 * margin, shape[2:]], 0)

        return _crop(image, choose)
    return _fixed_crop(image, size, lambda margin: margin // 2)


def resize_central_crop(image: tf.Tensor, size: int, resize: int) -> tf.Tensor:
    """What evaluation sees: `resize_small` to `resize`, then the central `size`; uint8
    [size, size, 3]."""
    if size > resize:
        raise UserError(
            f"a central crop of {size} does not fit an image resized to {resize}: take a larger "
            "resize"
        )
    return central_crop(resize_small(image, resize), size)


def random_crop(image: tf.Tensor, seed: tf.Tensor, size: Size) -> tf.Tensor:
    """A crop of `size` (side, or (height, width)) at a uniformly random place; uint8 [h, w, 3]."""
    bits = tf.raw_ops.StatelessRandomUniformFullInt(shape=[2], seed=seed, dtype=tf.int64)
    return _fixed_crop(
        image, size, lambda margin: tf.cast(bits % tf.cast(margin + 1, tf.int64), tf.int32)
    )


def random_resized_crop(
    image: tf.Tensor,
    seed: tf.Tensor,
    size: Size,
    area_range: tuple[float, float] = (0.05, 1.0),
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
    min_object_covered: float = 0.1,
    attempts: int = 100,
    method: str = "bilinear",
    sampler: str = "tf",
) -> tf.Tensor:
    """A crop of random area, aspect and place, resized to `size` (side, or (height, width)); uint8
    [h, w, 3].

    The defaults are the Inception crop of TF-slim that the 2019 study used (arXiv 1901.09005),
    whose areas are 0.1 to 1. Arguments: see `sample_crop` and `resize`; of a crop of twice the size
    or more, see `cut`.
    """

    def choose(shape: tf.Tensor) -> list[tuple[tf.Tensor, tf.Tensor]]:
        return [
            sample_crop(
                shape, seed, area_range, aspect_range, min_object_covered, attempts, sampler
            )
        ]

    return resize(cut(image, choose, [_pair(size)])[0], size, method)


def cut(
    image: tf.Tensor,
    choose: Callable[[tf.Tensor], Sequence[tuple[tf.Tensor, tf.Tensor]]],
    sizes: Sequence[tuple[int, int] | None],
) -> list[tf.Tensor]:
    """Parts of one image, decoded once: list of uint8 [h, w, 3], each at least as large as its
    entry of `sizes`, or its part.

    A part of twice, four or eight times its size or more, on both sides, is reduced as often, and a
    resize that interpolates between neighbors then misses little: white noise of 64 levels from
    2240 to 224 pixels keeps 5, and not 31 (Pillow's antialiased resize: 4). By what all parts
    allow, a JPEG is reduced within its decoder, which is less work; by the rest, parts become means
    of squares.

    Args:
      image: encoded, or uint8 [H, W, C].
      choose: function (shape int32 [3] of the image) -> list of (begin, extent), int32 [3] each; it
        may be called twice.
      sizes: list of (height, width) in pixels that the parts will be resized to, or None, which
        reduces nothing.

    Raises:
      InvalidArgumentError: a part leaves the image, or the image cannot be decoded as far as its
        lowest part.
    """
    image = _checked(image)
    least = tf.constant([size or (1 << 30, 1 << 30) for size in sizes])  # Px2; no part is so large

    def boxes(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Begins and extents, int32 [P, 3], and how many times each part is as large as its size
        [P]."""
        begins, extents = (tf.stack(ends) for ends in zip(*choose(shape)))
        return begins, extents, tf.reduce_min(extents[:, :2] // least, 1)

    def slices(pixels: tf.Tensor, begins: tf.Tensor, extents: tf.Tensor) -> list[tf.Tensor]:
        return [tf.slice(pixels, *box) for box in zip(tf.unstack(begins), tf.unstack(extents))]

    def unless_all_fit(
        times: tf.Tensor,
        reduced: Callable[[], list[tf.Tensor]],
        whole: Callable[[], list[tf.Tensor]],
    ) -> list[tf.Tensor]:
        """One question for all parts: most images have none to reduce, and small ones are decoded
        in the time of a hundred ops."""
        return tf.cond(tf.reduce_max(times) < 2, whole, reduced) if any(sizes) else whole()

    def of_pixels(pixels: tf.Tensor) -> list[tf.Tensor]:
        shape = tf.shape(pixels)
        with tf.control_dependencies([_not_thin(shape)]):
            begins, extents, times = boxes(tf.identity(shape))
        found = slices(pixels, begins, extents)
        return unless_all_fit(times, lambda: _each_reduced(found, _ratios(times)), lambda: found)

    def of_jpeg() -> list[tf.Tensor]:
        shape = tf.concat([_jpeg_shape(image)[:2], [3]], 0)  # of gray ones, too
        turn = orientation.of_file(image)
        with tf.control_dependencies([_bounded(shape, image), _not_thin(shape)]):
            seen = orientation.size(shape, turn)
            begins, extents, times = boxes(seen)
        begins, extents = orientation.stored(begins, extents, seen, turn)

        def decoded(
            begins: tf.Tensor,
            extents: tf.Tensor,
            shape: tf.Tensor,
            decode: Callable[[tf.Tensor], tf.Tensor],
        ) -> list[tf.Tensor]:
            # In the first and last column that is decoded the chroma has no neighbor to be
            # interpolated with, and is off by up to 50 levels. So decode a column more on either
            # side; above and below libjpeg itself sees to it.
            low = tf.maximum(tf.reduce_min(begins, 0) - [0, 1, 0], 0)
            high = tf.minimum(tf.reduce_max(begins + extents, 0) + [0, 1, 0], shape)
            return slices(decode(tf.concat([low[:2], (high - low)[:2]], 0)), begins - low, extents)

        def decode_by(ratio: int) -> Callable[[tf.Tensor], tf.Tensor]:
            return lambda window: tf.raw_ops.DecodeAndCropJpeg(
                contents=image, crop_window=window, ratio=ratio, **_JPEG
            )

        def reduced() -> list[tf.Tensor]:
            ratios = _ratios(times)
            ratio = tf.reduce_min(ratios)
            number = tf.reduce_sum(tf.cast(tf.constant(_RATIOS[1:]) <= ratio, tf.int32))
            low, high = ((corners + ratio // 2) // ratio for corners in (begins, begins + extents))
            small = tf.pad((high - low)[:, :2], [[0, 0], [0, 1]], constant_values=3)
            found = decoded(
                low,
                small,
                (shape + ratio - 1) // ratio,
                lambda window: tf.switch_case(
                    number, [lambda by=by: decode_by(by)(window) for by in _RATIOS]
                ),
            )
            return _each_reduced(found, ratios // ratio)

        found = unless_all_fit(
            times, reduced, lambda: decoded(begins, extents, shape, decode_by(1))
        )
        return orientation.upright(found, turn)

    if image.dtype != tf.string:
        found = of_pixels(_rgb(image))
    else:
        found = tf.cond(_is_jpeg(image), of_jpeg, lambda: of_pixels(_decode_other(image)))
    for part in found:
        part.set_shape([None, None, _channels(image)])
    return found


def shrink(image: tf.Tensor, size: Size) -> tf.Tensor:
    """The whole image, reduced by 2, 4 or 8 where it is so much larger than `size` (side or pair),
    as by `cut`; uint8 [h, w, 3]."""
    return cut(image, lambda shape: [(tf.zeros_like(shape), shape)], [_pair(size)])[0]


def sample_crop(
    shape: tf.Tensor,
    seed: tf.Tensor,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float] = (3 / 4, 4 / 3),
    min_object_covered: float = 0.1,
    attempts: int = 100,
    sampler: str = "tf",
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where a random crop lies in an image of `shape` int32 [3]: (begin, extent), int32 [3] both.

    Args:
      seed: int64 [2].
      area_range: least and largest area, as parts of the image's.
      aspect_range: least and largest width / height.
      min_object_covered: "tf" draws crops of a smaller part of the image again.
      attempts: of "tf", after which the crop is the whole image.
      sampler: the published procedures; the place is uniform in all. "tf":
        `tf.image.stateless_sample_distorted_bounding_box` with the image as its only object
        (TF-slim, SimCLR): the aspect is uniform,
          the height uniform among those that give an area in the range.
        "torch": torchvision's RandomResizedCrop (MoCo, SwAV, ...): area and the logarithm of the
        aspect uniform; drawn again where they do
          not fit the image, up to ten times; then the largest central crop whose aspect is in the
          range.
        "byol": of BYOL's code: area and the logarithm of the aspect uniform, then the sides cut to
        the image's.

    Raises:
      UserError: an unknown sampler; a `min_object_covered` that no area in the range reaches.
    """
    check_choice("sampler", sampler, SAMPLERS)
    if sampler != "tf":
        return _sample_area(shape, seed, area_range, aspect_range, clip=sampler == "byol")
    if min_object_covered > area_range[1]:
        raise UserError(
            f"crops with areas up to {area_range[1]} never cover {min_object_covered} of the "
            "image: take a smaller min_object_covered"
        )
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        bounding_boxes=tf.zeros([0, 0, 4]),
        seed=seed,
        min_object_covered=min_object_covered,
        aspect_ratio_range=aspect_range,
        area_range=area_range,
        max_attempts=attempts,
        use_image_if_no_bounding_boxes=True,
    )
    return begin, extent


def random_flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mirrors left and right with probability 1/2; uint8 [H, W, 3]."""
    image = decode(image)
    bits = tf.raw_ops.StatelessRandomUniformFullInt(shape=[], seed=seed, dtype=tf.int32)
    return tf.cond(bits < 0, lambda: tf.reverse(image, [1]), lambda: image)


def _checked(image: tf.Tensor) -> tf.Tensor:
    image = tf.convert_to_tensor(image)
    if image.dtype not in (tf.string, tf.uint8, tf.float32):
        raise UserError(
            f"an image of {image.dtype.name}: give encoded bytes (a scalar string), uint8 [H, W, "
            "C], or float32 [H, W, C] in [0, 1]"
        )
    return image


def _pair(size: Size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _is_jpeg(data: tf.Tensor) -> tf.Tensor:
    return tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"


def _jpeg_shape(data: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(data)
    shape.set_shape([3])
    return shape


def _channels(image: tf.Tensor) -> int | None:
    return image.shape[-1] if image.dtype == tf.float32 else 3


def _bounded(shape: tf.Tensor, data: tf.Tensor, channels: int = 1) -> tf.Operation:
    """An op that fails where an encoded image of `shape`, int32 [3], has too many pixels, as such
    and for its file; of several `channels` in float32, each counts."""
    height, width, _ = tf.unstack(shape)
    most = tf.maximum(PIXELS_PER_BYTE * tf.cast(tf.strings.length(data), tf.int64), PIXELS)
    few = tf.cast(height, tf.int64) * tf.cast(width, tf.int64) * channels <= most
    what = (
        f"more than {PIXELS} pixels, and more than {PIXELS_PER_BYTE} for each byte of the file; "
        "height, width:"
    )
    return tf.raw_ops.Assert(condition=few, data=[what, height, width])


def _not_thin(shape: tf.Tensor) -> tf.Operation:
    """An op that fails where one side of an image of `shape`, int32 [3], is out of proportion to
    the other."""
    height, width, _ = tf.unstack(shape)
    proportionate = tf.maximum(height, width) <= LONGEST * tf.minimum(height, width)
    what = f"one side is more than {LONGEST} times the other; height, width:"
    return tf.raw_ops.Assert(condition=proportionate, data=[what, height, width])


def _rgb(image: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, C] -> [H, W, 3]; floats as they are."""
    channels = image.shape[-1]
    if channels == 3 or image.dtype == tf.float32:
        return image
    if channels == 4:
        return image[..., :3]
    if channels in (1, 2):
        return tf.repeat(image[..., :1], 3, axis=-1)
    if channels is not None:
        raise UserError(
            f"an image of {channels} channels: give 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, "
            "alpha)"
        )
    return tf.cond(
        tf.shape(image)[-1] >= 3,
        lambda: image[..., :3],
        lambda: tf.repeat(image[..., :1], 3, axis=-1),
    )


def _crop(
    image: tf.Tensor, choose: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
) -> tf.Tensor:
    """The part that `choose(shape int32 [3]) -> (begin [3], extent [3])` names; of a JPEG no more
    is decoded."""
    return cut(image, lambda shape: [choose(shape)], [None])[0]


def _ratios(times: tf.Tensor) -> tf.Tensor:
    """The largest of `_RATIOS` that is at most so many times, int32 [P], of each."""
    return tf.reduce_max(tf.where(tf.constant(_RATIOS) <= times[:, None], _RATIOS, 1), 1)


def _each_reduced(parts: Sequence[tf.Tensor], ratios: tf.Tensor) -> list[tf.Tensor]:
    """Means of ratio x ratio pixels, about, where the sides are no multiples; uint8."""

    def means(part: tf.Tensor, ratio: tf.Tensor) -> Callable[[], tf.Tensor]:
        return lambda: resize(part, tf.unstack(tf.shape(part)[:2] // ratio), "area")

    ratios = tf.unstack(ratios, len(parts))
    return [
        tf.cond(r > 1, means(part, r), lambda part=part: part) for part, r in zip(parts, ratios)
    ]


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.relu(1 - tf.abs(x))


def _cubic(x: tf.Tensor) -> tf.Tensor:
    """Keys's kernel with a = -1/2."""
    x = tf.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return tf.where(x < 1, near, tf.where(x < 2, far, 0.0))


_KERNELS = {"pillow": (_triangle, 1), "pillow_bicubic": (_cubic, 2)}  # and half-widths


def _resize_rows(
    pixels: tf.Tensor,
    size: int | tf.Tensor,
    kernel: Callable[[tf.Tensor], tf.Tensor],
    half_width: int,
) -> tf.Tensor:
    """Antialiased resize of the first axis of float32 [H, W, 3]: each new row is a mean of those
    about its center, weighted by a kernel whose unit is H / size rows, or 1 where that is less."""
    height, width, channels = tf.unstack(tf.shape(pixels))
    step = tf.cast(height, tf.float32) / tf.cast(size, tf.float32)
    unit = tf.maximum(step, 1.0)
    reach = half_width * unit
    center = (tf.range(size, dtype=tf.float32) + 0.5) * step  # of each new row
    row = tf.cast(tf.floor(center - reach + 0.5), tf.int32)[:, None] + tf.range(
        2 * tf.cast(tf.math.ceil(reach), tf.int32) + 1
    )
    weights = kernel((tf.cast(row, tf.float32) + 0.5 - center[:, None]) / unit)  # size x taps
    weights = tf.where((row >= 0) & (row < height), weights, 0.0)
    weights /= tf.reduce_sum(weights, 1, keepdims=True)
    new = tf.broadcast_to(tf.range(size)[:, None], tf.shape(row))
    places = tf.stack([new, tf.clip_by_value(row, 0, height - 1)], -1)
    rows = tf.raw_ops.SparseTensorDenseMatMul(
        a_indices=tf.cast(tf.reshape(places, [-1, 2]), tf.int64),
        a_values=tf.reshape(weights, [-1]),
        a_shape=tf.cast(tf.stack([size, height]), tf.int64),
        b=tf.reshape(pixels, tf.stack([height, channels * width])),
    )
    rows = tf.reshape(rows, tf.stack([size, width, channels]))
    rows.set_shape([None, None, pixels.shape[-1]])
    return rows


def _sample_area(
    shape: tf.Tensor,
    seed: tf.Tensor,
    area_range: tuple[float, float],
    aspect_range: tuple[float, float],
    clip: bool,
    attempts: int = 10,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The samplers "torch" and, if `clip`, "byol" of `sample_crop`."""
    image = tf.cast(shape[:2], tf.float32)  # height, width
    draws = tf.random.stateless_uniform([1 if clip else attempts, 4], seed)
    area = tf.reduce_prod(image) * (area_range[0] + (area_range[1] - area_range[0]) * draws[:, 0])
    low, high = (math.log(aspect) for aspect in aspect_range)
    root = tf.exp(
        (low + (high - low) * draws[:, 1:2]) * tf.constant([-0.5, 0.5])
    )  # sqrt(1 / aspect), sqrt(aspect)
    sides = tf.round(tf.sqrt(area)[:, None] * root)  # [attempts, 2]: height, width
    if clip:
        sides = tf.minimum(sides, image)
    fits = tf.reduce_all((sides >= 1) & (sides <= image), 1)
    first = tf.argmax(tf.cast(fits, tf.int32))
    central = tf.minimum(
        tf.round(image[::-1] * tf.constant([1 / aspect_range[0], aspect_range[1]])), image
    )
    found, place = tf.reduce_any(fits), draws[first, 2:]
    extent = tf.where(found, sides[first], central)
    room = image - extent
    begin = tf.minimum(tf.floor(tf.where(found, place * (room + 1), room / 2)), room)
    return tuple(
        tf.concat([tf.cast(x, tf.int32), [last]], 0) for x, last in ((begin, 0), (extent, shape[2]))
    )


def bounded(data: tf.Tensor, channels: int) -> tf.Tensor:
    """An encoded image, a scalar string, that may become float32 [H, W, channels]: an op that fails
    where it has too many values for its file."""
    shape = tf.cond(_is_jpeg(data), lambda: _jpeg_shape(data), lambda: _told_shape(data))
    with tf.control_dependencies([_bounded(shape, data, channels)]):
        return tf.identity(data)


def of_jpeg_or(
    data: tf.Tensor, jpeg: Callable[[], tf.Tensor], other: Callable[[], tf.Tensor]
) -> tf.Tensor:
    """What either function gives, by the format of an encoded image."""
    return tf.cond(_is_jpeg(data), jpeg, other)


def decode_gray_jpeg(data: tf.Tensor) -> tf.Tensor:
    """The luma of a JPEG as it is stored, upright: uint8 [H, W, 1]."""
    pixels = tf.io.decode_jpeg(data, **{**_JPEG, "channels": 1})
    return orientation.upright([pixels], orientation.of_file(data))[0]


def decode_png16(data: tf.Tensor, channels: int) -> tf.Tensor:
    """A PNG, upright: uint16 [H, W, channels] (0: its own). 8 bits are times 257."""
    pixels = tf.io.decode_png(data, channels, tf.uint16)
    return orientation.upright([pixels], orientation.of_file(data))[0]


def _upright(pixels: tf.Tensor, turn: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3], turned as an orientation says."""
    (pixels,) = orientation.upright([pixels], turn)
    pixels.set_shape([None, None, 3])
    return pixels


def _fixed_crop(image: tf.Tensor, size: Size, place: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """A crop of a fixed size (side or pair), at the offset that `place(margin int32 [2])` gives."""
    height, width = _pair(size)

    def choose(shape: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        margin = shape[:2] - [height, width]
        too_small = f"the image is smaller than the crop of {height} x {width}"
        with tf.control_dependencies([tf.debugging.assert_non_negative(margin, message=too_small)]):
            return tf.concat([place(margin), [0]], 0), tf.stack([height, width, shape[2]])

    crop = _crop(image, choose)
    crop.set_shape([height, width, crop.shape[-1]])
    return crop


def _decode_other(data: tf.Tensor) -> tf.Tensor:
    """Decodes what is not JPEG."""
    # Most are PNGs with both sides below 0x1300 = 4864 pixels, which is told faster than the number
    # of their pixels.
    usual = tf.strings.regex_full_match(  # \C: patterns are UTF-8, and 0x89 alone is not
        tf.strings.substr(data, 0, 24), r"\CPNG\C{12}(\x00\x00[\x00-\x12]\C){2}"
    )
    pixels = tf.cond(usual, lambda: _decode_any(data), lambda: _decode_unusual(data))
    return _upright(pixels, orientation.of_file(data))


def _decode_any(data: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_image(data, channels=3, expand_animations=False)


@apart
def _decode_unusual(data: tf.Tensor) -> tf.Tensor:
    def of_bounded() -> tf.Tensor:
        with tf.control_dependencies([_bounded(_told_shape(data), data)]):
            return _decode_any(data)

    # A BMP of 1, 4 or 8 bits has a palette: TensorFlow takes its indices for gray levels, or
    # refuses.
    palette = tf.strings.regex_full_match(
        data, r"BM\C{26}[\x01\x04\x08]\C*"
    )  # byte 28: bits per pixel
    return tf.cond(palette, lambda: _decode_palette_bmp(data), of_bounded)


def _told_shape(data: tf.Tensor) -> tf.Tensor:
    """[height, width, 3] as the header of a PNG or GIF tells it, int32; [1, 1, 3] of others, whose
    size is that of their file."""
    head = tf.strings.substr(data, 0, 24) + bytes(24)  # some files are shorter
    png = tf.io.decode_raw(tf.strings.substr(head, 16, 8), tf.int32, little_endian=False)
    gif = tf.cast(tf.io.decode_raw(tf.strings.substr(head, 6, 4), tf.uint16), tf.int32)
    is_png, is_gif = (
        tf.strings.substr(head, 0, 4) == b"\x89PNG",
        tf.strings.substr(head, 0, 3) == b"GIF",
    )
    width, height = tf.unstack(tf.where(is_png, png, tf.where(is_gif, gif, 1)), num=2)
    return tf.stack([height, width, 3])


def _decode_palette_bmp(data: tf.Tensor) -> tf.Tensor:
    contents = tf.io.decode_raw(data, tf.uint8)
    pixels_at, header, width, height = tf.unstack(
        tf.bitcast(tf.reshape(contents[10:26], [4, 4]), tf.int32)
    )
    bits = tf.cast(contents[28], tf.int32)
    bytes_of_row = (width * bits + 31) // 32 * 4
    rows = tf.cast(contents[pixels_at : pixels_at + bytes_of_row * tf.abs(height)], tf.int32)
    rows = tf.reshape(rows, [tf.abs(height), bytes_of_row, 1])
    parts = tf.bitwise.right_shift(
        rows, 8 - bits * tf.range(1, 8 // bits + 1)
    )  # of each byte, the first pixel highest
    index = tf.reshape(parts % tf.bitwise.left_shift(1, bits), [tf.abs(height), -1])[:, :width]
    index = tf.cond(height > 0, lambda: index[::-1], lambda: index)  # stored from the bottom up
    palette = tf.reshape(contents[14 + header : pixels_at], [-1, 4])[
        :, 2::-1
    ]  # stored as blue, green, red, 0
    return tf.gather(palette, index)
