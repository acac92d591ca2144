"""The limiter of searches: how many are taken, how much they are, and for whom there is no time."""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
import pytest

from vectorshard.shard.errors import Overloaded
from vectorshard.shard.server.search_limiter import (
    ALWAYS_ACCEPTED,
    WAIT_SHARE,
    Place,
    SearchLimiter,
)
from vectorshard.shard.types import Receipt, SearchRequest, ShardReceipt

PACE_S = 0.01


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Crowd:
    """A limiter with searches in progress, which are answered in the order of coming."""

    def __init__(self, searches_max: int = 1_000) -> None:
        self.clock = Clock()
        self.limiter = SearchLimiter(searches_max, self.clock)
        self.places: list[Place] = []

    def enter(self, searches: int = 1, left_s: float | None = None) -> None:
        """Have searches taken on."""
        self.places += [self.limiter.enter(left_s) for _ in range(searches)]

    def answer(self, searches: int, pace_s: float = PACE_S) -> None:
        """Have searches answered, one after the other."""
        for place in self.places[:searches]:
            self.clock.now += pace_s
            with place:
                pass
        del self.places[:searches]


def test_there_are_never_more_searches_than_may_be() -> None:
    crowd = Crowd(2)
    crowd.enter(2)
    assert crowd.limiter.is_full
    with pytest.raises(Overloaded, match="too many searches in progress: the limit is 2"):
        crowd.enter()
    crowd.answer(1)
    crowd.enter()


def test_a_search_that_fails_or_is_withdrawn_frees_its_place_and_says_nothing_of_the_pace() -> None:
    crowd = Crowd(1)
    crowd.enter()
    with ExitStack() as expected:
        expected.enter_context(pytest.raises(ZeroDivisionError))
        expected.enter_context(crowd.places.pop())
        raise ZeroDivisionError
    crowd.enter()
    assert crowd.limiter.expected_wait_s == 0


def test_the_expected_wait_is_that_of_the_searches_before_at_the_pace_of_late() -> None:
    crowd = Crowd()
    crowd.enter(300)
    crowd.answer(200)
    assert crowd.limiter.expected_wait_s == pytest.approx(100 * PACE_S)
    crowd.enter(400)
    crowd.answer(400, 2 * PACE_S)  # for long enough to forget
    assert crowd.limiter.expected_wait_s == pytest.approx(100 * 2 * PACE_S, rel=0.01)


def test_time_without_work_does_not_count_as_slowness() -> None:
    crowd = Crowd()
    crowd.enter(100)
    crowd.answer(100)
    crowd.clock.now += 3_600
    crowd.enter(100)
    crowd.answer(50)
    assert crowd.limiter.expected_wait_s == pytest.approx(50 * PACE_S)


def test_who_could_hardly_be_answered_in_time_is_refused_and_who_is_patient_is_not() -> None:
    crowd = Crowd()
    crowd.enter(300)
    crowd.answer(200)
    wait_s = crowd.limiter.expected_wait_s
    with pytest.raises(Overloaded, match=r"100 searches.* take 1\.0 s; the deadline is in 1\.9 s"):
        crowd.enter(left_s=wait_s / WAIT_SHARE - 0.1)
    crowd.enter(left_s=wait_s / WAIT_SHARE + 0.1)
    crowd.enter(left_s=None)


def test_a_few_searches_keep_nobody_out_for_its_deadline() -> None:
    crowd = Crowd()
    crowd.enter()
    crowd.answer(1, 10.0)
    crowd.enter(ALWAYS_ACCEPTED, left_s=0.1)
    with pytest.raises(Overloaded):
        crowd.enter(left_s=0.1)


def test_a_few_searches_say_nothing_of_the_pace() -> None:
    crowd = Crowd()
    crowd.enter(500)
    crowd.answer(9)
    crowd.enter(left_s=0.1)
    crowd.answer(2)
    with pytest.raises(Overloaded, match="expected to take"):
        crowd.enter(left_s=0.1)


# ---- searches that differ in their work ----------------------------------------------------------

LIGHT = SearchRequest(collection="words", queries=np.zeros((1, 100), dtype=np.float32), k=10)
HEAVY = SearchRequest(collection="words", queries=np.zeros((1_000, 100), dtype=np.float32), k=500)
LIGHT_S, HEAVY_S = 0.001, 2.0


def receipt_of(request: SearchRequest) -> Receipt:
    """Return what a search of 300,000 rows scans: all of them for 500 hits."""
    shard = ShardReceipt(shard=0, rows_visible=300_000, nlist=500, nprobe=40, candidates=180)
    if request is HEAVY:
        shard = ShardReceipt(shard=0, rows_visible=300_000, rows_exact=300_000)
    return Receipt(shards=(shard,), coverage=1.0)


class Line:
    """A server that answers one search after the other, in the order of their arrival."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.limiter = SearchLimiter(1_024, self.clock)
        self.refused = 0
        self.waits_s: list[float] = []
        self._waiting: list[tuple[SearchRequest, Place, float]] = []

    def ask(self, request: SearchRequest, timeout_s: float = 30.0, times: int = 1) -> None:
        """Have a search arrive, some times."""
        for _ in range(times):
            try:
                place = self.limiter.enter(timeout_s)
            except Overloaded:
                self.refused += 1
            else:
                place.weigh(request)
                self._waiting.append((request, place, self.clock.now))

    def answer(self, searches: int = 1_024, light_s: float = LIGHT_S) -> None:
        """Answer those that wait, or some of them."""
        for request, place, arrived in self._waiting[:searches]:
            self.clock.now += HEAVY_S if request is HEAVY else light_s
            self.waits_s.append(self.clock.now - arrived)
            with place:
                place.answered(request, receipt_of(request))
        del self._waiting[:searches]


@pytest.mark.parametrize("known", [False, True], ids=["new server", "searches are known"])
def test_light_searches_are_accepted_after_a_heavy_one_as_they_are_answered_in_time(
    known: bool,
) -> None:
    line = Line()
    if known:
        line.ask(LIGHT, times=500)
        line.answer()
    line.ask(HEAVY)
    line.ask(LIGHT, times=60)
    line.answer(1)
    line.ask(LIGHT, times=140)
    line.answer()
    assert line.refused == 0
    assert max(line.waits_s) < 5.0


def test_a_light_search_is_refused_if_heavy_ones_before_it_take_most_of_its_time() -> None:
    line = Line()
    for request in (LIGHT, HEAVY):
        line.ask(request)
        line.answer()
    line.ask(HEAVY, timeout_s=100.0, times=10)
    assert line.limiter.expected_wait_s == pytest.approx(10 * HEAVY_S, rel=0.01)
    line.ask(LIGHT, timeout_s=30.0)
    assert line.refused == 1
    line.ask(LIGHT, timeout_s=60.0)
    assert line.refused == 1
    line.answer()
    line.ask(LIGHT, times=10)
    assert line.limiter.expected_wait_s < 0.1


def test_a_heavy_search_alone_keeps_no_light_one_out_that_has_ten_times_its_time() -> None:
    line = Line()
    for _ in range(3):
        line.ask(HEAVY)
        line.ask(LIGHT, timeout_s=10 * HEAVY_S, times=200)
        line.answer()
    assert line.refused == 0


def test_searches_that_leave_take_their_work_along() -> None:
    line = Line()
    line.ask(HEAVY)
    line.answer()
    for _ in range(100):
        places = [line.limiter.enter(None) for _ in range(10)]
        for place in places:
            place.weigh(HEAVY)
        for place in places:
            with pytest.raises(ZeroDivisionError), place:
                raise ZeroDivisionError
    assert line.limiter.expected_wait_s == 0.0
    line.ask(HEAVY)
    assert line.limiter.expected_wait_s == pytest.approx(HEAVY_S)


def test_light_searches_one_at_a_time_do_not_make_a_server_seem_slow() -> None:
    line = Line()
    line.ask(HEAVY)
    line.answer()
    for _ in range(500):
        line.ask(LIGHT)
        line.answer(light_s=20 * LIGHT_S)  # it waits for its client, more than it works
    line.ask(HEAVY)
    line.ask(LIGHT, times=200)
    assert line.refused == 0
    assert HEAVY_S < line.limiter.expected_wait_s < 3 * HEAVY_S


def test_a_light_search_answered_just_before_the_heavy_one_that_delayed_it_is_not_held_slow() -> (
    None
):
    line = Line()
    line.ask(HEAVY)
    line.answer()
    line.ask(LIGHT)
    line.ask(HEAVY)
    line.ask(LIGHT, times=100)
    line.answer(1, light_s=HEAVY_S)
    line.ask(LIGHT, times=100)
    assert line.refused == 0
    line.answer()
    line.ask(HEAVY, timeout_s=100.0, times=10)
    assert line.limiter.expected_wait_s > 5 * HEAVY_S
