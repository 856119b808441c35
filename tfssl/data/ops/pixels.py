"""How the values of an image are read: as RGB of 8 bits, or as many channels as there are, in their
full depth.

By default an image is RGB of 8 bits, decoded as late and as little as possible. With another number
of channels, or a range of values, it is decoded where it is read, to float32 in [0, 1]:

    value_range="full"        0 to what the file's type can hold: 255, 65535 (of DICOM: what its
                              header says); floats are in [0, 1]
    value_range="LOW,HIGH"    the file's values LOW to HIGH become 0 to 1; what is beyond is clipped

Gray becomes RGB by repetition, and color gray by luma (ITU-R 601); alpha is dropped where 1 or 3
channels are asked for. No other number becomes another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.data.ops import formats
from tfssl.data.ops import image as image_ops
from tfssl.errors import UserError

FULL = "full"
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How images become tensors.

    Args:
      channels: of the tensors.
      value_range: "full", or "LOW,HIGH"; "": 8 bits where there are 3 channels, else full.

    Raises:
      UserError: a setting that is out of range.
    """

    channels: int = 3
    value_range: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 1024:
            raise UserError(f"channels={self.channels}: give 1 (gray), 3 (RGB), or up to 1024")
        self.ends()

    @property
    def plain(self) -> bool:
        """Whether images are RGB of 8 bits."""
        return self.channels == 3 and not self.value_range

    def ends(self) -> tuple[float, float] | None:
        """(low, high) of the file's values; None for those of its type."""
        if self.value_range in ("", FULL):
            return None
        try:
            low, high = map(float, self.value_range.split(","))
        except ValueError:
            low = high = 0.0
        if not (np.isfinite([low, high]).all() and low < high):
            raise UserError(
                f"value_range={self.value_range}: give full, or two numbers, such as 0,4095, of "
                "which the second is the larger"
            )
        return low, high

    def read(self, image: tf.Tensor, foreign: bool = False) -> tf.Tensor:
        """An image of a source, as an example has it; graph code.

        Args:
          image: encoded (a scalar string), or decoded [H, W, C], uint8, uint16 or float32.
          foreign: whether some are in a format that TensorFlow does not decode (`formats`).

        Returns:
          plain: encoded in a format that TensorFlow decodes, or uint8, as it came; else float32
          [H, W, channels] in [0, 1].
        """
        image = tf.convert_to_tensor(image)
        if image.dtype != tf.string:
            return image if self.plain else self._from_array(image)
        if self.plain:
            return _where_foreign(image, _as_bmp, lambda: image) if foreign else image
        if foreign:
            pixels = _where_foreign(image, self._from_foreign, lambda: self._decoded(image))
        else:
            pixels = self._decoded(image)
        pixels.set_shape([None, None, self.channels])
        return pixels

    def _from_array(self, image: tf.Tensor) -> tf.Tensor:
        if image.shape[-1] == self.channels:
            return self._scaled(image, _white(image.dtype))
        return self._channels(self._scaled(image, _white(image.dtype)), int(image.shape[-1]))

    def _scaled(self, image: tf.Tensor, white: float | tf.Tensor) -> tf.Tensor:
        """Values of the file, to [0, 1]."""
        values = tf.cast(image, tf.float32)
        ends = self.ends()
        if ends is None:
            return tf.clip_by_value(values / white, 0.0, 1.0)
        return tf.clip_by_value((values - ends[0]) / (ends[1] - ends[0]), 0.0, 1.0)

    def _channels(self, image: tf.Tensor, own: int) -> tf.Tensor:
        color = image[..., :3] if own >= 3 else image[..., :1]
        if self.channels == 3 and own in (1, 2, 4):
            return color if own == 4 else tf.repeat(color, 3, -1)
        if self.channels == 1 and own in (2, 3, 4):
            return color if own == 2 else _gray(color)
        raise UserError(_other(own, self.channels))

    def _decoded(self, data: tf.Tensor) -> tf.Tensor:
        """Of a format that TensorFlow decodes."""
        png = tf.strings.substr(data, 0, 4) == b"\x89PNG"
        data = image_ops.bounded(data, self.channels)
        return tf.cond(png, lambda: self._of_png(data), lambda: self._of_8_bits(data))

    def _of_png(self, data: tf.Tensor) -> tf.Tensor:
        """In 16 bits, to which TensorFlow brings 8 by a factor of 257."""
        head = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=32), tf.int32)
        own = tf.gather([1, 0, 3, 3, 2, 0, 4], tf.minimum(head[25], 6))  # by its type of color
        told = (own == self.channels) | (self.channels in (1, 3))
        with tf.control_dependencies([_assert(told, _other("another number of", self.channels))]):
            pixels = image_ops.decode_png16(
                data, 0 if self.channels == 1 else min(self.channels, 4)
            )
        deep = head[24] == 16
        values = tf.cast(pixels, tf.float32) / tf.where(deep, 1.0, 257.0)
        values = self._scaled(values, tf.where(deep, 65535.0, 255.0))
        if self.channels != 1:
            return values
        return tf.cond(own >= 3, lambda: _gray(values), lambda: values[..., :1])

    def _of_8_bits(self, data: tf.Tensor) -> tf.Tensor:
        if self.channels == 1:
            return image_ops.of_jpeg_or(
                data,
                lambda: self._scaled(image_ops.decode_gray_jpeg(data), 255.0),
                lambda: _gray(self._scaled(image_ops.decode(data), 255.0)),
            )
        told = _assert(tf.constant(self.channels == 3), _other("at most 3", self.channels))
        with tf.control_dependencies([told]):
            return self._scaled(image_ops.decode(data), 255.0)

    def _from_foreign(self, data: tf.Tensor) -> tf.Tensor:
        return _python(self._foreign, data, tf.float32)

    def _foreign(self, data: bytes) -> np.ndarray:
        found, white = formats.read(data)
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            raise ValueError("some of its values are infinite or not a number")
        if self.ends() is None and found.dtype.kind == "i":
            raise ValueError(
                f"its values are {found.dtype.name}: give their range, --value_range=LOW,HIGH"
            )
        own = found.shape[-1]
        if own != self.channels and not (self.channels in (1, 3) and own <= 4):
            raise ValueError(_other(own, self.channels))
        if own in (2, 4) and self.channels in (1, 3) and own != self.channels:
            found = found[..., : own - 1]  # without alpha
        low, high = self.ends() or (0.0, white)
        values = found.astype(np.float32)
        if low:
            values -= np.float32(low)
        values = np.clip(values / np.float32(high - low), 0, 1)
        if values.shape[-1] == 3 and self.channels == 1:
            values = (values * _LUMA).sum(-1, keepdims=True)
        if values.shape[-1] == 1 and self.channels == 3:
            values = np.repeat(values, 3, -1)
        return values.astype(np.float32, copy=False)


def _other(own: object, channels: int) -> str:
    return f"it has {own} channels, and --channels={channels}"


def _gray(image: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(image[..., :3] * _LUMA, -1, keepdims=True)


def _assert(condition: tf.Tensor, what: str) -> tf.Operation:
    return tf.raw_ops.Assert(condition=condition, data=[what])


def _white(dtype: tf.DType) -> float:
    return 1.0 if dtype.is_floating else float(dtype.max)


def _where_foreign(
    data: tf.Tensor, foreign: Callable[[tf.Tensor], tf.Tensor], else_: Callable[[], tf.Tensor]
) -> tf.Tensor:
    return tf.cond(formats.is_one(data), lambda: foreign(data), else_)


def _as_bmp(data: tf.Tensor) -> tf.Tensor:
    encoded = _python(formats.as_bmp, data, tf.string)
    encoded.set_shape([])
    return encoded


def _python(function: Callable[[bytes], Any], data: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """What a Python function makes of an encoded image; its ValueError is one of decoding."""

    def call(data: Any) -> tuple[Any, bytes]:
        try:
            # out of a graph it is an array without axes
            return function(data if isinstance(data, bytes) else data.item()), b""
        except ValueError as error:  # as a value: TensorFlow would log a traceback for each image
            none = b"" if dtype == tf.string else np.zeros([1, 1, 1], np.float32)
            return none, str(error).encode()

    # Stateless: what only reads labels does not call it, and a deterministic pipeline stays
    # parallel.
    made, reason = tf.numpy_function(call, [data], [dtype, tf.string], stateful=False)
    with tf.control_dependencies([tf.raw_ops.Assert(condition=reason == b"", data=[reason])]):
        return tf.identity(made)
