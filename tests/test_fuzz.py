"""A short form of `python tests/fuzz.py`; and that it finds what it looks for."""

import fuzz
import numpy as np
import pytest


@pytest.mark.parametrize(
    ("kind", "cases"),
    {"images": 300, "archives": 200, "records": 8, "states": 200, "weights": 200}.items(),
)
def test_no_mutated_file_crashes_or_raises_what_is_not_ours(kind, cases):
    failures, peak = fuzz.run(kind, 10**6, cases)
    assert not failures and peak < 1.5


def test_mutations_are_seeded_and_change_something():
    sound = bytes(range(256)) * 4
    mutated = [fuzz.mutate(sound, np.random.default_rng(seed)) for seed in range(50)]
    assert mutated == [fuzz.mutate(sound, np.random.default_rng(seed)) for seed in range(50)]
    assert len(set(mutated)) == 50 and sum(m == sound for m in mutated) <= 2


@pytest.mark.parametrize(
    ("end", "what"), {"raise": "ValueError: odd", "die": "the process died, status 3"}.items()
)
def test_what_is_not_ours_and_dead_processes_are_found(end, what):
    failures, _ = fuzz.run(end, 0, 5)
    assert failures == [(2, what)]
