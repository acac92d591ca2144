"""A circuit breaker that watches the calls to its server, and probes it.

While calls are in flight and none is answered for a while, a probe is sent: the cheapest call of
the contract. An open breaker sends probes until the server answers. A background task does both;
a caller's call is never a probe.

When the breaker opens, calls that wait continue to wait, except lenient ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog

from vectorshard.router.remote.circuit_breaker import Breaker, BreakerState
from vectorshard.shard.errors import ShardUnavailable, VectorShardError
from vectorshard.shard.types import Call

SILENCE_S: Final = 1.0
"""How long calls may be in flight without any answer before the server is probed."""

PROBE_S: Final = 1.0
"""Timeout of a probe. A healthy server answers it in milliseconds."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ProbingBreaker:
    """The circuit breaker of one server, with its probes. Must be closed.

    It learns from the errors of calls whether the server answered (`VectorShardError.unanswered`).
    `probe` makes a cheap call to the server, which errors and the log call `name`; `openings`
    counts. Clock, chance and sleep are those of the remote shard.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[Call], Awaitable[object]],
        *,
        clock: Callable[[], float],
        chance: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._name = name
        self._send_probe = probe
        self._clock = clock
        self._sleep = sleep
        self._breaker = Breaker(clock=clock, chance=chance, changed=self._changed)
        self._in_flight = 0
        # Since when calls are in flight without an answer; None while no call is.
        self._silent_since: float | None = None
        self._watch_task: asyncio.Task[None] | None = None
        self._lenient: set[Callable[[ShardUnavailable], object]] = set()
        self.openings = 0

    @property
    def state(self) -> BreakerState:
        """Whether calls pass."""
        return self._breaker.state

    def _changed(self, breaker: Breaker) -> None:
        if breaker.state is BreakerState.CLOSED:
            _log.info("circuit breaker closed", target=self._name)
            return
        self.openings += 1
        _log.warning("circuit breaker opened", target=self._name, reason=breaker.refusal)
        lenient, self._lenient = self._lenient, set()
        for refuse in lenient:
            refuse(self._refusal())

    # ---- calls ----------------------------------------------------------------------------------

    async def attempt(self, send: Callable[[], Awaitable[T]]) -> T:
        """Make a call unless the breaker is open, and note its outcome.

        An open breaker raises ShardUnavailable; after its `retry_delay_s` it may have closed.
        """
        self.enter()
        try:
            answer = await send()
        except BaseException as error:
            self.leave(error)
            raise
        self.leave()
        return answer

    def require_closed(self) -> None:
        """Raise what `attempt` raises if the breaker is open."""
        if self._breaker.state is not BreakerState.CLOSED:
            raise self._refusal()

    def enter(self) -> None:
        """Note a call that is sent; raise what `attempt` raises if the breaker is open."""
        self.require_closed()
        if self._silent_since is None:
            self._silent_since = self._clock()
            if self._watch_task is None or self._watch_task.done():
                self._restart_watch()
        self._in_flight += 1

    def leave(self, error: BaseException | None = None) -> None:
        """Note the end of a call that was sent: its error, or None for an answer."""
        self._in_flight -= 1
        if error is None:
            self._answered()
        elif isinstance(error, VectorShardError):
            if not error.unanswered:
                self._answered()
            elif isinstance(error, ShardUnavailable):
                self._failed(error)

    def add_lenient(self, refuse: Callable[[ShardUnavailable], object]) -> None:
        """Call a function when the breaker opens, with what `attempt` raises then."""
        self._lenient.add(refuse)

    def discard_lenient(self, refuse: Callable[[ShardUnavailable], object]) -> None:
        """Do not call the function any more."""
        self._lenient.discard(refuse)

    async def passing(self, waiting: Awaitable[T]) -> T:
        """Wait for an answer in any state; it closes the breaker as that of a probe does."""
        try:
            answer = await waiting
        except VectorShardError as error:
            if not error.unanswered:
                self._answered()
            raise
        self._answered()
        return answer

    def _refusal(self) -> ShardUnavailable:
        refusal = ShardUnavailable(f"{self._name}: {self._breaker.refusal}")
        refusal.retry_delay_s = self._breaker.wait_s + PROBE_S
        return refusal

    def _without_name(self, error: VectorShardError) -> str:
        return str(error).removeprefix(f"{self._name}: ")

    def _answered(self) -> None:
        self._silent_since = self._clock() if self._in_flight else None
        self._breaker.answered()

    def _failed(self, error: VectorShardError) -> None:
        before = self._breaker.state
        self._breaker.failed(self._without_name(error))
        if before is BreakerState.CLOSED is not self._breaker.state:
            self._restart_watch()  # it waits for the next probe now, not for silence

    # ---- probes ---------------------------------------------------------------------------------

    def _restart_watch(self) -> None:
        if self._watch_task is not None:
            self._watch_task.cancel()
        self._watch_task = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Probe a server that is silent, or whose breaker is open; return when it is neither."""
        while True:
            if self._breaker.state is not BreakerState.CLOSED:
                await self._sleep(self._breaker.wait_s)
                self._breaker.due()
            else:
                if self._silent_since is None:
                    return
                await self._sleep(max(0.0, self._silent_since + SILENCE_S - self._clock()))
                since = self._silent_since
                if since is None or self._clock() < since + SILENCE_S:
                    continue
            await self._probe()

    async def _probe(self) -> None:
        since = self._silent_since
        try:
            await self._send_probe(Call(deadline=self._clock() + PROBE_S))
        except VectorShardError as error:
            if error.unanswered:
                silent = "" if since is None else f"silent for {self._clock() - since:.1f} s, "
                self._breaker.silent(self._without_name(error), f"{silent}a probe failed")
                return
        except Exception:  # the task must survive: without it the breaker would stay open
            _log.exception("unexpected answer to a probe", target=self._name)
        self._answered()

    async def close(self) -> None:
        """Stop probing."""
        if self._watch_task is not None:
            self._watch_task.cancel()
            await asyncio.gather(self._watch_task, return_exceptions=True)
