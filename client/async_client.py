"""The client for asyncio: the methods of client.calls, awaited."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

import grpc

from vectorshard.client import calls
from vectorshard.client.lazy import parts
from vectorshard.client.methods import answer_of, method_of
from vectorshard.shard.errors import (
    ClientUnusable,
    InvalidParameter,
    ShardUnavailable,
    VectorShardError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from vectorshard.client.calls import AnswerT, Listing, UnaryCall
    from vectorshard.client.results import RowsView, UpsertSummary
    from vectorshard.client.retry import Retry
    from vectorshard.client.streams import SearchStream
    from vectorshard.client.upload import Progress, UpsertUpload
    from vectorshard.shard.config import Limits

P = ParamSpec("P")
T = TypeVar("T")
Awaited = Coroutine[Any, Any, T]


def _unary(
    build: Callable[P, UnaryCall[AnswerT]],
) -> Callable[Concatenate[AsyncClient, P], Awaited[AnswerT]]:
    """Return the method of AsyncClient that sends one call."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> AnswerT:
        return await self._ask(build(*args, **kwargs))

    return method_of("AsyncClient", build, answer_of(build), method)


def _listing(
    build: Callable[P, Listing],
) -> Callable[Concatenate[AsyncClient, P], AsyncIterator[RowsView]]:
    """Return the method of AsyncClient that yields one page after another."""

    async def method(
        self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncIterator[RowsView]:
        listing = build(*args, **kwargs)
        while (call := listing.next_call()) is not None:
            if not (page := await self._ask(call)).is_empty:
                yield page

    return method_of("AsyncClient", build, "AsyncIterator[RowsView]", method)


def _upload(
    build: Callable[P, UpsertUpload],
) -> Callable[Concatenate[AsyncClient, P], Awaited[UpsertSummary]]:
    """Return the method of AsyncClient that sends an upload."""

    async def method(self: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> UpsertSummary:
        return await self._send(build(*args, **kwargs))

    return method_of("AsyncClient", build, "UpsertSummary", method)


class AsyncClient:
    """`Client` for asyncio: the same parameters and methods, awaited.

    It may be created outside an event loop, such as at module level. It connects with the first
    call, and belongs to the loop of that call: while that loop is open, a call from another loop
    raises ClientUnusable. When that loop is closed, as after `asyncio.run`, the next call connects
    again, in its own loop.
    """

    def __init__(
        self, target: str, *, timeout_s: float = 30.0, retry: Retry | str = "none"
    ) -> None:
        self._target = parts.checked_target(target)
        self._retry = parts.member_of(parts.Retry, retry, "retry", InvalidParameter)
        self._timeout_s = parts.seconds_of(timeout_s)
        self._limits: Limits | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._upload_channel: grpc.Channel | None = None
        self._rpcs: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._target!r})"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle what it connects to: in another process, it connects for itself."""
        return AsyncClient._connected, (self._target, self._timeout_s, str(self._retry))

    @staticmethod
    def _connected(target: str, timeout_s: float, retry: str) -> AsyncClient:
        return AsyncClient(target, timeout_s=timeout_s, retry=retry)

    @property
    def target(self) -> str:
        """What it connects to."""
        return self._target

    server_info = _unary(calls.server_info)
    create_collection = _unary(calls.create_collection)
    drop_collection = _unary(calls.drop_collection)
    update_collection = _unary(calls.update_collection)
    list_collections = _unary(calls.list_collections)
    describe = _unary(calls.describe)
    train = _unary(calls.train)
    upsert = _upload(calls.upsert)
    delete = _unary(calls.delete)
    get = _unary(calls.get)
    count = _unary(calls.count)
    list_rows = _listing(calls.list_rows)
    search = _unary(calls.search)
    explain = _unary(calls.explain)

    def search_stream(self, *, in_flight: int = 64) -> SearchStream:
        """Return a stream for many concurrent searches: less work for the server than calls.

            async with client.search_stream() as stream:
                hits = await asyncio.gather(*(stream.search("words", each) for each in queries))

        Parameters
        ----------
        in_flight
            The largest number of searches in flight, 1 to 64; further searches wait.
        """
        return parts.SearchStream(
            self._open,
            self._ask,
            in_flight=in_flight,
            timeout_s=self._timeout_s,
            repeats=self._retry.covers(parts.rpcs.SEARCH.name),
        )

    async def wait_until_ready(self, timeout_s: float = 10.0) -> None:
        """Return when the server is reachable.

        Raises
        ------
        ShardUnavailable
            If it is not reachable within `timeout_s`.
        """
        try:
            async with asyncio.timeout(parts.seconds_of(timeout_s)):
                await self._open().channel_ready()
        except TimeoutError:
            raise ShardUnavailable(f"the server was not reached in {timeout_s:g} s") from None

    async def close(self) -> None:
        """Disconnect. Calls in progress are cancelled; later calls raise ClientUnusable."""
        channel = None if self._channel is None or self._is_left() else self._open()
        self._closed, self._channel = True, None
        if channel is not None:
            await channel.close()
        if self._upload_channel is not None:
            self._upload_channel.close()

    async def __aenter__(self) -> Self:
        if self._closed:
            raise ClientUnusable(parts.CLOSED)
        return self

    async def __aexit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            await self.close()
        except (
            ClientUnusable
        ):  # of a client of another loop: the error of the block counts for more
            if error is None:
                raise

    def _open(self) -> grpc.aio.Channel:
        """Return the channel of the running loop; open it with the first call in a loop."""
        if self._closed:
            raise ClientUnusable(parts.CLOSED)
        parts.check_forked()
        loop = asyncio.get_running_loop()
        if self._channel is None or self._is_left():
            parts.note_asyncio()
            self._channel = grpc.aio.insecure_channel(self._target, options=parts.client_options())
            parts.keep_in_children(self._channel)
            self._loop, self._rpcs = loop, {}
        elif loop is not self._loop:
            raise ClientUnusable(
                "the client belongs to another event loop, which is still open; "
                "create one AsyncClient for each loop"
            )
        return self._channel

    def _is_left(self) -> bool:
        """Whether the loop of the channel is closed: then its channel is of no use."""
        return self._loop is not None and self._loop.is_closed()

    async def _ask(self, call: UnaryCall[AnswerT]) -> AnswerT:
        within_s = self._timeout_s if call.timeout_s is None else call.timeout_s
        return await self._repeated(call.rpc, partial(self._ask_once, call), within_s)

    async def _repeated(
        self, rpc: str, ask: Callable[[float], Awaitable[T]], timeout_s: float
    ) -> T:
        """See `Client._repeated`."""
        if not self._retry.covers(rpc):
            return await ask(timeout_s)
        from tenacity import AsyncRetrying  # as there

        schedule = parts.RetrySchedule(timeout_s)

        async def attempt() -> T:
            return await ask(schedule.left_s)

        return await AsyncRetrying(**schedule.options())(attempt)

    async def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        channel = self._open()
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = channel.unary_unary(parts.rpcs.path_of(call.rpc))
        try:
            answer = await rpc(call.payload, timeout=timeout_s)
        except grpc.RpcError as error:
            raise call.explained(parts.error_of(error), timeout_s) from error
        return call.decode(answer)

    async def _send(self, upload: UpsertUpload) -> UpsertSummary:
        if self._limits is None and not upload.is_small:
            self._limits = (await self.server_info()).limits
        if upload.progress is not None:
            upload.progress = _in_loop(asyncio.get_running_loop(), upload.progress)
        upload.cut(self._limits or parts.Limits())
        if upload.messages == 1:
            return await self._repeated(
                parts.rpcs.UPSERT.name, partial(self._write, upload), self._timeout_s
            )
        return await self._write(upload, self._timeout_s)

    async def _write(self, upload: UpsertUpload, timeout_s: float) -> UpsertSummary:
        upload.begin()
        try:
            if upload.messages == 1:
                call = calls.UnaryCall(
                    parts.rpcs.UPSERT.name, upload.message(0), upload.acknowledge
                )
                await self._ask_once(call, timeout_s)
            else:
                await self._stream(upload)
        except VectorShardError as error:
            raise upload.ended_by(error) from error.__cause__
        return upload.summary()

    async def _stream(self, upload: UpsertUpload) -> None:
        """Send an upload from a thread, over a separate channel."""
        self._open()  # raises if the client is closed or belongs to another loop
        if self._upload_channel is None:
            self._upload_channel = grpc.insecure_channel(
                self._target, options=parts.client_options()
            )
        stream = parts.UploadStream(self._upload_channel, upload, self._timeout_s)
        running = asyncio.ensure_future(asyncio.to_thread(stream.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stream.cancel()
            await asyncio.wait({running})
            running.exception()  # retrieved, so that asyncio does not report it
            raise


def _in_loop(loop: asyncio.AbstractEventLoop, progress: Progress) -> Progress:
    """Return a function that runs `progress` in this thread, the loop's, whichever thread calls."""
    loop_thread = threading.get_ident()

    async def report(done: int, total: int) -> None:
        progress(done, total)

    def reported(done: int, total: int) -> None:
        if threading.get_ident() == loop_thread:
            progress(done, total)
        else:
            asyncio.run_coroutine_threadsafe(report(done, total), loop).result()

    return reported
