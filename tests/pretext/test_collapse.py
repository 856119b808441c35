"""Embeddings that have become one point: each joint-embedding method says so, through its own
objective."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl import backbones, pretext
from tfssl.pretext.parts.views import Views

N = 8
CROPS = {"small_crops": 0}
HEAD = {"projection_hidden": 8, "projection_size": 4}
BANK = {"num_images": 48, "negatives": 8, "projection_size": 4}
QUEUE = {"queue_size": 16, "projection_size": 4, "split_batch_norm": 1}
TASKS = {
    "simclr": {"projection_size": 4},
    "sup_con": {"projection_size": 4},
    "moco": QUEUE,
    "clsa": {**QUEUE, "weak_sizes": "12", "strong_sizes": "12", "strong_ops": 0},
    "byol": HEAD,
    "simsiam": {"projection_size": 4, "prediction_size": 4},
    "swav": {**HEAD, **CROPS, "prototypes": 5},
    "barlow_twins": {"projection_size": 4},
    "vicreg": {"projection_size": 64},
    "nnclr": {**HEAD, "prediction_hidden": 8, "queue_size": 16},
    "moco_v3": HEAD,
    "dino": {**HEAD, **CROPS, "prototypes": 6},
    "lejepa": {**HEAD, **CROPS, "directions": 16},
    "instance_discrimination": BANK,
    "pic": {"num_images": 48, "projection_size": 4, "window": 12, "window_stride": 4, **CROPS},
    "pixpro": HEAD,
}


def measured(name, scale=1.0):
    """(The task, {metric: mean}) where each view of every image has what the first view of the
    first has, `scale` times."""
    network = tf.keras.Sequential([tf.keras.layers.Conv2D(6, 3, 2, activation="tanh", name="conv")])
    model = pretext.build(
        name, backbones.build(network), image_size=16, augmentation="crop", **TASKS[name]
    )
    model.compile(tf.keras.optimizers.SGD(0.1))
    model.prepare()
    rng = np.random.default_rng(0)
    batch = model.to_float(model.zero_batch(N))
    batch = {**batch, "weight": tf.ones([N]), "number": tf.range(N, dtype=tf.int64)}
    images = tf.nest.map_structure(
        lambda x: tf.constant(rng.random(x.shape), x.dtype), batch["image"]
    )
    batch = {**batch, "image": images}
    outputs = tf.nest.map_structure(
        lambda x: tf.broadcast_to(scale * x[:1, :1], x.shape) if x.shape.rank >= 3 else x,
        model(batch, training=True),
    )
    loss, metrics = model.objective(batch, outputs)
    return model, {
        metric: float(np.mean(x[0] if isinstance(x, tuple) else x))
        for metric, x in {"loss": loss, **metrics}.items()
    }


@pytest.mark.parametrize("name", TASKS)
def test_the_alarm_speaks(name):
    model, metrics = measured(name)
    said = model.alarm(metrics)
    assert said and ("collapsed" in said or "alike" in said), (said, metrics)
    assert "\n" not in said


def test_where_the_losses_sit():
    """VICReg's at 25 (1 - sqrt(1e-4)) = 24.75, SIGReg of embeddings of 0 at 0.402 N."""
    assert measured("vicreg")[1]["loss"] == pytest.approx(24.75, rel=1e-4)
    assert measured("lejepa", scale=0.0)[1]["sigreg"] == pytest.approx(0.402 * N, rel=0.01)


def test_all_tasks_of_views_are_here():
    """Those with the alarm of one that is here; `distill` follows a teacher."""
    elsewhere = {"cmc", "deepcluster_v2", "local_aggregation", "pirl", "infomin", "distill"}
    views = {name for name in pretext.NAMES if issubclass(pretext.task_class(name), Views)}
    assert views - elsewhere == set(TASKS)
