"""Which calls a client repeats, how soon, and when it gives up: in virtual time."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tenacity import Retrying

from vectorshard.client.retry import (
    BACKOFF_FIRST_S,
    BACKOFFS,
    LAST_S,
    Retry,
    RetrySchedule,
    backoff_s,
)
from vectorshard.shard.errors import (
    CollectionNotFound,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
)


class Virtual:
    """A call of so many seconds, in time that passes while it waits."""

    def __init__(self, timeout_s: float = 10.0, attempt_s: float = 0.0) -> None:
        self.now = 1_000.0
        self.attempt_s = attempt_s
        self.waited: list[float] = []
        self.left: list[float] = []
        self._schedule = RetrySchedule(timeout_s, clock=lambda: self.now, chance=lambda: 1.0)

    def _sleep(self, seconds: float) -> None:
        self.waited.append(seconds)
        self.now += seconds

    def ask(self, fails_with: Callable[[int], VectorShardError | None]) -> str:
        """Ask; `fails_with` says what an attempt, counted from 0, fails with."""

        def attempt() -> str:
            self.left.append(self._schedule.left_s)
            self.now += self.attempt_s
            if (error := fails_with(len(self.left) - 1)) is not None:
                raise error
            return "answer"

        return Retrying(sleep=self._sleep, **self._schedule.options())(attempt)


@pytest.mark.parametrize(
    ("retry", "reads", "writes"),
    [(Retry.NONE, False, False), (Retry.READS, True, False), (Retry.ALL, True, True)],
)
def test_reads_are_always_safe_to_repeat_and_writes_for_who_says_so(
    retry: Retry, reads: bool, writes: bool
) -> None:
    assert {retry.covers(rpc) for rpc in ("Search", "Get", "List", "GetServerInfo")} == {reads}
    assert {retry.covers(rpc) for rpc in ("Upsert", "Delete", "CreateCollection")} == {writes}
    assert not retry.covers("Train")
    assert not retry.covers("DropCollection")


def test_what_is_missing_or_overloaded_is_asked_again_until_it_answers() -> None:
    errors = [ShardUnavailable("gone"), Overloaded("busy"), None]
    call = Virtual()
    assert call.ask(lambda attempt: errors[attempt]) == "answer"
    assert call.waited == pytest.approx([BACKOFF_FIRST_S, 2 * BACKOFF_FIRST_S])


def test_what_will_not_change_is_not_asked_again() -> None:
    call = Virtual()
    with pytest.raises(CollectionNotFound):
        call.ask(lambda _: CollectionNotFound("no such"))
    assert len(call.left) == 1


def test_pauses_grow_to_a_bound_and_the_last_attempts_are_just_before_the_deadline() -> None:
    call = Virtual(timeout_s=20.0)
    with pytest.raises(ShardUnavailable):
        call.ask(lambda _: ShardUnavailable("gone"))
    longest_s = BACKOFF_FIRST_S * 2 ** (BACKOFFS - 1)
    assert max(call.waited) == pytest.approx(longest_s)
    assert sum(call.waited) < 20.0
    assert 0 < min(call.left) < 2 * LAST_S, "an attempt was made when hardly any time was left"


def test_an_attempt_has_only_the_time_that_is_left() -> None:
    call = Virtual(timeout_s=1.0, attempt_s=0.3)
    with pytest.raises(ShardUnavailable):
        call.ask(lambda _: ShardUnavailable("gone"))
    assert call.left == pytest.approx([1.0, 0.65, 0.25])


def test_a_server_that_says_how_long_to_wait_is_not_asked_before() -> None:
    def busy(attempt: int) -> VectorShardError | None:
        error = Overloaded("busy")
        error.retry_delay_s = 3.0
        return error if attempt == 0 else None

    call = Virtual()
    assert call.ask(busy) == "answer"
    assert call.waited == [3.0]
    hurried = Virtual(timeout_s=4.0)
    assert hurried.ask(busy) == "answer"
    assert hurried.waited == [2.0], "but time is left for another attempt"


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_each_wait_is_twice_the_last_less_some_chance(attempts: int) -> None:
    longest_s = BACKOFF_FIRST_S * 2 ** (attempts - 1)
    assert backoff_s(attempts, lambda: 0.0) == pytest.approx(longest_s / 2)
    assert backoff_s(attempts, lambda: 0.999_999) == pytest.approx(longest_s, rel=1e-5)
