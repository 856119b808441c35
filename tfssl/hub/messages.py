"""How a module's errors and inputs are worded."""

import re

import tensorflow as tf

REMEDIES = {
    "channels": (
        ": wrap it in a function that calls it with tf.transpose(images, [0, 3, 1, 2]), and save "
        "that"
    ),
    "other": ": another --image_size, or a function around it that converts, helps",
}


def spelled(spec: tf.TensorSpec) -> str:
    """A tensor's type and shape: float32 [N, 32, 32, 3]."""
    shape = "of any shape" if spec.shape.rank is None else _dims(spec.shape)
    return f"{spec.dtype.name} {shape}"


def _dims(shape: tf.TensorShape) -> str:
    first, *others = ["?" if d is None else str(d) for d in shape]
    return f"[{', '.join(['N' if first == '?' else first, *others])}]"


def complaint(error: object, length: int = 1000) -> str:
    """The message of an exception on one line, without TensorFlow's traceback of the graph and
    names of nodes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
        type(error).__name__
    ]
    begins = [i for i, line in enumerate(lines) if re.match(r"[\w.]*Error: ", line)]
    if begins:
        lines = [lines[begins[0]].partition(": ")[2], *lines[begins[0] + 1 :]]
    text = " ".join(lines).split(" Received args")[0]
    text = re.sub(
        r"\{\{node (\S+)\}\}",
        r"\1",
        re.sub(r"\{\{function_node .*?\}\} ?|\[\[.*?\]\]|\[Op:[^\]]*\]", "", text),
    )
    text = re.sub(r" = \w+\[[^\]]*(?:\[[^\]]*\][^\]]*)*\]\([^)]*\)", "", text).strip()
    return text if len(text) <= length else f"{text[:length]} ..."
