"""Results, and the records of results.json."""

import dataclasses

import pytest

from tfssl.downstream.results import Result, mark_chosen

RECORD = {
    "module": "rotation",
    "protocol": "low_shot",
    "endpoint": "block1",
    "metric": "mAP",
    "shots": 4,
    "value": 0.5,
    "std": 0.1,
    "val_value": 0.4,
    "chosen_on": "set 0",
    "chance": 0.1,
    "train_labels": 100,
    "costs_tried": [1.0],
    "seconds": 2.5,
    "reported_on": "set 1",
    "chosen": True,
    "quick": {"samples": 2},
}


def test_a_record_is_read_and_written():
    result = Result.of(RECORD)
    assert dict(result) == RECORD and Result.of(result) is result
    assert (result.column, result.shots, result.details) == (
        ("low_shot", 100, 4),
        4,
        {"std": 0.1, "costs_tried": [1.0]},
    )
    assert result["std"] == 0.1 and result.get("cost") is None and "shots" in result


def test_what_is_unset_is_not_in_a_record():
    result = Result("knn", "pixels", "accuracy", 0.5, None, 10, picture=b"PNG", details={"k": 20})
    assert set(result) == {
        "protocol", "endpoint", "metric", "value", "val_value", "train_labels", "seconds", "chosen_on", "reported_on", "chosen", "k",
    }  # fmt: skip
    assert result["val_value"] is None and result.of_pixels and "PNG" not in repr(result)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.value = 1.0
    assert result.replace(value=1.0).value == 1.0


def test_validation_chooses_and_not_test():
    values = [
        ("block1", 0.5, 0.50),
        ("block2", 0.6, 0.49),
        ("block3", 0.1, 0.50),
        ("pixels", 0.9, 0.99),
        ("x", 0.9, None),
    ]
    results = [
        Result("knn", e, "accuracy", value, val_value, 10, module="m")
        for e, value, val_value in values
    ]
    assert [r.chosen for r in mark_chosen(results)] == [
        False,
        False,
        True,
        False,
        False,
    ]  # among equals the deeper
    assert not any(r.chosen for r in results)  # they are as they were
