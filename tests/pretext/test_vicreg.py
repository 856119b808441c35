"""VICReg: its expander, and its alarm."""

import pytest
from joint_embedding import dense, head_parameters, task


def test_the_expander_has_the_published_size():
    """Three layers of 8192, the last without biases; here a sixty-fourth of that."""
    expected = dense(2048, 128) + dense(128, 128) + dense(128, 128, False) + 2 * 2 * 128
    assert head_parameters("vicreg", projection_size=128) == expected


def test_constant_embeddings_raise_the_alarm():
    model = task("vicreg", projection_size=8)
    healthy = {"spread": 1.0, "variance": 0.3}
    assert model.alarm(healthy) is None
    assert "collapsed" in model.alarm({**healthy, "variance": 0.99})


def test_levels_of_independent_views():
    model = task("vicreg", projection_size=64)
    model.batch_size = 32
    assert model.chance()["loss"] == pytest.approx(50 + 2 * 63 / 31)
