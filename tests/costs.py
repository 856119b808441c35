"""What the tests cost: processor time per file and per test, and the memory of their processes. A test above the limits fails.

Processor time, not wall time: a machine that is busy with other work does not fail a test.
"""

import collections
import contextlib
import json
import os
import pathlib
from multiprocessing import forkserver

import pytest
import runs

SECONDS = 60  # of processor time for one test, its fixtures included; @pytest.mark.costs(seconds, reason) grants more
GIGABYTES = 4.0  # of memory that a test process, or one that it starts, may hold

_begun = {}  # test in progress: (processor time, memory) when it began


def processor_seconds():
    """Of this process, the server that forks the commands (where /proc tells), and the children of both that have ended."""
    seconds = sum(os.times()[:4])
    with contextlib.suppress(OSError):
        fields = (
            pathlib.Path(f"/proc/{forkserver._forkserver._forkserver_pid}/stat").read_text().rpartition(")")[2].split()
        )
        seconds += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return seconds


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
    if call.when == "call" and report.passed:
        if spent > seconds and not item.get_closest_marker("slow"):
            report.outcome = "failed"
            report.longrepr = f"took {spent:.0f} s of processor time; a test may take {seconds} (tests/costs.py)"
        elif peak > GIGABYTES >= peak_before:  # the tests after it in the same process are not to blame
            report.outcome = "failed"
            report.longrepr = f"a process grew to {peak:.1f} GB; it may to {GIGABYTES} (tests/costs.py)"


class Table:
    """What all test processes report, gathered and printed by the one that controls them."""

    def __init__(self, path):
        self.path = path
        self.tests = {}  # name: (seconds, gigabytes), complete after the teardown

    def pytest_runtest_logreport(self, report):
        if report.user_properties:  # not where the process crashed
            self.tests[report.nodeid] = tuple(dict(report.user_properties).values())

    def pytest_terminal_summary(self, terminalreporter):
        seconds, peaks = collections.Counter(), collections.defaultdict(float)
        for test, (spent, peak) in self.tests.items():
            file = test.partition("::")[0]
            seconds[file] += spent
            peaks[file] = max(peaks[file], peak)
        write = terminalreporter.write_line
        terminalreporter.section("seconds of processor time; GB that the process had held until then")
        for file, spent in seconds.most_common():
            write(f"{spent:7.1f} {peaks[file]:5.2f}  {file}")
        write(f"{sum(seconds.values()):7.1f} {max(peaks.values(), default=0):5.2f}  in all; the longest tests:")
        for test, (spent, _) in sorted(self.tests.items(), key=lambda item: -item[1][0])[:15]:
            write(f"{spent:7.1f}  {test}")
        if self.path:
            with open(self.path, "w", encoding="utf-8") as f:
                json.dump({"files": seconds, "gigabytes": peaks, "tests": self.tests}, f, indent=1)


def pytest_addoption(parser):
    parser.addoption("--costs", metavar="FILE.json", help="write the table of the tests' costs there too")


def pytest_configure(config):
    config.addinivalue_line("markers", f"costs(seconds, reason): grants a test more than {SECONDS} s of processor time")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("costs")))
