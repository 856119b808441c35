"""`tfssl-import` as a user runs it: the module is the network, evaluates, and starts a training."""

import json
import pickle

import named_weights
import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.backbones.hub import Hub
from tfssl.classifiers.classifier import Classifier
from tfssl.export import layouts
from tfssl.export.module import save_classifier
from tfssl.hub import load as modules
from tfssl.interop import load
from tfssl.interop.formats import safetensors, weights
from tfssl.interop.layouts.torch_resnet import TorchResNet
from tfssl.training import initial_weights

MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def network():
    """A small ResNet with weights of its names."""
    network = backbones.build("resnet18_v1", 1 / 16, "small", bn_epsilon=1e-5)
    network.build((None, None, None, 3))
    for link in TorchResNet().links(network):
        shape = link.form.write([v.numpy() for v in link.variables]).shape
        value = link.form.read(named_weights.value(link.key, shape), [link.variables[0].shape])[0]
        link.variables[0].assign(value)
    return network


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    tensors = {k: v for link in TorchResNet().links(network) for k, v in [tensor(link)]}
    tensors = {f"module.encoder_q.{name}": x for name, x in tensors.items()}
    path = tmp_path_factory.mktemp("weights") / "moco.safetensors"
    safetensors.write(path, {**tensors, "module.encoder_q.fc.2.bias": np.zeros(3)})
    return path


def tensor(link):
    return link.key, link.form.write([v.numpy() for v in link.variables])


@pytest.fixture(scope="module")
def imported(file, tmp_path_factory, tfssl_command):
    folder = tmp_path_factory.mktemp("modules") / "moco"
    done = tfssl_command(
        "import_weights", f"--weights={file}", f"--export_dir={folder}", "--image_size=16",
        "--license=CC-BY-NC-4.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder, done


def test_the_module_is_the_network(network, imported, photos, tmp_path, tfssl_command):
    folder, done = imported
    assert "not used: projection head: 1 (module.encoder_q.fc.2.bias)" in done.stdout
    facts = json.loads((folder / "assets" / "tfssl.json").read_text())
    assert facts["source"]["license"] == "CC-BY-NC-4.0" and len(facts["source"]["sha256"]) == 64
    assert (facts["crop"], facts["resize"], facts["source"]["family"]) == (16, 18, "moco_v1")
    images = np.random.default_rng(0).uniform(size=[2, 16, 16, 3]).astype(np.float32)
    module = modules.load(folder)
    found = module.endpoints(tf.constant(images))
    for name, expected in network(tf.constant((images - MEAN) / STD), training=False).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-5)

    model = pretext.build(
        "rotation", backbones.build("resnet18_v1", 1 / 16, "small", bn_epsilon=1e-5), image_size=16
    )
    model.prepare()
    initial_weights.from_module(model, str(folder))
    for ours, theirs in zip(model.backbone.variables, network.variables):
        np.testing.assert_array_equal(ours, theirs)

    hub = Hub(module, 16)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(hub(tf.constant(images), training=True)["pre_logits"] ** 2)
    assert None not in tape.gradient(loss, hub.trainable_weights)
    assert len(hub.trainable_weights) == len(network.trainable_variables)

    done = tfssl_command(
        "evaluate", f"--module={folder}", f"--dataset=folder:{photos}", "--train_split=train[:50%]",
        "--test_split=train[50%:]", "--protocol=knn", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    assert {result["endpoint"] for result in results} >= set(network.endpoint_names)


def test_fine_tuned_and_exported_it_is_the_same_bits(network, file, imported, tmp_path):
    """With a frozen encoder: from the file to a module, a classifier, PyTorch's layout, and back."""
    model = Classifier(Hub(modules.load(imported[0]), 16, trainable=False), 2, image_size=16)
    model.prepare()
    classifier = save_classifier(model, tmp_path / "classifier")
    encoder, facts = layouts.of_module(classifier)
    assert facts["normalization"]["mean"] == pytest.approx(MEAN)
    written = weights.read(layouts.save("torch", encoder, str(tmp_path / "torch")))
    original = weights.read(str(file)).tensors
    for name, x in written.tensors.items():
        assert x.tobytes() == original[f"module.encoder_q.{name}"].tobytes(), name
    again, _ = load.build(written, load.plan(written))
    for ours, theirs in zip(again.variables, network.variables):
        assert ours.numpy().tobytes() == theirs.numpy().tobytes()


def test_a_dry_run_and_refusals(file, imported, tmp_path, tfssl_command):
    dry = tfssl_command("import_weights", f"--weights={file}", "--dry_run")
    assert dry.returncode == 0, dry.stderr
    line = "  module.encoder_q.layer1.0.conv1.weight -> resnet18_v1/block1/unit0/conv1/kernel:0"
    assert f"{line} [3, 3, 4, 4]\n" in dry.stdout and "loaded: 100 weights" in dry.stdout
    again = tfssl_command("import_weights", f"--weights={file}", f"--export_dir={imported[0]}")
    assert again.returncode == 1 and "published versions never change" in again.stderr
    harmful = tmp_path / "x.pkl"
    harmful.write_bytes(pickle.dumps({"a": print}, 2))
    refused = tfssl_command("import_weights", f"--weights={harmful}", f"--export_dir={tmp_path}/m")
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    assert "names '__builtin__.print', which is no tensor" in refused.stderr
    assert not (tmp_path / "m").exists()
