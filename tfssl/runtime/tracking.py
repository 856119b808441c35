"""What a run logs, for a tracking server too: MLflow's, or Weights & Biases'.

Where these are, their own environment variables say (MLFLOW_TRACKING_URI, WANDB_MODE, ...). A run
that is resumed is resumed there as well. An error of theirs is reported once, and the training goes
on without tracking.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf

from tfssl.errors import UserError
from tfssl.storage import files

PACKAGES = {"mlflow": "mlflow", "wandb": "wandb"}  # kind -> what is installed for it
_PROJECT = "tfssl"


class Tracker:
    """One run at a tracking server; it begins with the first `log`.

    Args:
      kind: "mlflow" or "wandb".
      workdir: the run's folder, where its name at the server is kept, and whose own name it has.
      settings: {flag: value}, for the record.
      say: receives a line where something does not work.

    Raises:
      UserError: the package is not installed.
    """

    def __init__(self, kind: str, workdir: str, settings: Mapping[str, Any], say: Any) -> None:
        package = PACKAGES[kind]
        try:
            self._api = importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"--track={kind} needs the package {package}: pip install {package}"
            ) from error
        self._kind, self._workdir, self._say = kind, workdir, say
        self._settings = {name: value for name, value in settings.items() if value is not None}
        self._run: Any = None
        self._broken = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log {name: value} of a step; values that are not finite are left out."""
        finite = {name: float(v) for name, v in values.items() if abs(float(v)) < float("inf")}
        if self._broken:
            return
        with self._forgiven():
            if self._run is None:
                self._run = self._begun()
            if self._kind == "mlflow":
                self._api.log_metrics(finite, step=step)
            else:
                self._run.log(finite, step=step)

    def finish(self, status: str) -> None:
        """End the run: FINISHED, KILLED or FAILED."""
        if self._run is None or self._broken:
            return
        with self._forgiven():
            if self._kind == "mlflow":
                self._api.end_run(status)
            else:
                self._run.finish(exit_code=int(status != "FINISHED"))

    def _begun(self) -> Any:
        path = os.path.join(self._workdir, f"{self._kind}.json")
        name = os.path.basename(self._workdir.rstrip("/"))
        known = None
        with contextlib.suppress(ValueError, KeyError, *files.errors()):
            with tf.io.gfile.GFile(path) as file:
                known = json.loads(file.read())["run"]
        if self._kind == "mlflow":
            # The experiment is that of MLFLOW_EXPERIMENT_NAME, or MLflow's default.
            run = self._api.start_run(run_id=known, run_name=None if known else name)
            if known is None:
                items = [(key, str(value)[:500]) for key, value in self._settings.items()]
                for i in range(0, len(items), 100):  # so many at a time is what a server takes
                    self._api.log_params(dict(items[i : i + 100]))
            number = run.info.run_id
        else:
            project = os.environ.get("WANDB_PROJECT", _PROJECT)
            run = self._api.init(
                project=project,
                id=known,
                resume="allow",
                name=name,
                dir=self._workdir,
                config=self._settings,
            )
            number = run.id
        files.write_file(path, json.dumps({"run": number}) + "\n")
        return run

    @contextlib.contextmanager
    def _forgiven(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a network, a server, a version: none is worth a training
            self._broken = True
            reason = " ".join(str(error).split())[:300]
            self._say(f"WARNING: --track={self._kind} goes on without: {reason}")


@contextlib.contextmanager
def tracked(
    kind: str, workdir: str, settings: Mapping[str, Any], say: Any = print
) -> Iterator[Tracker | None]:
    """A `Tracker` that is told how the block ends; None for the kind "none".

    Raises:
      UserError: the package is not installed.
    """
    if kind == "none":
        yield None
        return
    tracker = Tracker(kind, workdir, settings, say)
    try:
        yield tracker
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt) or getattr(error, "status", 1) == 75
        tracker.finish("KILLED" if stopped else "FAILED")
        raise
    tracker.finish("FINISHED")
