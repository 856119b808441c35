"""Inference of any SavedModel in a 16-bit precision: its graph with other convolutions and matrix
products."""

from __future__ import annotations

import os
from collections.abc import Iterable, MutableSequence

import tensorflow as tf
from tensorflow.core.framework import node_def_pb2
from tensorflow.core.protobuf import saved_model_pb2

from tfssl.hub import folders, value_range
from tfssl.hub.load import Module
from tfssl.hub.load import load as load_float32
from tfssl.storage import files

# Operations that take nearly all of a network's time -> the name of their output in a function.
_PRODUCTS = {
    "Conv2D": "output",
    "DepthwiseConv2dNative": "output",
    "MatMul": "product",
    "BatchMatMul": "output",
    "BatchMatMulV2": "output",
    "Einsum": "output",
}


def load(handle: str | os.PathLike[str], precision: str = "float32") -> Module:
    """Open a Hub module, see `load.load`, that computes convolutions and matrix products in a
    precision; its inputs, weights and outputs, and everything else, stay float32.

    It is the same SavedModel with casts around these operations, as Keras's mixed policies have
    them, and so runs on all devices and strategies; XLA fuses the casts. It has an `identity` of
    its own, by which cached features are told apart.

    Args:
      handle: of the module, with HANDLE#-1..1's range of pixels.
      precision: float32, mixed_bfloat16 or mixed_float16.

    Raises:
      UserError: see `load.load`.
    """
    if precision == "float32":
        return load_float32(handle)
    kind = tf.as_dtype(precision.replace("mixed_", "")).as_datatype_enum
    handle = os.fspath(handle)
    plain, pixels = value_range.parted(handle)
    folder = folders.resolve(plain)
    with tf.io.gfile.GFile(os.path.join(folder, "saved_model.pb"), "rb") as f:
        saved = saved_model_pb2.SavedModel.FromString(f.read())
    for meta in saved.meta_graphs:
        _rewrite(meta.graph_def.node, kind, {})
        for function in meta.graph_def.library.function:
            moved = _rewrite(function.node_def, kind, _PRODUCTS)
            for name, reference in function.ret.items():
                function.ret[name] = moved.get(reference, reference)
    copy = files.scratch("tfssl-module-")
    for name in (name.rstrip("/") for name in tf.io.gfile.listdir(folder)):
        if name not in ("saved_model.pb", "fingerprint.pb"):
            _link(os.path.join(folder, name), os.path.join(copy, name))
    graph = saved.SerializeToString(deterministic=True)
    files.write_file(os.path.join(copy, "saved_model.pb"), graph)
    return Module(handle, copy, pixels)


def _rewrite(
    nodes: MutableSequence[node_def_pb2.NodeDef], kind: int, outputs: dict[str, str]
) -> dict[str, str]:
    """Put casts before and behind the products among `nodes`, of a function (`outputs` then names
    their outputs) or of a graph ({}).

    Returns:
      {reference to an output: what it is now}; the cast behind a product takes its name.
    """
    made: list[node_def_pb2.NodeDef] = []
    moved: dict[str, str] = {}
    for node in nodes:
        if node.op not in _PRODUCTS or node.attr["T"].type != tf.float32.as_datatype_enum:
            continue
        name, output = node.name, outputs.get(node.op)
        arguments = [text for text in node.input if not text.startswith("^")]
        control = [text for text in node.input if text.startswith("^")]
        casts = [
            _cast(f"{name}/cast_{i}", argument, tf.float32.as_datatype_enum, kind, node.device)
            for i, argument in enumerate(arguments)
        ]
        product = node_def_pb2.NodeDef()
        product.CopyFrom(node)
        product.name = f"{name}/product"
        product.attr["T"].type = kind
        product.attr.pop("_class", None)  # colocation with others
        product.attr.pop("_output_shapes", None)
        suffix = ":y:0" if output else ""
        product.input[:] = [*(cast.name + suffix for cast in casts), *control]
        back = f"{product.name}:{output}:0" if output else product.name
        made += [*casts, product]
        node.CopyFrom(_cast(name, back, kind, tf.float32.as_datatype_enum, node.device))
        if output:
            moved[f"{name}:{output}:0"] = f"{name}:y:0"
    for node in (*nodes, *made):
        _redirect(node, moved)
    nodes.extend(made)
    return moved


def _redirect(node: node_def_pb2.NodeDef, moved: dict[str, str]) -> None:
    node.input[:] = [moved.get(reference, reference) for reference in node.input]


def _cast(name: str, argument: str, source: int, target: int, device: str) -> node_def_pb2.NodeDef:
    node = node_def_pb2.NodeDef(name=name, op="Cast", input=[argument], device=device)
    node.attr["SrcT"].type, node.attr["DstT"].type = source, target
    node.attr["Truncate"].b = False
    return node


def _link(path: str, target: str) -> None:
    """A link to a local file or folder; a copy of a remote one."""
    if files.is_local(path):
        os.symlink(os.path.abspath(path), target)
    elif not tf.io.gfile.isdir(path):
        tf.io.gfile.copy(path, target)
    else:
        os.mkdir(target)
        names: Iterable[str] = tf.io.gfile.listdir(path)
        for name in (name.rstrip("/") for name in names):
            _link(os.path.join(path, name), os.path.join(target, name))
