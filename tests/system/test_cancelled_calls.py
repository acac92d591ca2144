"""Callers that change their minds: a tenth of all calls is cancelled, for minutes, and no process
takes more memory for it as time goes by. A whole stream that its client cancels does leave a little
behind, inside grpc.aio (grpc/grpc#43360): it is measured, and bounded.
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

from tests.bare_wire import int64s, matrix
from tests.system.conftest import Fleet, Starter, wait_until
from vectorshard import AsyncClient
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.types import Metric
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system_long

NAME = "rows"
DIM = 32
ROWS = 20_000
ROWS_A_WRITE = 20
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
STREAMS_S = 40.0
STREAM_LEFT_MAX_BYTES = 2_048
"""Of one that was cancelled. A bare server of grpc.aio left 1,200 to 1,800 in a run as long."""
SERVICE = "/vectorshard.v1.VectorService/"
VECTORS = np.random.default_rng(13).standard_normal((ROWS, DIM), dtype=np.float32)
UPSERT: bytes = v1.UpsertRequest(
    collection=NAME,
    ids=int64s(*range(ROWS_A_WRITE)),
    vectors=matrix(VECTORS[:ROWS_A_WRITE]),
).SerializeToString()


@dataclass(slots=True)
class Counts:
    """Calls that were made, and those of them that were cancelled."""

    calls: int = 0
    cancelled: int = 0
    failures: list[str] = field(default_factory=list)


class Fickle:
    """Makes calls over one connection, and cancels some of them. Lives in an event loop."""

    def __init__(self, address: str, cancelled: float) -> None:
        self.counts = Counts()
        self._client = AsyncClient(address, timeout_s=10)
        self._channel = grpc.aio.insecure_channel(address)
        self._cancelled = cancelled
        self._chance = random.Random(8)

    async def search(self) -> None:
        """Search."""
        await self._client.search(NAME, VECTORS[:1])

    async def write(self) -> None:
        """Write rows, the same each time."""
        await self._client.upsert(NAME, range(ROWS_A_WRITE), VECTORS[:ROWS_A_WRITE])

    async def stream(self) -> None:
        """Open a stream, write rows over it, and end it."""
        upload: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            SERVICE + "UpsertStream"
        )
        stream = upload(timeout=10)
        await stream.write(UPSERT)
        await stream.read()
        await stream.done_writing()
        await stream.read()

    async def make_calls(self, seconds: float, *, streams: bool = False) -> Counts:
        """Make calls of all kinds, or whole streams only; return what was made of them."""
        until = time.monotonic() + seconds
        self.counts = Counts()
        async with self._client.search_stream() as searches:

            async def search_over_it() -> None:
                await searches.search(NAME, VECTORS[:1])

            acts = (self.stream,) if streams else (self.search, self.write, search_over_it)
            await asyncio.gather(
                *(self._caller(act, until) for act in acts for _ in range(CALLERS))
            )
        return self.counts

    async def _caller(self, act: Callable[[], Awaitable[None]], until: float) -> None:
        while time.monotonic() < until:
            self.counts.calls += 1
            call = asyncio.ensure_future(act())
            if self._chance.random() < self._cancelled:
                self.counts.cancelled += 1
                await asyncio.sleep(self._chance.random() * WITHIN_S)
                call.cancel()
            try:
                await call
            except asyncio.CancelledError:
                pass
            except (VectorShardError, grpc.aio.AioRpcError) as error:
                self.counts.failures.append(repr(error))

    async def close(self) -> None:
        """Let go of the connections."""
        await self._client.close()
        await self._channel.close()


async def watched(address: str, seconds: float, watch: Callable[[], None]) -> Counts:
    """Make calls of all kinds, while `watch` is called now and then."""
    fickle = Fickle(address, CANCELLED)
    calling = asyncio.ensure_future(fickle.make_calls(seconds))
    while not calling.done():
        await asyncio.wait([calling], timeout=SAMPLE_S)
        watch()
    await fickle.close()
    return calling.result()


def slope_mb_a_minute(samples: list[tuple[float, float]]) -> float:
    """Return how memory grows by (seconds, megabytes), once it is warm."""
    began = samples[0][0]
    warm = np.array([each for each in samples if each[0] >= began + WARM_UP_S])
    return float(60.0 * np.polyfit(warm[:, 0], warm[:, 1], 1)[0])


def fill(fleet: Fleet) -> None:
    """Create a collection with rows in an index."""
    with fleet.client() as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        client.upsert(NAME, np.arange(ROWS), VECTORS)
        wait_until(lambda: client.describe(NAME).ledger.indexed > ROWS // 2, 60)


def test_cancelled_calls_leave_nothing_behind(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    fill(fleet)
    names = {"router": fleet.router, "shard 0": fleet.shards[0], "shard 1": fleet.shards[1]}
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in names}

    def watch() -> None:
        for name, process in names.items():
            samples[name].append((time.monotonic(), process.memory_mb("RssAnon")))

    counts = asyncio.run(watched(fleet.address, SECONDS, watch))
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


def test_a_cancelled_stream_leaves_little_behind(start_server: Starter) -> None:
    fleet = start_server.fleet(2)
    fill(fleet)

    async def grown_bytes() -> float:
        fickle = Fickle(fleet.address, 0.5)
        await fickle.make_calls(STREAMS_S / 4, streams=True)
        before_mb = fleet.router.memory_mb("RssAnon")
        counts = await fickle.make_calls(STREAMS_S, streams=True)
        grown_mb = fleet.router.memory_mb("RssAnon") - before_mb
        await fickle.close()
        assert not counts.failures, counts.failures[:3]
        each_bytes = grown_mb * 2**20 / counts.cancelled
        print(f"{counts.cancelled:,} streams cancelled: {each_bytes:.0f} bytes each")
        return each_bytes

    assert asyncio.run(grown_bytes()) < STREAM_LEFT_MAX_BYTES
