"""The circuit breaker of one server, as a table of states and events. Pure.

    CLOSED       calls pass
    OPEN         calls are refused immediately
    HALF_OPEN    one probe is in flight, and calls are still refused

The breaker opens after several failures in a row, or when a probe stays unanswered. An unanswered
call whose deadline passes does not open it: an impatient caller proves nothing about the server.
Every answer closes it, including an error that the server returns.

The caller of the server reports the events, and provides the clock and the randomness.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

FAILURES: Final = 3
"""Failed calls in a row that open the breaker."""

WAIT_FIRST_S: Final = 0.25
WAIT_MAX_S: Final = 2.0
"""How long the breaker stays open before a probe: it doubles with each opening, up to the maximum.
A false alarm costs little, and a server that returns is used again within seconds."""


class BreakerState(Enum):
    """Whether calls pass."""

    CLOSED = "closed"
    HALF_OPEN = "half-open"
    OPEN = "open"


class BreakerEvent(Enum):
    """The outcome of a call or probe, or the end of a wait."""

    ANSWERED = "answered"
    FAILED = "failed"
    """A call failed, and the limit is not reached."""
    FAILED_AGAIN = "failed again"
    """A call failed, and the limit is reached."""
    SILENT = "silent"
    """A probe was not answered."""
    DUE = "due"
    """The breaker was open for long enough."""


_CLOSED, _HALF_OPEN, _OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN

NEXT_STATE: Final[Mapping[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    (_CLOSED, BreakerEvent.ANSWERED): _CLOSED,
    (_CLOSED, BreakerEvent.FAILED): _CLOSED,
    (_CLOSED, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_CLOSED, BreakerEvent.SILENT): _OPEN,
    (_CLOSED, BreakerEvent.DUE): _CLOSED,
    # Calls that were sent before it opened may still end, with an answer or without.
    (_OPEN, BreakerEvent.ANSWERED): _CLOSED,
    (_OPEN, BreakerEvent.FAILED): _OPEN,
    (_OPEN, BreakerEvent.FAILED_AGAIN): _OPEN,
    (_OPEN, BreakerEvent.SILENT): _OPEN,
    (_OPEN, BreakerEvent.DUE): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.ANSWERED): _CLOSED,
    (_HALF_OPEN, BreakerEvent.FAILED): _HALF_OPEN,  # not the probe, which counts for more
    (_HALF_OPEN, BreakerEvent.FAILED_AGAIN): _HALF_OPEN,
    (_HALF_OPEN, BreakerEvent.SILENT): _OPEN,
    (_HALF_OPEN, BreakerEvent.DUE): _HALF_OPEN,
}


class Breaker:
    """The state of one server's circuit breaker, initially closed.

    `clock` is in seconds. `chance` is uniform in [0, 1): several routers must not probe a server at
    the same moment. `changed` is called when the breaker opens or closes, not for a probe.
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
        self._cause = self._reason = ""
        self._due_at = 0.0
        self._openings = 0
        self.state = BreakerState.CLOSED

    @property
    def wait_s(self) -> float:
        """Seconds until the next probe of an open breaker."""
        return max(0.0, self._due_at - self._clock())

    @property
    def refusal(self) -> str:
        """Why calls are refused."""
        if self.state is BreakerState.HALF_OPEN:
            state, probe = "half-open", "probe in flight"
        else:
            state, probe = "open", f"next probe in {self.wait_s:.1f} s"
        return f"circuit breaker {state} ({self._cause}; {probe}); last failure: {self._reason}"

    def answered(self) -> None:
        """Note an answer."""
        if self.state is BreakerState.CLOSED:
            self._openings = 0  # calls were answered, not only a probe
        self._failures = 0
        self._take(BreakerEvent.ANSWERED)

    def failed(self, reason: str) -> None:
        """Note a call that the network failed."""
        self._failures += 1
        if self._failures < FAILURES:
            self._take(BreakerEvent.FAILED)
            return
        if self.state is BreakerState.CLOSED:
            self._cause, self._reason = f"{self._failures} consecutive failures", reason
        self._take(BreakerEvent.FAILED_AGAIN)

    def silent(self, reason: str, cause: str = "a probe failed") -> None:
        """Note a probe without an answer: the probe's failure, and what that says of the server."""
        self._cause, self._reason = cause, reason
        self._take(BreakerEvent.SILENT)

    def due(self) -> None:
        """Note the end of the wait: a probe follows."""
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
