"""NNCLR: its heads, and its memory."""

import numpy as np
from joint_embedding import dense, head_parameters, task, train


def test_the_heads_have_the_published_size():
    expected = dense(2048, 2048) + dense(2048, 2048) + dense(2048, 256) + 2 * (2048 + 2048 + 256)
    expected += dense(256, 4096) + 2 * 4096 + dense(4096, 256)
    assert head_parameters("nnclr", queue_size=8) == expected


def test_the_memory_holds_the_first_views_of_earlier_steps(source):
    model = task(
        "nnclr", projection_hidden=8, projection_size=4, prediction_hidden=8, queue_size=24
    )
    before = model.queue.rows.numpy()
    train(model, source, 1)
    after = model.queue.rows.numpy()
    np.testing.assert_array_equal(after[8:], before[:16])
    np.testing.assert_allclose(np.linalg.norm(after[:8], axis=1), 1, rtol=1e-5)
