"""What the promises cost: the CPU time of each test, and of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.promises.cluster import stepped
from tests.promises.record import Record, kept, lines, record_case, table

__all__ = ["stepped"]


@pytest.fixture(autouse=True)
def cpu(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Record the CPU seconds of a test, all threads included."""
    begun = time.process_time()
    yield
    record_property("cpu_s", time.process_time() - begun)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Record:
    """Record this test's case under its name."""
    return partial(record_case, request.node.name)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long cases that an earlier run has found to be kept."""
    done = kept()
    gone = [item for item in items if "test_long" in item.nodeid and item.name in done]
    config.hook.pytest_deselected(items=gone)
    for item in gone:
        items.remove(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the CPU seconds of the promises."""
    ended = [
        report
        for reports in terminalreporter.stats.values()
        for report in reports
        if isinstance(report, pytest.TestReport)
    ]
    if any("test_long" in report.nodeid for report in ended):
        for line in table(lines()):
            terminalreporter.write_line(line)
    spent = [
        float(value)  # type: ignore[arg-type]
        for report in ended
        if report.when == "teardown"
        for name, value in report.user_properties
        if name == "cpu_s"
    ]
    terminalreporter.write_line(f"promises: {len(spent)} tests, {sum(spent):.0f} s of CPU")
