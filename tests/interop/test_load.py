"""Weights under PyTorch's names against what torchvision and timm compute with them: fixtures made
once (make_fixtures.py)."""

import json
import pathlib
import sys

import named_weights
import numpy as np
import pytest
import tensorflow as tf

from tfssl.errors import UserError
from tfssl.interop import load
from tfssl.interop.families import Torchvision
from tfssl.interop.formats import safetensors, weights
from tfssl.interop.layouts.torch_resnet import TorchResNet

FIXTURES = pathlib.Path(__file__).parent / "fixtures"


def fixture(name):
    """({name: tensor}, {endpoint: values of some places}, {endpoint: mean of its absolute values})
    of a network of PyTorch's."""
    with np.load(FIXTURES / f"{name}.npz") as file:
        names = json.loads(str(file["names"]))
        samples = {k: file[k] for k in file.files if k != "names" and not k.startswith("scale/")}
        scale = {k: float(file[f"scale/{k}"]) for k in samples}
    return {name: named_weights.value(name, shape) for name, shape in names}, samples, scale


def held(tensors, prefix=""):
    """A file in memory."""
    tensors = {f"{prefix}{name}": x for name, x in tensors.items()}
    size = sum(x.nbytes for x in tensors.values())
    return weights.Weights("memory", "torch", tensors, size, "0" * 64)


def loaded(file, family=None):
    return load.build(file, load.plan(file, family))


@pytest.mark.parametrize(
    "name,prefix,family,config",
    [
        ("resnet18", "", None, {"name": "resnet18_v1", "width_multiplier": 1.0}),
        ("resnet50", "state_dict/module.encoder_q.", None, {"name": "resnet50_v1"}),
        ("vit_tiny", "", "dino", {"name": "vit_tiny", "patch": 16, "grid": 4, "heads": 3}),
        ("vit_registers", "teacher/backbone.", None, {"depth": 2, "registers": 4, "patch": 14}),
    ],
)
def test_every_endpoint_equals_pytorchs(name, prefix, family, config):
    tensors, samples, scale = fixture(name)
    network, unused = loaded(held(tensors, prefix), family)
    assert config.items() <= network.config().items()
    assert len(unused) == 1 and ": 2 (" in unused[0]  # fc, head: of the classifier
    size = 56 if name == "vit_registers" else 64
    endpoints = network(tf.constant(named_weights.images(size)), training=False)
    assert list(endpoints) == list(samples)
    for key, expected in samples.items():
        found = named_weights.sample(endpoints[key])
        error = np.abs(found - expected).max()
        assert error < 1e-4 and error < 1e-4 * max(1.0, scale[key]), (key, error)


def test_vit_of_other_heads_is_another_network():
    """MoCo v3's ViT-S has twelve heads, which no shape tells: here six of ViT-Ti's three."""
    tensors, samples, _ = fixture("vit_tiny_6_heads")
    file = held(tensors)
    plan = load.plan(file, "dino")
    six = load.dataclasses.replace(plan, settings={**plan.settings, "heads": 6})
    images = tf.constant(named_weights.images(64))
    for what, equal in ((six, True), (plan, False)):
        found = named_weights.sample(load.build(file, what)[0](images)["pre_logits"])
        assert bool(np.abs(found - samples["pre_logits"]).max() < 1e-4) == equal


def tiny(units=(2, 2, 2, 2), width=4, bottleneck=False):
    """The tensors of a small ResNet under torchvision's names."""
    from tfssl import backbones

    name = {(2, 2, 2, 2): "resnet18_v1", (3, 4, 6, 3): "resnet50_v1"}[units]
    network = backbones.build(name, width / 64, bn_epsilon=1e-5)
    network.build((None, None, None, 3))
    links = TorchResNet().links(network)
    return {
        link.key: named_weights.value(
            link.key, link.form.write([v.numpy() for v in link.variables]).shape
        )
        for link in links
    }


def test_prefixes_tell_the_family():
    tensors = tiny()
    found = {
        prefix: load.plan(held(tensors, prefix)).family
        for prefix in (
            "",
            "module.",
            "state_dict/module.encoder_q.",
            "state_dict/module.base_encoder.",
            "state_dict/module.encoder.",
            "model/module.backbone.",
            "teacher/backbone.",
        )
    }
    assert list(found.values()) == [
        "torchvision", "torchvision", "moco_v1", "moco_v3", "simsiam", "torchvision", "dino",
    ]  # fmt: skip


def test_heads_are_told_by_name():
    tensors = tiny()
    more = {
        "module.encoder_k.conv1.weight": 0,
        "module.queue": 0,
        "module.encoder_q.fc.0.weight": 0,
    }
    file = held(
        {f"module.encoder_q.{k}": x for k, x in tensors.items()}
        | {k: np.zeros(1, np.float32) for k in [*more, "module.encoder_q.bn1.num_batches_tracked"]}
    )
    _, unused = loaded(file)
    assert [line.split(" (")[0] for line in unused] == [
        "momentum encoder: 1",
        "projection head: 1",
        "queue: 1",
    ]


def test_what_is_refused():
    def message(tensors, family=None):
        with pytest.raises(UserError) as caught:
            loaded(held(tensors), family)
        return str(caught.value)

    whole = tiny()
    without = {k: x for k, x in whole.items() if k != "layer2.0.downsample.1.bias"}
    assert "lacks 1 of 100 weights of resnet18_v1: layer2.0.downsample.1.bias" in message(without)
    narrow = {**whole, "layer1.0.conv1.weight": whole["layer1.0.conv1.weight"][:2]}
    assert "layer1.0.conv1.weight has the shape [2, 4, 3, 3]" in message(narrow)
    assert "layer1.0.se.fc1.weight" in message(
        {**whole, "layer1.0.se.fc1.weight": whole["bn1.bias"]}
    )
    fewer = {k: x for k, x in whole.items() if not k.startswith("layer4.1")}
    assert "no ResNet with [2, 2, 2, 1] basic units" in message(fewer)
    assert "none of its 2 names" in message({"a": np.zeros(1), "b": np.zeros(1)})
    assert "unknown family 'moco'" in message(whole, "moco")
    # One tensor that says the network is wider than the whole file.
    wide = {**whole, "conv1.weight": np.zeros([1 << 16, 1, 1, 1], np.float32)}
    assert "too few for the" in message(wide)
    vit = {k: x for k, x in fixture("vit_tiny")[0].items()}
    assert "dino, mae, timm, which differ" in message(vit)
    vit["patch_embed.proj.weight"] = np.zeros([100, 3, 16, 16], np.float32)
    assert "a ViT of 100 channels" in message(vit, "dino")


def test_positions_without_the_class_tokens():
    """timm's no_embed_class: the class token gets none."""
    tensors = fixture("vit_tiny")[0]
    tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    network, _ = loaded(held(tensors), "dino")
    np.testing.assert_array_equal(network.cls_position, np.zeros([1, 1, 192]))
    np.testing.assert_array_equal(
        network.patch_positions.numpy().reshape(1, 16, 192), tensors["pos_embed"]
    )


class Mine(Torchvision):
    """Somebody's own files."""

    prefix = r"student\."
    normalization = "half"


def test_a_family_of_ones_own():
    family = f"{Mine.__module__}:Mine"
    sys.modules.setdefault(Mine.__module__, sys.modules[__name__])
    plan = load.plan(held(tiny(), "student."), family)
    assert (plan.family, plan.normalization, plan.prefix) == (family, "half", "student.")
    with pytest.raises(UserError, match="none of its 100 names .* network of any family"):
        load.plan(held(tiny(), "student."))


def test_a_file_on_disk(tmp_path):
    path = str(tmp_path / "x.safetensors")
    safetensors.write(path, tiny())
    network, unused = loaded(weights.read(path))
    assert network.config()["name"] == "resnet18_v1" and not unused
    np.testing.assert_array_equal(
        network.root_conv.kernel.numpy().transpose(3, 2, 0, 1), tiny()["conv1.weight"]
    )
