"""Networks in the layouts of other libraries: back again they are the same bits, and with the
weights of PyTorch's epsilon the same network."""

import json
import pickle

import numpy as np
import pytest
import tensorflow as tf
from networks import randomise

from tfssl import backbones, export, pretext
from tfssl.backbones.vit import sinusoids
from tfssl.errors import UserError
from tfssl.export import layouts
from tfssl.export.network import save_network
from tfssl.interop import load
from tfssl.interop.formats import weights

RESNET = {"name": "resnet50_v1", "width_multiplier": 1 / 32}
VIT = {"name": "vit_tiny", "depth": 2, "patch": 4, "grid": 4, "registers": 1, "layer_scale": 0.1}


def built(**settings):
    network = backbones.build(**settings)
    network.build((None, None, None, 3))
    return randomise(network)


@pytest.mark.parametrize(
    "settings,family",
    [
        ({"name": "resnet18_v1", "width_multiplier": 1 / 16, "bn_epsilon": 1e-5}, None),
        (VIT, "timm"),
    ],
)
def test_there_and_back_every_bit_is_the_same(tmp_path, settings, family):
    network = built(**settings)
    module = save_network(
        network, tmp_path / "m", (0.5,) * 3, (0.25,) * 3, 16,
        facts={"source": {"family": "mine", "license": "MIT"}},
    )  # fmt: skip
    again, facts = layouts.of_module(module)
    file = weights.read(layouts.save("torch", again, str(tmp_path / "t"), facts["normalization"]))
    assert file.texts["mean"] == "0.5,0.5,0.5" and file.texts["std"] == "0.25,0.25,0.25"
    last, unused = load.build(file, load.plan(file, family))
    assert not unused and [v.name for v in last.variables] == [v.name for v in network.variables]
    for ours, theirs in zip(last.variables, network.variables):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), ours.name


def test_a_runs_epsilon_becomes_pytorchs(tmp_path):
    """sqrt(v + 0.001) = sqrt((v + 0.00099) + 0.00001): of small variances it is all the same."""
    network = built(**RESNET, bn_epsilon=1e-3)
    for v in network.variables:
        if "moving_variance" in v.name:
            v.assign(v / 1000)
    file = weights.read(layouts.save("torch", network, str(tmp_path / "t")))
    theirs, _ = load.build(file, load.plan(file))
    assert theirs.bn_epsilon == 1e-5
    images = tf.constant(np.random.default_rng(0).normal(size=[2, 64, 64, 3]), tf.float32)
    for name, expected in network(images, training=False).items():
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(theirs(images, training=False)[name], expected, atol=atol)


def test_fixed_positions_become_weights(tmp_path):
    network = built(name="vit_tiny", depth=1, patch=4, positions="fixed")
    tensors = layouts.torch_tensors(network, 16)
    np.testing.assert_array_equal(tensors["pos_embed"][0, 0], np.zeros(192))
    np.testing.assert_allclose(
        tensors["pos_embed"][0, 1:], np.reshape(sinusoids(4, 4, 192), [16, 192]), atol=1e-7
    )
    np.testing.assert_array_equal(tensors["norm.weight"], network.last_norm.gamma)


def test_detectron2_has_what_its_converter_writes(tmp_path):
    network = built(**RESNET)
    with open(layouts.save("detectron2", network, str(tmp_path / "d")), "rb") as f:
        found = pickle.load(f)
    assert found["matching_heuristics"] is True
    expected = {}
    for k, x in layouts.torch_tensors(network).items():  # as the converter renames, one by one
        if "layer" not in k:
            k = "stem." + k
        for t in (1, 2, 3, 4):
            k = k.replace(f"layer{t}", f"res{t + 1}")
        for t in (1, 2, 3):
            k = k.replace(f"bn{t}", f"conv{t}.norm")
        expected[k.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")] = x
    assert list(found["model"]) == list(expected)
    for k, x in expected.items():
        assert type(found["model"][k]) is np.ndarray
        np.testing.assert_array_equal(found["model"][k], x)


def test_networks_without_a_counterpart(tmp_path):
    for settings, words in (
        ({"name": "resnet18_v2", "width_multiplier": 1 / 16}, "no counterpart in this layout"),
        ({**RESNET, "padding": "same"}, "padding=same has no counterpart"),
        ({**RESNET, "sk_ratio": 0.0625}, "no counterpart in this layout"),
    ):
        with pytest.raises(UserError, match=words):
            layouts.save("torch", built(**settings), str(tmp_path / "t"))
    with pytest.raises(UserError, match="is for ResNets"):
        layouts.save("detectron2", built(**VIT), str(tmp_path / "t"))
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="never changes"):
        layouts.save("torch", built(**RESNET), str(tmp_path / "there"))


def test_a_runs_module_tells_its_network(tmp_path, tfssl_command):
    model = pretext.build("rotation", backbones.build("resnet18_v1", 1 / 16), image_size=32)
    module = export.save(model, tmp_path / "m")
    facts = json.loads((tmp_path / "m" / "assets" / "tfssl.json").read_text())
    assert facts["normalization"] == {"mean": [0.5] * 3, "std": [0.5] * 3}  # to [-1, 1]
    network, _ = layouts.of_module(module)
    for ours, theirs in zip(network.variables, model.backbone.variables):
        np.testing.assert_array_equal(ours, theirs)
    done = tfssl_command(
        "export", f"--module={module}", "--layout=torch", f"--export_dir={tmp_path}/t"
    )
    assert done.returncode == 0, done.stderr
    assert "mean [0.5, 0.5, 0.5]" in done.stdout
    assert len(weights.read(str(tmp_path / "t" / "model.safetensors")).tensors) == 100
    flags = ("--random_init", "--layout=torch", f"--export_dir={tmp_path}/r", "--stem=small")
    done = tfssl_command("export", *flags, "--backbone=resnet18_v1", "--width_multiplier=0.0625")
    assert done.returncode == 0, done.stderr
    assert weights.read(str(tmp_path / "r" / "model.safetensors")).texts["stem"] == "small"
