"""Whether a server is asked at all: a breaker, as a table of state and event.

    CLOSED       it is asked
    OPEN         it is not: whoever would ask it is told so at once
    HALF_OPEN    one probe is on its way to it, and nobody else asks

A server opens its breaker by failing several calls in a row, or by leaving a probe without an
answer. A call that nobody answers in its time opens none: a caller in a hurry says nothing about
the server. Whatever the server answers, a refusal too, closes it.

Pure: clock and chance are given, and whoever asks the server tells what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

FAILURES: Final = 3
"""Calls in a row whose failure opens the breaker."""

WAIT_FIRST_S: Final = 0.25
WAIT_MAX_S: Final = 2.0
"""How long a breaker stays open before a probe: twice as long each time, up to the second. A wrong
suspicion costs little, and who comes back is asked again within seconds."""


class BreakerState(Enum):
    """Whether the server is asked."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class BreakerEvent(Enum):
    """What has come of asking."""

    ANSWERED = "answered"
    FAILED = "failed"
    """One call of too few."""
    FAILED_AGAIN = "failed again"
    """As many in a row as it takes."""
    SILENT = "silent"
    """A probe was not answered."""
    DUE = "due"
    """A breaker was open for long enough."""


_CLOSED, _HALF_OPEN, _OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN

NEXT_STATE: Final[Mapping[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    (_CLOSED, BreakerEvent.ANSWERED): _CLOSED,
    (_CLOSED, BreakerEvent.FAILED): _CLOSED,
    (_CLOSED, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_CLOSED, BreakerEvent.SILENT): _OPEN,
    (_CLOSED, BreakerEvent.DUE): _CLOSED,
    # Calls that were asked before it opened may still end, one way or the other.
    (_OPEN, BreakerEvent.ANSWERED): _CLOSED,
    (_OPEN, BreakerEvent.FAILED): _OPEN,
    (_OPEN, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_OPEN, BreakerEvent.SILENT): _OPEN,
    (_OPEN, BreakerEvent.DUE): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.ANSWERED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.FAILED): _HALF_OPEN,  # not the probe, which says more
    (_HALF_OPEN, BreakerEvent.FAILED_AGAIN): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.SILENT): _OPEN,
    (_HALF_OPEN, BreakerEvent.DUE): _HALF_OPEN,
}


class Breaker:
    """The breaker of one server, closed at first.

    Parameters
    ----------
    clock
        Seconds.
    chance
        Uniform in [0, 1): several routers must not probe a server at the same moment.
    changed
        Called when it opens or closes, with itself; not for a probe.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
        changed: Callable[[Breaker], None],
    ) -> None:
        self._clock = clock
        self._chance = chance
        self._changed = changed
        self._failures = 0
        self._reason = ""
        self._due_at = 0.0
        self._openings = 0
        self.state = BreakerState.CLOSED

    @property
    def wait_s(self) -> float:
        """How long an open breaker is still to be left alone."""
        return max(0.0, self._due_at - self._clock())

    @property
    def refusal(self) -> str:
        """Why the server is not asked."""
        if self.state is BreakerState.HALF_OPEN:
            return f"not asked: {self._reason}; it is being tried"
        return f"not asked: {self._reason}; next try in {self.wait_s:.1f} s"

    def answered(self) -> None:
        """Take note of an answer."""
        if self.state is BreakerState.CLOSED:
            self._openings = 0  # an answer to more than a probe
        self._failures = 0
        self._take(BreakerEvent.ANSWERED)

    def failed(self, reason: str) -> None:
        """Take note of a call that failed on the way."""
        self._failures += 1
        if self._failures < FAILURES:
            self._take(BreakerEvent.FAILED)
            return
        if self.state is BreakerState.CLOSED:
            self._reason = f"{self._failures} failures in a row, the last: {reason}"
        self._take(BreakerEvent.FAILED_AGAIN)

    def silent(self, reason: str) -> None:
        """Take note of a probe without an answer."""
        self._reason = reason
        self._take(BreakerEvent.SILENT)

    def due(self) -> None:
        """Take note that its time is over: a probe comes next."""
        self._take(BreakerEvent.DUE)

    def _take(self, event: BreakerEvent) -> None:
        before, self.state = self.state, NEXT_STATE[self.state, event]
        if self.state is before:
            return
        if self.state is BreakerState.OPEN:
            wait_s = min(WAIT_FIRST_S * 2.0**self._openings, WAIT_MAX_S)
            self._due_at = self._clock() + wait_s * (0.5 + 0.5 * self._chance())
            self._openings += 1
        if BreakerState.CLOSED in (before, self.state):
            self._changed(self)
