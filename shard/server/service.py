"""VectorService over any Shard: bytes in, the Shard protocol, bytes out.

A unary RPC is served from the table in shard.wire.rpcs: decode the request, ask the shard, encode
the result. Handlers parse the bytes themselves: gRPC would answer unparsable bytes with UNKNOWN,
and end a stream. Shards and routers are served by this same class.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, Final, NoReturn

import grpc
import structlog

from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import (
    MalformedMessage,
    Overloaded,
    PlacementMismatch,
    VectorShardError,
)
from vectorshard.shard.membership import Problem
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.server.admission_control import (
    AdmissionControl,
    Bound,
    Context,
    Handler,
    RefusalLog,
    refuser,
)
from vectorshard.shard.server.memory_limiter import MemoryLimiter
from vectorshard.shard.server.search_limiter import Place, SearchLimiter
from vectorshard.shard.server.search_stream import SearchStreamHandler
from vectorshard.shard.server.status import (
    CODE_BY_NUMBER,
    DETAILS_KEY,
    Status,
    opaque_status,
    status_code,
    status_of,
)
from vectorshard.shard.server.telemetry import Outcome, RpcMetrics
from vectorshard.shard.server.upsert_stream import UpsertStreamHandler
from vectorshard.shard.types import Call, SearchRequest, UpsertRequest
from vectorshard.shard.wire.call_metadata import call_of
from vectorshard.shard.wire.rpcs import (
    DELETE,
    EXCHANGE,
    GET_SERVER_INFO,
    RPCS,
    SEARCH,
    SEARCH_STREAM,
    TRAIN,
    UPSERT,
    UPSERT_STREAM,
    Rpc,
)
from vectorshard.shard.wire.search_stream import ENVELOPE_BYTES
from vectorshard.shard.wire.searches import (
    SearchTemplates,
    encode_search_response,
    expected_answer_bytes,
)
from vectorshard.shard.wire.server_info import (
    decode_get_server_info_request,
    encode_get_server_info_response,
)
from vectorshard.shard.wire.writes import encode_upsert_response

_log = structlog.get_logger(__name__)

Answer = Callable[[bytes, Call], Awaitable[bytes]]
StreamHandler = UpsertStreamHandler | SearchStreamHandler

WITHOUT_DEFAULT_DEADLINE: Final = frozenset({TRAIN.name})
"""RPCs that may take as long as they take when the caller sets no deadline."""

UNREAD_S: Final = 2.0
"""How long a client of a draining server may leave an answer unread before its stream is ended."""


PROBLEMS_S: Final = 0.1
"""How long GetServerInfo waits for a look at the problems."""


@dataclass(slots=True, eq=False)
class _OpenStream:
    """An open stream, and whether its client reads."""

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
    """Serves a shard within limits. GetServerInfo reports the version; the metrics count the calls.

    `clock` is in seconds, as in a call's deadline.
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
        # A response that fits a message, but not with its envelope, would end the whole stream.
        self._stream_limits = replace(limits, message_bytes=limits.message_bytes - ENVELOPE_BYTES)
        self._version = version
        self._metrics = metrics
        self._identity: tuple[Topology | None, str, str] = (None, "", "")
        self._server_info: tuple[tuple[Topology, Sequence[Problem]] | None, bytes] = (None, b"")
        self._looking: asyncio.Future[Sequence[Problem]] | None = None
        self._known_problems: tuple[Problem, ...] = ()
        self._refusals = RefusalLog()
        self._write_memory = MemoryLimiter(limits.write_bytes, "writes")
        self._default_s = limits.default_timeout_ms / 1_000
        self._templates = SearchTemplates(limits)
        self._searches = SearchLimiter(limits.searches)
        self._search_memory = MemoryLimiter(limits.search_bytes, "searches")
        self._draining = asyncio.Event()
        self._running = 0
        self._finished = asyncio.Event()
        self._arrived_at = -inf
        self._streams: set[_OpenStream] = set()

    def quiet_s(self) -> float:
        """Return the seconds since a caller's last call, or request of a search stream."""
        return self._clock() - self._arrived_at

    async def drain(self) -> bool:
        """End the open streams in order, and return whether there were any.

        A stream whose client does not read is cancelled: a send in progress has no other end.
        Calls that arrive later are answered, as long as the server accepts them.
        """
        self._draining.set()
        self._finish_if_idle()
        had_streams = bool(self._streams)
        while self._streams:
            sent = {stream: stream.sent for stream in self._streams}
            await asyncio.wait([stream.task for stream in sent], timeout=UNREAD_S)
            for stream, before in sent.items():
                if stream.is_sending and stream.sent == before:
                    stream.task.cancel()
        return had_streams

    async def drained(self) -> None:
        """Return once `drain` was called and no call runs."""
        await self._finished.wait()

    def _run(self, name: str) -> Outcome:
        """Return the context in which a call runs."""
        self._running += 1
        if name != EXCHANGE.name:  # routers never cease to exchange reports
            self._arrived_at = self._clock()
        return self._metrics.call(name, self._ended)

    def _ended(self) -> None:
        self._running -= 1
        self._finish_if_idle()

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

    def _finish_if_idle(self) -> None:
        if self._draining.is_set() and not self._running:
            self._finished.set()

    def handler(self) -> grpc.GenericRpcHandler:
        """Return the handler to add to a server."""
        answers = {rpc.name: self._asking(rpc) for rpc in RPCS}
        answers |= {rpc.name: self._writing(answers[rpc.name]) for rpc in (UPSERT, DELETE)}
        answers |= {GET_SERVER_INFO: self._get_server_info}
        handlers: dict[str, Handler] = {
            name: grpc.unary_unary_rpc_method_handler(self._unary(name, answer))
            for name, answer in answers.items()
        }
        # Costs what a unary handler does, and runs before the message is read.
        search_handler: Any = grpc.stream_unary_rpc_method_handler
        handlers[SEARCH.name] = search_handler(self._search)
        stream_handler: Any = grpc.stream_stream_rpc_method_handler
        handlers |= {
            UPSERT_STREAM: stream_handler(self._stream(UPSERT_STREAM, self._upsert_stream)),
            SEARCH_STREAM: stream_handler(self._stream(SEARCH_STREAM, self._search_stream)),
        }
        limits = self._limits
        bounds = [
            Bound(
                handlers,
                lambda: self._running >= limits.calls,
                Overloaded(f"too many calls in progress: the limit is {limits.calls:,}"),
            ),
            Bound(
                (UPSERT_STREAM, SEARCH_STREAM),
                lambda: len(self._streams) >= limits.streams,
                Overloaded(f"too many open streams: the limit is {limits.streams:,}"),
            ),
            Bound((SEARCH.name,), lambda: self._searches.is_full, self._searches.full()),
        ]
        return AdmissionControl(handlers, bounds, self._refused)

    def _refused(self, method: str, refusal: Overloaded) -> None:
        with self._run(method) as outcome:
            self._note(outcome, refusal)

    def _note(self, outcome: Outcome, error: Exception) -> None:
        """Note the error of a call."""
        outcome.code = status_code(error)
        if isinstance(error, Overloaded):
            self._refusals.note(str(error))

    # ---- how a call runs ------------------------------------------------------------------------

    def _unary(self, name: str, answer: Answer) -> Any:
        async def serve(payload: bytes, context: Context) -> bytes:
            with self._run(name) as outcome:
                try:
                    call = self._call(context)
                    if name not in WITHOUT_DEFAULT_DEADLINE:
                        call = self._bounded(call)
                    await self._require_placement(call)
                    return await answer(payload, call)
                except Exception as error:
                    self._note(outcome, error)
                    await _abort(context, name, error)

        return serve

    def _stream(
        self, name: str, opened: Callable[[AsyncIterator[bytes], Call], StreamHandler]
    ) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]:
        async def serve(payloads: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            with self._run(name) as outcome, self._open_stream() as open_stream:
                handler = opened(payloads, self._call(context))
                try:
                    async for answer in handler.answers():
                        with open_stream:  # is sending
                            yield answer
                except Exception as error:
                    self._note(outcome, error)
                    await _abort(context, name, error)
                finally:
                    await handler.close()

        return serve

    def _asking(self, rpc: Rpc[Any, Any]) -> Answer:
        """Return the answer of an RPC: decode the request, ask the shard, encode the result."""

        async def answer(payload: bytes, call: Call) -> bytes:
            request = rpc.decode_request(payload, self._limits)
            result = await rpc.ask(self._shard, request, call)
            if rpc in (UPSERT, DELETE) and self._is_from_earlier_release(call):
                result = _without_sessions(result)
            return rpc.encode_response(result, self._limits)

        return answer

    def _left_s(self, call: Call) -> float | None:
        return None if call.deadline is None else call.deadline - self._clock()

    def _call(self, context: Context) -> Call:
        remaining_s = context.time_remaining()
        deadline = None if remaining_s is None else self._clock() + remaining_s
        return call_of(context.invocation_metadata(), deadline)

    def _bounded(self, call: Call) -> Call:
        """Return the call with a deadline: no caller waits forever for a shard that hangs."""
        if call.deadline is not None:
            return call
        return replace(call, deadline=self._clock() + self._default_s)

    async def _require_placement(self, call: Call) -> None:
        """Refuse a call that is meant for another server, which would get a wrong answer."""
        if not call.placement:
            return
        topology = await self._shard.topology()
        if topology is not self._identity[0]:
            earlier = fingerprint_of(topology, with_sessions=False)
            self._identity = (topology, fingerprint_of(topology), earlier)
        if call.placement not in self._identity[1:]:
            shards = ", ".join(str(shard.shard) for shard in topology.shards) or "none"
            raise PlacementMismatch(
                f"this server serves shards {shards} of {topology.shards_total} of cluster "
                f"{topology.cluster}, placement epoch {topology.placement_epoch}; the caller "
                "expects another placement"
            )

    def _is_from_earlier_release(self, call: Call) -> bool:
        """Whether a call that passed `_require_placement` is of a router that knows no sessions."""
        _, present, earlier = self._identity
        return earlier != present and call.placement == earlier

    # ---- writes ---------------------------------------------------------------------------------

    def _writing(self, answer: Answer) -> Answer:
        """Return the answer of a write, which holds memory for its message, or is refused.

        A router's write waits for memory: the router has held back or refused its own callers
        already, and other shards may have written their part of the same batch.
        """
        memory = self._write_memory

        async def write(payload: bytes, call: Call) -> bytes:
            if call.placement:
                await memory.acquire(len(payload))
            else:
                memory.acquire_nowait(len(payload))
            try:
                await self._require_placement(call)  # again: the wait may have been long
                return await answer(payload, call)
            finally:
                memory.release(len(payload))

        return write

    def _upsert_stream(self, payloads: AsyncIterator[bytes], call: Call) -> UpsertStreamHandler:
        return UpsertStreamHandler(
            payloads,
            lambda payload: UPSERT.decode_request(payload, self._limits),
            partial(self._write_of_stream, call=call),
            self._draining,
            self._write_memory,
        )

    async def _write_of_stream(self, request: UpsertRequest, request_id: int, call: Call) -> bytes:
        await self._require_placement(call)
        result = await self._shard.upsert(request, call=self._bounded(call))
        return encode_upsert_response(result, request_id)

    # ---- searches -------------------------------------------------------------------------------

    async def _search(self, _: object, context: Context) -> bytes | None:
        """Answer Search; a request that is refused for its deadline is not read."""
        left_s = context.time_remaining()
        if left_s is None:
            left_s = self._default_s
        deadline = self._clock() + left_s
        try:
            self._searches.check(left_s)
        except Overloaded as error:
            self._refused(SEARCH.name, error)
            refuser(str(error))(context)
            return None
        # Until the message is there, the call counts nowhere: its client may never send it.
        payload: Any = await context.read()
        with self._run(SEARCH.name) as outcome:
            try:
                if payload is grpc.aio.EOF:
                    raise MalformedMessage("a request is required", field="request")
                call = call_of(context.invocation_metadata(), deadline)
                await self._require_placement(call)
                with self._searches.enter(left_s) as place:
                    request = self._templates.decode(payload)
                    return await self._searched(request, call, self._limits, place)
            except Exception as error:
                self._note(outcome, error)
                await _abort(context, SEARCH.name, error)

    async def _searched(
        self, request: SearchRequest, call: Call, limits: Limits, place: Place
    ) -> bytes:
        place.weigh(request)
        answer_bytes = min(expected_answer_bytes(request), limits.message_bytes)
        held = request.queries.nbytes + answer_bytes
        self._search_memory.acquire_nowait(held)
        try:
            result = await self._shard.search(request, call=call)
            self._metrics.searched(result.receipt)
            place.answered(request, result.receipt)
            return encode_search_response(result, limits)
        finally:
            self._search_memory.release(held)

    def _search_stream(self, payloads: AsyncIterator[bytes], call: Call) -> SearchStreamHandler:
        """Answer each message as Search would; each counts as a Search, besides the stream."""
        return SearchStreamHandler(
            payloads,
            self._decode_search_of_stream,
            self._search_of_stream,
            lambda error: _status(SEARCH_STREAM, error).SerializeToString(),
            call=call,
            limits=self._limits,
            draining=self._draining,
            clock=self._clock,
        )

    def _decode_search_of_stream(self, payload: bytes) -> SearchRequest:
        try:
            self._searches.check_not_full()
            return self._templates.decode(payload)
        except Exception as error:
            with self._run(SEARCH.name) as outcome:
                self._note(outcome, error)
            raise

    async def _search_of_stream(self, request: SearchRequest, call: Call) -> bytes:
        with self._run(SEARCH.name) as outcome:
            try:
                await self._require_placement(call)
                with self._searches.enter(self._left_s(call)) as place:
                    return await self._searched(request, call, self._stream_limits, place)
            except Exception as error:
                self._note(outcome, error)
                raise

    # ---- the server -----------------------------------------------------------------------------

    async def _get_server_info(self, payload: bytes, call: Call) -> bytes:
        decode_get_server_info_request(payload)
        topology = await self._shard.topology(call=call)
        state = (topology, await self._problems())
        known, answer = self._server_info
        if state != known:
            answer = encode_get_server_info_response(
                self._version, topology, self._limits, state[1]
            )
            self._server_info = (state, answer)
        return answer

    async def _problems(self) -> tuple[Problem, ...]:
        """Return the problems; those of the last look, if a slow disk delays this one.

        Probes of the server ask for them, and must not take a slow disk for a dead server.
        """
        if self._looking is None or self._looking.done():
            self._looking = asyncio.ensure_future(self._shard.problems())
        looking = self._looking  # a later call may begin the next look before this one goes on
        if (await asyncio.wait([looking], timeout=PROBLEMS_S))[0]:
            self._known_problems = tuple(looking.result())
        return self._known_problems


def _without_sessions(result: Any) -> Any:
    """Return a write's result with a token that routers of earlier releases can read."""
    if isinstance(result, tuple):
        return _without_sessions(result[0]), *result[1:]
    return replace(result, token=replace(result.token, sessions={}))


async def _abort(context: Context, method: str, error: Exception) -> NoReturn:
    """End the call with the error's status; as cancelled, if its caller has left meanwhile."""
    status = _status(method, error)
    trailing = ((DETAILS_KEY, status.SerializeToString()),)
    try:
        await context.abort(CODE_BY_NUMBER[status.code], status.message, trailing)
    except grpc.aio.InternalError:  # gRPC would log it as a fault of the server, with its traceback
        raise asyncio.CancelledError from None
    raise AssertionError("abort raises")


def _status(method: str, error: Exception) -> Status:
    """Return the status of an error; the server's own errors show an opaque id only.

    An error of a downstream server is opaque already, and in that server's log.
    """
    if isinstance(error, VectorShardError) and (error.error_id or not error.is_servers_own):
        return status_of(error)
    error_id = uuid.uuid4().hex[:16]
    _log.error("call failed", method=method, error_id=error_id, exc_info=error)
    return opaque_status(error, error_id)
