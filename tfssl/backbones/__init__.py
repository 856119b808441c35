"""Backbones, one family in one file: images in, named endpoints out. `build` makes one by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tfssl.config import signatures
from tfssl.config.generated import Generated, of_registry
from tfssl.errors import UserError
from tfssl.registry import Registry

if TYPE_CHECKING:
    import tensorflow as tf

    from tfssl.backbones.layers import INITIALIZERS, KINDS, STEMS, Network
    from tfssl.backbones.norm import Norm
    from tfssl.backbones.user_model import UserModel

KERAS = "keras:"  # before a name of tf.keras.applications


class _Backbones(Registry):
    """Also of Keras's own networks, keras:NAME, which are all of one class."""

    def source(self, name: str) -> tuple[str, str]:
        if name.startswith(KERAS):
            return "tfssl.backbones.keras_application", "KerasApplication"
        return super().source(name)


BACKBONES = _Backbones(
    "backbone",
    {
        **{
            f"resnet{d}_v{v}": "tfssl.backbones.resnet:ResNet"
            for v in (1, 2)
            for d in (18, 34, 50, 101, 152, 200)
        },
        **{f"revnet{d}": "tfssl.backbones.revnet:RevNet" for d in (50, 18, 34, 101, 152)},
        **{f"vgg{d}": "tfssl.backbones.vgg:VGG" for d in (11, 13, 16, 19)},
        **{f"vit_{size}": "tfssl.backbones.vit:ViT" for size in ("tiny", "small", "base", "large")},
        "alexnet": "tfssl.backbones.alexnet:AlexNet",
        "alexnet_lrn": "tfssl.backbones.alexnet:AlexNet",
    },
)
NAMES = list(BACKBONES.names)


def backbone_flags(backbone: str = NAMES[0]) -> Generated:
    """The flags of the settings of all families: ours, and `backbone`, which may be the import path
    of a user's own class.

    Raises:
      UserError: there is no such backbone.
    """
    return of_registry(BACKBONES, backbone, unset=False)


# What needs TensorFlow loads when it is first used, for `--help` reads NAMES only.
_LATE = {
    "STEMS": "layers",
    "INITIALIZERS": "layers",
    "KINDS": "layers",
    "Network": "layers",
    "Norm": "norm",
}
_LATE["UserModel"] = "user_model"


def __getattr__(name: str) -> Any:
    if name in _LATE:
        found = getattr(importlib.import_module(f"tfssl.backbones.{_LATE[name]}"), name)
        return tuple(found) if name in ("STEMS", "INITIALIZERS") else found
    raise AttributeError(f"module 'tfssl.backbones' has no attribute {name!r}")


def build(
    name: str | type | tf.keras.Model,
    width_multiplier: float | None = None,
    stem: str | None = None,
    *,
    bn_sync: bool = False,
    bn_groups: int = 1,
    neck: str = "",
    neck_width: int = 256,
    neck_tower: int = 0,
    **settings: Any,
) -> Any:
    """A backbone: a `tf.keras.Model` whose `model(images, training)` is a dict of endpoints, in
    depth order.

    The last endpoint is `pre_logits`, [N, D] in float32 at least. Every backbone has
    `endpoint_names`, `endpoint_kinds`, `min_image_size` (the smallest side that makes sense),
    `norm_policy`, `twin()` (a network of the same form) and `config()`, with which
    `build(**config)` makes the same network again (None where only its author can).

    Args:
      name: one of NAMES; "keras:NAME", of tf.keras.applications, such as keras:ConvNeXtTiny (see
        `keras_application`); the import path of a class of your own, "mypackage.mynets:MyNet", or
        that class: a `Network`, or a `tf.keras.Model` whose constructor is its settings; or a
        model. A model takes images [N, H, W, C] and returns features [N, D], a map [N, h, w, D]
        (its mean over h and w becomes the pre-logits), or a dict with such an entry named
        `pre_logits`. Its images come as the pretext task normalizes them.
      width_multiplier: times the standard channels; None: the family's default. The first layer has
        int(64 * width_multiplier + 0.5) of them, at least 1, and every layer its standard multiple
        of those (RevNets: a stream of the first unit has int(32 * width_multiplier + 0.5)). The
        2019 study's "4x" is 1.0 here, its "16x" is 4.0; but of VGG its "8x" is 1.0, its "16x" is
        2.0.
      stem: "imagenet" (224 -> 7), "small" (32 -> 4), "patch" (64 -> 8) or "stride16" (224 -> 14);
        None: "imagenet".
      bn_sync: in training, batch statistics are those of all replicas together.
      bn_groups: in training, the batch is normalized in so many groups of successive rows. Both are
        the `norm_policy` (`tfssl.backbones.Norm`), which may be given in their place.
      neck: "fpn" adds a feature pyramid's levels to the endpoints, of `neck_width` channels, and
        those of a tower of `neck_tower` convolutions (see `necks.Necked`); "": none.
      settings: further arguments of the family's class, such as those of `resnet.ResNet` and
        `layers.Network`. One that the family has not is refused, unless it is the default of those
        that have it.

    Raises:
      UserError: an unknown name, a setting that it has not or that is out of range, or one given
        for a model that is already made.
    """
    from tfssl.backbones.necks import Necked
    from tfssl.backbones.norm import Norm

    if bn_sync or bn_groups != 1:
        settings["norm_policy"] = Norm(sync=bn_sync, groups=bn_groups)
    trunk = _trunk(name, {"width_multiplier": width_multiplier, "stem": stem, **settings})
    return Necked(trunk, neck, neck_width, neck_tower) if neck else trunk


def _trunk(name: str | type | tf.keras.Model, settings: Mapping[str, Any]) -> Any:
    """A backbone without a neck, or one that is made already as it is; settings of None are not
    given."""
    import tensorflow as tf

    from tfssl.backbones.layers import Network
    from tfssl.backbones.necks import Necked
    from tfssl.backbones.user_model import UserModel

    given = {key: value for key, value in settings.items() if value is not None}
    if isinstance(name, tf.keras.Model):
        changed = _not_default(given)
        if changed:
            raise UserError(
                f"model {name.name!r} is already made: set {', '.join(changed)} in it, and not here"
            )
        return name if isinstance(name, (Network, UserModel, Necked)) else UserModel(name)
    if isinstance(name, str):
        cls: Any = BACKBONES.find(name)
        if not (isinstance(cls, type) and issubclass(cls, tf.keras.Model)):
            raise UserError(
                f"backbone {name!r} is no class of tf.keras.Model of Keras 2: see "
                "docs/add_a_backbone.md"
            )
    elif isinstance(name, type) and issubclass(name, tf.keras.Model) and name is not tf.keras.Model:
        cls, name = name, BACKBONES.name_of(name)
    else:
        kind = f"{type(name).__module__}.{type(name).__qualname__}"
        raise UserError(
            f"a backbone is a tf.keras.Model of Keras 2, or one of {', '.join(NAMES)}; this is a "
            f"{kind}"
        )
    own = signatures.arguments(cls)
    for key in _not_default({key: value for key, value in given.items() if key not in own}):
        if key == "norm_policy":
            raise UserError(
                f"backbone {name!r} computes batch statistics by itself, for its constructor takes "
                "no norm_policy: leave out bn_sync and "
                "bn_groups (--sync_batch_norm, --bn_group_size)"
            )
        others = dict.fromkeys(
            BACKBONES.source(n)[1] for n, s in backbone_flags().settings.items() if key in s
        )
        having = f" but of {', '.join(others)}" if others else ""
        theirs = ", ".join(n for n in own if n != "name")
        raise UserError(
            f"{key}={given[key]} is no setting of backbone {name!r}{having}; its own are {theirs}"
        )
    given = {key: value for key, value in given.items() if key in own}
    if name.startswith(KERAS):
        given["application"] = name[len(KERAS) :]
    if issubclass(cls, Network):
        return cls(**{**({"name": name} if name in NAMES else {}), **given})
    return UserModel(cls(**given), {"name": name, **given})


def _not_default(given: Mapping[str, Any]) -> list[str]:
    """The settings that are none of our families', or differ from what these have by default."""
    defaults: dict[str, Any] = {"remat": False}
    for settings in backbone_flags().settings.values():
        defaults |= {argument: setting.default for argument, setting in settings.items()}
    return [key for key, value in given.items() if key not in defaults or value != defaults[key]]


__all__ = [
    "BACKBONES",
    "INITIALIZERS",
    "KINDS",
    "NAMES",
    "STEMS",
    "Network",
    "Norm",
    "UserModel",
    "backbone_flags",
    "build",
]
