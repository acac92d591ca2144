"""How often and how soon what has failed is asked again."""

from __future__ import annotations

import pytest

from vectorshard.client.retries import (
    BACKOFF_FIRST_S,
    RETRIES_A_CALL,
    RETRIES_SAVED,
    RetryBudget,
    backoff_s,
)


def test_a_server_that_fails_every_call_is_asked_a_tenth_more_and_no_more_than_that() -> None:
    budget = RetryBudget()
    calls = 10_000
    retries = 0
    for _ in range(calls):
        budget.earn()
        retries += budget.spend() + budget.spend()
    assert retries == pytest.approx(calls * RETRIES_A_CALL + RETRIES_SAVED, abs=2)


def test_retries_are_saved_up_to_a_bound() -> None:
    budget = RetryBudget()
    for _ in range(10_000):
        budget.earn()
    assert sum(budget.spend() for _ in range(100)) == RETRIES_SAVED


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_each_wait_is_twice_the_last_less_some_chance(attempts: int) -> None:
    longest_s = BACKOFF_FIRST_S * 2 ** (attempts - 1)
    assert backoff_s(attempts, lambda: 0.0) == pytest.approx(longest_s / 2)
    assert backoff_s(attempts, lambda: 0.999_999) == pytest.approx(longest_s, rel=1e-5)
