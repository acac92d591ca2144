"""The engine: whose wait is whose, in virtual time; and once over real gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from time import perf_counter
from typing import Any

import grpc
import pytest

from benchmarks.load.connections import SERVICE, connected
from benchmarks.load.engine import Clock, Send, make_calls
from benchmarks.load.plan import Arrivals
from benchmarks.load.record import Record
from benchmarks.load.schedule import Schedule, starts_of
from tests.virtual_time import run_virtually
from vectorshard.shard.errors import ShardUnavailable

ANSWER_S = 0.010


def virtual_clock() -> Clock:
    """Return the clock of the running loop."""
    return Clock(now=asyncio.get_running_loop().time, sleep=asyncio.sleep)


def schedule_of(rate_per_s: float | None, *, calls: int, warmup_s: float = 0.0) -> Schedule:
    """Return an open loop of uniform arrivals, or a closed loop."""
    starts = None if rate_per_s is None else starts_of(Arrivals.uniform, rate_per_s, seed=1)
    return Schedule(starts, warmup_s=warmup_s, duration_s=None, calls_total=calls)


class OneAtATime:
    """A server that answers one call after another, each in ANSWER_S, whoever asks."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self.in_flight = self.most_in_flight = 0

    async def __call__(self, number: int) -> bytes:
        """Answer a call."""
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        async with self._turn:
            await asyncio.sleep(ANSWER_S)
        self.in_flight -= 1
        return b"%d" % number


def measured(schedule: Schedule, concurrency: int) -> tuple[Record, OneAtATime, float]:
    """Run a schedule against a server that answers one call at a time, in virtual time."""

    async def run() -> tuple[Record, OneAtATime, float]:
        record, server = Record(distinct=1_000), OneAtATime()
        ran_s = await make_calls(
            schedule,
            [server],
            record,
            concurrency=concurrency,
            stopped=asyncio.Event(),
            clock=virtual_clock(),
        )
        return record, server, ran_s

    return run_virtually(run())


def test_open_loop_latency_includes_the_queue_of_a_server_that_does_not_keep_up() -> None:
    """200 calls/s are sent to a server that answers 100: call n waits n * 5 ms."""
    record, _, ran_s = measured(schedule_of(200.0, calls=200), concurrency=1_000)
    assert ran_s == pytest.approx(200 * ANSWER_S, rel=0.01)
    assert record.latency.percentile_ms(50) == pytest.approx(510, rel=0.02)
    assert record.latency.percentile_ms(100) == pytest.approx(1_005, rel=0.01)
    assert len(record.wait) == 0
    assert record.lag.percentile_ms(100) == 0


def test_a_closed_loop_hides_that_queue_because_it_asks_less() -> None:
    record, _, ran_s = measured(schedule_of(None, calls=200), concurrency=1)
    assert ran_s == pytest.approx(200 * ANSWER_S, rel=0.01)
    assert record.latency.percentile_ms(50) == pytest.approx(10, rel=0.01)
    assert record.latency.percentile_ms(100) == pytest.approx(10, rel=0.01)


def test_the_cap_on_calls_in_flight_moves_the_wait_and_leaves_the_latency() -> None:
    uncapped, _, _ = measured(schedule_of(200.0, calls=200), concurrency=1_000)
    capped, server, _ = measured(schedule_of(200.0, calls=200), concurrency=5)
    assert server.most_in_flight == 5
    for percent in (50, 99, 100):
        assert capped.latency.percentile_ms(percent) == pytest.approx(
            uncapped.latency.percentile_ms(percent), rel=0.01
        )
    assert len(capped.wait) > 180
    assert capped.wait.percentile_ms(100) == pytest.approx(1_005 - 5 * 10, rel=0.02)
    assert capped.lag.percentile_ms(100) == 0, "the wait for a slot is not the generator's own lag"


def test_a_server_that_keeps_up_is_asked_on_time_and_answers_every_call() -> None:
    record, server, ran_s = measured(schedule_of(50.0, calls=100), concurrency=1_000)
    assert ran_s == pytest.approx(99 / 50 + ANSWER_S, rel=0.01)
    assert record.latency.percentile_ms(100) == pytest.approx(10, rel=0.01)
    assert record.codes == {"OK": 100}
    assert server.most_in_flight == 1
    assert record.answers == {number: b"%d" % number for number in range(100)}


def test_no_call_waits_for_a_slot_while_callers_are_idle_however_long_they_take_to_begin() -> None:
    async def run() -> Record:
        record, server, clock, ticks = Record(distinct=1), OneAtATime(), virtual_clock(), count()
        await make_calls(
            schedule_of(20.0, calls=20),
            [server],
            record,
            concurrency=1_000,
            stopped=asyncio.Event(),
            clock=type(clock)(now=lambda: clock.now() + 2e-6 * next(ticks), sleep=clock.sleep),
        )
        return record

    record = run_virtually(run())
    assert record.codes == {"OK": 20}
    assert len(record.wait) == 0
    assert record.lag.percentile_ms(100) > 0


def test_the_warm_up_is_sent_and_not_counted() -> None:
    record, _, _ = measured(schedule_of(50.0, calls=10, warmup_s=1.0), concurrency=4)
    assert (record.sent, record.codes.total(), len(record.latency)) == (60, 10, 10)
    assert sorted(record.answers) == list(range(50, 60))


def test_a_generator_that_wakes_up_late_says_so() -> None:
    async def run() -> Record:
        record, server, clock = Record(distinct=1), OneAtATime(), virtual_clock()

        async def oversleep(seconds: float) -> None:
            await asyncio.sleep(seconds + 0.004)

        await make_calls(
            schedule_of(10.0, calls=10),
            [server],
            record,
            concurrency=4,
            stopped=asyncio.Event(),
            clock=type(clock)(now=clock.now, sleep=oversleep),
        )
        return record

    record = run_virtually(run())
    assert record.lag.percentile_ms(99) == pytest.approx(4, rel=0.01)
    assert record.latency.percentile_ms(100) == pytest.approx(14, rel=0.01)


def refusal(code: grpc.StatusCode) -> grpc.aio.AioRpcError:
    """Return what a call raises."""
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata())


def test_statuses_are_counted_and_a_failed_call_keeps_no_answer() -> None:
    async def send(number: int) -> bytes:
        if number % 3 == 0:
            raise refusal(grpc.StatusCode.UNAVAILABLE)
        return b""

    async def run() -> Record:
        record = Record(distinct=100)
        await make_calls(
            schedule_of(None, calls=9),
            [send],
            record,
            concurrency=2,
            stopped=asyncio.Event(),
            clock=virtual_clock(),
        )
        return record

    record = run_virtually(run())
    assert record.codes == {"OK": 6, "UNAVAILABLE": 3}
    assert set(record.answers) == {1, 2, 4, 5, 7, 8}
    assert len(record.latency) == 9


def test_a_fault_of_the_generator_itself_is_raised_and_not_counted() -> None:
    async def send(number: int) -> bytes:
        raise ZeroDivisionError

    async def run() -> None:
        await make_calls(
            schedule_of(None, calls=9),
            [send],
            Record(distinct=1),
            concurrency=2,
            stopped=asyncio.Event(),
            clock=virtual_clock(),
        )

    with pytest.raises(ZeroDivisionError):
        run_virtually(run())


def test_an_interruption_gives_up_what_is_in_flight_and_keeps_what_was_measured() -> None:
    async def run() -> tuple[Record, float]:
        record, server, stopped = Record(distinct=100), OneAtATime(), asyncio.Event()
        asyncio.get_running_loop().call_later(0.505, stopped.set)
        ran_s = await make_calls(
            schedule_of(200.0, calls=10_000),
            [server],
            record,
            concurrency=20,
            stopped=stopped,
            clock=virtual_clock(),
        )
        return record, ran_s

    record, ran_s = run_virtually(run())
    assert ran_s == pytest.approx(0.505, rel=0.01)
    assert record.codes == {"OK": 50}
    assert record.unfinished == 20


def test_callers_are_spread_over_the_connections() -> None:
    asked: list[int] = []

    def connection(which: int) -> Send:
        async def send(number: int) -> bytes:
            asked.append(which)
            await asyncio.sleep(ANSWER_S)
            return b""

        return send

    async def run() -> None:
        await make_calls(
            schedule_of(None, calls=30),
            [connection(which) for which in range(3)],
            Record(distinct=1),
            concurrency=6,
            stopped=asyncio.Event(),
            clock=virtual_clock(),
        )

    run_virtually(run())
    assert [asked.count(which) for which in range(3)] == [10, 10, 10]


# ---- over gRPC -----------------------------------------------------------------------------------

RPC = "GetServerInfo"
Context = grpc.aio.ServicerContext[bytes, bytes]
SLOW_ANSWER_S = 0.02


class FakeServer:
    """Answers one call after another, slowly, over gRPC. `peers` are who asked."""

    def __init__(self) -> None:
        self.peers: set[str] = set()
        self._turn = asyncio.Lock()

    async def answer(self, payload: bytes, context: Context) -> bytes:
        """Say what was said; refuse to say nothing."""
        self.peers.add(context.peer())
        if not payload:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "nothing")
        async with self._turn:
            await asyncio.sleep(SLOW_ANSWER_S)
        return payload


@asynccontextmanager
async def fake_server() -> AsyncIterator[tuple[FakeServer, str]]:
    """Serve, and yield the server and its address."""
    fake, server = FakeServer(), grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(fake.answer)
    service = SERVICE.strip("/")
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {RPC: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield fake, f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def over_grpc(target: str, schedule: Schedule, concurrency: int) -> Record:
    """Run a schedule against a server, in real time."""
    record = Record(distinct=1)
    async with connected(target, RPC, connections=2, timeout_s=5.0) as rpcs:
        await make_calls(
            schedule,
            [lambda number, rpc=rpc: rpc(b"%d" % number) for rpc in rpcs],  # type: ignore[misc]
            record,
            concurrency=concurrency,
            stopped=asyncio.Event(),
        )
    return record


async def test_over_grpc_too_the_open_loop_shows_the_wait_that_the_closed_loop_hides() -> None:
    async with fake_server() as (fake, target):
        start = perf_counter()
        open_loop = await over_grpc(target, schedule_of(1_000.0, calls=20), concurrency=100)
        open_s = perf_counter() - start
        assert len(fake.peers) == 2, "each connection is one of its own"
        closed_loop = await over_grpc(target, schedule_of(None, calls=10), concurrency=1)
    assert open_loop.codes == {"OK": 20}
    # Nothing is faster than the server: the last of 20 calls was meant to start at 19 ms.
    longest_ms = open_loop.latency.percentile_ms(100)
    assert 0.99e3 * (20 * SLOW_ANSWER_S - 0.019) <= longest_ms <= 1e3 * open_s
    assert closed_loop.latency.percentile_ms(50) < longest_ms / 3


async def test_the_status_of_a_refused_call_is_counted_by_its_name() -> None:
    async with fake_server() as (_, target):
        record = Record(distinct=1)
        async with connected(target, RPC, connections=1, timeout_s=5.0) as [rpc]:
            await make_calls(
                schedule_of(None, calls=3),
                [lambda number: rpc(b"")],
                record,
                concurrency=1,
                stopped=asyncio.Event(),
            )
    assert record.codes == {"INVALID_ARGUMENT": 3}


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(ShardUnavailable, match=r"no connection to .* within 0\.05 s"):
        async with connected("127.0.0.1:1", RPC, connections=2, timeout_s=0.05):
            pass
