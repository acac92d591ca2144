"""A link: one long-lived SearchStream to a server, on which many callers' searches are in flight.

One task writes and one reads, and nobody else touches the stream: concurrent writes end a stream of
grpc.aio, and so does a deadline around one. Callers wait for their own answer only. Who stops
waiting leaves the others alone, and its request keeps its place in the window until the server has
answered it: a server that answers nothing must fill the window, not the memory. When the window is
full and nothing has been answered for a while, the link is stalled, which is told at once; as long
as answers come, it is busy, and who finds no place asks by a call of its own.

A link lives as long as its stream. When that ends, for whatever reason, all that is in flight ends
with `LinkBroken`: whoever asked asks again by a call of its own, whose status is the one that
counts, and whoever needs a link next opens another. One that is retired ends its stream itself,
once all that is in flight is answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, Protocol

import grpc

from vectorshard.shard import wire
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InternalError,
    ShardUnavailable,
    mark_unanswered,
)
from vectorshard.shard.types import Call
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.rpcs import SEARCH_STREAM, path_of

WINDOW_REQUESTS: Final = 64
"""Requests of a link that are not answered yet; a server reads more of them than that."""

WINDOW_BYTES: Final = 4 * 1024 * 1024
"""Bytes of those requests: what gRPC takes for a stopped process before a write waits."""


STALLED_S: Final = 1.0
"""How long a link with a full window may be silent. Searches take milliseconds."""


class LinkBusy(Exception):
    """There is no place in the window, and answers keep coming. Nothing was sent."""


class LinkBroken(Exception):
    """The stream has ended before the answer came; `__cause__` says why, if there was an error.

    The request may have been done. A search may be asked again, in another way.
    """


class Stream(Protocol):
    """What a link needs of a stream. `GrpcStream` is the real one."""

    async def write(self, payload: bytes) -> None:
        """Send a message; raise when the stream has ended."""
        ...

    async def end(self) -> None:
        """Tell the server that nothing more will be sent; raise when the stream has ended."""
        ...

    async def read(self) -> bytes | None:
        """Return the next message, None when the server has ended the stream; raise its error."""
        ...

    def cancel(self) -> None:
        """End the stream at once: whoever reads or writes gets to hear of it."""
        ...


class GrpcStream:
    """A stream of grpc.aio.

    Parameters
    ----------
    call
        The open call.
    """

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes]) -> None:
        self._call = call

    async def write(self, payload: bytes) -> None:
        """Send a message."""
        await self._guarded(self._call.write(payload))

    async def end(self) -> None:
        """Send no more messages."""
        await self._guarded(self._call.done_writing())

    async def read(self) -> bytes | None:
        """Return the next message, None at the end."""
        message = await self._guarded(self._call.read())
        return message if isinstance(message, bytes) else None

    async def _guarded(self, operation: Awaitable[Any]) -> Any:
        """Wait; a stream that was cancelled ends with an error, as if its task was not."""
        try:
            return await operation
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if self._call.cancelled() and task is not None and not task.cancelling():
                raise ConnectionAbortedError("the stream was cancelled") from None
            raise

    def cancel(self) -> None:
        """End the stream at once."""
        self._call.cancel()


@dataclass(slots=True, eq=False)
class _InFlight:
    """A request without an answer yet, though perhaps nobody waits for one any more."""

    message_bytes: int
    answer: asyncio.Future[wire.StreamAnswer]


class Link:
    """One stream, and who waits for what on it. Must be closed.

    Parameters
    ----------
    stream
        An open stream, which is the link's from now on.
    name
        What errors call the server.
    window_requests, window_bytes
        How many requests, of how many bytes, may be without an answer.
    clock
        Seconds, as in a caller's deadline.
    """

    def __init__(
        self,
        stream: Stream,
        name: str,
        *,
        window_requests: int = WINDOW_REQUESTS,
        window_bytes: int = WINDOW_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._name = name
        self._window_requests = window_requests
        self._window_bytes = window_bytes
        self._clock = clock
        self._in_flight: dict[int, _InFlight] = {}
        self._bytes = 0
        self._newest = 0
        self._heard_at = 0.0
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._retired = False
        self._cause: BaseException | None = None
        self.broken = False
        self._writer = asyncio.ensure_future(self._write())
        self._reader = asyncio.ensure_future(self._read())
        for task in (self._writer, self._reader):
            task.add_done_callback(self._break)

    # ---- callers --------------------------------------------------------------------------------

    async def ask(
        self,
        search: bytes,
        *,
        deadline: float | None = None,
        incarnation: str = "",
        answer_bytes_max: int = 0,
    ) -> wire.StreamAnswer:
        """Send a search, and return its answer.

        Parameters
        ----------
        search
            The bytes of a SearchRequest.
        deadline
            Until when to wait, and the server to search; None is for ever.
        incarnation, answer_bytes_max
            As the contract has them.

        Raises
        ------
        LinkBroken
            If the stream ends first, or has ended.
        LinkBusy
            If the window is full.
        ShardUnavailable
            If the window is full, and nothing was answered for STALLED_S.
        DeadlineExceeded
            If there is no answer in time.
        """
        left_s = None if deadline is None else deadline - self._clock()
        if left_s is not None and left_s <= 0:
            raise self._too_late()
        if self.broken or self._retired:
            raise self._broken()
        request_id = self._newest + 1
        payload = wire.encode_search_stream_request(
            wire.StreamRequest(
                request_id=request_id,
                search=search,
                timeout_ms=timeout_ms(left_s),
                incarnation=incarnation,
                answer_bytes_max=answer_bytes_max,
            )
        )
        answer = self._send(request_id, payload)
        try:
            async with asyncio.timeout(left_s):
                return await answer
        except TimeoutError:
            raise self._too_late() from None  # the server knows the time, too
        except asyncio.CancelledError:
            self._withdraw(request_id)
            raise

    def _send(self, request_id: int, payload: bytes) -> asyncio.Future[wire.StreamAnswer]:
        if not self._in_flight:
            self._heard_at = self._clock()  # of nothing that was asked nothing is to be heard
        elif (
            len(self._in_flight) >= self._window_requests
            or self._bytes + len(payload) > self._window_bytes
        ):
            raise self._full()
        self._newest = request_id
        answer: asyncio.Future[wire.StreamAnswer] = asyncio.get_running_loop().create_future()
        self._in_flight[request_id] = _InFlight(len(payload), answer)
        self._bytes += len(payload)
        self._outbox.put_nowait(payload)
        return answer

    def _full(self) -> Exception:
        waiting = f"{len(self._in_flight)} requests of {self._bytes:,} bytes wait for an answer"
        silent_s = self._clock() - self._heard_at
        if silent_s < STALLED_S:
            return LinkBusy(f"{self._name} is busy: {waiting}")
        return mark_unanswered(
            ShardUnavailable(f"{self._name} is stalled for {silent_s:.1f} s: {waiting}")
        )

    def _withdraw(self, request_id: int) -> None:
        """Tell the server that nobody waits any more; the place is kept until it answers."""
        if request_id in self._in_flight and not self.broken:
            cancel = wire.StreamRequest(request_id=request_id, cancels=True)
            self._outbox.put_nowait(wire.encode_search_stream_request(cancel))

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
        await asyncio.wait({self._reader})  # the stream is over when the server ends it, too

    async def _read(self) -> None:
        while (payload := await self._stream.read()) is not None:
            self._take(wire.decode_search_stream_response(payload))

    def _take(self, answer: wire.StreamAnswer) -> None:
        in_flight = self._in_flight.pop(answer.request_id, None)
        if in_flight is None:
            # Whoever answers what was not asked may leave what was asked without an answer.
            raise InternalError(f"an answer to {answer.request_id}, which is not in flight")
        self._bytes -= in_flight.message_bytes
        self._heard_at = self._clock()
        if not in_flight.answer.done():
            in_flight.answer.set_result(answer)
        self._look_whether_over()

    def retire(self) -> None:
        """Take no more requests, and end the stream when those in flight are answered."""
        self._retired = True
        self._look_whether_over()

    def _look_whether_over(self) -> None:
        if self._retired and not self._in_flight:
            self._outbox.put_nowait(None)

    def _break(self, ended: asyncio.Task[None]) -> None:
        """End what is in flight: the stream is over for one of the two tasks, and so for both."""
        if self.broken:
            if not ended.cancelled():
                ended.exception()  # looked at, so that asyncio does not report it
            return
        self.broken = True
        self._cause = None if ended.cancelled() else ended.exception()
        self._writer.cancel()
        self._stream.cancel()
        in_flight, self._in_flight = self._in_flight, {}
        for each in in_flight.values():
            if not each.answer.done():
                each.answer.set_exception(self._broken())

    async def close(self) -> None:
        """End the stream; what is in flight ends with `LinkBroken`."""
        self._stream.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        await asyncio.gather(self._writer, return_exceptions=True)


def open_link(
    channel: grpc.aio.Channel,
    name: str,
    placement: str = "",
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Link:
    """Open a link over a channel, to a server that is taken for the leaf shards of `placement`.

    It is there at once; whether the server is, the first to ask gets to hear.
    """
    rpc: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
        path_of(SEARCH_STREAM)
    )
    stream = GrpcStream(rpc(metadata=metadata_of(Call(placement=placement))))
    return Link(stream, name, clock=clock)


def timeout_ms(left_s: float | None) -> int:
    """Return the time left as the contract has it: at least 1, and 0 for no limit."""
    if left_s is None:
        return 0
    return min(max(1, ceil(left_s * 1_000)), wire.TIMEOUT_MS_MAX)
