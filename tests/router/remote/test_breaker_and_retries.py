"""Breaker, probes and retries of a remote shard, in virtual time: every wait is exact."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import structlog.testing
from prometheus_client import CollectorRegistry

from tests.router.model_shard import FaultyShard
from tests.router.offline_shard import OfflineShard
from tests.shard.samples import config_of, int64s, some_vectors
from tests.virtual_time import run_virtually
from vectorshard.client.retry import BACKOFF_FIRST_S
from vectorshard.router.remote.circuit_breaker import (
    FAILURES,
    WAIT_FIRST_S,
    WAIT_MAX_S,
    BreakerState,
)
from vectorshard.router.remote.metrics import RemoteShardCollector
from vectorshard.router.remote.probes import PROBE_S, SILENCE_S
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.router.remote.retry_policy import ATTEMPTS, RETRIES_A_CALL, RETRIES_SAVED
from vectorshard.shard.descriptions import ExplainRequest, Topology
from vectorshard.shard.errors import (
    DeadlineExceeded,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
    mark_unanswered,
)
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    ListRequest,
    SearchRequest,
    SearchResult,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
)

COUNT = CountRequest(collection="words")
SEARCH = SearchRequest(collection="words", queries=some_vectors(1), k=10)


def lost() -> ShardUnavailable:
    """What the network says."""
    return mark_unanswered(ShardUnavailable("connection refused"))


def now_s() -> float:
    """Return the virtual time."""
    return asyncio.get_running_loop().time()


class Remote(FaultyShard):
    """A shard far away: it may be stopped, and then answers nothing until it goes on."""

    def __init__(self, failure: VectorShardError | None = None) -> None:
        super().__init__(0, 1, failure=failure)
        self.failures = 0
        """How many of the next calls the network fails."""
        self.running = asyncio.Event()
        self.asked_at: list[tuple[str, float]] = []
        self.running.set()
        self.with_collection()

    async def _reached(self, method: str, call: Call) -> None:
        self.asked_at.append((method, now_s()))
        if self.failures:
            self.failures -= 1
            raise lost()
        try:
            async with asyncio.timeout_at(call.deadline):
                await self.running.wait()
        except TimeoutError:
            raise mark_unanswered(DeadlineExceeded("no answer before the deadline")) from None

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        await self._reached("search", call)
        return await super().search(request, call=call)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        await self._reached("count", call)
        return await super().count(request, call=call)

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        await self._reached("topology", call)
        return await super().topology(call=call)

    def times(self, method: str) -> list[float]:
        """When a method was asked."""
        return [at for asked, at in self.asked_at if asked == method]


Scenario = Callable[[Remote, RemoteShard], Coroutine[Any, Any, None]]


def virtually(scenario: Scenario) -> Callable[[], None]:
    """Run a scenario over a remote shard and its guard in virtual time."""

    async def run() -> None:
        remote = Remote()
        guarded = OfflineShard(remote)
        try:
            await scenario(remote, guarded)
        finally:
            await guarded.close()
        assert remote.closed

    def test() -> None:
        run_virtually(run())

    test.__name__ = test.__qualname__ = scenario.__name__
    return test


def within(seconds: float) -> Call:
    """Return a call that ends in so many seconds."""
    return Call(deadline=now_s() + seconds)


async def missed(ask: Awaitable[object]) -> VectorShardError:
    """Return the error that a call ends with."""
    with pytest.raises(VectorShardError) as caught:
        await ask
    return caught.value


# ---- asked again --------------------------------------------------------------------------------


@virtually
async def test_a_read_that_the_network_failed_is_asked_again_a_little_later(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.failures = ATTEMPTS - 1
    began = now_s()
    await guarded.count(COUNT)
    waits_s = [BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S]
    assert remote.times("count") == pytest.approx([began, began + waits_s[0], began + sum(waits_s)])
    assert guarded.retry_policy.retries == ATTEMPTS - 1


def test_a_read_that_grpc_refused_at_the_server_is_repeated_and_opens_no_breaker() -> None:
    async def scenario() -> None:
        remote = Remote(mark_unanswered(Overloaded("the server refused the call")))
        guarded = OfflineShard(remote)
        error = await missed(guarded.count(COUNT))
        assert error is remote.failure
        assert len(remote.times("count")) == ATTEMPTS
        assert guarded.breaker.openings == 0
        await guarded.close()

    run_virtually(scenario())


@virtually
async def test_attempts_are_counted(remote: Remote, guarded: RemoteShard) -> None:
    remote.failures = 10**6
    error = await missed(guarded.count(COUNT))
    assert "connection refused" in str(error)
    assert len(remote.times("count")) == ATTEMPTS


@virtually
async def test_no_attempt_begins_after_the_deadline(remote: Remote, guarded: RemoteShard) -> None:
    remote.failures = 10**6
    began = now_s()
    await missed(guarded.count(COUNT, call=within(BACKOFF_FIRST_S)))
    assert now_s() == began, "there was no time for another one, so that none was waited for"
    await missed(guarded.count(COUNT, call=within(1.5 * BACKOFF_FIRST_S)))
    assert len(remote.times("count")) == 1 + 2


@virtually
async def test_a_budget_bounds_what_is_asked_again(remote: Remote, guarded: RemoteShard) -> None:
    calls = 500
    failed = 0
    for _ in range(calls):
        remote.failures = 1
        try:
            await guarded.count(COUNT)
        except ShardUnavailable:
            failed += 1
            await guarded.topology()  # an answer, so that failures are not in a row
    assert guarded.retry_policy.retries == pytest.approx(
        calls * RETRIES_A_CALL + RETRIES_SAVED, abs=2
    )
    assert failed == calls - guarded.retry_policy.retries
    assert guarded.breaker.openings == 0


@pytest.mark.parametrize("failure", [ShardUnavailable("draining"), Overloaded("full")], ids=type)
def test_what_the_server_itself_refuses_is_passed_on_with_how_long_to_wait(
    failure: VectorShardError,
) -> None:
    async def scenario() -> None:
        remote = Remote(failure)
        failure.retry_delay_s = 0.7
        error = await missed(OfflineShard(remote).count(COUNT))
        assert error is failure
        assert len(remote.times("count")) == 1

    run_virtually(scenario())


READS: dict[str, Callable[[RemoteShard], Awaitable[object]]] = {
    "list collections": lambda shard: shard.list_collections(),
    "describe": lambda shard: shard.describe("words"),
    "get": lambda shard: shard.get(GetRequest(collection="words", ids=int64s(2))),
    "list": lambda shard: shard.list_rows(ListRequest(collection="words")),
    "explain": lambda shard: shard.explain(
        ExplainRequest(collection="words", query=some_vectors(1), id=int64s(2))
    ),
}
WRITES: dict[str, Callable[[RemoteShard], Awaitable[object]]] = {
    "create": lambda shard: shard.create_collection(
        config_of("other"), call=Call(incarnation="other")
    ),
    "drop": lambda shard: shard.drop_collection("words"),
    "update": lambda shard: shard.update_collection(
        UpdateRequest(collection="words", target_recall=0.9)
    ),
    "upsert": lambda shard: shard.upsert(
        UpsertRequest(collection="words", ids=int64s(2), vectors=some_vectors(1))
    ),
    "delete": lambda shard: shard.delete(DeleteRequest(collection="words", ids=int64s(2))),
    "train": lambda shard: shard.train(TrainRequest(collection="words")),
}


@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_reads_are_asked_again_and_nothing_else_is(method: str) -> None:
    async def scenario() -> None:
        shard = FaultyShard(0, 1, failure=lost()).with_collection()
        await missed((READS | WRITES)[method](OfflineShard(shard)))
        assert len(shard.asked(method)) == (ATTEMPTS if method in READS else 1)

    run_virtually(scenario())


@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_every_method_reaches_the_shard_and_brings_its_answer(method: str) -> None:
    async def scenario() -> None:
        direct, behind = (FaultyShard(0, 1).with_collection() for _ in range(2))
        expected = await (READS | WRITES)[method](direct)  # type: ignore[arg-type]  # it is alike
        told = await (READS | WRITES)[method](OfflineShard(behind))
        assert repr(told) == repr(expected)

    run_virtually(scenario())


# ---- not asked ----------------------------------------------------------------------------------


async def open_the_breaker(remote: Remote, guarded: RemoteShard) -> None:
    """Have the network fail until nothing is asked any more."""
    remote.failures = 10**6
    while guarded.breaker.state is BreakerState.CLOSED:
        await missed(guarded.count(COUNT))


@virtually
async def test_a_shard_that_fails_again_and_again_is_not_asked_and_missing_at_once(
    remote: Remote, guarded: RemoteShard
) -> None:
    await open_the_breaker(remote, guarded)
    asked, began = len(remote.times("count")), now_s()
    error = await missed(guarded.count(COUNT))
    assert isinstance(error, ShardUnavailable)
    open_s = WAIT_FIRST_S
    assert str(error).startswith(
        f"far:1: circuit breaker open ({FAILURES} consecutive failures; "
        f"next probe in {open_s:.1f} s); last failure: conn"
    )
    assert (len(remote.times("count")), now_s()) == (asked, began)


@virtually
async def test_it_is_probed_until_it_answers_and_then_asked_again(
    remote: Remote, guarded: RemoteShard
) -> None:
    await open_the_breaker(remote, guarded)
    await asyncio.sleep(20.0)
    waits_s = [after - before for before, after in pairwise(remote.times("topology"))]
    assert waits_s[:2] == pytest.approx([0.5, 1.0])
    assert waits_s[3:] == pytest.approx([WAIT_MAX_S] * len(waits_s[3:]))
    assert len(remote.times("count")) == FAILURES
    remote.failures = 0
    await asyncio.sleep(WAIT_MAX_S)
    assert guarded.breaker.state is BreakerState.CLOSED
    assert await guarded.count(COUNT) == 0


@virtually
async def test_an_answer_to_a_probe_that_makes_no_sense_is_an_answer_and_ends_no_watch(
    remote: Remote, guarded: RemoteShard
) -> None:
    class Strange(FaultyShard):
        async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
            self.topologies_told += 1
            raise RuntimeError("bug")

    strange = Strange(0, 1, failure=lost()).with_collection()
    behind = OfflineShard(strange)
    for failure in range(1, 4):
        with structlog.testing.capture_logs() as logs:
            while behind.breaker.state is BreakerState.CLOSED:
                await missed(behind.count(COUNT))
            await asyncio.sleep(WAIT_MAX_S)
        assert strange.topologies_told == failure
        assert "unexpected answer to a probe" in {line["event"] for line in logs}
    await behind.close()


@virtually
async def test_a_stopped_shard_is_noticed_by_its_silence_while_callers_wait_their_time(
    remote: Remote, guarded: RemoteShard
) -> None:
    await guarded.count(COUNT)
    remote.running.clear()
    began = now_s()
    waiting = asyncio.ensure_future(guarded.search(SEARCH, call=within(10.0)))
    await asyncio.sleep(SILENCE_S + PROBE_S + 0.01)
    assert guarded.breaker.state is not BreakerState.CLOSED
    error = await missed(guarded.search(SEARCH, call=within(10.0)))
    assert "silent for 2.0 s, a probe failed; next probe" in str(error)
    assert isinstance(await missed(waiting), DeadlineExceeded)
    assert now_s() == pytest.approx(began + 10.0), "nobody's wait is cut short"


@virtually
async def test_a_search_that_can_do_without_a_stopped_shard_waits_no_longer_once_that_is_known(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.running.clear()
    began = now_s()
    lenient = replace(SEARCH, min_coverage=0.0)
    error = await missed(guarded.search(lenient, call=within(30.0)))
    assert isinstance(error, ShardUnavailable)
    cause = "silent for 2.0 s, a probe failed"
    assert f"circuit breaker open ({cause}; next probe in 0.2 s); last failure: " in str(error)
    assert now_s() == pytest.approx(began + SILENCE_S + PROBE_S)
    remote.running.set()
    await asyncio.sleep(WAIT_MAX_S)
    await guarded.search(lenient)


@virtually
async def test_who_leaves_a_search_that_can_do_without_the_shard_is_cancelled_and_not_answered(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.running.clear()
    asking = asyncio.ensure_future(guarded.search(replace(SEARCH, min_coverage=0.0)))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@virtually
async def test_a_shard_that_goes_on_is_asked_within_the_longest_wait_and_a_probe(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.running.clear()
    await missed(guarded.search(SEARCH, call=within(30.0)))
    remote.running.set()
    await asyncio.sleep(WAIT_MAX_S + PROBE_S)
    assert guarded.breaker.state is BreakerState.CLOSED
    await guarded.search(SEARCH)


@virtually
async def test_callers_in_a_hurry_never_close_off_a_shard_that_answers(
    remote: Remote, guarded: RemoteShard
) -> None:
    for _ in range(100):
        remote.running.clear()
        asyncio.get_running_loop().call_later(0.3, remote.running.set)
        assert isinstance(await missed(guarded.search(SEARCH, call=within(0.2))), DeadlineExceeded)
        await remote.running.wait()
    assert guarded.breaker.openings == 0
    await guarded.search(SEARCH)


@virtually
async def test_callers_in_a_hurry_notice_a_stopped_shard_too(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.running.clear()
    began = now_s()
    while guarded.breaker.state is BreakerState.CLOSED:
        await missed(guarded.search(SEARCH, call=within(0.2)))
    assert now_s() - began <= SILENCE_S + PROBE_S + 0.2 + 0.01


@virtually
async def test_a_call_that_takes_long_is_no_silence_of_who_answers_probes(
    remote: Remote, guarded: RemoteShard
) -> None:
    class Training(FaultyShard):
        async def train(self, request: TrainRequest, *, call: Call = NO_LIMIT) -> Any:
            await asyncio.sleep(60.0)
            return await super().train(request, call=call)

    training = Training(0, 1).with_collection()
    slow = OfflineShard(training)
    await slow.train(TrainRequest(collection="words", wait=True))
    assert slow.breaker.openings == 0
    assert training.topologies_told == pytest.approx(60.0 / SILENCE_S, abs=1)
    await slow.close()


@virtually
async def test_nothing_is_watched_while_nothing_is_asked(
    remote: Remote, guarded: RemoteShard
) -> None:
    await guarded.count(COUNT)
    await asyncio.sleep(3_600.0)
    assert remote.times("topology") == []
    assert len(asyncio.all_tasks()) == 1


@virtually
async def test_a_caller_that_leaves_takes_its_call_along(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.running.clear()
    asking = asyncio.ensure_future(guarded.search(SEARCH))
    await asyncio.sleep(0.1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    remote.running.set()
    await asyncio.sleep(10.0)
    assert guarded.breaker.state is BreakerState.CLOSED
    assert not remote.asked("search")


@virtually
async def test_a_caller_may_leave_while_it_is_asked_again(
    remote: Remote, guarded: RemoteShard
) -> None:
    remote.failures = 1
    remote.running.clear()
    asking = asyncio.ensure_future(guarded.search(SEARCH))
    await asyncio.sleep(0.1)
    assert len(remote.times("search")) == 2
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


@virtually
async def test_who_it_is_may_always_be_asked_and_tells_that_it_is_back(
    remote: Remote, guarded: RemoteShard
) -> None:
    await open_the_breaker(remote, guarded)
    remote.failures = 0
    await guarded.topology()
    assert guarded.breaker.state is BreakerState.CLOSED


@virtually
async def test_the_log_and_the_metrics_tell_what_is_not_asked(
    remote: Remote, guarded: RemoteShard
) -> None:
    registry = CollectorRegistry()
    collector = RemoteShardCollector()
    registry.register(collector)
    collector.shards = [guarded]

    def metric(name: str) -> float | None:
        return registry.get_sample_value(f"vectorshard_child_{name}", {"child": "far:1"})

    assert metric("breaker_state") == 0
    with structlog.testing.capture_logs() as logs:
        await open_the_breaker(remote, guarded)
        assert (metric("breaker_state"), metric("breaker_openings_total")) == (2, 1)
        assert metric("retries_total") == ATTEMPTS - 1
        await asyncio.sleep(20.0)
        remote.failures = 0
        await asyncio.sleep(WAIT_MAX_S)
    assert metric("breaker_state") == 0
    assert [(line["log_level"], line["event"], line["target"]) for line in logs] == [
        ("warning", "circuit breaker opened", "far:1"),
        ("info", "circuit breaker closed", "far:1"),
    ]
    assert "connection refused" in logs[0]["reason"]
