"""What the clients send over streams: uploads, and searches of which many are in flight.

A stream of the sync stack is paced: a window bounds how far its messages run ahead of its answers,
and a watch ends it when the server is silent for too long. AsyncClient's searches share a link
(client.link), as a router's do.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import closing
from types import TracebackType
from typing import Final, Self, Unpack

import grpc
import numpy.typing as npt

from vectorshard.client import calls
from vectorshard.client.calls import Hits, SearchOptions, UnaryCall
from vectorshard.client.link import (
    WINDOW_REQUESTS,
    Link,
    LinkBroken,
    LinkBusy,
    open_link,
    timeout_ms,
)
from vectorshard.client.upload import Upload
from vectorshard.shard import wire
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.server.status import error_from_rpc, read_status
from vectorshard.shard.wire.rpcs import path_of

UPLOAD_WINDOW: Final = 4
"""Messages of an upload without an acknowledgement yet: fewer leave the line idle while the server
commits, more only fill memory."""


def error_of(error: grpc.RpcError) -> VectorShardError:
    """Return the error of a call that failed."""
    has_code = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    if has_code and error.code() is grpc.StatusCode.CANCELLED:
        return ShardUnavailable("the call was cancelled: the client or the server is closing")
    return error_from_rpc(error)


class _Watch:
    """Cancels a stream that is silent for too long. Owns a thread while it is entered.

    `is_due` says whether an answer is waited for at all.
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
        self._thread = threading.Thread(target=self._wait, name="stream-watch", daemon=True)

    def _wait(self) -> None:
        while self._heard.wait(self._timeout_s) or not self._is_due():
            self._heard.clear()
            if self._over:
                return
        self.expired = True
        self._cancel()

    def heard(self) -> None:
        """Start to count anew."""
        self._heard.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._heard.set()
        self._thread.join()


class _PacedStream:
    """Sends messages over a stream, and starts at once. Blocks the thread that reads the answers.

    Parameters
    ----------
    channel, rpc
        Where to, and the method's name.
    messages
        What to send. They are made in a thread of grpc's, each when it may be sent.
    window
        How many may be sent before `release` is called.
    timeout_s
        How long the server may be silent.
    is_due
        Whether anything is to be heard from it.
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
        self._watch = _Watch(timeout_s, self.cancel, is_due)
        self._stream = send(self._sent())

    def _sent(self) -> Iterator[bytes]:
        # What is raised here would be swallowed by grpc.
        try:
            while True:
                self._window.acquire()
                message = None if self._over.is_set() else next(self._messages, None)
                if message is None:
                    return
                self._watch.heard()
                yield message
        except Exception as error:
            self._unsendable.append(error)

    def release(self) -> None:
        """Let one more message be sent."""
        self._window.release()

    def heard(self) -> None:
        """Wait for the server anew: this side was busy."""
        self._watch.heard()

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._over.set()
        self._window.release()
        self._stream.cancel()

    def answers(self, silence: Callable[[], DeadlineExceeded]) -> Generator[bytes, None, None]:
        """Yield the answers; raise what ends the stream, `silence()` if that is the watch.

        When the messages could not be made, that is raised after the last answer.
        """
        try:
            with self._watch:
                for answer in self._stream:
                    self._watch.heard()
                    yield answer
        except grpc.RpcError as error:
            if self._watch.expired:
                raise silence() from error
            raise error_of(error) from error
        finally:
            self.cancel()
        if self._unsendable:
            raise self._unsendable[0]


class UploadStream:
    """Sends an upload over UpsertStream, and starts at once. Blocks the thread that calls `run`.

    AsyncClient uses it too, in a thread: building messages of megabytes would hold up its loop, and
    a write of grpc.aio that fails because the server has ended the stream replaces the server's
    status by INTERNAL (grpc/grpc#36066).
    """

    def __init__(self, channel: grpc.Channel, upload: Upload, timeout_s: float) -> None:
        self._upload = upload
        self._timeout_s = timeout_s
        self._stream = _PacedStream(
            channel,
            "UpsertStream",
            (upload.message(number) for number in range(upload.messages)),
            window=UPLOAD_WINDOW,
            timeout_s=timeout_s,
            is_due=lambda: True,
        )

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._stream.cancel()

    def run(self) -> None:
        """Return when the whole upload is acknowledged; raise what kept it from being so."""
        with closing(self._stream.answers(self._silence)) as answers:
            for answer in answers:
                self._upload.acknowledge(answer)
                self._stream.release()
        if not self._upload.complete:
            raise ShardUnavailable("the server ended the stream before it acknowledged all of it")

    def _silence(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no acknowledgement for {self._timeout_s:g} s; "
            f"{self._upload.rows_acknowledged:,} of {self._upload.rows:,} rows are acknowledged"
        )


class SearchBatches:
    """Searches batch after batch over SearchStream, several of them in flight.

    Parameters
    ----------
    channel
        Where to.
    searches
        The batches, made one at a time in another thread.
    in_flight
        How many batches are sent before their hits are taken.
    timeout_s
        How long one may take.
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
            "SearchStream",
            self._messages(),
            window=_checked_in_flight(in_flight),
            timeout_s=timeout_s,
            is_due=lambda: self._taken and bool(self._decode),
        )

    def _messages(self) -> Iterator[bytes]:
        for request_id, search in enumerate(self._searches, start=1):
            self._decode[request_id] = search.decode
            request = wire.StreamRequest(
                request_id=request_id,
                search=search.payload,
                timeout_ms=timeout_ms(self._timeout_s),
            )
            yield wire.encode_search_stream_request(request)
        self._all_sent = True

    def hits(self) -> Iterator[Hits]:
        """Yield the hits of each batch, in their order; raise the first error."""
        early: dict[int, wire.StreamAnswer] = {}
        following = 1
        with closing(self._stream.answers(self._silence)) as answers:
            for payload in answers:
                answer = wire.decode_search_stream_response(payload)
                early[answer.request_id] = answer
                while following in early:
                    hits = self._decode.pop(following)(_response_of(early.pop(following)))
                    following += 1
                    self._taken = False  # until the caller comes back, the server has no say
                    yield hits
                    self._stream.heard()
                    self._taken = True
                    self._stream.release()
        if self._decode or not self._all_sent:
            raise ShardUnavailable("the server ended the stream before it answered all of it")

    def _silence(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"no answer for {self._timeout_s:g} s")


class SearchStream:
    """Searches of an AsyncClient that share one stream. Use it as a context manager.

    The stream is opened when it is needed, and anew when it has broken; what it has left without an
    answer is asked once more by a call of its own.

    Parameters
    ----------
    channel
        Where to.
    ask
        Asks by a call of its own, within so many seconds.
    in_flight
        How many searches are sent before one has been answered; others wait.
    timeout_s
        How long one may take, if it does not say itself.
    repeats
        Whether one that is refused for a moment is asked again, by a call of its own.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        ask: Callable[[UnaryCall[Hits], float], Awaitable[Hits]],
        *,
        in_flight: int,
        timeout_s: float,
        repeats: bool = False,
    ) -> None:
        self._repeats = repeats
        self._channel = channel
        self._ask = ask
        self._places = asyncio.Semaphore(_checked_in_flight(in_flight))
        self._timeout_s = timeout_s
        self._link: Link | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
        within_s = self._timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + within_s
        try:
            async with asyncio.timeout(within_s):
                await self._places.acquire()
        except TimeoutError:
            raise DeadlineExceeded("all places of the stream were taken") from None
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
        return await self._ask(search, max(0.0, deadline - time.monotonic()))

    def _current_link(self) -> Link:
        if self._link is None or self._link.broken:
            self._link = open_link(self._channel, "the server")
        return self._link


def _checked_in_flight(in_flight: int) -> int:
    if not 1 <= in_flight <= WINDOW_REQUESTS:
        raise InvalidParameter(f"{in_flight} is not in 1..{WINDOW_REQUESTS}", field="in_flight")
    return in_flight


def _response_of(answer: wire.StreamAnswer) -> bytes:
    """Return the bytes of a SearchResponse; raise the error that it is instead."""
    if answer.response is None:
        _, error = read_status(answer.error)
        raise error
    return answer.response
