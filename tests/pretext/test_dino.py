"""DINO: its teacher, center and alarm."""

import numpy as np
import pytest
from joint_embedding import dense, head_parameters, task, train

SMALL = {"projection_hidden": 8, "projection_size": 4, "prototypes": 6, "small_crops": 0}


def test_the_head_has_the_published_size():
    """Three layers of 2048 to 256, and the prototypes, here 64 of the 65536."""
    expected = dense(2048, 2048) + dense(2048, 2048) + dense(2048, 256) + dense(256, 64, False)
    assert head_parameters("dino", prototypes=64, small_crops=0) == expected


def test_the_teacher_and_its_center_follow(source):
    settings = {"target_momentum": 0.75, "momentum_schedule": "constant", "center_momentum": 0.5}
    model = task("dino", **SMALL, **settings, freeze_prototypes_epochs=0.0)
    before = [v.numpy() for twin in model.teacher.twins for v in twin.trainable_variables]
    train(model, source, 1)
    online = [v for layer in model.teacher._online for v in layer.trainable_variables]
    teacher = [v for twin in model.teacher.twins for v in twin.trainable_variables]
    assert len(teacher) == len(online) == len(model.trainable_variables)
    for old, own, followed in zip(before, teacher, online):
        np.testing.assert_allclose(own, 0.75 * old + 0.25 * followed.numpy(), atol=1e-6)
    assert model.published == (model.teacher.backbone,)
    assert model.published_head is model.teacher.twins[1]  # not the student's
    assert np.abs(model.center).max() > 0


def test_prototypes_stay_before_their_epoch(source):
    model = task("dino", **SMALL, freeze_prototypes_epochs=1.0)
    model.epoch_steps = 2

    before = model.prototypes.kernel.numpy()
    assert np.std(before) == pytest.approx(12**-0.5, rel=0.5)  # 24 draws
    train(model, source, 2)
    np.testing.assert_array_equal(model.prototypes.kernel, before)
    train(model, source, 1)
    assert np.abs(model.prototypes.kernel - before).max() > 1e-4


@pytest.mark.parametrize(
    "entropy,said", [(np.log(6), "all prototypes alike"), (0.0, "one prototype"), (1.0, None)]
)
def test_a_collapse_raises_the_alarm(entropy, said):
    found = task("dino", **SMALL).alarm({"spread": 1.0, "entropy": entropy})
    assert said in found if said else found is None
