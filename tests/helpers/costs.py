"""What the tests cost: processor time and the memory of their processes. A test above the limits
fails, unless it is marked slow.

Processor time, not wall time: a machine that is busy with other work does not fail a test.
"""

import collections
import json
import os

import pytest
import runs

# of processor time for one test, its fixtures included; @pytest.mark.costs(seconds, reason) grants
# more
SECONDS = 120  # three times what the longest takes on two AVX2 cores: machines differ by as much
GIGABYTES = 2.0  # of memory that a test process, or one that it starts, may hold

_begun = {}  # test in progress: (processor time, memory) when it began


def processor_seconds():
    """Of this process, its children that have ended, and the commands that it had forked, unless
    they were killed."""
    return sum(os.times()[:4]) + runs.seconds


def peak_gigabytes():
    """The most memory that this process, or one that it started and that has ended, has held."""
    return max(runs.peak_gigabytes(), runs.gigabytes)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid):
    _begun[nodeid] = processor_seconds(), peak_gigabytes()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    began, peak_before = _begun[item.nodeid]
    spent, peak = processor_seconds() - began, peak_gigabytes()
    report.user_properties = [("seconds", spent), ("gigabytes", peak)]
    granted = item.get_closest_marker("costs")
    seconds = granted.args[0] if granted else SECONDS
    if call.when == "call" and report.passed and not item.get_closest_marker("slow"):
        if spent > seconds:
            report.outcome = "failed"
            report.longrepr = (
                f"took {spent:.0f} s of processor time; a test may take {seconds} "
                "(tests/helpers/costs.py)"
            )
        elif (
            peak > GIGABYTES >= peak_before
        ):  # the tests after it in the same process are not to blame
            report.outcome = "failed"
            report.longrepr = (
                f"a process grew to {peak:.1f} GB; it may to {GIGABYTES} (tests/helpers/costs.py)"
            )


class Table:
    """What all tests cost, printed at the end."""

    def __init__(self, path):
        self.path = path
        self.tests, self.outcomes = {}, {}  # by name

    def pytest_runtest_logreport(self, report):
        self.tests[report.nodeid] = dict(report.user_properties)
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome

    def pytest_terminal_summary(self, terminalreporter):
        seconds = sum(costs["seconds"] for costs in self.tests.values())
        gigabytes = max((costs["gigabytes"] for costs in self.tests.values()), default=0)
        terminalreporter.section(
            f"{seconds:.1f} s of processor time, {gigabytes:.2f} GB; the longest"
        )
        for test, costs in sorted(self.tests.items(), key=lambda item: -item[1]["seconds"])[:5]:
            terminalreporter.write_line(f"{costs['seconds']:7.1f}  {test}")
        if self.path:
            outcomes = collections.Counter(self.outcomes.values())
            costs = {
                "seconds": seconds,
                "gigabytes": gigabytes,
                "outcomes": outcomes,
                "tests": self.tests,
            }
            with open(self.path, "w", encoding="utf-8") as f:
                json.dump(costs, f, indent=1)


def pytest_addoption(parser):
    parser.addoption(
        "--costs", metavar="FILE.json", help="write the table of the tests' costs there too"
    )


def pytest_configure(config):
    config.addinivalue_line(
        "markers", f"costs(seconds, reason): grants a test more than {SECONDS} s of processor time"
    )
    config.pluginmanager.register(Table(config.getoption("costs")))
