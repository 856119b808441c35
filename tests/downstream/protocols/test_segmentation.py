"""Segmentation: the metric against Keras's, that heads learn what is there and nothing else, what
is refused."""

import types

import dense_heads
import numpy as np
import pytest
import tensorflow as tf
import tiny_modules
from PIL import Image

import tfssl
from tfssl import downstream
from tfssl.downstream.protocols import segmentation
from tfssl.errors import UserError
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Bright and dark rectangles on middle gray, with some pixels of no class; a class for each
    brightness."""
    root, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for i in range(count):
            mask = np.ones([32, 40], np.uint8)
            for value in (0, 2, 0, 2):
                y, x = rng.integers(0, 24), rng.integers(0, 30)
                mask[y : y + 8, x : x + 10] = value
            pixels = 60 + 70 * mask[..., None] + rng.normal(0, 12, [32, 40, 3])
            mask[:, :3] = 255
            for folder, picture in (
                (split, np.clip(pixels, 0, 255).astype(np.uint8)),
                (split + "annot", mask),
            ):
                (root / folder).mkdir(exist_ok=True)
                Image.fromarray(picture).save(root / folder / f"{i}.png")
    return [tfssl.open_source(f"masks:{root}", split) for split in ("train", "test")]


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    return modules.load(tiny_modules.save_ours(tmp_path_factory.mktemp("module")))


@pytest.mark.parametrize("head,epochs,names", [("linear", 30, None), ("dilated", 8, ["stem"])])
def test_heads_learn_what_is_there(scenes, module, head, epochs, names):
    train, test = scenes
    results = downstream.run(
        "segmentation", train, test, module=module, endpoints=names, head=head, epochs=epochs
    )
    assert [r["endpoint"] for r in results] == (names or ["stem", "block", "pixels"])
    for result in results:
        assert (
            result["metric"] == "mIoU"
            and result["train_labels"] == 12
            and result["size"] == [32, 40]
        )
        assert len(result["per_class"]) == 3 and result["value"] == pytest.approx(
            np.mean(result["per_class"])
        )
    best = results[0]
    assert best["value"] > 0.75 and best["val_value"] > 0.6, results
    if head == "linear":
        again = downstream.run(
            "segmentation",
            train,
            test,
            module=module,
            endpoints=["stem"],
            epochs=epochs,
            val_fraction=0,
        )
        assert again[0]["value"] == pytest.approx(best["value"], abs=0.02)


@pytest.mark.parametrize("head, layers", [("linear", 2), ("dilated", 12)])
def test_replicas_give_the_head_of_one_device(
    scenes, replicas, float64, monkeypatch, tmp_path, head, layers
):
    """Over batches whose halves have unequally many pixels of a class. BN of the dilated head has
    statistics of both."""
    task = segmentation.SegmentationTask
    dense_heads.check_replicas(
        "segmentation", task, scenes[0], tmp_path, replicas, monkeypatch, layers, head=head
    )


def test_iou_is_that_of_keras():
    rng = np.random.default_rng(0)
    truth, guess = (
        rng.integers(-1, 4, [7, 9, 11]).astype(np.int32),
        rng.integers(0, 4, [7, 9, 11]).astype(np.int32),
    )

    value, per_class = segmentation.iou(zip(guess, truth), 5)
    metric = tf.keras.metrics.MeanIoU(4)
    metric.update_state(truth[truth >= 0], guess[truth >= 0])
    assert value == pytest.approx(float(metric.result()))
    assert per_class[4] is None
    for c in range(4):
        known = truth >= 0
        both, either = (
            ((truth == c) & (guess == c) & known).sum(),
            (((truth == c) | (guess == c)) & known).sum(),
        )
        assert per_class[c] == pytest.approx(both / either)


def test_a_class_that_was_never_learned_counts_as_missed(scenes):
    """Two classes learned, a third one on the test image: IoU 1/3 and 1 of those, 0 of it."""
    task = segmentation.SegmentationTask("linear", 255, (2, 2), 0, False)
    task.classes, task.names = 2, ["a", "b"]
    truth, guess = np.array([[0, 1], [2, 2]]), np.array([[0, 1], [0, 0]])
    maps = types.SimpleNamespace(
        annotations=[{"mask": truth}], views=1, shown={0: np.zeros([2, 2, 3], np.uint8)}
    )
    measured = task.measure([(guess, 0)], maps, [0])
    assert measured["per_class"] == pytest.approx([1 / 3, 1, 0])
    assert measured["value"] == pytest.approx(4 / 9)
    assert task.picture([(guess, 0)], maps, [0]).startswith(b"\x89PNG")


def test_validation_of_its_own(scenes, module):
    train, test = scenes
    (result,) = downstream.run(
        "segmentation", train, test, module=module, val=test, endpoints=["stem"], epochs=2
    )
    assert result["val_value"] == result["value"] and result["chosen_on"] == result["reported_on"]
    (result,) = downstream.run(
        "segmentation", train, test, module=module, endpoints=["stem"], epochs=2, val_fraction=0
    )
    assert result["val_value"] is None


def test_a_damaged_image_or_one_of_another_shape_is_left_out_and_named(module, tmp_path, caplog):
    for folder in ("train", "trainannot"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            picture = np.repeat(
                np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2) % 2, 8, 0), 8, 1
            )
            Image.fromarray(picture * (1 if "annot" in folder else 90)).convert("L").save(
                tmp_path / folder / f"{i}.png"
            )
    (tmp_path / "train" / "2.png").write_bytes(b"\x89PNG damaged")
    turned = tmp_path / "trainannot" / "1.png"
    Image.open(turned).crop((0, 0, 8, 16)).save(turned)
    source = tfssl.open_source(f"masks:{tmp_path}", "train")
    (result,) = downstream.run(
        "segmentation", source, source, module=module, endpoints=["stem"], epochs=1, val_fraction=0
    )
    assert result["train_labels"] == 2
    for part in ("train", "test"):
        assert [name[-5:] for name in result["unreadable"][part]] == ["1.png", "2.png"]
    assert "2 of 4 images could not be read and are left out" in caplog.text


def test_refusals(scenes, module, tmp_path):
    train, test = scenes
    flat = modules.load(tiny_modules.save_callable(tmp_path / "flat"))
    with pytest.raises(UserError, match="has no endpoint that is a map"):
        downstream.run("segmentation", train, test, module=flat)
    with pytest.raises(UserError, match="pre_logits is no map; there is stem, block, pixels"):
        downstream.run("segmentation", train, test, module=module, endpoints=["pre_logits"])
    with pytest.raises(UserError, match="head=conv: choose one of linear, dilated"):
        downstream.run("segmentation", train, test, module=module, head="conv")
    with pytest.raises(UserError, match="masks tell no classes apart, with 2 standing for none"):
        ones = np.full([8, 8], 2, np.uint8)
        for folder in ("train", "trainannot"):
            (tmp_path / folder).mkdir()
            Image.fromarray(ones).save(tmp_path / folder / "0.png")
        odd = tfssl.open_source(f"masks:{tmp_path}", "train")
        downstream.run("segmentation", odd, odd, module=module, ignore=2)
