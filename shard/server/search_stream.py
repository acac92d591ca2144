"""One SearchStream: requests are searched side by side and answered as they are done.

A request has a place in the window from when it is read until its answer is sent, and so has every
refusal. When the places or their bytes are used up nothing more is read, and the network holds the
client back: what a client sends, and what it does not read, takes no more memory than the window.
What is wrong with a request is its own answer; only the network, the client's end and the server's
drain end a stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from vectorshard.shard import wire
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    LimitExceeded,
    MalformedMessage,
    ShardUnavailable,
)
from vectorshard.shard.server.status import cancelled_status
from vectorshard.shard.types import Call, SearchRequest

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one stream's requests and answers in the window; one may have more, and is then alone.
Until there is an answer, it counts with what it may be expected to take."""

REFUSAL_BYTES: Final = 1_024
"""About what a refusal takes."""


class SearchStream:
    """The requests of one stream. Reading begins at once; `close` must be called.

    Parameters
    ----------
    payloads
        The messages as they come.
    decode
        Reads the search in a message, or raises what is wrong with it.
    search
        Searches; returns the bytes of the answer.
    status
        Returns the bytes of the google.rpc.Status of what a search has failed with.
    call
        The stream's own: whom it takes the server for, and its deadline.
    limits
        Bounds the requests in the window, the bytes of an answer, and the time of a request that
        brings no bound of its own.
    draining
        Set when the server stops: nothing more is begun.
    clock
        Seconds, as in `call.deadline`.
    """

    def __init__(
        self,
        payloads: AsyncIterator[bytes],
        decode: Callable[[bytes], SearchRequest],
        search: Callable[[SearchRequest, Call], Awaitable[bytes]],
        status: Callable[[Exception], bytes],
        *,
        call: Call,
        limits: Limits,
        draining: asyncio.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._payloads = payloads
        self._decode = decode
        self._search = search
        self._status = status
        self._call = call
        self._limits = limits
        self._draining = draining
        self._clock = clock
        self._running: dict[int, asyncio.Task[bytes]] = {}
        self._answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._places = 0
        self._bytes = 0
        self._room = asyncio.Event()
        self._reads = True
        self._closed = False
        self._reader = asyncio.ensure_future(self._read())

    # ---- requests -------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Begin each request as soon as there is room for it."""
        try:
            async for payload in self._payloads:
                await self._take(payload)
        finally:
            self._reads = False
            self._look_whether_over()

    async def _take(self, payload: bytes) -> None:
        arrived = self._clock()
        request_id = 0
        try:
            request = wire.decode_search_stream_request(payload)
            request_id = request.request_id
            if request.cancels:
                self._withdraw(request_id)
                return
            if request.search is None:
                raise MalformedMessage("neither a search nor a cancel", field="kind")
            search = self._decode(request.search)
            answer_bytes = min(wire.expected_answer_bytes(search), self._limits.message_bytes)
            expected = len(payload) + answer_bytes
            await self._has_room_for(expected)
            self._check_begin(request_id)
        except Exception as error:
            await self._has_room_for(REFUSAL_BYTES)
            self._places += 1
            self._answer(wire.StreamAnswer(request_id=request_id, error=self._status(error)))
            return
        self._begin(request, search, arrived, expected)

    def _withdraw(self, request_id: int) -> None:
        running = self._running.get(request_id)
        if running is not None:
            running.cancel()

    def _check_begin(self, request_id: int) -> None:
        if self._draining.is_set():
            raise ShardUnavailable("the server is draining; ask elsewhere")
        if request_id in self._running:
            raise InvalidParameter(f"{request_id} is in flight already", field="request_id")

    def _begin(
        self, request: wire.StreamRequest, search: SearchRequest, arrived: float, expected: int
    ) -> None:
        deadline = self._call.deadline
        if request.timeout_ms:
            own = arrived + request.timeout_ms / 1_000
            deadline = own if deadline is None else min(own, deadline)
        elif deadline is None:
            deadline = arrived + self._limits.default_timeout_ms / 1_000
        call = Call(
            deadline=deadline, incarnation=request.incarnation, placement=self._call.placement
        )
        running = asyncio.ensure_future(self._run(search, call, request.answer_bytes_max))
        self._running[request.request_id] = running
        self._places += 1
        self._bytes += expected
        running.add_done_callback(partial(self._finish, request.request_id, expected))

    async def _run(self, search: SearchRequest, call: Call, answer_bytes_max: int) -> bytes:
        left_s = None if call.deadline is None else call.deadline - self._clock()
        try:
            async with asyncio.timeout(left_s) as limit:
                response = await self._search(search, call)
        except TimeoutError as error:
            if limit.expired():
                raise DeadlineExceeded("the time allowed for the request has passed") from error
            raise
        if 0 < answer_bytes_max < len(response):
            raise LimitExceeded(
                f"the answer takes {len(response):,} bytes, {answer_bytes_max:,} are asked for",
                field="answer_bytes_max",
            )
        return response

    def _finish(self, request_id: int, expected: int, ran: asyncio.Task[bytes]) -> None:
        """Answer a request that has run; a task's own last step may never come when it is cut."""
        del self._running[request_id]
        self._bytes -= expected
        failure = None if ran.cancelled() else ran.exception()
        if self._closed:
            return
        if ran.cancelled():
            error = cancelled_status().SerializeToString()
            answer = wire.StreamAnswer(request_id=request_id, error=error)
        elif isinstance(failure, Exception):
            answer = wire.StreamAnswer(request_id=request_id, error=self._status(failure))
        else:
            answer = wire.StreamAnswer(request_id=request_id, response=ran.result())
        self._answer(answer)
        self._look_whether_over()

    # ---- the window -----------------------------------------------------------------------------

    async def _has_room_for(self, expected: int) -> None:
        """Return when one more fits."""
        while self._places and (
            self._places >= self._limits.stream_requests or self._bytes + expected > WINDOW_BYTES
        ):
            self._room.clear()
            await self._room.wait()

    def _answer(self, answer: wire.StreamAnswer) -> None:
        """Have an answer sent; its place is free then."""
        payload = wire.encode_search_stream_response(answer)
        self._bytes += len(payload)
        self._answers.put_nowait(payload)
        self._room.set()  # it may be smaller than was expected

    def _release(self, payload: bytes) -> None:
        self._places -= 1
        self._bytes -= len(payload)
        self._room.set()

    # ---- answers --------------------------------------------------------------------------------

    def _look_whether_over(self) -> None:
        """End the answers when nothing runs and nothing more is begun."""
        if not self._running and (self._draining.is_set() or not self._reads):
            self._answers.put_nowait(None)

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield the answers as they come; raise what ended the stream.

        Raises
        ------
        ShardUnavailable
            If the server drains: what was not answered must be asked again elsewhere.
        """
        drained = asyncio.ensure_future(self._draining.wait())
        drained.add_done_callback(lambda _: self._look_whether_over())
        try:
            while (payload := await self._answers.get()) is not None:
                yield payload
                self._release(payload)
            if self._reads:
                raise ShardUnavailable("the server is draining; ask the rest elsewhere")
            await self._reader  # raises what ended it, if that was not the client's end
        finally:
            drained.cancel()

    async def close(self) -> None:
        """Stop reading, and withdraw what runs."""
        self._closed = True
        self._reader.cancel()
        for running in self._running.values():
            running.cancel()  # not waited for: a shard that hangs must not keep it for ever
        await asyncio.gather(self._reader, return_exceptions=True)
