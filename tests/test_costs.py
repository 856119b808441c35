"""The limits of a test's processor time and memory, on tests that are made to exceed them."""

import os
import sys

import costs
import pytest

TESTS = """
import os, time, pytest

def work(seconds):
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass

def test_idle():
    time.sleep(0.5)

def test_busy():
    work(0.5)

def test_busy_in_a_child_process():
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        work(0.5)
        os._exit(0)

@pytest.mark.costs(30, "a reason")
def test_granted():
    work(0.5)

@pytest.mark.costs(30, "fills memory")
def test_large():
    b"x" * int(float(os.environ["GIGABYTES"]) * 1e9)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc how much memory is held now")
def test_tests_above_the_limits_fail(pytester, monkeypatch):
    peak = costs.peak_gigabytes()
    held = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e9
    monkeypatch.setenv("GIGABYTES", str(peak - held + 0.15))
    pytester.makepyfile(test_some=TESTS)
    with monkeypatch.context() as limits:
        limits.setattr(costs, "SECONDS", 0.4)
        limits.setattr(costs, "GIGABYTES", peak + 0.05)
        result = pytester.runpytest_inprocess("-p", "costs", "--costs=costs.json")
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines_random(
        [
            "took * s of processor time; a test may take 0.4*",
            "a process grew to *",
            "*s of processor time, * GB; the longest*",
            "*  test_some.py::test_granted",
        ]
    )
    assert os.path.getsize(pytester.path / "costs.json") > 100
