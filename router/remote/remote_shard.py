"""A shard, or a router, in another process: the Shard protocol over gRPC.

Every call passes one way: the retry policy (router.remote.retry_policy), the circuit breaker
(router.remote.probes), then the server. Requests are bytes of the contract; the collection and the
placement that they are meant for travel as metadata (shard.wire.call_metadata). Errors are those
that the server raised, or the meaning of the transport's failure, and name the server.

Searches share a link (client.link), which costs less than unary calls. Three kinds go by unary
call: those with a large request or answer, so that small ones do not wait behind them; those that
find a busy link full; and, once, those that a broken link left unanswered. The unary call then
reports a server that has no SearchStream, or is not a server of vectorshard.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

import grpc
import structlog

from vectorshard.client.link import Link, LinkBroken, LinkBusy, Outcome
from vectorshard.router.remote.circuit_breaker import BreakerState
from vectorshard.router.remote.connection import Connection
from vectorshard.router.remote.probes import ProbingBreaker
from vectorshard.router.remote.remote_search import RemoteSearch
from vectorshard.router.remote.retry_policy import RetryPolicy
from vectorshard.router.remote.search_links import SearchLinks
from vectorshard.shard.copies import (
    CloseCopyRequest,
    CopiedRows,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    Topology,
)
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    LimitExceeded,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
    mark_unanswered,
)
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    ExchangeRequest,
    KnownReport,
    Problem,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.server.status import DETAILS_KEY, error_from_rpc, read_status
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    ListRequest,
    Rows,
    SearchRequest,
    SearchResult,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire import rpcs
from vectorshard.shard.wire.call_metadata import metadata_of
from vectorshard.shard.wire.search_stream import StreamAnswer
from vectorshard.shard.wire.searches import (
    decode_search_response,
    encode_search_request,
    expected_answer_bytes,
)
from vectorshard.shard.wire.server_info import (
    decode_get_server_info_response,
    encode_get_server_info_request,
)

LINK_BYTES_MAX: Final = 1024 * 1024
"""A search with a larger request or answer goes by unary call."""

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
T = TypeVar("T")

_log = structlog.get_logger(__name__)


async def _response_of(unary: grpc.aio.UnaryUnaryCall[list[bytes], bytes]) -> bytes:
    """Return the response of a call. Cancellation ends the call, but not the wait in grpc.aio.

    When the wait inside grpc.aio is cancelled, its operations are never freed (grpc/grpc#43360):
    that leaked a kilobyte for each call that a caller abandoned.
    """
    waiting = asyncio.ensure_future(unary)
    try:
        return await asyncio.shield(waiting)
    except asyncio.CancelledError:
        if not waiting.done():
            unary._cancel("its caller has left")  # type: ignore[attr-defined]  # `cancel` does both
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise


class RemoteShard:
    """A server of the contract, over one connection that is opened when it is needed.

    Parameters
    ----------
    target
        HOST:PORT; a name is resolved by DNS. Errors, log and metrics name the server by it.
    connection
        The connection to the server; None for a new one.
    clock, chance, sleep
        Seconds, as in a call's deadline; uniform in [0, 1); waits some seconds.
    """

    def __init__(
        self,
        target: str,
        *,
        connection: Connection | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.target = target
        self._connection = connection or Connection(target)
        self._clock = clock
        self.breaker = ProbingBreaker(
            target, self._topology, clock=clock, chance=chance, sleep=sleep
        )
        self.retry_policy = RetryPolicy(
            lambda: self.breaker.state is BreakerState.CLOSED,
            clock=clock,
            chance=chance,
            sleep=sleep,
        )
        self._reports: dict[int, ShardReport] = {}
        self._links = SearchLinks(target, self._connection, clock)
        self._closed = False

    def resolve_again(self) -> None:
        """Resolve the name again with the next call: another server answers at the address."""
        self._connection.resolve_again()

    # ---- the shard's methods --------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Ask for its leaf shards, in any state of the breaker: it counts as a probe."""
        return await self.breaker.passing(self._topology(call))

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection there, as `call.incarnation` if that is set."""
        return await self._ask(rpcs.CREATE_COLLECTION, config, call)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection there."""
        await self._ask(rpcs.DROP_COLLECTION, name, call)

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change a collection there."""
        return await self._ask(rpcs.UPDATE_COLLECTION, request, call)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """List its collections."""
        return await self._ask(rpcs.LIST_COLLECTIONS, None, call)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection there."""
        return await self._ask(rpcs.DESCRIBE_COLLECTION, name, call)

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows there."""
        result, _ = await self._ask(rpcs.UPSERT, (request, 0), call)
        return result

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete rows there."""
        return await self._ask(rpcs.DELETE, request, call)

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Get rows."""
        return await self._ask(rpcs.GET, request, call)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count rows."""
        return await self._ask(rpcs.COUNT, request, call)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """List a page of rows."""
        return await self._ask(rpcs.LIST, request, call)

    def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> RemoteSearch:
        """Search there; with `min_coverage` below 1 it waits only while the breaker is closed."""
        return RemoteSearch(self, request, call)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Explain why a query does or does not find an id."""
        return await self._ask(rpcs.EXPLAIN, request, call)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train an index there."""
        return await self._ask(rpcs.TRAIN, request, call)

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Ask what an operator has to look at there."""
        _, problems = await self._server_info(call)
        return problems

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        """Exchange reports with it. Those that have not changed are not sent again."""
        known = tuple(
            KnownReport(shard=shard, session=report.session, version=report.version)
            for shard, report in self._reports.items()
        )
        answer = await self._ask(rpcs.EXCHANGE, replace(request, known=known), call)
        reports = [
            replace(self._reports[report.shard], problems=report.problems)
            if report.unchanged
            else report
            for report in answer
        ]
        self._reports = {report.shard: report for report in reports}
        return reports

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        """Settle a collection there."""
        await self._ask(rpcs.SETTLE, request, call)

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        """Show or accept a loss there."""
        return await self._ask(rpcs.ACCEPT_LOSS, request, call)

    async def open_copy(self, request: OpenCopyRequest, *, call: Call = NO_LIMIT) -> Copy:
        """Open a copy there."""
        return await self._ask(rpcs.OPEN_COPY, request, call)

    async def read_copy(self, request: ReadCopyRequest, *, call: Call = NO_LIMIT) -> CopiedRows:
        """Read from a copy there."""
        return await self._ask(rpcs.READ_COPY, request, call)

    async def close_copy(self, request: CloseCopyRequest, *, call: Call = NO_LIMIT) -> None:
        """Close a copy there."""
        await self._ask(rpcs.CLOSE_COPY, request, call)

    async def close(self) -> None:
        """Close the connection. The server is not affected."""
        self._closed = True
        await self.breaker.close()
        await self._links.close()
        await self._connection.close()

    # ---- the one way of a call ------------------------------------------------------------------

    def _ask(
        self, rpc: rpcs.Rpc[RequestT, ResultT], request: RequestT, call: Call
    ) -> Coroutine[Any, Any, ResultT]:
        """Send a request as the retry policy and the breaker allow; return what the answer says."""
        send = partial(self._send, rpc, request, call)
        return self.retry_policy.run(rpc.kind, partial(self.breaker.attempt, send), call.deadline)

    async def _send(
        self, rpc: rpcs.Rpc[RequestT, ResultT], request: RequestT, call: Call
    ) -> ResultT:
        """Send a request once."""
        response = await self._response(rpc.name, rpc.encode_request(request), call)
        return self._decoded(rpc.name, lambda: rpc.decode_response(response, request))

    async def _server_info(self, call: Call) -> tuple[Topology, Sequence[Problem]]:
        payload = encode_get_server_info_request()
        response = await self._response(rpcs.GET_SERVER_INFO, payload, call)
        _, topology, _, problems = self._decoded(
            rpcs.GET_SERVER_INFO, lambda: decode_get_server_info_response(response)
        )
        return topology, problems

    async def _topology(self, call: Call) -> Topology:
        topology, _ = await self._server_info(call)
        return topology

    def _decoded(self, rpc: str, decode: Callable[[], T]) -> T:
        try:
            return decode()
        except InvalidRequest as error:  # of a response, this is the server's mistake
            _log.error("response does not parse", target=self.target, rpc=rpc, reason=str(error))
            raise InternalError(f"{self.target}: the response of {rpc} does not parse") from error

    async def _response(self, rpc: str, payload: bytes, call: Call) -> bytes:
        """Return the response of a unary call."""
        timeout_s = None
        if call.deadline is not None:
            timeout_s = call.deadline - self._clock()
            if timeout_s <= 0:
                raise mark_unanswered(
                    DeadlineExceeded(f"{self.target}: the deadline passed before the call was sent")
                )
        send = self._connection.rpc(rpc)
        try:
            unary = send([payload], timeout=timeout_s, metadata=metadata_of(call))
            return await _response_of(unary)
        except grpc.aio.AioRpcError as error:
            raise self._error_of(rpc, error) from None
        except grpc.aio.UsageError:
            raise self._connection_closed() from None
        except asyncio.CancelledError:
            # Closing a channel cancels its calls in flight, though their callers are not cancelled.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise self._connection_closed() from None
            raise

    # ---- errors ---------------------------------------------------------------------------------

    def _connection_closed(self) -> ShardUnavailable:
        return ShardUnavailable(f"{self.target}: the connection is closed")

    def _error_of(self, rpc: str, error: grpc.aio.AioRpcError) -> VectorShardError:
        parsed = error_from_rpc(error)
        if any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()):
            return self._error_of_server(parsed)
        if isinstance(parsed, ShardUnavailable):
            self._connection.note_unanswered()
        if error.code() is grpc.StatusCode.CANCELLED and rpcs.KINDS[rpc] is not rpcs.Kind.READ:
            parsed = ShardUnavailable(str(parsed))  # unlike Overloaded: it may have had an effect
        return mark_unanswered(self._error_without_details(parsed))

    def _error_without_details(self, parsed: VectorShardError) -> VectorShardError:
        """Return an error of the network, or of a server that is not ours."""
        named = self._error_of_server(parsed)
        if named is not parsed or isinstance(parsed, LimitExceeded):
            return named
        if isinstance(parsed, InternalError | Overloaded):
            return type(parsed)(f"{self.target}: {parsed}")
        # Another program at the address has no collections, whatever its status code suggests.
        self._connection.resolve_again()
        return ShardUnavailable(f"{self.target} is not a vectorshard server: {parsed}")

    def _error_of_server(self, parsed: VectorShardError) -> VectorShardError:
        """Return an error that the server raised, with its name where the error is about it."""
        if isinstance(parsed, ShardUnavailable | DeadlineExceeded):
            text = str(parsed)
            named = type(parsed)(text if self.target in text else f"{self.target}: {text}")
            vars(named).update(vars(parsed))
            return named
        if isinstance(parsed, PlacementMismatch):
            self._connection.resolve_again()
        if parsed.error_id:
            # The cause is in that server's log under this id; this log records which server it is.
            _log.error(
                "internal error of a server",
                target=self.target,
                error_id=parsed.error_id,
                reason=str(parsed),
            )
        return parsed

    # ---- searches over a link -------------------------------------------------------------------

    def send_search(
        self, request: SearchRequest, call: Call, ended: Callable[[Outcome], object]
    ) -> tuple[Link, int]:
        """Send a search over the link, and return both; raise LinkBusy if it is too large."""
        payload = encode_search_request(request)
        if self._closed or max(len(payload), expected_answer_bytes(request)) > LINK_BYTES_MAX:
            raise LinkBusy("the search, or its answer, is too large for a link")
        link = self._links.to(call.placement)
        request_id = link.send(
            payload,
            ended,
            deadline=call.deadline,
            incarnation=call.incarnation,
            answer_bytes_max=LINK_BYTES_MAX,
        )
        return link, request_id

    def read_search(self, response: bytes, request: SearchRequest) -> SearchResult:
        """Return what a response contains; raise InternalError if it does not parse."""
        return self._decoded(
            rpcs.SEARCH.name, lambda: decode_search_response(response, request.include)
        )

    async def ask_search(
        self, request: SearchRequest, call: Call, tried: Outcome | Exception
    ) -> SearchResult:
        """Search as every call is made, after a first attempt over the link."""
        attempts = [tried]

        async def send() -> SearchResult:
            outcome = attempts.pop() if attempts else await self._outcome_over_link(request, call)
            if isinstance(outcome, StreamAnswer) and outcome.response is not None:
                return self.read_search(outcome.response, request)
            self._check_error(outcome)
            return await self._send(rpcs.SEARCH, request, call)

        attempt = partial(self.breaker.attempt, send)
        return await self.retry_policy.run(rpcs.SEARCH.kind, attempt, call.deadline)

    async def _outcome_over_link(self, request: SearchRequest, call: Call) -> Outcome | Exception:
        """Return how a repeated search ends over the link."""
        ended: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def end(outcome: Outcome) -> None:
            if not ended.done():  # else cancelled, and about to be withdrawn
                ended.set_result(outcome)

        try:
            link, request_id = self.send_search(request, call, end)
        except Exception as error:
            return error
        try:
            return await ended
        except asyncio.CancelledError:
            link.withdraw(request_id)
            raise

    def _check_error(self, outcome: Outcome | Exception) -> None:
        """Raise the error of a search that was sent over the link, unless a unary call may do."""
        if isinstance(outcome, LinkBroken | LinkBusy):
            return
        if isinstance(outcome, Exception):
            raise outcome
        _, parsed = read_status(outcome.error)
        if not (isinstance(parsed, LimitExceeded) and parsed.field == "answer_bytes_max"):
            raise self._error_of_server(parsed)
