"""Projection heads as published."""

import numpy as np
import pytest
import tensorflow as tf
from joint_embedding import dense, head_parameters

from tfssl.backbones import Norm
from tfssl.pretext.parts.heads import MLP


@pytest.mark.parametrize(
    "name,settings,expected",
    [
        # By the layers that the papers and their code name; two parameters a unit for a full batch
        # normalization.
        ("simclr", {}, 2048**2 + 2 * 2048 + 2048 * 128 + 128),
        ("simclr", {"projection_layers": 3}, 2 * (2048**2 + 2 * 2048) + 2048 * 128 + 128),
        ("moco", {"projection_layers": 1, "queue_size": 8}, dense(2048, 128)),
        ("moco", {"queue_size": 8}, dense(2048, 2048) + dense(2048, 128)),
        (
            "byol",
            {},
            dense(2048, 4096) + 2 * 4096 + 4096 * 256 + dense(256, 4096) + 2 * 4096 + 4096 * 256,
        ),
        ("simsiam", {}, 3 * 2048**2 + 2 * 2 * 2048 + 2048 * 512 + 2 * 512 + dense(512, 2048)),
        ("swav", {"small_crops": 0}, dense(2048, 2048) + 2 * 2048 + dense(2048, 128) + 3000 * 128),
        ("instance_discrimination", {"num_images": 4}, dense(2048, 128)),
    ],
)
def test_heads_have_the_published_size(name, settings, expected):
    assert head_parameters(name, **settings) == expected


def test_mlp_is_the_naive_one(float64):
    head = MLP("head", [5, 3], bias=(True, False), norm=Norm(), last_norm="scale")
    x = np.random.default_rng(0).normal(size=(7, 4))
    y = head(tf.constant(x), training=True).numpy()
    weights = {v.name.split("/", 1)[1]: v.numpy() for v in head.trainable_variables}
    assert sorted(weights) == [
        "bn1/beta:0",
        "bn1/gamma:0",
        "bn2/gamma:0",
        "dense1/bias:0",
        "dense1/kernel:0",
        "dense2/kernel:0",
    ]

    def normalized(h):
        return (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)

    hidden = np.maximum(normalized(x @ weights["dense1/kernel:0"] + weights["dense1/bias:0"]), 0)
    np.testing.assert_allclose(
        y, normalized(hidden @ weights["dense2/kernel:0"]), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("training", [False, True])
def test_on_a_map_each_location_is_a_row(float64, training):
    """So a projection of a map is a projection of its locations, batch statistics over all of
    them."""
    of_rows, of_maps = (
        MLP("projection", [6, 3], norm=Norm(), last_norm="offset and scale") for _ in range(2)
    )
    maps = np.random.default_rng(0).normal(size=[4, 2, 5, 7])
    of_rows(maps.reshape(-1, 7)), of_maps(maps)
    of_maps.set_weights(of_rows.get_weights())
    expected = of_rows(maps.reshape(-1, 7), training=training).numpy().reshape(4, 2, 5, 3)
    np.testing.assert_allclose(of_maps(maps, training=training), expected, rtol=1e-9, atol=1e-12)
    assert [v.name for v in of_maps.variables] == [v.name for v in of_rows.variables]
