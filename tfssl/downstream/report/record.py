"""Results of a running evaluation: each is printed and written at once, so that an interruption
loses none."""

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Optional

from tfssl.downstream.report import save as report
from tfssl.downstream.report import table
from tfssl.downstream.report.embedding_map import Map
from tfssl.downstream.report.view import View
from tfssl.downstream.results import Result, mark_chosen
from tfssl.errors import UserError


class Record:
    """The results of an evaluation, with notes.

    results.json is written after each result, with "finished": false until the last; its table and
    report.html at the end.

    Args:
      folder: for results.json; None: nothing is written.
      order: names of protocols, in the order of the table's columns.
      say: receives a line about each result.
      check: function () called before each write; it may raise a `UserError`.
      **facts: other entries of results.json; "baselines" among them.

    Attributes:
      results: list of `Result`, with module and `chosen`.
      notes: lines, on what was skipped, shortened or refused.
      refused: {reason: what was refused}, of protocols and modules that were named.
      modules, panels, attention, maps, thumbnails, facts: arguments of `report.save`.
    """

    def __init__(
        self,
        folder: Optional[str] = None,
        order: Sequence[str] = (),
        say: Callable[[str], None] = print,
        check: Callable[[], None] = lambda: None,
        **facts: Any,
    ) -> None:
        self.folder, self.order, self.say, self.check = folder, list(order), say, check
        self.facts = {"baselines": {}, **facts}
        self.results: list[Result] = []
        self.notes: list[str] = []
        self.refused: dict[str, str] = {}
        self.modules: dict[str, dict[str, Any]] = {}
        self.panels: dict[str, tuple[str, bytes]] = {}
        self.attention: dict[str, bytes] = {}
        self.maps: dict[str, Map] = {}
        self.thumbnails = ""

    def note(self, text: str) -> None:
        """Print a line and keep it, once for all modules."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)

    def refuse(self, error: UserError, what: str) -> None:
        """Record the UserError that ended a part of the evaluation; others go on, unless the error
        concerns them too."""
        if error.lasting:
            raise error
        self.check()  # a lost lock ends the evaluation
        self.refused.setdefault(str(error), what)
        self.note(f"refused: {what}: {error}")

    def add(self, module: str, results: Iterable[Result]) -> None:
        """Add the results of a module: each is printed and written at once."""
        for result in results:
            result = result.replace(module=module)
            names = list(self.modules)
            self.results = mark_chosen(
                sorted(
                    [*self.results, result],
                    key=lambda r: (names.index(r.module), self._place(r.protocol)),
                )
            )
            self.say(table.line(result))
            if self.folder:
                self.check()
                path = os.path.join(self.folder, "results.json")
                report.write(
                    path,
                    self.results,
                    **{"versions": report.versions(), **self._about(finished=False)},
                )

    def _place(self, protocol: str) -> int:
        return self.order.index(protocol) if protocol in self.order else len(self.order)

    def _about(self, **more: Any) -> dict[str, Any]:
        refused = [f"{what}: {reason}" for reason, what in self.refused.items()]
        return {
            **self.facts,
            "modules": self.modules,
            "notes": self.notes,
            "refused": refused,
            **more,
        }

    def finish(self, title: str, **facts: Any) -> None:
        """Print the table and write the report.

        Args:
          title: of the plots.
          **facts: further entries of results.json.

        Raises:
          UserError: something was refused.
        """
        self.facts |= facts
        if self.results:
            self.say("\n" + table.of_view(View.of(self.results, self.facts["baselines"])))
        if self.results and self.folder is not None:
            self.check()
            written = report.save(
                self.folder, self.results, title, self.panels, self.maps, self.thumbnails,
                self.attention, **self._about(finished=True),
            )  # fmt: skip
            self.say(f"written: {', '.join(written)}")
        if self.refused:
            (reason, what), *others = self.refused.items()
            more = f"; and {len(others)} more, see the lines above" if others else ""
            kept = "the other results stand; " if self.results else ""
            raise UserError(f"{kept}{what}: {reason}{more}")
