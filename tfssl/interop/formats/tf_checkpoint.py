"""TensorFlow's checkpoints, those of version 1 and those of objects, by their variables' names."""

from __future__ import annotations

import glob
import math
import os

import numpy as np

from tfssl.errors import one_line
from tfssl.interop.formats.pickles import Refused

_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"


def prefix(path: str) -> str | None:
    """The checkpoint's name without .index, of that name, of a folder of checkpoints (the newest),
    or of a SavedModel's folder; None of other files.

    Raises:
      Refused: it is a folder without one.
    """
    candidates = [path, path[: -len(".index")] if path.endswith(".index") else path]
    if os.path.isdir(path):
        inside = sorted(glob.glob(os.path.join(glob.escape(path), "*.index")), key=os.path.getmtime)
        candidates = [os.path.join(path, "variables", "variables")]
        candidates += [name[: -len(".index")] for name in reversed(inside)]
    found = next((name for name in candidates if os.path.isfile(f"{name}.index")), None)
    if found is None and os.path.isdir(path):
        raise Refused("a folder without a checkpoint in it (NAME.index) and no SavedModel")
    return found


def read(checkpoint: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """({variable: value}, the checkpoint's files). Variables of a checkpoint of objects are named
    as they were made, where those names differ, and else as the objects hold them.

    Raises:
      Refused: it is damaged.
    """
    import tensorflow as tf

    parts = [
        f"{checkpoint}.index",
        *sorted(glob.glob(f"{glob.escape(checkpoint)}.data-?????-of-?????")),
    ]
    size = sum(os.path.getsize(part) for part in parts)
    try:
        reader = tf.train.load_checkpoint(checkpoint)
        shapes, dtypes = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
        numbers = [
            key for key in shapes if dtypes[key].is_floating or dtypes[key].is_integer
        ]  # others are texts
        claimed = sum(math.prod(shapes[key]) * dtypes[key].size for key in numbers)
        if claimed > size:
            raise Refused(f"its variables claim {claimed} bytes, of files of {size}")
        names = _names(reader.get_tensor(_GRAPH)) if _GRAPH in shapes else {}
        return {names.get(key, key): reader.get_tensor(key) for key in numbers}, parts
    except Refused:
        raise
    except Exception as error:  # TensorFlow raises many kinds
        raise Refused(f"it is no checkpoint, or a damaged one ({one_line(error)})") from error


def _names(graph: bytes) -> dict[str, str]:
    """{key in the checkpoint: the variable's own name}, of the names that come once."""
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    nodes = trackable_object_graph_pb2.TrackableObjectGraph.FromString(graph).nodes
    full = [(a.checkpoint_key, a.full_name) for node in nodes for a in node.attributes]
    count: dict[str, int] = {}
    for _, name in dict(full).items():
        count[name] = count.get(name, 0) + 1
    return {key: name for key, name in full if name and count[name] == 1}
