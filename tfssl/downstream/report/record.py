"""What an evaluation has measured so far: told as it comes, and written as it comes, so that nothing that ends it takes it along."""

import os

from tfssl.downstream.report import save as report
from tfssl.errors import UserError


class Record:
    """The results of an evaluation, and what is said of them.

    results.json is written after each result, with "finished": false until the last; its table and report.html at the end.

    Args:
      folder: for results.json; None: nothing is written.
      order: names of protocols, in the order of the table's columns.
      say: told of each result, in a line.
      check: function () called before something is written; it may refuse with a `UserError`.
      **facts: what results.json says beside the results; "baselines" among them.

    Attributes:
      results: list of dicts as of a protocol, with "module" and "chosen".
      notes: lines, of what was left out, shortened or refused.
      refused: {what was refused: reason}, of what was asked for by name.
      modules, panels, facts: as `report.save` wants them.
    """

    def __init__(self, folder=None, order=(), say=print, check=lambda: None, **facts):
        self.folder, self.order, self.say, self.check = folder, list(order), say, check
        self.facts = {"baselines": {}, **facts}
        self.results, self.notes, self.refused, self.modules, self.panels = [], [], {}, {}, {}

    def note(self, text):
        """Tell a line, once; each module says so."""
        if text not in self.notes:
            self.notes.append(text)
            self.say(text)

    def refuse(self, error, what):
        """A UserError has ended a part of the evaluation; the others go on, unless it would end them too."""
        if error.lasting:
            raise error
        self.check()  # a lock that is lost ends it all
        self.refused.setdefault(str(error), what)
        self.note(f"refused: {what}: {error}")

    def add(self, module, results):
        """Results of a module, an iterable: each is told and written as soon as it is there."""
        for result in results:
            self.results.append({"module": module, **result})
            names = list(self.modules)
            self.results.sort(key=lambda r: (names.index(r["module"]), self._place(r["protocol"])))
            report.mark_chosen(self.results)
            self.say(report.line({"module": module, **result}))
            if self.folder:
                self.check()
                report.write(os.path.join(self.folder, "results.json"), **self._content(finished=False))

    def _place(self, protocol):
        return self.order.index(protocol) if protocol in self.order else len(self.order)

    def _content(self, **more):
        results = [report.without_picture(result) for result in self.results]
        about = {
            "modules": self.modules,
            "notes": self.notes,
            "refused": [f"{what}: {reason}" for reason, what in self.refused.items()],
            **more,
        }
        return {"versions": report.versions(), **self.facts, **about, "results": results}

    def finish(self, title, **facts):
        """Tell the table and write the report; afterwards a UserError for what was refused, if anything was.

        Args:
          title: of the plots.
          **facts: those that are known at the end.
        """
        self.facts |= facts
        if self.results:
            self.say("\n" + report.table(self.results, self.facts["baselines"]))
        if self.results and self.folder is not None:
            about = {
                name: value
                for name, value in self._content(finished=True).items()
                if name not in ("versions", "results")
            }
            self.check()
            self.say(f"written: {', '.join(report.save(self.folder, self.results, title, self.panels, **about))}")
        if self.refused:
            (reason, what), *others = self.refused.items()
            more = f"; and {len(others)} more, see the lines above" if others else ""
            kept = "the other results stand; " if self.results else ""
            raise UserError(f"{kept}{what}: {reason}{more}")
