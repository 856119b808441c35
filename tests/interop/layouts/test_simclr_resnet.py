"""SimCLR's numbered names, counted here as its resnet.py makes its layers."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.interop import load
from tfssl.interop.formats import weights

UNITS, WIDTH = (3, 4, 6, 3), 4  # ResNet-50 of a sixteenth of the width


def simclr(selective, scope):
    """({name: value}, {our name: value}): of each layer a kernel and a normalization, in the order
    of conv2d_fixed_padding and batch_norm_relu in resnet.py."""
    theirs, ours, rng, count = (
        {},
        {},
        np.random.default_rng(0),
        {"conv2d": 0, "batch_normalization": 0},
    )

    def number(layer):
        count[layer] += 1
        return f"{scope}{layer}" + (f"_{count[layer] - 1}" if count[layer] > 1 else "")

    def conv(name, size, inputs, outputs):
        value = rng.normal(size=[size, size, inputs, outputs]).astype(np.float32)
        theirs[number("conv2d") + "/kernel"] = ours[f"{name}/kernel"] = value

    def norm(name, channels):
        layer = number("batch_normalization")
        for part in ("gamma", "beta", "moving_mean", "moving_variance"):
            value = rng.uniform(0.5, 1.5, channels).astype(np.float32)
            theirs[f"{layer}/{part}"] = ours[f"{name}/{part}"] = value

    if selective:
        for i, inputs in ((1, 3), (2, WIDTH // 2)):
            conv(f"deep_root/conv{i}", 3, inputs, WIDTH // 2)
            norm(f"deep_root/bn{i}", WIDTH // 2)
        conv("root_conv", 3, WIDTH // 2, WIDTH)
    else:
        conv("root_conv", 7, 3, WIDTH)
    norm("root_bn", WIDTH)
    inputs = WIDTH
    for block, units in enumerate(UNITS):
        filters = WIDTH * 2**block
        for unit in range(units):
            name = f"block{block + 1}/unit{unit}"
            if unit == 0:  # the shortcut is made first
                conv(f"{name}/projection", 1, inputs, 4 * filters)
                norm(f"{name}/projection_bn", 4 * filters)
            conv(f"{name}/conv1", 1, inputs, filters)
            norm(f"{name}/bn1", filters)
            if selective:
                conv(f"{name}/conv2/conv", 3, filters, 2 * filters)
                norm(f"{name}/conv2/bn", 2 * filters)
                conv(f"{name}/conv2/squeeze", 1, filters, 32)
                norm(f"{name}/conv2/squeeze_bn", 32)
                conv(f"{name}/conv2/attend", 1, 32, 2 * filters)
            else:
                conv(f"{name}/conv2", 3, filters, filters)
                norm(f"{name}/bn2", filters)
            conv(f"{name}/conv3", 1, filters, 4 * filters)
            norm(f"{name}/bn3", 4 * filters)
            inputs = 4 * filters
    return theirs, ours


def check(network, ours):
    found = {v.name.split("/", 1)[1].split(":")[0]: v.numpy() for v in network.variables}
    assert set(found) == set(ours)
    for name, value in ours.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_version_1_from_its_checkpoint(tmp_path):
    theirs, ours = simclr(False, "base_model/")
    more = {
        "base_model/conv2d/kernel/Momentum": np.ones([7, 7, 3, WIDTH], np.float32),
        "head_contrastive/nl_0/dense/kernel": np.ones([4, 4], np.float32),
        "head_contrastive/batch_normalization/gamma": np.ones(4, np.float32),
        "global_step": np.int64(9),
    }
    prefix = str(tmp_path / "model.ckpt-9")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variables = [
            tf.compat.v1.get_variable(name, initializer=tf.constant(value))
            for name, value in {**theirs, **more}.items()
        ]
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver(variables).save(session, prefix)
    file = weights.read(prefix)
    plan = load.plan(file)
    network, unused = load.build(file, plan)
    assert (plan.family, plan.normalization) == ("simclr_v1", "none")
    assert network.config().items() >= {
        "name": "resnet50_v1", "width_multiplier": WIDTH / 64, "padding": "simclr", "bn_epsilon": 1e-5,
    }.items()  # fmt: skip
    check(network, ours)
    assert [line.split(" (")[0] for line in unused] == ["unknown: 1", "heads: 2"]


def test_version_2_with_selective_kernels():
    theirs, ours = simclr(True, "resnet/some_layer/")
    theirs["projection_head/conv2d_99/kernel"] = np.ones([1, 1, 4, 4], np.float32)
    size = sum(x.nbytes for x in theirs.values())
    file = weights.Weights("memory", "tensorflow", theirs, size, "")
    network, _ = load.build(file, load.plan(file))
    assert network.config()["sk_ratio"] == 0.0625
    check(network, ours)


def test_another_number_of_convolutions():
    theirs, _ = simclr(False, "")
    file = weights.Weights("memory", "tensorflow", dict(list(theirs.items())[:-5]), 1 << 30, "")
    with pytest.raises(UserError, match="SimCLR network of 52 convolutions"):
        load.plan(file)
