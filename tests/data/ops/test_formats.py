"""tfssl.data.ops.formats and pixels: the values of files as their writers gave them."""

import io
import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from PIL import Image

from tfssl.data.ops import formats
from tfssl.data.ops import image as ops
from tfssl.data.ops.pixels import Pixels
from tfssl.errors import UserError, reason_of

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, [21, 30, 3], np.uint8)
DEEP = RNG.integers(0, 65536, [21, 30, 13], np.uint16)
FLOATS = RNG.random([21, 30], np.float32)
LUMA = np.array([0.299, 0.587, 0.114])


def saved(pixels, codec, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, codec, **options)
    return file.getvalue()


def tiff(pixels, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **options)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def read(data, channels=3, value_range=""):
    """In a graph, as a pipeline does; RGB of 8 bits decoded."""
    pixels = Pixels(channels, value_range)

    def load(data):
        return ops.decode(pixels.read(data, foreign=True))

    element = tf.data.Dataset.from_tensors(data).map(load).get_single_element()
    np.testing.assert_array_equal(load(tf.constant(data)), element)
    return element.numpy()


def rgb(gray):
    return np.repeat(gray[..., None], 3, -1)


GRAY16 = DEEP[..., 0]
SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6
# name: (the file, its RGB of 8 bits)
BYTES = {
    "webp": (saved(RGB, "WEBP", lossless=True), RGB),
    "webp on its side": (
        saved(RGB, "WEBP", lossless=True, exif=SIDEWAYS),
        np.rot90(RGB, -1),
    ),
    "tiff": (tiff(RGB, photometric="rgb"), RGB),
    "tiff lzw": (saved(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff palette": (
        saved(RGB[..., 0], "TIFF"),
        rgb(RGB[..., 0]),
    ),
    "tiff gray 16": (tiff(GRAY16), rgb(GRAY16 >> 8)),
    "tiff rgb 16": (tiff(DEEP[..., :3], photometric="rgb"), DEEP[..., :3] >> 8),
    "tiff rgb 16 on its side": (
        tiff(DEEP[..., :3], photometric="rgb", extratags=[(0x0112, 3, 1, 8, True)]),
        np.rot90(DEEP[..., :3] >> 8),
    ),
    "tiff big-endian": (tiff(GRAY16, byteorder=">"), rgb(GRAY16 >> 8)),
    "npy": (npy(RGB), RGB),
    "npy gray 16 in Fortran's order": (npy(np.asfortranarray(GRAY16)), rgb(GRAY16 >> 8)),
    "png": (tf.io.encode_png(RGB).numpy(), RGB),  # beside them in a folder
}


@pytest.mark.parametrize("name", BYTES)
def test_as_rgb_of_8_bits(name):
    data, want = BYTES[name]
    np.testing.assert_array_equal(read(data), want)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
def test_unsigned_integers_are_cut_to_their_upper_8_bits(dtype):
    """All 256 of them come out, from the least and the greatest value that has them."""
    upper = np.arange(256, dtype=dtype).reshape(16, 16)
    shift = dtype(8 * np.dtype(dtype).itemsize - 8)
    for lower in (dtype(0), dtype((1 << int(shift)) - 1)):
        gray = upper << shift | lower
        np.testing.assert_array_equal(read(npy(gray)), rgb(upper.astype(np.uint8)))
        floats = read(npy(gray), 1)[..., 0]
        np.testing.assert_allclose(floats, gray / np.iinfo(dtype).max, rtol=0, atol=1e-6)


def test_black_and_white_npy():
    mask = RGB[..., 0] > 99
    np.testing.assert_array_equal(read(npy(mask)), rgb(np.where(mask, 255, 0)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bits", range(1, 9))
def test_few_bits_are_scaled_by_their_white(monkeypatch, bits, dtype):
    """As of a DICOM whose BitsStored is 2 to 7: the level nearest to 255 v / (2^bits - 1), of which
    none lies in the middle of two; values beyond are white."""
    white = 2**bits - 1
    values = np.arange(256, dtype=dtype).reshape(16, 16)
    made = formats.Image(values[..., None], float(white))
    monkeypatch.setattr(formats, "read", lambda data: made)
    found = tf.io.decode_bmp(formats.as_bmp(b"")).numpy()
    want = np.rint(255 * np.minimum(values, white).astype(np.float64) / white)
    np.testing.assert_array_equal(found, rgb(want))


F32 = np.float32
# name: (the file, channels, range of values, its floats)
DEPTHS = {
    "tiff gray 16": (tiff(GRAY16), 1, "", (GRAY16 / F32(65535))[..., None]),
    "tiff of 13 channels": (
        tiff(DEEP, photometric="minisblack", planarconfig="contig"), 13, "full", DEEP / F32(65535),
    ),
    "tiff of 13 planes": (
        tiff(np.moveaxis(DEEP, -1, 0), photometric="minisblack", planarconfig="separate"),
        13, "", DEEP / F32(65535),
    ),
    "tiff float": (tiff(FLOATS), 1, "", FLOATS[..., None]),
    "tiff float in a range": (
        tiff(FLOATS * 100 - 50), 1, "-50,50", None,
    ),
    "npy of 12 bits": (npy(DEEP[..., :4] >> 4), 4, "0,4095", (DEEP[..., :4] >> 4) / F32(4095)),
    "png gray 16": (saved(GRAY16, "PNG"), 1, "", (GRAY16 / F32(65535))[..., None]),
    "png rgb 16": (tf.io.encode_png(DEEP[..., :3]).numpy(), 3, "full", DEEP[..., :3] / F32(65535)),
    "png of 8 bits": (tf.io.encode_png(RGB).numpy(), 3, "full", RGB / F32(255)),
    "png of 8 bits in a range": (tf.io.encode_png(RGB).numpy(), 3, "0,510", RGB / F32(510)),
    "png rgba": (tf.io.encode_png(DEEP[..., :4]).numpy(), 4, "", DEEP[..., :4] / F32(65535)),
    "png rgba as rgb": (
        tf.io.encode_png(DEEP[..., :4]).numpy(), 3, "full", DEEP[..., :3] / F32(65535),
    ),
    "webp as gray": (BYTES["webp"][0], 1, "", (RGB @ LUMA / 255)[..., None]),
    "gray as rgb": (tiff(GRAY16), 3, "full", rgb(GRAY16 / F32(65535))),
    "jpeg gray": (
        saved(RGB[..., 0], "JPEG", quality=95), 1, "", None,
    ),
}  # fmt: skip
DEPTHS["tiff float in a range"] = (*DEPTHS["tiff float in a range"][:3], FLOATS[..., None])
JPEG = DEPTHS["jpeg gray"]
DEPTHS["jpeg gray"] = (
    *JPEG[:3], np.asarray(Image.open(io.BytesIO(JPEG[0])))[..., None] / F32(255),
)  # fmt: skip


@pytest.mark.parametrize("name", DEPTHS)
def test_in_full_depth(name):
    data, channels, value_range, want = DEPTHS[name]
    found = read(data, channels, value_range)
    assert found.dtype == np.float32 and found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-6)
    if name in ("tiff gray 16", "tiff of 13 channels", "png gray 16"):
        np.testing.assert_array_equal(found, want)


REFUSED = {
    "floats without a range": (tiff(FLOATS), 3, "", "float32: give their range"),
    "many channels": (npy(DEEP), 3, "", "13 channels: give --channels=13"),
    "another number": (npy(DEEP), 4, "", "13 channels, and --channels=4"),
    "rgb for four": (BYTES["png"][0], 4, "", "channels, and --channels=4"),
    "a jpeg for four": (saved(RGB, "JPEG"), 4, "", "at most 3 channels"),
    "signed without a range": (npy(DEEP[..., :1].astype(np.int16)), 1, "", "int16: give"),
    "not a number": (npy(np.full([5, 5], np.nan, np.float32)), 1, "", "not a number"),
    "objects": (npy(np.array([[None]])), 3, "", "is no image"),
    "one axis": (npy(DEEP[0, 0]), 3, "", "no image"),
    "cut short": (npy(DEEP)[:-9], 13, "", "ends before"),
    "a damaged webp": (BYTES["webp"][0][:50], 3, "", "."),
    "a damaged tiff": (BYTES["tiff gray 16"][0][:60], 3, "", "."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_says_why_in_a_line(name):
    data, channels, value_range, reason = REFUSED[name]
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        read(data, channels, value_range)
    assert re.search(reason, reason_of(error.value)), reason_of(error.value)


def bombs():
    """Small files of 400 million pixels."""
    side = 20_000
    rows = zlib.compress(bytes(side * 100), 9)
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|u1", "fortran_order": False, "shape": (side, side)}
    )
    with io.BytesIO() as file:
        with tifffile.TiffWriter(file) as writer:
            writer.write(
                iter([rows] * (side // 100)), shape=(side, side), dtype=np.uint8,
                compression="zlib", rowsperstrip=100,
            )  # fmt: skip
        yield "tiff", file.getvalue()
    yield "webp", saved(np.zeros([6000, 6000], np.uint8), "WEBP", lossless=True, method=0)
    yield "npy", head.getvalue()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells a peak")
def test_no_small_file_takes_much_memory():
    def peak():
        with open("/proc/self/status") as f:
            return int(next(line for line in f if line.startswith("VmHWM")).split()[1]) / 1000

    for name, data in bombs():
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")
        before = peak()
        with pytest.raises(ValueError, match="for each byte of the file|ends before|bomb"):
            formats.read(data)
        assert peak() - before < 100, name


def test_ranges_of_values():
    for wrong in ("1", "5,5", "2,1", "a,b", "0,inf"):
        with pytest.raises(UserError, match="two numbers"):
            Pixels(1, wrong)
    with pytest.raises(UserError, match="channels=0"):
        Pixels(0)
    assert Pixels().plain and not Pixels(1).plain and not Pixels(3, "full").plain


def test_a_package_that_is_absent_is_named(monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert formats.absent(".dcm") == "pip install 'tfssl[dicom]'" and not formats.absent(".webp")
    with pytest.raises(ValueError, match=r"tfssl\[tiff\]"):
        formats.read(DEPTHS["tiff of 13 channels"][0])


def dicom(pixels, photometric="MONOCHROME2", bits=12, **elements):
    """A file of [H, W], or [frames, H, W], uint8 or uint16; of `elements` by keyword."""
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID
    data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape[-2:]
    if pixels.ndim > 2:
        data.NumberOfFrames = len(pixels)
    data.SamplesPerPixel, data.BitsAllocated = 1, 8 * pixels.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.PixelRepresentation, data.PhotometricInterpretation = 0, photometric
    data.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    data["PixelData"].VR = "OB" if pixels.itemsize == 1 else "OW"
    for name, value in elements.items():
        if name == "TransferSyntaxUID":
            data.file_meta.TransferSyntaxUID = value
            data["PixelData"].VR = "OB"
        else:
            setattr(data, name, value)
    data.is_little_endian, data.is_implicit_VR = True, False  # before pydicom 3
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, write_like_original=False)
    return buffer.getvalue()


def test_dicom():
    stored = DEEP[..., 0] >> 4
    want = (stored / F32(4095))[..., None]  # full is what 12 bits can hold
    np.testing.assert_allclose(read(dicom(stored), 1), want, atol=1e-6)
    np.testing.assert_array_equal(read(dicom(stored)), rgb(stored >> 4))
    inverted = dicom(stored, "MONOCHROME1")
    np.testing.assert_allclose(read(inverted, 1), 1 - want, atol=1e-6)
    hounsfield = dicom(stored, RescaleSlope=2, RescaleIntercept=-1000)
    units = stored.astype(np.float64) * 2 - 1000
    found = read(hounsfield, 1, "-160,240")[..., 0]
    np.testing.assert_allclose(found, np.clip((units + 160) / 400, 0, 1), atol=1e-6)


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_dicom_of_few_bits(photometric):
    stored = (np.arange(16, dtype=np.uint8) % 16).reshape(4, 4)
    want = 17 * stored if photometric == "MONOCHROME2" else 255 - 17 * stored
    np.testing.assert_array_equal(read(dicom(stored, photometric, bits=4)), rgb(want))


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_dicom_of_a_palette_has_its_colors(dtype, bits):
    """Indices below the first entry take its color, and those above the last the last one's."""
    colors = RNG.integers(0, 1 << bits, [100, 3], np.uint16)  # of the indices 20 to 119
    stored = RNG.integers(0, 256, [7, 40]).astype(dtype)
    stored[0, 0] = np.iinfo(dtype).max
    channels = zip(("Red", "Green", "Blue"), colors.T)
    tables = {
        f"{name}PaletteColorLookupTableData": table.astype(f"<u{bits // 8}").tobytes()
        for name, table in channels
    }
    descriptors = {
        f"{name}PaletteColorLookupTableDescriptor": [100, 20, bits]
        for name in ("Red", "Green", "Blue")
    }
    data = dicom(
        stored, "PALETTE COLOR", 8 * stored.itemsize, RescaleSlope=3, **descriptors, **tables
    )
    want = colors[np.clip(stored.astype(int) - 20, 0, 99)]
    np.testing.assert_array_equal(read(data), want >> (bits - 8))
    np.testing.assert_allclose(read(data, 3, "full"), want / (2**bits - 1), rtol=0, atol=1e-6)


def test_dicom_of_a_palette_that_is_not_read_is_refused():
    """pydicom would wrap indices of more than 8 bits into a table of 8 bits."""
    table = bytes(range(250)) * 4
    elements = {
        f"{name}PaletteColorLookupTable{kind}": value
        for name in ("Red", "Green", "Blue")
        for kind, value in (("Data", table), ("Descriptor", [1000, 0, 8]))
    }
    with pytest.raises(ValueError, match="8 bits|out of bounds|cast"):
        formats.read(dicom(GRAY16, "PALETTE COLOR", 16, **elements))
    with pytest.raises(ValueError, match="Palette"):
        formats.read(dicom(RGB[..., 0], "PALETTE COLOR", 8))


def test_dicom_of_several_frames_is_its_first():
    stored = np.moveaxis(DEEP >> 4, -1, 0)
    np.testing.assert_array_equal(read(dicom(stored)), rgb(stored[0] >> 4))


def test_frames_of_a_dicom_take_no_memory():
    """A frame is decoded alone; before pydicom 3, which decodes all, those that are too large
    together are refused."""
    pydicom = pytest.importorskip("pydicom")
    runs = b"\x81\x05" * (2048 * 2048 // 128)  # of 128 values
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + runs
    data = dicom(
        np.zeros([60, 2048, 2048], np.uint8), bits=8,
        PixelData=pydicom.encaps.encapsulate([frame] * 60),
        TransferSyntaxUID=pydicom.uid.RLELossless,
    )  # fmt: skip
    assert 60 * 2048 * 2048 > max(formats.VALUES, formats.VALUES_PER_BYTE * len(data))
    tracemalloc.start()
    try:
        if int(pydicom.__version__.split(".")[0]) < 3:
            with pytest.raises(ValueError, match="for each byte of the file"):
                formats.read(data)
        else:
            pixels, white = formats.read(data)
            assert pixels.shape == (2048, 2048, 1) and (pixels == 5).all() and white == 255
        assert tracemalloc.get_traced_memory()[1] < 60 << 20
    finally:
        tracemalloc.stop()
