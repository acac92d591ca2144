"""What a router process loads, and how its log begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Starter, log_entries

ABSENT = ["127.0.0.1:1", "127.0.0.1:2"]


@pytest.mark.system
def test_a_router_loads_no_faiss_and_its_log_begins_with_its_own_events(
    start_server: Starter,
) -> None:
    router = start_server.router(ABSENT)
    assert router.process is not None
    mapped = Path(f"/proc/{router.process.pid}/maps").read_text()
    assert "numpy" in mapped
    assert "faiss" not in mapped
    router.terminate()
    assert router.ended() == 0
    loggers = [entry["logger"] for entry in log_entries(router)]
    assert loggers
    assert [name for name in loggers if not name.startswith("vectorshard.")] == []


@pytest.mark.system
def test_the_log_of_a_shard_has_no_event_of_a_library_that_loads(start_server: Starter) -> None:
    shard = start_server.shard()
    assert shard.process is not None
    assert "faiss" in Path(f"/proc/{shard.process.pid}/maps").read_text()
    shard.terminate()
    assert shard.ended() == 0
    loggers = [entry["logger"] for entry in log_entries(shard)]
    assert loggers
    assert [name for name in loggers if not name.startswith("vectorshard.")] == []
