"""Which calls to a server are repeated.

A read is repeated a few times if the network failed it, or if the server's gRPC refused it without
our service. It stays within the caller's deadline and a retry budget. A write is not repeated: it
may have been done, and another caller may have read, deleted or replaced its rows since. An error
that the server returned is not repeated either: it goes to the caller, with the server's retry
delay.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from vectorshard.client.retry import backoff_s
from vectorshard.shard.errors import Overloaded, ShardUnavailable, VectorShardError
from vectorshard.shard.wire.rpcs import Kind

ATTEMPTS: Final = 3
"""Attempts of one call, including the first."""

RETRIES_A_CALL: Final = 0.1
"""Retries that each call pays for: a server that fails every call gets a tenth more of them."""

RETRIES_SAVED: Final = 10.0
"""Size of the budget, which is full at first: callers with few calls may retry too."""

T = TypeVar("T")


def _is_repeatable(error: BaseException) -> bool:
    return isinstance(error, ShardUnavailable | Overloaded) and error.unanswered


class RetryBudget:
    """The retries that are left for one server. Each call earns a fraction of one."""

    def __init__(self) -> None:
        self._retries = RETRIES_SAVED

    def earn(self) -> None:
        """Count a call."""
        self._retries = min(self._retries + RETRIES_A_CALL, RETRIES_SAVED)

    def spend(self) -> bool:
        """Take a retry; return whether one was left."""
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True


class RetryPolicy:
    """Repeats reads of one server, while `may_retry`; `retries` counts the repetitions.

    Clock, chance and sleep are those of the remote shard.
    """

    def __init__(
        self,
        may_retry: Callable[[], bool],
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._may_retry = may_retry
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._budget = RetryBudget()
        self.retries = 0

    def earn(self) -> None:
        """Count a call that needed no policy."""
        self._budget.earn()

    async def run(
        self, kind: Kind, attempt: Callable[[], Awaitable[T]], deadline: float | None
    ) -> T:
        """Make an attempt, and repeat it if it is a read that no service answered."""
        if kind is not Kind.READ:
            return await attempt()
        self._budget.earn()
        try:
            return await attempt()
        except VectorShardError as error:
            if not _is_repeatable(error):
                raise
            first: VectorShardError | None = error

        async def next_attempt() -> T:
            nonlocal first
            if first is not None:  # made above, since tenacity costs 23 us a call
                failed, first = first, None
                raise failed
            self.retries += 1
            return await attempt()

        def give_up(state: RetryCallState) -> bool:
            if state.attempt_number >= ATTEMPTS or not self._may_retry():
                return True
            if deadline is not None and self._clock() + state.upcoming_sleep >= deadline:
                return True
            return not self._budget.spend()

        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_repeatable),
            wait=lambda state: backoff_s(state.attempt_number, self._chance),
            stop=give_up,
            sleep=self._sleep,
            reraise=True,
        )
        return await retrying(next_attempt)
