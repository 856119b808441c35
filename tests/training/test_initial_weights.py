"""Starting from a module: all of it, what matches of it, or a clear refusal."""

import types

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, export, pretext
from tfssl.errors import UserError
from tfssl.training import initial_weights as init


def rotation(backbone):
    model = pretext.build("rotation", backbone, image_size=16)
    model.prepare()
    return model


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    tf.keras.utils.set_random_seed(1)
    return export.save(
        rotation(backbones.build("resnet18_v2", 0.125, "small")), tmp_path_factory.mktemp("m") / "1"
    )


def test_the_same_network_takes_every_variable(module):
    tf.keras.utils.set_random_seed(2)
    model = rotation(backbones.build("resnet18_v2", 0.125, "small"))
    init.from_module(model, module)
    for mine, theirs in zip(model.backbone.variables, tf.saved_model.load(module).variables):
        np.testing.assert_array_equal(mine.numpy(), theirs.numpy())


def test_another_depth_takes_the_layers_that_match(module, capsys):
    model = rotation(backbones.build("resnet34_v2", 0.125, "small"))
    backbone = model.backbone
    untouched = backbone.root_conv.kernel.numpy()
    init.from_module(model, module)
    theirs = {v.name.split("/", 1)[1]: v for v in tf.saved_model.load(module).variables}
    taken = [v for v in backbone.variables if v.name.split("/", 1)[1] in theirs]
    assert len(taken) == len(theirs) and len(theirs) < len(backbone.variables)
    for variable in taken:
        np.testing.assert_array_equal(
            variable.numpy(), theirs[variable.name.split("/", 1)[1]].numpy()
        )
    assert not np.array_equal(untouched, backbone.root_conv.kernel)
    assert f"initialised {len(theirs)} of {len(backbone.variables)}" in capsys.readouterr().out


def test_nothing_in_common_is_refused(module):
    with pytest.raises(UserError, match="none of its"):
        init.from_module(rotation(backbones.build("resnet18_v2", 0.25, "small")), module)


def test_of_two_networks_each_takes_its_own(monkeypatch):
    """By name, which is the same in both, where another layer is too much; an upper layer may have
    another shape."""

    def network(values, extra=()):
        shapes = {
            "conv/kernel": [2, 3],
            "head/kernel": [3, 4 + len(extra)],
            **dict.fromkeys(extra, [5]),
        }
        with tf.name_scope("net"):
            variables = [tf.Variable(tf.fill(s, values), name=name) for name, s in shapes.items()]
        return types.SimpleNamespace(name="net", variables=variables)

    theirs, ours = [network(1.0), network(2.0)], [network(-1.0, ["more"]), network(-1.0, ["more"])]
    module = types.SimpleNamespace(
        pixels={"channels": 3}, variables=[v for n in theirs for v in n.variables]
    )
    monkeypatch.setattr("tfssl.hub.load.load", lambda handle: module)
    init.from_module(types.SimpleNamespace(published=tuple(ours), backbone=ours[0]), "handle")
    assert [[float(v.numpy().max()) for v in n.variables] for n in ours] == [
        [1, -1, -1],
        [2, -1, -1],
    ]


@pytest.mark.parametrize("channels", [1, 5])
def test_a_stem_for_another_number_of_channels_answers_gray_images_as_before(module, channels):
    model = rotation(backbones.build("resnet18_v2", 0.125, "small", input_channels=channels))
    init.from_module(model, module)
    stem = model.backbone.root_conv.kernel.numpy()
    (theirs,) = (
        v.numpy() for v in tf.saved_model.load(module).variables if "root_conv/kernel" in v.name
    )
    assert stem.shape[2] == channels
    np.testing.assert_allclose(stem.sum(2), theirs.sum(2), rtol=1e-5, atol=1e-6)
    # The stem is linear: with all channels equal, only that sum counts, in every endpoint.
    gray = np.random.default_rng(0).uniform(size=[2, 16, 16, 1]).astype(np.float32)
    found = model.encode(np.repeat(gray, channels, -1))
    wanted = tf.saved_model.load(module).endpoints(np.repeat(gray, 3, -1))
    for name, value in found.items():
        np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-4, err_msg=name)
