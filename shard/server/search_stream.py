"""One SearchStream: requests are searched concurrently and answered in any order.

A request counts in the window from when it is read until its answer is sent, and so does every
refusal. When the window is full, the server stops reading, and the network holds the client back:
requests and unread answers of a client take no more memory than the window. An invalid request
receives an error as its answer. Only the network, the client's end and the server's drain end a
stream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    LimitExceeded,
    MalformedMessage,
    ShardUnavailable,
)
from vectorshard.shard.server.status import cancelled_status
from vectorshard.shard.server.stream_window import StreamWindow
from vectorshard.shard.types import Call, SearchRequest
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    StreamRequest,
    decode_search_stream_request,
    encode_search_stream_response,
)
from vectorshard.shard.wire.searches import expected_answer_bytes

REFUSAL_BYTES: Final = 1_024
"""About the size of a refusal."""


class SearchStreamHandler:
    """The requests of one stream. Reading begins immediately; `close` must be called.

    A request counts in the window with its expected answer until it is answered, and then with
    its answer until that is sent.

    Parameters
    ----------
    payloads
        The messages as they arrive.
    decode
        Reads the search in a message, or raises an error.
    search
        Searches; returns the bytes of the answer.
    status
        Returns the bytes of the google.rpc.Status of an error.
    call
        The stream's own: the placement that the client expects, and the stream's deadline.
    limits
        Bounds the requests in the window, the bytes of an answer, and the time of a request
        without a timeout.
    draining
        Set when the server stops: no further request is begun.
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
        self._window = StreamWindow(limits.stream_requests)
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
            self._end_if_idle()

    async def _take(self, payload: bytes) -> None:
        arrived = self._clock()
        request_id = 0
        try:
            request = decode_search_stream_request(payload)
            request_id = request.request_id
            if request.cancels:
                self._cancel(request_id)
                return
            if request.search is None:
                raise MalformedMessage("search or cancel is required", field="kind")
            search = self._decode(request.search)
            answer_bytes = min(expected_answer_bytes(search), self._limits.message_bytes)
            expected = len(payload) + answer_bytes
            await self._window.room_for(expected)
            self._check_begin(request_id)
        except Exception as error:
            await self._window.room_for(REFUSAL_BYTES)
            self._window.enter(0)
            self._answer(StreamAnswer(request_id=request_id, error=self._status(error)), 0)
            return
        self._begin(request, search, arrived, expected)

    def _cancel(self, request_id: int) -> None:
        running = self._running.get(request_id)
        if running is not None:
            running.cancel()

    def _check_begin(self, request_id: int) -> None:
        if self._draining.is_set():
            raise ShardUnavailable("the server is draining: send the request again")
        if request_id in self._running:
            raise InvalidParameter(f"{request_id} is already in flight", field="request_id")

    def _begin(
        self, request: StreamRequest, search: SearchRequest, arrived: float, expected: int
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
        self._window.enter(expected)
        running.add_done_callback(partial(self._finish, request.request_id, expected))

    async def _run(self, search: SearchRequest, call: Call, answer_bytes_max: int) -> bytes:
        left_s = None if call.deadline is None else call.deadline - self._clock()
        try:
            async with asyncio.timeout(left_s) as limit:
                response = await self._search(search, call)
        except TimeoutError as error:
            if limit.expired():
                raise DeadlineExceeded("the deadline of the request passed") from error
            raise
        if 0 < answer_bytes_max < len(response):
            raise LimitExceeded(
                f"answer of {len(response):,} bytes exceeds the request's limit of "
                f"{answer_bytes_max:,} bytes",
                field="answer_bytes_max",
            )
        return response

    def _finish(self, request_id: int, expected: int, ran: asyncio.Task[bytes]) -> None:
        """Answer a request that has run. A callback, because a cancelled task may never start."""
        del self._running[request_id]
        failure = None if ran.cancelled() else ran.exception()
        if self._closed:
            return
        if ran.cancelled():
            error = cancelled_status().SerializeToString()
            answer = StreamAnswer(request_id=request_id, error=error)
        elif isinstance(failure, Exception):
            answer = StreamAnswer(request_id=request_id, error=self._status(failure))
        else:
            answer = StreamAnswer(request_id=request_id, response=ran.result())
        self._answer(answer, expected)
        self._end_if_idle()

    # ---- answers --------------------------------------------------------------------------------

    def _answer(self, answer: StreamAnswer, expected: int) -> None:
        """Queue an answer, which counts in the window instead of the expected bytes."""
        payload = encode_search_stream_response(answer)
        self._window.resize(expected, len(payload))
        self._answers.put_nowait(payload)

    def _end_if_idle(self) -> None:
        """End the answers when no request runs and none will be begun."""
        if not self._running and (self._draining.is_set() or not self._reads):
            self._answers.put_nowait(None)

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield the answers as they are ready; raise what ended the stream.

        Raises ShardUnavailable if the server drains: unanswered requests must be sent to another
        server.
        """
        drained = asyncio.ensure_future(self._draining.wait())
        drained.add_done_callback(lambda _: self._end_if_idle())
        try:
            while (payload := await self._answers.get()) is not None:
                yield payload
                self._window.leave(len(payload))
            if self._reads:
                raise ShardUnavailable("the server is draining: send the unanswered requests again")
            await self._reader  # raises what ended it, unless the client did
        finally:
            drained.cancel()

    async def close(self) -> None:
        """Stop reading, and cancel the searches in flight."""
        self._closed = True
        self._reader.cancel()
        for running in self._running.values():
            running.cancel()  # not awaited: a shard that hangs must not block this
        await asyncio.gather(self._reader, return_exceptions=True)
