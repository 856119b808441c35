"""LeJEPA: its alarm, its levels."""

import pytest
from joint_embedding import task

SMALL = {"projection_hidden": 8, "projection_size": 4, "directions": 8, "small_crops": 2, "small_size": 8}


def test_a_collapse_raises_the_alarm():
    model = task("lejepa", **SMALL)
    model.batch_size = 64
    assert model.alarm({"spread": 1.0, "sigreg": 2.0}) is None
    assert "collapsed" in model.alarm({"spread": 1.0, "sigreg": 0.402 * 64})


def test_levels_of_independent_views():
    """Two large views and two small ones: the large ones are part of the mean that they are measured by."""
    chance = task("lejepa", **SMALL).chance()
    assert chance["invariance"] == pytest.approx((2 * 0.5 + 2 * 1.5) / 4)
    assert chance["loss"] == pytest.approx(0.95 * 1.0 + 0.05 * 1.053)
