"""A shard that may fail: asked again where that does no harm, and not at all while it is gone.

A read that the network has failed is repeated, within the caller's deadline, a few times and as
long as the budget lasts. Nothing else is: a write may have been done, and between the two tries
somebody may have read, deleted or replaced its rows; and what a server has refused, it has refused
to the caller, who is told how long to wait.

Whoever the breaker (router.remote.circuit_breaker) is open for is not asked, and a search that can
do without it
waits no longer; every other call that waits already goes on. A task of its own watches over what
is in flight: when nothing was heard for a while it sends a probe, the cheapest call there is, and
an open breaker is probed again and again until the server answers. No caller's call is a probe.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception

from vectorshard.client.retries import ATTEMPTS, RetryBudget, backoff_s
from vectorshard.router.remote.circuit_breaker import Breaker, BreakerState
from vectorshard.shard.errors import ShardUnavailable, VectorShardError
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionDescription,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    ExplainRequest,
    Explanation,
    GetRequest,
    ListRequest,
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

SILENCE_S: Final = 1.0
"""How long calls may be in flight without any answer before the server is probed."""

PROBE_S: Final = 1.0
"""How long a probe may take; a server that runs answers it in milliseconds."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


def _is_repeatable(error: BaseException) -> bool:
    """Whether a read that ended so may be asked again: nobody has refused it."""
    return isinstance(error, ShardUnavailable) and error.unanswered


class GuardedShard:
    """A shard behind a breaker. Its errors must say whether anybody has answered (`unanswered`).

    Parameters
    ----------
    shard
        Who is asked.
    name
        What errors, the log and the metrics call it, such as its address.
    clock
        Seconds, as in a call's deadline.
    chance
        Uniform in [0, 1).
    sleep
        Waits some seconds.
    """

    def __init__(
        self,
        shard: Shard,
        name: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._shard = shard
        self.name = name
        self._clock = clock
        self._chance = chance
        self._sleep = sleep
        self._budget = RetryBudget()
        self._in_flight = 0
        # Since when something is waited for and nothing was heard; None while nothing is.
        self._silent_since: float | None = None
        self._watching: asyncio.Task[None] | None = None
        # Of the searches that wait only as long as the breaker is closed.
        self._patience: set[asyncio.Timeout] = set()
        self.breaker = Breaker(clock=clock, chance=chance, changed=self._tell)
        self.openings = 0
        self.retries = 0

    def _tell(self, breaker: Breaker) -> None:
        if breaker.state is BreakerState.CLOSED:
            _log.info("a child is asked again", child=self.name)
        else:
            self.openings += 1
            patience, self._patience = self._patience, set()
            for limit in patience:
                limit.reschedule(asyncio.get_running_loop().time())
            _log.warning("a child is not asked any more", child=self.name, reason=breaker.refusal)

    # ---- one attempt ----------------------------------------------------------------------------

    async def _once(self, ask: Callable[..., Awaitable[T]], *arguments: Any, call: Call) -> T:
        """Ask, unless the breaker is open, and take note of what comes of it."""
        if self.breaker.state is not BreakerState.CLOSED:
            raise self._refused()
        if self._silent_since is None:
            self._silent_since = self._clock()
            if self._watching is None or self._watching.done():
                self._watch_anew()
        self._in_flight += 1
        try:
            answer = await ask(*arguments, call=call)
        except VectorShardError as error:
            self._in_flight -= 1
            if not error.unanswered:
                self._heard()
            elif isinstance(error, ShardUnavailable):
                self._failed(error)
            raise
        except BaseException:
            self._in_flight -= 1
            raise
        self._in_flight -= 1
        self._heard()
        return answer

    def _refused(self) -> ShardUnavailable:
        refused = ShardUnavailable(f"{self.name}: {self.breaker.refusal}")
        refused.retry_delay_s = self.breaker.wait_s + PROBE_S
        return refused

    def _heard(self) -> None:
        self._silent_since = self._clock() if self._in_flight else None
        self.breaker.answered()

    def _failed(self, error: VectorShardError) -> None:
        was = self.breaker.state
        self.breaker.failed(str(error))
        if was is BreakerState.CLOSED is not self.breaker.state:
            self._watch_anew()  # it waits for something else now

    # ---- more than one --------------------------------------------------------------------------

    async def _read(self, ask: Callable[..., Awaitable[T]], *arguments: Any, call: Call) -> T:
        """Ask, and ask again what the network has failed."""
        self._budget.earn()
        try:
            return await self._once(ask, *arguments, call=call)
        except ShardUnavailable as error:
            if not _is_repeatable(error):
                raise
            failure = error
        return await self._again(failure, ask, *arguments, call=call)

    async def _again(
        self,
        failure: ShardUnavailable,
        ask: Callable[..., Awaitable[T]],
        *arguments: Any,
        call: Call,
    ) -> T:
        """Ask again what has failed once."""
        first: ShardUnavailable | None = failure

        async def attempt() -> T:
            nonlocal first
            if first is not None:  # this attempt is over: only what follows it is left to do
                failed, first = first, None
                raise failed
            self.retries += 1
            return await self._once(ask, *arguments, call=call)

        def give_up(state: RetryCallState) -> bool:
            if state.attempt_number >= ATTEMPTS or self.breaker.state is not BreakerState.CLOSED:
                return True
            if call.deadline is not None and self._clock() + state.upcoming_sleep >= call.deadline:
                return True
            return not self._budget.spend()

        again = AsyncRetrying(
            retry=retry_if_exception(_is_repeatable),
            wait=lambda state: backoff_s(state.attempt_number, self._chance),
            stop=give_up,
            sleep=self._sleep,
            reraise=True,
        )
        return await again(attempt)

    # ---- the watch ------------------------------------------------------------------------------

    def _watch_anew(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
        self._watching = asyncio.ensure_future(self._watch())

    async def _watch(self) -> None:
        """Probe a server that is silent, or that is not asked; end when there is none of both."""
        while True:
            if self.breaker.state is not BreakerState.CLOSED:
                await self._sleep(self.breaker.wait_s)
                self.breaker.due()
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
            await self._shard.topology(call=Call(deadline=self._clock() + PROBE_S))
        except VectorShardError as error:
            if error.unanswered:
                silent = "" if since is None else f"silent for {self._clock() - since:.1f} s, and "
                self.breaker.silent(f"{silent}a probe failed: {error}")
                return
        except Exception:  # the watch must not end with it: nobody else would ask again
            _log.exception("an answer to a probe makes no sense", child=self.name)
        self._heard()

    # ---- the shard's methods --------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Ask who it is, whatever the breaker says: the answer is as good as a probe's."""
        try:
            topology = await self._shard.topology(call=call)
        except VectorShardError as error:
            if not error.unanswered:
                self._heard()
            raise
        self._heard()
        return topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection there, at most once."""
        return await self._once(self._shard.create_collection, config, call=call)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection there, at most once."""
        await self._once(self._shard.drop_collection, name, call=call)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """List its collections."""
        return await self._read(self._shard.list_collections, call=call)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Have a collection described."""
        return await self._read(self._shard.describe, name, call=call)

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Have rows written, at most once."""
        return await self._once(self._shard.upsert, request, call=call)

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Have rows deleted, at most once."""
        return await self._once(self._shard.delete, request, call=call)

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Get rows."""
        return await self._read(self._shard.get, request, call=call)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Have rows counted."""
        return await self._read(self._shard.count, request, call=call)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """List a page of rows."""
        return await self._read(self._shard.list_rows, request, call=call)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Search there; who asks for less than all waits only as long as the breaker is closed."""
        if request.min_coverage == 1.0:
            return await self._read(self._shard.search, request, call=call)
        try:
            async with asyncio.timeout(None) as limit:
                self._patience.add(limit)
                return await self._read(self._shard.search, request, call=call)
        except TimeoutError:
            if not limit.expired():
                raise
            raise self._refused() from None
        finally:
            self._patience.discard(limit)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Have it explained why a query does or does not find an id."""
        return await self._read(self._shard.explain, request, call=call)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Have an index trained, at most once."""
        return await self._once(self._shard.train, request, call=call)

    async def close(self) -> None:
        """Watch no more, and close it."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._shard.close()
