"""Vision transformers against published parameter counts, a naive attention in NumPy, PyTorch's
interpolation, and MAE's positions."""

import numpy as np
import pytest
import tensorflow as tf
from check_values import normal
from networks import trainable

from tfssl.backbones import build, vit
from tfssl.errors import UserError
from tfssl.testing import check_backbone

TINY = {"width_multiplier": 1 / 16, "depth": 2, "patch": 4}  # 12 channels


# Without logits; the known counts of timm, DINO and DINOv2.
COUNTS = {
    ("vit_tiny", 16): 5_524_416,
    ("vit_small", 16): 21_665_664,
    ("vit_small", 8): 21_670_272,
    ("vit_base", 16): 85_798_656,
    ("vit_base", 32): 87_455_232,
    ("vit_large", 16): 303_301_632,
}


def count(name, size=224, **settings):
    return trainable(name, 1, size, **settings)


@pytest.mark.parametrize("name,patch", COUNTS)
def test_parameters_of_every_size(name, patch):
    assert count(name, patch=patch) == COUNTS[name, patch]


def test_parameters_of_its_settings():
    assert count("vit_small", positions="fixed") == 21_590_016
    assert count("vit_large", positions="fixed") == 303_099_904
    of_dinov2 = {"patch": 14, "layer_scale": 1e-5}
    mask_token = 384  # which DINOv2's has beside
    assert count("vit_small", 518, **of_dinov2) == 22_056_576 - mask_token
    assert count("vit_small", 518, registers=4, **of_dinov2) == 22_058_112 - mask_token
    assert count("vit_tiny", 32, depth=6, patch=4) == 2_691_648


@pytest.mark.parametrize(
    "settings", [{}, {"pool": "mean", "registers": 2, "positions": "fixed", "layer_scale": 0.1}]
)
def test_the_contract_of_backbones(settings):
    check_backbone("vit_tiny", image_size=12, **TINY, **settings)


def test_attention_is_the_formula(float64):
    layer = vit.Attention(8, 2, {})
    layer.build((None, None, 8))
    qkv, out = normal(21, 8, 24) / np.sqrt(8), normal(23, 8, 8) / np.sqrt(8)
    layer.qkv.set_weights([qkv, 0.1 * normal(22, 24)])
    layer.out.set_weights([out, np.zeros(8)])
    x = normal(20, 1, 5, 8)
    weights, _ = layer.weights_and_values(tf.constant(x))
    y = layer(tf.constant(x)).numpy()
    np.testing.assert_allclose(
        y[0, 0, :4], [0.71575554, -0.20110822, 0.05388664, -1.07818011], atol=1e-7
    )
    assert y.sum() == pytest.approx(-3.74536144, abs=1e-7)
    np.testing.assert_allclose(
        weights[0, 0, 0], [0.115239, 0.151374, 0.105600, 0.405650, 0.222137], atol=1e-6
    )
    q, k, v = np.split(x[0] @ qkv + 0.1 * normal(22, 24), 3, 1)
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        scores = np.exp(q[:, h] @ k[:, h].T / 2)
        heads.append(scores / scores.sum(1, keepdims=True) @ v[:, h])
    np.testing.assert_allclose(y[0], np.concatenate(heads, 1) @ out, rtol=1e-10)


@pytest.mark.parametrize("registers", [0, 2])
def test_the_class_tokens_attention_by_numpy(float64, registers):
    """Of the last block: softmax of the class token's query with all keys, patches in raster
    order."""
    network = build("vit_tiny", **TINY, registers=registers)
    images = tf.constant(normal(24, 2, 8, 12, 3))
    network(images)
    attention = network.attention(images).numpy()
    assert attention.shape == (2, 3, 2, 3)
    tokens, _ = network.tokens(images)
    front = [network.cls_token + network.cls_position]
    front += [network.register_tokens] if registers else []
    x = tf.concat([*(tf.tile(token, [2, 1, 1]) for token in front), tokens], 1)
    x = network.blocks[0](x)
    last = network.blocks[1]
    qkv = last.attn.qkv(last.norm1(x)).numpy()  # NxLx3D
    for n in range(2):
        for head in range(3):
            q = qkv[n, 0, 4 * head : 4 * head + 4]
            keys = qkv[n, :, 12 + 4 * head : 12 + 4 * head + 4]
            weights = np.exp(keys @ q / 2)
            weights = (weights / weights.sum())[1 + registers :]
            np.testing.assert_allclose(attention[n, head].ravel(), weights, rtol=1e-9)
    assert (attention.sum((2, 3)) < 1).all()
    without = build("vit_tiny", **TINY, class_token=False, pool="mean")
    with pytest.raises(UserError, match="without a class token"):
        without.attention(images)


def test_positions_are_interpolated_as_by_pytorch(float64):
    """An impulse at (1, 2) of 4 x 4, resized to 6 x 6: row 1 by torch.nn.functional.interpolate."""
    impulse = np.zeros([4, 4])
    impulse[1, 2] = 1
    matrix = vit.interpolation(6, 4).numpy()
    resized = matrix @ impulse @ matrix.T
    np.testing.assert_allclose(
        resized[1], [0, -0.055664, 0.095522, 0.560077, 0.352539, -0.051541], atol=1e-6
    )
    np.testing.assert_allclose(vit.interpolation(4, 4), np.eye(4), atol=1e-12)
    np.testing.assert_allclose(vit.interpolation(tf.constant(5), 14).numpy().sum(1), 1, rtol=1e-12)


def test_fixed_positions_are_those_of_mae():
    """Column first: read off its code."""
    positions = vit.sinusoids(2, 3, 8).numpy()
    np.testing.assert_allclose(
        positions[0, 1], [0.841471, 0.01, 0.540302, 0.99995, 0, 0, 1, 1], atol=1e-6
    )
    expected = [0.909297, 0.019999, -0.416147, 0.9998, 0.841471, 0.01, 0.540302, 0.99995]
    np.testing.assert_allclose(positions[1, 2], expected, atol=1e-6)


def test_fixed_positions_of_other_images_are_interpolated():
    """In place of positions that the network has never seen: as the learned ones of this grid."""
    own, resized = vit.sinusoids(14, 14, 192).numpy(), vit.sinusoids(24, 10, 192, grid=14).numpy()
    np.testing.assert_allclose(vit.sinusoids(14, 14, 192, grid=14), own, atol=1e-6)
    rows, columns = (vit.interpolation(side, 14).numpy() for side in (24, 10))
    expected = np.einsum("hg,gkd,wk->hwd", rows, own, columns)
    norms = np.linalg.norm(resized, axis=-1) * np.linalg.norm(expected, axis=-1)
    assert ((resized * expected).sum(-1) / norms).min() > 0.999
    network = build("vit_tiny", **TINY, positions="fixed")
    images = [tf.fill([1, side, side, 3], 0.5) for side in (8, 16)]
    means = [tf.reduce_mean(network.tokens(x)[0], 1) for x in images if network(x)]
    np.testing.assert_allclose(*means, atol=0.05)  # 0.35 apart where each size has its own
    assert network.config()["grid"] == 2


def test_images_below_a_patch_are_refused():
    with pytest.raises(UserError, match="patches of 4 pixels, and these have 3x8"):
        build("vit_tiny", **TINY)(tf.zeros([1, 3, 8, 3]))


def test_images_of_another_size_and_shape():
    network = build("vit_tiny", **TINY)
    assert network(tf.zeros([1, 16, 16, 3]))["block2"].shape == (1, 4, 4, 12)
    endpoints = network(tf.zeros([2, 24, 12, 3]))
    assert endpoints["block1"].shape == (2, 6, 3, 12) and endpoints["pre_logits"].shape == (2, 12)
    assert network.config()["grid"] == 4


def test_each_kernel_begins_with_values_of_its_own():
    network = build("vit_tiny", **TINY)
    network(tf.zeros([1, 8, 8, 3]))
    values = [v.numpy() for v in network.trainable_variables if v.numpy().std() > 0]
    assert len(values) == 4 * 2 + 4  # of the blocks; patches, class token, positions
    for i, one in enumerate(values):
        for other in values[:i]:
            assert one.shape != other.shape or np.abs(one - other).max() > 1e-3
    assert values[-1].std() == pytest.approx(0.02, rel=0.2)


def test_a_projection_of_patches_that_stays():
    network = build("vit_tiny", train_patches=False, **TINY)
    network(tf.zeros([1, 8, 8, 3]))
    assert not [v.name for v in network.trainable_variables if "patch_embed" in v.name]
    assert trainable("vit_tiny", 1 / 16, 8)  # the usual one counts it
    assert "train_patches" not in network.config()  # what is published learns again


@pytest.mark.parametrize(
    "settings,said",
    [
        ({"width_multiplier": 0.01}, "multiple of its 3 heads"),
        ({"pool": "cls", "class_token": False}, "pool=cls needs the class token"),
        ({"pool": "max"}, "pool"),
        ({"bn_momentum": 0.9}, "no setting of backbone"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(UserError, match=said):
        build("vit_tiny", **settings)
