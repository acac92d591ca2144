"""The breaker: its table, and how long it stays open."""

from __future__ import annotations

import itertools

import pytest

from vectorshard.router.remote.circuit_breaker import (
    FAILURES,
    NEXT_STATE,
    WAIT_FIRST_S,
    WAIT_MAX_S,
    Breaker,
    BreakerEvent,
    BreakerState,
)


class Clock:
    """Time that passes when it is told to."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Watched:
    """A breaker, its clock, and what it has told of itself."""

    def __init__(self, chance: float = 1.0) -> None:
        self.clock = Clock()
        self.told: list[BreakerState] = []
        self.breaker = Breaker(
            clock=self.clock,
            chance=lambda: chance,
            changed=lambda breaker: self.told.append(breaker.state),
        )

    def fails(self, times: int = FAILURES) -> None:
        for number in range(times):
            self.breaker.failed(f"refused {number}")

    def comes_due(self) -> None:
        self.clock.now_s += self.breaker.wait_s
        self.breaker.due()


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_the_table_has_a_line_for_every_event_in_every_state() -> None:
    assert set(NEXT_STATE) == set(itertools.product(BreakerState, BreakerEvent))


@pytest.mark.parametrize("state", BreakerState)
def test_an_answer_closes_it_whatever_it_was(state: BreakerState) -> None:
    assert NEXT_STATE[state, BreakerEvent.ANSWERED] is BreakerState.CLOSED


def test_nothing_but_time_leads_to_a_probe() -> None:
    to_half_open = {key for key, after in NEXT_STATE.items() if after is BreakerState.HALF_OPEN}
    assert {event for state, event in to_half_open if state is not BreakerState.HALF_OPEN} == {
        BreakerEvent.DUE
    }


def test_it_opens_after_some_failures_in_a_row_and_says_why(watched: Watched) -> None:
    watched.fails(FAILURES - 1)
    assert watched.told == []
    watched.breaker.failed("refused again")
    assert watched.breaker.state is BreakerState.OPEN
    assert watched.breaker.refusal == (
        f"circuit breaker open ({FAILURES} consecutive failures; next probe in 0.2 s); "
        "last failure: refused again"
    )


def test_failures_that_are_not_in_a_row_do_not_open_it(watched: Watched) -> None:
    for _ in range(5):
        watched.fails(FAILURES - 1)
        watched.breaker.answered()
    assert watched.breaker.state is BreakerState.CLOSED


def test_a_probe_without_an_answer_opens_it_at_once(watched: Watched) -> None:
    watched.breaker.silent("silent for 2.0 s")
    assert watched.breaker.state is BreakerState.OPEN
    assert "silent for 2.0 s" in watched.breaker.refusal


def test_an_answered_probe_closes_it_and_a_silent_one_leaves_it_open_for_longer(
    watched: Watched,
) -> None:
    watched.fails()
    waits_s = [watched.breaker.wait_s]
    for _ in range(5):
        watched.comes_due()
        assert watched.breaker.state is BreakerState.HALF_OPEN
        assert "circuit breaker half-open (" in watched.breaker.refusal
        assert "; probe in flight); last failure: " in watched.breaker.refusal
        watched.breaker.silent("no answer")
        waits_s.append(watched.breaker.wait_s)
    assert waits_s == pytest.approx([WAIT_FIRST_S * 2**n for n in range(4)] + 2 * [WAIT_MAX_S])
    watched.comes_due()
    watched.breaker.answered()
    assert watched.breaker.state is BreakerState.CLOSED


def test_who_fails_again_right_after_a_probe_waits_longer(watched: Watched) -> None:
    watched.fails()
    watched.comes_due()
    watched.breaker.answered()
    watched.fails()
    assert watched.breaker.wait_s == pytest.approx(2 * WAIT_FIRST_S)
    watched.comes_due()
    watched.breaker.answered()  # the probe
    watched.breaker.answered()  # a caller's
    watched.fails()
    assert watched.breaker.wait_s == pytest.approx(WAIT_FIRST_S)


def test_a_late_failure_of_an_earlier_call_does_not_end_a_probe(watched: Watched) -> None:
    watched.fails()
    watched.comes_due()
    watched.fails()
    assert watched.breaker.state is BreakerState.HALF_OPEN


def test_a_late_answer_to_an_earlier_call_closes_it(watched: Watched) -> None:
    watched.fails()
    watched.breaker.answered()
    assert watched.breaker.state is BreakerState.CLOSED


@pytest.mark.parametrize("chance", [0.0, 0.5])
def test_chance_shortens_the_wait_by_half_at_most(chance: float) -> None:
    watched = Watched(chance)
    watched.fails()
    assert watched.breaker.wait_s == pytest.approx(WAIT_FIRST_S * (0.5 + 0.5 * chance))


def test_it_tells_when_it_opens_and_closes_and_nothing_of_probes(watched: Watched) -> None:
    watched.fails()
    for _ in range(3):
        watched.comes_due()
        watched.breaker.silent("no answer")
    watched.comes_due()
    watched.breaker.answered()
    assert watched.told == [BreakerState.OPEN, BreakerState.CLOSED]
