"""The starts of calls: how they are spaced, which count, and when there are no more."""

from __future__ import annotations

from itertools import islice, pairwise
from statistics import mean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.load.plan import Arrivals
from benchmarks.load.schedule import Schedule, Start, starts_of


def taken(schedule: Schedule, now_s: float = 0.0) -> list[Start]:
    """Return all starts that are handed out at one moment."""
    return list(iter(lambda: schedule.take(now_s), None))


def test_uniform_arrivals_are_equally_far_apart() -> None:
    assert list(islice(starts_of(Arrivals.uniform, 4.0, seed=1), 4)) == [0.0, 0.25, 0.5, 0.75]


def test_poisson_arrivals_have_the_rate_and_gaps_that_spread_as_much_as_they_last() -> None:
    starts = list(islice(starts_of(Arrivals.poisson, 50.0, seed=1), 20_001))
    gaps = [later - earlier for earlier, later in pairwise(starts)]
    assert min(gaps) > 0
    assert mean(gaps) == pytest.approx(1 / 50, rel=0.05)
    assert pstdev(gaps) == pytest.approx(1 / 50, rel=0.05)


def test_arrivals_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    first, again, other = (
        list(islice(starts_of(Arrivals.poisson, 50.0, seed), 10)) for seed in (1, 1, 2)
    )
    assert first == again != other


@given(
    rate_per_s=st.floats(1, 50),
    warmup_s=st.floats(0, 2),
    duration_s=st.floats(0.1, 5),
    calls_total=st.one_of(st.none(), st.integers(1, 100)),
)
def test_an_open_loop_ends_at_the_first_bound_and_counts_no_warm_up(
    rate_per_s: float, warmup_s: float, duration_s: float, calls_total: int | None
) -> None:
    schedule = Schedule(
        starts_of(Arrivals.uniform, rate_per_s, seed=1),
        warmup_s=warmup_s,
        duration_s=duration_s,
        calls_total=calls_total,
    )
    starts = taken(schedule)
    counted = [start for start in starts if start.counts]
    assert [start.number for start in starts] == list(range(len(starts)))
    assert all(start.counts == (start.at_s >= warmup_s) for start in starts)
    assert all(start.at_s < warmup_s + duration_s for start in starts)
    if calls_total is None or len(counted) < calls_total:
        assert len(starts) == pytest.approx((warmup_s + duration_s) * rate_per_s, abs=1.001)
    else:
        assert len(counted) == calls_total


def test_a_closed_loop_starts_a_call_when_it_is_asked_for() -> None:
    schedule = Schedule(None, warmup_s=1.0, duration_s=2.0, calls_total=None)
    assert not schedule.is_open
    assert schedule.take(0.5) == Start(0, 0.5, counts=False)
    assert schedule.take(2.9) == Start(1, 2.9, counts=True)
    assert schedule.take(3.0) is None
    assert schedule.take(0.0) is None, "over is over"


def test_a_schedule_that_is_stopped_hands_out_no_more() -> None:
    schedule = Schedule(
        starts_of(Arrivals.uniform, 1.0, seed=1), warmup_s=0, duration_s=None, calls_total=None
    )
    assert schedule.take(0.0) is not None
    schedule.stop()
    assert schedule.take(0.0) is None
