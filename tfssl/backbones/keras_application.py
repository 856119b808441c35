"""Networks of tf.keras.applications by name, untrained: `--backbone=keras:ConvNeXtTiny`."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import io
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError

_SIDE = 256  # at which the stages are told apart


class KerasApplication(tf.keras.Model):
    """A network of tf.keras.applications without its classifier: images [N, H, W, C] -> its stages.

    The endpoints are `stage1`, `stage2`, ...: the last map of each resolution (by halvings), in
    order, and `pre_logits`, the mean of the last map. What a network draws by chance in training
    (dropout, stochastic depth) is off: those draws are not the run's, and a resumed run would not
    repeat them. Batch statistics are those of each replica; momentum and epsilon are the network's
    own.

    Args:
      application: the name of its function, such as ConvNeXtTiny, EfficientNetV2B0 or MobileNetV2.
      channels: of the images.

    Raises:
      UserError: there is no such network; or it scales its input itself, which a task does.
    """

    flag_names = {"application": "", "channels": ""}

    def __init__(self, application: str = "ResNet50V2", channels: int = 3) -> None:
        super().__init__(name=f"keras_{application}")
        self.net = _built(application, channels)

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        """{endpoint: map [N, h, w, D]}; of the last one `UserModel` takes the mean.

        Raises:
          UserError: the images are too small: one of its windows does not fit.
        """
        try:
            return self.net(images, training=training)
        except ValueError as error:
            if "Negative dimension size" not in str(error):
                raise
            raise UserError(
                f"images of {images.shape[1]}x{images.shape[2]} are too small for backbone "
                f"'keras:{self.net.name}': take larger ones"
            ) from error


def names() -> list[str]:
    """The functions of tf.keras.applications that make a network."""
    found = vars(tf.keras.applications)
    return sorted(name for name, value in found.items() if inspect.isfunction(value))


def _built(application: str, channels: int) -> tf.keras.Model:
    if application not in names():
        known = {name.lower(): name for name in names()}
        near = difflib.get_close_matches(application.lower(), known, 3, 0.8)
        shown = f"{', '.join(known[name] for name in near)}, ..." if near else ", ".join(names())
        raise UserError(f"backbone 'keras:{application}': tf.keras.applications has {shown}")
    make = getattr(tf.keras.applications, application)
    settings: dict[str, Any] = {"include_top": False, "weights": None}
    if "include_preprocessing" in inspect.signature(make).parameters:
        settings["include_preprocessing"] = False
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # some print of their own
            whole = make(input_shape=(None, None, channels), **settings)
            sized = make(input_shape=(_SIDE, _SIDE, channels), **settings)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"backbone 'keras:{application}' cannot be made for images of any size: {reason}"
        ) from error
    scaling = [n.name for n in whole.layers if type(n).__name__ in ("Rescaling", "Normalization")]
    if scaling:
        raise UserError(
            f"backbone 'keras:{application}' scales its input itself ({', '.join(scaling)}), which "
            "a task does: take another, such as keras:EfficientNetV2B0"
        )
    for layer in (whole, *whole.submodules):
        for rate in ("rate", "drop_path_rate"):
            if isinstance(getattr(layer, rate, None), float):
                setattr(layer, rate, 0.0)
    if len(whole.layers) != len(sized.layers):
        raise UserError(
            f"backbone 'keras:{application}': its layers depend on the images' size: take another, "
            "such as keras:EfficientNetV2B0"
        )
    last: dict[int, int] = {}  # halvings of the resolution -> the last layer that makes such a map
    for number, layer in enumerate(sized.layers):
        shape = layer.output_shape
        shape = shape[0] if isinstance(shape, list) and len(shape) == 1 else shape
        is_map = isinstance(shape, tuple) and len(shape) == 4 and shape[1] > 1
        if number and is_map and not isinstance(layer, tf.keras.layers.ZeroPadding2D):
            last[round(math.log2(_SIDE / shape[1]))] = number
    stages = [whole.layers[number].output for number in last.values()]
    outputs: Mapping[str, tf.Tensor] = {
        **{f"stage{i}": stage for i, stage in enumerate(stages, 1)},
        "pre_logits": whole.output,
    }
    return tf.keras.Model(whole.input, dict(outputs), name=application)
