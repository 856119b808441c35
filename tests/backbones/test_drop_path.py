"""Stochastic depth: rates and expectation in closed form, a network against one without the skipped
blocks, and training that resumes, accumulates and splits over replicas exactly."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.backbones import build, drop_path
from tfssl.data.ops.draws import Draws, hashed, rows_of
from tfssl.errors import UserError
from tfssl.pretext.dino import DINO
from tfssl.pretext.parts.target import MomentumNetwork
from tfssl.pretext.supervised import Supervised
from tfssl.testing import check_task

TINY = {"width_multiplier": 1 / 16, "depth": 3, "patch": 4, "grid": 2}


def bits_of(keys):
    return lambda rows, shape, use: hashed(rows_of(keys, rows, use), shape)


def keys(n, step=0):
    number = n * step + tf.range(n, dtype=tf.int64)
    return Draws({"number": number, "seed": tf.zeros([n], tf.int64)}).keys()


def test_rates_grow_linearly_from_none_to_the_last():
    np.testing.assert_allclose(drop_path.rates(0.2, 12), np.linspace(0, 0.2, 12))  # as timm's code
    assert drop_path.rates(0.2, 1) == [0.0]


def test_branches_are_left_out_at_their_rate_and_keep_their_expectation():
    n, rate = 40_000, 0.4
    with drop_path.drawn(bits_of(keys(n))):
        factors = drop_path.factors(rate, 3, n).numpy()
    assert factors.shape == (n, 3, 2) and (factors[:, 0] == 1).all()
    for i, p in ((1, 0.2), (2, 0.4)):
        of_block = factors[:, i]
        np.testing.assert_allclose(np.unique(of_block), [0, 1 / (1 - p)], rtol=1e-6)
        five = 5 * np.sqrt(p * (1 - p) / n)  # standard deviations of a fraction
        assert abs((of_block == 0).mean(0) - p).max() < five
        assert abs(of_block.mean(0) - 1).max() < five / (1 - p)
    # Branches, blocks and neighboring images are independent of one another.
    dropped = (factors == 0).astype(float)
    columns = [dropped[1:, 1, 0], dropped[1:, 1, 1], dropped[1:, 2, 0], dropped[:-1, 1, 0]]
    correlations = np.corrcoef(columns) - np.eye(4)
    assert abs(correlations).max() < 5 / np.sqrt(n)


def test_views_uses_and_steps_differ_and_an_image_keeps_its_own():
    """Rows are image by image: the first half of a batch draws what it draws in the whole."""
    with drop_path.drawn(bits_of(keys(8))):
        first, second = (drop_path.factors(0.9, 40, 16).numpy() for _ in range(2))
    with drop_path.drawn(bits_of(keys(8)[:4])):
        half = drop_path.factors(0.9, 40, 8).numpy()
    with drop_path.drawn(bits_of(keys(8, step=1))):
        later = drop_path.factors(0.9, 40, 16).numpy()
    np.testing.assert_array_equal(half, first[:8])
    assert len({row.tobytes() for x in (first, second, later) for row in x}) == 48


def test_a_network_skips_the_branches_of_single_images(float64):
    """By an explicit sum over the blocks' two terms."""
    rate, n = 0.9, 6
    network = build("vit_tiny", **TINY, drop_path=rate, layer_scale=0.5)
    images = tf.random.stateless_normal([n, 8, 8, 3], [0, 1], dtype=tf.float64)
    with drop_path.drawn(bits_of(keys(n))):
        found = network(images, training=True)
    with drop_path.drawn(bits_of(keys(n))):
        factors = drop_path.factors(rate, 3, n).numpy()
    assert 0 < (factors[:, 1:] == 0).sum() < 4 * n
    x, _ = network.tokens(images)
    front = tf.tile(network.cls_token + network.cls_position, [n, 1, 1])
    x = tf.concat([front, x], 1)
    for i, block in enumerate(network.blocks):
        scales = [0.5 * factors[:, i, branch, None, None] for branch in (0, 1)]
        x += scales[0] * block.attn(block.norm1(x))
        hidden = tf.nn.gelu(block.fc1(block.norm2(x)), approximate=False)
        x += scales[1] * block.fc2(hidden)
    np.testing.assert_allclose(found["pre_logits"], network.last_norm(x)[:, 0], atol=1e-12)


def test_all_paths_are_kept_in_inference_export_and_teachers():
    network = build("vit_tiny", **TINY, drop_path=0.9)
    plain = build("vit_tiny", **TINY)
    images = tf.random.stateless_normal([4, 8, 8, 3], [0, 1])
    network(images), plain(images)
    plain.set_weights(network.get_weights())
    expected = plain(images)["pre_logits"].numpy()
    with drop_path.drawn(bits_of(keys(4))):
        dropped = network(images, training=True)["pre_logits"].numpy()
        inferred = network(images, training=False)["pre_logits"].numpy()
        teacher = MomentumNetwork(network)
        teacher.backbone(images)
        teacher.copy()
        taught = teacher.backbone(images, training=True)["pre_logits"].numpy()
    assert np.abs(dropped - expected).max() > 1e-3
    np.testing.assert_array_equal(inferred, expected)
    np.testing.assert_array_equal(taught, expected)
    np.testing.assert_array_equal(network(images, training=True)["pre_logits"], expected)
    assert "drop_path" not in network.config()


TASKS = {
    Supervised: {},
    DINO: {"small_crops": 1, "small_size": 8, "prototypes": 6, "projection_hidden": 8},
}


@pytest.mark.parametrize("task", [Supervised, pytest.param(DINO, marks=pytest.mark.slow)])
def test_training_is_exact(replicas, task):
    """A batch at once, whose blocks are computed twice; and in parts, one whose loss compares views
    of two sizes."""

    def backbone(sync, groups):
        return build("vit_tiny", **TINY, drop_path=0.5, remat=task is Supervised)

    skip = ["precision", "export", *(["replicas", "resume", "xla"] if task is DINO else [])]
    check_task(task, backbone=backbone, replicas=replicas, skip=skip, **TASKS[task])


def test_gradients_are_none_of_a_skipped_block(float64):
    """Of one image, whose second term of the last block is skipped, that term learns nothing."""
    network = build("vit_tiny", **TINY, drop_path=0.5)
    images = tf.random.stateless_normal([1, 8, 8, 3], [0, 1], dtype=tf.float64)
    nothing = tf.zeros([1, 3, 2], tf.int64)
    with drop_path.drawn(lambda rows, shape, use: nothing), tf.GradientTape() as tape:
        total = tf.reduce_sum(network(images, training=True)["pre_logits"][:, :1])
    first, last = network.blocks[0].fc2.kernel, network.blocks[-1].fc2.kernel
    of_first, of_last = tape.gradient(total, [first, last])
    assert np.abs(of_first).max() > 0 and np.abs(of_last).max() == 0


def test_a_rate_of_one_would_leave_nothing():
    with pytest.raises(UserError, match="drop_path=1"):
        build("vit_tiny", **TINY, drop_path=1.0)
