"""BYOL: its target network."""

import numpy as np
from joint_embedding import task, train


def test_byols_target_moves_slower(source):
    model = task(
        "byol",
        projection_hidden=8,
        projection_size=4,
        target_momentum=0.9,
        momentum_schedule="constant",
    )
    before = [v.numpy() for v in model.target.twins[0].trainable_variables]
    train(model, source, 1)
    for old, mine, online in zip(
        before, model.target.twins[0].trainable_variables, model.backbone.trainable_variables
    ):
        np.testing.assert_allclose(mine, 0.9 * old + 0.1 * online.numpy(), atol=1e-6)
