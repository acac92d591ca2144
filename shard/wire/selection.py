"""What requests have in common: the selection of rows, and the fields to include."""

from __future__ import annotations

from typing import TypeAlias

from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.filters import Filter
from vectorshard.shard.wire.filters import decode_filter, encode_filter
from vectorshard.shard.wire.ids import check_ids, decode_ids, encode_ids
from vectorshard.v1 import vectorshard_pb2 as v1

Filtered: TypeAlias = (
    v1.DeleteRequest
    | v1.GetRequest
    | v1.CountRequest
    | v1.ListRequest
    | v1.SearchRequest
    | v1.ExplainRequest
)
"""Requests that may have a filter."""


def set_selection(
    message: v1.DeleteRequest | v1.GetRequest | v1.CountRequest,
    ids: types.IdArray | None,
    filter_: Filter | None,
) -> None:
    """Set ids and filter, unless they are None. An empty array of ids is set too."""
    if ids is not None:
        message.ids.MergeFromString(encode_ids(ids).SerializeToString())
    set_filter(message, filter_)


def set_filter(message: Filtered, filter_: Filter | None) -> None:
    """Set the filter, if there is one. Raises what `encode_filter` raises."""
    if filter_ is not None:
        message.filter.CopyFrom(encode_filter(filter_))


def selected_ids(
    request: v1.DeleteRequest | v1.GetRequest | v1.CountRequest, limits: Limits
) -> types.IdArray | None:
    """Return the validated ids (rows,) of a request, or None. Raises what `check_ids` raises."""
    if not request.HasField("ids"):
        return None
    ids = decode_ids(request.ids)
    check_ids(ids, limits)
    return ids


def selected_filter(request: Filtered, limits: Limits) -> Filter | None:
    """Return the filter of a request, or None. Raises what `decode_filter` raises."""
    return decode_filter(request.filter, limits) if request.HasField("filter") else None


def required_selection(
    request: v1.DeleteRequest | v1.GetRequest, limits: Limits
) -> tuple[types.IdArray | None, Filter | None]:
    """Return ids or filter, and None for the other, of a request that must have exactly one.

    Raises MalformedMessage if it has neither or both, and what `selected_ids` and
    `selected_filter` raise.
    """
    ids, filter_ = selected_ids(request, limits), selected_filter(request, limits)
    if ids is None and filter_ is None:
        raise MalformedMessage("ids or filter is required", field="ids")
    if ids is not None and filter_ is not None:
        raise MalformedMessage("ids and filter are mutually exclusive", field="filter")
    return ids, filter_


def encode_include(include: types.Include) -> v1.Include:
    """Write which fields of rows a response includes. Raises InvalidParameter unless bools."""
    try:
        return v1.Include(vectors=include.vectors, metadata=include.metadata)
    except TypeError:
        reason = "vectors and metadata are true or false"
        raise InvalidParameter(reason, field="include") from None


def decode_include(include: v1.Include) -> types.Include:
    """Return which fields of rows a response includes."""
    return types.Include(vectors=include.vectors, metadata=include.metadata)
