"""Get, Count and List."""

from __future__ import annotations

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import PAGE_SIZE_DEFAULT, Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded
from vectorshard.shard.wire.bulk import content_bytes, read_twin, write_answer
from vectorshard.shard.wire.opaque import decode_cursor, encode_cursor
from vectorshard.shard.wire.primitives import parse
from vectorshard.shard.wire.selection import (
    decode_include,
    encode_include,
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
    """Return which rows are asked for; without an `include`, vectors and metadata are.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse, neither ids nor filter, or both.
    InvalidId, LimitExceeded, InvalidParameter
        For an id, a number of ids, or a filter that cannot be.
    """
    request = parse(v1.GetRequest, payload)
    ids, filter_ = required_selection(request, limits)
    include = types.Include(vectors=True, metadata=True)
    if request.HasField("include"):
        include = decode_include(request.include)
    return types.GetRequest(collection=request.collection, ids=ids, filter=filter_, include=include)


def encode_get_response(rows: types.Rows, limits: Limits) -> bytes:
    """Answer with rows.

    Raises
    ------
    LimitExceeded
        If they do not fit into one message.
    """
    return _encode_rows(rows, limits, field="ids", advice="ask for fewer ids")


def _encode_rows(rows: types.Rows, limits: Limits, *, field: str, advice: str) -> bytes:
    twin = twins.RowsTwin(cursor=encode_cursor(rows.cursor))
    return write_answer(
        twin, rows.ids, rows.vectors, rows.metadata, limits, field=field, advice=advice
    )


def decode_get_response(payload: bytes, include: types.Include) -> types.Rows:
    """Return the rows. `include` is the request's.

    Raises
    ------
    MalformedMessage
        If the parts do not fit together, or one that was asked for is missing.
    """
    return _decode_rows(v1.GetResponse, payload, include)


def _decode_rows(
    original: type[v1.GetResponse] | type[v1.ListResponse], payload: bytes, include: types.Include
) -> types.Rows:
    twin, bulk = read_twin(
        twins.RowsTwin, original, payload, lambda twin: content_bytes(len(twin.cursor))
    )
    ids = bulk.ids()
    vectors, metadata = bulk.included(include, ids.size)
    return types.Rows(
        ids=ids, vectors=vectors, metadata=metadata, cursor=decode_cursor(twin.cursor)
    )


def encode_count_request(request: types.CountRequest) -> bytes:
    """Ask for the number of live rows: all, those of the ids, those that pass a filter."""
    message = v1.CountRequest(collection=request.collection)
    set_selection(message, request.ids, request.filter)
    return message.SerializeToString()


def decode_count_request(payload: bytes, limits: Limits) -> types.CountRequest:
    """Return what to count.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    InvalidId, LimitExceeded, InvalidParameter
        For an id, a number of ids, or a filter that cannot be.
    """
    request = parse(v1.CountRequest, payload)
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
    """Ask for a page of rows.

    Raises
    ------
    InvalidParameter
        If the page size is no uint32, or the filter cannot be written.
    """
    try:
        message = v1.ListRequest(
            collection=request.collection,
            page_size=request.page_size,
            cursor=encode_cursor(request.cursor),
            include=encode_include(request.include),
        )
    except (ValueError, TypeError) as error:
        raise InvalidParameter(str(error), field="page_size") from None
    set_filter(message, request.filter)
    return message.SerializeToString()


def decode_list_request(payload: bytes, limits: Limits) -> types.ListRequest:
    """Return which page to list, with its default size filled in.

    Raises
    ------
    MalformedMessage
        For bytes that do not parse.
    LimitExceeded, InvalidParameter
        For a page size over the limit, a cursor that is none, or a filter that cannot be.
    """
    request = parse(v1.ListRequest, payload)
    if request.page_size > limits.page_size:
        raise LimitExceeded(
            f"{request.page_size:,} rows a page, at most {limits.page_size:,}", field="page_size"
        )
    return types.ListRequest(
        collection=request.collection,
        page_size=request.page_size or min(PAGE_SIZE_DEFAULT, limits.page_size),
        cursor=decode_cursor(request.cursor),
        filter=selected_filter(request, limits),
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
    return _decode_rows(v1.ListResponse, payload, include)
