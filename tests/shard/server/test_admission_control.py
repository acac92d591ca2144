"""What is refused on arrival; that it is, over a port, is in test_service."""

from __future__ import annotations

from structlog.testing import capture_logs

from vectorshard.shard.server.admission_control import LOG_EVERY_S, RefusalLog


def test_the_log_tells_of_refusals_now_and_then_and_how_many_there_were() -> None:
    now = 1_000.0
    refusals = RefusalLog(lambda: now)
    with capture_logs() as logged:
        refusals.note("busy")
        for _ in range(5):
            refusals.note("busy")
        now += LOG_EVERY_S
        refusals.note("busier")
    told = [(entry["refused"], entry["reason"], entry["log_level"]) for entry in logged]
    assert told == [(1, "busy", "warning"), (6, "busier", "warning")]
