"""Image formats that TensorFlow does not decode: WebP, TIFF, NumPy's .npy and DICOM.

WebP, and TIFF of 8 bits or one channel, are read by Pillow, which matplotlib brings along; other
TIFFs by tifffile (`pip install tfssl[tiff]`), DICOM by pydicom (`tfssl[dicom]`). Of a file of
several pages, or frames, the first is taken. WebP and TIFF are turned upright by their EXIF
orientation, and MONOCHROME1 of DICOM is inverted, so that more is brighter everywhere.

The size is read from the header, and what would take memory out of all proportion to its file is
refused before it is decoded: more than `VALUES` numbers that are also more than `VALUES_PER_BYTE`
for each byte of the file.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import math
import struct
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

ENDINGS = (".webp", ".tif", ".tiff", ".npy", ".dcm")  # of files
EXTRAS = {".dcm": ("pydicom", "dicom")}  # what takes a package beyond Pillow: its name, our extra
VALUES, VALUES_PER_BYTE = 24 << 20, 24
_ORIENTATION, _BITS = 0x0112, 0x0102
MAGIC = (b"\x93NUMPY", b"II*\0", b"MM\0*")  # what most of their files begin with
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class Image(NamedTuple):
    """A decoded image.

    Attributes:
      pixels: [H, W, C], of the file's own type.
      white: the value that the file's type, or its header, calls full; 1 for floats.
    """

    pixels: np.ndarray
    white: float


def absent(ending: str) -> str:
    """How to install what reads files of an ending, where it is absent; "" where nothing is."""
    package, extra = EXTRAS.get(ending, ("", ""))
    there = not package or importlib.util.find_spec(package) is not None
    return "" if there else f"pip install 'tfssl[{extra}]'"


def is_one(data: tf.Tensor) -> tf.Tensor:
    """Whether an encoded image (a scalar string) is in one of these formats; graph code."""
    head = tf.strings.substr(data, 0, 132)
    # \C is any byte; 0x93, with which .npy begins, is no character of a pattern
    pattern = r"RIFF\C{4}WEBP\C*|II[*+]\x00\C*|MM\x00[*+]\C*|\CNUMPY\C*|\C{128}DICM"
    return tf.strings.regex_full_match(head, pattern)


def read(data: bytes) -> Image:
    """Decode a file.

    Raises:
      ValueError: in one line, why it cannot be.
    """
    try:
        if data[:6] == b"\x93NUMPY":
            pixels, white = _npy(data)
        elif data[128:132] == b"DICM":
            pixels, white = _dicom(data)
        else:
            pixels, white = _pillow(data)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        if pixels.ndim != 3 or not pixels.size:
            raise ValueError(f"an array of {pixels.shape} is no image [H, W] or [H, W, C]")
    except ValueError:
        raise
    except Exception as error:  # parsers of damaged files raise many kinds
        raise ValueError(f"{type(error).__name__}: {error}".splitlines()[0]) from error
    return Image(pixels, white)


def as_bmp(data: bytes) -> bytes:
    """The same image as a BMP of 8 bits and RGB, which TensorFlow decodes: more bits are cut to the
    upper 8, fewer are scaled to 255, gray becomes RGB, and an alpha channel is dropped.

    Raises:
      ValueError: of `read`; or it has floats, or more channels, which need to be told how to be
        read.
    """
    pixels, white = read(data)
    height, width, channels = pixels.shape
    if channels > 4:
        raise ValueError(f"it has {channels} channels: give --channels={channels}")
    if pixels.dtype.kind not in "ub":
        raise ValueError(
            f"its values are {pixels.dtype.name}: give their range, --value_range=LOW,HIGH"
        )
    pixels = _in_8_bits(pixels, white)
    row = np.zeros((height, -(-3 * width // 4) * 4), np.uint8)  # of whole four bytes
    rgb = pixels[..., 2::-1] if channels > 2 else np.repeat(pixels[..., :1], 3, -1)
    row[:, : 3 * width] = rgb.reshape(height, -1)
    head = struct.pack(
        "<2sIHHIIiiHHIIiiII", b"BM", 54 + row.size, 0, 0, 54, 40, width, -height, 1, 24, 0,
        row.size, 0, 0, 0, 0,
    )  # fmt: skip
    return head + row.tobytes()


def _in_8_bits(pixels: np.ndarray, white: float) -> np.ndarray:
    """Unsigned integers or bools, 0 to `white`, as uint8, 0 to 255; what is beyond is clipped."""
    if pixels.dtype == np.bool_:
        return np.where(pixels, np.uint8(255), np.uint8(0))
    full = min(int(white), int(np.iinfo(pixels.dtype).max))
    if pixels.dtype == np.uint8 and full == 255:
        return pixels
    pixels = np.minimum(pixels, pixels.dtype.type(full))
    bits = full.bit_length()
    if bits >= 8:  # as TensorFlow cuts 16 bits of PNG
        return (pixels >> pixels.dtype.type(bits - 8)).astype(np.uint8)
    return ((pixels.astype(np.uint16) * 255 + full // 2) // full).astype(np.uint8)


def _check(height: int, width: int, channels: int, data: bytes) -> None:
    values = height * width * channels
    if values > max(VALUES, VALUES_PER_BYTE * len(data)):
        raise ValueError(
            f"more than {VALUES} values, and more than {VALUES_PER_BYTE} for each byte of the "
            f"file; height, width, channels: {height} {width} {channels}"
        )


def _npy(data: bytes) -> tuple[np.ndarray, float]:
    file = io.BytesIO(data)
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else None
    header = header or np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject or dtype.kind not in "uifb":
        raise ValueError(f"an array of {dtype.name} is no image")
    count = math.prod(shape)
    if len(data) - file.tell() < count * dtype.itemsize:
        raise ValueError(f"it ends before its {count} values do")
    flat = np.frombuffer(data, dtype, count, file.tell())
    pixels = flat.reshape(shape, order="F" if fortran else "C")
    return pixels.astype(dtype.newbyteorder("="), copy=False), _white(dtype)


def _white(dtype: np.dtype) -> float:
    return 1.0 if dtype.kind in "fb" else float(np.iinfo(dtype).max)


def _pillow(data: bytes) -> tuple[np.ndarray, float]:
    from PIL import Image as pillow
    from PIL import ImageOps, UnidentifiedImageError

    tiff = data[:4] in _TIFF
    # says of what it cannot read that it cannot: that is told below
    logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL)
    try:
        picture: Any = pillow.open(io.BytesIO(data))
    except (UnidentifiedImageError, OSError):
        if not tiff:
            raise ValueError("it is damaged, or no image") from None
        return _tifffile(data)
    width, height = picture.size
    _check(height, width, len(picture.getbands()), data)
    bits = picture.tag_v2.get(_BITS, (1,)) if tiff else (8,)
    if picture.mode in ("I;16", "I;16L", "I;16B", "F"):
        turned = ImageOps.exif_transpose(picture)
        pixels = np.asarray(turned)
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), _white(pixels.dtype)
    if max(bits) > 8:  # which Pillow would cut to 8
        return _tifffile(data)
    picture = ImageOps.exif_transpose(picture)
    if picture.mode not in ("L", "LA", "RGB", "RGBA"):
        alpha = picture.mode in ("PA", "La", "RGBa") or "transparency" in picture.info
        gray = picture.mode in ("1", "La")
        picture = picture.convert(("LA" if alpha else "L") if gray else "RGBA" if alpha else "RGB")
    return np.asarray(picture), 255.0


def _tifffile(data: bytes) -> tuple[np.ndarray, float]:
    if importlib.util.find_spec("tifffile") is None:
        raise ValueError(
            "a TIFF of several channels with more than 8 bits, or of more than 4: pip install "
            "'tfssl[tiff]'"
        )
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        series = file.series[0]
        page: Any = series.pages[0]
        axes, shape = page.axes, page.shape
        height, width = (shape[axes.index(axis)] for axis in "YX")
        several = len(series.pages) > 1 and "C" in series.axes  # a page for each channel
        pages: list[Any] = list(series.pages) if several else [page]
        _check(height, width, len(pages) * math.prod(shape) // (height * width), data)
        parts = []
        for one in pages:
            pixels = np.asarray(one.asarray())
            if axes == "SYX":  # planes
                pixels = np.moveaxis(pixels, 0, -1)
            parts.append(pixels.reshape(height, width, -1))
        tag = page.tags.get(_ORIENTATION)
    found = np.concatenate(parts, -1) if several else parts[0]
    return _upright(found, int(tag.value) if tag else 1), _white(found.dtype)


def _upright(pixels: np.ndarray, turn: int) -> np.ndarray:
    pixels = pixels.swapaxes(0, 1) if turn in (5, 6, 7, 8) else pixels
    pixels = pixels[::-1] if turn in (3, 4, 7, 8) else pixels
    return pixels[:, ::-1] if turn in (2, 3, 6, 7) else pixels


def _dicom(data: bytes) -> tuple[np.ndarray, float]:
    if absent(".dcm"):
        raise ValueError(f"a DICOM file: {absent('.dcm')}")
    import pydicom

    found = pydicom.dcmread(io.BytesIO(data))
    pixels = _first_frame(found, data)
    if found.get("PhotometricInterpretation") == "PALETTE COLOR":
        return _colors(pixels, found)
    bits = int(found.get("BitsStored", 16))
    if bits < 1:
        raise ValueError(f"a DICOM file whose BitsStored is {bits}")
    slope, zero = (float(found.get(f"Rescale{name}", one)) for name, one in
                   (("Slope", 1), ("Intercept", 0)))  # fmt: skip
    white = 1.0 if pixels.dtype.kind == "f" else float(2**bits - 1)
    if (slope, zero) != (1, 0):  # such as Hounsfield units
        pixels, white = pixels.astype(np.float32) * np.float32(slope) + np.float32(zero), 1.0
    if found.get("PhotometricInterpretation") == "MONOCHROME1":
        unsigned = pixels.dtype.kind == "u"
        pixels = (np.asarray(white, pixels.dtype) - pixels) if unsigned else -pixels
    return pixels, white


def _first_frame(found: Any, data: bytes) -> np.ndarray:
    """[H, W] or [H, W, C], as it is stored."""
    palette = found.get("PhotometricInterpretation") == "PALETTE COLOR"
    samples = 4 if palette else int(found.get("SamplesPerPixel", 1))
    height, width = int(found.Rows), int(found.Columns)
    try:
        from pydicom.pixels import pixel_array
    except ImportError:  # before pydicom 3, which decodes all frames
        frames = int(found.get("NumberOfFrames", 1) or 1)
        _check(frames * height, width, samples, data)
        pixels = found.pixel_array
        return pixels[0] if frames > 1 else pixels
    _check(height, width, samples, data)
    return pixel_array(found, index=0)


def _colors(indices: np.ndarray, found: Any) -> tuple[np.ndarray, float]:
    """The colors of a DICOM palette (PS3.3, C.7.6.3.1.5): [H, W] -> [H, W, 3], or 4 with alpha."""
    try:
        from pydicom.pixels import apply_color_lut
    except ImportError:  # before pydicom 3
        from pydicom.pixel_data_handlers.util import apply_color_lut

    entries, first, bits = map(int, found.RedPaletteColorLookupTableDescriptor)
    entries = entries or 1 << 16
    # pydicom casts indices to the type of the colors before it clips them
    indices = np.clip(indices.astype(np.int64), first, first + entries - 1)
    pixels = apply_color_lut(indices, found)
    if pixels.dtype == np.uint8 and entries > 256:
        raise ValueError(f"a palette of {entries} colors of 8 bits is not read")
    # colors of 8 bits may lie in words of 16
    return pixels, min(float(2**bits - 1), _white(pixels.dtype))
