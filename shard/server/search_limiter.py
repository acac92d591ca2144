"""Which searches a server accepts, and which it refuses before it reads them.

A server that accepts more searches than it can answer in time answers none in time: it works for
callers that have left. So searches are bounded by their number, and by the time that those in
progress are expected to take. That is their work (shard.server.search_work), divided by the work
that the server has recently done per second. The bytes of searches have a limiter too
(shard.server.memory_limiter). A limiter belongs to one event loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import exp
from typing import Final, Self

from vectorshard.shard.errors import Overloaded
from vectorshard.shard.server.search_work import ExpectedWork
from vectorshard.shard.types import Receipt, SearchRequest

ALWAYS_ACCEPTED: Final = 4
"""With fewer searches in progress than this, no search is refused for its deadline: one slow
search says little about the pace, which shows only when a server is busy."""

WAIT_SHARE: Final = 0.5
"""The part of the time left that a search may be expected to wait. The rest is for the search
itself and for the error of the estimate: an answer that comes too late is wasted work."""

TRUSTED_AFTER_S: Final = 0.1
"""Seconds of work after which the estimate of the pace is used. The first searches run one by one,
and say little about the pace of searches that run as a batch."""

MEMORY_S: Final = 1.0
"""The decay time of the pace estimate, in seconds of work."""

UNCROWDED_S: Final = 4e-6
"""The most seconds that an answer counts for, per microsecond of its work, with fewer searches in
progress than ALWAYS_ACCEPTED. Such a server mostly waits, for clients, messages and threads, and
would seem too slow for one heavy search."""

CROWDED_S: Final = 16e-6
"""The same with more searches in progress. The rest counts for the next answers: a light search may
be answered just before the heavy one that kept it waiting."""


class SearchLimiter:
    """Counts and weighs the searches in progress, waiting or running.

    Parameters
    ----------
    searches_max
        The largest number of them.
    clock
        Seconds, from any origin.
    """

    def __init__(self, searches_max: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._searches_max = searches_max
        self._clock = clock
        self._expected = ExpectedWork()
        self._searches = 0
        self._work = 0.0  # of the searches in progress
        self._answered_at = 0.0
        self._work_done = 0.0  # in `_busy_s`; both decay
        self._busy_s = 0.0

    @property
    def is_full(self) -> bool:
        """Whether every search is refused, whatever its deadline."""
        return self._searches >= self._searches_max

    @property
    def expected_wait_s(self) -> float:
        """The time that the searches in progress are expected to take together."""
        if self._busy_s < TRUSTED_AFTER_S:
            return 0.0
        return self._work * self._busy_s / self._work_done

    def full(self) -> Overloaded:
        """Return the error of a search when the limiter is full."""
        return Overloaded(f"too many searches in progress: the limit is {self._searches_max:,}")

    def check_not_full(self) -> None:
        """Raise Overloaded if every search is refused, whatever its deadline."""
        if self.is_full:
            raise self.full()

    def check(self, left_s: float | None) -> None:
        """Check whether a search is accepted that must be answered in `left_s`; None is no limit.

        Raises
        ------
        Overloaded
            If too many are in progress, or the answer would probably be too late.
        """
        self.check_not_full()
        if left_s is not None and self._searches >= ALWAYS_ACCEPTED:
            wait_s = self.expected_wait_s
            if wait_s > left_s * WAIT_SHARE:
                raise Overloaded(
                    f"too many searches in progress: {self._searches:,} searches are expected to "
                    f"take {wait_s:.1f} s; the deadline is in {left_s:.1f} s"
                )

    def enter(self, left_s: float | None) -> Place:
        """Accept a search, which is weighed once it has been read; raise what `check` raises."""
        self.check(left_s)
        if not self._searches:
            self._answered_at = self._clock()  # idle time does not count
        self._searches += 1
        place = Place(self, self._expected.typical)
        self._work += place.work
        return place

    def _leave(self, work: float, done: float | None, measured: bool) -> None:
        uncrowded = self._searches < ALWAYS_ACCEPTED
        self._searches -= 1
        self._work = self._work - work if self._searches else 0.0  # the roundings do not add up
        if done is not None:
            now = self._clock()
            took_s = now - self._answered_at
            left_s = 0.0
            if measured:
                most_s = (UNCROWDED_S if uncrowded else CROWDED_S) * done
                left_s = 0.0 if uncrowded else max(0.0, took_s - most_s)
                took_s = min(took_s, most_s)
            kept = exp(-took_s / MEMORY_S)
            self._work_done = self._work_done * kept + done
            self._busy_s = self._busy_s * kept + took_s
            self._answered_at = now - left_s


class Place:
    """A search in progress, as a context. A search that fails does not count for the pace.

    `work` is what it is expected to be; until it is weighed, that of a typical search.
    """

    __slots__ = ("_done", "_limiter", "work")

    def __init__(self, limiter: SearchLimiter, work: float) -> None:
        self._limiter = limiter
        self.work = work
        self._done: float | None = None

    def weigh(self, request: SearchRequest) -> None:
        """State what the search asks for."""
        work = self._limiter._expected.of(request)
        self._limiter._work += work - self.work
        self.work = work

    def answered(self, request: SearchRequest, receipt: Receipt) -> None:
        """State what the search has scanned."""
        self._done = self._limiter._expected.learn(request, receipt)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        measured = self._done is not None
        done = self.work if self._done is None else self._done
        self._limiter._leave(self.work, None if kind is not None else done, measured)
