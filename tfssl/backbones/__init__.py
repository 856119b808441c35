"""Backbones: images in, named endpoints out. `build` makes one by name, or takes in a user's own `tf.keras.Model`."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from tfssl.backbones import alexnet, layers, resnet, revnet, vgg
from tfssl.backbones.norm import at_least_float32
from tfssl.errors import UserError, check_choice

_FAMILIES = {
    **{name: resnet.ResNet for name in resnet.NAMES},
    **{name: revnet.RevNet for name in revnet.NAMES},
    **{name: vgg.VGG for name in vgg.NAMES},
    **{name: alexnet.AlexNet for name in alexnet.NAMES},
}
NAMES = list(_FAMILIES)
STEMS = tuple(layers.STEMS)
INITIALIZERS = tuple(layers.INITIALIZERS)


def build(
    name: str | tf.keras.Model,
    width_multiplier: float = 1.0,
    stem: str = "imagenet",
    bn_momentum: float = 0.99,
    bn_epsilon: float = 1e-3,
    last_relu: bool = True,
    skip: bool = True,
    representation_size: int = 0,
    sk_ratio: float = 0.0,
    zero_init_residual: bool = False,
    initializer: str = "glorot_uniform",
    bn_sync: bool = False,
    bn_groups: int = 1,
    remat: bool = False,
) -> tf.keras.Model:
    """A backbone: a `tf.keras.Model` whose `model(images, training)` is a dict of endpoints, in depth order.

    The last endpoint is `pre_logits`, [N, D] in float32 at least. Every backbone has `endpoint_names`, `min_image_size`
    (the smallest side that makes sense) and `config()`, with which `build(**config)` makes the same network again (None
    for a user's own model).

    Args:
      name: one of NAMES, or a user's own `tf.keras.Model` of images [N, H, W, C] that returns features [N, D], a map
        [N, h, w, D] (its mean over h and w becomes the pre-logits), or a dict with such an entry named `pre_logits`.
        Its images come as the pretext task normalises them. The settings below are for named backbones only.
      width_multiplier: times the standard channels. The first layer has int(64 * width_multiplier + 0.5) of them, at least 1,
        and every layer its standard multiple of those (RevNets: a stream of the first unit has int(32 * width_multiplier + 0.5)). The 2019
        study's "4x" is 1.0 here, its "16x" is 4.0; but of VGG its "8x" is 1.0, its "16x" is 2.0.
      stem: "imagenet" (7x7 of stride 2 and max-pool: 224 -> 7), "small" (3x3 of stride 1, for CIFAR: 32 -> 4),
        "patch" (7x7 of stride 1 and max-pool, no stride in the last block: 64 -> 8, for the study's patch tasks) or "stride16" ("imagenet"
        without a stride in the last block: 224 -> 14, for colorization). VGG is its standard self with all but "small", which leaves out
        the first max-pool. Of AlexNet they set the first convolution's stride: 4, 2 ("patch") or 1.
      bn_momentum: share of the moving averages that a training step keeps (1 minus what PyTorch calls momentum).
      bn_epsilon: added to the variance.
      last_relu: False leaves out the ReLU before the mean (v2 networks and RevNets only: the study's "(-)").
      skip: False leaves out the skip connections (ResNets only: the study's ablation).
      representation_size: where above 0, a linear layer of that many outputs follows the mean, and they are the pre-logits: the size of the
        representation apart from the width (the study's Figure 6).
      sk_ratio: where above 0, SimCLR v2's SK-ResNet with this ratio of channels in its selective kernels (arXiv 2006.10029: 0.0625), which
        also has ResNet-D's root (but for the stem "small") and shortcuts. Of resnet50_v1 and deeper v1 networks.
      zero_init_residual: the last BN of each residual unit begins with gamma 0, and so the unit as its shortcut (arXiv 1706.02677; SimCLR,
        SimSiam). Of v1 ResNets.
      initializer: how the kernels of convolutions begin, and their variance: "glorot_uniform" (2 / (fan_in + fan_out); Keras, the 2019
        study), "he_fan_out" (normal, 2 / fan_out; torchvision's ResNets, and so MoCo, SimSiam, SwAV), "lecun_normal" (truncated normal,
        1 / fan_in; SimCLR's code) or "torch_uniform" (1 / (3 fan_in); PyTorch's own default). This and the next three are about training
        alone: `config` leaves them out, and export publishes the plain network.
      bn_sync: in training, batch statistics are those of all replicas together.
      bn_groups: in training, the batch is normalised in so many groups of successive rows.
      remat: in training, keep the inputs of the residual units (of VGG's stages) only, and compute their activations again in the
        backward pass: less memory for about a third more computation. RevNets do better than that in any case, and ignore it.

    Raises:
      UserError: an unknown name or stem, a setting out of range, or one given for a model that is already made.
    """
    settings = {
        "width_multiplier": width_multiplier,
        "stem": stem,
        "bn_momentum": bn_momentum,
        "bn_epsilon": bn_epsilon,
        "last_relu": last_relu,
        "skip": skip,
        "representation_size": representation_size,
        "sk_ratio": sk_ratio,
        "zero_init_residual": zero_init_residual,
        "initializer": initializer,
        "bn_sync": bn_sync,
        "bn_groups": bn_groups,
        "remat": remat,
    }
    if isinstance(name, tf.keras.Model):
        parameters = inspect.signature(build).parameters
        changed = [key for key, value in settings.items() if value != parameters[key].default]
        if changed:
            raise UserError(f"model {name.name!r} is already made: set {', '.join(changed)} in it, and not here")
        return name if isinstance(name, (layers.Network, UserModel)) else UserModel(name)
    if not isinstance(name, str):
        kind = f"{type(name).__module__}.{type(name).__qualname__}"
        raise UserError(f"a backbone is a tf.keras.Model of Keras 2, or one of {', '.join(NAMES)}; this is a {kind}")
    if name not in NAMES:
        close = difflib.get_close_matches(name, NAMES)
        hint = f" (did you mean {' or '.join(close)}?)" if close else ""
        raise UserError(f"unknown backbone {name!r}{hint}; there are {', '.join(NAMES)}")
    if stem not in STEMS:
        raise UserError(f"unknown stem {stem!r}; there are {', '.join(STEMS)}")
    check_choice("initializer", initializer, INITIALIZERS)
    if not 0 < width_multiplier < math.inf:
        raise UserError(f"width_multiplier={width_multiplier} must be a positive number; 1 is the standard network")
    if not 0 <= bn_momentum < 1:
        raise UserError(f"bn_momentum={bn_momentum} must be at least 0 and below 1: it is the share that is kept")
    if not 0 < bn_epsilon < math.inf:
        raise UserError(f"bn_epsilon={bn_epsilon} must be a positive number")
    if representation_size < 0:
        raise UserError(
            f"representation_size={representation_size} must be a number of features, or 0 for the network's own"
        )
    if not 0 <= sk_ratio < math.inf:
        raise UserError(f"sk_ratio={sk_ratio} must be at least 0, which means none; SimCLR v2 has 0.0625")
    for setting, names in (("sk_ratio", resnet.SK_NAMES), ("zero_init_residual", resnet.ZERO_INIT_NAMES)):
        if settings[setting] and name not in names:
            raise UserError(f"{setting}={settings[setting]} is for {', '.join(names)}: {name} has no form with it")
    if zero_init_residual and not skip:
        raise UserError(
            "zero_init_residual=True needs skip=True: without skip connections nothing would pass the units"
        )
    if bn_groups < 1 or (bn_sync and bn_groups > 1):
        raise UserError(f"bn_groups={bn_groups} must be at least 1, and 1 with bn_sync: groups lie within a replica")
    return _FAMILIES[name](name, **settings)


class UserModel(tf.keras.Model):
    """A user's own model as a backbone; `build` tells what it may return.

    A map becomes the endpoints `features` [N, h, w, D] and `pre_logits` [N, D]. Of a dict every entry is an endpoint,
    in its order but for `pre_logits`, the last. What a subclassed model returns is known once it has been called.
    """

    bn_sync, bn_groups = False, 1  # set them for the batch normalisations of a task's head to follow

    def __init__(self, model: tf.keras.Model) -> None:
        super().__init__(name=model.name)
        self.model = model
        self.names, self.min_image_size = None, 1
        if model.inputs:  # a functional model knows what it takes and returns
            shapes = [tuple(tensor.shape) for tensor in model.inputs]
            if len(shapes) != 1 or len(shapes[0]) != 4:
                raise UserError(f"model {self.name!r} takes {shapes}; a backbone takes images [N, H, W, C], no more")
            self.min_image_size = max(side or 1 for side in shapes[0][1:3])
            self.names = tuple(self.in_order(model.output))

    @property
    def autograph(self) -> bool:
        """Whether there is code of its own in the model, in which a tensor may stand where Python wants a bool; Keras's has none."""
        modules = {type(m).__module__.split(".")[0] for m in (self.model, *self.model.submodules)}
        return not modules <= {"keras", "tf_keras", "tensorflow", "tfssl"}

    def twin(self) -> UserModel:
        """A network of the same form, with weights of its own.

        Raises:
          UserError: it is neither functional nor has a configuration to make it again from.
        """
        try:
            if self.model.inputs or isinstance(self.model, tf.keras.Sequential):
                twin = UserModel(tf.keras.models.clone_model(self.model))
            else:
                twin = UserModel(type(self.model).from_config(self.model.get_config()))
        except (NotImplementedError, TypeError, ValueError) as e:
            raise UserError(
                f"model {self.name!r} cannot be made twice, as a task with a target network must: write its get_config and from_config, "
                "or make it functional"
            ) from e
        twin.bn_sync, twin.bn_groups = self.bn_sync, self.bn_groups
        return twin

    def in_order(self, output: tf.Tensor | Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What the user's model returns, as a dict of endpoints in depth order; its pre_logits may still be a map."""
        if not isinstance(output, Mapping):
            output = {"features": output, "pre_logits": output} if rank(output) == 4 else {"pre_logits": output}
        endpoints = {key: output[key] for key in sorted(output, key="pre_logits".__eq__)}
        if None in map(rank, endpoints.values()) or rank(endpoints.get("pre_logits")) not in (2, 4):
            found = [f"{key} {getattr(value, 'shape', type(value).__name__)}" for key, value in endpoints.items()]
            raise UserError(
                f"model {self.name!r} returns {', '.join(found)}; it should return features [N, D], a map [N, h, w, D] "
                "or a dict of tensors, one of these as its pre_logits"
            )
        return endpoints

    def call(self, images: tf.Tensor, training: bool | None = None) -> dict[str, tf.Tensor]:
        endpoints = self.in_order(self.model(images))  # Keras hands our `training` on to every layer that takes one
        self.names = tuple(endpoints)
        last = endpoints["pre_logits"]
        endpoints["pre_logits"] = layers.global_mean(last) if rank(last) == 4 else at_least_float32(last)
        return endpoints

    @property
    def endpoint_names(self) -> tuple[str, ...]:
        if self.names is None:
            raise UserError(f"what model {self.name!r} returns is known once it has seen images: call it first")
        return tuple(self.names)

    def config(self) -> dict[str, Any] | None:
        return None  # only its author can make it again


def rank(value: object) -> int | None:
    """Number of axes of a tensor; None if that is unknown, or if this is no tensor."""
    return getattr(getattr(value, "shape", None), "rank", None)
