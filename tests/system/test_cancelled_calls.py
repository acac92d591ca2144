"""Callers that change their minds: a tenth of all calls is cancelled, for minutes, and no process
takes more memory for it as time goes by.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from vectorshard.v1 import vectorshard_pb2 as v1

from shard.types import Metric
from tests.system.conftest import Starter, matrix, wait_until

pytestmark = pytest.mark.system_long

NAME = "rows"
DIM = 32
ROWS = 20_000
CALLERS = 4
"""Of each of the three kinds."""
CANCELLED = 0.1
WITHIN_S = 0.01
"""A call is cancelled at some moment within so long of its beginning: before, while or after it is
served."""
SECONDS = 300.0
WARM_UP_S = 60.0
SAMPLE_S = 1.0
SLOPE_MAX_MB_A_MINUTE = 0.5
SERVICE = "/vectorshard.v1.VectorService/"


@dataclass(slots=True)
class Counts:
    """Calls that were made, and those of them that were cancelled."""

    calls: int = 0
    cancelled: int = 0
    failures: list[str] = field(default_factory=list)


class Fickle:
    """Makes calls over one connection, and cancels a tenth of them. Lives in an event loop."""

    def __init__(self, address: str, search: bytes, upsert: bytes) -> None:
        self.counts = Counts()
        self._channel = grpc.aio.insecure_channel(address)
        self._search = search
        self._envelope = v1.SearchStreamRequest(
            request_id=1, search=v1.SearchRequest.FromString(search)
        ).SerializeToString()
        self._upsert = upsert
        self._chance = random.Random(8)

    async def unary(self) -> None:
        """Search."""
        await self._channel.unary_unary(SERVICE + "Search")(self._search, timeout=10)

    async def searches(self) -> None:
        """Search over a stream."""
        await self._exchange("SearchStream", self._envelope)

    async def uploads(self) -> None:
        """Write over a stream, the same rows each time."""
        await self._exchange("UpsertStream", self._upsert)

    async def _exchange(self, rpc: str, message: bytes) -> None:
        stream = self._channel.stream_stream(SERVICE + rpc)(timeout=10)
        await stream.write(message)
        await stream.read()
        await stream.done_writing()
        await stream.read()

    async def caller(self, act: Callable[[], Awaitable[None]], until: float) -> None:
        """Make calls until a time."""
        while time.monotonic() < until:
            self.counts.calls += 1
            call = asyncio.ensure_future(act())
            if self._chance.random() < CANCELLED:
                self.counts.cancelled += 1
                await asyncio.sleep(self._chance.random() * WITHIN_S)
                call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                pass
            except grpc.aio.AioRpcError as error:
                self.counts.failures.append(repr(error))

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close()


async def load(address: str, search: bytes, upsert: bytes, watch: Callable[[], None]) -> Counts:
    """Make calls of all kinds, while `watch` is called now and then."""
    until = time.monotonic() + SECONDS
    fickle = Fickle(address, search, upsert)
    callers = [
        asyncio.ensure_future(fickle.caller(act, until))
        for act in (fickle.unary, fickle.searches, fickle.uploads)
        for _ in range(CALLERS)
    ]
    while time.monotonic() < until:
        await asyncio.sleep(SAMPLE_S)
        watch()
    await asyncio.gather(*callers)
    await fickle.close()
    return fickle.counts


def slope_mb_a_minute(samples: list[tuple[float, float]]) -> float:
    """Return how memory grows by (seconds, megabytes), once it is warm."""
    began = samples[0][0]
    warm = np.array([each for each in samples if each[0] >= began + WARM_UP_S])
    return float(60.0 * np.polyfit(warm[:, 0], warm[:, 1], 1)[0])


def test_cancelled_calls_leave_nothing_behind(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    vectors = np.random.default_rng(13).standard_normal((ROWS, DIM), dtype=np.float32)
    with fleet.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, np.arange(ROWS), vectors)
        wait_until(lambda: client.describe(NAME).ledger.indexed > ROWS // 2, 60)
    search = v1.SearchRequest(collection=NAME, queries=matrix(vectors[:1]), k=10)
    ids = v1.Ids(int64s=v1.Int64Ids(values=range(20)))
    upsert = v1.UpsertRequest(collection=NAME, ids=ids, vectors=matrix(vectors[:20]))
    names = {"router": fleet.router, "shard 0": fleet.shards[0], "shard 1": fleet.shards[1]}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def watch() -> None:
        for name, process in names.items():
            samples[name].append((time.monotonic(), process.memory_mb("RssAnon")))

    counts = asyncio.run(
        load(fleet.address, search.SerializeToString(), upsert.SerializeToString(), watch)
    )
    slopes = {name: slope_mb_a_minute(of_name) for name, of_name in samples.items()}
    print(f"{counts.calls:,} calls, {counts.cancelled:,} cancelled, {len(counts.failures)} failed")
    for name, of_name in samples.items():
        warm_mb = next(mb for at, mb in of_name if at >= of_name[0][0] + WARM_UP_S)
        print(
            f"{name}: {of_name[0][1]:.1f} MB at first, {warm_mb:.1f} after a minute, "
            f"{of_name[-1][1]:.1f} at the end; slope {slopes[name]:+.2f} MB a minute"
        )
    assert not counts.failures, counts.failures[:3]
    assert counts.cancelled > 0.05 * counts.calls
    assert max(slopes.values()) < SLOPE_MAX_MB_A_MINUTE
