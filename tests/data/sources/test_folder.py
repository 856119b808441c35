import os

import pytest
import tensorflow as tf

import tfssl
from tfssl.data.listing import checks
from tfssl.data.overlap import overlap
from tfssl.data.sources.folder import unlabelled
from tfssl.errors import UserError


def labels(source):
    """{name relative to the data set's root: label}, as fetched."""
    root = source.spec.partition(":")[2]
    examples = source.records().map(source.fetch).as_numpy_iterator()
    return {os.path.relpath(source.name(int(e["index"])), root): int(e["label"]) for e in examples}


def names(source):
    return [os.path.basename(source.name(i)) for i in range(source.num_examples)]


CLASSES = [f"{name}/{i}.jpg" for name in ("dog", "ant", "cat") for i in range(4)]


def test_by_class(write_images):
    source = tfssl.open_source("folder:" + write_images(CLASSES))
    assert (source.num_examples, source.num_classes, source.class_names) == (
        12,
        3,
        ["ant", "cat", "dog"],
    )
    assert labels(source) == {path: ["ant", "cat", "dog"].index(path[:3]) for path in CLASSES}


def test_by_split_and_class(write_images):
    """The class list is that of all splits: a class missing in one of them does not renumber the
    others."""
    root = write_images(
        ["train/b/1.jpg", "train/c/2.jpg", "test/a/3.jpg", "test/c/4.jpg", "docs/x.png", "logo.png"]
    )
    train, test = tfssl.open_source("folder:" + root), tfssl.open_source("folder:" + root, "test")
    assert labels(train) == {"train/b/1.jpg": 1, "train/c/2.jpg": 2}
    assert labels(test) == {"test/a/3.jpg": 0, "test/c/4.jpg": 2}
    assert train.class_names == test.class_names == ["a", "b", "c"]
    both = tfssl.open_source("folder:" + root, "test+train")
    assert labels(both) == {**labels(train), **labels(test)}
    assert names(both) == names(test) + names(train)


def test_flat_is_unlabelled(write_images):
    source = tfssl.open_source("folder:" + write_images(["a.jpg", "b.PNG", "c.JPEG"]))
    assert (source.num_examples, source.num_classes, source.class_names) == (3, None, None)
    assert set(labels(source).values()) == {-1}


def test_an_image_outside_of_the_classes_makes_all_unlabelled_and_none_is_dropped(write_images):
    source = tfssl.open_source("folder:" + write_images(["2019/a.jpg", "2020/deep/b.jpg", "c.jpg"]))
    assert labels(source) == {"2019/a.jpg": -1, "2020/deep/b.jpg": -1, "c.jpg": -1}
    assert source.num_classes is None


def test_a_stray_image_beside_the_classes_is_named_and_leaves_the_labels(write_images):
    root = write_images(
        [f"train/{name}/{i}.jpg" for name in "ab" for i in range(6)]
        + ["train/preview.jpg", "docs/x.jpg"]
    )
    source = tfssl.open_source("folder:" + root)
    assert (
        source.num_classes == 2
        and "train/preview.jpg" not in labels(source)
        and source.num_examples == 12
    )
    assert source.notes() == [
        f"folder:{root}: left out: folders that are no split: docs/ (1 images)",
        f"folder:{root}: left out: images beside the classes: train/preview.jpg",
    ]
    write_images(["train/preview2.jpg"])
    source = tfssl.open_source("folder:" + root)
    assert source.num_classes is None and source.num_examples == 14
    assert (
        "move each into one, or out of there: train/preview.jpg, train/preview2.jpg"
        in checks.unlabelled(source)
    )


def test_a_flat_split_beside_a_labelled_one(write_images):
    root = write_images(["train/a/1.jpg", "train/b/2.jpg", "test/3.jpg"])
    assert tfssl.open_source("folder:" + root).num_classes == 2
    test = tfssl.open_source("folder:" + root, "test")
    assert labels(test) == {"test/3.jpg": -1} and test.num_classes is None


def test_deeper_folders_belong_to_their_class(write_images):
    source = tfssl.open_source("folder:" + write_images(["n01/images/1.jpg", "n02/images/2.jpg"]))
    assert source.class_names == ["n01", "n02"]


def test_one_class_is_no_label(write_images):
    source = tfssl.open_source(
        "folder:" + write_images(["train/images/1.jpg", "val/images/2.jpg"]), "val"
    )
    assert labels(source) == {"val/images/2.jpg": -1} and source.num_classes is None


def test_other_peoples_names(write_images):
    """What the splits are called at their folder, and are found by; see test_layout.py for more."""
    root = write_images(
        [
            f"{split}/{name}/{i}.jpg"
            for split in ("Training", "Testing")
            for name in "ab"
            for i in range(2)
        ]
    )
    train, test = (
        tfssl.open_source("folder:" + root),
        tfssl.open_source("folder:" + root, "test[:50%]"),
    )
    assert (train.num_examples, train.class_names, test.num_examples) == (4, ["a", "b"], 2)
    assert train.ranges == [("Training", 0, 4)] and test.ranges == [("Testing", 0, 2)]
    assert tfssl.open_source("folder:" + root, "train[:1]+Testing").num_examples == 5
    assert overlap(train, tfssl.open_source("folder:" + root, "Training[50%:]")) and not overlap(
        train, test
    )
    root = write_images(
        [f"train-1/{i}.jpg" for i in range(4)] + ["other/x.jpg", "test.v2/1.jpg"], "odd"
    )
    source = tfssl.open_source("folder:" + root, "train-1[25%:]")
    assert source.ranges == [("train-1", 1, 4)] and source.left_out == {
        "folders that are no split": ["other/ (1 images)"]
    }
    with pytest.raises(
        UserError, match=r"no split 'val'; it has .*; passed over: other/ \(1 images\)"
    ):
        tfssl.open_source("folder:" + root, "val")


def test_nobody_is_told_to_train_on_a_test_split(write_images):
    with pytest.raises(
        UserError, match=r"has no split 'train'; it has Test \(2 examples\)"
    ) as error:
        tfssl.open_source("folder:" + write_images(["Test/a/1.jpg", "Test/b/2.jpg"]))
    assert "90%" not in str(error.value)


def test_a_lone_outer_folder_is_stepped_through(write_images):
    source = tfssl.open_source(
        "folder:" + write_images(["birds/v2/Train/a/1.jpg", "birds/v2/Train/b/2.jpg"]), "Train"
    )
    assert source.class_names == ["a", "b"]


def test_a_class_of_railways(write_images):
    """A lone folder "train" with images beside other classes is a class; with classes inside it is
    a split."""
    source = tfssl.open_source(
        "folder:" + write_images(["bus/1.jpg", "car/2.jpg", "train/3.jpg"], "a")
    )
    assert source.class_names == ["bus", "car", "train"] and source.num_examples == 3
    source = tfssl.open_source(
        "folder:" + write_images(["extra/1.jpg", "train/x/2.jpg", "train/y/3.jpg"], "b")
    )
    assert source.class_names == ["x", "y"] and source.num_examples == 2


@pytest.mark.parametrize("name", ["val", "VALID", "validation", "Test", "dev", "trainval"])
def test_split_folders_keep_their_own_name(write_images, name):
    root = write_images(["train/1.jpg", f"{name}/2.jpg", f"{name}/3.jpg"])
    assert tfssl.open_source("folder:" + root, name).num_examples == 2
    with pytest.raises(
        UserError, match=f"no split 'nothing'.*{name} .2 examples.*train .1 examples|train.*{name}"
    ):
        tfssl.open_source("folder:" + root, "nothing")


def test_slices_are_samples_of_all_classes(write_images):
    paths = [f"{name}/{i:02}.jpg" for name in "abcd" for i in range(25)]
    root = write_images(paths)
    first, rest = (
        tfssl.open_source("folder:" + root, split) for split in ("train[:80]", "train[80%:]")
    )
    assert first.num_examples == 80 and rest.num_examples == 20
    assert set(labels(first)) | set(labels(rest)) == set(paths) and not set(labels(first)) & set(
        labels(rest)
    )
    assert set(labels(rest).values()) == {
        0,
        1,
        2,
        3,
    }  # by chance alone: four classes in 20 of 100 files


def test_order_does_not_depend_on_time_place_or_other_files(write_images):
    paths = [f"{i}.jpg" for i in range(30)]
    one = tfssl.open_source("folder:" + write_images(paths, "one"))
    other = tfssl.open_source(
        "folder:" + write_images([f"train/{p}" for p in reversed(paths)] + ["test/0.jpg"], "other")
    )
    more = tfssl.open_source(
        "folder:" + write_images(paths + [f"new{i}.jpg" for i in range(10)], "more")
    )
    assert names(one) == names(other) != sorted(names(one))
    assert [name for name in names(more) if name in paths] == names(one)


def test_hidden_and_other_files_do_not_count(write_images, tmp_path):
    root = write_images(["a/1.jpg", "b/2.jpg", ".cache/x.jpg", "__MACOSX/a/y.jpg", "a/._1.jpg"])
    (tmp_path / "photos" / "a" / "notes.txt").write_text("x")
    (tmp_path / "photos" / "b" / "new.HEIC").write_text("x")
    source = tfssl.open_source("folder:" + root)
    assert set(labels(source)) == {"a/1.jpg", "b/2.jpg"}
    assert source.ignored == {".txt": 1, ".heic": 1}
    assert source.notes() == [
        f"folder:{root}: left out: 1 .heic (formats that are not read: convert them to .jpg or "
        ".png): b/new.HEIC"
    ]


def test_what_systems_put_there_does_not_count(write_images):
    """Nor is a folder an image, whatever it is called; files may be called as they like."""
    systems = [
        "@eaDir",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "#recycle",
        "@Recycle",
        ".thumbnails",
        ".AppleDouble",
    ]
    paths = [f"{name}/a/{i}.jpg" for i, name in enumerate(systems)] + [
        "a/@eaDir/0.jpg/THUMB.jpg",
        "b/sub.jpg/1.jpg",
    ]
    root = write_images([*paths, "a/0.jpg", "b/#hash.jpg", "b/@.jpg", "b/$HOME.jpg"])
    source = tfssl.open_source("folder:" + root)
    assert set(labels(source)) == {
        "a/0.jpg",
        "b/#hash.jpg",
        "b/@.jpg",
        "b/$HOME.jpg",
        "b/sub.jpg/1.jpg",
    }
    assert source.class_names == ["a", "b"] and not source.notes()
    assert unlabelled(root).num_examples == 5


@pytest.mark.parametrize("ending", [".jfif", ".JPE", ".pjpeg"])
def test_other_endings_of_the_same_formats(write_images, ending):
    source = tfssl.open_source("folder:" + write_images([f"a/1{ending}", "b/2.jpg"]))
    assert source.num_examples == 2 and not source.ignored
    source.check_readable()


def test_listing_asks_nothing_of_images(write_images, monkeypatch):
    """One look at each folder; in a bucket every further question would be a request."""
    root, asked = write_images([f"{name}/{i}.jpg" for name in "ab" for i in range(9)]), []
    for module, name in (
        (os, "stat"),
        (os, "lstat"),
        (tf.io.gfile, "isdir"),
        (tf.io.gfile, "exists"),
        (os, "scandir"),
    ):
        real = getattr(module, name)

        def count(path, *args, name=name, real=real, **kwargs):
            asked.append((name, os.fsdecode(path)))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, count)
    assert tfssl.open_source("folder:" + root).num_examples == 18
    assert sorted(path for name, path in asked if name == "scandir") == [
        root,
        f"{root}/a/",
        f"{root}/b/",
    ]
    assert not [path for _, path in asked if path.endswith(".jpg")]


def test_links_are_followed_but_not_in_circles(write_images, tmp_path):
    root = write_images(["a/1.jpg", "b/2.jpg"])
    os.symlink(write_images(["3.jpg"], "elsewhere"), f"{root}/c")
    os.symlink(root, f"{root}/a/up")
    assert set(labels(tfssl.open_source("folder:" + root))) == {"a/1.jpg", "b/2.jpg", "c/3.jpg"}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_are_left_out(write_images):
    """To open a pipe that nobody writes to would wait for ever."""
    root = write_images(["a/1.jpg", "b/2.jpg"])
    os.mkfifo(f"{root}/a/pipe.png")
    os.symlink(f"{root}/a/pipe.png", f"{root}/b/link.png")
    os.symlink("/dev/null", f"{root}/b/null.jpg")
    os.mkfifo(f"{root}/b/notes.txt")
    os.symlink(f"{root}/a/1.jpg", f"{root}/b/good.jpg")
    os.symlink(f"{root}/away.jpg", f"{root}/b/away.jpg")  # which may come back
    source = tfssl.open_source("folder:" + root)
    assert set(names(source)) == {"1.jpg", "2.jpg", "good.jpg", "away.jpg"}
    assert source.notes() == [
        f"folder:{root}: left out: pipes, sockets or devices: a/pipe.png, b/link.png, b/null.jpg"
    ]
    assert source.ignored == {".txt": 1}
    os.remove(f"{root}/b/away.jpg")
    found = tfssl.open_source("folder:" + root).scan()
    assert found.images == 3 and not found.unreadable
    for name in ("a/1.jpg", "b/2.jpg", "b/good.jpg"):
        os.remove(f"{root}/{name}")
    with pytest.raises(UserError, match="found 1 .txt; left out: pipes, .* a/pipe.png, b/link.png"):
        tfssl.open_source("folder:" + root)


def test_home_and_relative_paths(write_images, tmp_path, monkeypatch):
    write_images(["1.jpg"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert tfssl.open_source("folder:~/photos").num_examples == 1
    monkeypatch.chdir(tmp_path)
    assert tfssl.open_source("folder:photos/").num_examples == 1


def test_the_images_are_the_files(write_images):
    source = tfssl.open_source("folder:" + write_images(CLASSES))
    for record in source.records(seed=0).take(12):
        example = source.fetch(record)
        name = source.name_in_graph(record).numpy().decode()
        assert name == source.name(int(example["index"]))
        with open(name, "rb") as file:
            assert example["image"].numpy() == file.read()


def test_graphs_hold_no_names(write_images):
    source = tfssl.open_source("folder:" + write_images([f"{i:040}.jpg" for i in range(200)]))
    record = {"number": tf.TensorSpec([], tf.int64), "index": tf.TensorSpec([], tf.int64)}
    graph = tf.function(source.fetch).get_concrete_function(record).graph.as_graph_def()
    assert b"0000" not in graph.SerializeToString()


@pytest.mark.parametrize("split", ["test", "val[:10%]", "train+test"])
def test_unsplit_folder_hints_at_slices(write_images, split):
    with pytest.raises(
        UserError, match=r"no split '(test|val)'; it has train \(12 examples\).*train\[90%:\]"
    ):
        tfssl.open_source("folder:" + write_images(CLASSES), split)


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match=f"no such folder: '{tmp_path}/nothing'.*folder of images"):
        tfssl.open_source(f"folder:{tmp_path}/nothing")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match="neither a folder nor an archive"):
        tfssl.open_source(f"folder:{tmp_path}/file.txt")


def test_a_place_that_cannot_be_looked_at(tmp_path):
    with pytest.raises(UserError, match="folder:nofs://x/y: .*nofs"):
        tfssl.open_source("folder:nofs://x/y")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "ok.jpg").write_bytes(b"")
    with open(os.path.join(os.fsencode(tmp_path / "photos"), b"b\xe4d.jpg"), "wb"):
        pass
    with pytest.raises(UserError, match="not UTF-8: .*xe4d.jpg"):
        tfssl.open_source(f"folder:{tmp_path}/photos")


def test_no_images(tmp_path):
    (tmp_path / "sub").mkdir()
    with pytest.raises(UserError, match="no images in .*jpg.*found no file"):
        tfssl.open_source(f"folder:{tmp_path}")
    for name in ("1.heic", "2.HEIC", "3.psd"):
        (tmp_path / "sub" / name).write_text("x")
    with pytest.raises(
        UserError, match=r"no images in .*\.jpg \.jpeg \.png \.gif \.bmp.*found 2 \.heic, 1 \.psd"
    ):
        tfssl.open_source(f"folder:{tmp_path}")
