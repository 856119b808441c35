"""Instance discrimination: the negatives of a large bank."""

import tensorflow as tf
from joint_embedding import task

from tfssl.data.ops.draws import Draws


def test_negatives_reach_every_image_of_a_large_bank():
    """Of 2^25 images; no bank of that size is made. A float32 has 24 bits: by it, odd entries
    beyond 2^24 would never be drawn."""
    model = task("instance_discrimination", num_images=4, negatives=1000)
    model.num_images = 2**25
    batch = {"number": tf.range(8, dtype=tf.int64), "seed": tf.zeros([8], tf.int64)}
    drawn = model.augment({**batch, "image": (tf.zeros([8, 1, 16, 16, 3]),)}, Draws(batch))[
        "negatives"
    ].numpy()
    assert drawn.shape == (8, 1000) and drawn.min() >= 0 and 0.99 * 2**25 < drawn.max() < 2**25
    beyond = drawn[drawn >= 2**24]
    assert abs(len(beyond) / drawn.size - 0.5) < 0.03 and abs((beyond % 2).mean() - 0.5) < 0.03
