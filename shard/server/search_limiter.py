"""Which searches a server takes on, and which it refuses on arrival, before it reads them.

A server that takes on more than it can answer in time answers nothing in time: its work is for
callers who have left. So searches are bounded twice: by their number, and by the time that those
before them are expected to take, measured by how fast searches have been answered lately. Bytes
have a budget of their own (shard.server.memory_limiter). It lives on an event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import exp
from typing import Final, Self

from vectorshard.shard.errors import Overloaded

ALWAYS_TAKEN: Final = 4
"""So many searches in progress never keep another out for its deadline: a single slow one says
little of the pace, which shows only when a server is busy."""

WAIT_SHARE: Final = 0.5
"""The part of the time left that a search may be expected to wait. The rest is for the search
itself, and for what the expectation is wrong by: an answer that comes too late was for nothing."""

BELIEVED_AFTER_S: Final = 0.1
"""Seconds of work after which the pace is believed. The first few searches come alone, and say
little of how fast many are answered that go as one."""

BUSY_S: Final = 0.1
"""Seconds of expected wait from which deadlines are looked at before messages are read: that makes
a refusal cheap, and an answer a little dearer."""

MEMORY_S: Final = 1.0
"""How fast the pace of the past is forgotten, in seconds of work."""


class SearchGate:
    """Counts the searches in progress, waiting or running.

    Parameters
    ----------
    searches_max
        How many there may be.
    clock
        Seconds, from any origin.
    """

    def __init__(self, searches_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._searches_max = searches_max
        self._clock = clock
        self._searches = 0
        self._answered_at = 0.0
        self._answered = 0.0
        self._busy_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether no search is taken, however patient its caller."""
        return self._searches >= self._searches_max

    @property
    def expected_wait_s(self) -> float:
        """How long those in progress are expected to take together."""
        if self._busy_s < BELIEVED_AFTER_S:
            return 0.0
        return self._searches * self._busy_s / self._answered

    @property
    def is_busy(self) -> bool:
        """Whether some callers may have to be refused for their deadlines."""
        return self._searches >= ALWAYS_TAKEN and self.expected_wait_s > BUSY_S

    def check_not_full(self) -> None:
        """Raise Overloaded when no search is taken, however patient its caller."""
        if self.is_full:
            raise Overloaded(f"{self._searches:,} searches are in progress")

    def check(self, left_s: float | None) -> None:
        """Look whether a search is taken on whose answer is wanted in `left_s`; None is for ever.

        Raises
        ------
        Overloaded
            If there are too many, or it could hardly be answered in time.
        """
        self.check_not_full()
        if left_s is not None and self._searches >= ALWAYS_TAKEN:
            wait_s = self.expected_wait_s
            if wait_s > left_s * WAIT_SHARE:
                raise Overloaded(
                    f"{self._searches:,} searches are in progress, which are expected to take "
                    f"{wait_s:.1f} s; the deadline is in {left_s:.1f} s"
                )

    def enter(self, left_s: float | None) -> Place:
        """Take a search on; raise what `check` raises."""
        self.check(left_s)
        if not self._searches:
            self._answered_at = self._clock()  # before, nothing was to be done
        self._searches += 1
        return Place(self)

    def _leave(self, answered: bool) -> None:
        self._searches -= 1
        if answered:
            now = self._clock()
            took_s = now - self._answered_at
            kept = exp(-took_s / MEMORY_S)
            self._answered = self._answered * kept + 1
            self._busy_s = self._busy_s * kept + took_s
            self._answered_at = now


class Place:
    """A search's place: a context that ends with it. What fails says nothing of the pace."""

    __slots__ = ("_gate",)

    def __init__(self, gate: SearchGate) -> None:
        self._gate = gate

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._gate._leave(answered=kind is None)
