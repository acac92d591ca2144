"""The clients: `Client` and, for asyncio, `AsyncClient`. Numpy in, numpy out, one tree of errors.

    with Client("127.0.0.1:7700") as client:
        client.create_collection("words", dim=100)
        client.upsert("words", [1, 2], np.eye(2, 100))
        for hits in client.search("words", np.eye(2, 100), k=1):
            print(hits[0].id, hits[0].score)

A shard, a router and an embedded server are asked alike. What is asked and how an answer reads is
in client.calls and client.upload; the two clients only send it, and client.streams what goes over
streams. Every failure is raised as a class of shard.errors, whether it was noticed here, by the
network or by the server.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import grpc
import numpy.typing as npt
from tenacity import AsyncRetrying, Retrying

from vectorshard.client import calls
from vectorshard.client.calls import (
    AnswerT,
    FilterLike,
    Hit,
    Hits,
    Ids,
    RowsView,
    SearchOptions,
    ServerInfo,
    UnaryCall,
    filter_of,
)
from vectorshard.client.retry import Patience, Retry
from vectorshard.client.streams import SearchBatches, SearchStream, UploadStream, error_of
from vectorshard.client.upload import Progress, Upload, UpsertSummary
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import ShardUnavailable, VectorShardError
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionDescription,
    Cursor,
    Explanation,
    FilterField,
    IdType,
    IndexConfig,
    Metric,
    ShardDescription,
    Token,
    WriteMode,
)
from vectorshard.shard.wire.rpcs import path_of

__all__ = [
    "AsyncClient",
    "Client",
    "Hit",
    "Hits",
    "Retry",
    "RowsView",
    "ServerInfo",
    "UpsertSummary",
]

CHANNEL_OPTIONS: Final = (
    # The contract's limit, either way; grpc's own default is 4 MiB for answers.
    ("grpc.max_send_message_length", 64 * 1024 * 1024),
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    # Of several addresses all are asked in turn; by default all calls go to the first.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
    # A server that restarts is found again in a second; grpc's defaults grow to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

SMALL_UPSERT_ROWS: Final = 1_000
"""Up to here an upsert does not ask for the server's limits first."""

T = TypeVar("T")

Metadata = Sequence[Mapping[str, Any] | None]


class Client:
    """Asks a server, one call at a time; may be shared between threads.

    Parameters
    ----------
    target
        HOST:PORT, or any gRPC name. Nothing is connected before the first call. A name with several
        addresses, or several as in ``ipv4:10.0.0.1:7700,10.0.0.2:7700``, are routers that are asked
        in turn.
    timeout_s
        Longest that a call may take, and that an upload may wait for an acknowledgement.
    retry
        Which calls are repeated, within `timeout_s`, when a server or a shard is missing or
        overloaded. Uploads of several messages never are.

    Notes
    -----
    Beside what its docstring says, every method may raise

    - CollectionNotFound, where it names a collection;
    - ShardUnavailable, when the server or a shard is missing, and Overloaded: worth repeating;
    - DeadlineExceeded after `timeout_s`, and InternalError for the server's own faults.
    """

    def __init__(
        self, target: str, *, timeout_s: float = 30.0, retry: Retry | str = Retry.NONE
    ) -> None:
        self._channel = grpc.insecure_channel(target, options=CHANNEL_OPTIONS)
        self._timeout_s = timeout_s
        self._retry = Retry(retry)
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
        within_s = self._timeout_s if timeout_s is None else timeout_s
        return self._repeated(call.rpc, partial(self._ask_once, call), within_s)

    def _repeated(self, rpc: str, ask: Callable[[float], T], timeout_s: float) -> T:
        """Ask within so many seconds; ask again if calls of this method are repeated."""
        if not self._retry.covers(rpc):
            return ask(timeout_s)
        patience = Patience(timeout_s)
        return Retrying(**patience.options())(lambda: ask(patience.left_s))

    def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = self._channel.unary_unary(path_of(call.rpc))
        try:
            answer = rpc(call.payload, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of(error) from error
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
        tells how many of the first rows are written; of those after it some may be. Rows whose
        shards are missing do not keep others from being written: `error.unwritten_rows` names them.
        The same rows again are harmless, unless somebody else writes them meanwhile.

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
        ShardUnavailable
            Also when it is only some of the rows that are not written.
        """
        limits = self._upload_limits(len(ids))
        upload = Upload(name, ids, vectors, metadata, mode=mode, limits=limits, progress=progress)
        if upload.messages == 1:
            return self._repeated("Upsert", partial(self._write, upload), self._timeout_s)
        return self._write(upload, self._timeout_s)

    def _write(self, upload: Upload, timeout_s: float) -> UpsertSummary:
        upload.begin()
        try:
            if upload.messages == 1:
                call = UnaryCall("Upsert", upload.message(0), upload.acknowledge)
                self._ask_once(call, timeout_s)
            else:
                UploadStream(self._channel, upload, timeout_s).run()
        except VectorShardError as error:
            raise upload.ended_by(error) from error.__cause__
        return upload.summary()

    def _upload_limits(self, rows: int) -> Limits:
        if self._limits is None and rows > SMALL_UPSERT_ROWS:
            self._limits = self.server_info().limits
        return self._limits or Limits()

    def delete(self, name: str, ids: Ids | None = None, *, filter: FilterLike | None = None) -> int:
        """Delete ids, each once, or what passes a filter; return how many rows were there.

        Raises
        ------
        InvalidId
            For an id that cannot be, or that comes twice.
        InvalidParameter
            For a filter that cannot be, and unless one of `ids` and `filter` is given.
        """
        return self._ask(calls.delete(name, ids, filter))

    def get(
        self,
        name: str,
        ids: Ids | None = None,
        *,
        filter: FilterLike | None = None,
        vectors: bool = True,
        metadata: bool = True,
    ) -> RowsView:
        """Return the rows of the ids that exist, in the order asked; others are left out.

        Or the rows that pass a filter, in no particular order.

        Raises
        ------
        InvalidId
            For an id that cannot be, or that comes twice.
        InvalidParameter
            For a filter that cannot be, and unless one of `ids` and `filter` is given.
        LimitExceeded
            If the answer does not fit into one message: ask for fewer ids, or list the rows.
        """
        return self._ask(calls.get(name, ids, filter, vectors=vectors, metadata=metadata))

    def count(self, name: str, ids: Ids | None = None, *, filter: FilterLike | None = None) -> int:
        """Count the live rows: all, those of `ids`, those that pass a filter, or those of both."""
        return self._ask(calls.count(name, ids, filter))

    def list_rows(
        self,
        name: str,
        *,
        page_size: int = 1_000,
        filter: FilterLike | None = None,
        vectors: bool = False,
        metadata: bool = False,
    ) -> Iterator[RowsView]:
        """Yield all live rows, or those that pass a filter, in pages of at most `page_size`.

        A row that lives throughout comes at least once; one that is written meanwhile may come
        again.
        """
        cursor: Cursor | None = None
        condition = filter_of(filter)
        while True:
            page, cursor = self._ask(
                calls.list_page(
                    name,
                    page_size=page_size,
                    cursor=cursor,
                    filter_=condition,
                    vectors=vectors,
                    metadata=metadata,
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
        filter: FilterLike | None = None,
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
        filter
            Only rows that pass: a text such as ``lang = "en" and year >= 1990`` (see
            client.filter_text), or a shard.filters.Filter. Its fields must be declared
            by the collection.
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
            filter_=filter,
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

    def search_stream(
        self,
        name: str,
        batches: Iterable[npt.ArrayLike],
        k: int = 10,
        *,
        in_flight: int = 16,
        timeout_s: float | None = None,
        **options: Unpack[SearchOptions],
    ) -> Iterator[Hits]:
        """Find the k best rows for the queries of each batch, several batches in flight.

        Yields the hits of each batch in their order. The first batch that fails ends it with its
        error, after the hits of those before it.

        Parameters
        ----------
        batches
            Each (queries, dim), or (dim,) for one query. Taken in another thread, at most
            `in_flight` ahead of what is yielded.
        in_flight
            1 to 64.
        timeout_s
            How long each batch may take, instead of the client's.
        options
            As in `search`.
        """
        searches = (calls.search(name, queries, k, **options) for queries in batches)
        within_s = self._timeout_s if timeout_s is None else timeout_s
        stream = SearchBatches(self._channel, searches, in_flight=in_flight, timeout_s=within_s)
        yield from stream.hits()

    def explain(
        self,
        name: str,
        query: npt.ArrayLike,
        id_: int | str,
        *,
        filter: FilterLike | None = None,
    ) -> Explanation:
        """Say where an id is, how it ranks for a query, and what a search must do to find it.

        An id that does not exist is an answer, not an error.

        Parameters
        ----------
        query
            (dim,) or (1, dim).
        filter
            Is asked whether it hides the id, and of nothing else. As in `search`.

        Raises
        ------
        InvalidRequest
            For a query, an id or a filter that cannot be: see its subclasses.
        ShardUnavailable
            If a shard is missing: the rank would be wrong.
        """
        return self._ask(calls.explain(name, query, id_, filter))


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
        HOST:PORT, or any gRPC name. Nothing is connected before the first call. A name with several
        addresses, or several as in ``ipv4:10.0.0.1:7700,10.0.0.2:7700``, are routers that are asked
        in turn.
    timeout_s
        Longest that a call may take, and that an upload may wait for an acknowledgement.
    retry
        Which calls are repeated, within `timeout_s`, when a server or a shard is missing or
        overloaded. Uploads of several messages never are.
    """

    def __init__(
        self, target: str, *, timeout_s: float = 30.0, retry: Retry | str = Retry.NONE
    ) -> None:
        self._target = target
        self._retry = Retry(retry)
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
        within_s = self._timeout_s if timeout_s is None else timeout_s
        return await self._repeated(call.rpc, partial(self._ask_once, call), within_s)

    async def _repeated(
        self, rpc: str, ask: Callable[[float], Awaitable[T]], timeout_s: float
    ) -> T:
        """See `Client._repeated`."""
        if not self._retry.covers(rpc):
            return await ask(timeout_s)
        patience = Patience(timeout_s)

        async def attempt() -> T:
            return await ask(patience.left_s)

        return await AsyncRetrying(**patience.options())(attempt)

    async def _ask_once(self, call: UnaryCall[AnswerT], timeout_s: float) -> AnswerT:
        rpc = self._rpcs.get(call.rpc)
        if rpc is None:
            rpc = self._rpcs[call.rpc] = self._channel.unary_unary(path_of(call.rpc))
        try:
            answer = await rpc(call.payload, timeout=timeout_s)
        except grpc.RpcError as error:
            raise error_of(error) from error
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
        if upload.messages == 1:
            return await self._repeated("Upsert", partial(self._write, upload), self._timeout_s)
        return await self._write(upload, self._timeout_s)

    async def _write(self, upload: Upload, timeout_s: float) -> UpsertSummary:
        upload.begin()
        try:
            if upload.messages == 1:
                call = UnaryCall("Upsert", upload.message(0), upload.acknowledge)
                await self._ask_once(call, timeout_s)
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
        stream = UploadStream(self._upload_channel, upload, self._timeout_s)
        running = asyncio.ensure_future(asyncio.to_thread(stream.run))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            stream.cancel()
            await asyncio.wait({running})
            running.exception()  # looked at, so that asyncio does not report it
            raise

    async def delete(
        self, name: str, ids: Ids | None = None, *, filter: FilterLike | None = None
    ) -> int:
        """See `Client.delete`."""
        return await self._ask(calls.delete(name, ids, filter))

    async def get(
        self,
        name: str,
        ids: Ids | None = None,
        *,
        filter: FilterLike | None = None,
        vectors: bool = True,
        metadata: bool = True,
    ) -> RowsView:
        """See `Client.get`."""
        return await self._ask(calls.get(name, ids, filter, vectors=vectors, metadata=metadata))

    async def count(
        self, name: str, ids: Ids | None = None, *, filter: FilterLike | None = None
    ) -> int:
        """See `Client.count`."""
        return await self._ask(calls.count(name, ids, filter))

    async def list_rows(
        self,
        name: str,
        *,
        page_size: int = 1_000,
        filter: FilterLike | None = None,
        vectors: bool = False,
        metadata: bool = False,
    ) -> AsyncIterator[RowsView]:
        """See `Client.list_rows`."""
        cursor: Cursor | None = None
        condition = filter_of(filter)
        while True:
            page, cursor = await self._ask(
                calls.list_page(
                    name,
                    page_size=page_size,
                    cursor=cursor,
                    filter_=condition,
                    vectors=vectors,
                    metadata=metadata,
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
        filter: FilterLike | None = None,
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
            filter_=filter,
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

    def search_stream(self, *, in_flight: int = 64) -> SearchStream:
        """Return a stream for many searches at once: less work for the server than calls.

            async with client.search_stream() as stream:
                hits = await asyncio.gather(*(stream.search("words", each) for each in queries))

        Parameters
        ----------
        in_flight
            How many of them are in flight, 1 to 64; others wait.
        """
        return SearchStream(
            self._channel,
            self._ask,
            in_flight=in_flight,
            timeout_s=self._timeout_s,
            repeats=self._retry.covers("Search"),
        )

    async def explain(
        self,
        name: str,
        query: npt.ArrayLike,
        id_: int | str,
        *,
        filter: FilterLike | None = None,
    ) -> Explanation:
        """See `Client.explain`."""
        return await self._ask(calls.explain(name, query, id_, filter))
