"""Which calls a client repeats by itself, and how long it goes on.

What is worth repeating says so (`retryable`): a server or a shard that is missing, stopping or
overloaded. It is repeated within the time that the call has, after a pause that grows, is of random
length, and is no shorter than the server asks for.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final

from tenacity import RetryCallState, retry_if_exception

from vectorshard.client.retries import backoff_s
from vectorshard.shard.errors import VectorShardError

BACKOFFS: Final = 5
"""How often the pause grows: then it is 0.4 to 0.8 s."""

LAST_S: Final = 0.02
"""With less time than this left nothing is tried any more."""

_READS: Final = frozenset(
    {
        "Count",
        "DescribeCollection",
        "Explain",
        "Get",
        "GetServerInfo",
        "List",
        "ListCollections",
        "Search",
    }
)
_WRITES: Final = frozenset({"CreateCollection", "Delete", "Upsert"})


class Retry(StrEnum):
    """Which calls a client repeats.

    Reads may always be repeated. A write that seemed to fail may have been done; the same again
    changes nothing, unless somebody else has written the same ids in between: then it undoes that.
    So `ALL` is for whoever is the only writer of its ids.
    """

    NONE = "none"
    READS = "reads"
    ALL = "all"

    def covers(self, rpc: str) -> bool:
        """Whether calls of a method are repeated. Never those of Train and DropCollection."""
        return (self is not Retry.NONE and rpc in _READS) or (self is Retry.ALL and rpc in _WRITES)


class Patience:
    """The time of a call, and what tenacity must know to repeat it within.

    Parameters
    ----------
    timeout_s
        How long the call may take, with all that is tried.
    clock
        Seconds, from any origin.
    chance
        Uniform in [0, 1).
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
        """How much time is left, at least 0."""
        return max(0.0, self._deadline - self._clock())

    def options(self) -> dict[str, Any]:
        """Return the arguments of tenacity's Retrying and AsyncRetrying."""
        return {
            "retry": retry_if_exception(_is_worth_repeating),
            "wait": self._wait_s,
            "stop": lambda _: self.left_s < LAST_S,
            "reraise": True,
        }

    def _wait_s(self, state: RetryCallState) -> float:
        """Return how long to wait; always some of the time is left for the next attempt."""
        wait_s = backoff_s(min(state.attempt_number, BACKOFFS), self._chance)
        error = state.outcome.exception() if state.outcome is not None else None
        if isinstance(error, VectorShardError) and error.retry_delay_s is not None:
            wait_s = max(wait_s, error.retry_delay_s)
        return min(wait_s, self.left_s / 2)


def _is_worth_repeating(error: BaseException) -> bool:
    return isinstance(error, VectorShardError) and error.retryable
