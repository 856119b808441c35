"""Tracking servers: what they are told, resumed runs, and that none of their errors ends a run. The
packages themselves are tried where they are installed."""

import json
import sys
import types

import pytest

from tfssl.errors import UserError
from tfssl.runtime import tracking
from tfssl.runtime.preemption import Preempted


class FakeMLflow(types.ModuleType):
    """Notes what it is told, as MLflow's own functions are called."""

    def __init__(self):
        super().__init__("mlflow")
        self.told = []

    def start_run(self, run_id=None, run_name=None):
        self.told.append(("start", run_id, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "r1"))

    def log_params(self, params):
        self.told.append(("params", len(params)))

    def log_metrics(self, metrics, step):
        self.told.append(("metrics", metrics, step))

    def end_run(self, status):
        self.told.append(("end", status))


@pytest.fixture
def mlflow(monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    return fake


def test_a_run_and_its_resumption_are_one(mlflow, tmp_path):
    workdir, settings = str(tmp_path / "run"), {f"f{i}": i for i in range(130)} | {"no": None}
    with pytest.raises(Preempted):
        with tracking.tracked("mlflow", workdir, settings) as tracker:
            tracker.log({"train/loss": 2.0, "train/bad": float("nan")}, 10)
            raise Preempted("SIGTERM")
    with tracking.tracked("mlflow", workdir, settings) as tracker:
        tracker.log({"train/loss": 1.0}, 20)
    with tracking.tracked("mlflow", workdir, settings):
        pass  # a finished run that is started once more
    assert mlflow.told == [
        ("start", None, "run"), ("params", 100), ("params", 30), ("metrics", {"train/loss": 2.0}, 10), ("end", "KILLED"),
        ("start", "r1", None), ("metrics", {"train/loss": 1.0}, 20), ("end", "FINISHED"),
    ]  # fmt: skip
    assert json.loads((tmp_path / "run" / "mlflow.json").read_text()) == {"run": "r1"}
    with pytest.raises(ZeroDivisionError):
        with tracking.tracked("mlflow", workdir, settings) as tracker:
            tracker.log({}, 30)
            raise ZeroDivisionError
    assert mlflow.told[-1] == ("end", "FAILED")


def test_a_server_that_fails_ends_nothing_and_is_reported_once(mlflow, tmp_path):
    said = []

    def refuse(metrics, step):
        raise ConnectionError("nobody\nat home")

    mlflow.log_metrics = refuse
    with tracking.tracked("mlflow", str(tmp_path), {}, said.append) as tracker:
        tracker.log({"loss": 1.0}, 1)
        tracker.log({"loss": 1.0}, 2)
    assert said == ["WARNING: --track=mlflow goes on without: nobody at home"]


def test_none_and_what_is_not_installed(monkeypatch, tmp_path):
    with tracking.tracked("none", str(tmp_path), {}) as tracker:
        assert tracker is None
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="pip install wandb"):
        with tracking.tracked("wandb", str(tmp_path), {}):
            pass


@pytest.mark.parametrize("kind", tracking.PACKAGES)
def test_the_package_itself_offline(kind, tmp_path, monkeypatch):
    pytest.importorskip(kind)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/server")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    said, workdir = [], tmp_path / "run"
    workdir.mkdir()
    for step in (10, 20):
        with tracking.tracked(kind, str(workdir), {"task": "simclr"}, said.append) as tracker:
            tracker.log({"train/loss": 1 / step}, step)
    assert said == [] and json.loads((workdir / f"{kind}.json").read_text())["run"]
    if kind == "mlflow":
        import mlflow

        (run,) = mlflow.MlflowClient().search_runs(["0"])
        assert run.data.params == {"task": "simclr"} and run.info.status == "FINISHED"
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
        assert [(m.step, m.value) for m in history] == [(10, 0.1), (20, 0.05)]
