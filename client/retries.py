"""How often and how soon what has failed is asked again.

Pure: chance is given, and nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

ATTEMPTS: Final = 3
"""How often one call may be asked, all told."""

BACKOFF_FIRST_S: Final = 0.05
"""What is waited before the second attempt at most; before each further one twice as long."""

RETRIES_A_CALL: Final = 0.1
"""Retries that each call pays for: a server that fails all of them is asked a tenth more."""

RETRIES_SAVED: Final = 10.0
"""Retries that may be saved up, and are there at first: for those who ask seldom."""


class RetryBudget:
    """Retries that may still be made of one server. Each call earns a part of one."""

    def __init__(self) -> None:
        self._retries = RETRIES_SAVED

    def earn(self) -> None:
        """Count a call."""
        self._retries = min(self._retries + RETRIES_A_CALL, RETRIES_SAVED)

    def spend(self) -> bool:
        """Take a retry; say whether there was one."""
        if self._retries < 1.0:
            return False
        self._retries -= 1.0
        return True


def backoff_s(attempts: int, chance: Callable[[], float]) -> float:
    """Return how long to wait after so many attempts, at least 1.

    `chance` is uniform in [0, 1): callers that failed together must not come back together.
    """
    return BACKOFF_FIRST_S * 2.0 ** (attempts - 1) * (0.5 + 0.5 * chance())
