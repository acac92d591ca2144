"""The streams of the clients: uploads, and searches with many in flight.

A stream of the sync stack is paced: a window bounds how far messages run ahead of responses, and a
watchdog ends the stream when the server is silent for too long. The searches of AsyncClient share a
link (client.link), as those of a router do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from typing import Final, Self, Unpack

import grpc
import numpy.typing as npt

from vectorshard.client import calls
from vectorshard.client.calls import SearchOptions, UnaryCall
from vectorshard.client.config_arguments import seconds_of
from vectorshard.client.link import (
    WINDOW_REQUESTS,
    Link,
    LinkBroken,
    LinkBusy,
    open_link,
    timeout_ms,
)
from vectorshard.client.results import Hits
from vectorshard.client.upload import UpsertUpload
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    ShardUnavailable,
    VectorShardError,
    mark_unanswered,
)
from vectorshard.shard.server.status import error_from_rpc, read_status
from vectorshard.shard.wire.primitives import uint32_of
from vectorshard.shard.wire.rpcs import SEARCH_STREAM, UPSERT_STREAM, path_of
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    StreamRequest,
    decode_search_stream_response,
    encode_search_stream_request,
)

UPLOAD_WINDOW: Final = 4
"""Unacknowledged messages of an upload. With fewer the network idles while the server commits; more
only fill memory."""


_CANCELLED_HERE: Final = frozenset({"Channel closed!", "Locally cancelled by application!"})
"""gRPC's texts for a call that this process has cancelled. A server's has others."""


def error_of(error: grpc.RpcError) -> VectorShardError:
    """Return the error for a failed call."""
    has_code = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    if not has_code or error.code() is not grpc.StatusCode.CANCELLED:
        return error_from_rpc(error)
    if error.details() in _CANCELLED_HERE:
        return ShardUnavailable("the call was cancelled: the client is closing")
    return mark_unanswered(error_from_rpc(error))


class _Watchdog:
    """Cancels a stream that is silent for too long. Owns a thread while it is entered.

    `is_due` returns whether a response is expected at all.
    """

    def __init__(
        self, timeout_s: float, cancel: Callable[[], object], is_due: Callable[[], bool]
    ) -> None:
        self._timeout_s = timeout_s
        self._cancel = cancel
        self._is_due = is_due
        self._heard = threading.Event()
        self._over = False
        self.expired = False
        self._thread = threading.Thread(target=self._wait, name="stream-watchdog", daemon=True)

    def _wait(self) -> None:
        while self._heard.wait(self._timeout_s) or not self._is_due():
            self._heard.clear()
            if self._over:
                return
        self.expired = True
        self._cancel()

    def heard(self) -> None:
        """Restart the timeout."""
        self._heard.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._heard.set()
        self._thread.join()


class _PacedStream:
    """Sends messages over a stream. Starts immediately; reading responses blocks the thread.

    A thread of grpc takes each message when the window has room for it: `window` messages are sent
    before the first call of `release`. While a response `is_due`, the server may be silent for at
    most `timeout_s`.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        rpc: str,
        messages: Iterator[bytes],
        *,
        window: int,
        timeout_s: float,
        is_due: Callable[[], bool],
    ) -> None:
        self._messages = messages
        self._window = threading.Semaphore(window)
        self._over = threading.Event()
        self._unsendable: list[Exception] = []
        send: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(path_of(rpc))
        self._watchdog = _Watchdog(timeout_s, self.cancel, is_due)
        self._stream = send(self._sent())

    def _sent(self) -> Iterator[bytes]:
        # grpc would swallow an exception raised here.
        try:
            while True:
                self._window.acquire()
                message = None if self._over.is_set() else next(self._messages, None)
                if message is None:
                    return
                self._watchdog.heard()
                yield message
        except Exception as error:
            self._unsendable.append(error)

    def release(self) -> None:
        """Allow one more message."""
        self._window.release()

    def heard(self) -> None:
        """Restart the timeout of the server: this side was busy."""
        self._watchdog.heard()

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._over.set()
        self._window.release()
        self._stream.cancel()

    def answers(self, silence: Callable[[], DeadlineExceeded]) -> Generator[bytes, None, None]:
        """Yield the responses; raise what ends the stream, `silence()` if the watchdog does.

        An exception from making the messages is raised after the last response.
        """
        try:
            with self._watchdog:
                for answer in self._stream:
                    self._watchdog.heard()
                    yield answer
        except grpc.RpcError as error:
            if self._watchdog.expired:
                raise silence() from error
            raise error_of(error) from error
        finally:
            self.cancel()
        if self._unsendable:
            raise self._unsendable[0]


class UploadStream:
    """Sends an upload over UpsertStream. Starts immediately; `run` blocks the thread.

    AsyncClient uses it in a thread, too: encoding large messages would block its event loop, and
    grpc.aio replaces the status of a stream that the server ended during a write by INTERNAL
    (grpc/grpc#36066).
    """

    def __init__(self, channel: grpc.Channel, upload: UpsertUpload, timeout_s: float) -> None:
        self._upload = upload
        self._timeout_s = timeout_s
        self._stream = _PacedStream(
            channel,
            UPSERT_STREAM,
            (upload.message(number) for number in range(upload.messages)),
            window=UPLOAD_WINDOW,
            timeout_s=timeout_s,
            is_due=lambda: True,
        )

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._stream.cancel()

    def run(self) -> None:
        """Return when the whole upload is acknowledged; raise the error that ended it otherwise."""
        with closing(self._stream.answers(self._silence)) as answers:
            for answer in answers:
                self._upload.acknowledge(answer)
                self._stream.release()
        if not self._upload.complete:
            raise ShardUnavailable("the server ended the stream before it acknowledged all rows")

    def _silence(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no acknowledgement for {self._timeout_s:g} s; "
            f"{self._upload.rows_acknowledged:,} of {self._upload.rows:,} rows are acknowledged"
        )


class SearchBatches:
    """Searches batch after batch over SearchStream, with `in_flight` batches in flight.

    A background thread takes the searches one at a time. A batch takes at most `timeout_s`.
    """

    def __init__(
        self,
        channel: grpc.Channel,
        searches: Iterator[UnaryCall[Hits]],
        *,
        in_flight: int,
        timeout_s: float,
    ) -> None:
        self._searches = searches
        self._timeout_s = timeout_s
        self._decode: dict[int, Callable[[bytes], Hits]] = {}
        self._taken = True
        self._all_sent = False
        self._stream = _PacedStream(
            channel,
            SEARCH_STREAM,
            self._messages(),
            window=_checked_in_flight(in_flight),
            timeout_s=timeout_s,
            is_due=lambda: self._taken and bool(self._decode),
        )

    def _messages(self) -> Iterator[bytes]:
        for request_id, search in enumerate(self._searches, start=1):
            self._decode[request_id] = search.decode
            request = StreamRequest(
                request_id=request_id, search=search.payload, timeout_ms=timeout_ms(self._timeout_s)
            )
            yield encode_search_stream_request(request)
        self._all_sent = True

    def hits(self) -> Iterator[Hits]:
        """Yield the hits of each batch, in order; raise the first error."""
        early: dict[int, StreamAnswer] = {}
        following = 1
        with closing(self._stream.answers(self._silence)) as answers:
            for payload in answers:
                answer = decode_search_stream_response(payload)
                early[answer.request_id] = answer
                while following in early:
                    hits = self._decode.pop(following)(_response_of(early.pop(following)))
                    following += 1
                    self._taken = False  # the caller may take any time
                    yield hits
                    self._stream.heard()
                    self._taken = True
                    self._stream.release()
        if self._decode or not self._all_sent:
            raise ShardUnavailable("the server ended the stream before it answered all batches")

    def _silence(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer for {self._timeout_s:g} s")


class SearchStream:
    """Concurrent searches of an AsyncClient on one stream. Use it as an async context manager.

    The first search opens the stream, and the next search after a break reopens it. Searches that a
    broken stream left unanswered are sent again as separate calls. At most `in_flight` searches are
    in flight; further searches wait. A search takes at most `timeout_s`, unless it states another.

    `AsyncClient.search_stream` creates it: `open_channel` returns the channel of the running event
    loop, and `ask` sends a search as a separate call. With `repeats`, a search that failed with a
    retryable error is sent again as a separate call.
    """

    def __init__(
        self,
        open_channel: Callable[[], grpc.aio.Channel],
        ask: Callable[[UnaryCall[Hits]], Awaitable[Hits]],
        *,
        in_flight: int,
        timeout_s: float,
        repeats: bool = False,
    ) -> None:
        self._repeats = repeats
        self._open_channel = open_channel
        self._ask = ask
        self._places = asyncio.Semaphore(_checked_in_flight(in_flight))
        self._timeout_s = timeout_s
        self._link: Link | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._link is not None:
            await self._link.close()

    async def search(
        self,
        name: str,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        timeout_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> Hits:
        """Find the k best rows for each query; see `Client.search`."""
        search = calls.search(name, queries, k, **options)
        within_s = self._timeout_s if timeout_s is None else seconds_of(timeout_s)
        deadline = time.monotonic() + within_s
        try:
            async with asyncio.timeout(within_s):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded(
                f"no place on the stream was free within {within_s:g} s"
            ) from None
        try:
            answer = await self._current_link().ask(search.payload, deadline=deadline)
            return search.decode(_response_of(answer))
        except (LinkBroken, LinkBusy):
            pass
        except VectorShardError as error:
            if not (self._repeats and error.retryable):
                raise
        finally:
            self._places.release()
        return await self._ask(replace(search, timeout_s=max(0.0, deadline - time.monotonic())))

    def _current_link(self) -> Link:
        if self._link is None or self._link.broken:
            self._link = open_link(self._open_channel(), "the server")
        return self._link


def _checked_in_flight(in_flight: int) -> int:
    in_flight = uint32_of(in_flight, WINDOW_REQUESTS, "in_flight", InvalidParameter)
    if not 1 <= in_flight <= WINDOW_REQUESTS:
        raise InvalidParameter(f"{in_flight:,} is not in 1..{WINDOW_REQUESTS:,}", field="in_flight")
    return in_flight


def _response_of(answer: StreamAnswer) -> bytes:
    """Return the bytes of a SearchResponse; raise the error if the search failed."""
    if answer.response is None:
        _, error = read_status(answer.error)
        raise error
    return answer.response
