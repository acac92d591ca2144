"""Which calls a client repeats, how soon, and for how long.

Errors that are worth repeating have `retryable` set: a server or a shard is missing, stopping or
overloaded. A call is repeated within its own timeout. The pauses grow, have a random length, and
are at least as long as the server asks for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.wire.rpcs import KINDS, Kind

if TYPE_CHECKING:
    from tenacity import RetryCallState

BACKOFF_FIRST_S: Final = 0.05
"""Longest delay before the second attempt; it doubles before each further attempt."""

BACKOFFS: Final = 5
"""The pause grows this many times, to between 0.4 and 0.8 s."""

LAST_S: Final = 0.02
"""There is no further attempt with less time left than this."""


def backoff_s(attempts: int, chance: Callable[[], float]) -> float:
    """Return the delay after so many attempts, at least 1.

    `chance` is uniform in [0, 1): callers that failed together must not return together.
    """
    return BACKOFF_FIRST_S * 2.0 ** (attempts - 1) * (0.5 + 0.5 * chance())


class Retry(StrEnum):
    """Which calls a client repeats.

    Reads are always safe to repeat. A write that failed may have been applied. Repeating it changes
    nothing, unless another writer wrote the same ids in between, whose write it then overwrites. So
    `ALL` is for a client that is the only writer of its ids.
    """

    NONE = "none"
    READS = "reads"
    ALL = "all"

    def covers(self, rpc: str) -> bool:
        """Whether the client repeats calls of a unary RPC. Never Train and DropCollection."""
        if KINDS[rpc] is Kind.READ:
            return self is not Retry.NONE
        return KINDS[rpc] is Kind.WRITE and self is Retry.ALL


class RetrySchedule:
    """The deadline of one call, and when tenacity repeats the call before it.

    The call takes at most `timeout_s`, with all attempts and pauses. `clock` is in seconds,
    `chance` uniform in [0, 1).
    """

    def __init__(
        self,
        timeout_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._deadline = clock() + timeout_s

    @property
    def left_s(self) -> float:
        """The time left, at least 0."""
        return max(0.0, self._deadline - self._clock())

    def options(self) -> dict[str, Any]:
        """Return the arguments for Retrying and AsyncRetrying of tenacity."""
        return {
            "retry": _is_worth_repeating,
            "wait": self._wait_s,
            "stop": lambda _: self.left_s < LAST_S,
            "reraise": True,
        }

    def _wait_s(self, state: RetryCallState) -> float:
        """Return the pause. It leaves half of the remaining time to the next attempt."""
        wait_s = backoff_s(min(state.attempt_number, BACKOFFS), self._chance)
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, VectorShardError) and error.retry_delay_s is not None:
            wait_s = max(wait_s, error.retry_delay_s)
        return min(wait_s, self.left_s / 2)


def _is_worth_repeating(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome is not None else None
    return isinstance(error, VectorShardError) and error.retryable
