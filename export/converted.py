"""A module of ours as a program for other runtimes: ONNX, TensorFlow Lite, Keras 3."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from tfssl.classifiers.predictions import KIND
from tfssl.errors import UserError, one_line
from tfssl.hub import folders
from tfssl.hub import load as modules
from tfssl.storage import files


def output_of(module: modules.Module) -> str:
    """The endpoint that is a module's own result.

    Raises:
      UserError: it is none of ours.
    """
    if not module.facts:
        raise UserError(
            f"module {module.handle!r} was not made by tfssl: its images and its result are unknown"
        )
    return "logits" if module.facts.get("kind") == KIND else "pre_logits"


def _function(module: modules.Module, batch: int | None) -> Any:
    """images [batch, size, size, C] in [0, 1] -> the module's result, a tf.function of that input
    alone."""
    size, channels, output = module.sizes()[0], module.pixels["channels"], output_of(module)
    images = tf.TensorSpec([batch, size, size, channels], tf.float32, name="images")

    def result(images: tf.Tensor) -> tf.Tensor:
        return tf.identity(module.endpoints(images)[output], name=output)

    return tf.function(result, input_signature=[images], autograph=False)


def save_onnx(module: modules.Module, path: str) -> str:
    """Write PATH/model.onnx: images [N, size, size, C] in [0, 1], normalization inside, to the
    module's result.

    Raises:
      UserError: tf2onnx is not installed, or does not know an operation; `path` exists.
    """
    _check_new(path)
    try:
        import tf2onnx
    except ImportError as error:
        raise UserError(
            f"layout=onnx needs tf2onnx ({one_line(error)}): pip install 'tfssl[onnx]'"
        ) from error
    function = _function(module, None)
    with _quiet():
        model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=17)
    channels = module.pixels["channels"]
    kind = "RGB images" if channels == 3 else "images"
    model.graph.doc_string = f"{kind} in [0, 1], [N, height, width, {channels}]"
    file = os.path.join(path, "model.onnx")
    files.write_file(file, model.SerializeToString())
    return file


def save_tflite(
    module: modules.Module, path: str, calibration: Iterable[np.ndarray] | None = None
) -> str:
    """Write PATH/model.tflite: an image [1, size, size, C] in [0, 1], normalization inside, to the
    module's result [1, D]; weights in float16, or weights and activations in int8.

    Args:
      module: the module.
      path: a folder, which must not exist yet.
      calibration: images [size, size, C] in [0, 1] by which int8's ranges are chosen; None:
        float16.

    Raises:
      UserError: TensorFlow Lite does not know an operation; `path` exists.
    """
    _check_new(path)
    function = _function(module, 1).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module.model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if calibration is None:
        converter.target_spec.supported_types = [tf.float16]
    else:
        images = [np.asarray(image, np.float32)[None] for image in calibration]
        converter.representative_dataset = lambda: ([image] for image in images)
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    try:
        with _quiet():
            content = converter.convert()
    except Exception as error:  # its converter raises many kinds
        raise UserError(f"layout=tflite: {one_line(error)[:300]}") from error
    file = os.path.join(path, "model.tflite")
    files.write_file(file, content)
    return file


def save_keras3(module: modules.Module, path: str) -> str:
    """Write PATH/encoder.py, which needs Keras 3 alone, and a copy of the module beside it.

    Raises:
      UserError: `path` exists, or is none of this machine.
    """
    output_of(module)
    _check_new(path)
    source = folders.resolve(module.handle)
    if not files.is_local(path) or not files.is_local(source):
        raise UserError("layout=keras3 copies a local module into a local --export_dir")
    unfinished = f"{path}.{files.unique()}.unfinished"
    try:
        shutil.copytree(source, os.path.join(unfinished, "module"))
        shutil.copy(
            os.path.join(os.path.dirname(__file__), "keras3.py"), f"{unfinished}/encoder.py"
        )
        files.move(unfinished, path)
    finally:
        files.remove(unfinished)
    return os.path.join(path, "encoder.py")


def crops(source: Any, module: modules.Module, count: int) -> Iterator[np.ndarray]:
    """The first `count` readable images of a source that was opened with `module.pixels`, as the
    module gets them: [size, size, C] in [0, 1]."""
    from tfssl.data import pipeline

    size, resize = module.sizes()
    left = count
    for batch in pipeline.evaluation_crops(source, size, resize, min(count, 32)):
        real = pipeline.as_floats(batch["image"]).numpy()[batch["weight"].numpy() > 0]
        yield from real[:left]
        left -= len(real)
        if left <= 0:
            return


def _check_new(path: str) -> None:
    if tf.io.gfile.exists(path):
        raise UserError(
            f"{path} exists, and what is published never changes: choose another folder"
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tables of operations that converters print."""
    with open(os.devnull, "wb") as nowhere:
        kept = {stream: os.dup(stream) for stream in (1, 2)}
        try:
            for stream in kept:
                os.dup2(nowhere.fileno(), stream)
            yield
        finally:
            for stream, copy in kept.items():
                os.dup2(copy, stream)
                os.close(copy)


SAVE: dict[str, Callable[..., str]] = {
    "onnx": save_onnx,
    "tflite": save_tflite,
    "keras3": save_keras3,
}
