"""The contract of protocols: a class whose constructor is its settings, with its requirements and
costs, that yields `Result`s."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Optional, TypeVar, Union

import numpy as np
import tensorflow as tf
from absl import logging

from tfssl.data.listing import checks
from tfssl.data.sources.base import Source
from tfssl.downstream import partition
from tfssl.downstream.features.extract import Features
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.hub.load import Module

if TYPE_CHECKING:
    from typing_extensions import TypeGuard

Part = TypeVar("Part", bound=Union[Features, Source])  # what a protocol reads
_ANNOTATIONS = {  # name in `Protocol.needs`: (plural, sources that have it)
    "mask": ("masks", "masks:PATH and glyphs have"),
    "boxes": ("objects in boxes", "boxes:PATH, tfds:voc, tfds:coco and glyphs have"),
    "normals": ("surface normals", "normals:PATH has"),
}


@dataclasses.dataclass(frozen=True)
class Data(Generic[Part]):
    """The data of a protocol: of `Features`, or of sources where the protocol reads maps.

    Attributes:
      train, test: `Features`; or sources whose examples have the annotations that the protocol
        needs.
      val: a validation split, for all choices; None: a part of `train`.
      module: the loaded `Module` that maps are computed by; None for protocols that read features.
      train_labels: "all", a percentage such as "1%" or a number: a class-balanced subset. Protocols
        that read maps use all.
      val_fraction: without `val`, the fraction of the training labels that is held out for choices,
        in [0, 1); 0: none.
      seed: of all randomness: subset, validation part, weights, order, episodes.
      state_dir: a folder for the progress of a protocol, by which an interrupted run resumes; None:
        nothing is kept.
      strategy: whose replicas train heads on maps together; None: one device does. Features know
        the strategy that they were extracted by.
      publish: receives the trained network of a result, the `Detector` of fcos, while a fine-tuned
        module has its learned weights. None: networks are not kept.
    """

    train: Part
    test: Part
    val: Optional[Part] = None
    module: Optional[Module] = None
    train_labels: partition.Labels = "all"
    val_fraction: float = 0.2
    seed: int = 0
    state_dir: Optional[str] = None
    strategy: Optional[tf.distribute.Strategy] = None
    publish: Optional[Callable[[Any], None]] = None

    @property
    def replicas(self) -> int:
        """How many replicas train a head on maps."""
        return self.strategy.num_replicas_in_sync if self.strategy else 1

    @property
    def named_parts(self) -> dict[str, Part]:
        """{"train", "test" and, where there is one, "val": the part}."""
        return {
            "train": self.train,
            "test": self.test,
            **({} if self.val is None else {"val": self.val}),
        }

    @property
    def parts(self) -> list[Part]:
        return list(self.named_parts.values())

    @property
    def required_module(self) -> Module:
        """The module, for protocols that read maps; UserError where there is none."""
        if self.module is None:
            raise UserError("maps are made by a module, and there is none: give a loaded one")
        return self.module

    @property
    def chosen_on(self) -> str:
        """Name of the images that choices are made on."""
        if self.val is not None:
            return partition.described(self.val)
        return f"val_fraction {self.val_fraction:g} of {partition.described(self.train)}"

    def split(self: "Data[Features]") -> partition.Split:
        """Training and validation rows, where each image has one label; UserError where it has
        none."""
        return partition.split(
            self.train, self.test, self.train_labels, self.val_fraction, self.seed, self.val
        )

    def one_vs_rest(self: "Data[Features]") -> partition.Targets:
        """Rows and targets of one binary classifier for each class; see `partition.one_vs_rest`."""
        return partition.one_vs_rest(self.train, self.test, self.val, self.train_labels, self.seed)

    def replace(self, **changes: Any) -> "Data[Part]":
        return dataclasses.replace(self, **changes)


def has_features(data: Data[Any]) -> "TypeGuard[Data[Features]]":
    """Whether the data are features of images, and not the images themselves."""
    return all(isinstance(part, Features) for part in data.parts)


DATA_SETTINGS = tuple(
    field.name for field in dataclasses.fields(Data) if field.name not in ("train", "test")
)


class Protocol(Generic[Part]):
    """One way to measure an encoder.

    Subclass `Protocol[Features]` or `Protocol[Source]`, name it, and implement `run`. The
    constructor's arguments are the settings: literal defaults, described under Args of the class's
    docstring, each stored under its own name, and rejected there with a `UserError` where invalid.
    `tfssl-eval` makes a flag of each, named by the class attributes `flag_prefix` (before each
    name) and `flag_names` ({argument: flag} for other names; "" for no flag).
    `tfssl.testing.check_protocol` checks a class.

    Attributes:
      name: in tables and results.
      metric: name of `Result.value`: "accuracy", "mAP" ...
      reads: "features", [N, D] of each endpoint, extracted once; or "maps" of whole images by the
        module (see `dense.Dense`).
      needs: required of the images: "label" (one for each image), "labels" (one or several), or
        annotations: "mask", "boxes", "normals" ...
      one_pass: whether `run` requires all endpoints at once.
      exact: whether products need full float32 precision (no TensorFloat-32 on a GPU).
      magnitudes: (least, greatest) largest absolute value of features that are used unchanged;
        others are scaled by a power of two.
      order_independent: whether the order of the rows in `Features` changes nothing but rounding.
      per_class: whether the time grows with the number of classes.
      expense: rank among the protocols of --protocol=all, cheapest first; None: run only where it
        is named.
      quick: settings that take a fraction of the time; "train_labels" among them: the largest
        number of labels, but at least five of each class.
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
    per_class: ClassVar[bool] = False
    quick: ClassVar[Mapping[str, Any]] = {}
    trials: ClassVar[tuple[Mapping[str, Any], Mapping[str, Any]]] = ({}, {})

    def run(self, data: Data[Part], endpoints: Sequence[str]) -> Iterator[Result]:
        """Yield the results of each endpoint. Choices are made on `data.val` or a part of
        `data.train`, never on `data.test`.

        `measure` fills in `reported_on`, and `chosen_on` where there is a `val_value`.
        """
        raise NotImplementedError

    def chooses(self) -> tuple[str, ...]:
        """Names of the settings that require validation images."""
        return ()

    def check(self, data: Data[Part]) -> None:
        """Reject unsuitable labels, before features are extracted: `Features` in `data` may have no
        endpoints yet.

        Raises:
          UserError: such as for a class with too few images.
        """
        if has_features(data):
            data.split() if "label" in self.needs else data.one_vs_rest()

    def endpoints(
        self, data: Data[Part], names: Optional[Sequence[str]] = None, pixels: bool = True
    ) -> list[str]:
        """The endpoints to measure: those of `names` that it can read, or all. `pixels` False: not
        "pixels", unless named."""
        return partition.endpoints(
            [part for part in data.parts if isinstance(part, Features)], names
        )

    def levels(self, endpoint: str) -> Any:
        """The names of the module's endpoints that an endpoint is made of: one, or a list."""
        return endpoint

    def reads_train(self, held_out: bool) -> bool:
        """Whether features of the training images are read; `held_out`: whether a part of them is
        the validation part."""
        return True

    def passes(self) -> float:
        """Number of passes over the images, in a unit of its own."""
        return 1

    def work(self, train: int, test: int, dims: int) -> float:
        """A number proportional to the time on an endpoint of `dims` features, with `train` and
        `test` images."""
        return train * dims

    # The same for all protocols.

    @classmethod
    def setting_names(cls) -> tuple[str, ...]:
        """Names of the constructor's arguments, those of base classes last."""
        names: list[str] = []
        for base in cls.__mro__:
            if "__init__" in vars(base):
                arguments = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
                names += [
                    a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)
                ]
                if not any(a.kind is a.VAR_KEYWORD for a in arguments):
                    break
        return tuple(dict.fromkeys(names))

    @property
    def settings(self) -> dict[str, Any]:
        """{argument of the constructor: value}, as the constructor stores it."""
        return {name: getattr(self, name) for name in self.setting_names()}

    def replace(self, **changes: Any) -> "Protocol[Part]":
        """The same protocol with some other settings."""
        return type(self)(**{**self.settings, **changes})

    def measure(self, data: Data[Part], endpoints: Optional[Sequence[str]] = None) -> list[Result]:
        """The results of `run`, complete.

        Features whose largest value is beyond `magnitudes` are first multiplied by a power of two,
        which such a result reports as "scale"; penalties act on weights of the scaled features.

        Raises:
          UserError: invalid settings, images or features, such as an endpoint with infinite values
            or NaNs.
        """
        self._check_kind(data)
        names = self.endpoints(data, endpoints)
        features = {
            name: part for name, part in data.named_parts.items() if isinstance(part, Features)
        }
        for part in features.values():
            part.check(set(part.endpoints) & set(names))
        scales = self._scales(list(features.values()), names)
        if scales:
            data = data.replace(**{name: _scaled(part, scales) for name, part in features.items()})
        fast = tf.config.experimental.tensor_float_32_execution_enabled()  # factors of ten bits
        tf.config.experimental.enable_tensor_float_32_execution(fast and not self.exact)
        try:
            results = list(self.run(data, names))
        finally:
            tf.config.experimental.enable_tensor_float_32_execution(fast)
        return [self._completed(result, data, scales) for result in results]

    def _check_kind(self, data: Data[Part]) -> None:
        if self.reads == "maps" and (data.module is None or isinstance(data.train, Features)):
            raise UserError(
                f"{self.name} reads whole images: give sources as train and test, and a loaded "
                "module"
            )
        if self.reads == "features" and not has_features(data):
            raise UserError(
                f"{self.name} reads features: give those that tfssl.downstream.extract makes of a "
                "source"
            )

    def _completed(self, result: Result, data: Data[Part], scales: Mapping[str, float]) -> Result:
        chosen_on = result.chosen_on or (data.chosen_on if result.val_value is not None else None)
        scale = {"scale": scales[result.endpoint]} if result.endpoint in scales else {}
        reported_on = partition.described(data.test)
        return result.replace(
            chosen_on=chosen_on, reported_on=reported_on, details={**result.details, **scale}
        )

    def _scales(self, parts: Sequence[Features], names: Sequence[str]) -> dict[str, float]:
        """{endpoint: the power of two by which its largest value is in [4, 8), about that of
        standardized features}."""
        scales = {}
        for name in names:
            largest = max(
                (part.largest(name) for part in parts if name in part.endpoints), default=0
            )
            least, greatest = self.magnitudes
            if 0 < largest < least or largest > greatest:
                scales[name] = 2.0 ** (3 - math.frexp(largest)[1])
                logging.warning(
                    "%s: endpoint %s reaches %.2g: times %.2g for %s",
                    parts[0].source, name, largest, scales[name], self.name,
                )  # fmt: skip
        return scales


def _scaled(features: Features, scales: Mapping[str, float]) -> Features:
    """`Features` whose endpoints are multiplied by {name: factor}; float32 at least."""
    endpoints = {
        name: values * np.asarray(scales[name], np.promote_types(values.dtype, np.float32))
        if name in scales
        else values
        for name, values in features.endpoints.items()
    }
    return dataclasses.replace(features, endpoints=endpoints)


def lacks(need: str, source: Source) -> Optional[str]:
    """Why a source does not meet a requirement of `Protocol.needs`, one line; None where it
    does."""
    if need in ("label", "labels"):
        if source.targets() is None:
            return checks.unlabelled(source)
        several = (
            f"an image of {source.spec} may show several classes, which only svm and low_shot take"
        )
        return several if need == "label" else None
    annotation, sources = _ANNOTATIONS.get(need, (need, "see docs/protocols.md"))
    return (
        None
        if need in source.provides
        else f"--dataset={source.spec} has no {annotation}: {sources}"
    )
