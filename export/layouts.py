"""A network's weights in the layouts of other libraries: the name maps of `tfssl.interop`, read in
the other direction."""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import tfssl
from tfssl import backbones
from tfssl.backbones.hub import network_of
from tfssl.backbones.layers import STEMS, stem_stride
from tfssl.backbones.necks import Necked
from tfssl.backbones.norm import BatchNorm
from tfssl.backbones.vit import SIZES, ViT, sinusoids
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.interop.formats import safetensors
from tfssl.interop.layouts.layout import Layout, checked_resnet
from tfssl.interop.layouts.timm_vit import TimmViT
from tfssl.interop.layouts.torch_resnet import TorchResNet, detectron2, detectron2_pyramid
from tfssl.interop.links import Link
from tfssl.storage import files

_EPSILON = 1e-5  # of PyTorch's batch normalization
# Stems of the same geometry there. A small one is the consumer's own change of conv1 and maxpool.
_STEMS = {"torch": ("imagenet", "small"), "detectron2": ("imagenet", "stride16")}
_LEVELS = ["p3", "p4", "p5", "p6"]  # of a neck on a ResNet of stride 32


def of_module(handle: str) -> tuple[Any, Mapping[str, Any]]:
    """The network of a module of ours, and the module's facts; of a classifier, its encoder's.

    Raises:
      UserError: the module does not say which network it is of.
    """
    module = modules.load(handle)
    return network_of(module), module.facts


def save(
    layout: str,
    network: Any,
    path: str,
    normalization: Mapping[str, Any] | None = None,
    image_size: int = 224,
    texts: Mapping[str, str] | None = None,
) -> str:
    """Write a network's weights.

    Args:
      layout: "torch": PATH/model.safetensors in the names of torchvision (ResNets v1) or timm
        (ViTs); "detectron2": PATH/model.pkl, as its tools/convert-torchvision-to-d2.py makes it.
        What `requirements` says is in the file too.
      network: a backbone, whose variables exist.
      path: a folder, which must not exist yet.
      normalization: {"mean": ..., "std": ...} of the network's images, by channel, to be told.
      image_size: that it is meant for; a ViT's fixed positions are written for it.
      texts: more that the file's metadata say.

    Returns:
      the file's path.

    Raises:
      UserError: there is something at `path`; the layout has no such network.
    """
    if tf.io.gfile.exists(path):
        raise UserError(
            f"{path} exists, and what is published never changes: choose another folder"
        )
    mean, std = (
        [f"{x:g}" for x in (normalization or {}).get(name, [])] for name in ("mean", "std")
    )
    told = requirements(layout, network)
    if layout == "torch":
        file = os.path.join(path, "model.safetensors")
        metadata = {
            "tfssl": tfssl.__version__,
            "network": network.config()["name"],
            "stem": str(network.config().get("stem", "")),
            "image_size": str(image_size),
            "mean": ",".join(mean),
            "std": ",".join(std),
            "requirements": "; ".join(told),
            **(texts or {}),
        }
        tensors = torch_tensors(network, image_size)
        safetensors.write(file, tensors, {key: text for key, text in metadata.items() if text})
        return file
    file = os.path.join(path, "model.pkl")
    content = {
        "model": detectron2_tensors(network),
        "__author__": "tfssl",
        "matching_heuristics": True,
        "requirements": told,  # detectron2 leaves alone what it does not know
    }
    files.write_file(file, pickle.dumps(content, 2))
    return file


def requirements(layout: str, network: Any) -> list[str]:
    """What has to be known in order to build the network there, beside its name: settings that no
    shape tells and that are not that library's defaults, and what the file leaves out.

    Raises:
      UserError: the layout has no such network.
    """
    _check(layout, network)
    trunk, found = _trunk(network), []
    if isinstance(trunk, ViT):
        settings = _of_timm(trunk)
        if settings:
            found.append(f"timm's network has to be built with {', '.join(settings)}")
    elif layout == "torch" and _dilated(trunk):
        dilated = [block >= 3 - _dilated(trunk) for block in range(3)]
        found.append(
            f"torchvision's network has to be built with replace_stride_with_dilation={dilated}"
        )
    elif layout == "detectron2":
        if _bottlenecks(trunk):
            found.append("detectron2's network needs MODEL.RESNETS.STRIDE_IN_1X1 False")
        if trunk.stem == "stride16":
            ones = [1] * len(trunk.block4)
            found.append(
                "its res5 has stride 1 and no dilation, which no configuration of detectron2 says: "
                f"build that stage by ResNet.make_stage(..., stride_per_block={ones})"
            )
    if isinstance(network, Necked):
        if layout == "torch":
            found.append(f"the neck ({network.neck}) is left out: the file has the trunk alone")
        else:
            found += [
                "its pyramid needs MODEL.RESNETS.OUT_FEATURES and MODEL.FPN.IN_FEATURES "
                f"['res3', 'res4', 'res5'], MODEL.FPN.OUT_CHANNELS {network.neck_width}, and "
                "MODEL.FPN.NORM BN, SyncBN or FrozenBN",
                f"{_pyramid(network)[-1]} is left out: detectron2 makes such levels otherwise",
            ]
            if network.neck_tower:
                found.append("the tower of its neck is left out")
    return found


def torch_tensors(network: Any, image_size: int = 224) -> dict[str, np.ndarray]:
    """{name of torchvision's or timm's: float32 tensor}: with them their network, built as
    `requirements` says, computes the same. Of a network with a neck they are the trunk's.

    Raises:
      UserError: they have no such network.
    """
    _check("torch", network)
    return _of_trunk(network, image_size)


def detectron2_tensors(network: Any) -> dict[str, np.ndarray]:
    """{name of detectron2's: float32 tensor}; with a neck, the pyramid's too.

    Raises:
      UserError: it has no such network.
    """
    _check("detectron2", network)
    found = {detectron2(name): x for name, x in _of_trunk(network).items()}
    if isinstance(network, Necked):
        found.update(_written(detectron2_pyramid(network.fpn), network))
    return found


def _check(layout: str, network: Any) -> None:
    """Refuse what the layout has no counterpart of, though it might have the same shapes."""
    trunk = _trunk(network)
    if layout != "torch" and isinstance(trunk, ViT):
        raise UserError(f"layout={layout} is for ResNets v1, and {network.name} is a ViT")
    settings = {} if isinstance(trunk, ViT) else checked_resnet(trunk).config()
    common = {"padding": ("torch",), "skip": (True,), "stem": _STEMS[layout]}
    different = [
        f"{name}={settings[name]}"
        for name, theirs in common.items()
        if settings.get(name, theirs[0]) not in theirs
    ]
    if trunk.representation_size:
        different.append(f"representation_size={trunk.representation_size}")
    if not isinstance(trunk, ViT) and _dilated(trunk):
        # detectron2 dilates the first unit of the block too; torchvision has no such basic units.
        if layout == "detectron2" or not _bottlenecks(trunk):
            different.append(f"output_stride={trunk.output_stride}")
    if different:
        libraries = "PyTorch's libraries" if layout == "torch" else "detectron2"
        raise UserError(
            f"{network.name} with {', '.join(different)} has no counterpart in {libraries}, which "
            "would compute something else with its weights"
        )
    if layout == "detectron2" and isinstance(network, Necked):
        levels = _pyramid(network)
        if levels != _LEVELS:
            raise UserError(
                f"{network.name} with neck={network.neck} has no counterpart in detectron2: its "
                f"levels are {', '.join(levels)}, and not {', '.join(_LEVELS)} of res3 to res5"
            )


def _trunk(network: Any) -> Any:
    return network.trunk if isinstance(network, Necked) else network


def _pyramid(network: Necked) -> list[str]:
    """The levels of its pyramid, the finest first."""
    return [name for name in network.endpoint_names if re.fullmatch(r"p\d+", name)]


def _bottlenecks(trunk: Any) -> bool:
    return len(trunk.block1[0].convs) == 3


def _dilated(trunk: Any) -> int:
    """How many of a ResNet's last blocks are dilated in place of their stride."""
    usual = stem_stride(trunk.stem) * math.prod(STEMS[trunk.stem][3])
    return round(math.log2(usual / trunk.min_image_size))


def _of_timm(network: ViT) -> list[str]:
    """Arguments of timm's constructor that are not its defaults, and that no shape tells."""
    usual = {channels: heads for channels, _, heads in SIZES.values()}
    settings = []
    if network.heads != usual.get(network.channels):
        settings.append(f"num_heads={network.heads}")
    if network.registers:
        settings += [f"reg_tokens={network.registers}", "no_embed_class=True"]
    if network.pool == "mean":  # timm would return the class token; or normalize after the mean
        settings += ["global_pool='avg'", "fc_norm=False"]
    return settings if network.class_token else [*settings, "class_token=False"]


def _of_trunk(network: Any, image_size: int = 224) -> dict[str, np.ndarray]:
    trunk = _trunk(network)
    trunk = _with_positions(trunk, image_size) if isinstance(trunk, ViT) else trunk
    layout: Layout = TimmViT() if isinstance(trunk, ViT) else TorchResNet()
    found = _written(layout.links(trunk), trunk)
    if isinstance(trunk, ViT) and trunk.registers and trunk.class_token:
        # timm has positions of all tokens, or of patches alone: the class token takes its own.
        positions = found["pos_embed"]
        found["cls_token"] = found["cls_token"] + positions[:, :1]
        found["pos_embed"] = np.ascontiguousarray(positions[:, 1:])
    return found


def _written(links: Iterable[Link], network: Any) -> dict[str, np.ndarray]:
    # The variance is all that epsilon is added to: so theirs becomes ours.
    more = {
        id(layer.moving_variance): np.float32(layer.epsilon) - np.float32(_EPSILON)
        for layer in network.submodules
        if isinstance(layer, BatchNorm)
    }
    return {
        link.key: np.ascontiguousarray(
            link.form.write([v.numpy() + more.get(id(v), 0) for v in link.variables]), np.float32
        )
        for link in links
    }


def _with_positions(network: ViT, image_size: int) -> ViT:
    """A ViT whose fixed positions, if it has such, have become weights."""
    if network.positions == "learned":
        return network
    grid = max(1, image_size // network.patch)
    twin = backbones.build(**{**network.config(), "positions": "learned", "grid": grid})
    twin.build((None, None, None, network.patch_embed.kernel.shape[2]))
    own = {v.name: v for v in network.variables}
    for variable in twin.variables:
        if variable.name in own:
            variable.assign(own[variable.name])
    twin.patch_positions.assign(sinusoids(grid, grid, network.channels))
    if network.class_token:
        twin.cls_position.assign(tf.zeros_like(twin.cls_position))
    return twin
