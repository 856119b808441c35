"""The settings of an evaluation: what contradicts, and what follows from what."""

import dataclasses
import inspect

import pytest

from tfssl.config import signatures
from tfssl.config.evaluation import Evaluation
from tfssl.errors import UserError


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"budget_minutes": 3.0}, "--budget_minutes=3 is of --protocol=all"),
        ({"protocol": ()}, "--protocol, --endpoints and --train_labels each need a value"),
        ({"endpoints": ()}, "each need a value"),
        ({"test_split": ""}, "--test_split is empty"),
        (
            {"test_split": "", "protocol": ("features", "knn"), "workdir": "w"},
            "--test_split is empty",
        ),
        ({"protocol": ("features",)}, "--workdir is missing"),
        ({"neighbors": 3}, "--workdir is missing"),
        ({"projector": True}, "--workdir is missing"),
    ],
)
def test_contradictions(settings, message):
    with pytest.raises(UserError, match=message):
        Evaluation(**settings)


def test_what_follows_from_all():
    one, every = (
        Evaluation(protocol=("knn", "knn", "features"), workdir="w"),
        Evaluation(protocol=("knn", "all"), workdir="w"),
    )
    assert (one.named_protocols, one.minutes, one.beside_untrained) == (["knn"], None, False)
    assert (every.named_protocols, every.minutes, every.beside_untrained) == (["knn"], 5.0, True)
    without = dataclasses.replace(every, budget_minutes=0.0, random_init=False, workdir=None)
    assert (without.minutes, without.beside_untrained) == (None, False)
    assert dataclasses.replace(every, budget_minutes=2.5).minutes == 2.5
    assert dataclasses.replace(every, strategy="multi_worker").beside_untrained


def test_neighbors_are_shown_where_they_cost_no_extraction():
    given, default = Evaluation(workdir="w", neighbors=2), Evaluation(workdir="w")
    assert [given.neighbor_count(True), given.neighbor_count(False)] == [2, 2]
    assert [default.neighbor_count(True), default.neighbor_count(False)] == [5, 0]
    assert Evaluation().neighbor_count(True) == 0


def test_folders_and_splits():
    local = Evaluation(workdir="w", val_split="v")
    assert local.file("a/b.npz") == "w/a_b.npz" and local.features_folder == "w/features"
    assert local.splits == {"train": "train", "test": "test", "val": "v"} and local.held_out
    assert (
        Evaluation(workdir="gs://w").features_folder is None
        and Evaluation().features_folder is None
    )
    assert Evaluation(val_fraction=0.0).held_out is False and Evaluation(image_size=32).sizes == (
        32,
        None,
    )
    features = Evaluation(test_split="", protocol=("features",), workdir="w")
    assert features.splits == {"train": "train"} and features.named_protocols == []


def test_every_field_is_described():
    for cls in Evaluation.__bases__:
        described = {
            name
            for base in cls.__mro__
            for name in signatures.argument_texts(inspect.getdoc(base) or "")
        }
        assert {field.name for field in dataclasses.fields(cls)} == described
