"""How often, and after which delay, a failed call is repeated. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

ATTEMPTS: Final = 3
"""Attempts of one call, including the first."""

BACKOFF_FIRST_S: Final = 0.05
"""Longest delay before the second attempt; it doubles before each further attempt."""

RETRIES_A_CALL: Final = 0.1
"""Retries that each call pays for: a server that fails every call gets a tenth more of them."""

RETRIES_SAVED: Final = 10.0
"""Size of the budget, which is full at first: callers with few calls may retry too."""


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


def backoff_s(attempts: int, chance: Callable[[], float]) -> float:
    """Return the delay after so many attempts, at least 1.

    `chance` is uniform in [0, 1): callers that failed together must not return together.
    """
    return BACKOFF_FIRST_S * 2.0 ** (attempts - 1) * (0.5 + 0.5 * chance())
