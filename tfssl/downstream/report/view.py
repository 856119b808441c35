"""Columns, rows, best endpoints and baselines of an evaluation, computed once for table, plots and
page."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Optional

import numpy as np

from tfssl.downstream.features.extract import Features
from tfssl.downstream.results import PIXELS, Column, Result


class Cell(NamedTuple):
    """One value of a table; `endpoint` is "" for a baseline."""

    value: float
    chosen: bool = False
    endpoint: str = ""


class Row(NamedTuple):
    """One row of a table: of a module's endpoint, or of pixels or a baseline (endpoint "")."""

    module: str
    endpoint: str
    cells: dict[Column, Cell]


@dataclasses.dataclass(frozen=True)
class View:
    """Results side by side. Make one with `View.of`.

    Attributes:
      results: in their order, each with its module.
      untrained: {name of an untrained module: names of the modules whose network it is}.
      columns: in the order of the results.
      headings: {column: heading}, such as "knn@500" or "low_shot@k=4".
      metrics: {column: name of the metric}.
      largest: of each protocol the column with the most labels, and the largest k.
      modules: names of the modules, without pixels.
      trained: modules that are not untrained; all modules where all are untrained.
      groups: rows of each module, in the order of depth.
      others: rows of pixels and the baselines.
      levels: {column: {name of a baseline: value}}, such as chance.
      pixels: {column: result of raw pixels}.
      best: {(module, column): result of the chosen endpoint; of the deepest where nothing was
        chosen}.
    """

    results: list[Result]
    untrained: dict[str, list[str]]
    columns: list[Column]
    headings: dict[Column, str]
    metrics: dict[Column, str]
    largest: list[Column]
    modules: list[str]
    trained: list[str]
    groups: list[list[Row]]
    others: list[Row]
    levels: dict[Column, dict[str, float]]
    pixels: dict[Column, Result]
    best: dict[tuple[str, Column], Result]

    @classmethod
    def of(
        cls,
        results: Iterable[Mapping[str, Any]],
        baselines: Optional[Mapping[str, float]] = None,
        untrained: Optional[Mapping[str, Sequence[str]]] = None,
    ) -> "View":
        """The view of results, or of records of results.json; `baselines` are accuracies, see
        `baselines`."""
        rows = [Result.of(record) for record in results]
        networks = {name: list(modules) for name, modules in (untrained or {}).items()}
        by_column: dict[Column, list[Result]] = {}
        of_modules: dict[str, list[Result]] = {}
        for r in rows:
            by_column.setdefault(r.column, []).append(r)
            if not r.of_pixels:
                of_modules.setdefault(r.module, []).append(r)
        columns, modules = list(by_column), list(of_modules)
        levels = {column: _levels(each, baselines or {}) for column, each in by_column.items()}
        pixels = {r.column: r for r in rows if r.of_pixels}
        others = [
            Row(
                PIXELS,
                "",
                {column: Cell(r.value, r.chosen, PIXELS) for column, r in pixels.items()},
            )
        ]
        for name in dict.fromkeys(name for of_column in levels.values() for name in of_column):
            others.append(
                Row(
                    name, "", {c: Cell(level[name]) for c, level in levels.items() if name in level}
                )
            )
        best: dict[tuple[str, Column], Result] = {}
        for module, own in of_modules.items():
            for r in reversed(own):  # the deepest, unless one is chosen
                if (module, r.column) not in best or r.chosen:
                    best[module, r.column] = r
        return cls(
            results=rows,
            untrained=networks,
            columns=columns,
            headings=headings(columns),
            metrics={column: each[0].metric for column, each in by_column.items()},
            largest=_largest(columns),
            modules=modules,
            trained=[name for name in modules if name not in networks] or modules,
            groups=[_rows(module, own) for module, own in of_modules.items()],
            others=[row for row in others if row.cells],
            levels=levels,
            pixels=pixels,
            best=best,
        )

    def of_column(self, column: Column, module: Optional[str] = None) -> list[Result]:
        """The results of one column, pixels included; with `module`, of its own endpoints."""
        rows = [r for r in self.results if r.column == column]
        return (
            rows if module is None else [r for r in rows if r.module == module and not r.of_pixels]
        )

    def rival(self, module: str) -> Optional[str]:
        """The untrained network of a module; None where there is none."""
        return next((name for name, others in self.untrained.items() if module in others), None)

    def rival_best(self, module: str, column: Column) -> Optional[Result]:
        """The best result of a module's untrained network in one column; None where there is
        none."""
        rival = self.rival(module)
        return None if rival is None else self.best.get((rival, column))

    def starred(self, module: str) -> Optional[str]:
        """The endpoint that validation chose for a module, by its first protocol at the most
        labels; None without a choice."""
        of_module = [r for r in self.results if r.module == module]
        if not of_module:
            return None
        first = _largest(list(dict.fromkeys(r.column for r in of_module)))[0]
        return next(
            (r.endpoint for r in reversed(of_module) if r.chosen and r.column == first), None
        )


def _rows(module: str, results: Sequence[Result]) -> list[Row]:
    endpoints = dict.fromkeys(r.endpoint for r in results)
    cells = {
        e: {r.column: Cell(r.value, r.chosen, e) for r in results if r.endpoint == e}
        for e in endpoints
    }
    return [Row(module, endpoint, cells[endpoint]) for endpoint in endpoints]


def _levels(rows: Sequence[Result], baselines: Mapping[str, float]) -> dict[str, float]:
    own = [r.chance for r in rows if r.chance is not None]
    return {"chance": own[0]} if own else dict(baselines) if rows[0].metric == "accuracy" else {}


def _largest(columns: Sequence[Column]) -> list[Column]:
    """Of each protocol the column with the most labels, and the largest k."""
    largest: dict[str, Column] = {}
    for column in columns:
        largest[column[0]] = max(
            largest.get(column[0], column), column, key=lambda c: (c[1], c[2] or 0)
        )
    return list(largest.values())


def headings(columns: Sequence[Column]) -> dict[Column, str]:
    """{column: heading}: protocol@training labels, or protocol@k=images of each class."""
    texts = {}
    for protocol, labels, shots in columns:
        several = sum(other[0] == protocol and other[2] == shots for other in columns) > 1
        of_labels = f"k={shots}" + (f" of {labels}" if several else "") if shots else labels
        texts[protocol, labels, shots] = f"{protocol}@{of_labels}"
    return texts


def baselines(train: Features, test: Features) -> dict[str, float]:
    """Accuracies without a look at the images: a uniform guess, and the most frequent class of the
    training split; of labeled images. None for multi-label images, nor without labels; a
    result's own "chance" takes precedence."""
    learned, asked = (part.labels[part.labels >= 0] for part in (train, test))
    if train.targets is not None or not len(learned) or not len(asked):
        return {}
    classes = np.unique(np.concatenate([learned, asked]))
    majority = np.bincount(learned).argmax()
    return {
        "chance": 1 / (train.num_classes or len(classes)),
        "majority class": float(np.mean(asked == majority)),
    }
