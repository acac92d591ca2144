"""What the promises cost: the CPU time of each test, and of all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from tests.promises.cluster import stepped
from tests.promises.record import lines, table

__all__ = ["stepped"]


@pytest.fixture(autouse=True)
def cpu(record_property: Callable[[str, object], None]) -> Iterator[None]:
    """Record the CPU seconds of a test, all threads included."""
    begun = time.process_time()
    yield
    record_property("cpu_s", time.process_time() - begun)


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
