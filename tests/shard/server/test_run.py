"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

import asyncio
import math
from typing import cast

import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.server import run as shard_server
from vectorshard.shard.server.service import VectorService


class Called:
    """A service that was called just now, so often as it is asked about it."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def quiet_s(self) -> float:
        self.calls -= 1
        return 0.0 if self.calls >= 0 else math.inf


@pytest.mark.parametrize(
    ("calls", "at_most_s", "asked"),
    [(0, 60.0, 1), (5, 60.0, 6), (1_000, 0.0, 1)],
    ids=["nobody calls", "callers that leave", "no time for them"],
)
async def test_a_server_that_stops_waits_until_nobody_calls(
    monkeypatch: pytest.MonkeyPatch, calls: int, at_most_s: float, asked: int
) -> None:
    monkeypatch.setattr(shard_server, "QUIET_S", 0.001)
    service = Called(calls)
    leaving = shard_server.callers_left(cast("VectorService", service), at_most_s)
    await asyncio.wait_for(leaving, DEADLINE_S)
    assert calls - service.calls == asked
