"""The budget of a server's retries."""

from __future__ import annotations

import pytest

from vectorshard.router.remote.retry_policy import RETRIES_A_CALL, RETRIES_SAVED, RetryBudget


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
