"""The unary RPCs: one table of service, name, kind, codec, and method of Shard.

Those of ShardService are between servers, and not part of the contract. All names are distinct.
The service, the retry policies, the circuit breaker and the metrics read it: they need no edit for
a new RPC. CONTRIBUTING.md lists the files that do. The two streams, UpsertStream and SearchStream,
carry the messages of Upsert and Search; they are not in the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from vectorshard.shard import types
from vectorshard.shard.config import Limits
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
)
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    ExchangeRequest,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import Call
from vectorshard.shard.wire import (
    collections,
    copies,
    descriptions,
    membership,
    reads,
    searches,
    writes,
)
from vectorshard.shard.wire.primitives import copied

SERVICE_NAME: Final = "vectorshard.v1.VectorService"
SHARD_SERVICE_NAME: Final = "vectorshard.internal.v1.ShardService"
UPSERT_STREAM: Final = "UpsertStream"
SEARCH_STREAM: Final = "SearchStream"

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")
_SourceT = TypeVar("_SourceT")
_TargetT = TypeVar("_TargetT")


def path_of(name: str) -> str:
    """Return the path of an RPC, by its name."""
    return f"/{_SERVICES.get(name, SERVICE_NAME)}/{name}"


def message_options(message_bytes: int = Limits().message_bytes) -> list[tuple[str, int]]:
    """Return gRPC's options that bound a message, for a channel or a server.

    The default is the limit of the contract; gRPC's own is 4 MiB for received messages.
    """
    return [
        ("grpc.max_send_message_length", message_bytes),
        ("grpc.max_receive_message_length", message_bytes),
    ]


class Kind(Enum):
    """What a retry policy must know of an RPC."""

    READ = "read"
    """Changes nothing: may be repeated."""
    WRITE = "write"
    """Idempotent, unless others write in between: only the caller may decide to repeat it."""
    ONCE = "once"
    """Never repeated: a second Train is a second training, and a second drop may hit a new
    collection of the same name."""


@dataclass(frozen=True)  # with slots, a generic class could not be called by its arguments
class Rpc(Generic[RequestT, ResultT]):
    """A unary RPC: its codec, and the method of Shard that serves it.

    `ask` calls that method. The limits bound what a server accepts and answers.
    `decode_response` takes the request, against which it checks the response.
    """

    name: str
    kind: Kind
    ask: Callable[[Shard, RequestT, Call], Awaitable[ResultT]]
    encode_request: Callable[[RequestT], bytes]
    decode_request: Callable[[bytes, Limits], RequestT]
    encode_response: Callable[[ResultT, Limits], bytes]
    decode_response: Callable[[bytes, RequestT], ResultT]
    service: str = SERVICE_NAME


def _alone(codec: Callable[[_SourceT], _TargetT]) -> Callable[[_SourceT, object], _TargetT]:
    """Return a codec that ignores its second argument: the limits, or the request."""
    return lambda source, _: codec(source)


CREATE_COLLECTION: Final = Rpc[types.CollectionConfig, tuple[types.CollectionEntry, bool]](
    "CreateCollection",
    Kind.WRITE,
    lambda shard, config, call: shard.create_collection(config, call=call),
    lambda config: collections.encode_create_collection_request(
        **copied(config, types.CollectionConfig)
    ),
    collections.decode_create_collection_request,
    lambda result, _: collections.encode_create_collection_response(*result),
    _alone(collections.decode_create_collection_response),
)

DROP_COLLECTION: Final = Rpc[str, None](
    "DropCollection",
    Kind.ONCE,
    lambda shard, name, call: shard.drop_collection(name, call=call),
    collections.encode_drop_collection_request,
    _alone(collections.decode_drop_collection_request),
    lambda *_: collections.encode_drop_collection_response(),
    _alone(collections.decode_drop_collection_response),
)

UPDATE_COLLECTION: Final = Rpc[types.UpdateRequest, types.CollectionEntry](
    "UpdateCollection",
    Kind.WRITE,
    lambda shard, request, call: shard.update_collection(request, call=call),
    collections.encode_update_collection_request,
    _alone(collections.decode_update_collection_request),
    _alone(collections.encode_update_collection_response),
    _alone(collections.decode_update_collection_response),
)

LIST_COLLECTIONS: Final = Rpc[None, Sequence[types.CollectionEntry]](
    "ListCollections",
    Kind.READ,
    lambda shard, _, call: shard.list_collections(call=call),
    lambda _: collections.encode_list_collections_request(),
    _alone(collections.decode_list_collections_request),
    _alone(collections.encode_list_collections_response),
    _alone(collections.decode_list_collections_response),
)

DESCRIBE_COLLECTION: Final = Rpc[str, CollectionDescription](
    "DescribeCollection",
    Kind.READ,
    lambda shard, name, call: shard.describe(name, call=call),
    descriptions.encode_describe_collection_request,
    _alone(descriptions.decode_describe_collection_request),
    _alone(descriptions.encode_describe_collection_response),
    _alone(descriptions.decode_describe_collection_response),
)

UPSERT: Final = Rpc[tuple[types.UpsertRequest, int], tuple[types.UpsertResult, int]](
    "Upsert",
    Kind.WRITE,
    lambda shard, numbered, call: _upsert(shard, *numbered, call),
    lambda numbered: writes.encode_upsert_request(*numbered),
    writes.decode_upsert_request,
    lambda numbered, _: writes.encode_upsert_response(*numbered),
    _alone(writes.decode_upsert_response),
)
"""A batch has a request_id, which the response repeats."""

DELETE: Final = Rpc[types.DeleteRequest, types.DeleteResult](
    "Delete",
    Kind.WRITE,
    lambda shard, request, call: shard.delete(request, call=call),
    writes.encode_delete_request,
    writes.decode_delete_request,
    _alone(writes.encode_delete_response),
    _alone(writes.decode_delete_response),
)

GET: Final = Rpc[types.GetRequest, types.Rows](
    "Get",
    Kind.READ,
    lambda shard, request, call: shard.get(request, call=call),
    reads.encode_get_request,
    reads.decode_get_request,
    reads.encode_get_response,
    lambda payload, request: reads.decode_get_response(payload, request.include),
)

COUNT: Final = Rpc[types.CountRequest, int](
    "Count",
    Kind.READ,
    lambda shard, request, call: shard.count(request, call=call),
    reads.encode_count_request,
    reads.decode_count_request,
    _alone(reads.encode_count_response),
    _alone(reads.decode_count_response),
)

LIST: Final = Rpc[types.ListRequest, types.Rows](
    "List",
    Kind.READ,
    lambda shard, request, call: shard.list_rows(request, call=call),
    reads.encode_list_request,
    reads.decode_list_request,
    reads.encode_list_response,
    lambda payload, request: reads.decode_list_response(payload, request.include),
)

SEARCH: Final = Rpc[types.SearchRequest, types.SearchResult](
    "Search",
    Kind.READ,
    lambda shard, request, call: shard.search(request, call=call),
    searches.encode_search_request,
    searches.decode_search_request,
    searches.encode_search_response,
    lambda payload, request: searches.decode_search_response(payload, request.include),
)

EXPLAIN: Final = Rpc[ExplainRequest, Explanation](
    "Explain",
    Kind.READ,
    lambda shard, request, call: shard.explain(request, call=call),
    searches.encode_explain_request,
    searches.decode_explain_request,
    _alone(searches.encode_explain_response),
    _alone(searches.decode_explain_response),
)

TRAIN: Final = Rpc[types.TrainRequest, Sequence[ShardDescription]](
    "Train",
    Kind.ONCE,
    lambda shard, request, call: shard.train(request, call=call),
    descriptions.encode_train_request,
    _alone(descriptions.decode_train_request),
    _alone(descriptions.encode_train_response),
    _alone(descriptions.decode_train_response),
)

EXCHANGE: Final = Rpc[ExchangeRequest, Sequence[ShardReport]](
    "Exchange",
    Kind.READ,  # repeating it changes nothing
    lambda shard, request, call: _exchange(shard, request, call),
    membership.encode_exchange_request,
    _alone(membership.decode_exchange_request),
    _alone(membership.encode_exchange_response),
    _alone(membership.decode_exchange_response),
    SHARD_SERVICE_NAME,
)

SETTLE: Final = Rpc[SettleRequest, None](
    "Settle",
    Kind.WRITE,
    lambda shard, request, call: shard.settle(request, call=call),
    membership.encode_settle_request,
    _alone(membership.decode_settle_request),
    lambda *_: membership.encode_settle_response(),
    _alone(membership.decode_settle_response),
    SHARD_SERVICE_NAME,
)

ACCEPT_LOSS: Final = Rpc[AcceptLossRequest, AcceptLossResult](
    "AcceptLoss",
    Kind.WRITE,
    lambda shard, request, call: shard.accept_loss(request, call=call),
    membership.encode_accept_loss_request,
    _alone(membership.decode_accept_loss_request),
    _alone(membership.encode_accept_loss_response),
    _alone(membership.decode_accept_loss_response),
    SHARD_SERVICE_NAME,
)

OPEN_COPY: Final = Rpc[OpenCopyRequest, Copy](
    "OpenCopy",
    Kind.READ,  # a copy that is opened twice ends with its lease
    lambda shard, request, call: shard.open_copy(request, call=call),
    copies.encode_open_copy_request,
    _alone(copies.decode_open_copy_request),
    _alone(copies.encode_open_copy_response),
    _alone(copies.decode_open_copy_response),
    SHARD_SERVICE_NAME,
)

READ_COPY: Final = Rpc[ReadCopyRequest, CopiedRows](
    "ReadCopy",
    Kind.READ,
    lambda shard, request, call: shard.read_copy(request, call=call),
    copies.encode_read_copy_request,
    _alone(copies.decode_read_copy_request),
    _alone(copies.encode_read_copy_response),
    _alone(copies.decode_read_copy_response),
    SHARD_SERVICE_NAME,
)

CLOSE_COPY: Final = Rpc[CloseCopyRequest, None](
    "CloseCopy",
    Kind.READ,  # repeating it changes nothing
    lambda shard, request, call: shard.close_copy(request, call=call),
    copies.encode_close_copy_request,
    _alone(copies.decode_close_copy_request),
    lambda *_: copies.encode_close_copy_response(),
    _alone(copies.decode_close_copy_response),
    SHARD_SERVICE_NAME,
)

GET_SERVER_INFO: Final = "GetServerInfo"
"""Not in the table: the service answers it, with its version and limits, not the shard alone."""

RPCS: Final[tuple[Rpc[Any, Any], ...]] = (
    CREATE_COLLECTION,
    DROP_COLLECTION,
    UPDATE_COLLECTION,
    LIST_COLLECTIONS,
    DESCRIBE_COLLECTION,
    UPSERT,
    DELETE,
    GET,
    COUNT,
    LIST,
    SEARCH,
    EXPLAIN,
    TRAIN,
    EXCHANGE,
    SETTLE,
    ACCEPT_LOSS,
    OPEN_COPY,
    READ_COPY,
    CLOSE_COPY,
)

_SERVICES: Final = {rpc.name: rpc.service for rpc in RPCS}

KINDS: Final[dict[str, Kind]] = {rpc.name: rpc.kind for rpc in RPCS} | {GET_SERVER_INFO: Kind.READ}
"""The kind of every unary RPC, by its name."""


async def _exchange(shard: Shard, request: ExchangeRequest, call: Call) -> Sequence[ShardReport]:
    reports = await shard.exchange(request, call=call)
    return membership.without_known(reports, request.known)


async def _upsert(
    shard: Shard, request: types.UpsertRequest, request_id: int, call: Call
) -> tuple[types.UpsertResult, int]:
    return await shard.upsert(request, call=call), request_id
