"""What several replicas compute is what one does: on four, where other tests have two."""

import os
import subprocess
import sys

import pytest


@pytest.mark.costs(240, "another pytest")
@pytest.mark.parametrize(
    "files, chosen",
    [
        (
            ("pretext/test_task.py", "losses/test_replicas.py", "testing/test_tasks.py"),
            "(split_groups and moco) or rows_in_order or bytes_arrive or one_batch or (contract "
            "and exemplar and not cnn)",
        ),
        (
            (
                "downstream/features/test_forward.py",
                "downstream/protocols/test_linear_sgd.py",
                "downstream/solvers/test_nearest.py",
            ),
            "of_one_device",
        ),
        pytest.param(
            ("downstream/protocols/test_logistic.py", "downstream/protocols/test_mlp.py"),
            "of_one_device",
            marks=pytest.mark.slow,  # as test_linear_sgd's
        ),
    ],
    ids=["training", "evaluation", "other heads"],
)
def test_four_replicas(files, chosen):
    """The same tests with four devices, in a process that has them."""
    tests = os.path.dirname(os.path.abspath(__file__))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", *(f"tests/{file}" for file in files), "-k", chosen],
        env={**os.environ, "TFSSL_TEST_REPLICAS": "4"}, capture_output=True, text=True, check=False, timeout=600,
        cwd=os.path.dirname(tests),
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:]
