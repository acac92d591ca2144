"""A shard, or a router, in another process: the Shard protocol over gRPC.

Requests go as bytes of the contract; whom they mean travels beside them
(shard.wire.call_metadata). A
failure is raised as the error that the server raised, or as what the transport's failure means,
and names the server.

Searches share a link (client.link), which costs less than calls. What is large goes by a call of
its own, so that nothing small waits behind it; and so does what finds no place on a busy link, and,
once, what a broken one has left without an answer. So that call tells what a server is that has no
SearchStream, or is none of ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar

import grpc
import structlog

from vectorshard.client.link import Link, LinkBroken, LinkBusy, open_link
from vectorshard.router.remote.connection import Connection
from vectorshard.shard import wire
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
from vectorshard.shard.server.status import DETAILS_KEY, error_from_rpc, read_status
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionDescription,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    ExplainRequest,
    Explanation,
    GetRequest,
    ListRequest,
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire.call_metadata import metadata_of

LINK_BYTES_MAX: Final = 1024 * 1024
"""A search of a larger request, or with a larger answer, does not go over the link."""

LINK_AGE_S: Final = 60.0
"""How long a link is searched over. It stays on its connection, also when the server has asked to
leave that one, and so would keep a router at an address for ever."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


async def _answer_to(asked: grpc.aio.UnaryUnaryCall[list[bytes], bytes]) -> bytes:
    """Return the answer to a call; end the call, and nothing else, when this is cancelled.

    What waits inside grpc.aio must wait on: when it is cancelled, its operations are never freed
    (grpc/grpc#43360), which was a kilobyte of each call that a caller gave up.
    """
    answering = asyncio.ensure_future(_awaited(asked))
    try:
        return await asyncio.shield(answering)
    except asyncio.CancelledError:
        if not answering.done():
            asked._cancel("its caller has left")  # type: ignore[attr-defined]  # `cancel` does both
        answering.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        raise


async def _awaited(asked: grpc.aio.UnaryUnaryCall[list[bytes], bytes]) -> bytes:
    return await asked


class RemoteShard:
    """A server of the contract, asked over one connection that is made when it is needed.

    Parameters
    ----------
    target
        HOST:PORT; a name is resolved by DNS.
    connection
        The way there; None for one of its own.
    clock
        Seconds, as in a call's deadline.
    """

    def __init__(
        self,
        target: str,
        *,
        connection: Connection | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.target = target
        self._connection = connection or Connection(target)
        self._clock = clock
        self._link: Link | None = None
        self._link_channel: grpc.aio.Channel | None = None
        self._link_placement = ""
        self._link_until = 0.0
        self._retired: set[Link] = set()
        self._closed = False

    async def _ask(self, rpc: str, payload: bytes, call: Call, decode: Callable[[bytes], T]) -> T:
        """Send a request and return what its answer says; raise the server's error."""
        return self._read(rpc, await self._answer(rpc, payload, call), decode)

    def _read(self, rpc: str, answer: bytes, decode: Callable[[bytes], T]) -> T:
        try:
            return decode(answer)
        except InvalidRequest as error:  # to whom it is an answer, the mistake is the server's
            _log.error("an answer does not parse", target=self.target, rpc=rpc, reason=str(error))
            raise InternalError(f"{self.target}: its answer to {rpc} does not parse") from error

    async def _answer(self, rpc: str, payload: bytes, call: Call) -> bytes:
        timeout_s = None
        if call.deadline is not None:
            timeout_s = call.deadline - self._clock()
            if timeout_s <= 0:
                raise mark_unanswered(
                    DeadlineExceeded(f"the deadline passed before {self.target} was asked")
                )
        send = self._connection.rpc(rpc)
        try:
            asked = send([payload], timeout=timeout_s, metadata=metadata_of(call))
            return await _answer_to(asked)
        except grpc.aio.AioRpcError as error:
            raise self._error_of(error) from None
        except grpc.aio.UsageError:
            raise self._link_closed() from None
        except asyncio.CancelledError:
            # A call in flight when its channel is closed ends so, though nobody cancelled its
            # caller.
            task = asyncio.current_task()
            if task is not None and not task.cancelling():
                raise self._link_closed() from None
            raise

    def _link_closed(self) -> ShardUnavailable:
        return ShardUnavailable(f"the link to {self.target} is closed")

    def _error_of(self, error: grpc.aio.AioRpcError) -> VectorShardError:
        told = error_from_rpc(error)
        if any(key == DETAILS_KEY for key, _ in error.trailing_metadata() or ()):
            return self._named(error.code(), told)
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            self._connection.nobody_answered()
        return mark_unanswered(self._error_without_details(error.code(), told))

    def _error_without_details(
        self, code: grpc.StatusCode, told: VectorShardError
    ) -> VectorShardError:
        """Return an error of the network's, or of a stranger's."""
        named = self._named(code, told)
        if named is not told or isinstance(told, LimitExceeded):
            return named
        if isinstance(told, InternalError | Overloaded):
            return type(told)(f"{self.target}: {told}")
        # A stranger at the address knows nothing of collections, whatever its code seems to say.
        self._connection.somebody_else_answered()
        return ShardUnavailable(f"{self.target} is no server of vectorshard: {told}")

    def _named(self, code: grpc.StatusCode, told: VectorShardError) -> VectorShardError:
        """Return an error of the server's; it names the server where that is whom it is about."""
        if code is grpc.StatusCode.CANCELLED:  # not by the caller: nobody tells that to it
            return ShardUnavailable(f"{self.target} withdrew the call")
        if isinstance(told, ShardUnavailable | DeadlineExceeded):
            named = type(told)(f"{self.target}: {told}")
            vars(named).update(vars(told))
            return named
        if isinstance(told, PlacementMismatch):
            self._connection.somebody_else_answered()
        if told.error_id:
            # Its text is for whoever reads that server's log; this log says which server's it is.
            _log.error(
                "a server has failed", target=self.target, error_id=told.error_id, reason=str(told)
            )
        return told

    # ---- the link -------------------------------------------------------------------------------

    async def _ask_link(self, payload: bytes, call: Call) -> bytes | None:
        """Return the answer to a search; None when it must be asked for by a call of its own."""
        if self._closed:
            return None
        link = await self._link_to(call.placement)
        try:
            answer = await link.ask(
                payload,
                deadline=call.deadline,
                incarnation=call.incarnation,
                answer_bytes_max=LINK_BYTES_MAX,
            )
        except (LinkBroken, LinkBusy):
            return None
        if answer.response is not None:
            return answer.response
        code, told = read_status(answer.error)
        if isinstance(told, LimitExceeded) and told.field == "answer_bytes_max":
            return None
        raise self._named(code, told)

    async def _link_to(self, placement: str) -> Link:
        """Return the link for this placement; what is another's, broken or old has had its day."""
        link, channel, now = self._link, self._connection.channel, self._clock()
        is_for_it = channel is self._link_channel and placement == self._link_placement
        if link is not None and is_for_it and not link.broken and now < self._link_until:
            return link
        opened = self._link = open_link(channel, self.target, placement, clock=self._clock)
        self._link_channel, self._link_placement = channel, placement
        self._link_until = now + LINK_AGE_S
        if link is not None and is_for_it and not link.broken:
            self._retired = {each for each in (*self._retired, link) if not each.broken}
            link.retire()
        elif link is not None:
            await link.close()
        return opened

    # ---- collections ----------------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Ask who it is and which leaf shards it reaches; `call.anew` looks its name up again."""
        if call.anew:
            self._connection.somebody_else_answered()
        payload = wire.encode_get_server_info_request()
        decode = wire.decode_get_server_info_response
        _, topology, _ = await self._ask("GetServerInfo", payload, call, decode)
        return topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection there, under `call.incarnation` if it is given."""
        payload = wire.encode_create_collection_request(
            name=config.name,
            dim=config.dim,
            metric=config.metric,
            id_type=config.id_type,
            index=config.index,
            target_recall=config.target_recall,
            filter_fields=config.filter_fields,
        )
        decode = wire.decode_create_collection_response
        return await self._ask("CreateCollection", payload, call, decode)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection there."""
        payload = wire.encode_drop_collection_request(name)
        decode = wire.decode_drop_collection_response
        await self._ask("DropCollection", payload, call, decode)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """List its collections."""
        payload = wire.encode_list_collections_request()
        decode = wire.decode_list_collections_response
        return await self._ask("ListCollections", payload, call, decode)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Have a collection described."""
        payload = wire.encode_describe_collection_request(name)
        decode = wire.decode_describe_collection_response
        return await self._ask("DescribeCollection", payload, call, decode)

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Have rows written."""
        payload = wire.encode_upsert_request(request)
        result, _ = await self._ask("Upsert", payload, call, wire.decode_upsert_response)
        return result

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Have rows deleted."""
        payload = wire.encode_delete_request(request)
        return await self._ask("Delete", payload, call, wire.decode_delete_response)

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Get rows by id."""
        decode = partial(wire.decode_get_response, include=request.include)
        return await self._ask("Get", wire.encode_get_request(request), call, decode)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Have rows counted."""
        payload = wire.encode_count_request(request)
        return await self._ask("Count", payload, call, wire.decode_count_response)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """List a page of rows."""
        decode = partial(wire.decode_list_response, include=request.include)
        return await self._ask("List", wire.encode_list_request(request), call, decode)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Search there: over the link, if neither the request nor its answer is large."""
        payload = wire.encode_search_request(request)
        decode = partial(wire.decode_search_response, include=request.include)
        if len(payload) <= LINK_BYTES_MAX and wire.expected_answer_bytes(request) <= LINK_BYTES_MAX:
            answer = await self._ask_link(payload, call)
            if answer is not None:
                return self._read("SearchStream", answer, decode)
        return await self._ask("Search", payload, call, decode)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Have it explained why a query does or does not find an id."""
        payload = wire.encode_explain_request(request)
        return await self._ask("Explain", payload, call, wire.decode_explain_response)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Have an index trained."""
        payload = wire.encode_train_request(request)
        return await self._ask("Train", payload, call, wire.decode_train_response)

    async def close(self) -> None:
        """Let go of the connection. The server goes on."""
        self._closed = True
        for link in (self._link, *self._retired):
            if link is not None:
                await link.close()
        await self._connection.close()
