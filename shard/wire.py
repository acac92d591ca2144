"""Bytes of vectorshard.v1 to numpy and back: every RPC, for the server and for the client.

For every RPC a server decodes requests and encodes responses here, and a client the other way
round. What a request says about itself is checked here (shapes, counts, ids, ranges, limits); what
takes a collection to know (its dim, its id type, NaN, norms) is not. Only this module and the
three that it stands on (wire_bulk, wire_metadata, wire_parts) know the contract's messages. No grpc
and no I/O enters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NoReturn

import numpy as np
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types
from shard.config import SLOTS_TOTAL, Limits
from shard.errors import (
    InvalidConfig,
    InvalidParameter,
    LimitExceeded,
    MalformedMessage,
    Unsupported,
)
from shard.wire_bulk import (
    Bulk,
    check_count,
    check_ids,
    decode_matrix,
    decode_public_ids,
    encode_ids,
    encode_matrix,
    parse,
    read_rows,
    read_search_response,
    read_upsert_request,
    serialize,
)
from shard.wire_metadata import canonical_metadata
from shard.wire_parts import (
    ID_TYPES,
    LEDGER_FIELDS,
    LIMITS_FIELDS,
    METRICS,
    ROLES,
    ROW_ERROR_FIELDS,
    WRITE_MODES,
    copied,
    decode_config,
    decode_include,
    decode_optional_cursor,
    decode_receipt,
    decode_shard,
    decode_token,
    encode_config,
    encode_cursor,
    encode_filter_fields,
    encode_include,
    encode_index,
    encode_receipt,
    encode_shard,
    encode_token,
    fraction,
    refuse_filter,
    resolve_config,
    shortest_float,
)

DEFAULT_PAGE_SIZE = 1_000


# ---- CreateCollection, DropCollection, ListCollections, DescribeCollection -----------------------


def encode_create_collection_request(
    *,
    name: str,
    dim: int,
    metric: types.Metric,
    id_type: types.IdType,
    index: types.IndexConfig | None = None,
    target_recall: float | None = None,
    filter_fields: Iterable[types.FilterField] = (),
) -> bytes:
    """Ask for a collection; None leaves a part to the server's defaults.

    Raises
    ------
    InvalidConfig
        If `dim` is no uint32, or a name is not UTF-8.
    """
    try:
        config = v1.CollectionConfig(
            name=name,
            dim=dim,
            metric=METRICS.number[metric],
            id_type=ID_TYPES.number[id_type],
            index=None if index is None else encode_index(index),
            target_recall=target_recall,
            filter_fields=encode_filter_fields(filter_fields),
        )
    except (ValueError, TypeError) as error:
        raise InvalidConfig(str(error), field="config") from None
    return v1.CreateCollectionRequest(config=config).SerializeToString()


def decode_create_collection_request(payload: bytes, limits: Limits) -> types.CollectionConfig:
    """Return the resolved configuration, with the defaults filled in.

    Raises
    ------
    MalformedMessage, InvalidConfig
        For a configuration that cannot be.
    Unsupported
        For IVF_PQ.
    """
    request = parse(v1.CreateCollectionRequest, payload)
    if not request.HasField("config"):
        raise InvalidConfig("missing", field="config")
    return resolve_config(request.config, limits)


def encode_create_collection_response(config: types.CollectionConfig, created: bool) -> bytes:
    """Answer with the resolved configuration, and whether the collection is new."""
    return v1.CreateCollectionResponse(
        config=encode_config(config), created=created
    ).SerializeToString()


def decode_create_collection_response(payload: bytes) -> tuple[types.CollectionConfig, bool]:
    """Return the resolved configuration, and whether the collection is new."""
    response = parse(v1.CreateCollectionResponse, payload)
    return decode_config(response.config), response.created


def encode_drop_collection_request(collection: str) -> bytes:
    """Name the collection to drop."""
    return v1.DropCollectionRequest(collection=collection).SerializeToString()


def decode_drop_collection_request(payload: bytes) -> str:
    """Return the name of the collection to drop."""
    return parse(v1.DropCollectionRequest, payload).collection


def encode_drop_collection_response() -> bytes:
    """Answer that the collection is gone."""
    return v1.DropCollectionResponse().SerializeToString()


def decode_drop_collection_response(payload: bytes) -> None:
    """Check that this is the answer."""
    parse(v1.DropCollectionResponse, payload)


def encode_list_collections_request() -> bytes:
    """Ask for all collections."""
    return v1.ListCollectionsRequest().SerializeToString()


def decode_list_collections_request(payload: bytes) -> None:
    """Check that this is the request."""
    parse(v1.ListCollectionsRequest, payload)


def encode_list_collections_response(configs: Iterable[types.CollectionConfig]) -> bytes:
    """Answer with the resolved configurations, in the order given."""
    return v1.ListCollectionsResponse(
        collections=[encode_config(config) for config in configs]
    ).SerializeToString()


def decode_list_collections_response(payload: bytes) -> list[types.CollectionConfig]:
    """Return the resolved configurations, by name."""
    response = parse(v1.ListCollectionsResponse, payload)
    return [decode_config(config) for config in response.collections]


def encode_describe_collection_request(collection: str) -> bytes:
    """Name the collection to describe."""
    return v1.DescribeCollectionRequest(collection=collection).SerializeToString()


def decode_describe_collection_request(payload: bytes) -> str:
    """Return the name of the collection to describe."""
    return parse(v1.DescribeCollectionRequest, payload).collection


def encode_describe_collection_response(description: types.CollectionDescription) -> bytes:
    """Answer with a description. The incarnation stays behind: it is no part of the contract."""
    return v1.DescribeCollectionResponse(
        config=encode_config(description.config),
        ledger=v1.Ledger(**copied(description.ledger, LEDGER_FIELDS)),
        shards=[encode_shard(shard) for shard in description.shards],
        recommended_batch_size=description.recommended_batch_size,
    ).SerializeToString()


def decode_describe_collection_response(payload: bytes) -> types.CollectionDescription:
    """Return a description, with an empty incarnation; its ledger is the sum of the shards'."""
    response = parse(v1.DescribeCollectionResponse, payload)
    return types.CollectionDescription(
        config=decode_config(response.config),
        incarnation="",
        shards=tuple(decode_shard(shard) for shard in response.shards),
        recommended_batch_size=response.recommended_batch_size,
    )


# ---- Upsert, UpsertStream, Delete ----------------------------------------------------------------


def encode_upsert_request(request: types.UpsertRequest, request_id: int = 0) -> bytes:
    """Write a batch of rows: float16 vectors as FLOAT16, others as FLOAT32.

    Raises
    ------
    InvalidId
        For a string that UTF-8 cannot write.
    """
    return twins.UpsertRequestTwin(
        collection=request.collection,
        ids=encode_ids(request.ids),
        vectors=encode_matrix(request.vectors),
        metadata=request.metadata,
        mode=WRITE_MODES.number[request.mode],
        request_id=request_id,
    ).SerializeToString()


def decode_upsert_request(payload: bytes, limits: Limits) -> tuple[types.UpsertRequest, int]:
    """Return the batch and its request_id. Arrays are read-only views; metadata is canonical.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, counts that do not match, a matrix or metadata that is none.
    InvalidId, InvalidParameter, LimitExceeded
        For an id, mode, or size out of its range.
    """
    twin, bulk = read_upsert_request(payload)
    ids = bulk.ids()
    check_ids(ids, limits)
    vectors = bulk.matrix()
    check_count("vectors", len(vectors), ids.size)
    metadata = None
    if bulk.metadata:
        check_count("metadata", len(bulk.metadata), ids.size)
        metadata = canonical_metadata(bulk.metadata, limits)
    mode = WRITE_MODES.member(twin.mode or v1.WRITE_MODE_UPSERT, "mode", InvalidParameter)
    request = types.UpsertRequest(
        collection=twin.collection, ids=ids, vectors=vectors, metadata=metadata, mode=mode
    )
    return request, twin.request_id


def encode_upsert_response(result: types.UpsertResult, request_id: int = 0) -> bytes:
    """Acknowledge a batch."""
    return v1.UpsertResponse(
        accepted=result.accepted,
        errors=[v1.RowError(**copied(error, ROW_ERROR_FIELDS)) for error in result.errors],
        token=encode_token(result.token),
        request_id=request_id,
    ).SerializeToString()


def decode_upsert_response(payload: bytes) -> tuple[types.UpsertResult, int]:
    """Return the acknowledgement and its request_id."""
    response = parse(v1.UpsertResponse, payload)
    result = types.UpsertResult(
        accepted=response.accepted,
        errors=tuple(
            types.RowError(**copied(error, ROW_ERROR_FIELDS)) for error in response.errors
        ),
        token=decode_token(response.token),
    )
    return result, response.request_id


encode_upsert_stream_request = encode_upsert_request
decode_upsert_stream_request = decode_upsert_request
encode_upsert_stream_response = encode_upsert_response
decode_upsert_stream_response = decode_upsert_response


def encode_delete_request(request: types.DeleteRequest) -> bytes:
    """Name the ids to delete."""
    message = v1.DeleteRequest(collection=request.collection)
    _set_ids(message, request.ids)
    return message.SerializeToString()


def _set_ids(
    message: v1.DeleteRequest | v1.GetRequest | v1.CountRequest, ids: types.IdArray
) -> None:
    """Set `ids`, which is present also when there are none: the kind of none is written."""
    message.ids.MergeFromString(encode_ids(ids).SerializeToString())


def decode_delete_request(payload: bytes, limits: Limits) -> types.DeleteRequest:
    """Return the ids to delete.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, or neither ids nor filter.
    InvalidId, LimitExceeded
        For an id or a number of ids out of its range.
    Unsupported
        For a filter.
    """
    request = parse(v1.DeleteRequest, payload)
    return types.DeleteRequest(collection=request.collection, ids=_required_ids(request, limits))


def _required_ids(request: v1.DeleteRequest | v1.GetRequest, limits: Limits) -> types.IdArray:
    refuse_filter(request)
    if not request.HasField("ids"):
        raise MalformedMessage("neither ids nor a filter", field="ids")
    ids = decode_public_ids(request.ids)
    check_ids(ids, limits)
    return ids


def encode_delete_response(result: types.DeleteResult) -> bytes:
    """Answer how many rows are gone."""
    return v1.DeleteResponse(
        deleted=result.deleted, token=encode_token(result.token)
    ).SerializeToString()


def decode_delete_response(payload: bytes) -> types.DeleteResult:
    """Return how many rows are gone."""
    response = parse(v1.DeleteResponse, payload)
    return types.DeleteResult(deleted=response.deleted, token=decode_token(response.token))


# ---- Get, Count, List ----------------------------------------------------------------------------


def encode_get_request(request: types.GetRequest) -> bytes:
    """Name the ids to return."""
    message = v1.GetRequest(collection=request.collection, include=encode_include(request.include))
    _set_ids(message, request.ids)
    return message.SerializeToString()


def decode_get_request(payload: bytes, limits: Limits) -> types.GetRequest:
    """Return the ids asked for; without an `include`, vectors and metadata are.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, or neither ids nor filter.
    InvalidId, LimitExceeded
        For an id or a number of ids out of its range.
    Unsupported
        For a filter.
    """
    request = parse(v1.GetRequest, payload)
    ids = _required_ids(request, limits)
    if not request.HasField("include"):
        return types.GetRequest(collection=request.collection, ids=ids)
    return types.GetRequest(
        collection=request.collection, ids=ids, include=decode_include(request.include)
    )


def encode_get_response(rows: types.Rows, limits: Limits) -> bytes:
    """Answer with rows.

    Raises
    ------
    LimitExceeded
        If they do not fit into one message.
    """
    return _encode_rows(rows, limits, field="ids", advice="ask for fewer ids")


def _encode_rows(rows: types.Rows, limits: Limits, *, field: str, advice: str) -> bytes:
    content_bytes = _content_bytes(rows.vectors, rows.metadata)
    twin = twins.RowsTwin(cursor=b"" if rows.cursor is None else encode_cursor(rows.cursor))
    if content_bytes <= limits.message_bytes:
        _set_rows(twin, rows.ids, rows.vectors, rows.metadata)
    return serialize(twin, limits, content_bytes, field=field, advice=advice)


def _set_rows(
    twin: twins.RowsTwin | twins.SearchResponseTwin,
    ids: types.IdArray,
    vectors: types.Float32Array | None,
    metadata: Sequence[bytes] | None,
) -> None:
    twin.ids.CopyFrom(encode_ids(ids))
    if vectors is not None:
        twin.vectors.CopyFrom(encode_matrix(vectors))
    if metadata is not None:
        twin.metadata.extend(metadata)


def _content_bytes(vectors: types.Float32Array | None, metadata: Sequence[bytes] | None) -> int:
    """Return the bytes of the parts that can be large."""
    return (0 if vectors is None else vectors.nbytes) + sum(map(len, metadata or ()))


def decode_get_response(payload: bytes, include: types.Include) -> types.Rows:
    """Return the rows. `include` is the request's.

    Raises
    ------
    MalformedMessage
        If the parts do not fit together, or one that was asked for is missing.
    """
    return _decode_rows(*read_rows(v1.GetResponse, payload), include)


def _decode_rows(twin: twins.RowsTwin, bulk: Bulk, include: types.Include) -> types.Rows:
    ids = bulk.ids()
    vectors, metadata = bulk.included(include, ids.size)
    return types.Rows(
        ids=ids,
        vectors=vectors,
        metadata=metadata,
        cursor=decode_optional_cursor(twin.cursor),
    )


def encode_count_request(request: types.CountRequest) -> bytes:
    """Ask for the number of live rows: all, or those of the ids."""
    message = v1.CountRequest(collection=request.collection)
    if request.ids is not None:
        _set_ids(message, request.ids)
    return message.SerializeToString()


def decode_count_request(payload: bytes, limits: Limits) -> types.CountRequest:
    """Return what to count.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    InvalidId, LimitExceeded
        For an id or a number of ids out of its range.
    Unsupported
        For a filter.
    """
    request = parse(v1.CountRequest, payload)
    refuse_filter(request)
    if not request.HasField("ids"):
        return types.CountRequest(collection=request.collection)
    ids = decode_public_ids(request.ids)
    check_ids(ids, limits)
    return types.CountRequest(collection=request.collection, ids=ids)


def encode_count_response(count: int) -> bytes:
    """Answer with the number of live rows."""
    return v1.CountResponse(count=count).SerializeToString()


def decode_count_response(payload: bytes) -> int:
    """Return the number of live rows."""
    return parse(v1.CountResponse, payload).count


def encode_list_request(request: types.ListRequest) -> bytes:
    """Ask for a page of rows.

    Raises
    ------
    InvalidParameter
        If the page size is no uint32.
    """
    try:
        message = v1.ListRequest(
            collection=request.collection,
            page_size=request.page_size,
            cursor=b"" if request.cursor is None else encode_cursor(request.cursor),
            include=encode_include(request.include),
        )
    except (ValueError, TypeError) as error:
        raise InvalidParameter(str(error), field="page_size") from None
    return message.SerializeToString()


def decode_list_request(payload: bytes, limits: Limits) -> types.ListRequest:
    """Return which page to list, with its default size filled in.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    LimitExceeded, InvalidParameter
        For a page size over the limit, a cursor that is none.
    Unsupported
        For a filter.
    """
    request = parse(v1.ListRequest, payload)
    refuse_filter(request)
    if request.page_size > limits.page_size:
        raise LimitExceeded(
            f"{request.page_size:,} rows a page, at most {limits.page_size:,}", field="page_size"
        )
    return types.ListRequest(
        collection=request.collection,
        page_size=request.page_size or min(DEFAULT_PAGE_SIZE, limits.page_size),
        cursor=decode_optional_cursor(request.cursor),
        include=decode_include(request.include),
    )


def encode_list_response(rows: types.Rows, limits: Limits) -> bytes:
    """Answer with a page of rows.

    Raises
    ------
    LimitExceeded
        If they do not fit into one message.
    """
    return _encode_rows(rows, limits, field="page_size", advice="ask for smaller pages")


def decode_list_response(payload: bytes, include: types.Include) -> types.Rows:
    """Return a page of rows. `include` is the request's.

    Raises
    ------
    MalformedMessage
        If the parts do not fit together, or one that was asked for is missing.
    """
    return _decode_rows(*read_rows(v1.ListResponse, payload), include)


# ---- Search, SearchStream, Explain ---------------------------------------------------------------


def encode_search_request(request: types.SearchRequest) -> bytes:
    """Write a batch of queries: float16 as FLOAT16, others as FLOAT32.

    Raises
    ------
    InvalidParameter
        If k or nprobe is no uint32.
    """
    effort = request.effort
    try:
        message = v1.SearchRequest(
            collection=request.collection,
            queries=encode_matrix(request.queries),
            k=request.k,
            include=encode_include(request.include),
            score_threshold=request.score_threshold,
            min_coverage=request.min_coverage,
            token=b"" if request.token is None else encode_token(request.token),
        )
        if effort.exact:
            message.exact = True
        elif effort.nprobe:
            message.nprobe = effort.nprobe
        elif effort.target_recall:
            message.target_recall = effort.target_recall
    except (ValueError, TypeError) as error:
        raise InvalidParameter(str(error), field="k or nprobe") from None
    return message.SerializeToString()


def decode_search_request(payload: bytes, limits: Limits) -> types.SearchRequest:
    """Return the batch of queries, a read-only view, and how to search.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, or a matrix that is none.
    InvalidParameter, LimitExceeded
        For a number out of its range.
    Unsupported
        For a filter.
    """
    request = parse(v1.SearchRequest, payload)
    refuse_filter(request)
    queries = decode_matrix(request.queries, "queries")
    _check_hits(len(queries), request.k, limits)
    return types.SearchRequest(
        collection=request.collection,
        queries=queries,
        k=request.k,
        effort=_decode_effort(request, limits),
        include=decode_include(request.include),
        score_threshold=_decode_score_threshold(request),
        min_coverage=_decode_min_coverage(request),
        token=decode_token(request.token) if request.token else None,
    )


def _check_hits(queries: int, k: int, limits: Limits) -> None:
    if not 1 <= k <= limits.k:
        raise InvalidParameter(f"{k:,} is not in 1..{limits.k:,}", field="k")
    if queries > limits.queries:
        raise LimitExceeded(f"{queries:,} queries, at most {limits.queries:,}", field="queries")
    if queries * k > limits.hits:
        raise LimitExceeded(
            f"{queries:,} queries of {k:,} hits, at most {limits.hits:,} hits together: "
            "ask fewer queries or a smaller k",
            field="k",
        )


def _decode_effort(request: v1.SearchRequest, limits: Limits) -> types.Effort:
    kind = request.WhichOneof("effort")
    if kind == "nprobe":
        if not 1 <= request.nprobe <= limits.nlist:
            raise InvalidParameter(
                f"{request.nprobe:,} is not in 1..{limits.nlist:,}", field="nprobe"
            )
        return types.Effort(nprobe=request.nprobe)
    if kind == "target_recall":
        return types.Effort(
            target_recall=fraction(request.target_recall, "target_recall", InvalidParameter)
        )
    return types.Effort(exact=request.exact)


def _decode_score_threshold(request: v1.SearchRequest) -> float | None:
    if not request.HasField("score_threshold"):
        return None
    if math.isnan(request.score_threshold):
        raise InvalidParameter("NaN", field="score_threshold")
    return request.score_threshold


def _decode_min_coverage(request: v1.SearchRequest) -> float:
    if not request.HasField("min_coverage"):
        return 1.0
    coverage = shortest_float(request.min_coverage)
    if not 0.0 <= coverage <= 1.0:
        raise InvalidParameter(f"{coverage} is not in [0, 1]", field="min_coverage")
    return coverage


def encode_search_response(result: types.SearchResult, limits: Limits) -> bytes:
    """Answer a batch of queries.

    Raises
    ------
    LimitExceeded
        If the hits do not fit into one message.
    """
    content_bytes = _content_bytes(result.vectors, result.metadata)
    twin = twins.SearchResponseTwin(receipt=encode_receipt(result.receipt))
    if content_bytes <= limits.message_bytes:
        hits = result.hits
        twin.counts.extend(hits.counts.tolist())
        twin.scores = np.ascontiguousarray(hits.scores, dtype="<f4").tobytes()
        _set_rows(twin, hits.ids, result.vectors, result.metadata)
    return serialize(
        twin,
        limits,
        content_bytes,
        field="k",
        advice="ask fewer queries, a smaller k, or leave vectors and metadata out",
    )


def decode_search_response(payload: bytes, include: types.Include) -> types.SearchResult:
    """Return the hits. `include` is the request's.

    Raises
    ------
    MalformedMessage
        If the parts do not fit together, or one that was asked for is missing.
    """
    twin, bulk = read_search_response(payload)
    ids = bulk.ids()
    scores = twin.scores
    if len(scores) % 4:
        raise MalformedMessage(f"{len(scores)} bytes are no float32s", field="scores")
    hits = types.TopK(
        counts=np.array(twin.counts, dtype=np.uint32),
        ids=ids,
        scores=np.frombuffer(scores, dtype="<f4"),
    )
    check_count("scores", hits.scores.size, ids.size)
    check_count("counts", int(hits.counts.sum(dtype=np.uint64)), ids.size)
    vectors, metadata = bulk.included(include, ids.size)
    return types.SearchResult(
        hits=hits, receipt=decode_receipt(twin.receipt), vectors=vectors, metadata=metadata
    )


def decode_search_stream_request(payload: bytes) -> NoReturn:
    """Refuse: searches by stream are not part of this release.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    Unsupported
        For all others.
    """
    parse(v1.SearchStreamRequest, payload)
    raise Unsupported("SearchStream is not part of this release")


def decode_explain_request(payload: bytes) -> NoReturn:
    """Refuse: explanations are not part of this release.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    Unsupported
        For all others.
    """
    parse(v1.ExplainRequest, payload)
    raise Unsupported("Explain is not part of this release")


# ---- Train, GetServerInfo ------------------------------------------------------------------------


def encode_train_request(request: types.TrainRequest) -> bytes:
    """Ask for a new index."""
    return v1.TrainRequest(collection=request.collection, wait=request.wait).SerializeToString()


def decode_train_request(payload: bytes) -> types.TrainRequest:
    """Return what to train."""
    request = parse(v1.TrainRequest, payload)
    return types.TrainRequest(collection=request.collection, wait=request.wait)


def encode_train_response(shards: Iterable[types.ShardDescription]) -> bytes:
    """Answer with the shards, in the order given."""
    return v1.TrainResponse(shards=[encode_shard(shard) for shard in shards]).SerializeToString()


def decode_train_response(payload: bytes) -> tuple[types.ShardDescription, ...]:
    """Return the shards, by number."""
    return tuple(decode_shard(shard) for shard in parse(v1.TrainResponse, payload).shards)


def encode_get_server_info_request() -> bytes:
    """Ask about the server."""
    return v1.GetServerInfoRequest().SerializeToString()


def decode_get_server_info_request(payload: bytes) -> None:
    """Check that this is the request."""
    parse(v1.GetServerInfoRequest, payload)


def encode_get_server_info_response(
    version: str, topology: types.Topology, limits: Limits
) -> bytes:
    """Answer with the version, who the server is, and the bounds in force."""
    return v1.GetServerInfoResponse(
        version=version,
        role=ROLES.number[topology.role],
        cluster=topology.cluster,
        placement_epoch=topology.placement_epoch,
        slots_total=SLOTS_TOTAL,
        shards=[
            v1.ShardPlacement(
                shard=placement.shard,
                slots=[v1.SlotRange(first=first, last=last) for first, last in placement.slots],
            )
            for placement in topology.shards
        ],
        limits=v1.Limits(**copied(limits, LIMITS_FIELDS)),
    ).SerializeToString()


def decode_get_server_info_response(payload: bytes) -> tuple[str, types.Topology, Limits]:
    """Return the version, who the server is, and the bounds in force."""
    response = parse(v1.GetServerInfoResponse, payload)
    topology = types.Topology(
        role=ROLES.member(response.role, "role", MalformedMessage),
        cluster=response.cluster,
        placement_epoch=response.placement_epoch,
        shards=tuple(
            types.ShardPlacement(
                shard=placement.shard,
                slots=tuple((slots.first, slots.last) for slots in placement.slots),
            )
            for placement in response.shards
        ),
    )
    return response.version, topology, Limits(**copied(response.limits, LIMITS_FIELDS))
