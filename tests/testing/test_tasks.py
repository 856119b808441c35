"""The check of tasks: all of ours pass it. (Those with one fault each: test_broken_tasks.py.)"""

import sys

import pytest
import tensorflow as tf
from published import Halves, Teacher
from sequences import Sequences
from tensorflow.python.distribute import mirrored_strategy

import tfssl
from tfssl import backbones, pretext
from tfssl.backbones.norm import BatchNorm
from tfssl.errors import UserError
from tfssl.pretext.rotation import Rotation
from tfssl.runtime import strategy as strategies
from tfssl.testing import check_task, subject
from tfssl.testing.tasks import PARTS

PATCHES = {
    "image_size": 24,
    "scaled_size": 28,
    "patch_size": 7,
    "patch_embedding_size": 8,
    "head_units": 16,
}
PUZZLES = {"jigsaw_size": 24, "jigsaw_patch_size": 7, "jigsaw_augmentation": "crop"}
EMBEDDING = {"projection_size": 8, "augmentation": "crop"}
TASKS = {
    "rotation": {},
    "exemplar": {"copies": 3, "embedding_size": 8, "global_triplets": True},
    "exemplar_cnn": {"scaled_size": 24},
    "jigsaw": {**PATCHES, "permutations": 12, "permutations_per_image": 4},
    "relative_patch": PATCHES,
    "colorization": {"resize": 18, "bins": "gamut"},
    "instance_discrimination": {"negatives": 8, **EMBEDDING},
    "cmc": {"negatives": 8, **EMBEDDING},
    "split_brain": {"resize": 18, "bins": "gamut", "light_bins": 10},
    "local_aggregation": {
        "negatives": 8,
        "clusters": 6,
        "clusterings": 2,
        "background_neighbors": 12,
        "instance_epochs": 0.0,
        "kmeans_iterations": 2,
        **EMBEDDING,
    },
    "deepcluster": {"clusters": 6, "kmeans_iterations": 2, "pca_size": 5},
    "deepcluster_v2": {
        "projection_hidden": 12,
        "clusters": 6,
        "clusterings": 2,
        "kmeans_iterations": 2,
        "small_crops": 2,
        "small_size": 12,
        **EMBEDDING,
    },
    "pirl": {"negatives": 8, **PUZZLES, **EMBEDDING},
    "moco": {"queue_size": 32, "split_batch_norm": 1, **EMBEDDING},
    "infomin": {"queue_size": 32, "split_batch_norm": 1, **PUZZLES, **EMBEDDING},
    "clsa": {
        "queue_size": 32,
        "split_batch_norm": 1,
        "weak_sizes": "12",
        "strong_sizes": "12",
        "strong_ops": 0,
        **EMBEDDING,
    },
    "simclr": {"projection_size": 8},  # with all its augmentation
    "simclr of frames": {"max_gap": 2, **EMBEDDING},
    "order_verification": {"max_span": 8, "min_gap": 3, "head_layers": 1, "head_units": 8},
    "simclr with a memory": {"queue_size": 32, "num_classes": 0, **EMBEDDING},
    "byol": {"projection_hidden": 12, **EMBEDDING},
    "swav": {
        "projection_hidden": 12,
        "prototypes": 6,
        "small_crops": 2,
        "small_size": 12,
        "queue_size": 16,
        "freeze_prototypes_steps": 0,
        **EMBEDDING,
    },
    "simsiam": {"prediction_size": 6, **EMBEDDING},
    "barlow_twins": {"projection_layers": 2, "bias_rate": 0.5, "loss_factor": 0.1, **EMBEDDING},
    "vicreg": {
        "projection_layers": 2,
        "invariance_weight": 1.0,
        "variance_weight": 1.0,
        "covariance_weight": 0.04,
        **EMBEDDING,
    },
    "nnclr": {"projection_hidden": 12, "prediction_hidden": 12, "queue_size": 32, **EMBEDDING},
    "moco_v3": {"projection_hidden": 12, "prediction_norm": True, **EMBEDDING},
    "dino": {
        "projection_hidden": 12,
        "prototypes": 6,
        "small_crops": 2,
        "small_size": 12,
        "freeze_prototypes_epochs": 0.0,
        **EMBEDDING,
    },
    "lejepa": {
        "projection_hidden": 12,
        "directions": 16,
        "small_crops": 2,
        "small_size": 12,
        **EMBEDDING,
    },
    "mae": {"decoder_channels": 8, "decoder_depth": 1, "decoder_heads": 2},
    "simmim": {"mask_unit": 8},
    "sup_con": EMBEDDING,
    "pic": {"small_crops": 2, "small_size": 12, "window": 12, "window_stride": 4, **EMBEDDING},
    "pixpro": {"projection_hidden": 8, "instance_weight": 1.0, **EMBEDDING},
    "pixpro contrast": {"projection_hidden": 8, "kind": "contrast", **EMBEDDING},
    "supervised": {},
}
# jigsaw; bank, queue and branch of others; byol's networks, simclr's and moco's losses
LIKE_OTHERS = (
    "relative_patch",
    "pirl",
    "infomin",
    "clsa",
    "simclr with a memory",
    "simclr of frames",
    "moco_v3",
    "nnclr",
    "sup_con",
    "pixpro contrast",
)
IN_PARTS = (
    "rotation",
    "exemplar",
    "instance_discrimination",
    "simclr",
    "swav",
    "moco",
)  # what others' losses do likewise
SKIPPED = {  # what is left to `make test-slow`, since another task shows it nearly as well
    task: ("resume", "replicas", "accumulation", "export")
    if task in LIKE_OTHERS
    else ("accumulation",)
    for task in TASKS
    if task not in IN_PARTS
}


ALL = set(PARTS)


def transformer(sync, groups):
    return backbones.build(
        "vit_tiny", 1 / 16, depth=2, patch=4, grid=4, bn_sync=sync, bn_groups=groups
    )


def check(task, replicas, skip=()):
    own = {"backbone": transformer} if task in ("mae", "simmim") else {}
    if task in ("simclr of frames", "order_verification"):
        own["source"] = Sequences([14, 1, 9, 3, 14])
    check_task(
        pretext.task_class(task.split()[0]), replicas=replicas, skip=skip, **own, **TASKS[task]
    )


def test_every_task_is_tested():
    """`distill`, which needs a module, in its own file."""
    assert {name.split()[0] for name in TASKS} == set(pretext.NAMES) - {"distill"}


STACK = sys.version_info >= (3, 12)  # 0: the older TensorFlow, 1: the newest
# Whole on either stack; the others, whose parts lean on the same functions, on one of the two, and
# without their parts on the other: `.ci/run` has both.
ELSEWHERE = {
    task for i, task in enumerate(task for task in TASKS if task not in IN_PARTS) if i % 2 != STACK
}


@pytest.mark.parametrize("task", TASKS)
def test_our_tasks_keep_the_contract(task, replicas):
    if replicas.num_replicas_in_sync > 2:  # test_four_replicas.py; the rest is shown on two
        skip = ALL - {"replicas"}
    else:
        skip = ALL if task in ELSEWHERE else SKIPPED.get(task, ())
    check(task, replicas, skip)


@pytest.mark.slow
@pytest.mark.parametrize("task", SKIPPED)
def test_the_parts_that_others_show_too(task, replicas):
    """On the stack at hand: `make test-slow`."""
    check(task, replicas)


QUICK = ("moco", "instance_discrimination", "deepcluster")  # a queue; a bank; labels, a reset


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=() if t in QUICK else pytest.mark.slow) for t in TASKS]
)
def test_a_step_that_xla_compiles_for_several_gpus_is_traced(task, replicas, monkeypatch):
    """TensorFlow has no `merge_call` then; what needs it fails as soon as it is traced."""
    frames = task in ("simclr of frames", "order_verification")
    source = Sequences([14, 1, 9, 3, 14]) if frames else tfssl.open_source("glyphs:48")
    network = transformer if task in ("mae", "simmim") else subject.small_network
    its = subject.Subject(pretext.task_class(task.split()[0]), source, network, TASKS[task])
    model = its.build(strategy=replicas)
    with replicas.scope():
        model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), jit_compile=True)
        model._measures = None  # `prepare` again, for the new optimizer
        model.prepare()
    data = strategies.training_data(replicas, model, source, subject.ROWS, 0, 0, 3)
    step = model.make_train_function(force=True)
    monkeypatch.setattr(mirrored_strategy, "_is_gpu_device", lambda device: True)
    step.get_concrete_function(iter(data))


@pytest.mark.slow  # as DINO and CMC do
@pytest.mark.parametrize("task", [Teacher, Halves])
def test_what_publishes_other_networks_than_its_backbone(task, replicas):
    settings = {"projection_hidden": 8, **EMBEDDING} if task is Teacher else {}
    check_task(task, replicas=replicas, skip=["resume", "export", "precision"], **settings)


def test_a_function_that_makes_a_task():
    """Its module's variables are those of its backbone, here with another normalization."""

    def network(sync, groups):
        norm = BatchNorm(0.5, sync=sync, groups=groups, name="norm")
        return backbones.build(
            tf.keras.Sequential([tf.keras.layers.Conv2D(3, 3, 4, use_bias=False), norm])
        )

    check_task(
        lambda backbone: Rotation(backbone, image_size=16), skip=ALL - {"export"}, backbone=network
    )


def test_what_is_no_part_is_refused():
    with pytest.raises(UserError, match="skip=speed: the parts of check_task are resume, replicas"):
        check_task(Rotation, skip=["speed"])


def test_too_few_devices_are_told(monkeypatch):
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: ["CPU:0"])
    with pytest.raises(
        UserError,
        match=r"needs 2, 4 or 8 .* and there are 1: .*set_logical_device.*skip=\[\"replicas\"\]",
    ):
        check_task(Rotation)
