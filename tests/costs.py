"""What the tests cost: processor time by test and by file, and the memory of their processes. A test that exceeds the limits fails.

Processor time, not wall time: a machine that is busy with other work does not fail a test.
"""

import collections
import json
import os
import pathlib

import pytest
import runs

SECONDS = 60  # of processor time for one test, its fixtures included; @pytest.mark.costs(seconds, reason) grants more
GIGABYTES = 2.0  # of memory that a test process, or one that it starts, holds at most

_before = {}  # the test in progress: the processor time when it began


def processor_seconds():
    """Of this process and its descendants: of those that have ended, and of those that live where /proc tells."""
    return sum(os.times()[:4]) + sum(_living_descendants())


def _living_descendants():
    tick = os.sysconf("SC_CLK_TCK")
    children, seconds = collections.defaultdict(list), {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        children[int(fields[1])].append(pid)
        seconds[pid] = sum(map(int, fields[11:15])) / tick  # with its ended children
    todo = children[os.getpid()]
    for pid in todo:
        todo += children[pid]
        yield seconds[pid]


def peak_gigabytes():
    """The most memory that this process, or one that it started and that has ended, has held."""
    return max(runs.peak_gigabytes(), runs.gigabytes)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_logstart(nodeid):
    _before[nodeid] = processor_seconds(), peak_gigabytes()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    began, peak_before = _before[item.nodeid]
    spent, peak = processor_seconds() - began, peak_gigabytes()
    report.user_properties = [("seconds", spent), ("gigabytes", peak)]
    granted = item.get_closest_marker("costs")
    seconds = granted.args[0] if granted else SECONDS
    if call.when == "call" and report.passed:
        if spent > seconds:
            report.outcome, report.longrepr = (
                "failed",
                f"took {spent:.0f} s of processor time; a test may take {seconds}",
            )
        if peak > GIGABYTES >= peak_before:
            report.outcome, report.longrepr = "failed", f"its process grew to {peak:.1f} GB; it may to {GIGABYTES}"


class Table:
    """What all test processes report, gathered and printed by the one that controls them."""

    def __init__(self, path):
        self.path = path
        self.seconds, self.gigabytes = {}, {}

    def pytest_runtest_logreport(self, report):
        costs = dict(report.user_properties)
        self.seconds[report.nodeid], self.gigabytes[report.nodeid] = costs["seconds"], costs["gigabytes"]
        if report.when == "teardown" and os.environ.get("COSTS_LOG"):
            with open(os.environ["COSTS_LOG"], "a") as f:
                rss = int(open("/proc/self/statm").read().split()[1]) * 4096 / 1e9
                f.write("%8.2f %5.2f %5.2f %s\n" % (costs["seconds"], costs["gigabytes"], rss, report.nodeid))

    def pytest_terminal_summary(self, terminalreporter):
        files, peaks = collections.Counter(), collections.defaultdict(float)
        for test, seconds in self.seconds.items():
            file = test.partition("::")[0]
            files[file] += seconds
            peaks[file] = max(peaks[file], self.gigabytes[test])
        terminalreporter.section("processor seconds per file; memory of its process up to then, GB")
        for file, seconds in files.most_common():
            terminalreporter.write_line(f"{seconds:7.1f} {peaks[file]:6.2f}  {file}")
        terminalreporter.write_line(f"{sum(files.values()):7.1f} {max(peaks.values(), default=0):6.2f}  in all")
        if self.path:
            with open(self.path, "w") as f:
                json.dump({"seconds": self.seconds, "gigabytes": self.gigabytes}, f, indent=1)


def pytest_addoption(parser):
    parser.addoption("--costs", metavar="FILE.json", help="write every test's processor seconds and memory there")


def pytest_configure(config):
    config.addinivalue_line("markers", "costs(seconds, reason): grants a test more processor time")
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table(config.getoption("costs")))
