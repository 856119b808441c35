"""Means over the area behind each place."""

import numpy as np
import pytest
import tensorflow as tf

from tfssl.pretext.parts.maps import mean_pool


@pytest.mark.parametrize("sides", [(16, 4), (15, 4), (7, 7), (9, 2)])
def test_mean_pool(sides):
    """By the integral of the image between the edges of each place."""
    big, small = sides
    x = np.random.default_rng(0).random([2, big, big, 3])
    total = np.zeros([2, big + 1, big + 1, 3])
    total[:, 1:, 1:] = x.cumsum(1).cumsum(2)
    edges = np.arange(small + 1) * big / small

    def integral(y, x):
        y0, x0 = int(min(y, big - 1)), int(min(x, big - 1))
        fy, fx = y - y0, x - x0
        corners = (
            total[:, y0, x0],
            total[:, y0, x0 + 1],
            total[:, y0 + 1, x0],
            total[:, y0 + 1, x0 + 1],
        )
        return (1 - fy) * ((1 - fx) * corners[0] + fx * corners[1]) + fy * (
            (1 - fx) * corners[2] + fx * corners[3]
        )

    found = mean_pool(tf.constant(x), (small, small)).numpy()
    for i, j in np.ndindex(small, small):
        (top, bottom), (left, right) = edges[i : i + 2], edges[j : j + 2]
        area = (
            integral(bottom, right)
            - integral(top, right)
            - integral(bottom, left)
            + integral(top, left)
        )
        np.testing.assert_allclose(found[:, i, j], area / (big / small) ** 2, rtol=1e-9)
