"""What people call their splits: the role that a name plays, such as `train` for Training,
train_images or seg_train.

A name is read as words (at capitals, digits and whatever is no letter). One of them has to tell the
role; beside it there may be words that tell nothing (`images`, `set`, `v1`). What is left over
keeps apart names such as flowers_train, which is a split beside flowers_test, and bullet_train,
which is none.
"""

from __future__ import annotations

import functools
import re
import unicodedata

_WORDS = {
    "train": "train training trn pretrain pretraining learn learning trainingsdaten "
    "entrenamiento entrainement apprentissage treino treinamento addestramento",
    "val": "val valid validate validating validation vld dev devel development cv "
    "validierung validierungsdaten validacion validacao validazione",
    "test": "test tests testing tst eval evaluate evaluating evaluation holdout heldout "
    "testdaten prueba pruebas teste prova",
    "trainval": "trainval",
    "unlabeled": "unlabeled unlabelled unlabel unsup unsupervised",
    "extra": "extra extras additional",
    "predict": "pred predict prediction predictions inference",
}
_ROLE = {word: role for role, words in _WORDS.items() for word in words.split()}
_FILLERS = set(
    "image images img imgs jpegimages pic pics picture pictures photo photos frame frames sample "
    "samples rgb color jpg jpeg png data "
    "dataset datasets set sets split splits subset folder dir file files part batch v ver version "
    "x px new old final full all small mini "
    "tiny large big raw clean original orig resize resized crop crops cropped aug augmented sorted "
    "seg cls classification labeled labelled "
    "cross the my of for to bilder daten datos datas imagenes imagens conjunto de".split()
)
_PICTURES = set("image images img imgs pic pics picture pictures photo photos jpegimages".split())
_ANNOTATIONS = set(
    "label labels annot annots annotation annotations mask masks gt groundtruth bbox bboxes depth "
    "normals".split()
)
_WHOLE_ANNOTATIONS = set(
    "segmentation segmentations segmentationclass segmentationobject".split()
)  # names, not words in them
MEASURED = ("val", "test")  # never to be trained on
PRIMARY = (
    "train",
    "val",
    "test",
    "trainval",
)  # one of these makes a folder of folders a folder of splits; and two folds do


@functools.cache
def words(name: str) -> tuple[str, ...]:
    """The words of a name, in lower case and without accents; numbers are words."""
    plain = "".join(c for c in unicodedata.normalize("NFD", name) if not unicodedata.combining(c))
    plain = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", plain).lower()
    return tuple(
        re.findall(
            r"[^\W\d_]+|\d+", re.sub(r"\b(hold|held)[\W_]+out\b", r"\1out", plain.replace("_", " "))
        )
    )


@functools.cache
def read(name: str) -> tuple[str | None, tuple[str, ...]]:
    """(role, the words beside it that tell something).

    The role is one of train, val, test, trainval, unlabeled, extra, predict, fold1, fold2 ...; None
    for a name that tells none, or two.
    """
    found, rest = [], []
    told = words(name)
    for i, word in enumerate(told):
        role = _ROLE.get(word) or _compound(word)
        if word in ("fold", "folds", "kfold") and told[i + 1 : i + 2] and told[i + 1].isdigit():
            role = f"fold{int(told[i + 1])}"
        if role:
            found.append(role)
        elif word not in _FILLERS and not word.isdigit():
            rest.append(word)
    roles = set(found)
    if not roles and {"labeled", "labelled"} & set(told):
        roles = {"train"}
    for several, one in (({"train", "val"}, "trainval"), ({"val", "test"}, "test")):
        roles = {one} if roles == several else roles
    for strongest in ("unlabeled", "extra"):  # train_unlabeled, train_extra
        roles = {strongest} if strongest in roles else roles
    return (roles.pop() if len(roles) == 1 else None), tuple(rest)


def is_primary(role: str | None) -> bool:
    """Whether folders called so are splits by themselves; the others are beside such."""
    return role in PRIMARY or (role or "").startswith("fold")


def are_pictures(name: str) -> bool:
    """Whether a folder's name says "images" and nothing else."""
    return bool(words(name)) and set(words(name)) <= _PICTURES


def are_annotations(name: str) -> bool:
    """Whether a folder's name tells of labels, masks or the like."""
    return bool(set(words(name)) & _ANNOTATIONS) or "".join(words(name)) in _WHOLE_ANNOTATIONS


def _compound(word: str) -> str | None:
    """The role of trainset, testimages, minival."""
    for known, role in _ROLE.items():
        rests = (
            word[len(known) :] if word.startswith(known) else "",
            word[: -len(known)] if word.endswith(known) else "",
        )
        if any(len(rest) > 2 and rest in _FILLERS for rest in rests):
            return role
    return None
