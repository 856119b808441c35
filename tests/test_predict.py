"""`tfssl-predict` as a user runs it: the table's numbers are the classifier's; images that cannot
be read; bad input."""

import csv

import numpy as np
import pytest
import runs
import tensorflow as tf
from encoders import save_encoder

import tfssl
from tfssl import predict
from tfssl.backbones.hub import Hub
from tfssl.classifiers import predictions as classify
from tfssl.classifiers.classifier import Classifier
from tfssl.data.listing import checks
from tfssl.data.ops import image
from tfssl.export.module import save_classifier
from tfssl.hub import load as modules


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("modules") / "encoder")


@pytest.fixture(scope="module")
def classifier(encoder, tmp_path_factory):
    """Seven classes, one with a comma in its name; random, but decided."""
    model = Classifier(Hub(modules.load(encoder), 16), 7, image_size=16)
    model.prepare()
    model.head.kernel.assign(np.random.default_rng(0).normal(size=model.head.kernel.shape) * 20)
    names = ["ant", "bee, honey", "cat", "dog", "elk", "fox", "gnu"]
    return save_classifier(
        model, tmp_path_factory.mktemp("modules") / "classifier", class_names=names
    )


def probabilities(classifier, path):
    """One image, by itself."""
    pixels = image.resize_central_crop(tf.io.read_file(str(path)), 16, 18)
    return tf.nn.softmax(tf.saved_model.load(classifier)(tf.cast(pixels, tf.float32)[None] / 255))[
        0
    ].numpy()


def table(path):
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.reader(f))


@pytest.mark.parametrize("strategy", ["default", "mirrored"])
def test_a_folders_numbers_are_the_classifiers(classifier, photos, tmp_path, strategy):
    """Whatever the batch, and the devices; an image that cannot be read is named, and has a row
    without a class."""
    folder = tmp_path / "photos"
    files = sorted(photos.rglob("*.jpg"))[:10]
    for i, path in enumerate(files):
        (folder / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"{i % 2}" / path.name).write_bytes(path.read_bytes())
    (folder / "1" / "broken.jpg").write_bytes(b"no image")
    (folder / "0" / "new.heic").write_bytes(b"RIFF")
    flags = (f"--module={classifier}", f"--images={folder}", "--batch_size=4")
    flags = (*flags, f"--strategy={strategy}", f"--output={tmp_path / 'out.csv'}")
    done = runs.command("predict", *flags, first=runs.two_devices)
    assert done.returncode == 0, done.stderr
    assert (
        "10 images; 2 could not be read" in done.stdout
        and f"not readable: {folder}/1/broken.jpg: " in done.stdout
    )
    assert "left out: 1 .heic (formats that are not read" in done.stdout
    header, *rows, broken, unread = table(tmp_path / "out.csv")
    assert [broken[0], unread[0]] == [f"{folder}/1/broken.jpg", f"{folder}/0/new.heic"]
    assert (
        broken[-1].startswith("Unknown image file format")
        and unread[-1] == ".heic is a format that is not read"
    )
    assert not any(broken[1:-1] + unread[1:-1]) and not any(row[-1] for row in rows)
    names = ["ant", "bee, honey", "cat", "dog", "elk", "fox", "gnu"]
    assert header == ["name", "class", "probability", *names, "error"]
    found = sorted(str(p) for p in folder.rglob("*.jpg") if p.name != "broken.jpg")
    assert [row[0] for row in rows] == found  # by name
    for row in rows:
        expected = probabilities(classifier, row[0])
        np.testing.assert_allclose([float(x) for x in row[3:-1]], expected, rtol=1e-3, atol=1e-6)
        assert row[1] == names[expected.argmax()] and row[2] == row[3 + expected.argmax()]


def test_one_image_and_the_likeliest_classes(classifier, photos, tmp_path, tfssl_command):
    path = sorted(photos.rglob("*.jpg"))[0]
    flags = (
        f"--module={classifier}",
        f"--images={path}",
        "--top=3",
        f"--output={tmp_path / 'out.csv'}",
    )
    done = tfssl_command("predict", *flags)
    assert done.returncode == 0, done.stderr
    header, row = table(tmp_path / "out.csv")
    assert header == [
        "name",
        "class1",
        "probability1",
        "class2",
        "probability2",
        "class3",
        "probability3",
        "error",
    ]
    names = ["ant", "bee, honey", "cat", "dog", "elk", "fox", "gnu"]
    p = probabilities(classifier, path)
    assert row[0] == str(path) and row[1:-1:2] == [names[i] for i in np.argsort(-p)[:3]]
    np.testing.assert_allclose([float(x) for x in row[2:-1:2]], np.sort(p)[::-1][:3], rtol=1e-3)


def test_a_data_set(classifier, photos, tmp_path, tfssl_command):
    flags = (
        f"--dataset=folder:{photos}",
        "--split=train[:25%]",
        f"--output={tmp_path / 'out.csv'}",
    )
    done = tfssl_command("predict", f"--module={classifier}", *flags)
    assert done.returncode == 0, done.stderr
    source = tfssl.open_source(f"folder:{photos}", "train[:25%]")
    assert [row[0] for row in table(tmp_path / "out.csv")[1:]] == [
        source.name(i) for i in range(12)
    ]


def test_accuracy_by_numpy(classifier, photos):
    source = tfssl.open_source(f"folder:{photos}")
    module = modules.load(classifier)
    found = list(classify.predictions(module, source, batch_size=7))
    logits, labels = (
        np.concatenate([batch[name] for batch in found]) for name in ("logits", "label")
    )
    assert len(labels) == 48 and set(labels) == {0, 1}
    rank = (logits > logits[np.arange(48), labels][:, None]).sum(1)
    expected = {"accuracy": np.mean(rank == 0), "top5_accuracy": np.mean(rank < 5), "images": 48}
    assert classify.accuracy(module, source, batch_size=10) == pytest.approx(expected)


BAD = {
    "no module": ([], "--module is missing"),
    "an encoder": (["--module={encoder}", "--images={photos}"], "is no classifier"),
    "missing folder": (["--module={classifier}", "--images=/no/such/folder"], "/no/such/folder"),
    "nothing to look at": (["--module={classifier}"], "--images"),
    "too many": (["--module={classifier}", "--images={photos}", "--top=8"], "7 classes"),
    "of detectors": (
        ["--module={classifier}", "--images={photos}", "--min_score=0.3"],
        "--min_score is of detectors",
    ),
    "json": (["--module={classifier}", "--images={photos}", "--output=x.json"], "name in .csv"),
    "broken image": (["--module={classifier}", "--images={broken}"], "broken.png"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_in_one_clear_line(
    case, encoder, classifier, photos, tmp_path, tfssl_command
):
    (tmp_path / "broken.png").write_bytes(b"no image")
    places = {
        "encoder": encoder,
        "classifier": classifier,
        "photos": photos,
        "broken": tmp_path / "broken.png",
    }
    flags, expected = BAD[case]
    done = tfssl_command("predict", *[flag.format(**places) for flag in flags], cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("tfssl-predict: ") and len(done.stderr.splitlines()) == 1, (
        done.stderr
    )
    assert expected in done.stderr and not (tmp_path / "predictions.csv").exists()


class Pictures:
    """A source of two images, and one in a format that is not read, with names that spreadsheets take for formulas."""

    num_examples = 2
    unread = ["\t-x.heic"]

    def name(self, index):
        return ("=HYPERLINK(1).jpg", "'=quoted.jpg")[index]


def test_no_cell_is_a_formula_and_names_come_back(tmp_path, monkeypatch):
    """OWASP's list, https://owasp.org/www-community/attacks/CSV_Injection: = + - @, tab, carriage
    return."""
    names = ["error", "-x", "+1", "@a", "name", "plain", "\rz", "'quote", "error (class)"]
    rows = np.eye(9, dtype=np.float32)[[1, 0]]
    monkeypatch.setattr(checks, "reasons", lambda source, missing: [])
    found = [{"index": np.array([0, 1]), "probabilities": rows}]
    predict.write(str(tmp_path / "out.csv"), found, Pictures(), names)
    cells = table(tmp_path / "out.csv")
    assert not any(cell.startswith(tuple("=+-@\t\r\n")) for row in cells for cell in row)
    assert cells[0][-1] == "error" and len(set(cells[0])) == len(cells[0]) == 3 + 9 + 1
    assert (
        cells[1][:3] == ["'=HYPERLINK(1).jpg", "'-x", "1"]
        and cells[2][1] == "error"
        and cells[0][8] == "plain"
    )
    back = predict.read(tmp_path / "out.csv")
    assert [row["name"] for row in back] == ["=HYPERLINK(1).jpg", "'=quoted.jpg", "\t-x.heic"]
    assert [row["class"] for row in back] == ["-x", "error", ""] and back[1]["error (class)"] == "1"
    assert [row["error"] for row in back] == ["", "", ".heic is a format that is not read"]
    for text in ("", "'", "''=", "a=", "'a", "-", "\n"):  # nothing is lost, whatever it is
        (tmp_path / "one.csv").write_bytes(f'name\n"{predict.safe(text)}"\n'.encode())
        assert predict.read(tmp_path / "one.csv") == [{"name": text}]


@pytest.mark.parametrize("output", ["file/table.csv", ".", "/proc/no/such/table.csv"])
def test_an_output_that_cannot_be_written_is_found_before_any_work(output, tmp_path, tfssl_command):
    """Neither the module nor the images are looked at."""
    (tmp_path / "file").touch()
    done = tfssl_command(
        "predict", "--module=absent", "--images=absent", f"--output={output}", cwd=tmp_path
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert (
        f"--output={output}" in done.stderr
        or f"--output, in={output.rpartition('/')[0]} cannot" in done.stderr
    )
