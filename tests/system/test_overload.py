"""A server that is asked ten times what it can serve: it serves as much as ever, refuses the rest
at once, answers for its health throughout, and takes no more memory than it may.

What it can serve is what it answers to a few callers that wait for their answers, right before and
right after. More is offered by callers that do not wait: their number a second is fixed.
"""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from google.rpc import (  # type: ignore[import-untyped]  # it has stubs, but no py.typed
    error_details_pb2,
    status_pb2,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.bare_wire import matrix, refusal_of
from tests.net.operations import never_seen
from tests.system.conftest import Server, ServerProcess, Starter, log_lines, logged_address
from vectorshard.shard.types import Float32Array, IndexConfig, Metric
from vectorshard.v1 import vectorshard_pb2 as v1

NAME = "overload"
DIM = 128
ROWS = 200_000
ROWS_A_WRITE = 20_000
NEVER = 10_000_000
"""A min_training_size that is not reached: every search scores every row, and is slow."""
QUERIES = 64
"""Of one search: it is a joined search by itself."""
HEALTH = ["--health", "127.0.0.1:0"]
CALLERS = 8
TIMEOUT_S = 2.0
CONNECTIONS = 4

GOODPUT_MIN = 0.8
GOODPUT_MIN_BRIEF = 0.7
"""Of the four seconds of the short test, whose load generator shares the cores: .79 to .90 in ten
runs of two builds."""
REFUSAL_P99_S = 0.05
LATE_MAX = 0.02
"""The part of the calls that may end in anything but an answer or a refusal."""
GROWTH_MAX_MB = 256
CHECK_EVERY_S = 0.05
CHECK_S = 2.0
"""How long a check may take: as the most impatient probe of deploy/kustomize."""
LAG_EVERY_S = 0.005
LOOKED_AT_EVERY = 7
"""Of so many calls one's refusal is looked into."""


@dataclass(slots=True)
class Told:
    """How calls have ended: when, in order of their ends, and after how long; by code."""

    ends: dict[grpc.StatusCode, list[tuple[float, float]]] = field(default_factory=dict)
    refusals: set[str] = field(default_factory=set)
    """What refusals say, as docs/operations.md shows it."""
    lags_s: list[float] = field(default_factory=list)
    """How late this process itself was: its calls seem to take that much longer."""
    without_retry: int = 0
    """Refusals that do not say when to try again."""

    def note(self, code: grpc.StatusCode, began: float) -> None:
        """Note a call's end."""
        now = time.monotonic()
        self.ends.setdefault(code, []).append((now, now - began))

    def rate(self, code: grpc.StatusCode, since: float, until: float) -> float:
        """Return how many calls a second have ended so, in a time."""
        ended = sum(since <= end < until for end, _ in self.ends.get(code, ()))
        return ended / (until - since)

    def p99_s(self, code: grpc.StatusCode) -> float:
        """Return how long calls that ended so took."""
        return float(np.quantile([took for _, took in self.ends[code]], 0.99))

    def counts(self) -> Counter[str]:
        """Return how many calls have ended how."""
        return Counter({code.name: len(ends) for code, ends in self.ends.items()})


class Asking:
    """Sends one search again and again, over some connections. Made and used in one event loop."""

    def __init__(self, address: str, search: bytes) -> None:
        self._search = search
        self._channels = [
            grpc.aio.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(CONNECTIONS)
        ]
        self._rpcs: list[grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = [
            channel.unary_unary("/vectorshard.v1.VectorService/Search")
            for channel in self._channels
        ]
        self._number = 0

    async def once(self, told: Told) -> None:
        """Send it once, and note how it ends."""
        self._number += 1
        rpc = self._rpcs[self._number % CONNECTIONS]
        began = time.monotonic()
        try:
            await rpc(self._search, timeout=TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            told.note(error.code(), began)
            refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            if refused and self._number % LOOKED_AT_EVERY == 0:  # it shares the server's cores
                told.without_retry += not _says_when_to_retry(error)
                refusal = refusal_of(error)
                told.refusals |= {f"reason {refusal.reason}", f"message {refusal.message}"}
        else:
            told.note(grpc.StatusCode.OK, began)

    async def close(self) -> None:
        """Let go of the connections."""
        for channel in self._channels:
            await channel.close()


def _says_when_to_retry(error: grpc.aio.AioRpcError) -> bool:
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin" and isinstance(value, bytes):
            details = status_pb2.Status.FromString(value).details
            return any(each.Is(error_details_pb2.RetryInfo.DESCRIPTOR) for each in details)
    return False


async def served(address: str, search: bytes, seconds: float) -> float:
    """Return the searches a second that callers get who wait for their answers."""
    told = Told()
    asking = Asking(address, search)
    began = time.monotonic()

    async def caller() -> None:
        while time.monotonic() < began + seconds:
            await asking.once(told)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    await asking.close()
    return told.rate(grpc.StatusCode.OK, began, time.monotonic())


async def note_lags(told: Told) -> None:
    """Note how late this event loop is, until this is cancelled."""
    while True:
        due = time.monotonic() + LAG_EVERY_S
        await asyncio.sleep(LAG_EVERY_S)
        told.lags_s.append(time.monotonic() - due)


async def offered(address: str, search: bytes, per_s: float, seconds: float) -> tuple[Told, float]:
    """Offer searches, so many a second; return how they ended, and how many a second were answered.

    The first second does not count: the queue fills.
    """
    told = Told()
    asking = Asking(address, search)
    lagging = asyncio.ensure_future(note_lags(told))
    began = time.monotonic()
    calls: set[asyncio.Task[None]] = set()
    for number in range(int(per_s * seconds)):
        ahead_s = began + number / per_s - time.monotonic()
        if ahead_s > 0.001:
            await asyncio.sleep(ahead_s)
        call = asyncio.ensure_future(asking.once(told))
        calls.add(call)
        call.add_done_callback(calls.discard)
    goodput = told.rate(grpc.StatusCode.OK, began + 1.0, time.monotonic())
    await asyncio.gather(*calls)
    lagging.cancel()
    await asking.close()
    return told, goodput


@dataclass(slots=True)
class Watch:
    """What health says, and how long it takes; how much memory the server has at most."""

    checks: int = 0
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    most_mb: float = 0.0

    def look(self, stub: health_pb2_grpc.HealthStub, server: ServerProcess) -> None:
        """Look once."""
        began = time.monotonic()
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=CHECK_S)
        except grpc.RpcError as error:
            self.failures.append(repr(error))
        else:
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                self.failures.append(f"status {answer.status}")
        self.checks += 1
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        self.most_mb = max(self.most_mb, server.memory_mb("RssAnon"))


@contextmanager
def watching(health: str, server: ServerProcess) -> Iterator[Watch]:
    """Watch a server, from a thread, as long as the context lasts."""
    watch, over = Watch(), threading.Event()

    def look() -> None:
        with grpc.insecure_channel(health) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not over.wait(CHECK_EVERY_S):
                watch.look(stub, server)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield watch
    finally:
        over.set()
        thread.join()


def rows() -> Iterator[tuple[npt.NDArray[np.int64], Float32Array]]:
    """Yield ids and vectors of all rows, in parts."""
    rng = np.random.default_rng(11)
    for first in range(0, ROWS, ROWS_A_WRITE):
        ids = np.arange(first, first + ROWS_A_WRITE)
        yield ids, rng.standard_normal((ROWS_A_WRITE, DIM), dtype=np.float32)


def fill(server: Server) -> bytes:
    """Create a collection that is slow to search, and return the bytes of a search in it."""
    with server.client() as client:
        index = IndexConfig(min_training_size=NEVER)
        client.create_collection(NAME, dim=DIM, metric=Metric.L2, index=index)
        for ids, vectors in rows():
            client.upsert(NAME, ids, vectors)
    queries = np.random.default_rng(12).standard_normal((QUERIES, DIM), dtype=np.float32)
    search: bytes = v1.SearchRequest(
        collection=NAME, queries=matrix(queries), k=10
    ).SerializeToString()
    return search


def check_overload(
    server: Server,
    front: ServerProcess,
    factor: float,
    seconds: float,
    goodput_min: float = GOODPUT_MIN,
) -> Told:
    """Offer so many times what is served, and hold the server to what it must reach."""
    search = fill(server)
    asyncio.run(served(server.address, search, 1.0))
    quiet_mb = front.memory_mb("RssAnon")
    with watching(logged_address(front, "serving health"), front) as watch:
        before = asyncio.run(served(server.address, search, seconds / 2))
        told, goodput = asyncio.run(offered(server.address, search, factor * before, seconds))
        after = asyncio.run(served(server.address, search, seconds / 2))
    peak = (before + after) / 2
    counts = told.counts()
    refused_p99_s = told.p99_s(grpc.StatusCode.RESOURCE_EXHAUSTED)
    lag_p99_s = float(np.quantile(told.lags_s, 0.99))
    print(
        f"{factor:g} times {before:.1f}/s for {seconds:g} s: {goodput:.1f}/s answered, "
        f"{goodput / peak:.2f} of {peak:.1f}/s; {dict(counts)}; refusals p99 "
        f"{1e3 * refused_p99_s:.1f} ms, where the callers lag {1e3 * lag_p99_s:.1f}; "
        f"{watch.checks} checks of health, the slowest "
        f"{1e3 * watch.slowest_s:.0f} ms, {len(watch.failures)} failed; memory "
        f"{quiet_mb:.0f} MB, at most {watch.most_mb:.0f}"
    )
    assert goodput >= goodput_min * peak
    assert refused_p99_s - lag_p99_s < REFUSAL_P99_S
    assert told.without_retry == 0
    late = counts.total() - counts["OK"] - counts["RESOURCE_EXHAUSTED"]
    assert late <= LATE_MAX * counts.total()
    assert watch.checks > seconds
    assert not watch.failures
    assert watch.most_mb - quiet_mb < GROWTH_MAX_MB
    return told


@pytest.mark.system
@pytest.mark.alone
def test_a_server_at_ten_times_its_load_serves_on_and_refuses_the_rest_at_once(
    start_server: Starter,
) -> None:
    server = start_server(2, options=[*HEALTH, "--metrics", "127.0.0.1:0"])
    told = check_overload(server, server, factor=10, seconds=4, goodput_min=GOODPUT_MIN_BRIEF)
    metrics = f"http://{logged_address(server, 'serving metrics')}/metrics"
    with urllib.request.urlopen(metrics, timeout=10) as answer:
        seen = {f"metric {line}" for line in answer.read().decode().splitlines()}
    seen |= {f"code {code.name}" for code in told.ends} | told.refusals | log_lines(server)
    assert not never_seen("Too much load", seen)


@pytest.mark.system_long
@pytest.mark.parametrize("factor", [2, 5, 10])
def test_a_server_at_many_times_its_load_for_long(start_server: Starter, factor: int) -> None:
    server = start_server(2, options=HEALTH)
    check_overload(server, server, factor=factor, seconds=20)


@pytest.mark.system_long
def test_a_fleet_at_ten_times_its_load_for_long(start_server: Starter) -> None:
    fleet = start_server.fleet(2, options=HEALTH)
    check_overload(fleet, fleet.router, factor=10, seconds=20)
