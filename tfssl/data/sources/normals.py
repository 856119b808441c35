"""`normals:PATH`: images with the direction of the surface at each pixel, given, or to be had from
depth.

    PATH/train/x.jpg  PATH/trainnormals/x.png     RGB: a normal's parts x (right), y (up), z (to the
                      viewer), from -1 to 1 as 0 to 255;
                                                  black where it is not known
    PATH/train/x.jpg  PATH/traindepth/x.png       16 bits, gray: distance along the axis in any
                      unit; 0 where it is not known
    PATH/camera.txt                               fx fy cx cy, in pixels of the depth maps: needed
                                                  for these

Depth becomes normals by a plane that is fitted to each pixel's neighborhood (`from_depth`).
"""

from __future__ import annotations

import contextlib
import os

import numpy as np
import tensorflow as tf

from tfssl.data.listing.text import read_lines
from tfssl.data.ops import orientation
from tfssl.data.sources.base import IndexedSource
from tfssl.data.sources.identity import Parts
from tfssl.data.sources.masks import beside
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError

WINDOW = 7  # side of the neighborhood, in pixels
_RESIDUAL = (
    0.02  # of the fitted plane, as a part of the inverse depth: more of it lies across an edge
)


class NormalSource(IndexedSource):
    """Beside what every source has (label -1), an example has "normals": float32 [H, W, 3] of
    length 1, or 0 where not known."""

    form = "normals:PATH"
    provides = ("normals",)

    def __init__(self, spec: str, path: str, split: str = "train") -> None:
        root = (os.path.expanduser(path) if "://" not in path else path).rstrip("/")
        if not tf.io.gfile.isdir(root):
            raise UserError(f"{spec}: no such folder: {root!r}")
        (found, alone), self._camera = beside(root, "normals"), None
        if not found:
            found, alone = beside(root, "depth")
            if not found:
                raise UserError(
                    f"{spec}: expected SPLIT and SPLITnormals, or SPLIT and SPLITdepth, side by "
                    f"side in {root!r}"
                )
            self._camera = _camera(f"{root}/camera.txt", spec)
        pairs = []
        ranges = resolve(split, {name: [len(its)] for name, its in found.items()}, spec)
        for name, start, stop in ranges:
            pairs += found[name][start:stop]
        super().__init__(spec, split, len(pairs))
        self.ranges = ranges
        self.left_out = {"images without a picture of their surface": alone} if alone else {}
        with tf.device("CPU"):
            self._images, self._others = (tf.constant(list(paths)) for paths in zip(*pairs))

    def fetch(self, record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        index = record["index"]
        other = tf.io.read_file(tf.gather(self._others, index))
        if self._camera is None:
            normals = tf.cast(tf.io.decode_png(other, channels=3), tf.float32) * (2 / 255) - 1
            length = tf.norm(normals, axis=-1, keepdims=True)
            # A byte's step is 1/128, and black is (-1, -1, -1), of length 1.7.
            normals = tf.where(
                tf.abs(length - 1) < 0.2, tf.math.divide_no_nan(normals, length), 0.0
            )
        else:
            depth = tf.io.decode_png(other, channels=1, dtype=tf.uint16)
            normals = from_depth(tf.cast(depth[..., 0], tf.float32), *self._camera)
        image = orientation.as_stored(tf.io.read_file(tf.gather(self._images, index)))
        return {
            "image": self.read(image),
            "label": tf.constant(-1, tf.int64),
            "index": index,
            "normals": normals,
        }

    def parts(self) -> Parts:
        paths = [path.decode() for paths in (self._images, self._others) for path in paths.numpy()]
        return Parts(paths, reading={"camera": self._camera})

    def name_in_graph(self, record: dict[str, tf.Tensor]) -> tf.Tensor:
        return tf.gather(self._images, record["index"])

    def name(self, index: int) -> str:
        return self._images[index].numpy().decode()


def _camera(path: str, spec: str) -> tuple[float, float, float, float]:
    """(fx, fy, cx, cy)"""
    try:
        words = " ".join(read_lines(path, spec)).split()
    except tf.errors.NotFoundError:
        words = []
    with contextlib.suppress(ValueError):
        fx, fy, cx, cy = map(float, words)
        if fx > 0 and fy > 0:
            return fx, fy, cx, cy
    raise UserError(
        f"{spec}: normals follow from depth by {path!r}, which should hold four numbers: fx fy cx "
        "cy, in pixels"
    )


def from_depth(
    depth: tf.Tensor, fx: float, fy: float, cx: float, cy: float, window: int = WINDOW
) -> tf.Tensor:
    """Surface normals of a depth map.

    Over a plane the inverse depth is a linear function of the pixel: with n . P = d and P = z r of
    a pixel's ray r = ((u - cx) / fx, (v - cy) / fy, 1), n . r = d / z. So one least-squares fit of
    1 / z in a window, which is a convolution, is exact for planes in perspective.

    Args:
      depth: float [H, W], along the axis; 0 where it is not known.
      fx, fy, cx, cy: focal lengths and principal point in pixels; the first pixel's centre is at
        (0, 0).
      window: side of the neighborhood, odd, at least 3.

    Returns:
      float32 [H, W, 3], parts to the right, up and to the viewer; 0 where a pixel of the window is
      not known or outside of the image, or where no plane fits it.
    """
    half = window // 2
    dv, du = np.meshgrid(np.arange(-half, half + 1), np.arange(-half, half + 1), indexing="ij")
    count, moment = window**2, float((du**2).sum())
    kernel = np.stack([np.full(du.shape, 1 / count), du / moment, dv / moment], -1)[
        :, :, None
    ].astype(np.float32)
    inverse = tf.math.divide_no_nan(1.0, depth)[None, ..., None]

    def convolve(x: tf.Tensor, kernel: np.ndarray) -> tf.Tensor:
        return tf.nn.conv2d(x, kernel, 1, "SAME")[0]

    centre, a, b = tf.unstack(convolve(inverse, kernel), axis=-1)  # HxW each
    known = convolve(tf.cast(inverse > 0, tf.float32), kernel[..., :1])[..., 0] > 1 - 0.5 / count
    # A second pass, around each window's mean, because squares of nearly equal numbers lose all
    # their digits. The mean of (w - centre - a du - b dv)^2 is that of (w - m)^2 minus what the
    # plane explains, for any constant m within float32's reach.
    shifted = inverse - tf.reduce_mean(inverse)
    moments = [
        convolve(shifted**2, kernel[..., :1])[..., 0],
        convolve(shifted, kernel[..., :1])[..., 0],
    ]
    residual = moments[0] - moments[1] ** 2 - (a**2 + b**2) * moment / count
    known &= residual < (_RESIDUAL * centre) ** 2
    height, width = tf.unstack(tf.cast(tf.shape(depth), tf.float32))
    u, v = tf.meshgrid(tf.range(width), tf.range(height))
    away = tf.stack(
        [a * fx, b * fy, centre - a * (u - cx) - b * (v - cy)], -1
    )  # n of n . r = 1 / z: away from the viewer
    normals = tf.math.l2_normalize(away, -1) * [
        -1.0,
        1.0,
        1.0,
    ]  # -x, and -(-y), -(-z): up and to the viewer
    return tf.where(known[..., None], normals, 0.0)
