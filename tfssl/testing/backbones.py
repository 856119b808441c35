"""The check of a backbone."""

import contextlib
import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Optional, Union

import numpy as np
import tensorflow as tf

from tfssl import backbones
from tfssl.backbones.necks import Necked
from tfssl.errors import one_line

ROWS = 4


def check_backbone(
    backbone: Union[str, type, Callable[[], tf.keras.Model]],
    image_size: int = 0,
    channels: Sequence[int] = (3, 1),
    jit_compile: bool = True,
    **settings: Any,
) -> None:
    """Hold a backbone to what tasks, export and protocols rely on, with small images in float64:
    some seconds for a small network.

    - Endpoints come in the order of `endpoint_names`, each of the kind that `endpoint_kinds` says;
      the last is `pre_logits` [N, D], in float32 at least. Shapes are static where the images' is;
      images of a size that is not known beforehand do too (unless the network says `static_size`),
      and so do the smallest ones and each number of `channels`.
    - Inference is pure: it changes no variable, gives the same twice, and an image's endpoints do
    not depend on the others in its batch.
    - `twin()` has the same variables with values of its own, and `build(**config())` makes the same
      network again (where `config()` is not None): with the same weights, the same endpoints.
    - No two kernels begin with the same values.
    - In training, gradients reach every trainable variable, from some endpoint.
    - Compiled by XLA, training computes the same losses and gradients (`jit_compile`).
    - In mixed_bfloat16 variables and pre_logits are float32, and close to those of full precision.
    - Saved in a SavedModel and loaded, it infers the same.
    - One whose call takes `keep` computes with those tokens alone: all of them in their order are
    the same as no `keep`.

    Args:
      backbone: what `tfssl.backbones.build` takes: a name, an import path, a class; or a function
        that makes a model, which is made several times, for its precision is that of when it is
        made.
      image_size: side of the images in pixels; 0: twice the network's smallest.
      channels: numbers of channels of images, of which the first is that of all but one step.
      jit_compile: whether XLA is tried, which takes the longest.
      **settings: for `tfssl.backbones.build`: those of a narrow network.

    Raises:
      AssertionError: a promise that it does not keep.
    """

    def make() -> Any:
        given = backbone if isinstance(backbone, (str, type)) else backbone()
        return backbones.build(given, **settings)

    with _precision("float64"):
        network, images = make(), None
        size = image_size or 2 * max(network.min_image_size, 4)
        images = _images(size, channels[0])
        network(images)
        _check_initial_values(network)
        _randomize(network)
        endpoints = network(images, training=False)
        _check_endpoints(network, endpoints)
        _check_shapes(network, images, endpoints)
        for other in channels[1:]:
            copy = make()
            smallest = max(
                copy.min_image_size, 4
            )  # where nobody says, a convolution may want some pixels
            try:
                of_other = copy(_images(smallest, other))["pre_logits"].shape
            except (tf.errors.InvalidArgumentError, ValueError) as error:
                of_other = one_line(error)
            what = (
                f"images of {other} channels and {smallest} pixels, the smallest side, give "
                f"{of_other}"
            )
            assert of_other == endpoints["pre_logits"].shape, what
        _check_inference(network, images, endpoints)
        _check_copies(network, images, endpoints)
        _check_keep(network, images, endpoints)
        _check_saved(network, images, endpoints)
        _check_gradients(network, images, jit_compile)
        exact = network(images, training=True)["pre_logits"].numpy()
        weights = network.get_weights()
    with _precision("mixed_bfloat16"):
        reduced = make()
        images = tf.cast(images, tf.float32)
        reduced(images)
        reduced.set_weights(weights)
        pre_logits = reduced(images, training=True)["pre_logits"]
        wide = [v.name for v in reduced.variables if v.dtype.is_floating and v.dtype != tf.float32]
        assert not wide, f"in mixed_bfloat16 variables are float32, and not so {wide}"
        assert pre_logits.dtype == tf.float32, (
            f"in mixed_bfloat16 pre_logits are float32, and not {pre_logits.dtype}"
        )
        apart = np.linalg.norm(pre_logits - exact) / np.linalg.norm(exact)
        assert apart < 0.1, f"in mixed_bfloat16 pre_logits are off by {apart:.2g} of their length"


def _check_initial_values(network: Any) -> None:
    seen: dict[bytes, str] = {}
    for variable in network.trainable_variables:
        value = np.asarray(variable)
        if np.ptp(value):  # no constant
            twin = seen.setdefault(value.tobytes(), variable.name)
            assert twin == variable.name, (
                f"{variable.name} begins with the values of {twin}: an initializer that layers "
                "share draws once"
            )


def _check_endpoints(network: Any, endpoints: Mapping[str, tf.Tensor]) -> None:
    names, kinds = tuple(network.endpoint_names), network.endpoint_kinds
    assert tuple(endpoints) == names, (
        f"endpoints come as {tuple(endpoints)}, and endpoint_names says {names}"
    )
    assert names[-1] == "pre_logits", f"the last endpoint is pre_logits, and not {names[-1]}"
    assert tuple(kinds) == names, f"endpoint_kinds has {tuple(kinds)}, and endpoint_names {names}"
    assert kinds["pre_logits"] == "vector", (
        f"pre_logits are a vector [N, D], and not {kinds['pre_logits']}"
    )
    for name, value in endpoints.items():
        axes = backbones.KINDS.get(kinds[name])
        assert value.shape.rank == axes, (
            f"{name} is said to be of kind {kinds[name]!r}, and has shape {value.shape}"
        )
        assert value.shape[0] == ROWS, f"{name} has the images first: {ROWS}, and not {value.shape}"
        assert np.isfinite(np.asarray(value, np.float64)).all(), f"{name} is not finite"
    assert endpoints["pre_logits"].dtype == tf.float64, (
        "under floatx float64 pre_logits are float64"
    )
    assert network.variables, "a network has variables"
    own = [v.name for v in network.variables]
    assert len(set(own)) == len(own), f"names of variables are unique: {_first_twice(own)} is not"


def _check_shapes(network: Any, images: tf.Tensor, endpoints: Mapping[str, tf.Tensor]) -> None:
    for shape in (images.shape, tf.TensorShape([None, None, None, images.shape[-1]])):
        known = shape.is_fully_defined()
        if not known and getattr(network, "static_size", False):
            continue
        run = tf.function(lambda x: network(x, training=False), autograph=bool(network.autograph))
        traced = run.get_concrete_function(tf.TensorSpec(shape, images.dtype)).structured_outputs
        for name, value in endpoints.items():
            found, expected = (
                traced[name].shape,
                value.shape if known else [None] * (value.shape.rank - 1),
            )
            same = (
                found == expected
                if known
                else found.rank == value.shape.rank and found[-1] == value.shape[-1]
            )
            assert same, (
                f"{name} of images {shape} has static shape {found}, and values {value.shape} "
                f"{expected}"
            )


def _check_inference(network: Any, images: tf.Tensor, endpoints: Mapping[str, tf.Tensor]) -> None:
    before = network.get_weights()
    again, alone = network(images, training=False), network(images[:1], training=False)
    changed = [v.name for v, b in zip(network.variables, before) if not np.array_equal(v, b)]
    assert not changed, f"inference changes {', '.join(changed)}"
    _assert_same("the same twice in inference", again, endpoints)
    _assert_same("of an image alone", alone, {name: value[:1] for name, value in endpoints.items()})


def _check_copies(network: Any, images: tf.Tensor, endpoints: Mapping[str, tf.Tensor]) -> None:
    config = network.config()
    copies = {"twin()": network.twin()}
    if config is not None:
        copies["build(**config())"] = backbones.build(**config)
    for how, copy in copies.items():
        copy(images)
        shapes = [[v.shape for v in n.variables] for n in (copy, network)]
        assert shapes[0] == shapes[1], (
            f"{how} has other variables, {len(shapes[0])} for {len(shapes[1])}"
        )
        shared = {v.ref() for v in copy.variables} & {v.ref() for v in network.variables}
        assert not shared, f"{how} shares variables with the network"
        copy.set_weights(network.get_weights())
        _assert_same(f"of {how} with the same weights", copy(images, training=False), endpoints)
        again = copy.config()
        assert again == config, f"{how} has another config: {again}, and not {config}"


def _check_keep(network: Any, images: tf.Tensor, endpoints: Mapping[str, tf.Tensor]) -> None:
    takes = (
        network.endpoints
        if isinstance(network, backbones.Network)
        else getattr(network, "model", network).call
    )
    if isinstance(network, Necked) or "keep" not in inspect.signature(takes).parameters:
        return
    kinds = {name: kind for name, kind in network.endpoint_kinds.items() if kind != "vector"}
    flat = {n: tf.reshape(endpoints[n], [ROWS, -1, endpoints[n].shape[-1]]) for n in kinds}
    tokens = next(iter(flat.values())).shape[1]
    everything = tf.tile(tf.range(tokens)[None], [ROWS, 1])
    found = network(images, training=False, keep=everything)
    expected = {**endpoints, **flat}
    _assert_same("that keep all tokens", {name: found[name] for name in expected}, expected)
    some = network(images, training=False, keep=everything[:, 1::2])
    for name in kinds:
        shape = (ROWS, tokens // 2, endpoints[name].shape[-1])
        assert some[name].shape == shape, (
            f"{name} of {tokens // 2} kept tokens is {shape}, and not {some[name].shape}"
        )


def _check_saved(network: Any, images: tf.Tensor, endpoints: Mapping[str, tf.Tensor]) -> None:
    shape = (
        images.shape
        if getattr(network, "static_size", False)
        else [None, None, None, images.shape[-1]]
    )
    module = tf.Module()
    module.kept = (
        network.variables
    )  # and not the network: Keras would store a function of every layer
    module.infer = tf.function(
        lambda x: network(x, training=False),
        input_signature=[tf.TensorSpec(shape, images.dtype)],
        autograph=bool(network.autograph),
    )
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "module")
        tf.saved_model.save(module, path)
        loaded = tf.saved_model.load(path)
        _assert_same("of a saved network", loaded.infer(images), endpoints)


def _check_gradients(network: Any, images: tf.Tensor, jit_compile: bool) -> None:
    def step(images: tf.Tensor) -> tuple[tf.Tensor, list[Optional[tf.Tensor]]]:
        with tf.GradientTape() as tape:
            endpoints = network(images, training=True)
            loss = tf.add_n(
                [tf.reduce_mean(tf.sin(tf.cast(x, tf.float64) + 1)) for x in endpoints.values()]
            )
        return loss, tape.gradient(loss, network.trainable_variables)

    weights, autograph = network.get_weights(), bool(network.autograph)
    loss, gradients = tf.function(step, autograph=autograph)(images)
    for variable, gradient in zip(network.trainable_variables, gradients):
        assert gradient is not None, (
            f"no endpoint depends on the trainable variable {variable.name}"
        )
        gradient = np.asarray(tf.convert_to_tensor(gradient))
        assert np.isfinite(gradient).all() and np.any(gradient), (
            f"{variable.name} has no gradient but 0, or not finite"
        )
    if jit_compile:
        network.set_weights(weights)
        compiled_loss, compiled = tf.function(step, autograph=autograph, jit_compile=True)(images)
        largest = max(np.abs(tf.convert_to_tensor(g)).max() for g in gradients)
        apart = [
            np.abs(tf.convert_to_tensor(a) - tf.convert_to_tensor(b)).max()
            for a, b in zip(compiled, gradients)
        ]
        assert abs(compiled_loss - loss) < 1e-9, (
            f"compiled by XLA the loss is {compiled_loss}, and not {loss}"
        )
        assert max(apart) < 1e-8 * largest, (
            f"compiled by XLA gradients are off by {max(apart):.2g} of {largest:.2g}"
        )


def _images(size: int, channels: int) -> tf.Tensor:
    return tf.constant(np.random.default_rng(0).uniform(-1, 1, [ROWS, size, size, channels]))


def _randomize(network: Any) -> None:
    """A value of its own for every vector: fresh normalizations hide a scale or an offset that is
    forgotten."""
    rng = np.random.default_rng(1)
    for variable in network.variables:
        if variable.shape.rank == 1:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def _assert_same(what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    assert set(found) == set(expected), (
        f"endpoints {what} are {sorted(found)}, and not {sorted(expected)}"
    )
    for name, value in expected.items():
        one, other = np.asarray(found[name], np.float64), np.asarray(value, np.float64)
        assert one.shape == other.shape, (
            f"{name} {what} has shape {one.shape}, and not {other.shape}"
        )
        largest, apart = np.abs(other).max(), np.abs(one - other).max()
        assert apart <= 1e-9 * largest, (
            f"{name} {what} differs by {apart:.2g}, where the largest value is {largest:.2g}"
        )


def _first_twice(names: Sequence[str]) -> str:
    return next(name for name in names if names.count(name) > 1)


@contextlib.contextmanager
def _precision(name: str) -> Iterator[None]:
    """Keras's dtype policy, and for float64 its floatx."""
    policy, floatx = tf.keras.mixed_precision.global_policy(), tf.keras.backend.floatx()
    tf.keras.backend.set_floatx("float64" if name == "float64" else "float32")
    tf.keras.mixed_precision.set_global_policy(name)
    try:
        yield
    finally:
        tf.keras.backend.set_floatx(floatx)
        tf.keras.mixed_precision.set_global_policy(policy)
