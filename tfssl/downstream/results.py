"""Results of protocols: one `Result` for each endpoint, and each number of shots where a protocol
has several."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Optional, Union

PIXELS = "pixels"  # the endpoint that is no module's: the images themselves
Column = tuple[str, int, Optional[int]]  # of a table: (protocol, training labels, k or None)


@dataclasses.dataclass(frozen=True, eq=False)
class Result(Mapping):
    """One measured value, with its conditions.

    It is a mapping too: the record of results.json, in which unset fields and the picture are
    missing, and `details` stand beside the other fields. `dict(result)` is that record,
    `Result.of(record)` the way back.

    Attributes:
      protocol, endpoint, module: names; module is "" until the result belongs to one.
      metric: name of `value`, such as "accuracy".
      value: on the test images, in [0, 1], higher is better.
      val_value: the same on the validation images; None without.
      train_labels: number of training labels, or annotated training images.
      shots: training images of each class, where a protocol has several such numbers.
      chance: `value` of a random guess, where it is not the data set's chance accuracy.
      chosen_on, reported_on: names of the images behind `val_value` and `value`.
      chosen: whether validation chose this endpoint for its module.
      seconds: of computation.
      quick: {setting: value} of the settings that replace the requested ones, to save time.
      details: what else the protocol reports: settings, choices, curves, values of each class; all
        JSON-able.
      picture: a PNG's bytes, or its path, for report.html.
    """

    protocol: str
    endpoint: str
    metric: str
    value: float
    val_value: Optional[float]
    train_labels: int
    seconds: float = 0.0
    module: str = ""
    shots: Optional[int] = None
    chance: Optional[float] = None
    chosen_on: Optional[str] = None
    reported_on: Optional[str] = None
    chosen: bool = False
    quick: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    picture: Union[bytes, str, None] = dataclasses.field(default=None, repr=False)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Result":
        """The result of a record such as those of results.json; a Result is returned as it is."""
        if isinstance(record, cls):
            return record
        known = {name: record[name] for name in _FIELDS if name in record}
        return cls(
            **known, details={name: value for name, value in record.items() if name not in _FIELDS}
        )

    @property
    def column(self) -> Column:
        return self.protocol, self.train_labels, self.shots

    @property
    def of_pixels(self) -> bool:
        return self.endpoint == PIXELS

    def replace(self, **changes: Any) -> "Result":
        return dataclasses.replace(self, **changes)

    def _record(self) -> dict[str, Any]:
        unset = {name for name, empty in _UNSET.items() if getattr(self, name) == empty}
        fields = {
            name: getattr(self, name) for name in _FIELDS if name != "picture" and name not in unset
        }
        return {**fields, **self.details}

    def __getitem__(self, key: str) -> Any:
        return self._record()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._record())

    def __len__(self) -> int:
        return len(self._record())


_FIELDS = tuple(field.name for field in dataclasses.fields(Result) if field.name != "details")
# which records leave out
_UNSET: dict[str, Any] = {"module": "", "shots": None, "chance": None, "quick": {}}


def mark_chosen(results: Iterable[Result]) -> list[Result]:
    """The results with `chosen` set: of the endpoints of one module, under one protocol and number
    of labels, the best on validation.

    Pixels are not the module's; among equals the deeper endpoint is chosen. Without validation
    results none is.
    """
    results = list(results)
    groups: dict[tuple[str, Column], list[tuple[float, int]]] = {}
    for depth, result in enumerate(results):
        if not result.of_pixels and result.val_value is not None:
            groups.setdefault((result.module, result.column), []).append((result.val_value, depth))
    best = {max(reversed(group))[1] for group in groups.values()}
    return [result.replace(chosen=depth in best) for depth, result in enumerate(results)]
