"""AlexNet against its published sizes and a naive network in NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise, trainable

from tfssl.backbones import build
from tfssl.errors import UserError

ENDPOINTS = ["conv1", "conv2", "conv3", "conv4", "conv5", "pre_logits"]


@pytest.mark.parametrize("channels", [1, 3])
def test_parameters(channels):
    """Of the convolutions as in the paper's grouped form: 2,332,704 weights of RGB images; two of
    BN, or one bias, for each channel."""
    weights = 96 * 11**2 * channels + 256 * 25 * 48 + 384 * 9 * 256 + 384 * 9 * 192 + 256 * 9 * 192
    assert weights == 2332704 or channels == 1
    bn = 2 * (384 + 384 + 256)
    for name, extra in (("alexnet", bn + 2 * (96 + 256)), ("alexnet_lrn", bn + 96 + 256)):
        model = build(name)
        model.build((None, None, None, channels))
        assert sum(int(np.prod(v.shape)) for v in model.trainable_variables) == weights + extra
    assert trainable("alexnet", 2) > 3.9 * trainable("alexnet", 1)


@pytest.mark.parametrize(
    "stem,size,sides",
    [
        ("imagenet", 227, [55, 27, 13, 13, 13]),
        ("patch", 227, [109, 54, 26, 26, 26]),
        ("small", 32, [30, 14, 6, 6, 6]),
    ],
)
def test_endpoints_have_the_published_shapes(stem, size, sides):
    model = build("alexnet_lrn", 1 / 8, stem)
    run = tf.function(lambda x: model(x, False), autograph=False)
    endpoints = run.get_concrete_function(tf.TensorSpec([2, size, size, 3])).structured_outputs
    assert list(endpoints) == ENDPOINTS == list(model.endpoint_names)
    for name, side, channels in zip(ENDPOINTS, sides, (12, 32, 48, 48, 32)):
        assert endpoints[name].shape == (2, side, side, channels)
    assert endpoints["pre_logits"].shape == (2, 32)


@pytest.mark.parametrize("stem,smallest", [("imagenet", 67), ("patch", 39), ("small", 17)])
def test_smallest_sensible_image(stem, smallest):
    model = build("alexnet", 1 / 24, stem)
    assert model.min_image_size == smallest
    assert np.isfinite(model(tf.zeros([1, smallest, smallest, 3]))["pre_logits"]).all()
    remedy = "take larger ones$" if stem == "small" else "take larger ones, or the small stem"
    with pytest.raises(
        UserError, match=f"{smallest} pixels at least, not 99x{smallest - 1}: {remedy}"
    ):
        model(tf.zeros([1, 99, smallest - 1, 3]))


def conv(x, kernel, stride, padded):
    size = len(kernel)
    if padded:
        x = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = range(0, x.shape[1] - size + 1, stride), range(0, x.shape[2] - size + 1, stride)
    patches = np.stack(
        [np.stack([x[:, i : i + size, j : j + size] for j in columns], 1) for i in rows], 1
    )
    return np.tensordot(patches, kernel, 3)


def pool(x):
    rows, columns = range(0, x.shape[1] - 2, 2), range(0, x.shape[2] - 2, 2)
    return np.stack(
        [np.stack([x[:, i : i + 3, j : j + 3].max((1, 2)) for j in columns], 1) for i in rows], 1
    )


def naive(model, x, training, stride):
    """The network as its papers draw it, with TensorFlow's own response normalization as the
    reference."""
    values = {v.name.split("/", 1)[1][:-2]: v.numpy() for v in model.variables}
    endpoints = {}
    for i in range(1, 6):
        groups = 2 if i in (2, 4, 5) else 1
        parts = np.split(x, groups, -1)
        outputs = []
        for g, part in enumerate(parts, 1):
            y = conv(part, values[f"conv{i}/conv{g}/kernel"], stride if i == 1 else 1, i > 1)
            outputs.append(y + values.get(f"conv{i}/conv{g}/bias", 0))
        x = np.concatenate(outputs, -1)
        if f"conv{i}/bn/gamma" in values:
            gamma, beta, mean, variance = (
                values[f"conv{i}/bn/{key}"]
                for key in "gamma beta moving_mean moving_variance".split()
            )
            if training:
                mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
            x = gamma * (x - mean) / np.sqrt(variance + model.bn_epsilon) + beta
        endpoints[f"conv{i}"] = x = np.maximum(x, 0)
        if i in (1, 2, 5):
            x = pool(x)
        if i < 3 and model.name == "alexnet_lrn":
            x = tf.nn.local_response_normalization(
                x.astype(np.float32), 2, 1.0, 1e-4 / 5, 0.75
            ).numpy()
    return {**endpoints, "pre_logits": x.mean((1, 2))}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "name,stem,size", [("alexnet", "imagenet", (71, 90)), ("alexnet_lrn", "patch", (40, 47))]
)
def test_equals_a_naive_network(float64, name, stem, size, training):
    model = build(name, 1 / 16, stem, bn_epsilon=0.01)
    images = np.random.default_rng(0).uniform(-1, 1, [3, *size, 3])
    model.build(images.shape)
    randomise(model)
    found = model(tf.constant(images), training)
    expected = naive(model, images, training, {"imagenet": 4, "patch": 2}[stem])
    for endpoint in ENDPOINTS:
        np.testing.assert_allclose(
            found[endpoint], expected[endpoint], rtol=1e-5, atol=1e-5, err_msg=endpoint
        )


def test_without_groups_in_halves():
    """The kernels of split-brain's halves, of L and of ab: 933,552 and 939,360 (Zhang et al., arXiv
    1611.09842, Table 6)."""
    for channels, expected in ((1, 933552), (2, 939360)):
        model = build("alexnet", 0.5, conv_groups=1)
        model.build((None, None, None, channels))
        kernels = [v for v in model.trainable_variables if v.shape.rank == 4]
        assert sum(int(np.prod(v.shape)) for v in kernels) == expected
    with pytest.raises(UserError, match="conv_groups=3: choose 1 or 2"):
        build("alexnet", conv_groups=3)


def test_its_stems():
    with pytest.raises(UserError, match="stem=stride16: choose one of imagenet, patch, small"):
        build("alexnet", stem="stride16")
