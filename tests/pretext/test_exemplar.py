"""Exemplar: the copies of an image, the loss by hand through the task, replicas, blank rows,
standardization against tf.image."""

import numpy as np
import pytest
import tensorflow as tf

import tfssl
from tfssl import backbones
from tfssl.data.ops import image as ops
from tfssl.errors import UserError
from tfssl.pretext.exemplar import Exemplar


def exemplar(backbone=None, **settings):
    settings = {"image_size": 16, "copies": 4, "embedding_size": 12, **settings}
    model = Exemplar(backbones.build(backbone or small_network()), **settings)
    model.settings = settings
    return model


def small_network():
    """Without batch normalization, whose statistics are a replica's own."""
    return tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv"),
            tf.keras.layers.GlobalAveragePooling2D(name="pool"),
        ]
    )


@pytest.fixture(scope="module")
def jpeg():
    picture = np.random.default_rng(0).integers(0, 256, [9, 12, 3]).astype(np.uint8)
    return tf.io.encode_jpeg(np.kron(picture, np.ones([6, 6, 1], np.uint8)))


def example_of(model):
    return tf.function(
        lambda image, number: model.example(
            {"image": image}, tf.stack([tf.constant(3, tf.int64), number])
        )["image"]
    )


def mean_loss(embeddings, labels, margin):
    """The mean over ordered positive pairs, by definition."""
    distances = ((embeddings[:, None] - embeddings) ** 2).sum(-1)
    terms = []
    for a, p in np.ndindex(distances.shape):
        if labels[a] == labels[p] and a != p:
            negatives = distances[a, labels != labels[a]]
            farther = negatives[negatives > distances[a, p]]
            n = farther.min() if len(farther) else negatives.max()
            terms.append(max(0, margin + distances[a, p] - n))
    return np.mean(terms)


def test_copies_are_independent_crops_as_bytes(jpeg, source):
    model = exemplar(gray=0.0)
    copies = example_of(model)(jpeg, tf.constant(5, tf.int64))
    assert copies.shape == (4, 16, 16, 3) and copies.dtype == tf.uint8
    assert len({copy.numpy().tobytes() for copy in copies}) == 4
    again = example_of(model)(jpeg, tf.constant(5, tf.int64))
    np.testing.assert_array_equal(copies, again)
    other = example_of(model)(jpeg, tf.constant(6, tf.int64))
    assert np.any(copies != other, axis=(1, 2, 3)).all()
    batch = next(iter(model.dataset(source, 6)))
    assert batch["image"].shape == (6, 4, 16, 16, 3) and batch["image"].dtype == tf.uint8


def test_crops_are_inception_crops_of_the_decoded_image(jpeg):
    """Without flips, each copy is what `random_resized_crop` cuts from the image, decoded once,
    with some seed of its own."""
    model = exemplar(gray=0.0, flip=False)
    seed, image = tf.constant([3, 5], tf.int64), ops.decode(jpeg)
    views = [
        ops.random_resized_crop(image, seed + tf.constant([0, (k + 1) << 40], tf.int64), 16)
        for k in range(4)
    ]
    np.testing.assert_array_equal(model.example({"image": jpeg}, seed)["image"], views)
    np.testing.assert_array_equal(
        model.example({"image": image}, seed)["image"], views
    )  # from pixels too


def test_large_crops_are_reduced_before_they_are_resized():
    """Of white noise of 60 levels, means over 8 x 8 pixels keep 7.5; interpolation between
    neighbors alone keeps two thirds or so, 40."""
    noise = np.clip(np.random.default_rng(0).normal(128, 64, [512, 512, 3]), 0, 255).astype(
        np.uint8
    )
    assert 58 < noise.std() < 62
    data = tf.io.encode_jpeg(noise, quality=95, chroma_downsampling=False)
    for image in (data, noise):
        copies = exemplar(gray=0.0, flip=False).example(
            {"image": image}, tf.constant([3, 5], tf.int64)
        )["image"]
        assert max(copy.std() for copy in copies.numpy()) < 60 / 8 + 2


def test_flips_are_one_coin_per_copy(jpeg):
    plain, flipping = example_of(exemplar(gray=0.0, flip=False)), example_of(exemplar(gray=0.0))
    flipped = []
    for number in range(60):
        a, b = (f(jpeg, tf.constant(number, tf.int64)).numpy() for f in (plain, flipping))
        flipped.append([np.array_equal(x[:, ::-1], y) for x, y in zip(a, b)])
        assert all(np.array_equal(x, y) or np.array_equal(x[:, ::-1], y) for x, y in zip(a, b))
    assert 95 < np.sum(flipped) < 145  # of 240: within 3.2 standard deviations of half
    assert 20 < len({tuple(f) for f in flipped}) or len({tuple(f) for f in flipped}) == 16


def test_gray_is_one_coin_per_image(jpeg):
    example = example_of(exemplar())
    examples = (example(jpeg, tf.constant(n, tf.int64)).numpy() for n in range(300))
    coins = np.array([np.all(copies == copies[..., :1], axis=(1, 2, 3)) for copies in examples])
    assert np.all(coins == coins[:, :1])  # all copies alike
    assert abs(coins[:, 0].mean() - 0.66) < 3.2 * np.sqrt(0.66 * 0.34 / 300)
    number = tf.constant(int(np.flatnonzero(coins[:, 0])[0]), tf.int64)
    colour, gray = (example_of(exemplar(gray=p))(jpeg, number).numpy() for p in (0.0, 1.0))
    np.testing.assert_array_equal(gray, np.repeat(np.round(colour.mean(-1, keepdims=True)), 3, -1))


def test_evaluation_is_deterministic_and_its_copies_differ(jpeg, source):
    model = exemplar()
    copies = model.example({"image": jpeg}, None)["image"]
    assert len({copy.numpy().tobytes() for copy in copies}) == 4
    np.testing.assert_array_equal(
        copies, exemplar(gray=1.0).example({"image": jpeg}, None)["image"]
    )  # in colour
    passes = [list(model.evaluation_dataset(source, 32)) for _ in range(2)]
    for a, b in zip(*passes):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_colours_are_drawn_for_each_copy(source):
    model = exemplar()
    batch = model.to_float(next(iter(model.dataset(source, 4))))
    batch["image"] = tf.ones_like(batch["image"]) * tf.constant([0.3, 0.5, 0.6])
    coloured = model.augment(batch, tfssl.data.ops.draws.Draws(batch))["image"]
    assert coloured.shape == (4, 4, 16, 16, 3)
    assert len({copy.tobytes() for image in coloured.numpy() for copy in image}) == 16
    assert exemplar(color=False).augment(batch, None) is batch


@pytest.mark.parametrize("dtype", [tf.float32, tf.float64])
def test_standardisation_is_tf_images(dtype):
    """Of the levels 0 to 255."""
    rng = np.random.default_rng(0)
    images = rng.random([5, 9, 7, 3])
    images[2] = 0.7  # none at all
    images[3, ..., 1] += 3
    images[4] = 0.4 + 1e-5 * images[4]  # deviation below the floor of 1/sqrt(189) levels
    got = exemplar().normalize(tf.constant(images, dtype))
    assert got.dtype == dtype
    want = tf.image.per_image_standardization(255 * tf.constant(images))
    np.testing.assert_allclose(
        got, want, atol=2e-3
    )  # the faint image has few digits in single precision
    np.testing.assert_allclose(got[:1], want[:1], atol=1e-5)
    np.testing.assert_allclose(
        exemplar(standardize=False).normalize(tf.constant(images)), 2 * images - 1
    )


def test_the_published_encoder_standardizes():
    """Brightness and contrast do not reach the backbone."""
    model = exemplar()
    images = np.random.default_rng(0).random([3, 16, 16, 3]).astype(np.float32)
    a, b = (model.encode(tf.constant(x))["pre_logits"] for x in (images, 0.2 + 0.5 * images))
    np.testing.assert_allclose(a, b, atol=1e-5)
    assert model.evaluation_size == (16, 18)


@pytest.mark.parametrize("norm_over", ["features", "batch"])
def test_loss_by_hand_through_the_task(norm_over, source, float64):
    model = exemplar(norm_over=norm_over, margin=0.3)
    batch = model.to_float(next(iter(model.dataset(source, 5))))
    outputs = model(batch, training=True)
    assert outputs.shape == (20, 12)
    losses, measured = model.objective(batch, outputs)
    assert losses.shape == (20,) and {"loss", *measured} == set(model.chance())
    x = outputs.numpy()
    x = x / np.linalg.norm(x, axis=1 if norm_over == "features" else 0, keepdims=True)
    np.testing.assert_allclose(
        tf.reduce_mean(losses), mean_loss(x, np.repeat(np.arange(5), 4), 0.3), rtol=1e-9
    )
    # The network saw each image's copies in order.
    pictures = batch["image"].numpy().reshape(20, 16, 16, 3)
    seen = [
        model.head(model.encode(tf.constant(picture[None]))["pre_logits"])[0]
        for picture in pictures
    ]
    np.testing.assert_allclose(outputs, seen, atol=1e-12)


def test_ignorance_and_knowledge():
    model = exemplar(copies=3)
    batch = {"weight": tf.ones([4])}
    rng = np.random.default_rng(0)
    losses, measured = model.objective(
        batch, tf.constant(np.repeat(rng.normal(size=[1, 12]), 12, 0))
    )  # one point
    assert model.chance()["loss"] == model.margin
    np.testing.assert_allclose(losses, [0.5] * 12, atol=1e-9)
    np.testing.assert_array_equal(measured["losing"], np.ones(12))
    random = [
        model.objective({"weight": tf.ones([40])}, tf.constant(rng.normal(size=[120, 12])))[1]
        for _ in range(8)
    ]
    assert abs(np.mean([m["nearer"] for m in random]) - model.chance()["nearer"]) < 0.03
    known = tf.constant(np.repeat(np.eye(4, 12), 3, 0))
    losses, measured = model.objective(batch, known)
    np.testing.assert_array_equal(losses, np.zeros(12))
    np.testing.assert_array_equal(measured["losing"], np.zeros(12))
    np.testing.assert_array_equal(measured["nearer"], np.ones(12))


@pytest.mark.parametrize("norm_over", ["features", "batch"])
def test_blank_rows_take_no_part(norm_over, float64):
    model = exemplar(norm_over=norm_over)
    embeddings = np.random.default_rng(0).normal(size=[20, 12])
    alone = model.objective({"weight": tf.ones([3])}, tf.constant(embeddings[:12]))
    embeddings[12:] *= 100
    embeddings[-1] = np.nan
    padded = model.objective(
        {"weight": tf.constant([1.0, 1.0, 1.0, 0.0, 0.0])}, tf.constant(embeddings)
    )
    np.testing.assert_allclose(padded[0][:12], alone[0], rtol=1e-12)
    for name in alone[1]:
        np.testing.assert_allclose(padded[1][name][:12], alone[1][name], rtol=1e-12)


def on_each(strategy, function, *values):
    """function(rows of each of the values) on every replica, which holds its share of them: a list
    of results by replica."""
    count = strategy.num_replicas_in_sync
    parts = [np.split(value, count) for value in values]
    shared = [
        strategy.experimental_distribute_values_from_function(
            lambda c, p=p: tf.constant(p[c.replica_id_in_sync_group])
        )
        for p in parts
    ]
    results = tf.function(lambda args: strategy.run(function, args=args), autograph=False)(
        tuple(shared)
    )
    return list(zip(*(strategy.experimental_local_results(r) for r in results)))


def loss_and_gradient(model):
    """(losses, metrics, gradient of the sum of all replicas' losses) of embeddings and the images'
    weights."""

    def run(embeddings, weight):
        with tf.GradientTape() as tape:
            tape.watch(embeddings)
            losses, measured = model.objective({"weight": weight}, embeddings)
            losses = tf.where(tf.repeat(weight, model.copies) > 0, losses, tf.zeros_like(losses))
            loss = tf.reduce_sum(losses)
        return losses, measured["losing"], measured["nearer"], tape.gradient(loss, embeddings)

    return run


@pytest.mark.parametrize("norm_over", ["features", "batch"])
def test_global_triplets_of_replicas_are_those_of_one(norm_over, replicas, float64):
    """Losses, metrics and gradients, with blank rows at the end; test_base trains with them."""
    images = 3 * replicas.num_replicas_in_sync
    embeddings = np.random.default_rng(0).normal(size=[4 * images, 12])
    weight = np.where(np.arange(images) < images - 2, np.float32(1), np.float32(0))
    run = loss_and_gradient(exemplar(global_triplets=True, norm_over=norm_over))
    together = [np.concatenate(parts) for parts in zip(*on_each(replicas, run, embeddings, weight))]
    alone = run(tf.constant(embeddings), tf.constant(weight))
    valid = np.repeat(weight, 4) > 0
    for a, b in zip(together, alone):
        np.testing.assert_allclose(a[valid], b.numpy()[valid], atol=1e-12)
    np.testing.assert_array_equal(together[3][~valid], 0)


def test_triplets_of_a_replica_are_its_own_by_default(replicas, float64):
    images = 3 * replicas.num_replicas_in_sync
    embeddings = np.random.default_rng(0).normal(size=[4 * images, 12])
    shares = on_each(
        replicas, loss_and_gradient(exemplar()), embeddings, np.ones(images, np.float32)
    )
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    for share, (losses, *_) in zip(np.split(embeddings, len(shares)), shares):
        np.testing.assert_allclose(
            np.mean(losses), mean_loss(share, np.arange(12) // 4, 0.5), rtol=1e-12
        )


def trained(source, **compiled):
    """The loss and the weights after two steps."""
    tf.keras.utils.set_random_seed(1)
    model = exemplar(color=False)  # XLA draws other colors
    model.compile(tf.keras.optimizers.SGD(0.5, momentum=0.9), **compiled)
    history = model.fit(model.dataset(source, 8, steps=2), steps_per_epoch=2, verbose=0).history
    return history["loss"][0], [v.numpy() for v in model.variables]


def test_xla_equals_plain(source, float64):
    (loss, weights), (compiled_loss, compiled_weights) = (
        trained(source),
        trained(source, jit_compile=True),
    )
    np.testing.assert_allclose(compiled_loss, loss, rtol=1e-9)
    for a, b in zip(compiled_weights, weights):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9 * np.abs(b).max())


def test_it_learns(source):
    """Pictures that are much alike, and still: the loss falls below the margin, where it would stay
    in a collapse."""
    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    model = exemplar(
        tf.keras.Sequential(
            [
                layers.Conv2D(16, 3, 2, activation="relu", name="conv1"),
                layers.BatchNormalization(momentum=0.8, name="norm"),
                layers.Conv2D(32, 3, 2, activation="relu", name="conv2"),
                layers.GlobalAveragePooling2D(name="pool"),
            ]
        ),
        min_area=0.3,
    )
    model.compile(tf.keras.optimizers.SGD(0.3, momentum=0.9))
    data = model.evaluation_dataset(source, 16)
    before = model.evaluate(data, verbose=0, return_dict=True)
    model.fit(model.dataset(source, 8), epochs=1, steps_per_epoch=80, verbose=0)
    after = model.evaluate(data, verbose=0, return_dict=True)
    assert after["loss"] < min(0.46, before["loss"]) and after["nearer"] > max(
        0.99, before["nearer"]
    ), (before, after)


def test_settings_out_of_range_are_refused():
    with pytest.raises(UserError, match="copies=1: .*2 copies"):
        exemplar(copies=1)
    with pytest.raises(UserError, match="norm_over=rows: choose one of features, batch"):
        exemplar(norm_over="rows")
    with pytest.raises(UserError, match="gray=66 is a probability: 0 to 1"):
        exemplar(gray=66)
    with pytest.raises(UserError, match="one image has none to compare it with"):
        exemplar().objective({"weight": tf.ones([1])}, tf.zeros([4, 12]))
