"""MoCo v3: its heads."""

import pytest
from joint_embedding import dense, head_parameters, task


@pytest.mark.parametrize(
    "settings,layers,last",
    [({}, 1, 0), ({"projection_layers": 3, "prediction_norm": True}, 2, 0)],
    ids=["resnet", "vit"],
)
def test_the_heads_have_the_published_size(settings, layers, last):
    """Layers of 4096 to 256 without biases; batch normalization after the hidden ones has
    parameters, after the last ones none."""
    expected = (
        dense(2048, 4096, False) + (layers - 1) * dense(4096, 4096, False) + dense(4096, 256, False)
    )
    expected += dense(256, 4096, False) + dense(4096, 256, False) + 2 * 4096 * (layers + 1)
    assert head_parameters("moco_v3", **settings) == expected


def test_the_loss_of_a_uniform_guess():
    model = task("moco_v3", projection_hidden=8, projection_size=4, temperature=0.2)
    model.batch_size = 4096
    assert model.chance()["loss"] == pytest.approx(4 * 0.2 * 8.3178, rel=1e-4)
