"""The clients: `Client` and, for asyncio, `AsyncClient`. Numpy in, numpy out, one tree of errors.

    with Client("127.0.0.1:7700") as client:
        client.create_collection("words", dim=100)
        client.upsert("words", [1, 2], np.eye(2, 100))
        for hits in client.search("words", np.eye(2, 100), k=1):
            print(hits[0].id, hits[0].score)

A shard, a router and an embedded server are asked alike. What is asked and how an answer reads is
in router.calls and router.upload; the two clients only send it. Every failure is raised as a class
of shard.errors, whether it was noticed here, by the network or by the server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import grpc
import numpy.typing as npt

from router import calls
from router.calls import SERVICE, AnswerT, Hit, Hits, RowsView, ServerInfo, UnaryCall
from router.upload import Progress, Upload, UpsertSummary
from shard.config import Limits
from shard.errors import DeadlineExceeded, ShardUnavailable, VectorShardError
from shard.status import error_from_rpc
from shard.types import (
    CollectionConfig,
    CollectionDescription,
    Cursor,
    Explanation,
    FilterField,
    IdArray,
    IdType,
    IndexConfig,
    Metric,
    ShardDescription,
    Token,
    WriteMode,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Hit",
    "Hits",
    "RowsView",
    "ServerInfo",
    "UpsertSummary",
]

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
)
"""The contract's limit on messages, either way; grpc's own default is 4 MiB for answers."""

UPLOAD_WINDOW: Final = 4
"""Messages of an upload without an acknowledgement yet: fewer leave the line idle while the server
commits, more only fill memory."""

SMALL_UPSERT_ROWS: Final = 1_000
"""Up to here an upsert does not ask for the server's limits first."""

Ids = Sequence[int] | Sequence[str] | IdArray
Metadata = Sequence[Mapping[str, Any] | None]


def _error_of(error: grpc.RpcError) -> VectorShardError:
    """Return the error of a call that failed."""
    has_code = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
    if has_code and error.code() is grpc.StatusCode.CANCELLED:
        return ShardUnavailable("the call was cancelled: the client or the server is closing")
    return error_from_rpc(error)


class _Watch:
    """Cancels a stream that is silent for too long. Owns a thread while it is entered."""

    def __init__(self, timeout_s: float, cancel: Callable[[], object]) -> None:
        self._timeout_s = timeout_s
        self._cancel = cancel
        self._heard = threading.Event()
        self._over = False
        self.expired = False
        self._thread = threading.Thread(target=self._wait, name="upload-watch", daemon=True)

    def _wait(self) -> None:
        while self._heard.wait(self._timeout_s):
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


class _UploadStream:
    """Sends an upload over UpsertStream, and starts at once. Blocks the thread that calls `run`.

    AsyncClient uses it too, in a thread: building messages of megabytes would hold up its loop, and
    a write of grpc.aio that fails because the server has ended the stream replaces the server's
    status by INTERNAL (grpc/grpc#36066).
    """

    def __init__(self, channel: grpc.Channel, upload: Upload, timeout_s: float) -> None:
        self._upload = upload
        self._timeout_s = timeout_s
        self._window = threading.Semaphore(UPLOAD_WINDOW)
        self._over = threading.Event()
        self._unsendable: list[Exception] = []
        rpc: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            SERVICE + "UpsertStream"
        )
        self._stream = rpc(self._messages())

    def _messages(self) -> Iterator[bytes]:
        # Runs in a thread of grpc's, which would swallow what is raised.
        try:
            for number in range(self._upload.messages):
                self._window.acquire()
                if self._over.is_set():
                    return
                yield self._upload.message(number)
        except Exception as error:
            self._unsendable.append(error)

    def cancel(self) -> None:
        """End the stream, from any thread."""
        self._over.set()
        self._window.release()
        self._stream.cancel()

    def run(self) -> None:
        """Return when the whole upload is acknowledged; raise what kept it from being so."""
        watch = _Watch(self._timeout_s, self._stream.cancel)
        try:
            with watch:
                for answer in self._stream:
                    self._upload.acknowledge(answer)
                    watch.heard()
                    self._window.release()
        except grpc.RpcError as error:
            if watch.expired:
                raise self._silence() from error
            raise _error_of(error) from error
        finally:
            self.cancel()
        if self._unsendable:
            raise self._unsendable[0]
        if not self._upload.complete:
            raise ShardUnavailable("the server ended the stream before it acknowledged all of it")

    def _silence(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"no acknowledgement for {self._timeout_s:g} s; "
            f"{self._upload.rows_acknowledged:,} of {self._upload.rows:,} rows are acknowledged"
        )


class Client:
    """Asks a server, one call at a time; may be shared between threads.

    Parameters
    ----------
    target
        HOST:PORT, or any gRPC name. Nothing is connected before the first call.
    timeout_s
        Longest that a call may take, and that an upload may wait for an acknowledgement.

    Notes
    -----
    Beside what its docstring says, every method may raise

    - CollectionNotFound, where it names a collection;
    - ShardUnavailable, when the server or a shard is missing, and Overloaded: worth repeating;
    - DeadlineExceeded after `timeout_s`, and InternalError for the server's own faults.
    """

    def __init__(self, target: str, *, timeout_s: float = 30.0) -> None:
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._timeout_s = timeout_s
        self._limits: Limits | None = None
        self._rpcs: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Disconnect. Calls that still run end with ShardUnavailable."""
        self._channel.close()

    def wait_until_ready(self, timeout_s: float = 10.0) -> None:
        """Return when the server can be reached.

        Raises
        ------
        ShardUnavailable
            If it cannot within `timeout_s`.
        """
        ready = grpc.channel_ready_future(self._channel)
        try:
            ready.result(timeout_s)
        except grpc.FutureTimeoutError:
            ready.cancel()
            raise ShardUnavailable(f"the server was not reached in {timeout_s:g} s") from None

    def _ask(self, call: UnaryCall[AnswerT], timeout_s: float | None = None) -> AnswerT:
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = self._channel.unary_unary(SERVICE + call.rpc)
        try:
            answer = rpc(call.payload, timeout=self._timeout_s if timeout_s is None else timeout_s)
        except grpc.RpcError as error:
            raise _error_of(error) from error
        return call.decode(answer)

    def server_info(self) -> ServerInfo:
        """Return the server's version, topology and limits."""
        return self._ask(calls.server_info())

    def create_collection(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric | str = Metric.COSINE,
        id_type: IdType | str = IdType.INT64,
        index: IndexConfig | None = None,
        target_recall: float | None = None,
        filter_fields: Sequence[FilterField] = (),
    ) -> CollectionConfig:
        """Create a collection, or find it there, and return its resolved configuration.

        None leaves a part to the server's defaults.

        Raises
        ------
        InvalidConfig
            For a collection that cannot be.
        CollectionExists
            If the name is taken by another configuration.
        """
        return self._ask(
            calls.create_collection(
                name,
                dim=dim,
                metric=metric,
                id_type=id_type,
                index=index,
                target_recall=target_recall,
                filter_fields=filter_fields,
            )
        )

    def drop_collection(self, name: str) -> None:
        """Drop a collection with all its rows."""
        self._ask(calls.drop_collection(name))

    def list_collections(self) -> list[CollectionConfig]:
        """Return the collections by name."""
        return self._ask(calls.list_collections())

    def describe(self, name: str) -> CollectionDescription:
        """Describe a collection. The incarnation is not told to clients, and empty."""
        return self._ask(calls.describe(name))

    def train(
        self, name: str, wait: bool = False, *, timeout_s: float | None = None
    ) -> Sequence[ShardDescription]:
        """Train a new index on every shard; `wait` returns when it is done."""
        return self._ask(calls.train(name, wait), timeout_s)

    def upsert(
        self,
        name: str,
        ids: Ids,
        vectors: npt.ArrayLike,
        metadata: Metadata | None = None,
        *,
        mode: WriteMode | str = WriteMode.UPSERT,
        progress: Progress | None = None,
    ) -> UpsertSummary:
        """Write any number of rows; when it returns they are durable and searchable.

        Many rows travel as a stream of messages. When it fails midway, `error.acknowledged_rows`
        tells how many of the first rows are written; of those after it some may be.

        Parameters
        ----------
        ids
            (rows,), each once: integers of 64 bits, or strings.
        vectors
            (rows, dim), real numbers. float16 travels as such, everything else as float32.
        metadata
            None, or a mapping (or None) for each row.
        mode
            What to do with an id that exists: "upsert" replaces it; "insert" reports it among the
            summary's errors, unless its content is the same.
        progress
            Called with (rows acknowledged, rows) after every message.

        Raises
        ------
        InvalidRequest
            For rows that the collection cannot take: see its subclasses.
        """
        limits = self._upload_limits(len(ids))
        upload = Upload(name, ids, vectors, metadata, mode=mode, limits=limits, progress=progress)
        try:
            if upload.messages == 1:
                self._ask(UnaryCall("Upsert", upload.message(0), upload.acknowledge))
            else:
                _UploadStream(self._channel, upload, self._timeout_s).run()
        except VectorShardError as error:
            raise upload.ended_by(error) from error.__cause__
        return upload.summary()

    def _upload_limits(self, rows: int) -> Limits:
        if self._limits is None and rows > SMALL_UPSERT_ROWS:
            self._limits = self.server_info().limits
        return self._limits or Limits()

    def delete(self, name: str, ids: Ids) -> int:
        """Delete ids, each once; return how many were there.

        Raises
        ------
        InvalidId
            For an id that cannot be, or that comes twice.
        """
        return self._ask(calls.delete(name, ids))

    def get(self, name: str, ids: Ids, *, vectors: bool = True, metadata: bool = True) -> RowsView:
        """Return the rows of the ids that exist, in the order asked; others are left out.

        Raises
        ------
        InvalidId
            For an id that cannot be, or that comes twice.
        LimitExceeded
            If the answer does not fit into one message: ask for fewer ids.
        """
        return self._ask(calls.get(name, ids, vectors=vectors, metadata=metadata))

    def count(self, name: str, ids: Ids | None = None) -> int:
        """Count all live rows, or those of `ids`."""
        return self._ask(calls.count(name, ids))

    def list_rows(
        self,
        name: str,
        *,
        page_size: int = 1_000,
        vectors: bool = False,
        metadata: bool = False,
    ) -> Iterator[RowsView]:
        """Yield all live rows in pages of at most `page_size`.

        A row that lives throughout comes at least once; one that is written meanwhile may come
        again.
        """
        cursor: Cursor | None = None
        while True:
            page, cursor = self._ask(
                calls.list_page(
                    name, page_size=page_size, cursor=cursor, vectors=vectors, metadata=metadata
                )
            )
            if len(page):
                yield page
            if cursor is None:
                return

    def search(
        self,
        name: str,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        exact: bool = False,
        nprobe: int | None = None,
        target_recall: float | None = None,
        vectors: bool = False,
        metadata: bool = False,
        score_threshold: float | None = None,
        min_coverage: float | None = None,
        token: Token | None = None,
        timeout_s: float | None = None,
    ) -> Hits:
        """Find the k best rows for each query.

        Parameters
        ----------
        queries
            (queries, dim), or (dim,) for one.
        exact, nprobe, target_recall
            At most one: score every row; probe so many lists on each shard; aim at this recall.
            None of them aims at the collection's target recall.
        vectors, metadata
            Bring them along with every hit.
        score_threshold
            Only hits at least this good: score <= threshold under L2, >= otherwise.
        min_coverage
            The fraction of the collection that must answer; None means all of it.
        token
            An UpsertSummary's: see at least that write.
        timeout_s
            Instead of the client's.

        Raises
        ------
        InvalidRequest
            For queries or parameters that cannot be: see its subclasses.
        ShardUnavailable
            If fewer shards answered than `min_coverage` asks for.
        """
        call = calls.search(
            name,
            queries,
            k,
            exact=exact,
            nprobe=nprobe,
            target_recall=target_recall,
            vectors=vectors,
            metadata=metadata,
            score_threshold=score_threshold,
            min_coverage=min_coverage,
            token=token,
        )
        return self._ask(call, timeout_s)

    def explain(self, name: str, query: npt.ArrayLike, id_: int | str) -> Explanation:
        """Say where an id is, how it ranks for a query, and what a search must do to find it.

        An id that does not exist is an answer, not an error.

        Parameters
        ----------
        query
            (dim,) or (1, dim).

        Raises
        ------
        InvalidRequest
            For a query or an id that cannot be: see its subclasses.
        ShardUnavailable
            If a shard is missing: the rank would be wrong.
        """
        return self._ask(calls.explain(name, query, id_))


def _in_loop(loop: asyncio.AbstractEventLoop, progress: Progress) -> Progress:
    """Return `progress` so that it runs in this thread, the loop's, whichever thread calls."""
    loop_thread = threading.get_ident()

    async def tell(done: int, total: int) -> None:
        progress(done, total)

    def told(done: int, total: int) -> None:
        if threading.get_ident() == loop_thread:
            progress(done, total)
        else:
            asyncio.run_coroutine_threadsafe(tell(done, total), loop).result()

    return told


class AsyncClient:
    """`Client` for asyncio: the same methods, awaited. Made and used within one event loop.

    Parameters
    ----------
    target
        HOST:PORT, or any gRPC name. Nothing is connected before the first call.
    timeout_s
        Longest that a call may take, and that an upload may wait for an acknowledgement.
    """

    def __init__(self, target: str, *, timeout_s: float = 30.0) -> None:
        self._target = target
        self._channel = grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._upload_channel: grpc.Channel | None = None
        self._timeout_s = timeout_s
        self._limits: Limits | None = None
        self._rpcs: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Disconnect. Calls that still run are cancelled."""
        await self._channel.close()
        if self._upload_channel is not None:
            self._upload_channel.close()

    async def wait_until_ready(self, timeout_s: float = 10.0) -> None:
        """See `Client.wait_until_ready`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._channel.channel_ready()
        except TimeoutError:
            raise ShardUnavailable(f"the server was not reached in {timeout_s:g} s") from None

    async def _ask(self, call: UnaryCall[AnswerT], timeout_s: float | None = None) -> AnswerT:
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = self._channel.unary_unary(SERVICE + call.rpc)
        try:
            answer = await rpc(
                call.payload, timeout=self._timeout_s if timeout_s is None else timeout_s
            )
        except grpc.RpcError as error:
            raise _error_of(error) from error
        return call.decode(answer)

    async def server_info(self) -> ServerInfo:
        """See `Client.server_info`."""
        return await self._ask(calls.server_info())

    async def create_collection(
        self,
        name: str,
        *,
        dim: int,
        metric: Metric | str = Metric.COSINE,
        id_type: IdType | str = IdType.INT64,
        index: IndexConfig | None = None,
        target_recall: float | None = None,
        filter_fields: Sequence[FilterField] = (),
    ) -> CollectionConfig:
        """See `Client.create_collection`."""
        return await self._ask(
            calls.create_collection(
                name,
                dim=dim,
                metric=metric,
                id_type=id_type,
                index=index,
                target_recall=target_recall,
                filter_fields=filter_fields,
            )
        )

    async def drop_collection(self, name: str) -> None:
        """See `Client.drop_collection`."""
        await self._ask(calls.drop_collection(name))

    async def list_collections(self) -> list[CollectionConfig]:
        """See `Client.list_collections`."""
        return await self._ask(calls.list_collections())

    async def describe(self, name: str) -> CollectionDescription:
        """See `Client.describe`."""
        return await self._ask(calls.describe(name))

    async def train(
        self, name: str, wait: bool = False, *, timeout_s: float | None = None
    ) -> Sequence[ShardDescription]:
        """See `Client.train`."""
        return await self._ask(calls.train(name, wait), timeout_s)

    async def upsert(
        self,
        name: str,
        ids: Ids,
        vectors: npt.ArrayLike,
        metadata: Metadata | None = None,
        *,
        mode: WriteMode | str = WriteMode.UPSERT,
        progress: Progress | None = None,
    ) -> UpsertSummary:
        """See `Client.upsert`."""
        limits = await self._upload_limits(len(ids))
        told = None if progress is None else _in_loop(asyncio.get_running_loop(), progress)
        upload = Upload(name, ids, vectors, metadata, mode=mode, limits=limits, progress=told)
        try:
            if upload.messages == 1:
                await self._ask(UnaryCall("Upsert", upload.message(0), upload.acknowledge))
            else:
                await self._stream(upload)
        except VectorShardError as error:
            raise upload.ended_by(error) from error.__cause__
        return upload.summary()

    async def _upload_limits(self, rows: int) -> Limits:
        if self._limits is None and rows > SMALL_UPSERT_ROWS:
            self._limits = (await self.server_info()).limits
        return self._limits or Limits()

    async def _stream(self, upload: Upload) -> None:
        """Send an upload from a thread, over a connection of its own."""
        if self._upload_channel is None:
            self._upload_channel = grpc.insecure_channel(self._target, options=CHANNEL_OPTIONS)
        stream = _UploadStream(self._upload_channel, upload, self._timeout_s)
        running = asyncio.ensure_future(asyncio.to_thread(stream.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stream.cancel()
            await asyncio.wait({running})
            running.exception()  # looked at, so that asyncio does not report it
            raise

    async def delete(self, name: str, ids: Ids) -> int:
        """See `Client.delete`."""
        return await self._ask(calls.delete(name, ids))

    async def get(
        self, name: str, ids: Ids, *, vectors: bool = True, metadata: bool = True
    ) -> RowsView:
        """See `Client.get`."""
        return await self._ask(calls.get(name, ids, vectors=vectors, metadata=metadata))

    async def count(self, name: str, ids: Ids | None = None) -> int:
        """See `Client.count`."""
        return await self._ask(calls.count(name, ids))

    async def list_rows(
        self,
        name: str,
        *,
        page_size: int = 1_000,
        vectors: bool = False,
        metadata: bool = False,
    ) -> AsyncIterator[RowsView]:
        """See `Client.list_rows`."""
        cursor: Cursor | None = None
        while True:
            page, cursor = await self._ask(
                calls.list_page(
                    name, page_size=page_size, cursor=cursor, vectors=vectors, metadata=metadata
                )
            )
            if len(page):
                yield page
            if cursor is None:
                return

    async def search(
        self,
        name: str,
        queries: npt.ArrayLike,
        k: int = 10,
        *,
        exact: bool = False,
        nprobe: int | None = None,
        target_recall: float | None = None,
        vectors: bool = False,
        metadata: bool = False,
        score_threshold: float | None = None,
        min_coverage: float | None = None,
        token: Token | None = None,
        timeout_s: float | None = None,
    ) -> Hits:
        """See `Client.search`."""
        call = calls.search(
            name,
            queries,
            k,
            exact=exact,
            nprobe=nprobe,
            target_recall=target_recall,
            vectors=vectors,
            metadata=metadata,
            score_threshold=score_threshold,
            min_coverage=min_coverage,
            token=token,
        )
        return await self._ask(call, timeout_s)

    async def explain(self, name: str, query: npt.ArrayLike, id_: int | str) -> Explanation:
        """See `Client.explain`."""
        return await self._ask(calls.explain(name, query, id_))
