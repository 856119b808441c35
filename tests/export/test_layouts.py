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
VIT = {"name": "vit_tiny", "depth": 2, "patch": 4, "grid": 4, "layer_scale": 0.1}


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


def test_registers_as_in_timm(tmp_path):
    """Which has no position of the class token beside registers: it is added to the token, and the
    network that is read back computes the same."""
    network = built(**VIT, registers=3)
    file = weights.read(layouts.save("torch", network, str(tmp_path / "t")))
    assert file.tensors["pos_embed"].shape == (1, 16, 192)
    assert file.tensors["reg_token"].shape == (1, 3, 192)
    theirs, unused = load.build(file, load.plan(file, "timm"))
    images = tf.constant(np.random.default_rng(0).normal(size=[2, 16, 16, 3]), tf.float32)
    assert not unused and theirs.registers == 3
    for name, expected in network(images, training=False).items():
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(theirs(images, training=False)[name], expected, atol=atol)


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


def padded(x, kernel, stride=1, dilation=1):
    """PyTorch's Conv2d(padding=dilation * (k // 2)) with a kernel OIHW, of maps NHWC."""
    kernel = kernel.transpose(2, 3, 1, 0)
    sides = [dilation * (kernel.shape[0] // 2)] * 2
    x = tf.pad(x, [[0, 0], sides, sides, [0, 0]])
    return tf.nn.conv2d(x, kernel, stride, "VALID", dilations=dilation)


def normalized(tensors, name, x):
    """PyTorch's BatchNorm2d in inference."""
    gamma, beta, mean, variance = (
        tensors[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta


def torchs_answer(tensors, images, units, dilate=(False,) * 3):
    """What torchvision's ResNet of bottlenecks computes, line by line, with
    `replace_stride_with_dilation`."""
    x = tf.nn.relu(normalized(tensors, "bn1", padded(images, tensors["conv1.weight"], 2)))
    x = tf.nn.max_pool2d(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), 3, 2, "VALID")
    dilation = 1
    for i, count in enumerate(units):
        stride, before = (2 if i else 1), dilation
        if i and dilate[i - 1]:
            stride, dilation = 1, dilation * 2
        for j in range(count):
            key, first = f"layer{i + 1}.{j}", j == 0
            y = padded(x, tensors[f"{key}.conv1.weight"])
            y = tf.nn.relu(normalized(tensors, f"{key}.bn1", y))
            middle = (stride, before) if first else (1, dilation)
            y = padded(y, tensors[f"{key}.conv2.weight"], *middle)
            y = tf.nn.relu(normalized(tensors, f"{key}.bn2", y))
            y = normalized(tensors, f"{key}.bn3", padded(y, tensors[f"{key}.conv3.weight"]))
            if first:
                x = padded(x, tensors[f"{key}.downsample.0.weight"], stride)
                x = normalized(tensors, f"{key}.downsample.1", x)
            x = tf.nn.relu(x + y)
    return tf.reduce_mean(x, [1, 2])


@pytest.mark.parametrize(
    "stride,dilate",
    [(0, (False, False, False)), (16, (False, False, True)), (8, (False, True, True))],
)
def test_torchvision_computes_the_same_with_the_settings_that_are_told(tmp_path, stride, dilate):
    network = built(**RESNET, output_stride=stride)
    file = weights.read(layouts.save("torch", network, str(tmp_path / "t")))
    told = f"replace_stride_with_dilation={list(dilate)}"
    assert (told in file.texts.get("requirements", "")) == bool(stride)
    images = tf.constant(np.random.default_rng(0).normal(size=[2, 70, 97, 3]), tf.float32)
    expected = network(images, training=False)["pre_logits"]
    found = torchs_answer(file.tensors, images, (3, 4, 6, 3), dilate)
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
    if stride:  # torchvision's defaults would compute something else
        assert np.abs(torchs_answer(file.tensors, images, (3, 4, 6, 3)) - expected).max() > 0.01


@pytest.mark.parametrize(
    "settings,told",
    [
        ({}, None),
        ({"heads": 3}, None),
        ({"heads": 6}, "num_heads=6"),
        ({"width_multiplier": 2.0}, "num_heads=3"),  # the shapes of timm's vit_small, of six
        ({"width_multiplier": 2.0, "heads": 6}, None),
        ({"registers": 2}, "reg_tokens=2, no_embed_class=True"),
        ({"pool": "mean"}, "global_pool='avg', fc_norm=False"),
        (
            {"pool": "mean", "class_token": False},
            "global_pool='avg', fc_norm=False, class_token=False",
        ),
    ],
)
def test_what_no_shape_tells_of_a_vit_is_told(tmp_path, settings, told):
    """timm: heads of 64 channels in vit_tiny, vit_small, vit_base and vit_large; the class token
    is returned, and with global_pool='avg' alone the mean is normalized, rather than the tokens."""
    network = built(**{"name": "vit_tiny", "depth": 1, "patch": 4, "grid": 4, **settings})
    expected = [] if told is None else [f"timm's network has to be built with {told}"]
    assert layouts.requirements("torch", network) == expected
    file = weights.read(layouts.save("torch", network, str(tmp_path / "t")))
    assert file.texts.get("requirements") == (expected[0] if expected else None)


def test_fixed_positions_of_other_channels():
    network = backbones.build("vit_tiny", depth=1, patch=4, positions="fixed")
    network.build((None, None, None, 2))
    tensors = layouts.torch_tensors(network, 16)
    assert tensors["patch_embed.proj.weight"].shape == (192, 2, 4, 4)


NECKED = {"name": "resnet18_v1", "width_multiplier": 1 / 16, "neck": "fpn", "neck_width": 6}


def test_a_pyramid_in_detectron2(tmp_path):
    """p3 to p5 as its FPN computes them: a lateral and its normalization, plus the coarser sum,
    each location four times; an output and its normalization."""
    network = built(**NECKED, neck_tower=1)
    with open(layouts.save("detectron2", network, str(tmp_path / "d")), "rb") as f:
        content = pickle.load(f)
    told = " ".join(content["requirements"])
    assert "MODEL.FPN.OUT_CHANNELS 6" in told and "STRIDE_IN_1X1" not in told
    assert "p6 is left out" in told and "tower of its neck is left out" in told
    tensors = content["model"]
    trunk = layouts.detectron2_tensors(network.trunk)
    norm = {f"norm.{part}": (6,) for part in ("weight", "bias", "running_mean", "running_var")}
    shapes = {}
    for level, channels in ((3, 8), (4, 16), (5, 32)):
        for part, kernel in (("lateral", (6, channels, 1, 1)), ("output", (6, 6, 3, 3))):
            for name, shape in {"weight": kernel, **norm}.items():
                shapes[f"fpn_{part}{level}.{name}"] = shape
    assert {name: x.shape for name, x in tensors.items() if name not in trunk} == shapes
    for name, x in trunk.items():
        np.testing.assert_array_equal(tensors[name], x)

    images = tf.constant(np.random.default_rng(0).normal(size=[2, 64, 96, 3]), tf.float32)
    endpoints = network(images, training=False)
    levels, coarser = {}, None
    for level in (5, 4, 3):
        lateral = padded(endpoints[f"block{level - 1}"], tensors[f"fpn_lateral{level}.weight"])
        total = normalized(tensors, f"fpn_lateral{level}.norm", lateral)
        if coarser is not None:
            total += np.repeat(np.repeat(coarser, 2, 1), 2, 2)
        coarser = np.asarray(total)
        output = padded(coarser, tensors[f"fpn_output{level}.weight"])
        levels[f"p{level}"] = normalized(tensors, f"fpn_output{level}.norm", output)
    for name, found in levels.items():
        expected = endpoints[name].numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


def test_a_neck_is_left_out_in_pytorch(tmp_path):
    network = built(**NECKED)
    file = weights.read(layouts.save("torch", network, str(tmp_path / "t")))
    assert "the neck (fpn) is left out" in file.texts["requirements"]
    alone = layouts.torch_tensors(network.trunk)
    assert list(file.tensors) == list(alone)
    for name, x in alone.items():
        np.testing.assert_array_equal(file.tensors[name], x)


def test_detectron2_is_told_its_settings(tmp_path):
    assert layouts.requirements("detectron2", built(**RESNET)) == [
        "detectron2's network needs MODEL.RESNETS.STRIDE_IN_1X1 False"
    ]
    (told,) = layouts.requirements(
        "detectron2", built(name="resnet18_v1", width_multiplier=1 / 16, stem="stride16")
    )
    assert "stride_per_block=[1, 1]" in told


def test_networks_without_a_counterpart(tmp_path):
    basic = {"name": "resnet18_v1", "width_multiplier": 1 / 16}
    for layout, settings, words in (
        ("torch", {**basic, "name": "resnet18_v2"}, "no counterpart in this layout"),
        ("torch", {**NECKED, "name": "resnet18_v2"}, "no counterpart in this layout"),
        ("torch", {**RESNET, "padding": "same"}, "padding=same has no counterpart"),
        ("torch", {**RESNET, "sk_ratio": 0.0625}, "no counterpart in this layout"),
        ("torch", {**basic, "stem": "patch"}, "stem=patch has no counterpart"),
        ("torch", {**basic, "stem": "stride16"}, "stem=stride16 has no counterpart"),
        ("torch", {**basic, "output_stride": 16}, "output_stride=16 has no counterpart"),
        ("torch", {**VIT, "representation_size": 8}, "representation_size=8 has no counterpart"),
        ("detectron2", {**basic, "stem": "small"}, "stem=small has no counterpart in detectron2"),
        ("detectron2", {**basic, "stem": "patch"}, "stem=patch has no counterpart"),
        ("detectron2", {**RESNET, "output_stride": 16}, "output_stride=16 has no counterpart"),
        (
            "detectron2",
            {**NECKED, "stem": "stride16"},
            "neck=fpn has no.*levels are p2, p3, p4, p5",
        ),
    ):
        with pytest.raises(UserError, match=words):
            layouts.save(layout, built(**settings), str(tmp_path / "t"))
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
    flags = ("--random_init", "--layout=detectron2", f"--export_dir={tmp_path}/d", "--neck=fpn")
    done = tfssl_command("export", *flags, "--backbone=resnet18_v1", "--width_multiplier=0.0625")
    assert done.returncode == 0, done.stderr
    assert "MODEL.FPN.OUT_CHANNELS 256" in done.stdout
    flags = ("--random_init", "--layout=torch", f"--export_dir={tmp_path}/r", "--stem=small")
    done = tfssl_command("export", *flags, "--backbone=resnet18_v1", "--width_multiplier=0.0625")
    assert done.returncode == 0, done.stderr
    assert weights.read(str(tmp_path / "r" / "model.safetensors")).texts["stem"] == "small"
