"""Operations on one image, for the host: decoding, crops, resizing, flips. uint8 in, uint8 out.

Every function takes an image as the scalar string of an encoded file (JPEG, PNG, GIF, BMP, and what else the
installed TensorFlow decodes), or as a uint8 tensor [H, W, C] with C = 1, 2 (gray and alpha), 3 or 4 (RGB and alpha),
and gives RGB as uint8 [H, W, 3]: bytes are a quarter of floats in memory and on the way to the device, where floats
are made. Functions run eagerly and inside tf.data. Where the format is JPEG, crops are taken while decoding.

- Pixels are those that are stored. An EXIF orientation is ignored, as by TensorFlow: turn such photographs upright
  first (`jpegtran`, `mogrify -auto-orient`), because for a rotation task a sideways photograph is a wrong label.
- An alpha channel is dropped, 16 bits are cut to the upper 8, of an animation the first frame is taken.
- JPEGs are decoded with libjpeg's accurate integer transform and smooth chroma upsampling: the pixels are Pillow's.
  TensorFlow's default transform is off by up to 7 levels and measured no faster.
- What cannot be decoded (no image, truncated, empty) raises `tf.errors.InvalidArgumentError` when the op runs. A crop
  does not read a JPEG below its last row, so it succeeds where only later rows are missing.

Randomness is stateless: `seed` is int64 [2], (run seed, example number), and the same seed gives the same draw; where one
image is drawn for several times, `draws.fork` the seed.
"""

import tensorflow as tf

from tfssl.errors import UserError

_JPEG = {"channels": 3, "dct_method": "INTEGER_ACCURATE"}


def image_size(image):
    """Height and width, int32 [2]. Of a JPEG only the header is read; other formats are decoded."""
    image = _checked(image)
    if image.dtype != tf.string:
        return tf.shape(image)[:2]
    return tf.cond(
        _is_jpeg(image),
        lambda: _jpeg_shape(image)[:2],
        lambda: tf.shape(_decode_other(image))[:2],
    )


def decode(image):
    """The whole image, uint8 [H, W, 3]."""
    image = _checked(image)
    if image.dtype != tf.string:
        return _rgb(image)
    return tf.cond(_is_jpeg(image), lambda: tf.io.decode_jpeg(image, **_JPEG), lambda: _decode_other(image))


def decode_crop(image, box):
    """The part in `box` = int32 [y, x, h, w], uint8 [h, w, 3]: equal to slicing `decode(image)`, but faster.

    Raises InvalidArgumentError when the box leaves the image.
    """
    y, x, height, width = tf.unstack(tf.cast(box, tf.int32), num=4)
    return _crop(image, lambda shape: (tf.stack([y, x, 0]), tf.stack([height, width, 3])))


def resize(image, size, method="bilinear"):
    """`tf.image.resize` to `size` (side, or (height, width)), rounded to the nearest level; uint8 [h, w, 3].

    Not antialiased, except by the nature of "area".
    """
    image = decode(image)
    if method == "nearest":
        return tf.image.resize(image, _pair(size), method)
    # TensorFlow's bilinear kernel is vectorised for floats only: with the cast before it, it takes half the time.
    pixels = tf.image.resize(tf.cast(image, tf.float32), _pair(size), method)
    if method not in ("bilinear", "area"):
        pixels = tf.clip_by_value(pixels, 0.0, 255.0)  # cubic and Lanczos kernels overshoot
    return tf.cast(tf.round(pixels), tf.uint8)


def resize_small(image, smaller):
    """AREA resize that brings the shorter side to `smaller` and keeps the aspect (sides rounded); uint8 [h, w, 3]."""
    image = decode(image)
    size = tf.shape(image)[:2]
    shorter = tf.reduce_min(size)
    height, width = tf.unstack((2 * size * smaller + shorter) // (2 * shorter))
    return resize(image, (height, width), "area")


def central_crop(image, size):
    """The central part, uint8 [h, w, 3].

    `size` is in pixels (side, or (height, width); of an odd margin the smaller half is above and to the left), or a
    float in (0, 1], the part of each side as in `tf.image.central_crop`.
    """
    if isinstance(size, float):
        if not 0.0 < size <= 1.0:
            raise UserError(f"a central crop of {size}: it takes a part in (0, 1], or pixels as an integer")

        def choose(shape):
            sides = tf.cast(shape[:2], tf.float64)
            margin = tf.cast((sides - sides * size) / 2, tf.int32)
            return tf.concat([margin, [0]], 0), tf.concat([shape[:2] - 2 * margin, [3]], 0)

        return _crop(image, choose)
    return _fixed_crop(image, size, lambda margin: margin // 2)


def resize_central_crop(image, size, resize):
    """What evaluation sees: `resize_small` to `resize`, then the central `size`; uint8 [size, size, 3]."""
    if size > resize:
        raise UserError(f"a central crop of {size} does not fit an image resized to {resize}: take a larger resize")
    return central_crop(resize_small(image, resize), size)


def random_crop(image, seed, size):
    """A crop of `size` (side, or (height, width)) at a uniformly random place; uint8 [h, w, 3]."""
    bits = tf.raw_ops.StatelessRandomUniformFullInt(shape=[2], seed=seed, dtype=tf.int64)
    return _fixed_crop(image, size, lambda margin: tf.cast(bits % tf.cast(margin + 1, tf.int64), tf.int32))


def random_resized_crop(
    image,
    seed,
    size,
    area_range=(0.05, 1.0),
    aspect_range=(3 / 4, 4 / 3),
    min_object_covered=0.1,
    attempts=100,
    method="bilinear",
):
    """A crop of random area, aspect and place, resized to `size` (side, or (height, width)); uint8 [h, w, 3].

    `tf.image.stateless_sample_distorted_bounding_box` with the image as its only object: the aspect (width / height)
    is uniform in `aspect_range`, the height uniform among those that give an area in `area_range` (a part of the
    image's), the place uniform. A crop of less area than `min_object_covered` is drawn again, so that the defaults,
    the Inception crop of TF-slim that the 2019 study used (arXiv 1901.09005), give areas of 0.1 to 1. After
    `attempts` failures it is the whole image.
    """

    def choose(shape):
        return sample_crop(shape, seed, area_range, aspect_range, min_object_covered, attempts)

    return resize(_crop(image, choose), size, method)


def sample_crop(shape, seed, area_range, aspect_range=(3 / 4, 4 / 3), min_object_covered=0.1, attempts=100):
    """Where the crop of `random_resized_crop` lies in an image of `shape` int32 [3]: (begin, extent), int32 [3] both."""
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


def random_flip(image, seed):
    """Mirrors left and right with probability 1/2; uint8 [H, W, 3]."""
    image = decode(image)
    bits = tf.raw_ops.StatelessRandomUniformFullInt(shape=[], seed=seed, dtype=tf.int32)
    return tf.cond(bits < 0, lambda: tf.reverse(image, [1]), lambda: image)


def _checked(image):
    image = tf.convert_to_tensor(image)
    if image.dtype not in (tf.string, tf.uint8):
        raise UserError(f"an image of {image.dtype.name}: give encoded bytes (a scalar string) or uint8 [H, W, C]")
    return image


def _pair(size):
    return (size, size) if isinstance(size, int) else size


def _is_jpeg(data):
    return tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"


def _jpeg_shape(data):
    shape = tf.io.extract_jpeg_shape(data)
    shape.set_shape([3])
    return shape


def _rgb(image):
    """uint8 [H, W, C] -> [H, W, 3]."""
    channels = image.shape[-1]
    if channels == 3:
        return image
    if channels == 4:
        return image[..., :3]
    if channels in (1, 2):
        return tf.repeat(image[..., :1], 3, axis=-1)
    if channels is not None:
        raise UserError(f"an image of {channels} channels: give 1 (gray), 2 (gray, alpha), 3 (RGB) or 4 (RGB, alpha)")
    return tf.cond(tf.shape(image)[-1] >= 3, lambda: image[..., :3], lambda: tf.repeat(image[..., :1], 3, axis=-1))


def _crop(image, choose):
    """The part that `choose(shape int32 [3]) -> (begin [3], extent [3])` names; of a JPEG no more is decoded."""
    image = _checked(image)

    def cut(pixels):
        return tf.slice(pixels, *choose(tf.shape(pixels)))

    def decode_jpeg():
        shape = _jpeg_shape(image)
        begin, extent = choose(shape)
        # In the first and last column that is decoded the chroma has no neighbour to be interpolated with, and is off
        # by up to 50 levels. So decode a column more on either side; above and below libjpeg itself sees to it.
        low = tf.maximum(begin - [0, 1, 0], 0)
        high = tf.minimum(begin + extent + [0, 1, 0], shape)
        window = tf.concat([low[:2], (high - low)[:2]], 0)
        return tf.slice(tf.io.decode_and_crop_jpeg(image, window, **_JPEG), begin - low, extent)

    if image.dtype != tf.string:
        crop = cut(_rgb(image))
    else:
        crop = tf.cond(_is_jpeg(image), decode_jpeg, lambda: cut(_decode_other(image)))
    crop.set_shape([None, None, 3])
    return crop


def _fixed_crop(image, size, place):
    """A crop of a fixed size (side or pair), at the offset that `place(margin int32 [2])` gives."""
    height, width = _pair(size)

    def choose(shape):
        margin = shape[:2] - [height, width]
        too_small = f"the image is smaller than the crop of {height} x {width}"
        with tf.control_dependencies([tf.debugging.assert_non_negative(margin, message=too_small)]):
            return tf.concat([place(margin), [0]], 0), tf.constant([height, width, 3])

    crop = _crop(image, choose)
    crop.set_shape([height, width, 3])
    return crop


def _decode_other(data):
    """Decodes what is not JPEG."""
    # A BMP of 1, 4 or 8 bits has a palette: TensorFlow takes its indices for gray levels, or refuses.
    pixels = tf.cond(
        tf.strings.regex_full_match(data, r"BM\C{26}[\x01\x04\x08]\C*"),  # byte 28: bits per pixel
        lambda: _decode_palette_bmp(data),
        lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
    )
    pixels.set_shape([None, None, 3])
    return pixels


def _decode_palette_bmp(data):
    contents = tf.io.decode_raw(data, tf.uint8)
    pixels_at, header, width, height = tf.unstack(tf.bitcast(tf.reshape(contents[10:26], [4, 4]), tf.int32))
    bits = tf.cast(contents[28], tf.int32)
    bytes_of_row = (width * bits + 31) // 32 * 4
    rows = tf.cast(contents[pixels_at : pixels_at + bytes_of_row * tf.abs(height)], tf.int32)
    rows = tf.reshape(rows, [tf.abs(height), bytes_of_row, 1])
    parts = tf.bitwise.right_shift(rows, 8 - bits * tf.range(1, 8 // bits + 1))  # of each byte, the first pixel highest
    index = tf.reshape(parts % tf.bitwise.left_shift(1, bits), [tf.abs(height), -1])[:, :width]
    index = tf.cond(height > 0, lambda: index[::-1], lambda: index)  # stored from the bottom up
    palette = tf.reshape(contents[14 + header : pixels_at], [-1, 4])[:, 2::-1]  # stored as blue, green, red, 0
    return tf.gather(palette, index)
