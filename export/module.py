"""Writing a Hub module that any loader of reusable SavedModels can run and fine-tune.

    module(images, training=False)            -> pre_logits [N, D] float32
    module.endpoints(images, training=False)  -> {name: tensor}

both with variables, trainable_variables and regularization_losses; images are float32 RGB in
[0, 1], [N, H, W, 3], or of the encoder's own number of channels, and normalization is inside.
Signatures `serving_default` and `training` do the same for loaders that know signatures only
(Keras 3's TFSMLayer). See
https://www.tensorflow.org/hub/reusable_saved_models.
"""

import contextlib
import functools
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Optional

import numpy as np
import tensorflow as tf

import tfssl
from tfssl import backbones, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.classifiers.classifier import Classifier
from tfssl.classifiers.predictions import KIND
from tfssl.data.listing.text import to_lines
from tfssl.errors import UserError
from tfssl.export import statistics
from tfssl.export.folder import Made, Path, publish
from tfssl.hub.load import Module
from tfssl.pretext.parts.heads import MLP
from tfssl.pretext.task import Pretext

Outputs = dict[str, tf.Tensor]  # by endpoint


def save(
    model: Pretext,
    path: Path,
    step: int = 0,
    class_names: Optional[Sequence[str]] = None,
    training_flags: Optional[Mapping[str, Any]] = None,
    random_init: bool = False,
    tarball: bool = False,
    head_endpoints: int = 0,
    value_range: str = "",
) -> str:
    """Publish a pretext task's encoder: the networks that it lists as `published`, each variable
    once, network by network.

    Args:
      model: a `Pretext` model whose variables exist.
      path: the folder to write, such as modules/photos/1. Published versions are immutable: it must
        not exist.
      step: the training step, for the record; also `class_names`, `training_flags` ({flag: value})
        and `random_init`.
      tarball: also write `path.tar.gz`, whose root is the module: a handle too.
      head_endpoints: so many first layers of the task's projection head become endpoints too:
        `head1`, ..., each after normalization and ReLU (the head's last layer: as it is). SimCLR v2
        fine-tunes from `head1` (arXiv 2006.10029, Section 2.2).
      value_range: of the images' files, by which others read theirs for the module: see
        `tfssl.data.ops.pixels`; "": that of `training_flags`.

    Returns:
      `path`.

    Raises:
      UserError: `path` exists; the task has no projection head, or one of fewer layers.
    """
    model.prepare()
    _check_head(model, head_endpoints)
    statistics.warn(model, step)
    encoder = _plain(model, {} if head_endpoints else model.training_only)
    names, layers = [f"head{i + 1}" for i in range(head_endpoints)], []
    head: Any = encoder.published_head
    if head_endpoints:
        pairs = zip(head.dense, head.norms)
        layers = [layer for pair in list(pairs)[:head_endpoints] for layer in pair if layer]

    def endpoints(images: tf.Tensor, training: bool) -> Outputs:
        found = encoder.encode(images, training=training)
        outputs = head.each(found["pre_logits"], training, head_endpoints) if names else []
        return {**found, **dict(zip(names, outputs))}

    value_range = value_range or (training_flags or {}).get("value_range") or ""
    facts = _facts(encoder, encoder.backbone) | {
        "network": network_config(encoder),
        "normalization": normalization(encoder),
        "value_range": value_range,
        "task": pretext.name_of(type(model)),
        "class_names": class_names,
        "step": int(step),
        "random_init": random_init,
        "training_flags": training_flags or {},
    }
    parts = (*encoder.published, *layers)
    variables, trainable = (
        _once(part.variables for part in parts),
        _once(part.trainable_variables for part in parts),
    )
    with _statistics_of_the_batch(parts):
        return write(
            path,
            endpoints,
            variables,
            trainable,
            ["pre_logits"],
            facts,
            tarball=tarball,
            autograph=encoder.autograph,
        )


def save_classifier(
    model: Classifier,
    path: Path,
    step: int = 0,
    class_names: Optional[Sequence[str]] = None,
    training_flags: Optional[Mapping[str, Any]] = None,
    tarball: bool = False,
) -> str:
    """Publish a `pretext.classifier.Classifier`: `module(images)` is the logits [N, C], and its
    endpoints are the encoder's, `logits` and `probabilities`. Arguments, result and errors as of
    `save`; `class_names` become labels.txt too, a line each (numbers, where there are none).
    """
    model.prepare()
    encoder, head = model.backbone.module, model.head
    outputs = ["logits", "probabilities"]
    facts = _facts(model, model.backbone) | {
        "value_range": encoder.pixels["value_range"],
        "kind": KIND,
        "task": model.task,
        **of_encoder(encoder),
        "endpoint": model.endpoint,
        "num_classes": model.num_classes,
        "class_names": class_names,
        "step": int(step),
        "training_flags": training_flags or {},
    }
    variables = [*encoder.variables, *head.variables]
    trainable = [*encoder.trainable_variables, *head.trainable_variables]
    labels = to_lines(class_names or range(model.num_classes))
    # Of a module that is not ours nobody knows what else its functions need.
    parts = [] if encoder.facts else [encoder.model]
    assets = {"labels.txt": labels}
    return write(path, model.classify, variables, trainable, outputs, facts, assets, tarball, parts)


def write(
    path: Path,
    endpoints: Callable[[tf.Tensor, bool], Outputs],
    variables: Sequence[tf.Variable],
    trainable: Sequence[tf.Variable],
    outputs: Sequence[str],
    facts: Mapping[str, Any],
    assets: Optional[Mapping[str, str]] = None,
    tarball: bool = False,
    parts: Optional[list[Any]] = None,
    autograph: bool = False,
) -> str:
    """Write a reusable SavedModel, which is complete or absent under its name, and holds nothing of
    an earlier try.

    Args:
      path: the folder, which must not exist yet; or, with `tarball`, the same module, which then is
        packed.
      endpoints: a function (images, training) -> {name: tensor}.
      variables, trainable: lists, of all its variables and of those that training changes.
      outputs: names of the endpoints that the signatures return; the first is the module's own
        result.
      facts: for tfssl.json, which also gets "endpoints", their names in the function's order, and
        "features", the size of each.
      assets: {name: text} of further ones.
      tarball: also write `path.tar.gz`.
      parts: loaded objects that hold what else the endpoints need.
      autograph: whether they may hold Python branches on tensors; without, they are traced in half
        the time.
    """

    def made() -> Made:
        channels = facts.get("channels") or 3
        module, widths = _module(endpoints, variables, trainable, outputs, autograph, channels)
        module.parts = parts or []
        signatures = {
            "serving_default": module.signature_of[False],
            "training": module.signature_of[True],
        }
        del module.signature_of
        return module, signatures, {"endpoints": list(widths), "features": widths}

    return publish(path, made, facts, assets, tarball)


def _module(
    compute: Callable[[tf.Tensor, bool], Outputs],
    variables: Sequence[tf.Variable],
    trainable: Sequence[tf.Variable],
    outputs: Sequence[str],
    autograph: bool,
    channels: int,
) -> tuple[Any, dict[str, int]]:
    """The object to save and {endpoint: size of its last axis}, in the order in which `compute`
    gives them."""
    graph = functools.partial(tf.function, autograph=autograph)
    widths: dict[str, int] = {}
    images = tf.TensorSpec([None, None, None, channels], tf.float32, name="images")

    def endpoints(images: tf.Tensor, training: bool = False) -> Outputs:
        # The training flag is a Python value: each of its two is traced.
        found = {name: tf.cast(x, tf.float32) for name, x in compute(images, training).items()}
        widths.update(
            {name: int(x.shape[-1]) for name, x in found.items()}
        )  # here: functions give dicts back sorted
        return found

    @graph
    def all_endpoints(images: tf.Tensor, training: bool = False) -> Outputs:
        return endpoints(images, training)

    @graph
    def output(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return endpoints(images, training)[outputs[0]]

    by_signature = {}
    for training in (False, True):
        all_endpoints.get_concrete_function(images, training=training)
        output.get_concrete_function(images, training=training)

        def signature(images: tf.Tensor, training: bool = training) -> Outputs:
            found = endpoints(images, training)
            return {name: found[name] for name in outputs}

        by_signature[training] = graph(signature, [images]).get_concrete_function()

    def reusable(function: Callable[..., Any]) -> Any:
        obj = tf.train.Checkpoint()  # a plain trackable: its attributes are what the loader sees
        obj.__call__ = function
        obj.variables, obj.trainable_variables = list(variables), list(trainable)
        obj.regularization_losses = []
        return obj

    module = reusable(output)
    module.endpoints = reusable(all_endpoints)
    module.signature_of = by_signature
    return module, widths


def _check_head(model: Pretext, layers: int) -> None:
    if not layers:
        return
    head = model.published_head
    if len(model.published) > 1:
        raise UserError(
            f"head_endpoints={layers}: task {model.task!r} publishes {len(model.published)} "
            "networks, and its heads read one each: leave it out"
        )
    if not isinstance(head, MLP):  # pixpro's is of maps
        raise UserError(
            f"head_endpoints={layers}: task {model.task!r} has no projection of the last vector; "
            "simclr, moco, byol, swav and most other joint-embedding tasks have one"
        )
    if layers > len(head.sizes):
        raise UserError(
            f"head_endpoints={layers}: the projection head of this run has {len(head.sizes)}"
        )


def _plain(model: Pretext, settings: Mapping[str, Any]) -> Pretext:
    """A copy that computes in float32, and as its paper says: without what only training needs,
    and with `settings` of the task in place of its own. Over a user's own backbone, and where
    `pretext.build` has not made the model, it stays itself."""
    policy = tf.keras.mixed_precision.global_policy()
    config = model.backbone.config()
    if config is None or model.settings is None:
        return model
    tf.keras.mixed_precision.set_global_policy(
        "float32" if policy.compute_dtype != policy.variable_dtype else policy
    )
    try:
        copy = pretext.build(
            type(model), backbones.build(**config), **{**model.settings, **settings}
        )
        copy.prepare()
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    ours, theirs = ([*m.published, *filter(None, [m.published_head])] for m in (copy, model))
    for mine, other in zip(ours, theirs):
        for variable, value in zip(mine.variables, other.variables):
            variable.assign(value)
    return copy


@contextlib.contextmanager
def _statistics_of_the_batch(parts: Iterable[tf.Module]) -> Iterator[None]:
    """While they are traced, batch normalizations take the statistics of a device's batch; in
    training a task may want those of groups (MoCo), or of all replicas."""
    layers = [m for part in parts for m in (part, *part.submodules) if isinstance(m, BatchNorm)]
    before = [(layer.sync, layer.groups) for layer in layers]
    for layer in layers:
        layer.sync, layer.groups = False, 1
    try:
        yield
    finally:
        for layer, (sync, groups) in zip(layers, before):
            layer.sync, layer.groups = sync, groups


def _once(lists: Iterable[Sequence[tf.Variable]]) -> list[tf.Variable]:
    """The variables of all lists, in their order, each where it is first."""
    return list({id(v): v for variables in lists for v in variables}.values())


def of_encoder(encoder: Module) -> dict[str, Any]:
    """What the facts of a classifier or detector repeat of the encoder that it is made of."""
    names = ("backbone", "width_multiplier", "stem", "network", "normalization")
    facts: Mapping[str, Any] = encoder.facts
    return {
        **{name: facts.get(name) for name in names},
        "encoder": {
            "handle": encoder.handle,
            "identity": encoder.identity,
            "task": facts.get("task"),
        },
    }


def network_config(encoder: Pretext) -> Optional[dict[str, Any]]:
    """What `tfssl.backbones.build` makes an encoder's network from; None where it is several, or of
    a class that only its author can build."""
    config = encoder.published[0].config() if len(encoder.published) == 1 else None
    return config if config and config.get("name") in backbones.NAMES else None


def normalization(encoder: Pretext) -> Optional[dict[str, list[float]]]:
    """Mean and standard deviation by channel that an encoder normalizes images in [0, 1] with; None
    where it does something else."""
    images = tf.constant(np.random.default_rng(0).random([1, 8, 8, 3]), tf.keras.backend.floatx())
    black, white, found = (
        np.asarray(encoder.normalize(x), np.float64)
        for x in (tf.zeros_like(images), tf.ones_like(images), images)
    )
    if found.shape != images.shape or not (white > black).all():
        return None
    std = 1 / (white - black)[0, 0, 0]
    mean = -black[0, 0, 0] * std
    if not np.allclose(found, (images - mean) / std, atol=1e-4):
        return None
    return {"mean": mean.round(6).tolist(), "std": std.round(6).tolist()}


def _facts(model: Pretext, backbone: tf.keras.Model) -> dict[str, Any]:
    """What holds for encoders and classifiers alike."""
    crop, resize = model.evaluation_size
    config = backbone.config() or {}
    channels = getattr(backbone, "input_channels", 3)
    kind = "RGB " if channels == 3 else ""
    return {
        "format": 1,
        "backbone": config.get("name", backbone.name),
        "width_multiplier": config.get("width_multiplier"),
        "stem": config.get("stem"),
        "input": f"float32 {kind}in [0, 1], [batch, height, width, {channels}]",
        "channels": channels,
        "image_size": model.image_size,
        "min_image_size": model.min_image_size,
        "resize": resize,
        "crop": crop,
        "weight_decay": model.weight_decay,
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Of what a module was written by."""
    return {
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "tfssl": tfssl.__version__,
    }
