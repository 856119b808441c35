"""`tfssl.testing`: all our protocols pass its check, and broken ones do not."""

import time

import numpy as np
import photographs
import pytest
import tiny_modules
from PIL import Image

import tfssl
from tfssl.downstream import NAMES, PROTOCOLS
from tfssl.downstream.protocol import Data, Protocol
from tfssl.downstream.results import Result
from tfssl.errors import UserError
from tfssl.hub import load as modules
from tfssl.testing import check_protocol

SHORT = {"epochs": 3, "decay_epochs": (2,), "batch_size": 32}
OF_FEATURES = {  # name: (settings, settings that are refused)
    "logistic": ({"max_iterations": 50}, [{"l2": "strong"}, {"l2": -1}]),
    "knn": ({"k": 5}, [{"k": 0}, {"temperature": 0.0}]),
    "linear_sgd": (
        {"augment": False, **SHORT},
        [{"crops": "all"}, {"epoch": "first"}, {"decay_epochs": (9,)}],
    ),
    "mlp": (
        {"hidden": 8, "learning_rate": 0.3, **SHORT},
        [{"hidden": 0}, {"dropout": 1.0}, {"l2": "strong"}, {"learning_rate": 0}],
    ),
    "svm": ({"costs": (0.1, 1.0, 10.0)}, [{"costs": "cheap"}, {"folds": 1}, {"ap": "best"}]),
    "low_shot": (
        {"shots": (1, 4), "samples": 2, "costs": (1, 10)},
        [{"shots": "0,1"}, {"samples": 0}, {"choose": "train"}],
    ),
    "few_shot": ({"episodes": 12}, [{"ways": 1}, {"ridges": "0,1"}, {"shots": ()}]),
}
OF_MAPS = {
    "segmentation": ({"epochs": 1}, [{"head": "conv"}, {"size": (8,)}]),
    "detection": (
        {"epochs": 1, "layers": 0, "units": 8},
        [{"trunk": "thawed"}, {"jitter": (2, 1)}],
    ),
    "fcos": (
        {"epochs": 1, "layers": 0, "units": 8, "neck_width": 8},
        [{"neck_width": 0}, {"jitter": (2, 1)}],
    ),
    "surface_normals": ({"epochs": 1, "clusters": 2}, [{"head": "conv"}]),
}


def test_all_protocols_are_checked():
    """`unsupervised`, whose details are measured on test, in its own file."""
    assert {*OF_FEATURES, *OF_MAPS} == set(NAMES) - {"unsupervised"}


@pytest.mark.parametrize("name", OF_FEATURES)
def test_protocols_of_features(name):
    settings, refused = OF_FEATURES[name]
    results = check_protocol(PROTOCOLS.find(name), refused=refused, **settings)
    assert {r.endpoint for r in results} == {"a", "b"} and max(r.value for r in results) > 0.5


@pytest.mark.parametrize("name", ["svm", "low_shot"])
def test_protocols_of_images_of_several_classes(name):
    data = Data(photographs.photographs(90, 0), photographs.photographs(60, 1))
    check_protocol(PROTOCOLS.find(name), data, **OF_FEATURES[name][0])


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return modules.load(tiny_modules.save_ours(tmp_path_factory.mktemp("module")))


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    """Two planes side by side, in eight images."""
    root, rng = tmp_path_factory.mktemp("normals"), np.random.default_rng(0)
    for folder in ("train", "trainnormals"):
        (root / folder).mkdir()
    for i in range(8):
        facing = np.repeat(rng.permutation([[0.6, 0, 0.8], [-0.6, 0, 0.8]])[None], 16, 0).repeat(
            8, 1
        )
        Image.fromarray(np.uint8(120 + 100 * facing)).save(root / "train" / f"{i}.png")
        Image.fromarray(np.uint8(np.round((facing + 1) * 127.5))).save(
            root / "trainnormals" / f"{i}.png"
        )
    return f"normals:{root}"


@pytest.mark.parametrize("name", OF_MAPS)
def test_protocols_of_maps(name, module, normals):
    settings, refused = OF_MAPS[name]
    if name == "surface_normals":
        train, test = (tfssl.open_source(normals, split) for split in ("train[:5]", "train[5:]"))
    else:
        train, test = (
            tfssl.open_source("glyphs", "train[:6]"),
            tfssl.open_source("glyphs", "test[:4]"),
        )
    check_protocol(PROTOCOLS.find(name), Data(train, test, module=module), refused, **settings)


class Nearest(Protocol):
    """A sound protocol: the class of the nearest mean."""

    name = "nearest_mean"

    def __init__(self, power: float = 1.0) -> None:
        if power <= 0:
            raise UserError(f"power={power}: give a number above 0")
        self.power = power

    def run(self, data, endpoints):
        part = data.split()
        for endpoint in endpoints:
            begun, train = time.time(), data.train
            x, y = train.endpoints[endpoint].astype(np.float32), train.labels
            means = np.stack([x[part.fit][y[part.fit] == c].mean(0) for c in np.unique(y)])

            def accuracy(features, labels, means=means):
                distances = np.abs(features[:, None].astype(np.float32) - means) ** self.power
                return float(np.mean(distances.sum(-1).argmin(1) == labels))

            yield Result(
                protocol=self.name,
                endpoint=endpoint,
                metric=self.metric,
                value=accuracy(data.test.endpoints[endpoint], data.test.labels),
                val_value=accuracy(x[part.val], y[part.val]),
                train_labels=len(part.rows),
                seconds=time.time() - begun,
            )


def test_a_protocol_of_ones_own():
    results = check_protocol(Nearest, refused=[{"power": 0.0}], power=2.0)
    assert [r.endpoint for r in results] == ["a", "b"] and results[1].value > 0.7
    assert (
        results[0].chosen_on == "val_fraction 0.2 of cloud 0"
        and results[0].reported_on == "cloud 1"
    )


class Forgetful(Nearest):
    def __init__(self, power=1.0):
        self.power = 2 * power


class ChoosesOnTest(Nearest):
    def run(self, data, endpoints):
        for result in super().run(data, endpoints):
            yield result.replace(details={"power": max(self.power, round(100 * result.value))})


class Random(Nearest):
    def run(self, data, endpoints):
        for result in super().run(data, endpoints):
            yield result.replace(value=float(np.random.default_rng().random()))


class InOrder(Nearest):
    def run(self, data, endpoints):
        for result in super().run(data, endpoints):
            yield result.replace(value=float(data.train.labels[0]) / 2)


class Changes(Nearest):
    def run(self, data, endpoints):
        for endpoint in endpoints:
            data.train.endpoints[endpoint][:] *= 2
        yield from super().run(data, endpoints)


class InPerCent(Nearest):
    def run(self, data, endpoints):
        for result in super().run(data, endpoints):
            yield result.replace(value=100 * result.value)


class Half(Nearest):
    def run(self, data, endpoints):
        yield from super().run(data, endpoints[:1])


class NotOfJson(Nearest):
    def run(self, data, endpoints):
        for result in super().run(data, endpoints):
            yield result.replace(details={"k": np.float32(2)})


@pytest.mark.parametrize(
    "broken, message",
    [
        (Forgetful, "does not take what it keeps"),
        (ChoosesOnTest, "a choice depends on test: power of a"),
        (Random, "the same twice, alone and with other endpoints: value"),
        (InOrder, "with the training rows in another order"),
        (Changes, "changes the features that it reads"),
        (InPerCent, r"is no float in \[0, 1\]"),
        (Half, "not a result of each endpoint"),
        (NotOfJson, "results.json cannot hold it: Object of type float32"),
    ],
)
def test_broken_protocols(broken, message):
    with pytest.raises(AssertionError, match=message):
        check_protocol(broken)


def test_settings_that_ought_to_be_refused():
    with pytest.raises(
        AssertionError, match=r"nearest_mean: the constructor takes \{'power': 3.0\}"
    ):
        check_protocol(Nearest, refused=[{"power": 3.0}])
