"""A network's weights in the layouts of other libraries: the name maps of `tfssl.interop`, read in
the other direction."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

import tfssl
from tfssl import backbones
from tfssl.backbones.hub import network_of
from tfssl.backbones.norm import BatchNorm
from tfssl.backbones.vit import ViT, sinusoids
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.interop.formats import safetensors
from tfssl.interop.layouts.layout import Layout
from tfssl.interop.layouts.timm_vit import TimmViT
from tfssl.interop.layouts.torch_resnet import TorchResNet, detectron2
from tfssl.storage import files

_EPSILON = 1e-5  # of PyTorch's batch normalization


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
    tensors = torch_tensors(network, image_size)
    mean, std = (
        [f"{x:g}" for x in (normalization or {}).get(name, [])] for name in ("mean", "std")
    )
    if layout == "torch":
        file = os.path.join(path, "model.safetensors")
        told = {
            "tfssl": tfssl.__version__,
            "network": network.config()["name"],
            "stem": str(network.config().get("stem", "")),
            "image_size": str(image_size),
            "mean": ",".join(mean),
            "std": ",".join(std),
            **(texts or {}),
        }
        safetensors.write(file, tensors, {key: text for key, text in told.items() if text})
        return file
    if isinstance(network, ViT):
        raise UserError(f"layout={layout} is for ResNets v1, and {network.name} is a ViT")
    file = os.path.join(path, "model.pkl")
    content = {
        "model": {detectron2(name): x for name, x in tensors.items()},
        "__author__": "tfssl",
        "matching_heuristics": True,
    }
    files.write_file(file, pickle.dumps(content, 2))
    return file


def torch_tensors(network: Any, image_size: int = 224) -> dict[str, np.ndarray]:
    """{name of torchvision's or timm's: float32 tensor}: with them their network computes the same.

    Raises:
      UserError: they have no such network.
    """
    network = _with_positions(network, image_size) if isinstance(network, ViT) else network
    layout: Layout = TimmViT() if isinstance(network, ViT) else TorchResNet()
    links = layout.links(network)
    settings = network.config()
    different = [
        f"{name}={settings[name]}"
        for name, theirs in (("padding", "torch"), ("skip", True), ("representation_size", 0))
        if settings.get(name, theirs) != theirs
    ]
    if different:
        raise UserError(
            f"{network.name} with {', '.join(different)} has no counterpart in PyTorch's "
            "libraries, which would compute something else with its weights"
        )
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
    twin.build((None, None, None, 3))
    own = {v.name: v for v in network.variables}
    for variable in twin.variables:
        if variable.name in own:
            variable.assign(own[variable.name])
    twin.patch_positions.assign(sinusoids(grid, grid, network.channels))
    if network.class_token:
        twin.cls_position.assign(tf.zeros_like(twin.cls_position))
    return twin
