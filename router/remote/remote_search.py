"""A search of a server: a future that its link resolves, without a task.

That is the short way, of a search that the link takes and the server answers. After anything else
the search goes the way of every call, in a task: retry policy, circuit breaker, unary call. What
happened over the link is its first attempt there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from vectorshard.client.link import Link, Outcome
from vectorshard.router.remote.probes import ProbingBreaker
from vectorshard.router.remote.retry_policy import RetryPolicy
from vectorshard.shard.errors import DeadlineExceeded, ShardUnavailable
from vectorshard.shard.types import Call, SearchRequest, SearchResult
from vectorshard.shard.wire.search_stream import StreamAnswer


class Server(Protocol):
    """What a search needs of the remote shard that is its server."""

    breaker: ProbingBreaker
    retry_policy: RetryPolicy

    def send_search(
        self, request: SearchRequest, call: Call, ended: Callable[[Outcome], object]
    ) -> tuple[Link, int]:
        """Send it over a link; return that, and its number there. Raise why that is impossible."""

    def read_search(self, response: bytes, request: SearchRequest) -> SearchResult:
        """Return what a response contains; raise InternalError if it does not parse."""

    def ask_search(
        self, request: SearchRequest, call: Call, tried: Outcome | Exception
    ) -> Coroutine[Any, Any, SearchResult]:
        """Search as every call is made, after a first attempt over the link."""


class RemoteSearch(asyncio.Future[SearchResult]):
    """The answer of a server, which is asked immediately. To cancel it withdraws the search.

    With `min_coverage` below 1 it fails when the circuit breaker opens.
    """

    def __init__(self, server: Server, request: SearchRequest, call: Call) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._server = server
        self._request = request
        self._call = call
        self._sent: tuple[Link, int] | None = None
        self._task: asyncio.Task[SearchResult] | None = None
        self._lenient = request.min_coverage < 1.0
        try:
            server.breaker.require_closed()
        except ShardUnavailable as refusal:
            self.set_exception(refusal)
            return
        if self._lenient:
            server.breaker.add_lenient(self._fail)
        try:
            self._sent = server.send_search(request, call, self._ended)
        except Exception as error:
            self._go_on(error)
        else:
            server.breaker.enter()

    def _ended(self, outcome: Outcome) -> None:
        """Take the answer of the link, or the reason for its absence."""
        self._sent = None
        if not isinstance(outcome, StreamAnswer):
            self._server.breaker.leave(outcome)
            if isinstance(outcome, DeadlineExceeded):
                self._fail(outcome)
            else:
                self._go_on(outcome)
            return
        self._server.breaker.leave()
        if outcome.response is None:
            self._go_on(outcome)
            return
        self._server.retry_policy.earn()
        self._forget()
        try:
            self.set_result(self._server.read_search(outcome.response, self._request))
        except Exception as error:  # a link calls this, and must not end with it
            self.set_exception(error)

    def _go_on(self, tried: Outcome | Exception) -> None:
        self._task = asyncio.ensure_future(
            self._server.ask_search(self._request, self._call, tried)
        )
        self._task.add_done_callback(self._take)

    def _take(self, task: asyncio.Task[SearchResult]) -> None:
        error = None if task.cancelled() else task.exception()
        if self.done():
            return
        self._forget()
        if task.cancelled():
            super().cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())

    def _fail(self, error: Exception) -> None:
        self._stop()
        self.set_exception(error)

    def cancel(self, msg: Any | None = None) -> bool:
        """Withdraw the search."""
        if self.done():
            return False
        self._stop()
        return super().cancel(msg)

    def _stop(self) -> None:
        self._forget()
        if self._task is not None:
            self._task.cancel()
        elif self._sent is not None:
            link, request_id = self._sent
            link.withdraw(request_id)
            self._server.breaker.leave(asyncio.CancelledError())

    def _forget(self) -> None:
        if self._lenient:
            self._server.breaker.discard_lenient(self._fail)
