"""The check of tasks: all of ours pass it, and those with one fault each do not."""

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


@pytest.mark.parametrize("task", TASKS)
def test_our_tasks_keep_the_contract(task, replicas):
    four = (
        replicas.num_replicas_in_sync > 2
    )  # pretext/test_task.py: what does not depend on their number has been shown
    check(task, replicas, skip=ALL - {"replicas"} if four else SKIPPED.get(task, ()))


@pytest.mark.slow
@pytest.mark.parametrize("task", SKIPPED)
def test_the_parts_that_others_show_too(task, replicas):
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


@pytest.mark.parametrize("task", [Teacher, Halves])
def test_what_publishes_other_networks_than_its_backbone(task, replicas):
    settings = {"projection_hidden": 8, **EMBEDDING} if task is Teacher else {}
    check_task(task, replicas=replicas, skip=["resume", "export", "precision"], **settings)


# Each of these is a task with one fault.


class Chance(Rotation):
    def chance(self):
        return {"loss": 1.0}


class Scalar(Rotation):
    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return tf.reduce_mean(loss), measured


class Unused(Rotation):
    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.spare = self.add_weight("spare", [4])


class LateHead(Rotation):
    """Its head is applied where gradient caching does not reach."""

    def call(self, batch, training=False):
        return tf.tile(self.endpoints(batch["image"], training)["pre_logits"], [4, 1])

    def objective(self, batch, outputs):
        return super().objective(batch, self.head(outputs))


class Both(Rotation):
    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return loss + tf.reduce_sum(self.head.kernel**2), measured


class Transposed(Rotation):
    def call(self, batch, training=False):
        return tf.transpose(super().call(batch, training))


class Noisy(Rotation):
    def augment(self, batch, draws):
        return {
            **batch,
            "image": batch["image"] * tf.random.uniform([], dtype=batch["image"].dtype),
        }


class NoisyImages(Rotation):
    def example(self, *arguments):
        example = super().example(*arguments)
        noise = tf.cast(tf.timestamp() * 1e6 % 98, tf.uint8)  # not a draw, which a seed may fix
        return {**example, "image": example["image"] // (1 + noise)}


class Blank(Rotation):
    """Looks at the mean of all rows."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        return loss + tf.reduce_mean(batch["image"]), measured


class OwnRows(Rotation):
    """Draws for the rows of a replica as if they were all."""

    def augment(self, batch, draws):
        rows = batch["image"].shape[0]
        noise = tf.random.stateless_uniform([rows, 1, 1, 1], draws.seed, dtype=tf.float32)
        return {**batch, "image": batch["image"] * tf.cast(noise, batch["image"].dtype)}


class OwnMean(Rotation):
    """Compares an image with those of its replica alone."""

    spans_batch = True

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        weight = tf.repeat(tf.cast(batch["weight"], logits.dtype), 4)[:, None]
        mean = tf.reduce_sum(weight * logits, 0) / tf.reduce_sum(weight)
        return loss + tf.reduce_sum((logits - mean) ** 2, 1), measured


class Forgets(Rotation):
    """Counts its steps in Python."""

    steps = 0

    def after_step(self, batch, outputs):
        self.steps += 1
        self.head.bias.assign_add(tf.ones_like(self.head.bias) * float(self.steps))


class NotAMean(Rotation):
    """Its loss compares the images of a batch, and it does not say so."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        weight = tf.repeat(tf.cast(batch["weight"], logits.dtype), 4)[:, None]
        mean = tf.reduce_sum(weight * logits, 0) / tf.reduce_sum(weight)
        return loss + tf.reduce_sum((logits - tf.stop_gradient(mean)) ** 2, 1), measured


class Python(Rotation):
    """Calls Python, which XLA cannot."""

    def objective(self, batch, logits):
        loss, measured = super().objective(batch, logits)
        same = tf.numpy_function(lambda x: x, [tf.stop_gradient(loss)], loss.dtype)
        return loss + 0 * tf.ensure_shape(same, loss.shape), measured


class Hidden(Rotation):
    """Publishes a layer that is not in a published network."""

    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.after = tf.keras.layers.Dense(5, name="after", dtype=tf.keras.backend.floatx())

    def endpoints(self, images, training=False):
        found = super().endpoints(images, training)
        return {**found, "pre_logits": self.after(found["pre_logits"])}

    encode = endpoints


class Frozen(Halves):
    def __init__(self, backbone, **common):
        super().__init__(backbone, **common)
        self.frozen = self.backbone.twin()
        self.frozen.trainable = False

    @property
    def published(self):
        return (self.frozen,)

    def encode(self, images, training=False):
        return self.frozen(self.normalize(images), training=training)


class Last(Rotation):
    def encode(self, images, training=False):
        return dict(reversed(super().encode(images, training).items()))


@pytest.mark.parametrize(
    "task,clause,part",
    [
        (
            Chance,
            "chance.. has the level of each metric; it names loss, and the metrics are accuracy, "
            "loss",
            None,
        ),
        (Scalar, r"objective..: the loss has a value for each image, \[n\]", None),
        (
            Unused,
            "call.. uses every trainable variable; its outputs do not depend on .*spare",
            None,
        ),
        (LateHead, "all variables exist before the first step", None),
        (Both, "objective.. sends no gradient to a variable, but to .*head/kernel", None),
        (Transposed, "call.. returns tensors whose first axis is that of the images", None),
        (Noisy, "augment.. draws from `draws` alone; image differs", None),
        (NoisyImages, "example.. is a function of image and seed; image differs", None),
        (Blank, "objective..: rows of weight 0 count for nothing; they change loss", None),
        (
            Hidden,
            "encode.. uses the variables of the published networks alone, and not .*after/kernel",
            None,
        ),
        (Last, "encode.. ends in pre_logits", None),
        (Frozen, "published: .* can be fine-tuned", None),
        (
            OwnRows,
            "augment.. gives the same rows however many replicas share the batch, here 2; image",
            "replicas",
        ),
        (OwnMean, "2 replicas learn what one does.*; .* differs by", "replicas"),
        (Forgets, "a resumed run is the uninterrupted one.*; .*head/bias.* differs by", "resume"),
        (
            NotAMean,
            "accumulation: a batch in parts is the whole batch; .* differs by",
            "accumulation",
        ),
        (Python, "a step that XLA compiled is the step; ", "xla"),
    ],
)
def test_a_broken_clause_is_named(task, clause, part, replicas):
    with pytest.raises(AssertionError, match=f"^{task.__name__}: {clause}"):
        check_task(task, replicas=replicas, skip=ALL - {part})


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
