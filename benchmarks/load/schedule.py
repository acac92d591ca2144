"""When calls start. Pure: seconds since the run began, in and out; no clock.

An open loop decides its starts in advance, so that a slow server meets the load of many independent
callers. A closed loop starts a call when a caller is free, and so sends a slow server less.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from benchmarks.load.plan import Arrivals


class Start(NamedTuple):
    """A call to start: its number from 0, its time, and whether it counts or only warms up."""

    number: int
    at_s: float
    counts: bool


def starts_of(arrivals: Arrivals, rate_per_s: float, seed: int) -> Iterator[float]:
    """Yield the starts of an open loop without end, in order, from 0; equal for equal seeds."""
    if arrivals is Arrivals.uniform:
        yield from (number / rate_per_s for number in count())
    rng = random.Random(seed)
    at_s = 0.0
    while True:
        yield at_s
        at_s += rng.expovariate(rate_per_s)


class Schedule:
    """Returns the starts of a run, in order, until one of its bounds is reached.

    Parameters
    ----------
    starts
        The starts of an open loop; None is a closed loop, in which a call starts on request.
    warmup_s
        Calls that start earlier do not count.
    duration_s
        Time after the warm-up in which calls start; None sets no bound.
    calls_total
        Calls that count; None sets no bound.
    """

    def __init__(
        self,
        starts: Iterator[float] | None,
        *,
        warmup_s: float,
        duration_s: float | None,
        calls_total: int | None,
    ) -> None:
        self._starts = starts
        self._warmup_s = warmup_s
        self._end_s = math.inf if duration_s is None else warmup_s + duration_s
        self._left = math.inf if calls_total is None else calls_total
        self._number = 0

    @property
    def is_open(self) -> bool:
        """Whether starts are decided in advance."""
        return self._starts is not None

    def take(self, now_s: float) -> Start | None:
        """Return the next start, perhaps in the past; None when the run is over."""
        if self._left <= 0:
            return None
        at_s = now_s if self._starts is None else next(self._starts)
        if at_s >= self._end_s:
            self._left = 0
            return None
        counts = at_s >= self._warmup_s
        self._left -= counts
        self._number += 1
        return Start(self._number - 1, at_s, counts)

    def stop(self) -> None:
        """Return no more starts."""
        self._left = 0
