"""tfssl.data.ops.orientation against Pillow's `exif_transpose`, and a naive rotation."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from tfssl.data.ops import image as ops
from tfssl.data.ops import orientation

TAG = 0x0112
PIXELS = np.asarray(
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 11, 3), np.uint8)).resize(
        (163, 121), Image.BICUBIC
    )
)
# Where the pixel that is seen at (y, x) of the upright image is stored, for a stored image of h x w
# (EXIF 2.3, table of tag 0x0112).
NAIVE = {
    1: lambda y, x, h, w: (y, x),
    2: lambda y, x, h, w: (y, w - 1 - x),
    3: lambda y, x, h, w: (h - 1 - y, w - 1 - x),
    4: lambda y, x, h, w: (h - 1 - y, x),
    5: lambda y, x, h, w: (x, y),
    6: lambda y, x, h, w: (h - 1 - x, y),
    7: lambda y, x, h, w: (h - 1 - x, w - 1 - y),
    8: lambda y, x, h, w: (x, w - 1 - y),
}


def encoded(turn, codec="JPEG", big=False, **options):
    exif = Image.Exif()
    exif.endian = ">" if big else "<"
    exif[0x010F], exif[TAG] = "a maker", turn
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, codec, exif=exif, **options)
    return file.getvalue()


READ = tf.function(
    lambda data: (
        orientation.of_file(data),
        ops.decode(data),
        ops.image_size(data),
        ops.decode_crop(data, [5, 7, 60, 40]),
        ops.shrink(data, 25),
        ops.decode(orientation.as_stored(data)),
    ),
    input_signature=[tf.TensorSpec([], tf.string)],
)


CROP = tf.function(  # traced twice: a file is a string, pixels are bytes of any size
    lambda image: ops.random_resized_crop(image, [3, 4], 16, (0.3, 0.9)), reduce_retracing=True
)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"big": True, "icc_profile": b"x" * 70_000, "comment": b"beside a profile in two segments"},
        {"codec": "PNG"},
    ],
    ids=["jpeg", "jpeg of many segments", "png"],
)
def test_all_eight(options):
    """In one test, for after each test TensorFlow optimizes its graphs anew."""
    plain = READ(encoded(1, **options))[4].numpy()
    for turn in NAIVE:
        data = encoded(turn, **options)
        found, pixels, size, crop, small, stored = (x.numpy() for x in READ(data))
        assert found == turn
        height, width = stored.shape[:2]
        assert (height, width) == PIXELS.shape[:2]
        y, x = np.mgrid[: size[0], : size[1]]
        np.testing.assert_array_equal(pixels, stored[NAIVE[turn](y, x, height, width)])
        theirs = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
        # two builds of libjpeg may round differently
        assert np.abs(pixels.astype(int) - theirs).max() <= 1
        np.testing.assert_array_equal(crop, pixels[5:65, 7:47])
        # Reduced within the decoder, whole and in part.
        y, x = np.mgrid[: small.shape[0], : small.shape[1]]
        np.testing.assert_array_equal(small, plain[NAIVE[turn](y, x, *plain.shape[:2])])
        of_file, of_pixels = (
            CROP(tf.constant(image)).numpy().astype(float) for image in (data, pixels)
        )
        right = np.abs(of_file - of_pixels).mean()  # not 0: libjpeg reduces its own way
        for wrong in (of_file[::-1], of_file[:, ::-1], of_file.transpose(1, 0, 2)):
            assert np.abs(wrong - of_pixels).mean() > 2.5 * right


def test_damaged_exif_data_count_as_none():
    data = encoded(6)
    at = data.index(b"Exif\0\0") + 6
    tag = data.index(struct.pack("<HHI", TAG, 3, 1))
    damaged = {
        "no byte order": data[:at] + b"XX" + data[at + 2 :],
        "a directory beyond the end": data[: at + 4] + b"\xff\xff\0\0" + data[at + 8 :],
        "a value of 9": data[: tag + 8] + b"\x09" + data[tag + 9 :],
        "another type": data[: tag + 2] + b"\x05" + data[tag + 3 :],
        "a length beyond the end": data[: at - 8] + b"\xff\xff" + data[at - 6 : at + 6],
        "nothing": b"",
        "a segment of length 0": b"\xff\xd8\xff\xe1\0\0",
    }
    for name, content in damaged.items():
        assert orientation.of_file(content) == 1, name


def test_what_has_no_orientation_stays_as_it_is():
    for data in (encoded(1), tf.io.encode_png(PIXELS).numpy(), b"GIF89a", b""):
        assert orientation.as_stored(tf.constant(data)).numpy() == data
