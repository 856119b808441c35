"""The contract of protocols: a class whose constructor is its settings, that says what it needs, what it costs, and yields `Result`s."""

import dataclasses
import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Optional, Union

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.listing import checks
from tfssl.data.sources.base import Source
from tfssl.downstream import splits
from tfssl.downstream.features.extract import Features
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.hub.load import Module

_ANNOTATIONS = {  # what a protocol may need beside labels: (its plural, who has it)
    "mask": ("masks", "masks:PATH and glyphs have"),
    "boxes": ("objects in boxes", "boxes:PATH, tfds:voc, tfds:coco and glyphs have"),
    "normals": ("surface normals", "normals:PATH has"),
}


@dataclasses.dataclass(frozen=True)
class Data:
    """What a protocol is run on.

    Attributes:
      train, test: `Features`; of protocols that read maps, sources whose examples have what they need.
      val: the same of a validation split, to choose on; None: a part of `train`.
      module: of protocols that read maps: the loaded `Module` that makes them.
      train_labels: "all", a percentage such as "1%" or a number: a class-balanced subset. Protocols that read maps take all.
      val_fraction: without `val`, the fraction of the training labels that choices are made on, in [0, 1); 0: none.
      seed: of all chance: subset, validation part, weights, order, episodes.
      state_dir: a folder where a protocol may keep how far it has come, so that a killed run goes on; None: nowhere.
    """

    train: Union[Features, Source]
    test: Union[Features, Source]
    val: Union[Features, Source, None] = None
    module: Optional[Module] = None
    train_labels: Union[str, int] = "all"
    val_fraction: float = 0.2
    seed: int = 0
    state_dir: Optional[str] = None

    @property
    def parts(self) -> list:
        return [part for part in (self.train, self.test, self.val) if part is not None]

    @property
    def chosen_on(self) -> str:
        """The images that choices are made on, for people."""
        if self.val is not None:
            return splits.described(self.val)
        return f"val_fraction {self.val_fraction:g} of {splits.described(self.train)}"

    def split(self) -> splits.Split:
        """The rows to learn from and to choose on, where each image has one label; UserError where it has not."""
        return splits.split(self.train, self.test, self.train_labels, self.val_fraction, self.seed, self.val)

    def one_vs_rest(self) -> tuple:
        """Rows and targets for protocols that ask of every class whether an image shows it; see `splits.one_vs_rest`."""
        return splits.one_vs_rest(self.train, self.test, self.val, self.train_labels, self.seed)

    def replace(self, **changes: Any) -> "Data":
        return dataclasses.replace(self, **changes)


DATA_SETTINGS = tuple(field.name for field in dataclasses.fields(Data) if field.name not in ("train", "test"))


class Protocol:
    """How well an encoder does, measured in one way. Subclass it, give it a name, and implement `run`.

    The constructor's arguments are the settings: literal defaults, described under Args of the class's docstring, each stored under its own
    name, and refused there with a `UserError` where it cannot be meant. `tfssl-eval` makes a flag of each, named by the class attributes
    `flag_prefix` (before each name) and `flag_names` ({argument: flag} for those named otherwise; "" for no flag).
    `tfssl.testing.check_protocol` checks a class.

    Attributes:
      name: in tables and results.
      metric: what `Result.value` is: "accuracy", "mAP" ...
      reads: "features", [N, D] of each endpoint, extracted once; or "maps", whole images through the module (see `dense.Dense`).
      needs: of the images: "label" (one for each image), "labels" (one or several), or annotations: "mask", "boxes", "normals" ...
      one_pass: whether `run` wants all endpoints at once.
      exact: whether it needs all bits of float32, where a GPU would multiply with fewer.
      magnitudes: (least, greatest) largest absolute value of features that it takes as they are; others are multiplied by a power of two.
      order_independent: whether the order of the rows in `Features` changes nothing but rounding.
      expense: rank among the protocols of --protocol=all, the cheapest first; None: only where it is asked for by name.
      quick: settings that answer in a fraction of the time; "train_labels" among them: at most so many, or five of each class.
      trials: settings of short trials that time it, with few passes and with more; see `budget`.
    """

    name: ClassVar[str]
    metric: ClassVar[str] = "accuracy"
    reads: ClassVar[Literal["features", "maps"]] = "features"
    needs: ClassVar[tuple[str, ...]] = ("label",)
    one_pass: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    magnitudes: ClassVar[tuple[float, float]] = (1e-12, math.inf)
    order_independent: ClassVar[bool] = True
    expense: ClassVar[Optional[float]] = None
    quick: ClassVar[Mapping[str, Any]] = {}
    trials: ClassVar[tuple[Mapping[str, Any], Mapping[str, Any]]] = ({}, {})

    def run(self, data: Data, endpoints: Sequence[str]) -> Iterator[Result]:
        """Yield the results of each endpoint. Choices are made on `data.val` or a part of `data.train`, never on `data.test`.

        `measure` fills in `reported_on`, and `chosen_on` where there is a `val_value`.
        """
        raise NotImplementedError

    def chooses(self) -> tuple[str, ...]:
        """Names of the settings that ask for a choice on validation, and so for images to choose on."""
        return ()

    def check(self, data: Data) -> None:
        """Refuse labels that do not permit it, before features are extracted: those in `data` may have no endpoints.

        Raises:
          UserError: such as for a class with too few images.
        """
        data.split() if "label" in self.needs else data.one_vs_rest()

    def endpoints(self, data: Data, names: Optional[Sequence[str]] = None, pixels: bool = True) -> list[str]:
        """The endpoints to measure: those named that it can read, or all. `pixels` False: not "pixels", unless named."""
        return splits.endpoints(data.parts, names)

    def reads_train(self, held_out: bool) -> bool:
        """Whether features of the training images are read, a part of which is `held_out` to choose on, or not."""
        return True

    def passes(self) -> float:
        """How often it goes through its images, in a unit of its own."""
        return 1

    def work(self, train: int, test: int, dims: int) -> float:
        """What the time on an endpoint of `dims` features is in proportion to, of `train` and `test` images."""
        return train * dims

    # What follows is the same for all.

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the constructor's arguments, those that go on to base classes last."""
        names = []
        for base in cls.__mro__:
            if "__init__" in vars(base):
                arguments = list(inspect.signature(base.__init__).parameters.values())[1:]
                names += [a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
                if not any(a.kind is a.VAR_KEYWORD for a in arguments):
                    break
        return tuple(dict.fromkeys(names))

    @property
    def settings(self) -> dict[str, Any]:
        """{argument of the constructor: its value}, as the constructor keeps it."""
        return {name: getattr(self, name) for name in self.setting_names()}

    def replace(self, **changes: Any) -> "Protocol":
        """The same protocol with some other settings."""
        return type(self)(**{**self.settings, **changes})

    def measure(self, data: Data, endpoints: Optional[Sequence[str]] = None) -> list[Result]:
        """The results of `run`, complete.

        Features whose largest value is beyond `magnitudes` are multiplied by a power of two first; such a result says so as "scale", and
        penalties act on weights of the scaled features.

        Raises:
          UserError: settings, images or features are not sound, such as an endpoint with values that are infinite or not a number.
        """
        self._check_kind(data)
        names, scales = self.endpoints(data, endpoints), {}
        if self.reads == "features":
            for part in data.parts:
                part.check(set(part.endpoints) & set(names))
            scales = self._scales(data.parts, names)
        if scales:
            train, test, val = (part and _scaled(part, scales) for part in (data.train, data.test, data.val))
            data = data.replace(train=train, test=test, val=val)
        fast = tf.config.experimental.tensor_float_32_execution_enabled()  # ten bits of a factor
        tf.config.experimental.enable_tensor_float_32_execution(fast and not self.exact)
        try:
            results = list(self.run(data, names))
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(fast)
        return [self._completed(result, data, scales) for result in results]

    def _check_kind(self, data):
        if self.reads == "maps" and (data.module is None or isinstance(data.train, Features)):
            raise UserError(f"{self.name} reads whole images: give sources as train and test, and a loaded module")
        if self.reads == "features" and not all(isinstance(part, Features) for part in data.parts):
            raise UserError(f"{self.name} reads features: give those that tfssl.downstream.extract makes of a source")

    def _completed(self, result, data, scales):
        chosen_on = result.chosen_on or (data.chosen_on if result.val_value is not None else None)
        scale = {"scale": scales[result.endpoint]} if result.endpoint in scales else {}
        reported_on = splits.described(data.test)
        return result.replace(chosen_on=chosen_on, reported_on=reported_on, details={**result.details, **scale})

    def _scales(self, parts, names):
        """{endpoint: the power of two that brings its largest value to between 4 and 8, about that of standardized features}."""
        scales = {}
        for name in names:
            largest = max((part.largest(name) for part in parts if name in part.endpoints), default=0)
            least, greatest = self.magnitudes
            if 0 < largest < least or largest > greatest:
                scales[name] = 2.0 ** (3 - math.frexp(largest)[1])
                logging.warning(
                    "%s: endpoint %s reaches %.2g: times %.2g for %s",
                    parts[0].source, name, largest, scales[name], self.name,
                )  # fmt: skip
        return scales


def _scaled(features, scales):
    """`Features` whose endpoints are multiplied by {name: factor}; float32 at least."""
    endpoints = {
        name: values * np.asarray(scales[name], np.promote_types(values.dtype, np.float32))
        if name in scales
        else values
        for name, values in features.endpoints.items()
    }
    return dataclasses.replace(features, endpoints=endpoints)


def lacks(need: str, source: Source) -> Optional[str]:
    """Why a source has not what a protocol's `needs` name, one line; None where it has."""
    if need in ("label", "labels"):
        if source.targets() is None:
            return checks.unlabelled(source)
        several = f"an image of {source.spec} may show several classes, which only svm and low_shot take"
        return several if need == "label" else None
    what, where = _ANNOTATIONS.get(need, (need, "see docs/protocols.md"))
    return None if need in source.provides else f"--dataset={source.spec} has no {what}: {where}"
