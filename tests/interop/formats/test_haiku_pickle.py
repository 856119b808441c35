"""Pickles in the form of BYOL's checkpoints, made here without its libraries."""

import pickle
import sys
import types

import numpy as np
import pytest

from tfssl.errors import UserError
from tfssl.interop.formats import weights


class FlatMapping(dict):
    def __reduce__(self):
        return FlatMapping, (dict(self),)


class _ByolExperimentState(tuple):
    """NamedTuples are pickled as a call of their class."""

    def __reduce__(self):
        return _ByolExperimentState, tuple(self)


@pytest.fixture
def modules(monkeypatch):
    """The two classes where BYOL's checkpoints have them, while one is written."""
    for cls, name in (
        (FlatMapping, "haiku._src.data_structures"),
        (_ByolExperimentState, "byol.byol_experiment"),
    ):
        parts = name.split(".")
        for i in range(1, len(parts) + 1):
            module = types.ModuleType(".".join(parts[:i]))
            monkeypatch.setitem(sys.modules, module.__name__, module)
        setattr(module, cls.__name__, cls)
        monkeypatch.setattr(cls, "__module__", name)


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reads_arrays(tmp_path, modules, protocol):
    kernel = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    online = FlatMapping(
        {"res_net50/~/initial_conv": {"w": kernel, "t": np.asfortranarray(kernel)}}
    )
    state = FlatMapping({"res_net50/~/bn/~/mean_ema": {"average": np.float64(0.1)}})
    experiment = _ByolExperimentState((online, online, state, state, {}))
    content = {"experiment_state": experiment, "step": np.int64(3), "rng": np.uint32([1, 2])}
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = weights.read(str(path)).tensors
    conv = "experiment_state/online_params/res_net50/~/initial_conv"
    np.testing.assert_array_equal(found[f"{conv}/w"], kernel)
    np.testing.assert_array_equal(found[f"{conv}/t"], kernel)
    average = found["experiment_state/online_state/res_net50/~/bn/~/mean_ema/average"]
    assert average == 0.1 and average.shape == ()
    np.testing.assert_array_equal(found["rng"], [1, 2])


def test_refuses_objects_in_arrays(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"w": np.array([{}], object)}, 2))
    with pytest.raises(UserError, match="'O8'.*no numbers"):
        weights.read(str(path))


def test_damaged_arrays(tmp_path):
    content = pickle.dumps({"w": np.zeros([2, 3], np.float32)}, 4)
    path = tmp_path / "x.pkl"
    for old, new in ((b"K\x02K\x03\x86", b"K\x02K\x04\x86"), (b"C\x18", b"C\x17")):
        assert content.count(old) == 1
        path.write_bytes(content.replace(old, new))
        with pytest.raises(UserError, match="damaged"):
            weights.read(str(path))
