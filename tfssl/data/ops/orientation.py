"""EXIF orientation: which way up a photograph is to be shown.

Cameras store what the sensor read and note how to turn it (EXIF 2.3, tag 0x0112, of which 1 is as
stored):

    1 as stored                  5 transposed
    2 mirrored left to right     6 by 90 degrees, clockwise
    3 by 180 degrees             7 transposed along the other diagonal
    4 mirrored top to bottom     8 by 90 degrees, counterclockwise

Each is a transposition (from 5 on), or none, and then mirroring of columns, rows, or both: so a
part of the upright image is a part of the stored one, and a JPEG's crop is still taken, and
reduced, while decoding.

The tag is read from the EXIF segment of a JPEG and the eXIf chunk of a PNG, where they stand before
the pixels. Values beyond 1 to 8 count as 1, and so does a segment that is damaged: the image can
still be shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from tfssl.data.ops.apart import apart

_TAG, _SHORT = 0x0112, 3
_MOST = 64  # segments that are looked at
# Nothing to look for: a JFIF header and a quantization table of 8 bits, or two; a PNG's header and
# pixels; formats without EXIF data. (\C is any byte, for patterns are UTF-8. The content of no
# application's segment begins with 0.)
_PLAIN = r"\C{4}\x00\x10JFIF\x00\C{9}\C\C\x00[\x43\x84]\x00\C*|\CPNG\C{33}IDAT|GIF8\C*|BM\C*"
_MIRRORS_ROWS, _MIRRORS_COLUMNS = (3, 4, 7, 8), (2, 3, 6, 7)  # after the transposition


def of_file(data: tf.Tensor) -> tf.Tensor:
    """The orientation that an encoded image (a scalar string) asks for, int32, 1 to 8.

    Of most files 41 bytes are looked at.
    """
    plain = tf.strings.regex_full_match(tf.strings.substr(data, 0, 41), _PLAIN)
    return tf.cond(plain, lambda: tf.constant(1), lambda: _look_for(data))


@apart
def _look_for(data: tf.Tensor) -> tf.Tensor:
    return _read(data, *_exif(data))


def as_stored(data: tf.Tensor) -> tf.Tensor:
    """An encoded image (a scalar string) whose orientation nobody reads any more: for annotations,
    whose coordinates are those of the stored pixels."""
    return tf.cond(of_file(data) == 1, lambda: data, lambda: _without(data))


@apart
def _without(data: tf.Tensor) -> tf.Tensor:
    start, _ = _exif(data)
    rest = tf.strings.substr(data, start + 2, tf.strings.length(data) - start - 2)
    # in place of II or MM, by which all EXIF data begin
    return tf.strings.join([tf.strings.substr(data, 0, start), rest], "--")


def size(shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """The shape of the upright image, int32 [3], of the stored one's."""
    return tf.where(orientation < 5, shape, tf.gather(shape, [1, 0, 2]))


def stored(
    begins: tf.Tensor, extents: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Where parts of an upright image of `shape`, int32 [3], lie in the stored one: begins and
    extents, int32 [P, 3] both."""

    return tf.cond(
        orientation == 1,
        lambda: (begins, extents),
        lambda: _stored(begins, extents, shape, orientation),
    )


@apart
def _stored(
    begins: tf.Tensor, extents: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    mirrored = tf.stack([_is(orientation, _MIRRORS_ROWS), _is(orientation, _MIRRORS_COLUMNS)])
    # in the transposed image
    corners = tf.where(mirrored, (shape - begins - extents)[:, :2], begins[:, :2])
    boxes = tf.stack([corners, extents[:, :2]])  # 2xPx2
    boxes = tf.where(orientation < 5, boxes, boxes[..., ::-1])
    return tf.concat([boxes[0], begins[:, 2:]], 1), tf.concat([boxes[1], extents[:, 2:]], 1)


def upright(parts: Sequence[tf.Tensor], orientation: tf.Tensor) -> list[tf.Tensor]:
    """Parts of a stored image [h, w, C], turned: list of tensors of the same type."""

    return tf.cond(
        orientation == 1, lambda: list(parts), lambda: list(_upright(tuple(parts), orientation))
    )


@apart
def _upright(parts: tuple[tf.Tensor, ...], orientation: tf.Tensor) -> tuple[tf.Tensor, ...]:
    parts = tf.cond(
        orientation < 5,
        lambda: parts,
        lambda: tuple(tf.transpose(part, [1, 0, 2]) for part in parts),
    )
    for axis, mirrored in enumerate((_MIRRORS_ROWS, _MIRRORS_COLUMNS)):
        parts = _when(_is(orientation, mirrored), axis, parts)
    return parts


def _when(condition: tf.Tensor, axis: int, parts: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
    return tf.cond(
        condition, lambda: tuple(tf.reverse(part, [axis]) for part in parts), lambda: parts
    )


def _is(orientation: tf.Tensor, values: Sequence[int]) -> tf.Tensor:
    return tf.reduce_any(orientation == tf.constant(values))


def _exif(data: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(first byte, number of bytes) of the EXIF data in an encoded image, int32 both; 0 where there
    are none.

    One loop for both formats, whose answers are chosen from: each function in a graph, such as a
    branch or a loop's body, is optimized whenever a pipeline starts.
    """
    size = tf.strings.length(data)
    head = tf.cast(tf.io.decode_raw(data, tf.uint8, fixed_length=4)[:3], tf.int32)
    jpeg, png = (tf.reduce_all(head == list(begin)) for begin in (b"\xff\xd8\xff", b"\x89PN"))

    def step(
        at: tf.Tensor, start: tf.Tensor, length: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        part = tf.io.decode_raw(tf.strings.substr(data, at, 10), tf.uint8, fixed_length=10)
        part = tf.cast(part, tf.int32)
        begin, end, following = (
            tf.where(jpeg, *pair) for pair in zip(_jpeg_segment(part), _png_chunk(part))
        )
        # within the file
        there = tf.where(end > begin, tf.maximum(tf.minimum(at + end, size) - at - begin, 0), 0)
        following = tf.where((there > 0) | (following == 0), size, at + following)
        return following, at + begin, there

    first = tf.where(jpeg, 2, tf.where(png, 8, size))  # others have no segments
    _, start, length = tf.while_loop(
        lambda at, start, length: (at > 0) & (at < size) & (length == 0),
        step,
        (first, tf.constant(0), tf.constant(0)),
        parallel_iterations=1,
        maximum_iterations=_MOST,
    )
    return tf.where(length > 0, start, 0), length


def _png_chunk(head: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Of the first 10 bytes of a chunk: (where its EXIF data begin, where they end, where the next
    chunk begins), in bytes from here; ends of 0 where it has none, and a next of 0 where no chunk
    matters any more."""
    length = _number(head[:4])
    exif = tf.reduce_all(head[4:8] == list(b"eXIf"))
    pixels = tf.reduce_all(head[4:8] == list(b"IDAT"))
    return tf.constant(8), tf.where(exif, 8 + length, 0), tf.where(pixels, 0, 12 + length)


def _jpeg_segment(head: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """The same of a JPEG's segment."""
    length = 2 + _number(head[2:4])
    exif = tf.reduce_all(head[1:2] == 0xE1) & tf.reduce_all(head[4:9] == list(b"Exif\0"))
    # Segments of applications, and comments, come before the tables; fill bytes do not.
    goes_on = (head[0] == 0xFF) & (head[1] >= 0xE0) & (head[1] != 0xFF)
    return tf.constant(10), tf.where(exif, length, 0), tf.where(goes_on, length, 0)


def _number(head: tf.Tensor) -> tf.Tensor:
    """An integer of 2 or 4 bytes, the highest first; the largest where it is beyond an int32."""
    value = tf.reduce_sum(tf.cast(head, tf.int64) * [256**i for i in range(head.shape[0])][::-1])
    return tf.cast(tf.minimum(value, 1 << 30), tf.int32)


def _read(data: tf.Tensor, start: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """The orientation that EXIF data tell: a TIFF header, and its first directory."""
    content = tf.io.decode_raw(tf.strings.substr(data, start, length), tf.uint8)
    content = tf.pad(tf.cast(content, tf.int32), [[0, 14]])  # some are cut short
    big = tf.reduce_all(content[:2] == list(b"MM"))
    known = big | tf.reduce_all(content[:2] == list(b"II"))

    def short(pair: tf.Tensor) -> tf.Tensor:
        first, second = pair[..., 0], pair[..., 1]
        return tf.where(big, 256 * first + second, 256 * second + first)

    # The directory's place is a number of four bytes, of which a segment needs the lower two, and a
    # PNG's chunk hardly more.
    place = short(tf.where(big, content[6:8], content[4:6]))
    far = tf.reduce_any(tf.where(big, content[4:6], content[6:8]) != 0)
    place = tf.minimum(place, length)
    count = tf.minimum(short(content[place : place + 2]), (length - place) // 12)
    entries = tf.reshape(content[place + 2 : place + 2 + 12 * count], [-1, 12])
    tells = (short(entries[:, :2]) == _TAG) & (short(entries[:, 2:4]) == _SHORT)
    values = tf.where(tells, short(entries[:, 8:10]), 0)
    value = tf.reduce_max(tf.concat([values, [0]], 0))
    return tf.where(known & ~far & (value >= 1) & (value <= 8), value, 1)
