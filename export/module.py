"""Writing a Hub module that any loader of reusable SavedModels can run and fine-tune.

    module(images, training=False)            -> pre_logits [N, D] float32
    module.endpoints(images, training=False)  -> {name: tensor}

both with variables, trainable_variables and regularization_losses; images are float32 RGB in [0, 1], [N, H, W, 3], and normalisation is
inside. Signatures `serving_default` and `training` do the same for loaders
that know signatures only (Keras 3's TFSMLayer). See https://www.tensorflow.org/hub/reusable_saved_models.
"""

import json
import os
import platform
import shutil
import tarfile
import tempfile

import tensorflow as tf

import tfssl
from tfssl import backbones, pretext
from tfssl.errors import UserError

FACTS = "tfssl.json"


def save(model, path, step=0, class_names=None, training_flags=None, random_init=False, tarball=False):
    """Publish a pretext task's encoder.

    Args:
      model: a `Pretext` model whose variables exist.
      path: the folder to write, such as modules/photos/1. Published versions are immutable: it must not exist.
      step: the training step, for the record; also `class_names`, `training_flags` ({flag: value}) and `random_init`.
      tarball: also write `path.tar.gz`, whose root is the module: a handle too.

    Returns:
      `path`.

    Raises:
      UserError: `path` exists.
    """
    path = str(path).rstrip("/")
    for taken in (path, path + ".tar.gz") if tarball else (path,):
        if tf.io.gfile.exists(taken):
            raise UserError(f"{taken} exists, and published versions never change: choose another folder")
    model.prepare()
    encoder = _plain(model)
    module, widths = _module(encoder)
    facts = _facts(encoder, widths) | {
        "class_names": class_names,
        "step": int(step),
        "random_init": random_init,
        "training_flags": training_flags or {},
    }
    unfinished = (
        path + ".unfinished"
    )  # renamed when complete, so that a killed export leaves no half module under its name
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, FACTS), "w", encoding="utf-8") as f:
            json.dump(facts, f, indent=1)
        module.facts = tf.saved_model.Asset(f.name)
        signatures = {"serving_default": module.signature_of[False], "training": module.signature_of[True]}
        del module.signature_of
        tf.saved_model.save(module, unfinished, signatures=signatures)
    tf.io.gfile.rename(unfinished, path)
    if tarball:
        _write_tarball(path)
    return path


def _module(encoder):
    """The object to save and {endpoint: size of its last axis}."""
    images = tf.TensorSpec([None, None, None, 3], tf.float32, name="images")

    def endpoints(images, training=False):
        # The training flag is a Python value: each of its two is traced.
        return {name: tf.cast(x, tf.float32) for name, x in encoder.encode(images, training=training).items()}

    @tf.function
    def all_endpoints(images, training=False):
        return endpoints(images, training)

    @tf.function
    def pre_logits(images, training=False):
        return endpoints(images, training)["pre_logits"]

    traced = {training: all_endpoints.get_concrete_function(images, training=training) for training in (False, True)}
    by_signature = {}
    for training in (False, True):
        pre_logits.get_concrete_function(images, training=training)
        signature = tf.function(
            lambda images, training=training: {"pre_logits": endpoints(images, training)["pre_logits"]}, [images]
        )
        by_signature[training] = signature.get_concrete_function()

    def reusable(function):
        obj = tf.train.Checkpoint()  # a plain trackable: its attributes are what the loader sees
        obj.__call__ = function
        obj.variables = list(encoder.backbone.variables)
        obj.trainable_variables = list(encoder.backbone.trainable_variables)
        obj.regularization_losses = []
        return obj

    module = reusable(pre_logits)
    module.endpoints = reusable(all_endpoints)
    module.signature_of = by_signature
    return module, {name: int(spec.shape[-1]) for name, spec in traced[False].structured_outputs.items()}


def _plain(model):
    """A copy that computes in float32, and as its paper says: without what only training needs. A user's own model stays itself."""
    policy = tf.keras.mixed_precision.global_policy()
    config = model.backbone.config()
    if config is None:
        return model
    tf.keras.mixed_precision.set_global_policy("float32" if policy.compute_dtype != policy.variable_dtype else policy)
    try:
        copy = pretext.build(model.task, backbones.build(**config), **model.settings)
        copy.prepare()
    finally:
        tf.keras.mixed_precision.set_global_policy(policy)
    for mine, theirs in zip(copy.backbone.variables, model.backbone.variables):  # noqa: B905 (Python 3.9)
        mine.assign(theirs)
    return copy


def _facts(model, widths):
    backbone = model.backbone
    crop, resize = model.evaluation_size
    config = backbone.config() or {}
    order = list(backbone.endpoint_names)
    return {
        "format": 1,
        "task": model.task,
        "backbone": backbone.name,
        "width_multiplier": config.get("width_multiplier"),
        "stem": config.get("stem"),
        "endpoints": order,
        "features": {name: widths[name] for name in order},
        "input": "float32 RGB in [0, 1], [batch, height, width, 3]",
        "image_size": model.image_size,
        "min_image_size": model.min_image_size,
        "resize": resize,
        "crop": crop,
        "weight_decay": model.weight_decay,
        "versions": {"python": platform.python_version(), "tensorflow": tf.__version__, "tfssl": tfssl.__version__},
    }


def _write_tarball(path):
    """`path.tar.gz` with the module at its root."""
    with tempfile.TemporaryDirectory() as folder:
        local = path
        if "://" in path:
            local = os.path.join(folder, "module")
            for root, _, files in tf.io.gfile.walk(path):
                inside = os.path.join(local, os.path.relpath(root, path))
                os.makedirs(inside, exist_ok=True)
                for name in files:
                    tf.io.gfile.copy(os.path.join(root, name), os.path.join(inside, name))
        packed = os.path.join(folder, "module.tar.gz")
        with tarfile.open(packed, "w:gz") as tar:
            for name in sorted(os.listdir(local)):
                tar.add(os.path.join(local, name), arcname=name)
        with open(packed, "rb") as source, tf.io.gfile.GFile(path + ".tar.gz", "wb") as target:
            shutil.copyfileobj(source, target)
