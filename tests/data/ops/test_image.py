"""tfssl.data.ops.image against Pillow, NumPy and the definitions of the operations, eagerly and
inside tf.data."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from PIL import Image, ImageOps
from runs import PROCESSES
from sklearn.datasets import load_sample_images

from tfssl.data.ops import image as ops
from tfssl.data.ops.draws import fork
from tfssl.errors import UserError, reason_of

PHOTO = load_sample_images().images[0][:201, 40:277]  # odd sides, so that no block of a codec fits
HEIGHT, WIDTH = PHOTO.shape[:2]
ALPHA = np.random.default_rng(0).integers(0, 256, [HEIGHT, WIDTH], np.uint8)
GRAY16 = np.random.default_rng(1).integers(0, 65536, [HEIGHT, WIDTH], np.uint16)
RGB16 = np.random.default_rng(2).integers(0, 65536, [HEIGHT, WIDTH, 3], np.uint16)


def encoded(picture, codec, **options):
    file = io.BytesIO()
    picture.save(file, codec, **options)
    return file.getvalue()


def four_bits(picture):
    """A BMP of 16 colors, which Pillow reads and does not write."""
    pixels = np.pad(
        np.asarray(picture)[::-1], [[0, 0], [0, -WIDTH % 8]]
    )  # from the bottom up, in rows of whole 4 bytes
    body = (pixels[:, ::2] << 4 | pixels[:, 1::2]).astype(np.uint8).tobytes()
    palette = np.zeros([16, 4], np.uint8)
    palette[:, :3] = np.asarray(picture.getpalette()[:48]).reshape(16, 3)[:, ::-1]
    header = struct.pack(
        "<2sIHHIIiiHHIIiiII",
        b"BM",
        118 + len(body),
        0,
        0,
        118,
        40,
        WIDTH,
        HEIGHT,
        1,
        4,
        0,
        len(body),
        0,
        0,
        16,
        0,
    )
    return header + palette.tobytes() + body


def files():
    rgb = Image.fromarray(PHOTO)
    gray, cmyk, palette, bilevel = (rgb.convert(mode) for mode in ("L", "CMYK", "P", "1"))
    gray_alpha, rgb_alpha = gray.copy(), rgb.copy()
    for picture in (gray_alpha, rgb_alpha):
        picture.putalpha(Image.fromarray(ALPHA))
    sideways = Image.Exif()
    sideways[0x0112] = 6  # orientation: turn by 90 degrees to show
    frames = {"save_all": True, "append_images": [rgb.rotate(180).convert("P")]}
    return {
        "jpeg": encoded(rgb, "JPEG", quality=90),
        "jpeg 4:2:2": encoded(rgb, "JPEG", quality=90, subsampling=1),
        "jpeg 4:4:4": encoded(rgb, "JPEG", quality=90, subsampling=0),
        "jpeg progressive": encoded(rgb, "JPEG", quality=90, progressive=True),
        "jpeg gray": encoded(gray, "JPEG", quality=90),
        "jpeg cmyk": encoded(cmyk, "JPEG", quality=90),
        "jpeg exif": encoded(rgb, "JPEG", quality=90, exif=sideways),
        "png gray": encoded(gray, "PNG"),
        "png gray alpha": encoded(gray_alpha, "PNG"),
        "png rgb": encoded(rgb, "PNG"),
        "png rgb alpha": encoded(rgb_alpha, "PNG"),
        "png palette": encoded(palette, "PNG"),
        "png palette transparent": encoded(palette, "PNG", transparency=3),
        "png 1 bit": encoded(bilevel, "PNG"),
        "png gray 16": encoded(Image.fromarray(GRAY16), "PNG"),
        "png rgb 16": tf.io.encode_png(RGB16).numpy(),
        "gif": encoded(palette, "GIF"),
        "gif animated": encoded(palette, "GIF", **frames),
        "bmp gray": encoded(gray, "BMP"),
        "bmp palette": encoded(palette, "BMP"),
        "bmp 16 colours": encoded(rgb.quantize(16), "BMP"),
        "bmp 4 bits": four_bits(rgb.quantize(16)),
        "bmp 1 bit": encoded(bilevel, "BMP"),
        "bmp 24": encoded(rgb, "BMP"),
        "bmp 32": encoded(rgb_alpha, "BMP"),
    }


FILES = files()
JPEGS = [name for name in FILES if name.startswith("jpeg")]


def pillow(name):
    """The pixels as Pillow reads them, or, where it has no 16 bit colors, as they were written."""
    if name.endswith("16"):
        pixels = (GRAY16 if "gray" in name else RGB16) >> 8
        return np.broadcast_to(
            pixels if pixels.ndim == 3 else pixels[..., None], [HEIGHT, WIDTH, 3]
        )
    picture = Image.open(io.BytesIO(FILES[name]))
    return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))


def in_both_modes(op, image, *others):
    """op(image, ...) eagerly and inside tf.data, which must agree; -> NumPy."""
    eager = op(image, *others)
    data = tf.data.Dataset.from_tensors((image, *others)).map(op)
    graph = data.get_single_element()
    np.testing.assert_array_equal(eager, graph)
    assert (
        data.element_spec.dtype == eager.dtype and data.element_spec.shape.rank == eager.shape.rank
    )
    return eager.numpy()


@pytest.mark.parametrize("name", FILES)
def test_decoded_pixels_are_pillows(name):
    pixels = in_both_modes(ops.decode, FILES[name])
    assert pixels.dtype == np.uint8
    # Two builds of libjpeg may round differently; its fast transform is off by 4 levels on these
    # files.
    np.testing.assert_allclose(
        pixels.astype(int), pillow(name).astype(int), rtol=0, atol=1 if name in JPEGS else 0
    )


def test_a_bmp_from_the_top_down_is_read():
    """A negative height says so."""
    data = bytearray(FILES["bmp 1 bit"])
    data[22:26] = (-HEIGHT).to_bytes(4, "little", signed=True)
    np.testing.assert_array_equal(ops.decode(bytes(data)), pillow("bmp 1 bit")[::-1])


@pytest.mark.parametrize("name", FILES)
def test_size_is_read_from_every_format(name):
    size = [WIDTH, HEIGHT] if name == "jpeg exif" else [HEIGHT, WIDTH]
    np.testing.assert_array_equal(in_both_modes(ops.image_size, FILES[name]), size)


def test_exif_orientation_is_honored():
    np.testing.assert_array_equal(
        ops.decode(FILES["jpeg exif"]), np.rot90(ops.decode(FILES["jpeg"]), -1)
    )


def test_a_palette_bmp_with_a_long_header_is_read():
    """A version 5 header of 124 bytes, as image editors write it, moves the palette."""
    data = bytearray(FILES["bmp palette"])
    data[14:18] = (124).to_bytes(4, "little")
    data[10:14] = (int.from_bytes(data[10:14], "little") + 84).to_bytes(4, "little")
    data[2:6] = (len(data) + 84).to_bytes(4, "little")
    data[54:54] = bytes(84)
    np.testing.assert_array_equal(ops.decode(bytes(data)), pillow("bmp palette"))


BOXES = [
    [0, 0, HEIGHT, WIDTH],
    [0, 0, 1, 1],
    [HEIGHT - 1, WIDTH - 1, 1, 1],
    [16, 32, 48, 64],  # on the borders of JPEG's blocks
    [17, 33, 47, 63],
    [15, 31, 101, 1],
    [HEIGHT - 30, 0, 30, WIDTH],
    [7, WIDTH - 50, 90, 50],
]


@pytest.mark.parametrize(
    "name", [*JPEGS, "png rgb alpha", "png gray", "gif animated", "bmp palette"]
)
def test_decoding_a_crop_is_decoding_and_slicing(name):
    whole = ops.decode(FILES[name]).numpy()
    random, (rows, columns) = np.random.default_rng(0), whole.shape[:2]
    corners = random.integers(0, [rows, columns], [30, 2])
    boxes = [[y, x, *random.integers(1, [rows - y + 1, columns - x + 1])] for y, x in corners]
    boxes += BOXES if rows == HEIGHT else [[x, y, w, h] for y, x, h, w in BOXES[2:]]
    crop = tf.function(
        ops.decode_crop,
        input_signature=[tf.TensorSpec([], tf.string), tf.TensorSpec([4], tf.int32)],
    )
    for y, x, height, width in boxes:
        np.testing.assert_array_equal(
            crop(FILES[name], [y, x, height, width]), whole[y : y + height, x : x + width]
        )
    in_both_modes(ops.decode_crop, FILES[name], boxes[-4])


@pytest.mark.parametrize(
    "box", [[0, 0, HEIGHT + 1, 5], [0, WIDTH - 4, 5, 5], [-1, 0, 5, 5], [0, -1, 5, 5]]
)
@pytest.mark.parametrize("name", ["jpeg", "png rgb"])
def test_a_box_outside_of_the_image_is_refused(name, box):
    with pytest.raises(tf.errors.InvalidArgumentError):
        ops.decode_crop(FILES[name], box)


CODECS = ["jpeg", "jpeg progressive", "jpeg gray", "png rgb", "gif", "bmp 24", "bmp palette"]
BROKEN = {
    "empty": b"",
    "text": b"this is a text and not an image, which somebody has named .jpg",
    "two bytes": b"\xff\xd8",
    "three bytes": b"\xff\xd8\xff",
    "html with a jpeg's first bytes": b"\xff\xd8\xff<html>not found</html>",
    "bmp without pixels": FILES["bmp palette"][:40],
    **{
        f"{name} cut at {part}": FILES[name][: int(part * len(FILES[name]))]
        for name in CODECS
        for part in (0.1, 0.5, 0.97)
    },
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_image_raises(name):
    with pytest.raises(tf.errors.InvalidArgumentError):
        ops.decode(BROKEN[name])


@pytest.mark.parametrize(
    "op",
    [
        ops.decode,
        lambda image: ops.random_resized_crop(image, [1, 2], 32, area_range=(0.99, 1.0)),
        ops.image_size,
    ],
)
def test_a_pipeline_drops_what_it_cannot_decode(op):
    good = [FILES["jpeg"], FILES["png gray"], FILES["jpeg cmyk"]]
    bad = [
        BROKEN[name] for name in ("empty", "text", "two bytes", "three bytes", "png rgb cut at 0.5")
    ]
    if op is not ops.image_size:  # the header of a truncated JPEG can be read
        bad += [BROKEN["jpeg cut at 0.5"]]
    images = [bad[0], good[0], *bad[1:], *good[1:]]
    data = tf.data.Dataset.from_tensor_slices(images).map(op, num_parallel_calls=2).ignore_errors()
    kept = list(data)
    assert len(kept) == len(good)
    np.testing.assert_array_equal(kept[0], op(good[0]))


def test_a_crop_of_a_truncated_jpeg_never_holds_missing_rows():
    data, whole = BROKEN["jpeg cut at 0.5"], ops.decode(FILES["jpeg"]).numpy()
    np.testing.assert_array_equal(ops.decode_crop(data, [0, 0, 32, WIDTH]), whole[:32])
    with pytest.raises(tf.errors.InvalidArgumentError):
        ops.decode_crop(data, [HEIGHT - 32, 0, 32, WIDTH])


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pixels_of_any_channel_count_become_rgb(channels, known):
    pixels = np.random.default_rng(0).integers(0, 256, [9, 11, channels], np.uint8)
    want = pixels[..., :3] if channels >= 3 else np.repeat(pixels[..., :1], 3, -1)
    spec = tf.TensorSpec([9, 11, channels] if known else [None, None, None], tf.uint8)
    got = tf.function(
        lambda x: (ops.decode(x), ops.decode_crop(x, [2, 3, 5, 4])), input_signature=[spec]
    )(pixels)
    np.testing.assert_array_equal(got[0], want)
    np.testing.assert_array_equal(got[1], want[2:7, 3:7])
    assert got[0].shape[-1] == got[1].shape[-1] == 3


def test_other_tensors_are_refused():
    with pytest.raises(UserError, match="float64"):
        ops.decode(np.zeros([4, 4, 3], np.float64))
    with pytest.raises(UserError, match="5 channels"):
        ops.decode(np.zeros([4, 4, 5], np.uint8))


def bilinear(pixels, height, width):
    """Bilinear interpolation between pixel centers, clamped at the border, in float64."""

    def axis(pixels, size):
        at = np.clip((np.arange(size) + 0.5) * len(pixels) / size - 0.5, 0, len(pixels) - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, len(pixels) - 1)
        part = (at - low)[:, None, None]
        return pixels[low] * (1 - part) + pixels[high] * part

    rows = axis(pixels.astype(np.float64), height)
    return axis(rows.swapaxes(0, 1), width).swapaxes(0, 1)


@pytest.mark.parametrize("size", [(64, 48), (300, 411), (HEIGHT, WIDTH), (1, 1)])
def test_bilinear_resize_is_rounded_interpolation(size):
    got = in_both_modes(lambda image: ops.resize(image, size), PHOTO)
    want = bilinear(PHOTO, *size)
    assert got.shape == want.shape and got.dtype == np.uint8
    assert np.abs(got - want).max() <= 0.5 + 1e-3  # nearest; cut off fractions would be up to 1
    if size == (HEIGHT, WIDTH):
        np.testing.assert_array_equal(got, PHOTO)


def test_other_resize_methods():
    np.testing.assert_array_equal(
        ops.resize(PHOTO, (402, 474), "nearest"), PHOTO.repeat(2, 0).repeat(2, 1)
    )
    edge = np.zeros([8, 8, 3], np.uint8)
    edge[:, 4:] = 255
    for size in (
        (32, 32),
        (1, 9),
    ):  # casts saturate in vectorized loops and wrap around in what they leave over
        cubic = tf.image.resize(tf.cast(edge, tf.float32), size, "bicubic").numpy()
        assert cubic.min() < -5 and cubic.max() > 260
        np.testing.assert_array_equal(
            ops.resize(edge, size, "bicubic"), np.rint(np.clip(cubic, 0, 255))
        )


def area(pixels, height, width):
    """Means over the part of the image that each new pixel covers, in float64."""

    def coverage(old, new):
        begin, end = np.arange(new)[:, None] * old / new, (np.arange(new)[:, None] + 1) * old / new
        pixel = np.arange(old)[None]
        return (
            np.clip(np.minimum(end, pixel + 1) - np.maximum(begin, pixel), 0, None) * new / old
        )  # new x old

    return np.einsum(
        "hy,wx,yxc->hwc",
        coverage(len(pixels), height),
        coverage(pixels.shape[1], width),
        pixels,
        optimize=True,
    )


@pytest.mark.parametrize(
    "shape, smaller, want", [((201, 237), 96, (96, 113)), ((200, 64), 128, (400, 128))]
)
def test_resize_small_takes_area_means_and_keeps_the_aspect(shape, smaller, want):
    pixels = PHOTO[: shape[0], : shape[1]]
    got = in_both_modes(lambda image: ops.resize_small(image, smaller), pixels)
    assert got.shape == (*want, 3)
    assert np.abs(got - area(pixels, *want)).max() <= 0.5 + 1e-3


@pytest.mark.parametrize(
    "height, width, longer", [(100, 151, 145), (151, 100, 145), (96, 1000, 1000), (500, 333, 144)]
)
def test_resize_small_rounds_the_longer_side(height, width, longer):
    size = ops.resize_small(np.zeros([height, width, 3], np.uint8), 96).shape[:2]
    assert size == ((96, longer) if height < width else (longer, 96))


@pytest.mark.parametrize("kind", ["jpeg", "png rgb", "pixels"])
def test_central_crop(kind):
    image = PHOTO if kind == "pixels" else FILES[kind]
    whole = ops.decode(image).numpy()
    top, left = (HEIGHT - 64) // 2, (WIDTH - 100) // 2
    np.testing.assert_array_equal(
        in_both_modes(lambda image: ops.central_crop(image, (64, 100)), image),
        whole[top : top + 64, left : left + 100],
    )
    for fraction in (0.875, 0.5, 0.33, 1.0):
        got = in_both_modes(
            lambda image, fraction=fraction: ops.central_crop(image, fraction), image
        )
        np.testing.assert_array_equal(got, tf.image.central_crop(whole, fraction))


def test_central_crop_of_the_study_begins_at_18():
    pixels = np.broadcast_to(np.arange(292)[:, None, None] % 256, [292, 292, 3]).astype(np.uint8)
    assert ops.central_crop(pixels, 255)[0, 0, 0] == 18


def test_resize_central_crop():
    got = in_both_modes(lambda image: ops.resize_central_crop(image, 112, 128), FILES["jpeg"])
    small = area(ops.decode(FILES["jpeg"]).numpy(), 128, 151)  # 237 * 128 / 201 = 150.9
    assert np.abs(got - small[8:120, 19:131]).max() <= 0.5 + 1e-3
    square = PHOTO[:128, :128]
    np.testing.assert_array_equal(ops.resize_central_crop(square, 128, 128), square)
    with pytest.raises(UserError, match="larger resize"):
        ops.resize_central_crop(square, 224, 192)


@pytest.mark.parametrize(
    "crop", [lambda image: ops.central_crop(image, 224), lambda x: ops.random_crop(x, [0, 1], 224)]
)
@pytest.mark.parametrize(
    "image", [FILES["jpeg"], FILES["png rgb"], PHOTO], ids=["jpeg", "png", "pixels"]
)
def test_a_crop_larger_than_the_image_says_so(image, crop):
    with pytest.raises(tf.errors.InvalidArgumentError, match="smaller than the crop of 224 x 224"):
        crop(image)


def each_seed(op, count, run=7):
    """op(seed) for `count` seeds, inside tf.data; -> list of arrays."""
    data = tf.data.Dataset.range(count).map(
        lambda number: op(tf.stack([tf.constant(run, tf.int64), number]))
    )
    return list(data.as_numpy_iterator())


def coordinates(height, width):
    """An image that tells where its pixels are: y in the first channel, x in the second."""
    y, x = np.mgrid[:height, :width]
    return tf.constant(np.stack([y, x, 0 * x], -1).astype(np.uint8))


def boxes_of_random_resized_crop(count, height, width, **settings):
    """Boxes [count, 4] of y, x, h, w: nearest neighbor enlargement shows a crop's first and last
    row and column."""
    image = coordinates(height, width)
    ends = each_seed(
        lambda seed: ops.random_resized_crop(image, seed, 256, method="nearest", **settings)[
            ::255, ::255
        ],
        count,
    )
    ends = np.stack(ends).astype(int)
    y, x = ends[:, 0, 0, 0], ends[:, 0, 0, 1]
    return np.stack([y, x, ends[:, 1, 1, 0] - y + 1, ends[:, 1, 1, 1] - x + 1], -1)


def inception_boxes(count, height, width, area_range, aspect_range=(3 / 4, 4 / 3), covered=0.1):
    """The recipe in NumPy: aspect uniform, then the height uniform, then the place; again if it
    does not fit."""
    random, boxes = np.random.default_rng(0), []
    low, high = (part * height * width for part in area_range)
    while len(boxes) < count:
        aspect = random.uniform(*aspect_range)
        shortest = int(np.rint(np.sqrt(low / aspect)))
        tallest = int(min(np.rint(np.sqrt(high / aspect)), height, (width + 0.5) // aspect))
        h = random.integers(shortest, max(tallest, shortest) + 1)
        w = int(np.rint(h * aspect))
        if (
            low <= h * w <= high
            and h <= height
            and w <= width
            and h * w >= covered * height * width
        ):
            boxes.append(
                [
                    random.integers(0, max(height - h, 1)),
                    random.integers(0, max(width - w, 1)),
                    h,
                    w,
                ]
            )
    return np.array(boxes)


@pytest.mark.parametrize("area_range", [(0.05, 1.0), (0.3, 0.5)])
def test_random_resized_crop_draws_the_boxes_of_the_inception_recipe(area_range):
    height, width = 180, 240
    got = boxes_of_random_resized_crop(1500, height, width, area_range=area_range)
    want = inception_boxes(6000, height, width, area_range)
    area, aspect = got[:, 2] * got[:, 3] / (height * width), got[:, 3] / got[:, 2]
    assert area.min() >= max(0.1, area_range[0]) and area.max() <= area_range[1]
    assert aspect.min() > 3 / 4 - 0.02 and aspect.max() < 4 / 3 + 0.02
    assert (got[:, :2] >= 0).all() and (got[:, :2] + got[:, 2:] <= [height, width]).all()
    for column in range(4):
        assert scipy.stats.ks_2samp(got[:, column], want[:, column]).pvalue > 1e-3, "yxhw"[column]
    assert scipy.stats.ks_2samp(aspect, want[:, 3] / want[:, 2]).pvalue > 1e-3
    # the place is uniform, whatever the size
    room = height - got[:, 2] > 20
    place = got[room, 0] / (height - got[room, 2])
    assert scipy.stats.kstest(place, "uniform").pvalue > 1e-3 or abs(place.mean() - 0.5) < 0.03


def test_min_object_covered_0_allows_the_smallest_areas():
    got = boxes_of_random_resized_crop(400, 200, 200, min_object_covered=0.0)
    area = got[:, 2] * got[:, 3] / 200**2
    assert 0.05 <= area.min() < 0.1


def test_an_impossible_area_gives_the_whole_image():
    got = boxes_of_random_resized_crop(
        3, 60, 250, area_range=(0.95, 1.0)
    )  # no aspect up to 4/3 fills it
    np.testing.assert_array_equal(got, [[0, 0, 60, 250]] * 3)


def torch_box(random, height, width, area_range, aspect_range=(3 / 4, 4 / 3)):
    """torchvision's RandomResizedCrop.get_params, step by step: y, x, h, w."""
    for _ in range(10):
        area = height * width * random.uniform(*area_range)
        aspect = np.exp(random.uniform(*np.log(aspect_range)))
        w, h = int(round((area * aspect) ** 0.5)), int(round((area / aspect) ** 0.5))
        if 0 < w <= width and 0 < h <= height:
            return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w
    w, h = width, height
    if width / height < min(aspect_range):
        h = int(round(w / min(aspect_range)))
    elif width / height > max(aspect_range):
        w = int(round(h * max(aspect_range)))
    return (height - h) // 2, (width - w) // 2, h, w


def byol_box(random, height, width, area_range, aspect_range=(3 / 4, 4 / 3)):
    """BYOL's: nothing is drawn again."""
    area = height * width * random.uniform(*area_range)
    aspect = np.exp(random.uniform(*np.log(aspect_range)))
    w, h = min(round((area * aspect) ** 0.5), width), min(round((area / aspect) ** 0.5), height)
    return random.integers(0, height - h + 1), random.integers(0, width - w + 1), h, w


def sampled(count, height, width, sampler, area_range, **settings):
    """Boxes [count, 4] of y, x, h, w."""

    def box(seed):
        begin, extent = ops.sample_crop(
            tf.constant([height, width, 3]), seed, area_range, sampler=sampler, **settings
        )
        return tf.concat([begin[:2], extent[:2]], 0)

    return np.stack(each_seed(box, count))


def sampled_at(seed, height, width, sampler, area_range):
    begin, extent = ops.sample_crop(
        tf.constant([height, width, 3]), seed, area_range, sampler=sampler
    )
    return (*begin.numpy()[:2], *extent.numpy()[:2])


@pytest.mark.parametrize(
    "sampler, area_range, mean_area",  # on ImageNet's usual size
    [
        ("byol", (0.08, 1.0), 0.521),
        ("torch", (0.2, 1.0), 0.491),
        ("torch", (0.08, 1.0), 0.436),
        ("torch", (0.14, 1.0), 0.462),  # SwAV's large crops, and the small ones:
        ("torch", (0.05, 0.14), 0.095),
        ("tf", (0.08, 1.0), 0.389),
    ],
)
def test_crops_are_drawn_as_published(sampler, area_range, mean_area):
    height, width = 375, 500
    got = sampled(2000, height, width, sampler, area_range)
    assert (got[:, :2] >= 0).all() and (got[:, :2] + got[:, 2:] <= [height, width]).all()
    np.testing.assert_allclose(
        (got[:, 2] * got[:, 3]).mean() / (height * width), mean_area, atol=0.012
    )
    if sampler == "tf":
        return  # see the Inception recipe above
    random = np.random.default_rng(0)
    naive = {"torch": torch_box, "byol": byol_box}[sampler]
    want = np.array([naive(random, height, width, area_range) for _ in range(6000)])
    for boxes in (got, want):
        boxes[:] = boxes[np.argsort(boxes[:, 2] * boxes[:, 3])]
    for ours, theirs in zip(
        [*got.T, got[:, 2] * got[:, 3], got[:, 3] / got[:, 2]],
        [*want.T, want[:, 2] * want[:, 3], want[:, 3] / want[:, 2]],
    ):
        assert scipy.stats.ks_2samp(ours, theirs).pvalue > 1e-3


@pytest.mark.parametrize("height, width", [(60, 250), (250, 60), (100, 120)])
def test_crops_that_do_not_fit(height, width):
    """torchvision falls back on the center, cut to the aspect range; BYOL cuts the sides to the
    image's."""
    fallback = torch_box(np.random.default_rng(0), height, width, (2.0, 3.0))
    np.testing.assert_array_equal(sampled(3, height, width, "torch", (2.0, 3.0)), [fallback] * 3)
    np.testing.assert_array_equal(
        sampled(3, height, width, "byol", (9.0, 10.0)), [[0, 0, height, width]] * 3
    )
    np.testing.assert_array_equal(
        sampled(3, height, width, "torch", (0.0, 0.0)), [fallback] * 3
    )  # of no pixels


def test_crops_that_can_never_be_are_refused():
    with pytest.raises(UserError, match="areas up to 0.08 never cover 0.1"):
        sampled_at([0, 1], 60, 60, "tf", (0.05, 0.08))
    with pytest.raises(UserError, match="sampler=slim: choose one of tf, torch, byol"):
        sampled_at([0, 1], 60, 60, "slim", (0.05, 0.08))


BIG = np.asarray(Image.fromarray(load_sample_images().images[0]).resize((1300, 867), Image.BICUBIC))


@pytest.mark.parametrize("method, most", [("pillow", 4.3), ("bilinear", 5.7), ("bicubic", 6.7)])
@pytest.mark.parametrize("kind", ["jpeg", "pixels"])
def test_reduced_noise_is_averaged_away(kind, method, most):
    """Of white noise of 64 levels, reduced tenfold, Pillow keeps 4.1, area means 6.1, plain
    interpolation 30."""
    noise = np.clip(np.random.default_rng(0).normal(128, 64, [1120, 1120, 3]), 0, 255).astype(
        np.uint8
    )
    pillow = np.asarray(Image.fromarray(noise).resize((112, 112), Image.BILINEAR))
    assert 3.9 < pillow.std() < 4.3
    data = (
        encoded(Image.fromarray(noise), "JPEG", quality=95, subsampling=0)
        if kind == "jpeg"
        else noise
    )
    crop = ops.random_resized_crop(data, [1, 2], 112, (1.0, 1.0), (1.0, 1.0), method=method)
    whole = ops.resize(ops.shrink(data, 112), 112, method)
    assert max(crop.numpy().std(), whole.numpy().std()) < most


@pytest.mark.parametrize(
    "name", ["jpeg", "jpeg 4:2:2", "jpeg 4:4:4", "jpeg progressive", "jpeg gray", "jpeg cmyk"]
)
def test_jpegs_are_reduced_within_the_decoder(name):
    """As by Pillow's draft mode, which is the same libjpeg's; a part has the pixels of the whole
    image."""

    def part(y, x, height, width, size):
        return (
            ops.cut(FILES[name], lambda _: [([y, x, 0], [height, width, 3])], [size])[0]
            .numpy()
            .astype(int)
        )

    for size, ratio in (
        ((200, 237), 1),
        ((100, 118), 2),
        ((50, 59), 4),
        ((34, 34), 4),
        ((10, 29), 8),
    ):
        picture = Image.open(io.BytesIO(FILES[name]))
        picture.draft(picture.mode, (WIDTH // ratio, HEIGHT // ratio))
        want = np.asarray(picture.convert("RGB")).astype(int)
        assert want.shape == (-(-HEIGHT // ratio), -(-WIDTH // ratio), 3)
        whole = part(0, 0, HEIGHT, WIDTH, size)
        assert whole.shape[0] == (HEIGHT + ratio // 2) // ratio
        assert np.abs(whole - want[: whole.shape[0], : whole.shape[1]]).max() <= 2
        y, x, height, width = (
            HEIGHT - size[0] * ratio,
            WIDTH - size[1] * ratio,
            size[0] * ratio,
            size[1] * ratio,
        )
        some = part(y, x, height, width, size)
        assert min(some.shape[0] - size[0], some.shape[1] - size[1]) >= 0
        y, x = (y + ratio // 2) // ratio, (x + ratio // 2) // ratio
        assert np.abs(some - want[y : y + some.shape[0], x : x + some.shape[1]]).max() <= 2


def test_parts_of_one_image_are_decoded_once_and_each_is_reduced_as_far_as_it_may():
    boxes = [([0, 0, 0], [160, 160, 3]), ([100, 90, 0], [100, 146, 3]), ([4, 6, 0], [40, 30, 3])]
    sizes = [(40, 40), (50, 60), (20, 15)]  # 4, 2 and 2
    jpeg = in_both_modes(lambda image: ops.cut(image, lambda _: boxes, sizes)[0], FILES["jpeg"])
    parts = ops.cut(FILES["jpeg"], lambda _: boxes, sizes)
    np.testing.assert_array_equal(parts[0], jpeg)
    whole = ops.decode(FILES["jpeg"]).numpy()
    for (begin, extent), part, size, ratio in zip(boxes, parts, sizes, (4, 2, 2)):
        assert all(got >= want for got, want in zip(part.shape[:2], size))
        box = whole[begin[0] : begin[0] + extent[0], begin[1] : begin[1] + extent[1]]
        assert np.abs(np.array(part.shape[:2]) - np.array(box.shape[:2]) / ratio).max() <= 1
        assert np.abs(part.numpy() - area(box, *part.shape[:2])).mean() < 3


@pytest.mark.parametrize(
    "size", [(64, 48), (20, 230), (300, 411), (HEIGHT, WIDTH), (1, 1), (31, 30)]
)
@pytest.mark.parametrize(
    "method, theirs", [("pillow", Image.BILINEAR), ("pillow_bicubic", Image.BICUBIC)]
)
def test_pillows_resize(size, method, theirs):
    """Along rows first, as Pillow did until lately always, and does mostly. Of noise a cubic kernel
    overshoots on either side."""
    noise = np.random.default_rng(0).choice([0, 255], [37, 53, 3]).astype(np.uint8)
    for picture in (PHOTO, noise):
        got = in_both_modes(lambda image: ops.resize(image, size, method), picture)
        rows = Image.fromarray(picture).resize((size[1], picture.shape[0]), theirs)
        want = np.asarray(rows.resize(size[::-1], theirs))  # rounded between the two passes
        assert np.abs(got.astype(int) - want).max() <= 1


@pytest.mark.parametrize("side, most", [(500, 0.5), (420, 4), (200, 4), (100, 4)])
def test_crops_of_photographs_are_those_of_torchvision(side, most):
    """It decodes all, cuts, and resizes by Pillow. The same up to a level below twice the size;
    then, as the decoder reduces and a crop's border is rounded to what it leaves, within 4 levels
    in the mean (plain interpolation: 8 and 11 at 200 and 100 pixels)."""
    data, seed, area_range = encoded(Image.fromarray(BIG), "JPEG", quality=90), [0, 5], (0.9, 1.0)
    got = (
        ops.random_resized_crop(data, seed, side, area_range, sampler="torch", method="pillow")
        .numpy()
        .astype(int)
    )
    y, x, h, w = sampled_at(seed, *BIG.shape[:2], "torch", area_range)
    cut = Image.open(io.BytesIO(data)).convert("RGB").crop((x, y, x + w, y + h))
    want = np.asarray(cut.resize((side, side), Image.BILINEAR))
    plain = tf.image.resize(np.asarray(cut), [side, side]).numpy()
    assert np.abs(got - want).mean() < min(most, np.abs(plain - want).mean())
    assert side < 500 or np.abs(got - want).max() <= 2


@pytest.mark.parametrize("name", ["jpeg", "jpeg gray", "png rgb alpha"])
def test_a_random_crop_of_the_file_is_that_of_its_pixels(name):
    data, pixels = FILES[name], ops.decode(FILES[name])
    for op in (
        lambda image, seed: ops.random_resized_crop(image, seed, 128),
        lambda image, seed: ops.random_resized_crop(
            image, seed, (110, 96), method="bicubic", sampler="torch"
        ),
        lambda image, seed: ops.random_crop(image, seed, (96, 64)),
        ops.random_flip,
    ):
        for seed in ([0, 0], [3, 1 << 40]):
            seed = np.array(seed, np.int64)
            got = in_both_modes(op, data, seed)
            np.testing.assert_array_equal(got, op(pixels, seed))


def test_random_resized_crop_resizes_what_it_cuts():
    image = coordinates(180, 240)
    for number in range(5):
        seed = [7, number]
        corners = ops.random_resized_crop(image, seed, 256, method="nearest").numpy().astype(int)
        (y, x, _), (bottom, right, _) = corners[0, 0], corners[-1, -1]
        want = bilinear(image.numpy()[y : bottom + 1, x : right + 1], 96, 72)
        assert (
            np.abs(ops.random_resized_crop(image, seed, (96, 72)).numpy() - want).max()
            <= 0.5 + 1e-3
        )


@pytest.mark.parametrize(
    "op",
    [
        lambda seed: ops.random_resized_crop(PHOTO, seed, 32),
        lambda seed: ops.random_crop(PHOTO, seed, 32),
    ],
)
def test_seeds_decide(op):
    first = np.stack(each_seed(op, 40))
    np.testing.assert_array_equal(first, each_seed(op, 40))
    assert len(np.unique(first, axis=0)) == 40
    other = np.stack(each_seed(op, 40, run=8))
    assert (first == other).all(axis=(1, 2, 3)).sum() == 0


def test_random_crop_reaches_every_place_equally_often():
    image = coordinates(20, 35)
    corners = np.stack(each_seed(lambda seed: ops.random_crop(image, seed, (17, 33))[0, 0], 1200))[
        :, :2
    ]
    counts = np.zeros([4, 3], int)
    np.add.at(counts, tuple(corners.T), 1)
    assert counts.sum() == 1200 and scipy.stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_random_flip_mirrors_half_of_the_images_whatever_their_crop():
    image = coordinates(20, 60)

    def op(seed):
        return ops.random_flip(image, fork(seed, 0))[0, 0, 1], ops.random_crop(
            image, seed, (20, 30)
        )[0, 0, 1]

    left, crop = np.array(each_seed(op, 1000)).T
    assert set(left) == {0, 59}
    assert abs((left == 59).mean() - 0.5) < 0.05
    assert abs(np.corrcoef(left == 59, crop)[0, 1]) < 0.1
    flipped = next(n for n in range(1000) if left[n] == 59)
    seed = fork(tf.constant([7, flipped], tf.int64), 0)
    np.testing.assert_array_equal(ops.random_flip(PHOTO, seed), PHOTO[:, ::-1])


def test_static_shapes_are_known():
    seed = tf.zeros([2], tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def shapes(image):
        return [
            ops.image_size(image),
            ops.decode(image),
            ops.decode_crop(image, [0, 0, 5, 5]),
            ops.resize(image, (5, 6)),
            ops.random_resized_crop(image, seed, 7),
            ops.random_crop(image, seed, (8, 9)),
            ops.central_crop(image, 10),
            ops.central_crop(image, 0.5),
            ops.resize_small(image, 10),
            ops.resize_central_crop(image, 10, 12),
            ops.random_flip(image, seed),
        ]

    found = [tuple(tensor.shape) for tensor in shapes.get_concrete_function().structured_outputs]
    free = (None, None, 3)
    assert found == [
        (2,),
        free,
        free,
        (5, 6, 3),
        (7, 7, 3),
        (8, 9, 3),
        (10, 10, 3),
        free,
        free,
        (10, 10, 3),
        free,
    ]


def png(width, height):
    """A valid PNG of one bit per pixel, all black, without the memory that it takes as an image."""
    deflate = zlib.compressobj(9)
    row = bytes(1 + (width + 7) // 8)
    content = b"".join(deflate.compress(row) for _ in range(height)) + deflate.flush()
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)),
        (b"IDAT", content),
        (b"IEND", b""),
    ]
    chunks = [
        struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c))
        for name, c in parts
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def black(width, height, codec, **options):
    return encoded(Image.new("L", (width, height)), codec, **options)


SMALL_FILES = {  # name: (the file, whether it is an image like others)
    "thin": (lambda: png(1, 2000), False),
    "flat": (lambda: png(2000, 1), False),
    "thin JPEG": (lambda: black(1, 20_000, "JPEG"), False),
    "thin GIF": (lambda: black(1, 10_000, "GIF"), False),
    "banner": (lambda: png(2000, 40), True),
    "bomb": (lambda: png(30_000, 30_000), False),
    "GIF bomb": (lambda: black(12_000, 12_000, "GIF"), False),
    "progressive bomb": (
        lambda: black(10_000, 10_000, "JPEG", progressive=True, optimize=True),
        False,
    ),
    "as large as may be": (lambda: png(5000, 5000), True),
    "the same, JPEG": (lambda: black(5000, 5000, "JPEG", progressive=True, optimize=True), True),
}
USES = {
    "evaluation": lambda image: ops.resize_central_crop(image, 224, 256),
    "crops": lambda image: ops.random_resized_crop(image, (0, 1), 224),
    "pillow": lambda image: ops.random_resized_crop(
        image, (0, 1), 224, (0.9, 1.0), method="pillow", sampler="torch"
    ),
    "random": lambda image: ops.random_crop(ops.resize_small(image, 256), (0, 1), 224),
    "size": ops.image_size,
}


def rise(name, results):
    """Per use: what it raised, and megabytes by which it raised the peak of this process's
    memory."""
    image = SMALL_FILES[name][0]()
    assert len(image) < 1e6
    for use, function in USES.items():
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # the peak begins anew
        before, reason = memory("VmRSS"), ""
        try:
            function(image)
        except tf.errors.InvalidArgumentError as error:
            reason = reason_of(error)
        results.put((use, reason, (memory("VmHWM") - before) / 1000))


def memory(which):
    with open("/proc/self/status") as f:
        return int(next(line for line in f if line.startswith(which)).split()[1])


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"), reason="Linux tells the peak of a process's memory"
)
@pytest.mark.parametrize("name", SMALL_FILES)
def test_no_small_file_takes_much_memory(name):
    """Before 0.2 the 86 bytes of "thin" took 3.4 GB, and the 110 kB of "bomb" 2.7 GB."""
    results = PROCESSES.Queue()
    process = PROCESSES.Process(target=rise, args=(name, results))
    process.start()
    for use, reason, megabytes in [results.get(timeout=60) for _ in USES]:
        assert megabytes < 300, use
        if SMALL_FILES[name][1]:
            assert not reason, use
        elif use != "size":  # which looks at the header of a JPEG alone
            assert "times the other" in reason or "for each byte of the file" in reason, use
    process.join()
