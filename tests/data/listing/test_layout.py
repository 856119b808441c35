"""Other people's folders, as lists of names: which are splits, which are classes, what is left out.
No files are needed."""

import pytest

from tfssl.data.listing.layout import arrange
from tfssl.data.sources.splits import resolve
from tfssl.errors import UserError

EACH = 6


def find(text):
    """The layout of several folders, which hold six images each, and of single images (a.jpg)."""
    names = text.split()
    images = [f"{n}/{i}.jpg" for n in names if not n.endswith(".jpg") for i in range(EACH)]
    return arrange(images + [n for n in names if n.endswith(".jpg")])


def open_split(found, split):
    """What opening a split gives: (its images, {class: images}); None for the class where there is
    none."""
    sizes = {name: [sum(len(part.names) for part in parts)] for name, parts in found.splits.items()}
    ((name, start, stop),) = resolve(split, sizes, "folder:x")
    parts = found.splits[name]
    assert (start, stop) == (0, sizes[name][0])
    images = [
        (part.folder + n, c)
        for part in parts
        for n, c in zip(part.names, part.classes(), strict=True)
    ]
    return [path for path, _ in images], {of_class for _, of_class in images}


# What people publish: (folders, which one is train, its classes, which one is test, or val).
SPLITS = {
    "Kaggle's brain tumors": ("Training/a Training/b Testing/a Testing/b", "Training/", "ab", "test", "Testing/"),
    "fruits-360": ("Training/a Training/b Test/a", "Training/", "ab", "test", "Test/"),
    "capitals": ("Train/a Train/b Test/a", "Train/", "ab", "test", "Test/"),
    "shouting": ("TRAIN/a TRAIN/b VALIDATION/a", "TRAIN/", "ab", "val", "VALIDATION/"),
    "YOLO": ("images/train images/val labels/train", "images/train/", "", "val", "images/val/"),
    "YOLO with classes": ("images/train/a images/train/b images/val/a", "images/train/", "ab", "val", "images/val/"),
    "Roboflow": ("train/images valid/images test/images", "train/", "", "val", "valid/"),
    "within itself": ("train/train/a train/train/b test/test/a", "train/train/", "ab", "test", "test/test/"),
    "within itself, flat": ("train/train test1/test1", "train/train/", "", "test", "test1/test1/"),
    "Intel": ("seg_train/seg_train/a seg_train/seg_train/b seg_test/seg_test/a seg_pred/seg_pred", "seg_train/", "ab", "test", "seg_test/"),
    "ImageNet": ("ILSVRC/Data/CLS/train/a ILSVRC/Data/CLS/train/b ILSVRC/Data/CLS/val", "ILSVRC/Data/CLS/train/", "ab", "val", "ILSVRC/"),
    "Tiny ImageNet": ("train/a/images train/b/images val/images test/images", "train/", "ab", "val", "val/images/"),
    "versions": ("train.v1/a train.v1/b test.v1/a", "train.v1/", "ab", "test", "test.v1/"),
    "years": ("train2017 val2017 test2017", "train2017/", "", "val", "val2017/"),
    "numbers": ("01_train/a 01_train/b 02_test/a", "01_train/", "ab", "test", "02_test/"),
    "sets": ("training_set/a training_set/b test_set/a", "training_set/", "ab", "test", "test_set/"),
    "hyphens": ("train-set/a train-set/b test-set/a", "train-set/", "ab", "test", "test-set/"),
    "data": ("Train_Data/a Train_Data/b Test_Data/a", "Train_Data/", "ab", "test", "Test_Data/"),
    "images": ("train_images test_images", "train_images/", "", "test", "test_images/"),
    "one word": ("trainset/a trainset/b valset/a", "trainset/", "ab", "val", "valset/"),
    "camel": ("TrainImages TestImages", "TrainImages/", "", "test", "TestImages/"),
    "SVHN": ("train_32x32 test_32x32 extra_32x32", "train_32x32/", "", "test", "test_32x32/"),
    "a name in common": ("flowers_train/a flowers_train/b flowers_test/a", "flowers_train/", "ab", "test", "flowers_test/"),
    "a name beside": ("train/a train/b challenge_test", "train/", "ab", "test", "challenge_test/"),
    "hold-out": ("train/a train/b hold-out/a", "train/", "ab", "test", "hold-out/"),
    "eval": ("train/a train/b eval/a", "train/", "ab", "test", "eval/"),
    "dev": ("train/a train/b dev/a", "train/", "ab", "val", "dev/"),
    "validation": ("train/a train/b validation/a", "train/", "ab", "valid", "validation/"),
    "German": ("Trainingsdaten/a Trainingsdaten/b Validierung/a", "Trainingsdaten/", "ab", "val", "Validierung/"),
    "Spanish": ("entrenamiento/a entrenamiento/b validación/a prueba/a", "entrenamiento/", "ab", "test", "prueba/"),
    "a split in a split": ("train/train/a train/train/b train/val/a test/a", "train/train/", "ab", "val", "train/val/"),
    "a copy of all": ("train/a train/b test/a chest/train/a chest/train/b chest/test/a", "train/", "ab", "test", "test/"),
    "a flat test": ("images/train/a images/train/b images/val/a test", "images/train/", "ab", "test", "test/"),
    "an outer name that tells a role": ("tests/train/a tests/train/b tests/test/a", "tests/train/", "ab", "test", "tests/test/"),
    "wrapped classes": ("train/PetImages/a train/PetImages/b val/PetImages/a", "train/PetImages/", "ab", "val", "val/PetImages/"),
    "masks within": ("train/images train/masks val/images val/masks", "train/images/", "", "val", "val/images/"),
    "masks beside": ("train train_masks test", "train/", "", "test", "test/"),
    "a class of its own for what is unknown": ("train/a train/b test/unknown", "train/", "ab", "test", "test/unknown/"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPLITS)
def test_split_folders_by_other_peoples_names(case):
    text, train, classes, other, there = SPLITS[case]
    found = find(text)
    images, named = open_split(found, "train")
    assert images and all(image.startswith(train) for image in images)
    assert named == (set(classes) or {None})
    images, named = open_split(found, other)
    assert images and all(image.startswith(there) for image in images)
    assert named <= {*classes, None}


def test_splits_within_each_class():
    found = find("cat/Train cat/Test dog/train dog/test owl/train")
    for split, count in (("train", 3 * EACH), ("test", 2 * EACH)):
        images, named = open_split(found, split)
        assert len(images) == count and {image.split("/")[1].lower() for image in images} == {split}
        assert named == ({"cat", "dog", "owl"} if split == "train" else {"cat", "dog"})


# Folders with a split's name that are none: (folders, the classes of all).
CLASSES = {
    "a railway": ("bus car train", {"bus", "car", "train"}),
    "by day": ("bus/day1 car/day1 train/day1", {"bus", "car", "train"}),
    "by days": ("bus/day1 bus/day2 car/day1 train/day1 train/day2", {"bus", "car", "train"}),
    "by clip": ("bus/clip1 car/clip2 car/clip3 train/clip4 train/clip5", {"bus", "car", "train"}),
    "a railway of two": ("bus/left train/left", {"bus", "train"}),
    "images and folders": ("bus bus/old car train train/old", {"bus", "car", "train"}),
    "validity": ("invalid valid", {"invalid", "valid"}),
    "an experiment": ("control test", {"control", "test"}),
    "kinds of trains": ("bullet_train freight_train bus", {"bullet_train", "bus", "freight_train"}),
    "things": ("train test_tube bus car", {"bus", "car", "test_tube", "train"}),
    "a bench": ("Bus Train Training_bench", {"Bus", "Train", "Training_bench"}),
    "a lone fold": ("fold1 crease", {"crease", "fold1"}),
    "numbers": ("1 2 10", {"1", "2", "10"}),
    "characters": ("x v @", {"x", "v", "@"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CLASSES)
def test_classes_with_a_splits_name(case):
    text, classes = CLASSES[case]
    images, named = open_split(find(text), "train")
    assert len(images) == EACH * len(text.split()) and named == classes


def test_the_same_role_twice_is_for_the_user_to_choose():
    found = find("train/a train/b val/a valid/a")
    assert {path.partition("/")[0] for path in open_split(found, "valid")[0]} == {"valid"}
    with pytest.raises(
        UserError,
        match=r"'validation' of folder:x could be val \(6 examples\) or valid .*name one, or join them: val\+valid",
    ):
        open_split(found, "validation")
    with pytest.raises(UserError, match=r"could be trainA .* or trainB .*trainA\+trainB"):
        open_split(find("trainA trainB testA testB"), "train")


def test_folds_are_splits():
    found = find(
        "cross-validation/fold1/a cross-validation/fold1/b cross-validation/fold2/a "
        "cross-validation/fold3/b"
    )
    assert set(found.splits) == {"fold1", "fold2", "fold3"} and open_split(found, "fold1")[1] == {
        "a",
        "b",
    }
    with pytest.raises(
        UserError, match=r"no split 'train'; .*join the folds to train on, such as fold2\+fold3"
    ):
        open_split(found, "train")
    found = find(
        "fold1/train/a fold1/train/b fold1/test/a fold2/train/a fold2/test/b"
    )  # one fold's test images are another's to train on
    assert set(found.splits) == {"fold1/train", "fold1/test", "fold2/train", "fold2/test"}
    with pytest.raises(UserError, match="could be fold1/train .* or fold2/train"):
        open_split(found, "train")


@pytest.mark.parametrize(
    "name", ["unlabeled", "unlabelled", "Unlabeled", "train_unlabeled", "unsup"]
)
def test_unlabeled_images_are_a_split_without_labels(name):
    found = find(f"train/a train/b test/a {name}/0 {name}/1")
    images, named = open_split(found, "unlabeled")
    assert len(images) == 2 * EACH and named == {None}
    assert open_split(found, "train")[1] == {"a", "b"}


def test_more_images_have_labels_if_their_folders_are_classes():
    found = find("train/a train/b test/a extra/a extra/b")
    assert open_split(found, "extra")[1] == {"a", "b"}
    assert open_split(find("train/a train/b test/a extra/2019 extra/2020"), "extra")[1] == {None}


def test_what_is_passed_over_is_named():
    found = find("train/a train/b test/a docs augmented/a augmented/b logo.jpg")
    assert found.passed == {"docs/": EACH, "augmented/": 2 * EACH} and found.beside_splits == [
        "logo.jpg"
    ]
    assert find("archive/train/a archive/train/b archive/test/a archive/docs").passed == {
        "archive/docs/": EACH
    }
    assert find("images/train images/val labels/train").passed == {"labels/": EACH}
    assert find("JPEGImages SegmentationClass").passed == {"SegmentationClass/": EACH}
    assert find("bus car train").taken == ["train"] and not find("bus car train").passed


def test_few_images_beside_the_classes_are_left_out_and_more_take_the_labels():
    found = find("a b preview.jpg")  # 1 of 13
    assert (
        found.stray == ["preview.jpg"]
        and open_split(found, "train")[1] == {"a", "b"}
        and not found.loose
    )
    found = find("train/a train/b train/preview.jpg test/a test/b")
    assert found.stray == ["train/preview.jpg"] and len(open_split(found, "train")[0]) == 2 * EACH
    found = find("a b x.jpg y.jpg")  # 2 of 14
    assert found.loose == {"train": ["x.jpg", "y.jpg"]} and not found.stray
    images, named = open_split(found, "train")
    assert len(images) == 14 and named == {None}


def test_the_order_depends_on_the_path_within_the_split_alone():
    """Which is what a run that was begun before these names were known has seen."""
    for text in (
        "train/a train/b test/a",
        "outer/train/a outer/train/b outer/test/a",
        "Train/a Train/b test/a",
        "a b",
        "outer/a outer/b",
    ):
        found = find(text)
        (part,) = next(parts for name, parts in found.splits.items() if name.lower() == "train")
        assert sorted(part.key + name for name in part.names) == sorted(
            f"{c}/{i}.jpg" for c in "ab" for i in range(EACH)
        )
    (part,) = find("train/images test/images").splits["train"]
    assert sorted(part.key + name for name in part.names) == [
        f"images/{i}.jpg" for i in range(EACH)
    ]
