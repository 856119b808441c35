"""BYOL: its target network."""

import numpy as np
import pytest
from joint_embedding import task, train


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_byols_target_moves_slower(source, schedule):
    """At the start of a run of four steps by the same amount: the schedule's at step 0."""
    model = task(
        "byol",
        projection_hidden=8,
        projection_size=4,
        target_momentum=0.9,
        momentum_schedule=schedule,
    )
    model.total_steps = 4
    before = [v.numpy() for v in model.target.twins[0].trainable_variables]
    train(model, source, 1)
    for old, mine, online in zip(
        before, model.target.twins[0].trainable_variables, model.backbone.trainable_variables
    ):
        np.testing.assert_allclose(mine, 0.9 * old + 0.1 * online.numpy(), atol=1e-6)
