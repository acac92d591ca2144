"""Get, Count and List."""

from __future__ import annotations

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import PAGE_SIZE_DEFAULT, Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded
from vectorshard.shard.wire.bulk import content_bytes, ids_bytes, read_twin, write_answer
from vectorshard.shard.wire.ids import encode_ids, ids_of, split_ids
from vectorshard.shard.wire.opaque import decode_cursor, encode_cursor
from vectorshard.shard.wire.primitives import parse, str_of, uint32_of
from vectorshard.shard.wire.selection import (
    decode_include,
    encode_include,
    parse_filtered,
    required_selection,
    selected_filter,
    selected_ids,
    set_filter,
    set_selection,
)
from vectorshard.v1 import vectorshard_pb2 as v1


def encode_get_request(request: types.GetRequest) -> bytes:
    """Name the rows to return."""
    message = v1.GetRequest(collection=request.collection, include=encode_include(request.include))
    set_selection(message, request.ids, request.filter)
    return message.SerializeToString()


def decode_get_request(payload: bytes, limits: Limits) -> types.GetRequest:
    """Return which rows are requested; without an `include`, with vectors and metadata.

    Raises what `required_selection` raises, and MalformedMessage for bytes that do not parse.
    """
    request = parse_filtered(v1.GetRequest, payload, limits)
    ids, filter_ = required_selection(request, limits)
    include = types.Include(vectors=True, metadata=True)
    if request.HasField("include"):
        include = decode_include(request.include)
    return types.GetRequest(collection=request.collection, ids=ids, filter=filter_, include=include)


def encode_get_response(rows: types.Rows, limits: Limits) -> bytes:
    """Answer with rows. Raises LimitExceeded if they do not fit into one message."""
    return _encode_rows(rows, limits, field="ids", advice="request fewer ids")


def _encode_rows(rows: types.Rows, limits: Limits, *, field: str, advice: str) -> bytes:
    twin = twins.RowsTwin(cursor=encode_cursor(rows.cursor))
    if rows.damaged is not None:
        twin.damaged.CopyFrom(encode_ids(rows.damaged))
    return write_answer(
        twin,
        rows.ids,
        rows.vectors,
        rows.metadata,
        limits,
        is_json=rows.metadata_json,
        field=field,
        advice=advice,
    )


def decode_get_response(payload: bytes, include: types.Include) -> types.Rows:
    """Return the rows, as `_decode_rows` does. `include` is the request's."""
    return _decode_rows(v1.GetResponse, payload, include)


def _decode_rows(
    original: type[v1.GetResponse] | type[v1.ListResponse], payload: bytes, include: types.Include
) -> types.Rows:
    """Return the rows.

    Raises MalformedMessage if the parts do not match, or one that was requested is missing.
    """
    twin, bulk = read_twin(twins.RowsTwin, original, payload, _other_bytes)
    ids = bulk.ids()
    vectors, metadata = bulk.included(include, ids.size)
    damaged = ids_of(*split_ids(twin.damaged)) if twin.HasField("damaged") else None
    cursor = decode_cursor(twin.cursor)
    return types.Rows(
        ids=ids,
        vectors=vectors,
        metadata=metadata,
        cursor=cursor,
        damaged=damaged,
        metadata_json=include.metadata_json,
    )


def _other_bytes(twin: twins.RowsTwin) -> int:
    damaged = ids_bytes(twin.damaged) if twin.HasField("damaged") else 0
    return content_bytes(len(twin.cursor)) + damaged


def encode_count_request(request: types.CountRequest) -> bytes:
    """Request the number of live rows: all, those of the ids, or those that match a filter."""
    message = v1.CountRequest(collection=request.collection)
    set_selection(message, request.ids, request.filter)
    return message.SerializeToString()


def decode_count_request(payload: bytes, limits: Limits) -> types.CountRequest:
    """Return which rows to count.

    Raises what `selected_ids` and `selected_filter` raise, and MalformedMessage for bytes that do
    not parse.
    """
    request = parse_filtered(v1.CountRequest, payload, limits)
    return types.CountRequest(
        collection=request.collection,
        ids=selected_ids(request, limits),
        filter=selected_filter(request, limits),
    )


def encode_count_response(count: int) -> bytes:
    """Answer with the number of live rows."""
    return v1.CountResponse(count=count).SerializeToString()


def decode_count_response(payload: bytes) -> int:
    """Return the number of live rows."""
    return parse(v1.CountResponse, payload).count


def encode_list_request(request: types.ListRequest) -> bytes:
    """Request a page of rows.

    Raises InvalidParameter if the page size is not a uint32, or as `encode_filter` does.
    """
    message = v1.ListRequest(
        collection=str_of(request.collection, "collection", InvalidParameter),
        page_size=uint32_of(request.page_size, Limits().page_size, "page_size", InvalidParameter),
        cursor=encode_cursor(request.cursor),
        include=encode_include(request.include),
        skip_damaged=request.skip_damaged,
    )
    set_filter(message, request.filter)
    return message.SerializeToString()


def decode_list_request(payload: bytes, limits: Limits) -> types.ListRequest:
    """Return which page to list, with its default size filled in.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    LimitExceeded, InvalidParameter
        For a page size over the limit, an invalid cursor, or an invalid filter.
    """
    request = parse_filtered(v1.ListRequest, payload, limits)
    if request.page_size > limits.page_size:
        raise LimitExceeded(
            f"{request.page_size:,} exceeds the limit of {limits.page_size:,} rows",
            field="page_size",
        )
    return types.ListRequest(
        collection=request.collection,
        page_size=request.page_size or min(PAGE_SIZE_DEFAULT, limits.page_size),
        cursor=decode_cursor(request.cursor),
        filter=selected_filter(request, limits),
        include=decode_include(request.include),
        skip_damaged=request.skip_damaged,
    )


def encode_list_response(rows: types.Rows, limits: Limits) -> bytes:
    """Answer with a page of rows. Raises LimitExceeded if it does not fit into one message."""
    return _encode_rows(rows, limits, field="page_size", advice="request smaller pages")


def decode_list_response(payload: bytes, include: types.Include) -> types.Rows:
    """Return a page of rows, as `_decode_rows` does. `include` is the request's."""
    return _decode_rows(v1.ListResponse, payload, include)
