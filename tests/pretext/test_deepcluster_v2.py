"""DeepCluster-v2: what a phase writes, and its loss, by hand."""

import numpy as np
import tensorflow as tf
from joint_embedding import task, train

from tfssl.data.ops.draws import Draws
from tfssl.runtime import strategy as strategies
from tfssl.step.phases import Context, run_due

SETTINGS = {
    "num_images": 48, "projection_hidden": 8, "projection_size": 4, "clusters": 5,
    "clusterings": 3, "small_crops": 2, "small_size": 8,
}  # fmt: skip


def context_of(model, source):
    strategy = tf.distribute.get_strategy()
    batches = lambda: strategies.evaluation_data(strategy, model, source, 8)  # noqa: E731
    return Context(strategy, batches, source.places, 3, model.to_float)


def test_areas_of_small_views():
    """From the large views' least on, unless it is said: the published script's are 0.05 to 0.14
    beside 0.08 to 1."""
    for settings, areas in (({}, (0.05, 0.08)), ({"small_max_area": 0.14}, (0.05, 0.14))):
        large, small = task("deepcluster_v2", **SETTINGS, min_area=0.08, **settings).crops()
        assert large.area is None and small.area == areas


def norm(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_a_phase_makes_the_classifier_and_steps_fill_the_banks(source, float64):
    model = task("deepcluster_v2", **SETTINGS)
    model.epoch_steps = 6
    batch = next(iter(model.dataset(source, 6)))
    # Without labels the loss is 0, not 0/0.
    losses, measured = model.objective(batch, model(model.to_float(batch), training=True))
    assert (losses.numpy() == 0).all() and (measured["accuracy"][1].numpy() == 0).all()

    report = run_due(model.phases(), context_of(model, source), 0)
    assert [phase.every for phase in model.phases()] == [6] and 1 < report["perplexity"] <= 5
    prototypes, labels = model.prototypes.numpy(), model.clusterings.labels.numpy()
    np.testing.assert_allclose(np.linalg.norm(prototypes, axis=2), 1, rtol=1e-9)
    assert all(v is not model.prototypes for v in model.trainable_variables)
    for h in range(3):  # clusterings 0 and 2 are of the first view's bank
        bank = model.banks[h % 2].entries.numpy()
        np.testing.assert_array_equal(labels[h], (bank @ prototypes[h].T).argmax(1))

    # The loss by a loop over heads and views.
    outputs = model(model.to_float(batch), training=True)
    losses, _ = model.objective(batch, outputs)
    scores = outputs["scores"].numpy()  # NxHxVxK
    expected = np.zeros(6)
    for n, index in enumerate(batch["index"].numpy()):
        terms = []
        for h in range(3):
            for v in range(4):
                logits = scores[n, h, v] / 0.1
                terms.append(np.log(np.exp(logits).sum()) - logits[labels[h, index]])
        expected[n] = np.mean(terms)
    np.testing.assert_allclose(losses, expected, rtol=1e-10)

    # Without learning, an epoch leaves the views' embeddings in the banks, and the prototypes.
    model.optimizer.learning_rate = 0.0
    embedded = {}
    for step in model.dataset(source, 8, steps=6):
        step = model.augment(model.to_float(step), Draws(step))  # flips
        z = model(step, training=True)["z"].numpy()
        embedded.update(zip(step["index"].numpy(), norm(z)))
    train(model, source, 6)
    for view, bank in enumerate(model.banks):
        expected = np.stack([embedded[i][view] for i in range(48)])
        np.testing.assert_allclose(bank.entries, expected, atol=1e-9)
    np.testing.assert_array_equal(model.prototypes, prototypes)
    np.testing.assert_array_equal(np.unique(model.clusterings.classes), [0, 1])

    # With a cluster for each image, labels are a permutation.
    own = task("deepcluster_v2", **{**SETTINGS, "clusters": 48, "clusterings": 1})
    own.epoch_steps = 6
    run_due(own.phases(), context_of(own, source), 0)
    assert sorted(own.clusterings.labels.numpy()[0]) == list(range(48))
