"""The unary RPCs of the contract: one table of name, codec, method of Shard, and kind.

The service, a remote shard, the client and both retry policies read it. A new unary RPC is a codec
in this package, a method of `Shard`, and an entry here. The two streams, UpsertStream and
SearchStream, carry the messages of Upsert and Search, and are not in the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from vectorshard.shard.config import Limits
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
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
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.wire import collections, descriptions, reads, searches, writes

SERVICE_NAME: Final = "vectorshard.v1.VectorService"
UPSERT_STREAM: Final = "UpsertStream"
SEARCH_STREAM: Final = "SearchStream"

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")


class Kind(Enum):
    """What a retry policy has to know of an RPC."""

    READ = "read"
    """Changes nothing: may be repeated."""
    WRITE = "write"
    """Idempotent, if nobody else writes in between: only the caller may decide to repeat it."""
    ONCE = "once"
    """Never repeated: a second Train is a second training, and a second drop may hit a new
    collection of the same name."""


@dataclass(frozen=True)  # with slots, a generic class could not be called by its arguments
class Rpc(Generic[RequestT, ResultT]):
    """A unary RPC: how its messages are written and read, and the method of Shard that serves it.

    `ask` calls that method. `decode_response` takes the request, because an answer is checked
    against what was asked for.
    """

    name: str
    kind: Kind
    ask: Callable[[Shard, RequestT, Call], Awaitable[ResultT]]
    encode_request: Callable[[RequestT], bytes]
    decode_request: Callable[[bytes, Limits], RequestT]
    encode_response: Callable[[ResultT, Limits], bytes]
    decode_response: Callable[[bytes, RequestT], ResultT]


def path_of(name: str) -> str:
    """Return the path of an RPC of the service, by its name."""
    return f"/{SERVICE_NAME}/{name}"


CREATE_COLLECTION: Final = Rpc[CollectionConfig, tuple[CollectionEntry, bool]](
    "CreateCollection",
    Kind.WRITE,
    lambda shard, config, call: shard.create_collection(config, call=call),
    lambda config: collections.encode_create_collection_request(
        name=config.name,
        dim=config.dim,
        metric=config.metric,
        id_type=config.id_type,
        index=config.index,
        target_recall=config.target_recall,
        filter_fields=config.filter_fields,
    ),
    collections.decode_create_collection_request,
    lambda result, _: collections.encode_create_collection_response(*result),
    lambda payload, _: collections.decode_create_collection_response(payload),
)

DROP_COLLECTION: Final = Rpc[str, None](
    "DropCollection",
    Kind.ONCE,
    lambda shard, name, call: shard.drop_collection(name, call=call),
    collections.encode_drop_collection_request,
    lambda payload, _: collections.decode_drop_collection_request(payload),
    lambda *_: collections.encode_drop_collection_response(),
    lambda payload, _: collections.decode_drop_collection_response(payload),
)

LIST_COLLECTIONS: Final = Rpc[None, Sequence[CollectionEntry]](
    "ListCollections",
    Kind.READ,
    lambda shard, _, call: shard.list_collections(call=call),
    lambda _: collections.encode_list_collections_request(),
    lambda payload, _: collections.decode_list_collections_request(payload),
    lambda entries, _: collections.encode_list_collections_response(entries),
    lambda payload, _: collections.decode_list_collections_response(payload),
)

DESCRIBE_COLLECTION: Final = Rpc[str, CollectionDescription](
    "DescribeCollection",
    Kind.READ,
    lambda shard, name, call: shard.describe(name, call=call),
    descriptions.encode_describe_collection_request,
    lambda payload, _: descriptions.decode_describe_collection_request(payload),
    lambda description, _: descriptions.encode_describe_collection_response(description),
    lambda payload, _: descriptions.decode_describe_collection_response(payload),
)

UPSERT: Final = Rpc[tuple[UpsertRequest, int], tuple[UpsertResult, int]](
    "Upsert",
    Kind.WRITE,
    lambda shard, numbered, call: _upsert(shard, numbered, call),
    lambda numbered: writes.encode_upsert_request(*numbered),
    writes.decode_upsert_request,
    lambda numbered, _: writes.encode_upsert_response(*numbered),
    lambda payload, _: writes.decode_upsert_response(payload),
)
"""A batch travels with its request_id, which the answer repeats."""

DELETE: Final = Rpc[DeleteRequest, DeleteResult](
    "Delete",
    Kind.WRITE,
    lambda shard, request, call: shard.delete(request, call=call),
    writes.encode_delete_request,
    writes.decode_delete_request,
    lambda result, _: writes.encode_delete_response(result),
    lambda payload, _: writes.decode_delete_response(payload),
)

GET: Final = Rpc[GetRequest, Rows](
    "Get",
    Kind.READ,
    lambda shard, request, call: shard.get(request, call=call),
    reads.encode_get_request,
    reads.decode_get_request,
    reads.encode_get_response,
    lambda payload, request: reads.decode_get_response(payload, request.include),
)

COUNT: Final = Rpc[CountRequest, int](
    "Count",
    Kind.READ,
    lambda shard, request, call: shard.count(request, call=call),
    reads.encode_count_request,
    reads.decode_count_request,
    lambda count, _: reads.encode_count_response(count),
    lambda payload, _: reads.decode_count_response(payload),
)

LIST: Final = Rpc[ListRequest, Rows](
    "List",
    Kind.READ,
    lambda shard, request, call: shard.list_rows(request, call=call),
    reads.encode_list_request,
    reads.decode_list_request,
    reads.encode_list_response,
    lambda payload, request: reads.decode_list_response(payload, request.include),
)

SEARCH: Final = Rpc[SearchRequest, SearchResult](
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
    lambda explanation, _: searches.encode_explain_response(explanation),
    lambda payload, _: searches.decode_explain_response(payload),
)

TRAIN: Final = Rpc[TrainRequest, Sequence[ShardDescription]](
    "Train",
    Kind.ONCE,
    lambda shard, request, call: shard.train(request, call=call),
    descriptions.encode_train_request,
    lambda payload, _: descriptions.decode_train_request(payload),
    lambda shards, _: descriptions.encode_train_response(shards),
    lambda payload, _: descriptions.decode_train_response(payload),
)

GET_SERVER_INFO: Final = "GetServerInfo"
"""Its answer is of the server, and not of the shard alone: the service writes it by itself."""

RPCS: Final[tuple[Rpc[Any, Any], ...]] = (
    CREATE_COLLECTION,
    DROP_COLLECTION,
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
)

KINDS: Final[dict[str, Kind]] = {rpc.name: rpc.kind for rpc in RPCS} | {GET_SERVER_INFO: Kind.READ}
"""The kind of every unary RPC, by its name."""


async def _upsert(
    shard: Shard, numbered: tuple[UpsertRequest, int], call: Call
) -> tuple[UpsertResult, int]:
    request, request_id = numbered
    return await shard.upsert(request, call=call), request_id
