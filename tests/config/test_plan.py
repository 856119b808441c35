"""Epochs and batch sizes in steps."""

import pytest

from tfssl.config.plan import plan
from tfssl.config.schema import Optimization


def test_the_2019_study():
    """A batch of 2048 images scales the rate 0.1 by 8; warm-up over 5 epochs, decays after 15 and
    25, 35 in all."""
    found = plan(Optimization(batch_size=2048), 1_281_167)
    epoch = 1_281_167 / 2048
    assert found.total_steps == 21895 and found.peak == pytest.approx(
        0.8
    )  # 35 * 625.5698 = 21894.94
    assert found.warmup_steps == pytest.approx(5 * epoch) and found.decay_steps == pytest.approx(
        (15 * epoch, 25 * epoch)
    )


def test_whole_epochs_are_whole_steps():
    """50,000 images in 60 epochs of 192: 15,625 steps, though 50000 / 192 is no float."""
    assert plan(Optimization(batch_size=192, epochs=60), 50_000).total_steps == 15_625
    assert plan(Optimization(batch_size=120, epochs=30), 1_000).total_steps == 250
    assert plan(Optimization(batch_size=100, epochs=0.35), 1_001).total_steps == 4  # 3.5035


def test_steps_override_epochs_and_the_rate_may_be_unscaled():
    found = plan(Optimization(train_steps=7, lr_scaling=0, learning_rate=0.3), 100)
    assert (found.total_steps, found.peak, found.epoch_steps) == (7, 0.3, 100 / 256)
