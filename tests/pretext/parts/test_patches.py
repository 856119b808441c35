"""What jigsaw and relative patch location share: patches of an image, the head on tuples of them,
the published encoder."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones, export, pretext
from tfssl.data.ops import image as ops
from tfssl.data.ops.draws import Draws
from tfssl.errors import UserError
from tfssl.pretext.jigsaw import Jigsaw
from tfssl.pretext.relative_patch import RelativePatch

TASKS = {"jigsaw": Jigsaw, "relative_patch": RelativePatch}
SMALL = {"image_size": 39, "scaled_size": 46, "patch_size": 10, "head_units": 12}


def network(width=7):
    """Two endpoints, a map and the pre-logits, with batch normalization and without."""
    x = images = tf.keras.Input([None, None, 3])
    x = tf.keras.layers.Conv2D(4, 3, 2, padding="same", use_bias=False, name="conv1")(x)
    x = block = tf.keras.layers.BatchNormalization(momentum=0.5, name="bn")(x)
    x = tf.keras.layers.Conv2D(width, 3, padding="same", activation="tanh", name="conv2")(x)
    x = tf.keras.layers.GlobalAveragePooling2D(name="mean")(x)
    return tf.keras.Model(images, {"block": block, "pre_logits": x}, name="two")


def build(task="relative_patch", backbone=None, **settings):
    settings = {**SMALL, **settings}
    model = TASKS[task](backbones.build(backbone or network()), **settings)
    model.settings = settings
    return model


def picture(height=60, width=50, seed=0):
    """Every pixel another, so that a place can be told."""
    return np.random.default_rng(seed).integers(0, 256, [height, width, 3], np.uint8)


def seed(number):
    return tf.constant([7, number], tf.int64)


def scaled(image, side=46):
    return np.round(tf.image.resize(image.astype(np.float32), [side, side])).astype(np.uint8)


def batch_of(rows, side=10, patches=9, **entries):
    image = np.random.default_rng(1).random([rows, patches, side, side, 3])
    numbers = {"number": tf.range(rows, dtype=tf.int64), "seed": tf.zeros([rows], tf.int64)}
    return {"image": tf.constant(image, tf.keras.backend.floatx()), **numbers, **entries}


def test_the_studys_sizes_are_the_defaults():
    model = RelativePatch(backbones.build(network()))
    assert (
        model.example({"image": picture()}, None)["image"].shape == (9, 64, 64, 3)
        and model.image_size == 255
    )
    assert model.evaluation_size == (192, 255)  # supplement, section 2
    assert model.hidden[0].units == 2 * 4096 and len(model.hidden) == 2 and model.head.units == 8


@pytest.mark.parametrize("grid,image_size", [(3, 39), (2, 39), (3, 30)])
def test_evaluation_patches_are_central_slices(grid, image_size):
    image = picture()
    found = build("jigsaw", grid=grid, image_size=image_size, permutations=20).example(
        {"image": image}, None
    )["image"]
    whole, cell = scaled(image), image_size // grid
    begin = (46 - image_size) // 2 + (cell - 10) // 2
    places = [(begin + i * cell, begin + j * cell) for i in range(grid) for j in range(grid)]
    np.testing.assert_array_equal(found, [whole[y : y + 10, x : x + 10] for y, x in places])


def test_training_patches_are_slices_of_their_cells():
    image = picture()
    whole = scaled(image)
    model = build(gray=0.0)
    for number in range(20):
        for p, patch in enumerate(model.example({"image": image}, seed(number))["image"].numpy()):
            places = np.argwhere((whole[: 46 - 9, : 46 - 9] == patch[0, 0]).all(-1))
            (place,) = [
                tuple(at)
                for at in places
                if (whole[at[0] : at[0] + 10, at[1] : at[1] + 10] == patch).all()
            ]
            offset = np.subtract(place, (13 * (p // 3), 13 * (p % 3)))
            assert offset.min() >= 0 and offset.max() <= (46 - 39) + (13 - 10)


@pytest.mark.parametrize("per_patch", [False, True])
def test_gray_coins(per_patch):
    image = picture()
    coloured = build(gray=0.0)
    model = build(gray_per_patch=per_patch)
    count = []
    for number in range(200):
        patches = model.example({"image": image}, seed(number))["image"].numpy()
        plain = coloured.example({"image": image}, seed(number))["image"].numpy()
        gray = (patches == patches[..., :1]).all((1, 2, 3))
        np.testing.assert_array_equal(patches[~gray], plain[~gray])
        np.testing.assert_allclose(
            patches[gray], np.repeat(plain[gray].mean(-1, keepdims=True), 3, -1), atol=0.5
        )
        count.append(gray.sum())
    if not per_patch:
        assert set(count) == {0, 9}
    assert abs(np.mean(count) / 9 - 1 / 3) < (
        0.04 if per_patch else 0.09
    )  # 2.5 standard deviations
    assert (np.var(count) < 4) == per_patch  # 2 for nine coins, 18 for one
    patches = model.example({"image": image}, None)["image"].numpy()
    assert (patches != patches[..., :1]).any((1, 2, 3)).all()  # evaluation is in color


def naive_head(model, features, rows, training, kept=None):
    """Concatenate the features of each tuple; dense layers, batch normalization, ReLU and dropout
    in NumPy."""
    n, count = rows.shape

    def norm(x, layer):
        mean, variance = layer.moving_mean.numpy(), layer.moving_variance.numpy()
        if training:
            mean, variance = x.reshape(-1, x.shape[-1]).mean(0), x.reshape(-1, x.shape[-1]).var(0)
        return np.maximum(
            (x - mean) / np.sqrt(variance + 1e-5) * layer.gamma.numpy() + layer.beta.numpy(), 0
        )

    def kernel_of(layer):
        """DxkU -> kDxU"""
        return np.concatenate(np.split(layer.kernel.numpy(), layer.places, axis=1), axis=0)

    if model.embedding:
        features = features @ model.embedding.kernel.numpy()
    if model.embedding_bn:
        features = norm(features, model.embedding_bn)
    x = [
        [np.concatenate([features[i][p] for p in model.table[row]]) for row in rows[i]]
        for i in range(n)
    ]
    x = np.array(x).reshape(n * count, -1)
    for i, (layer, its_norm) in enumerate(zip(model.hidden, model.norms)):
        x = norm(x @ kernel_of(layer), its_norm)
        if training:
            x = x * kept[:, i].reshape(n * count, -1) / (1 - model.head_dropout)
    return x @ kernel_of(model.head) + model.head.bias.numpy()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layers,embedding", [(2, 0), (1, 5), (3, 0), (0, 5)])
@pytest.mark.parametrize("task", TASKS)
def test_the_head_sees_concatenated_patches(task, layers, embedding, training, float64):
    """The main text's head (two layers on the pre-logits), the code's (one, on embeddings) and that
    of Goyal et al. (linear on embeddings with BN and ReLU), by loops over images and tuples."""
    settings = {"permutations": 20, "permutations_per_image": 6} if task == "jigsaw" else {}
    settings["embedding_norm"] = layers == 0
    model = build(
        task, head_layers=layers, patch_embedding_size=embedding, head_dropout=0.3, **settings
    )
    batch = batch_of(4)
    batch = model.augment(batch, Draws(batch))
    model(batch)
    rng = np.random.default_rng(0)
    for v in model.variables:
        v.assign(rng.uniform(0.5, 1.5, v.shape) if "bn" in v.name else rng.normal(0, 0.5, v.shape))
    features = model.backbone(model.normalize(model.preview(batch)), training=training)[
        "pre_logits"
    ].numpy()
    rows = model.questions(batch).numpy()
    assert rows.shape == ((4, 6) if task == "jigsaw" else (4, 8))
    expected = naive_head(
        model, features.reshape(4, 9, -1), rows, training, batch["kept"].numpy() if layers else None
    )
    logits = model(batch, training=training)
    np.testing.assert_allclose(logits, expected, atol=1e-9)
    assert logits.shape == (rows.size, len(model.table))


def test_the_siamese_head_has_the_published_size():
    """Goyal et al.: 2048 -> 1000 with BN, shared by the patches; 9000 -> |P| with a bias."""
    features = tf.keras.Sequential(
        [tf.keras.layers.GlobalAveragePooling2D(), tf.keras.layers.Dense(2048)]
    )
    settings = {
        "patch_embedding_size": 1000,
        "embedding_norm": True,
        "head_layers": 0,
        "permutations": 701,
    }
    model = build("jigsaw", features, **settings, permutations_per_image=1)
    model.prepare()
    head = sum(int(np.prod(v.shape)) for v in model.trainable_variables) - 4 * 2048
    assert head == 2048 * 1000 + 2 * 1000 + 9000 * 701 + 701


def test_images_as_goyal_et_al_prepare_them():
    """The aspect kept, a flip, ImageNet's mean and deviation."""
    image = picture(60, 90)
    common = {"scaled_size": 40, "keep_aspect": True, "gray": 0.0}
    small = np.asarray(ops.resize_small(image, 40))
    assert small.shape == (40, 60, 3)
    places = [
        np.add(13 * np.array([i, j]), 1) for i in range(3) for j in range(3)
    ]  # (13 - 10) // 2 within each cell
    expected = [small[y : y + 10, 10 + x : 10 + x + 10] for y, x in places]
    np.testing.assert_array_equal(
        build(**common, flip=True).example({"image": image}, None)["image"], expected
    )
    seen = set()
    for number in range(40):
        patch = (
            build(**common, flip=True).example({"image": image}, seed(number))["image"].numpy()[4]
        )
        whole = {False: small, True: small[:, ::-1]}
        found = [
            mirrored
            for mirrored, its in whole.items()
            for y, x in np.argwhere((its[:31, :51] == patch[0, 0]).all(-1))
            if (its[y : y + 10, x : x + 10] == patch).all()
        ]
        assert len(found) == 1
        seen.add(found[0])
    assert seen == {False, True}
    one = tf.constant(np.random.default_rng(0).random([2, 10, 10, 3]))
    expected = (one - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(build(standardize=False).normalize(one), expected)


def test_dropout_is_drawn_anew_for_each_image_and_step():
    model = build(head_units=500, head_dropout=0.25)
    batch = batch_of(3)
    kept = model.augment(batch, Draws(batch))["kept"].numpy()  # NxLxtxU
    assert kept.shape == (3, 2, 8, 500) and abs(kept.mean() - 0.75) < 0.01
    following = {**batch, "number": batch["number"] + 3}
    for other in (
        model.augment(following, Draws(following))["kept"].numpy(),
        kept[::-1],
        kept[:, ::-1],
    ):
        assert (
            abs((kept == other)[[0, 2]].mean() - (0.75**2 + 0.25**2)) < 0.02
        )  # as of independent ones
    assert "kept" not in build(head_dropout=0.0).augment(batch, Draws(batch))


@pytest.mark.parametrize("combine", ["avg", "max", "concat"])
@pytest.mark.parametrize("height,width", [(48, 48), (50, 67), (31, 90)])
def test_the_published_encoder_combines_nine_patches(combine, height, width, float64):
    model = build(combine_patches=combine)
    images = np.random.default_rng(0).random([2, height, width, 3])
    found = model.encode(tf.constant(images))
    h, w = height // 3, width // 3
    top, left = height % 3 // 2, width % 3 // 2
    each = []
    for i in range(3):
        for j in range(3):
            patch = images[:, top + i * h : top + (i + 1) * h, left + j * w : left + (j + 1) * w]
            mean, deviation = (f(patch, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
            each.append(model.backbone((patch - mean) / deviation))
    for name, value in found.items():
        patches = np.stack([e[name] for e in each], -1)
        expected = {"avg": patches.mean(-1), "max": patches.max(-1)}.get(combine)
        if combine == "concat":
            expected = patches.reshape(*patches.shape[:-2], -1)
        np.testing.assert_allclose(value, expected, atol=1e-9)


def test_sizes_of_the_published_encoder():
    model = TASKS["jigsaw"](backbones.build("resnet18_v2", 0.125, "patch"), head_units=8)
    assert model.min_image_size == 3 * 8  # a total stride of 8
    assert model.evaluation_size == (192, 255)
    assert build(evaluation_resize=224, patch_size=10).evaluation_size == (30, 224)


def test_the_module_takes_images_of_any_size(tmp_path):
    backbone = backbones.build("resnet18_v2", 1 / 16, "small")
    model = pretext.build("relative_patch", backbone, combine_patches="concat", **SMALL)
    module = tf.saved_model.load(export.save(model, tmp_path / "1"))
    for n, height, width in ((2, 48, 48), (1, 50, 67)):
        images = np.random.default_rng(0).random([n, height, width, 3]).astype(np.float32)
        expected = model.encode(tf.constant(images))
        np.testing.assert_allclose(module(images), expected["pre_logits"], atol=1e-4)
        np.testing.assert_allclose(
            module.endpoints(images)["block2"], expected["block2"], atol=1e-4
        )
    assert module(images).shape == (1, 9 * 32)


def test_half_precision_starts_behind_standardisation(photos):
    """Patches of a low contrast would be lost in 256 levels between 1 and 2."""
    tf.keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        seen = []

        class Probe(RelativePatch):
            def normalize(self, images):
                seen.append((images.dtype, super().normalize(images).dtype))
                return super().normalize(images)

        model = Probe(backbones.build(network()), **SMALL)
        model.compile(tf.keras.optimizers.SGD(0.01), jit_compile=True)
        source = tfssl.open_source(f"folder:{photos}")
        history = model.fit(model.dataset(source, 4, steps=1), steps_per_epoch=1, verbose=0).history
        assert set(seen) == {(tf.float32, tf.float32)} and np.isfinite(history["loss"][0])
        assert model(batch_of(2)).dtype == tf.float32
    finally:
        tf.keras.mixed_precision.set_global_policy(None)


def test_evaluation_is_deterministic(photos):
    tf.keras.utils.set_random_seed(0)
    model = build("jigsaw", permutations=20)
    model.compile(tf.keras.optimizers.SGD(0.1))
    source = tfssl.open_source(f"folder:{photos}")
    results = [
        model.evaluate(model.evaluation_dataset(source, n), verbose=0, return_dict=True)
        for n in (16, 16, 7)
    ]
    assert results[0] == results[1]
    np.testing.assert_allclose(results[0]["loss"], results[2]["loss"], rtol=1e-5)


@pytest.fixture(scope="module")
def rings(tmp_path_factory):
    """Pictures that grow darker away from their center, with noise: how they do tells each patch's
    place, its level does not."""
    root = tmp_path_factory.mktemp("rings")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:33j, -1:1:33j]
    for i in range(64):
        ring = (
            200
            - 130 * np.hypot(y, x)[..., None]
            + rng.normal(0, 3, [33, 33, 3])
            + rng.uniform(-20, 20, [1, 1, 3])
        )
        picture = np.clip(ring, 0, 255).astype(np.uint8)
        (root / f"{i:02}.png").write_bytes(tf.io.encode_png(picture).numpy())
    return root


@pytest.mark.parametrize("task", TASKS)
def test_it_learns(task, rings):
    tf.keras.utils.set_random_seed(0)
    backbone = tf.keras.Sequential(
        [tf.keras.layers.Conv2D(16, 3, 2, name="conv"), tf.keras.layers.ReLU(name="relu")]
    )
    settings = {
        "image_size": 30,
        "scaled_size": 33,
        "patch_size": 8,
        "head_units": 64,
        "head_bn_momentum": 0.8,
    }
    model = build(task, backbone, **settings, **({"permutations": 20} if task == "jigsaw" else {}))
    model.compile(tf.keras.optimizers.Adam(3e-3))
    source, held_out = (
        tfssl.open_source(f"folder:{rings}", split) for split in ("train[:75%]", "train[75%:]")
    )
    model.fit(model.dataset(source, 16), steps_per_epoch=80, verbose=0)
    result = model.evaluate(model.evaluation_dataset(held_out, 16), verbose=0, return_dict=True)
    assert result["accuracy"] > 0.8 and result["loss"] < 0.7, result


@pytest.mark.parametrize(
    "settings,message",
    [
        (
            {"patch_size": 14},
            "patch_size=14 does not fit: image_size=39 in 3 cells a side leaves 13 pixels",
        ),
        ({"scaled_size": 38}, "scaled_size=38 must be at least image_size=39"),
        ({"grid": 1}, "grid=1"),
        ({"grid": 2}, "grid=2 has no central cell"),
        ({"evaluation_resize": 29}, "evaluation_resize=29 must be at least grid . patch_size = 30"),
        ({"head_layers": -1}, "head_layers=-1 must be at least 0"),
        ({"embedding_norm": True}, "embedding_norm needs a layer to follow"),
        ({"gray": 1.5}, "gray=1.5"),
        ({"head_dropout": 1.0}, "head_dropout=1.0"),
        ({"combine_patches": "mean"}, "combine_patches=mean: choose one of avg, max, concat"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(UserError, match=message):
        build(**settings)
