"""Opens Hub modules: ours, and any SavedModel that maps a batch of float32 RGB images in [0, 1] to
features."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.hub import facts as module_facts
from tfssl.hub import folders, messages, value_range
from tfssl.hub.facts import Facts

# Keras and tf.saved_model; TF1's Hub names
_SIGNATURES = ("serving_default", "default", "image_feature_vector")
_IMAGENET_RESIZE = 256 / 224  # shorter side over crop, as in most published evaluations


def load(handle: str | os.PathLike[str]) -> Module:
    """Open a Hub module.

    Args:
      handle: a SavedModel's folder (local or gs://), a tarball of one (.tar.gz, .tgz, .tar; local
        or gs://), or an https:// handle, which `remote.fetch` downloads. A module is a program: one
        that tfssl-export did not write, or of another machine, is announced by a line on stderr
        before it is loaded. HANDLE#-1..1 says that it takes pixels from -1 to 1; one whose input
        are integers gets 0 to 255.

    Returns:
      a Module.

    Raises:
      UserError: there is no SavedModel, or it cannot be read, or it takes no images.
    """
    handle = os.fspath(handle)
    plain, pixels = value_range.parted(handle)
    return Module(handle, folders.resolve(plain), pixels)


def _pixels(facts: Facts) -> dict[str, Any]:
    return {
        "channels": facts.get("channels") or 3,
        "value_range": facts.get("value_range") or "",
    }


def pixels_of(handle: str) -> dict[str, Any]:
    """`Module.pixels`, of a module that is not loaded yet."""
    plain, _ = value_range.parted(handle)  # the range that it takes is not that of the files
    return _pixels(module_facts.read(folders.resolve(plain)))


def common_pixels(modules: Iterable[Module]) -> dict[str, Any]:
    """`Module.pixels` of all modules.

    Raises:
      UserError: they take other images.
    """
    found: dict[str, Any] = {}
    for module in modules:
        if found and module.pixels != found:
            raise UserError(
                f"modules of other images: {module.handle!r} takes {module.pixels}, and another "
                f"{found}: give them to one command each"
            )
        found = module.pixels
    return found


class Module:
    """A loaded SavedModel as a function from images to named features.

    Attributes:
      handle: as given.
      facts: its tfssl.json; {} for other projects' modules.
      model: the loaded object.
      identity: hex digest of graph, assets and checksums of the weights: copies of a module share
        it.
    """

    def __init__(self, handle: str, folder: str, pixels: value_range.Range | None = None) -> None:
        self.handle, self._pixels = handle, pixels
        self._shapes: dict[tuple[int, int], dict[str, tuple[int, ...]]] = {}
        self.identity = module_facts.identity(folder)
        if pixels:
            self.identity = hashlib.sha256(f"{self.identity} {pixels}".encode()).hexdigest()
        self.facts = module_facts.read(folder)
        _announce(handle, self.facts)
        try:
            # TF1's Hub modules hold several graphs; the one without tags is for inference.
            tags: list[str] | None = (
                [] if tf.io.gfile.exists(os.path.join(folder, "tfhub_module.pb")) else None
            )
            self.model = tf.saved_model.load(folders.plain(folder), tags=tags)
        except Exception as e:  # parsers of damaged files raise many kinds
            raise UserError(
                f"module {handle!r}: this SavedModel cannot be read: {messages.complaint(e)}"
            ) from e
        self._function = self._find_function()
        self._batch = self._fixed_batch()
        types = {spec.dtype for spec in self._specs() if spec.shape.rank == 4}
        self._dtype = types.pop() if len(types) == 1 else tf.float32

    def endpoints(self, images: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        """Named features of float32 images [N, H, W, C] in [0, 1], RGB unless `pixels` says
        otherwise: a dict in depth order (by name for other projects' modules). `training` is the
        module's training mode, where it has one. A module with a fixed batch size B gets batches of
        B, the last one padded."""
        images = value_range.scaled(images, self._pixels, self._dtype)
        if self._batch in (None, images.shape[0]):
            return self._named(self._function(images, training))
        rows, size = images.shape[0] or tf.shape(images)[0], self._batch
        images = tf.pad(images, [[0, -rows % size], [0, 0], [0, 0], [0, 0]])
        images = tf.reshape(images, [-1, size, *images.shape[1:]])
        one = tf.TensorSpec(images.shape[1:], images.dtype)
        known = (
            tf.function(self._function, autograph=False)
            .get_concrete_function(one, training)
            .structured_outputs
        )
        specs = {name: tf.TensorSpec(x.shape, x.dtype) for name, x in self._named(known).items()}
        outputs = tf.map_fn(
            lambda part: self._named(self._function(part, training)),
            images,
            fn_output_signature=specs,
        )
        return {name: tf.reshape(x, [-1, *x.shape[2:]])[:rows] for name, x in outputs.items()}

    def _named(self, outputs: Any) -> dict[str, tf.Tensor]:
        """A dict of tensors in depth order, of any output of a module; UserError for several
        tensors without names."""
        if not isinstance(outputs, dict):
            outputs = {"output": outputs}
        tensors = {}
        for name, value in outputs.items():
            held = [x for x in tf.nest.flatten(value) if isinstance(x, (tf.Tensor, tf.TensorSpec))]
            if len(held) > 1:
                shapes = ", ".join(str(list(x.shape)) for x in held)
                raise UserError(
                    f"module {self.handle!r} returns {len(held)} tensors without names ({shapes}) "
                    "where one is expected: wrap it in "
                    "a function that returns one of them, or a dict {name: tensor}, and save that"
                )
            if held:
                tensors[str(name)] = held[0]
        if not tensors:
            raise UserError(
                f"module {self.handle!r} returns no tensor, but {type(outputs).__name__}: "
                f"{outputs!r:.200}"
            )
        return {name: tensors[name] for name in self._ordered(tensors)}

    @property
    def variables(self) -> list[tf.Variable]:
        """All variables: those that the module lists, or else those that its functions read."""
        listed = getattr(self.model, "variables", None)
        if listed is None:
            listed = [v for function in self._traced() for v in function.variables]
        return list({id(v): v for v in listed}.values())

    @property
    def trainable_variables(self) -> list[tf.Variable]:
        listed = getattr(self.model, "trainable_variables", None)
        return [v for v in self.variables if v.trainable] if listed is None else list(listed)

    def shapes(self, image_size: int | tuple[int, int]) -> dict[str, tuple[int, ...]]:
        """The shape of each endpoint, without the batch, for images of a size, (height, width) or
        the side of squares: {name: (H, W, C) or (D,)}, in depth order.

        Outputs other than float vectors or maps, one per image, are left out. The module runs once.
        """
        if self.facts.get("kind") == "detector":
            raise UserError(
                f"module {self.handle!r} is a detector, and no encoder: give the one that it was "
                f"made of, {(self.facts.get('encoder') or {}).get('handle', 'in its tfssl.json')}"
            )
        size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
        channels = self.pixels["channels"]
        if size not in self._shapes:
            try:
                # In a graph, as later for all images: called eagerly, a signature does not check
                # its input's shape. By the strategy, whose replicas share the variables of a module
                # that was loaded in its scope.
                strategy = tf.distribute.get_strategy()
                run = tf.function(
                    lambda images: strategy.run(self.endpoints, [images]), autograph=False
                )
                # Traced by hand: TensorFlow would warn of many functions made of one piece of code.
                outputs = run.get_concrete_function(tf.TensorSpec([2, *size, channels]))(
                    tf.zeros([2, *size, channels])
                )
                outputs = {
                    name: strategy.experimental_local_results(x)[0] for name, x in outputs.items()
                }
            except UserError:
                raise
            except (tf.errors.OpError, ValueError, TypeError) as e:
                least = self.facts.get("min_image_size")
                hint = f"; its smallest size is {least}" if least else ""
                given = tf.TensorSpec([self._batch, *size, channels], tf.float32)
                takes = [spec for spec in self._specs() if not spec.is_compatible_with(given)]
                if takes and len(takes) == len(self._specs()):
                    forms = " or ".join(dict.fromkeys(map(messages.spelled, takes)))
                    remedy = messages.REMEDIES["channels" if " 3, " in forms else "other"]
                    why = f"it takes {forms}{hint}{remedy}"
                else:
                    why = f"{messages.complaint(e)}{hint}"
                kind = "RGB " if channels == 3 else ""
                what = (
                    f"{size[0]}x{size[1]} float32 {kind}images, [N, {size[0]}, {size[1]}, "
                    f"{channels}] in [0, 1]"
                )
                raise UserError(f"module {self.handle!r} does not take {what}: {why}") from e
            usable = {
                name: tuple(outputs[name].shape[1:])
                for name in self._ordered(outputs)
                if outputs[name].dtype.is_floating
                and outputs[name].shape.rank in (2, 4)
                and len(outputs[name]) == 2
            }
            if not usable:
                raise UserError(
                    f"module {self.handle!r} returns no float features [N, D] or [N, H, W, C], but "
                    f"{sorted(outputs)}"
                )
            self._shapes[size] = usable
        return self._shapes[size]

    def sizes(self, image_size: int | None = None, resize: int | None = None) -> tuple[int, int]:
        """(crop size, shorter side before the crop), in pixels: as given, or the module's own, or
        resize = size * 256 / 224."""
        ratio = self.facts["resize"] / self.facts["crop"] if self.facts else _IMAGENET_RESIZE
        size = image_size or self.facts.get("crop") or self._static_size()
        if not size:
            channels_first = [
                spec
                for spec in self._specs()
                if spec.shape.rank == 4 and spec.shape[1] == 3 != spec.shape[3]
            ]
            if channels_first:
                raise UserError(
                    f"module {self.handle!r} takes {messages.spelled(channels_first[0])}, channels "
                    f"first{messages.REMEDIES['channels']}"
                )
            raise UserError(
                f"module {self.handle!r} does not say which image size it takes; give image_size "
                "in pixels"
            )
        resize = resize or round(size * ratio)
        if resize < size:
            raise UserError(
                f"resize={resize} is smaller than image_size={size}: the crop would leave the image"
            )
        return size, resize

    @property
    def pixels(self) -> dict[str, Any]:
        """{"channels", "value_range"}, of the images that it takes: arguments of `open_source`. RGB
        of 8 bits, unless it says otherwise."""
        return _pixels(self.facts)

    def _ordered(self, names: Iterable[str]) -> list[str]:
        depth = self.facts.get("endpoints") or []
        return sorted(
            names, key=lambda name: (depth.index(name) if name in depth else len(depth), name)
        )

    def _find_function(self) -> Callable[[tf.Tensor, bool], Any]:
        endpoints = getattr(self.model, "endpoints", None)
        if callable(endpoints):
            return lambda images, training: endpoints(images, training=training)
        if callable(self.model):
            return self._call
        signatures = getattr(self.model, "signatures", {})
        names = [n for n in _SIGNATURES if n in signatures] or list(signatures)
        for name in names:
            inputs = signatures[name].structured_input_signature[1]
            if len(inputs) == 1:
                (key,) = inputs
                return lambda images, training: signatures[name](**{key: images})
        raise UserError(
            f"module {self.handle!r} has no function of images alone; its signatures are: "
            f"{', '.join(names) or 'none'}"
        )

    def _call(self, images: tf.Tensor, training: bool) -> Any:
        for argument in ("training", "trainable"):  # the second is what SimCLR's modules call it
            try:
                return self.model(images, **{argument: training})
            except (TypeError, ValueError):  # a plain function of images has no such argument
                pass
        return self.model(images)

    def _static_size(self) -> int | None:
        """The side of the square images that a traced function or signature is fixed to; None if it
        is not."""
        for spec in self._specs():
            if spec.shape.rank == 4 and spec.shape[1] and spec.shape[1] == spec.shape[2]:
                return spec.shape[1]
        return None

    def _fixed_batch(self) -> int | None:
        """The largest fixed batch size of its traced functions; None unless all have one."""
        sizes = [spec.shape[0] for spec in self._specs() if spec.shape.rank == 4]
        return max(sizes) if sizes and all(sizes) else None

    def _specs(self) -> list[tf.TensorSpec]:
        """The input specification of its traced functions: the first tensor of each with a rank
        above 1."""
        images = []
        for function in self._traced():
            specs = [
                s
                for s in tf.nest.flatten(function.structured_input_signature)
                if isinstance(s, tf.TensorSpec)
            ]
            images += [s for s in specs if s.shape.rank is None or s.shape.rank > 1][:1]
        return images

    def _traced(self) -> list[tf.types.experimental.GenericFunction]:
        """Its concrete functions, each for one input specification."""
        call = self.model.__call__ if callable(self.model) else None
        return [
            *getattr(call, "concrete_functions", []),
            *getattr(self.model, "signatures", {}).values(),
        ]


_announced: set[str] = set()  # handles


def _announce(handle: str, facts: Facts) -> None:
    """Print a line, once, that a module which tfssl-export did not write, or of another machine, is
    a program."""
    elsewhere = "://" in handle
    if handle in _announced or (facts and not elsewhere):
        return
    _announced.add(handle)
    told = facts or value_range.parted(handle)[1]
    pixels = "" if told else ". It gets pixels from 0 to 1; HANDLE#-1..1 gives it others"
    origin = "comes from another machine" if elsewhere else "was not made by tfssl-export"
    print(
        f"module {handle!r} {origin}; it is a program, which now runs with your rights: open what "
        f"you trust (SECURITY.md){pixels}",
        file=sys.stderr,
        flush=True,
    )
