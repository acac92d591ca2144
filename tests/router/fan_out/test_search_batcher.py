"""Who waits together, what they get of the joined answer, and that nobody spoils it for others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
import pytest

from tests.shard.engine.test_search_batching import RECEIPT, answer_to, asking
from tests.virtual_time import run_virtually
from vectorshard.router.fan_out.search_batcher import HOLD_UP_S, SearchBatcher
from vectorshard.shard.engine.search_batching import JOINED_QUERIES
from vectorshard.shard.errors import DeadlineExceeded, InvalidVector, ShardUnavailable
from vectorshard.shard.filters import Exists
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    Effort,
    Include,
    SearchRequest,
    SearchResult,
)


class Searcher:
    """Answers when it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[SearchRequest, Call]] = []
        self.cancelled = 0
        self.now = 0.0
        self._more = asyncio.Condition()
        self._gates: list[asyncio.Future[None]] = []
        self._next: list[Callable[[], None]] = []

    async def __call__(
        self, request: SearchRequest, call: Call, next_one: Callable[[], None]
    ) -> SearchResult:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.asked.append((request, call))
        self._gates.append(gate)
        self._next.append(next_one)
        async with self._more:
            self._more.notify_all()
        try:
            await gate
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return answer_to(request)

    async def reaches(self, searches: int) -> None:
        """Wait until so many have been asked for."""
        async with self._more:
            await self._more.wait_for(lambda: len(self.asked) >= searches)

    @property
    def queries(self) -> list[list[int]]:
        return [request.queries[:, 0].astype(int).tolist() for request, _ in self.asked]

    async def finish(self, number: int) -> None:
        self._gates[number].set_result(None)
        await settle()

    async def fail(self, number: int, error: Exception) -> None:
        self._gates[number].set_exception(error)
        await settle()

    async def let_the_next_start(self, number: int) -> None:
        self._next[number]()
        await settle()


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.fixture
def searcher() -> Searcher:
    return Searcher()


class Callers:
    """Callers of one batcher."""

    def __init__(self, searcher: Searcher, hold_up_s: float = HOLD_UP_S) -> None:
        self._batcher = SearchBatcher(clock=lambda: searcher.now, hold_up_s=hold_up_s)
        self._searcher = searcher

    async def ask(
        self, request: SearchRequest, call: Call = NO_LIMIT, kind: str = ""
    ) -> asyncio.Task[SearchResult]:
        asked = asyncio.ensure_future(self._batcher.search(request, call, self._searcher, kind))
        await settle()
        return asked


@pytest.fixture
async def callers(searcher: Searcher) -> Callers:
    return Callers(searcher)


def ids_of(task: asyncio.Task[SearchResult]) -> list[int]:
    ids: list[int] = task.result().hits.ids.tolist()
    return ids


async def test_with_nothing_in_flight_a_search_starts_at_once(
    searcher: Searcher, callers: Callers
) -> None:
    for number in (1, 2):
        asked = await callers.ask(asking(number))
        assert searcher.queries[-1] == [number]
        await searcher.finish(number - 1)
        assert asked.done()


async def test_those_that_arrive_meanwhile_share_the_next_and_get_their_own_answers(
    searcher: Searcher, callers: Callers
) -> None:
    tasks = [await callers.ask(asking(*numbers)) for numbers in ((5,), (6, 7), (), (8,), (2,))]
    assert searcher.queries == [[5]]
    await searcher.finish(0)
    assert searcher.queries == [[5], [6, 7, 8, 2]]
    await searcher.finish(1)
    assert [ids_of(task) for task in tasks] == [
        [500, 501, 502],
        [600, 601, 602, 700, 701, 702],
        [],
        [800, 801, 802],
        [200, 201],
    ]
    assert [task.result().hits.counts.tolist() for task in tasks] == [[3], [3, 3], [], [3], [2]]
    assert all(task.result().receipt is RECEIPT for task in tasks)


async def test_the_next_may_start_before_the_one_in_flight_ends(
    searcher: Searcher, callers: Callers
) -> None:
    first = await callers.ask(asking(1))
    second = await callers.ask(asking(2))
    await searcher.let_the_next_start(0)
    assert searcher.queries == [[1], [2]]
    await searcher.finish(1)
    assert second.done()
    assert not first.done()
    third = await callers.ask(asking(3))
    assert searcher.queries == [[1], [2], [3]]
    await searcher.finish(0)
    await searcher.finish(2)
    assert first.done()
    assert third.done()


@pytest.mark.parametrize(
    ("part", "time_s", "begins"),
    [(0.5, 0.4, [0.0, 0.2]), (0.5, 60.0, [0.0, HOLD_UP_S]), (1.0, 0.4, [0.0])],
    ids=["half its time", "at most a second", "all of its time: too late for others"],
)
def test_one_that_hangs_holds_up_its_kind_for_a_part_of_its_own_time(
    part: float, time_s: float, begins: list[float]
) -> None:
    began: list[float] = []

    async def hang(request: SearchRequest, call: Call, next_one: object) -> SearchResult:
        began.append(asyncio.get_running_loop().time())
        await asyncio.Event().wait()
        raise AssertionError("it hangs")

    async def ask_two() -> None:
        batcher = SearchBatcher(asyncio.get_running_loop().time, hold_up_part=part)
        asked = [
            asyncio.ensure_future(batcher.search(asking(number), Call(deadline=time_s), hang))
            for number in (1, 2)
        ]
        await asyncio.sleep(2 * HOLD_UP_S)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    run_virtually(ask_two())
    assert began == begins


def test_a_joined_search_that_hangs_holds_up_its_kind_by_the_first_deadline_of_all() -> None:
    began: list[float] = []

    async def hang(request: SearchRequest, call: Call, release: object) -> SearchResult:
        began.append(asyncio.get_running_loop().time())
        await asyncio.Event().wait()
        raise AssertionError("it hangs")

    async def ask_four() -> None:
        batcher = SearchBatcher(asyncio.get_running_loop().time, hold_up_part=0.5)
        asked = []
        for number, deadline in ((1, 0.4), (2, 60.0), (3, 0.6), (4, 60.0)):
            if number == 4:
                await asyncio.sleep(0.3)  # the second and the third run together by now
            search = batcher.search(asking(number), Call(deadline=deadline), hang)
            asked.append(asyncio.ensure_future(search))
        await asyncio.sleep(2 * HOLD_UP_S)
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)

    run_virtually(ask_four())
    assert began == pytest.approx([0.0, 0.2, 0.4])


async def test_one_that_hangs_holds_up_its_kind_only_for_a_while(searcher: Searcher) -> None:
    callers = Callers(searcher, hold_up_s=0.0)
    await callers.ask(asking(1))
    await callers.ask(asking(2))
    await searcher.reaches(2)
    assert searcher.queries == [[1], [2]]
    for number in (0, 1):
        await searcher.finish(number)


@pytest.mark.parametrize(
    "other",
    [
        asking(2, collection="others"),
        asking(2, effort=Effort(nprobe=3)),
        asking(2, effort=Effort(exact=True)),
        asking(2, include=Include(metadata=True)),
        asking(2, filter=Exists("lang")),
        asking(2, score_threshold=0.5),
        asking(2, min_coverage=0.5),
        asking(2, k=11),
    ],
    ids=["collection", "nprobe", "exact", "include", "filter", "threshold", "coverage", "k"],
)
async def test_what_is_not_alike_runs_beside(
    searcher: Searcher, callers: Callers, other: SearchRequest
) -> None:
    for request in (asking(1), other):
        await callers.ask(request)
    assert len(searcher.asked) == 2
    for number in (0, 1):
        await searcher.finish(number)


async def test_what_the_caller_calls_another_kind_runs_beside(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1), kind="one")
    await callers.ask(asking(2), kind="other")
    assert searcher.queries == [[1], [2]]
    for number in (0, 1):
        await searcher.finish(number)


async def test_different_ks_that_are_calibrated_alike_run_together(
    searcher: Searcher, callers: Callers
) -> None:
    include = Include(vectors=True, metadata=True)
    requests = [asking(9, 8, k=k, include=include) for k in (1, 2, 10, 3)]
    tasks = [await callers.ask(request) for request in requests]
    await searcher.finish(0)
    assert searcher.asked[1][0].k == 10
    await searcher.finish(1)
    for request, task in zip(requests, tasks, strict=True):
        expected, result = answer_to(request), task.result()
        assert ids_of(task) == expected.hits.ids.tolist()
        assert result.hits.counts.tolist() == expected.hits.counts.tolist()
        np.testing.assert_array_equal(result.hits.scores, expected.hits.scores)
        assert result.vectors is not None
        assert expected.vectors is not None
        np.testing.assert_array_equal(result.vectors, expected.vectors)
        assert result.metadata == expected.metadata


async def test_a_joined_search_is_full_at_some_queries_and_the_rest_waits_for_the_next(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1))
    for _ in range(3):
        await callers.ask(asking(*range(JOINED_QUERIES // 2)))
    await searcher.finish(0)
    assert len(searcher.queries[1]) == JOINED_QUERIES
    await searcher.finish(1)
    assert len(searcher.queries[2]) == JOINED_QUERIES // 2
    await searcher.finish(2)


async def test_answers_that_may_be_large_are_not_joined(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1, k=5_000, include=Include(metadata=True)))
    for number in (2, 3):
        await callers.ask(asking(number, k=5_000, include=Include(metadata=True)))
    for number in range(3):
        assert searcher.queries[-1] == [number + 1]
        await searcher.finish(number)


@pytest.mark.parametrize(
    ("deadlines", "expected"), [((7.0, 5.0), 5.0), ((7.0, None, 5.0), 5.0), ((None,), None)]
)
async def test_a_joined_search_has_the_first_deadline(
    searcher: Searcher, deadlines: tuple[float | None, ...], expected: float | None
) -> None:
    batcher = SearchBatcher(clock=lambda: searcher.now)
    tasks = []
    for deadline in (None, *deadlines):
        search = batcher.search(asking(1), Call(deadline=deadline), searcher)
        tasks.append(asyncio.ensure_future(search))
        await settle()
    await searcher.finish(0)
    assert searcher.asked[1][1].deadline == expected
    await searcher.finish(1)
    await asyncio.gather(*tasks)


async def test_an_invalid_search_that_was_joined_fails_alone(searcher: Searcher) -> None:
    batcher = SearchBatcher(clock=lambda: searcher.now)
    checked: list[int] = []

    def check(request: SearchRequest) -> None:
        checked.append(len(request.queries))
        if (request.queries == 13).any():
            raise InvalidVector("13 is not allowed", field="queries", row=0)

    tasks = []
    for number in (1, 2, 13, 3, 13):
        search = batcher.search(asking(number), NO_LIMIT, searcher, None, check)
        tasks.append(asyncio.ensure_future(search))
        await settle()
    assert checked == [], "the first is alone"
    await searcher.finish(0)
    assert [request.queries[:, 0].tolist() for request, _ in searcher.asked] == [[1], [2, 3]]
    assert checked == [4, 1, 1, 1, 1, 2]
    await searcher.finish(1)
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [
        *(SearchResult, SearchResult, InvalidVector, SearchResult, InvalidVector)
    ]


async def test_an_error_reaches_all_who_shared_the_search_and_no_others(
    searcher: Searcher, callers: Callers
) -> None:
    first, second, third = [await callers.ask(asking(number)) for number in (1, 2, 3)]
    await searcher.finish(0)
    await searcher.fail(1, ShardUnavailable("gone"))
    assert first.result()
    for failed in (second, third):
        with pytest.raises(ShardUnavailable):
            failed.result()
    later = await callers.ask(asking(4))
    await searcher.finish(2)
    assert ids_of(later) == [400, 401, 402]


async def test_a_caller_that_leaves_while_it_waits_takes_its_queries_along(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1))
    leaving, staying = [await callers.ask(asking(number)) for number in (2, 3)]
    leaving.cancel()
    await searcher.finish(0)
    assert searcher.queries[1] == [3]
    await searcher.finish(1)
    assert staying.done()


async def test_a_caller_that_leaves_a_search_leaves_it_to_the_others(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1))
    leaving, staying = [await callers.ask(asking(number)) for number in (2, 3)]
    await searcher.finish(0)
    leaving.cancel()
    await settle()
    await searcher.finish(1)
    assert ids_of(staying) == [300, 301, 302]
    assert searcher.cancelled == 0


async def test_a_search_that_everybody_has_left_is_cancelled_and_the_next_starts(
    searcher: Searcher, callers: Callers
) -> None:
    first = await callers.ask(asking(1))
    waiting = [await callers.ask(asking(number)) for number in (2, 3)]
    first.cancel()
    await settle()
    assert searcher.queries == [[1], [2, 3]]
    for task in waiting:
        task.cancel()
    await settle()
    assert searcher.cancelled == 2
    later = await callers.ask(asking(4))
    assert searcher.queries[-1] == [4]
    await searcher.finish(2)
    assert later.done()


async def test_a_search_whose_deadline_passes_while_it_waits_is_not_begun(
    searcher: Searcher, callers: Callers
) -> None:
    await callers.ask(asking(1))
    late = await callers.ask(asking(2), Call(deadline=10.0))
    patient = await callers.ask(asking(3), Call(deadline=20.0))
    searcher.now = 10.0
    await searcher.finish(0)
    assert isinstance(late.exception(), DeadlineExceeded)
    assert searcher.queries == [[1], [3]]
    await searcher.finish(1)
    assert ids_of(patient) == [300, 301, 302]
    assert (await callers.ask(asking(4))).done() is False, "the kind is forgotten"
    assert searcher.queries[-1] == [4]
