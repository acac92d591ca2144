"""A link: one long-lived SearchStream to a server, shared by many concurrent searches.

One task writes to the stream and one reads from it: concurrent writes end a stream of grpc.aio, and
so does a deadline around one. Callers wait for their own answer only. A caller that leaves does not
affect the others. Its request keeps its place in the window until the server has answered it, so
that a server that answers nothing fills the window, not the memory.

A full window means a busy link while answers arrive: the caller then uses a unary call. Without an
answer for STALLED_S the link is stalled, and the caller gets an error immediately.

A link lives as long as its stream. When the stream ends, all requests in flight end with
`LinkBroken`: their callers repeat them as unary calls, whose status is final, and the next search
opens a new link. A link that is drained ends its stream after the last answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Final, Protocol

import grpc

from vectorshard.shard.errors import (
    DeadlineExceeded,
    InternalError,
    ShardUnavailable,
    mark_unanswered,
)
from vectorshard.shard.texts import counted
from vectorshard.shard.types import Call
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.rpcs import SEARCH_STREAM, path_of
from vectorshard.shard.wire.search_stream import (
    TIMEOUT_MS_MAX,
    StreamAnswer,
    StreamRequest,
    decode_search_stream_response,
    encode_search_stream_request,
)
from vectorshard.shard.wire.window import Window

WINDOW_REQUESTS: Final = 64
"""Requests of a link without an answer. A server reads more of them than that."""

WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of those requests. gRPC buffers as many for a stopped server before a write blocks."""

STALLED_S: Final = 1.0
"""How long a link with a full window may be silent. Searches take milliseconds."""


class LinkBusy(Exception):
    """The window is full, and answers arrive. The request was not sent."""


class LinkBroken(Exception):
    """The stream ended before the answer arrived. `__cause__` is its error, if it had one.

    The server may have run the search; it may be repeated by unary call.
    """


class Stream(Protocol):
    """What a link needs of a stream. `GrpcStream` is the real one."""

    async def write(self, payload: bytes) -> None:
        """Send a message; raise when the stream has ended."""

    async def end(self) -> None:
        """Half-close: no more messages follow; raise when the stream has ended."""

    async def read(self) -> bytes | None:
        """Return the next message, None when the server has ended the stream; raise its error."""

    def cancel(self) -> None:
        """End the stream immediately; a pending read or write fails."""


class GrpcStream:
    """A stream of grpc.aio, from its open call."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def write(self, payload: bytes) -> None:
        """Send a message."""
        await self._guarded(self._call.write(payload))

    async def end(self) -> None:
        """Half-close."""
        await self._guarded(self._call.done_writing())

    async def read(self) -> bytes | None:
        """Return the next message, None at the end."""
        message = await self._guarded(self._call.read())
        return message if isinstance(message, bytes) else None

    async def _guarded(self, operation: Awaitable[Any]) -> Any:
        """Wait; turn the CancelledError of a cancelled stream into a ConnectionAbortedError."""
        try:
            return await operation
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call.cancelled() and task is not None and not task.cancelling():
                raise ConnectionAbortedError("the stream was cancelled") from None
            raise

    def cancel(self) -> None:
        """End the stream immediately."""
        self._call.cancel()


Outcome = StreamAnswer | LinkBroken | DeadlineExceeded
"""How a request ends."""


@dataclass(slots=True, eq=False)
class _InFlight:
    """A request without an answer yet. Its caller may have left: `ended` is None then."""

    message_bytes: int
    deadline: float
    ended: Callable[[Outcome], object] | None


class Link:
    """An open stream, which the link owns, and the requests in flight on it. Must be closed.

    Errors call the server `name`; `clock` is in seconds, as in a caller's deadline.
    """

    def __init__(
        self, stream: Stream, name: str, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._name = name
        self._clock = clock
        self._window = Window(WINDOW_REQUESTS, WINDOW_BYTES)
        self._in_flight: dict[int, _InFlight] = {}
        self._newest = 0
        self._answered_at = 0.0
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        self._draining = False
        self._cause: BaseException | None = None
        self.broken = False
        self._writer = asyncio.ensure_future(self._write())
        self._reader = asyncio.ensure_future(self._read())
        for task in (self._writer, self._reader):
            task.add_done_callback(self._break)

    # ---- callers --------------------------------------------------------------------------------

    async def ask(self, search: bytes, **how: Any) -> StreamAnswer:
        """Send a search and return its answer. Parameters and errors are those of `send`.

        Raises LinkBroken, too, if the stream ends before the answer, and DeadlineExceeded if the
        answer does not arrive in time.
        """
        answer: asyncio.Future[StreamAnswer] = asyncio.get_running_loop().create_future()

        def ended(outcome: Outcome) -> None:
            if answer.done():
                return
            if isinstance(outcome, Exception):
                answer.set_exception(outcome)
            else:
                answer.set_result(outcome)

        request_id = self.send(search, ended, **how)
        try:
            return await answer
        except asyncio.CancelledError:
            self.withdraw(request_id)
            raise

    def send(
        self,
        search: bytes,
        ended: Callable[[Outcome], object],
        *,
        deadline: float | None = None,
        incarnation: str = "",
        answer_bytes_max: int = 0,
    ) -> int:
        """Send a search, and return its number, to withdraw it.

        Parameters
        ----------
        search
            The bytes of a SearchRequest.
        ended
            Called once with the answer, or with the error if the stream ends or the deadline passes
            first. It must not raise. It is not called after `withdraw`.
        deadline
            When the caller and the server give up; None for no limit.
        incarnation, answer_bytes_max
            As in the contract.

        Raises
        ------
        LinkBroken
            If the stream has ended, or ends after its last answer.
        LinkBusy, ShardUnavailable
            If the window is full, and answers arrive; or none has arrived for STALLED_S.
        DeadlineExceeded
            If the deadline has passed.
        """
        left_s = None if deadline is None else deadline - self._clock()
        if left_s is not None and left_s <= 0:
            raise self._too_late()
        if self.broken or self._draining:
            raise self._broken()
        request_id = self._newest + 1
        payload = encode_search_stream_request(
            StreamRequest(
                request_id=request_id,
                search=search,
                timeout_ms=timeout_ms(left_s),
                incarnation=incarnation,
                answer_bytes_max=answer_bytes_max,
            )
        )
        if not self._window.has_room(len(payload)):
            raise self._full()
        if not self._in_flight:
            self._answered_at = self._clock()  # an idle link is not silent
        self._newest = request_id
        self._in_flight[request_id] = _InFlight(
            len(payload), inf if deadline is None else deadline, ended
        )
        self._window.enter(len(payload))
        self._outbox.put_nowait(payload)
        if deadline is not None and left_s is not None and deadline < self._timer_at:
            self._set_timer(deadline, left_s)
        return request_id

    def _full(self) -> Exception:
        window = self._window
        waiting = (
            f"{counted(window.messages, 'request')} of {counted(window.bytes, 'byte')} "
            "without an answer"
        )
        silent_s = self._clock() - self._answered_at
        if silent_s < STALLED_S:
            return LinkBusy(f"{self._name} is busy: {waiting}")
        return mark_unanswered(
            ShardUnavailable(f"{self._name} is stalled for {silent_s:.1f} s: {waiting}")
        )

    def withdraw(self, request_id: int) -> None:
        """Cancel a request on the server. It keeps its place in the window until the answer."""
        in_flight = self._in_flight.get(request_id)
        if in_flight is not None and not self.broken:
            in_flight.ended = None
            cancel = StreamRequest(request_id=request_id, cancels=True)
            self._outbox.put_nowait(encode_search_stream_request(cancel))

    def _set_timer(self, at: float, left_s: float) -> None:
        """Look at the deadlines again in `left_s`. One timer serves all requests in flight."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(left_s, self._expire)

    def _expire(self) -> None:
        """End the requests whose deadline has passed. The server has it too: no Cancel is sent."""
        self._timer, due = None, self._timer_at
        for in_flight in list(self._in_flight.values()):
            if in_flight.deadline <= due and in_flight.ended is not None:
                ended, in_flight.ended = in_flight.ended, None
                ended(self._too_late())
        waiting = [each.deadline for each in self._in_flight.values() if each.ended is not None]
        self._timer_at = min(waiting, default=inf)
        if self._timer_at < inf:
            self._set_timer(self._timer_at, max(0.0, self._timer_at - self._clock()))

    def _too_late(self) -> DeadlineExceeded:
        return mark_unanswered(DeadlineExceeded(f"{self._name}: no answer before the deadline"))

    def _broken(self) -> LinkBroken:
        broken = LinkBroken(f"the link to {self._name} is broken: {self._cause!r}")
        broken.__cause__ = self._cause
        return broken

    # ---- the stream -----------------------------------------------------------------------------

    async def _write(self) -> None:
        while (payload := await self._outbox.get()) is not None:
            await self._stream.write(payload)
        await self._stream.end()
        await asyncio.wait({self._reader})  # the server ends the stream, too

    async def _read(self) -> None:
        while (payload := await self._stream.read()) is not None:
            self._take(decode_search_stream_response(payload))

    def _take(self, answer: StreamAnswer) -> None:
        in_flight = self._in_flight.pop(answer.request_id, None)
        if in_flight is None:
            # Such a server may also leave the requests in flight unanswered.
            raise InternalError(f"answer to request {answer.request_id}, which is not in flight")
        self._window.leave(in_flight.message_bytes)
        self._answered_at = self._clock()
        if in_flight.ended is not None:
            in_flight.ended(answer)
        self._end_if_drained()

    def drain(self) -> None:
        """Take no more requests, and end the stream after the last answer."""
        self._draining = True
        self._end_if_drained()

    def _end_if_drained(self) -> None:
        if self._draining and not self._in_flight:
            self._outbox.put_nowait(None)

    def _break(self, ended: asyncio.Task[None]) -> None:
        """Fail the requests in flight: when one of the two tasks ends, so does the stream."""
        if self.broken:
            if not ended.cancelled():
                ended.exception()  # retrieved, so that asyncio does not report it
            return
        self.broken = True
        self._cause = None if ended.cancelled() else ended.exception()
        self._writer.cancel()
        self._stream.cancel()
        in_flight, self._in_flight = self._in_flight, {}
        if self._timer is not None:
            self._timer.cancel()
        for each in in_flight.values():
            if each.ended is not None:
                each.ended(self._broken())

    def end(self) -> None:
        """End the stream; requests in flight end with `LinkBroken`."""
        self._stream.cancel()

    async def close(self) -> None:
        """End the stream, and return when it has ended."""
        self.end()
        await asyncio.gather(self._reader, return_exceptions=True)
        await asyncio.gather(self._writer, return_exceptions=True)


def open_link(
    channel: grpc.aio.Channel,
    name: str,
    placement: str = "",
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Link:
    """Open a link over a channel. The server refuses it unless it is the one of `placement`.

    This does not wait for the server: if it is missing, the first search reports it.
    """
    rpc: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        path_of(SEARCH_STREAM)
    )
    stream = GrpcStream(rpc(metadata=metadata_of(Call(placement=placement))))
    return Link(stream, name, clock=clock)


def timeout_ms(left_s: float | None) -> int:
    """Return the time left in the contract's form: at least 1, and 0 for no limit."""
    if left_s is None:
        return 0
    return min(max(1, ceil(left_s * 1_000)), TIMEOUT_MS_MAX)
