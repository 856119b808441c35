"""`tfssl-predict` with a detector: its rows are where the objects are, in pixels of the upright
file; pictures show them; files without prediction are named."""

import csv
import json

import numpy as np
import pytest
import tiny_detector
from PIL import Image

import tfssl
from tfssl import predict
from tfssl.classifiers import detections
from tfssl.data.listing import outputs
from tfssl.data.sources import folder
from tfssl.export import save_detector
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    root = tmp_path_factory.mktemp("detector")
    return save_detector(tiny_detector.detector(root / "encoder"), root / "module")


def scene(height, width, box=None):
    pixels = np.full([height, width, 3], 90, np.uint8)
    if box:
        top, left, bottom, right = box
        pixels[top:bottom, left:right] = [255, 0, 0]
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Of several sizes, with a red rectangle in each but one; one is stored on its side; one is no
    image, one in a format that is not read, one a thread of pixels."""
    root = tmp_path_factory.mktemp("scenes")
    (root / "c").mkdir()
    scene(96, 128, (20, 40, 60, 100)).save(root / "a.png")
    scene(96, 128, (0, 0, 30, 128)).save(root / "b.png")
    turned = scene(240, 320, (100, 40, 200, 100)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    turned.save(root / "c" / "c.jpg", exif=exif, quality=95)
    scene(31, 17).save(root / "d.png")
    (root / "e.jpg").write_bytes(b"no image")
    (root / "f.heic").write_bytes(b"RIFF")
    scene(2, 400).save(root / "g.png")
    return root


EXPECTED = {  # name: box of the red rectangle, and its error by resizing to 48 x 64
    "a.png": ((20, 40, 60, 100), 2),
    "b.png": ((0, 0, 30, 128), 2),
    "c/c.jpg": ((100, 40, 200, 100), 5),
}


def test_a_row_for_each_box_and_a_picture_of_each_image(detector, scenes, tmp_path, tfssl_command):
    flags = [f"--module={detector}", f"--images={scenes}", "--batch_size=2"]
    flags += [f"--output={tmp_path / 'boxes.csv'}", f"--pictures={tmp_path / 'drawn'}"]
    done = tfssl_command("predict", *flags)
    assert done.returncode == 0, done.stderr
    assert "4 images; 3 could not be read" in done.stdout
    assert f"not readable: {scenes}/e.jpg: " in done.stdout
    with open(tmp_path / "boxes.csv", newline="", encoding="utf-8") as f:
        header, *rows = csv.reader(f)
    assert header == ["name", "class", "score", "ymin", "xmin", "ymax", "xmax", "error"]
    rows = {row[0][len(str(scenes)) + 1 :]: row[1:] for row in rows}
    assert list(rows) == [*EXPECTED, "d.png", "g.png", "e.jpg", "f.heic"]
    for name, (box, error) in EXPECTED.items():
        assert rows[name][:2] == ["'=red", "0.9"] and rows[name][-1] == ""
        np.testing.assert_allclose([float(x) for x in rows[name][2:6]], box, atol=error)
    assert rows["d.png"] == [""] * 7
    assert "2 x 400" in rows["g.png"][-1] and not any(rows["g.png"][:-1])
    assert rows["f.heic"][-1] == ".heic is a format that is not read"
    back = predict.read(tmp_path / "boxes.csv")
    assert back[0]["class"] == "=red" and back[0]["ymax"] == rows["a.png"][4]

    drawn = sorted(path.name for path in (tmp_path / "drawn").glob("*.jpg"))
    assert drawn == [f"00000{i}_{name}_boxes.jpg" for i, name in enumerate("abcd")]
    # where their folder lies among images, they are passed over
    assert outputs.own([".tfssl", "x.jpg", *drawn]) == set(drawn)
    picture = np.asarray(Image.open(tmp_path / "drawn" / "000002_c_boxes.jpg")).astype(int)
    assert picture.shape == (240, 320, 3)
    top, left, bottom, right = (round(float(x)) for x in rows["c/c.jpg"][2:6])
    red = np.abs(picture - [255, 0, 0]).sum(-1) < 60
    assert red[top + 4 : bottom - 4, left + 4 : right - 4].all()
    color = tfssl.downstream.pictures.colors(2)[1].astype(int)
    frame = np.abs(picture - color).sum(-1) < 90
    assert frame[bottom - 1, left + 5 : right - 5].mean() > 0.9
    assert frame[top + 5 : bottom - 5, right - 1].mean() > 0.9
    assert not frame[: top - 20].any() and not frame[bottom + 5 :].any()


def test_json_and_other_scores(detector, scenes, tmp_path, tfssl_command):
    flags = [f"--module={detector}", f"--images={scenes / 'a.png'}", "--min_score=0.2"]
    done = tfssl_command("predict", *flags, f"--output={tmp_path / 'boxes.json'}")
    assert done.returncode == 0, done.stderr
    first, second = json.loads((tmp_path / "boxes.json").read_text(encoding="utf-8"))
    assert first["name"] == second["name"] == str(scenes / "a.png")
    assert (first["class"], first["score"]) == ("=red", 0.9)
    assert second == {"name": first["name"], "class": "all", "score": 0.3, "box": [0, 0, 96, 128]}


def test_batches_change_nothing(detector, scenes):
    """Successive images of one size go together, others apart."""
    module, source = modules.load(detector), folder.unlabelled(str(scenes))
    found = [list(detections.detections(module, source, size)) for size in (1, 64)]
    assert [one.number for one in found[0]] == [0, 1, 2, 3, 5]
    for one, other in zip(*found):
        assert one.number == other.number and one.reason == other.reason
        for name in ("pixels", "boxes", "scores", "classes"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    "flag, expected",
    [
        ("--top=3", "--top is of classifiers"),
        ("--image_size=64", "--image_size is of classifiers"),
        ("--min_score=2", "a number from 0 to 1"),
        ("--pictures={detector}/saved_model.pb", "--pictures="),
    ],
)
def test_what_a_detector_refuses(detector, scenes, tmp_path, tfssl_command, flag, expected):
    flags = [f"--module={detector}", f"--images={scenes}", flag.format(detector=detector)]
    done = tfssl_command("predict", *flags, cwd=tmp_path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert expected in done.stderr and not (tmp_path / "predictions.csv").exists()
