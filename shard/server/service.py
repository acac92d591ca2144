"""VectorService over any Shard: bytes in, the Shard protocol, bytes out.

Handlers take raw bytes and parse them themselves: left to grpc, unparsable bytes would be UNKNOWN
and end a stream. A shard and a router are served by this same class.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Final, NoReturn

import grpc
import structlog

from vectorshard.shard import wire
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    MalformedMessage,
    Overloaded,
    PlacementMismatch,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.admission_control import Arrivals, Bound, Context, RefusalLog, refuser
from vectorshard.shard.server.memory_limiter import ByteBudget
from vectorshard.shard.server.search_limiter import SearchGate
from vectorshard.shard.server.search_stream import SearchStream
from vectorshard.shard.server.status import (
    CODE_BY_NUMBER,
    DETAILS_KEY,
    Status,
    opaque_status,
    status_code,
    status_of,
)
from vectorshard.shard.server.telemetry import Outcome, RpcMetrics
from vectorshard.shard.server.upsert_stream import Upload
from vectorshard.shard.types import Call, SearchRequest, Topology, UpsertRequest
from vectorshard.shard.wire.call_metadata import call_of
from vectorshard.shard.wire.rpcs import SERVICE_NAME

_log = structlog.get_logger(__name__)

Answer = Callable[[bytes, Call], Awaitable[bytes]]


UNREAD_S: Final = 2.0
"""How long a client of a draining server may leave an answer unread before its stream is cut."""


@dataclass(slots=True, eq=False)
class _OpenStream:
    """A stream, and whether what is sent on it is read."""

    task: asyncio.Task[Any]
    sent: int = 0
    is_sending: bool = False

    def __enter__(self) -> None:
        """Begin to send."""
        self.is_sending = True

    def __exit__(self, *_: object) -> None:
        self.is_sending = False
        self.sent += 1


class VectorService:
    """Serves a shard.

    Parameters
    ----------
    shard
        Who does the work.
    limits
        The bounds that requests are held to.
    version
        What GetServerInfo says.
    metrics
        Where calls are counted.
    clock
        Seconds, as in a call's deadline.
    """

    def __init__(
        self,
        shard: Shard,
        limits: Limits,
        version: str,
        metrics: RpcMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._shard = shard
        self._clock = clock
        self._limits = limits
        # An answer that fits into a message, but not with its envelope, would end the whole stream.
        self._stream_limits = replace(
            limits, message_bytes=limits.message_bytes - wire.ENVELOPE_BYTES
        )
        self._version = version
        self._metrics = metrics
        self._identity: tuple[Topology | None, str] = (None, "")
        self._server_info: tuple[Topology | None, bytes] = (None, b"")
        self._refusals = RefusalLog()
        self._writes = ByteBudget(limits.write_bytes, "writes")
        self._searches = SearchGate(limits.searches)
        self._search_bytes = ByteBudget(limits.search_bytes, "searches")
        self._draining = asyncio.Event()
        self._running = 0
        self._finished = asyncio.Event()
        self._arrived_at = -inf
        self._streams: set[_OpenStream] = set()

    def quiet_s(self) -> float:
        """Return how long no call has arrived, nor a request of a stream."""
        return self._clock() - self._arrived_at

    async def drain(self) -> bool:
        """End the open streams, after what they have sent so far; say whether there were any.

        One whose client does not read is cut: an answer that is being sent cannot be taken back.
        Calls that come later are answered, as long as the server takes them.
        """
        self._draining.set()
        self._look_whether_finished()
        had_streams = bool(self._streams)
        while self._streams:
            sent = {stream: stream.sent for stream in self._streams}
            await asyncio.wait([stream.task for stream in sent], timeout=UNREAD_S)
            for stream, before in sent.items():
                if stream.is_sending and stream.sent == before:
                    stream.task.cancel()
        return had_streams

    async def drained(self) -> None:
        """Return when `drain` was called and no call runs any more."""
        await self._finished.wait()

    def _run(self, name: str) -> Outcome:
        """Return the context in which a call runs."""
        self._running += 1
        self._arrived_at = self._clock()
        return self._metrics.call(name, self._ended)

    def _ended(self) -> None:
        self._running -= 1
        self._look_whether_finished()

    @contextmanager
    def _open_stream(self) -> Iterator[_OpenStream]:
        task = asyncio.current_task()
        assert task is not None
        stream = _OpenStream(task)
        task.add_done_callback(lambda _: self._streams.discard(stream))
        self._streams.add(stream)
        try:
            yield stream
        finally:
            self._streams.discard(stream)

    def _look_whether_finished(self) -> None:
        if self._draining.is_set() and not self._running:
            self._finished.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a server."""
        unary: dict[str, Answer] = {
            "CreateCollection": self._create_collection,
            "DropCollection": self._drop_collection,
            "ListCollections": self._list_collections,
            "DescribeCollection": self._describe_collection,
            "Upsert": self._upsert,
            "Delete": self._delete,
            "Get": self._get,
            "Count": self._count,
            "List": self._list,
            "Search": self._search,
            "Explain": self._explain,
            "Train": self._train,
            "GetServerInfo": self._get_server_info,
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, answer))
            for name, answer in unary.items()
        }
        handlers["UpsertStream"] = grpc.stream_stream_rpc_method_handler(self._upsert_stream)
        handlers["SearchStream"] = grpc.stream_stream_rpc_method_handler(self._search_stream)
        search: Any = grpc.stream_stream_rpc_method_handler(self._search_unread)
        when_busy = {"Search": (lambda: self._searches.is_busy, search)}
        return Arrivals(SERVICE_NAME, handlers, self._bounds(handlers), self._refused, when_busy)

    def _bounds(self, methods: Iterable[str]) -> list[Bound]:
        limits = self._limits
        return [
            Bound(
                methods,
                lambda: self._running >= limits.calls,
                Overloaded(f"{limits.calls:,} calls are in progress"),
            ),
            Bound(
                ("UpsertStream", "SearchStream"),
                lambda: len(self._streams) >= limits.streams,
                Overloaded(f"{limits.streams:,} streams are open"),
            ),
            Bound(
                ("Search",),
                lambda: self._searches.is_full,
                Overloaded(f"{limits.searches:,} searches are in progress"),
            ),
        ]

    def _refused(self, method: str, refusal: Overloaded) -> None:
        with self._run(method) as outcome:
            self._note(outcome, refusal)

    def _note(self, outcome: Outcome, error: Exception) -> None:
        """Note what a call has failed with."""
        outcome.code = status_code(error)
        if isinstance(error, Overloaded):
            self._refusals.note(str(error))

    # ---- how a call runs ------------------------------------------------------------------------

    def _unary(self, name: str, answer: Answer) -> Any:
        async def serve(payload: bytes, context: Context) -> bytes:
            with self._run(name) as outcome:
                return await self._answered(name, answer, payload, context, outcome)

        return serve

    async def _answered(
        self, name: str, answer: Answer, payload: bytes, context: Context, outcome: Outcome
    ) -> bytes:
        try:
            call = self._call(context)
            if name != "Train":
                call = self._bounded(call)
            await self._require_placement(call)
            return await answer(payload, call)
        except Exception as error:
            self._note(outcome, error)
            await _abort(context, name, error)

    def _left_s(self, call: Call) -> float | None:
        return None if call.deadline is None else call.deadline - self._clock()

    def _call(self, context: Context) -> Call:
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else self._clock() + remaining_s
        return call_of(context.invocation_metadata(), deadline)

    def _bounded(self, call: Call) -> Call:
        """Return the call with a deadline: a shard that hangs must not keep a caller for ever."""
        if call.deadline is not None:
            return call
        return replace(call, deadline=self._clock() + self._limits.default_timeout_ms / 1_000)

    async def _require_placement(self, call: Call) -> None:
        """Refuse a call that is meant for another server: its answer would be a wrong one."""
        if not call.placement:
            return
        topology = await self._shard.topology()
        known, fingerprint = self._identity
        if topology is not known:
            fingerprint = fingerprint_of(topology)
            self._identity = (topology, fingerprint)
        if call.placement != fingerprint:
            shards = ", ".join(str(shard.shard) for shard in topology.shards) or "none"
            raise PlacementMismatch(
                f"this server reaches shards {shards} of {topology.shards_total} of cluster "
                f"{topology.cluster}, placement epoch {topology.placement_epoch}, which is not "
                "what the caller takes it for"
            )

    # ---- collections ----------------------------------------------------------------------------

    async def _create_collection(self, payload: bytes, call: Call) -> bytes:
        config = wire.decode_create_collection_request(payload, self._limits)
        entry, created = await self._shard.create_collection(config, call=call)
        return wire.encode_create_collection_response(entry, created)

    async def _drop_collection(self, payload: bytes, call: Call) -> bytes:
        await self._shard.drop_collection(wire.decode_drop_collection_request(payload), call=call)
        return wire.encode_drop_collection_response()

    async def _list_collections(self, payload: bytes, call: Call) -> bytes:
        wire.decode_list_collections_request(payload)
        return wire.encode_list_collections_response(await self._shard.list_collections(call=call))

    async def _describe_collection(self, payload: bytes, call: Call) -> bytes:
        name = wire.decode_describe_collection_request(payload)
        return wire.encode_describe_collection_response(await self._shard.describe(name, call=call))

    # ---- writes ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def _held(self, payload: bytes, call: Call) -> AsyncIterator[None]:
        """Hold room for a write, or refuse it.

        A router's waits: the router has held back, or refused, its own callers already, and cannot
        take back what other shards have written of the same batch.
        """
        if call.placement:
            await self._writes.take(len(payload))
        else:
            self._writes.take_now(len(payload))
        try:
            yield
        finally:
            self._writes.give_back(len(payload))

    async def _upsert(self, payload: bytes, call: Call) -> bytes:
        async with self._held(payload, call):
            request, request_id = self._decode_upsert(payload)
            return await self._write(request, request_id, call)

    def _decode_upsert(self, payload: bytes) -> tuple[UpsertRequest, int]:
        return wire.decode_upsert_request(payload, self._limits)

    async def _write(self, request: UpsertRequest, request_id: int, call: Call) -> bytes:
        await self._require_placement(call)
        result = await self._shard.upsert(request, call=self._bounded(call))
        return wire.encode_upsert_response(result, request_id)

    async def _delete(self, payload: bytes, call: Call) -> bytes:
        async with self._held(payload, call):
            request = wire.decode_delete_request(payload, self._limits)
            return wire.encode_delete_response(await self._shard.delete(request, call=call))

    async def _upsert_stream(
        self, payloads: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Acknowledge each message in order, while the next ones are read and written already."""
        with self._run("UpsertStream") as outcome, self._open_stream() as open_stream:
            write = partial(self._write, call=self._call(context))
            upload = Upload(payloads, self._decode_upsert, write, self._draining, self._writes)
            try:
                async for acknowledgement in upload.acknowledgements():
                    with open_stream:  # is sending
                        yield acknowledgement
            except Exception as error:
                self._note(outcome, error)
                await _abort(context, "UpsertStream", error)
            finally:
                await upload.close()

    # ---- reads ----------------------------------------------------------------------------------

    async def _get(self, payload: bytes, call: Call) -> bytes:
        request = wire.decode_get_request(payload, self._limits)
        return wire.encode_get_response(await self._shard.get(request, call=call), self._limits)

    async def _count(self, payload: bytes, call: Call) -> bytes:
        request = wire.decode_count_request(payload, self._limits)
        return wire.encode_count_response(await self._shard.count(request, call=call))

    async def _list(self, payload: bytes, call: Call) -> bytes:
        request = wire.decode_list_request(payload, self._limits)
        rows = await self._shard.list_rows(request, call=call)
        return wire.encode_list_response(rows, self._limits)

    async def _search(self, payload: bytes, call: Call) -> bytes:
        with self._searches.enter(self._left_s(call)):
            return await self._searched(self._decode_search(payload), call, self._limits)

    async def _search_unread(
        self, payloads: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer Search as a stream's handler: what is refused for its deadline is not read."""
        with self._run("Search") as outcome:
            try:
                self._searches.check(context.time_remaining())
            except Overloaded as error:
                self._note(outcome, error)
                refuser(str(error))(context)
                return
            async for payload in payloads:
                yield await self._answered("Search", self._search, payload, context, outcome)
                return
            missing = MalformedMessage("no request was sent", field="request")
            self._note(outcome, missing)
            await _abort(context, "Search", missing)

    def _decode_search(self, payload: bytes) -> SearchRequest:
        return wire.decode_search_request(payload, self._limits)

    async def _searched(self, request: SearchRequest, call: Call, limits: Limits) -> bytes:
        answer_bytes = min(wire.expected_answer_bytes(request), limits.message_bytes)
        held = request.queries.nbytes + answer_bytes
        self._search_bytes.take_now(held)
        try:
            result = await self._shard.search(request, call=call)
            return wire.encode_search_response(result, limits)
        finally:
            self._search_bytes.give_back(held)

    async def _search_stream(
        self, payloads: AsyncIterator[bytes], context: Context
    ) -> AsyncIterator[bytes]:
        """Answer each message as Search would; each counts as one, and the stream beside them."""
        with self._run("SearchStream") as outcome, self._open_stream() as open_stream:
            stream = SearchStream(
                payloads,
                self._decode_search_of_stream,
                self._search_of_stream,
                lambda error: _status("SearchStream", error).SerializeToString(),
                call=self._call(context),
                limits=self._limits,
                draining=self._draining,
                clock=self._clock,
            )
            try:
                async for answer in stream.answers():
                    with open_stream:  # is sending
                        yield answer
            except Exception as error:
                self._note(outcome, error)
                await _abort(context, "SearchStream", error)
            finally:
                await stream.close()

    def _decode_search_of_stream(self, payload: bytes) -> SearchRequest:
        try:
            self._searches.check_not_full()
            return self._decode_search(payload)
        except Exception as error:
            with self._run("Search") as outcome:
                self._note(outcome, error)
            raise

    async def _search_of_stream(self, request: SearchRequest, call: Call) -> bytes:
        with self._run("Search") as outcome:
            try:
                await self._require_placement(call)
                with self._searches.enter(self._left_s(call)):
                    return await self._searched(request, call, self._stream_limits)
            except Exception as error:
                self._note(outcome, error)
                raise

    async def _explain(self, payload: bytes, call: Call) -> bytes:
        request = wire.decode_explain_request(payload, self._limits)
        return wire.encode_explain_response(await self._shard.explain(request, call=call))

    # ---- index and server -----------------------------------------------------------------------

    async def _train(self, payload: bytes, call: Call) -> bytes:
        request = wire.decode_train_request(payload)
        return wire.encode_train_response(await self._shard.train(request, call=call))

    async def _get_server_info(self, payload: bytes, call: Call) -> bytes:
        wire.decode_get_server_info_request(payload)
        topology = await self._shard.topology(call=call)
        known, answer = self._server_info
        if topology is not known:
            answer = wire.encode_get_server_info_response(self._version, topology, self._limits)
            self._server_info = (topology, answer)
        return answer


async def _abort(context: Context, method: str, error: Exception) -> NoReturn:
    """End the call with the error's status."""
    status = _status(method, error)
    trailing = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(CODE_BY_NUMBER[status.code], status.message, trailing)
    raise AssertionError("abort raises")


def _status(method: str, error: Exception) -> Status:
    """Return the status of a failure; the server's own errors show an opaque id only.

    One of a server behind this one is opaque already, and that server's log has its story.
    """
    if isinstance(error, VectorShardError) and (error.error_id or not error.is_servers_own):
        return status_of(error)
    error_id = uuid.uuid4().hex[:16]
    _log.error("a call failed", method=method, error_id=error_id, exc_info=error)
    return opaque_status(error, error_id)
