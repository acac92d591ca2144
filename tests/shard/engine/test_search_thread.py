"""The search thread: who is searched together, and that no caller harms another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.shard.engine.test_search_batching import answer_to, asking
from vectorshard.shard.config import Limits
from vectorshard.shard.engine.noticed import Noticed
from vectorshard.shard.engine.search_thread import SearchThread
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    InvalidVector,
    ReadFailed,
    ShardUnavailable,
)
from vectorshard.shard.filters import In
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    Effort,
    Float32Array,
    IdType,
    Metric,
    SearchRequest,
    SearchResult,
)
from vectorshard.shard.wire.searches import (
    decode_search_request,
    encode_search_request,
    encode_search_response,
)

LIMITS = Limits()
TIMEOUT_S = 60.0


@dataclass(eq=False)
class Searched:
    """A collection of one dimension, whose searches wait until they are let go on."""

    asked: list[list[int]] = field(default_factory=list)
    ks: list[int] = field(default_factory=list)
    begun: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    may_end: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    looks: int = 0  # how often a search asks whether to go on, before it ends
    ended: int = 0
    error: Exception | None = None
    closed: bool = False
    entry: CollectionEntry = field(
        default_factory=lambda: CollectionEntry(
            config=CollectionConfig(name="words", dim=1, metric=Metric.L2, id_type=IdType.INT64),
            incarnation="1",
        )
    )

    @property
    def reads(self) -> Searched:
        return self

    @property
    def state(self) -> Any:
        return SimpleNamespace(noticed=Noticed(0, "words"))

    def search(
        self, request: SearchRequest, go_on: Callable[[], None], queries: Float32Array
    ) -> SearchResult:
        self.asked.append(queries[:, 0].astype(int).tolist())
        self.ks.append(request.k)
        self.begun.release()
        assert self.may_end.acquire(timeout=TIMEOUT_S)
        for _ in range(self.looks):
            go_on()
        if self.error is not None:
            raise self.error
        self.ended += 1
        return answer_to(request)


class Crowd:
    """Callers of one search thread, and its clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.thread = SearchThread("search", 1, lambda: self.now)
        self.words = Searched()

    def ask(
        self, request: SearchRequest, deadline: float | None = None
    ) -> asyncio.Future[SearchResult]:
        call = NO_LIMIT if deadline is None else Call(deadline=deadline)
        return self.thread.search(self.words, request, call)  # type: ignore[arg-type]  # stands for it

    async def begins(self) -> None:
        """Return once another search has begun."""
        assert await asyncio.to_thread(self.words.begun.acquire, timeout=TIMEOUT_S)

    async def busy(self) -> asyncio.Future[SearchResult]:
        """Let the thread search for another caller, until the next `go_on`."""
        first = self.ask(asking(99))
        await self.begins()
        return first

    def go_on(self, searches: int = 100) -> None:
        self.words.may_end.release(searches)


@pytest.fixture
async def crowd() -> AsyncIterator[Crowd]:
    crowd = Crowd()
    yield crowd
    crowd.go_on()
    await asyncio.to_thread(crowd.thread.close)


def came_encoded(request: SearchRequest) -> SearchRequest:
    return decode_search_request(encode_search_request(request), LIMITS)


async def test_those_that_wait_are_searched_together_and_answered_as_if_alone(
    crowd: Crowd,
) -> None:
    await crowd.busy()
    requests = [came_encoded(asking(1, 5, k=3)), asking(k=2), asking(7, k=9), asking(2, k=3)]
    answers = [crowd.ask(each) for each in requests]
    crowd.go_on()
    for request, answer in zip(requests, await asyncio.gather(*answers), strict=True):
        alone = answer_to(request)
        assert answer.hits.counts.tolist() == alone.hits.counts.tolist()
        assert answer.hits.ids.tolist() == alone.hits.ids.tolist()
        assert (answer.encoded is None) == (request.encoded is None or request.k < 9)
    assert crowd.words.asked[1:] == [[1, 5, 7, 2]]
    assert crowd.words.ks[1:] == [9]


async def test_a_part_is_written_as_the_answer_to_it_alone(crowd: Crowd) -> None:
    await crowd.busy()
    requests = [came_encoded(asking(*numbers)) for numbers in ((1, 5), (), (0,), range(200))]
    answers = [crowd.ask(each) for each in requests]
    crowd.go_on()
    for answer in await asyncio.gather(*answers):
        assert answer.encoded is not None
        assert answer.encoded == encode_search_response(replace(answer), LIMITS)


async def test_an_invalid_query_fails_its_own_caller_only(crowd: Crowd) -> None:
    await crowd.busy()
    nan = replace(asking(3, 4), queries=np.array([[3], [np.nan]], np.float32))
    wide = replace(asking(3), queries=np.ones((1, 2), np.float32))
    first, bad, odd, last = (crowd.ask(each) for each in (asking(1), nan, wide, asking(2)))
    crowd.go_on()
    assert (await first).hits.ids.tolist() == [100]
    assert (await last).hits.ids.tolist() == [200, 201]
    with pytest.raises(InvalidVector) as caught:
        await bad
    assert caught.value.row == 1
    with pytest.raises(DimensionMismatch):
        await odd
    assert crowd.words.asked[1:] == [[1, 2]]


async def test_who_has_left_or_is_late_is_not_searched_for(crowd: Crowd) -> None:
    await crowd.busy()
    left, late, last = (
        crowd.ask(asking(1)),
        crowd.ask(asking(2), deadline=1.0),
        crowd.ask(asking(3)),
    )
    left.cancel()
    crowd.now = 2.0
    crowd.go_on()
    await last
    with pytest.raises(DeadlineExceeded):
        await late
    assert crowd.words.asked[1:] == [[3]]


async def test_a_search_goes_on_until_the_last_deadline(crowd: Crowd) -> None:
    await crowd.busy()
    crowd.words.looks = 1
    impatient, patient = crowd.ask(asking(1), deadline=1.0), crowd.ask(asking(2), deadline=3.0)
    crowd.go_on(1)
    await crowd.begins()
    crowd.now = 2.0
    crowd.go_on(1)
    with pytest.raises(DeadlineExceeded):
        await impatient
    assert (await patient).hits.ids.tolist() == [200, 201]


async def test_a_search_ends_once_its_callers_have_left_or_are_late(crowd: Crowd) -> None:
    await crowd.busy()
    crowd.words.looks = 1
    late, left = crowd.ask(asking(1), deadline=1.0), crowd.ask(asking(2))
    crowd.go_on(1)
    await crowd.begins()
    crowd.now = 2.0
    left.cancel()
    crowd.go_on(1)
    with pytest.raises(DeadlineExceeded, match="during"):
        await late
    assert crowd.words.ended == 1


async def test_searches_that_are_not_alike_take_turns(crowd: Crowd) -> None:
    await crowd.busy()
    exact = Effort(exact=True)
    many = [crowd.ask(asking(*range(40))) for _ in range(3)]
    answers = [*many, crowd.ask(asking(1, effort=exact)), crowd.ask(asking(2, effort=exact))]
    crowd.go_on()
    await asyncio.gather(*answers)
    assert list(map(len, crowd.words.asked)) == [1, 80, 2, 40]


async def test_an_error_reaches_all_who_shared_the_search(crowd: Crowd) -> None:
    first = await crowd.busy()
    both = [crowd.ask(asking(1)), crowd.ask(asking(2))]
    crowd.go_on(1)
    await first
    crowd.words.error = ReadFailed("the disk failed")
    crowd.go_on(1)
    assert [type(each) for each in await asyncio.gather(*both, return_exceptions=True)] == [
        ReadFailed,
        ReadFailed,
    ]
    crowd.words.error = None
    crowd.words.closed = True
    crowd.go_on()
    with pytest.raises(CollectionNotFound):
        await crowd.ask(asking(1))


async def test_close_answers_those_who_wait(crowd: Crowd) -> None:
    await crowd.busy()
    waiting = crowd.ask(asking(1))
    closing = asyncio.ensure_future(asyncio.to_thread(crowd.thread.close))
    crowd.go_on()
    assert (await waiting).hits.ids.tolist() == [100]
    await closing
    with pytest.raises(ShardUnavailable):
        crowd.ask(asking(2))


async def test_a_filter_that_cannot_be_hashed_fails_only_its_own_caller(crowd: Crowd) -> None:
    crowd.go_on()
    listed: Any = ["hot", "cold"]
    request = replace(asking(1), filter=In(field="taste", values=listed))
    with pytest.raises(TypeError):
        await crowd.ask(request)
    assert len((await crowd.ask(asking(2))).hits.counts) == 1
