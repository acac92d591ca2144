"""What requests have in common: the rows that they mean, and what they want of them."""

from __future__ import annotations

from typing import TypeAlias

from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import MalformedMessage
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
    """Set ids and filter, where they are given.

    `ids` is present also when there are none: the kind of none is written.
    """
    if ids is not None:
        message.ids.MergeFromString(encode_ids(ids).SerializeToString())
    set_filter(message, filter_)


def set_filter(
    message: Filtered,
    filter_: Filter | None,
) -> None:
    """Set the filter, if there is one. Raises what `encode_filter` raises."""
    if filter_ is not None:
        message.filter.CopyFrom(encode_filter(filter_))


def selected_ids(
    request: v1.DeleteRequest | v1.GetRequest | v1.CountRequest, limits: Limits
) -> types.IdArray | None:
    """Return the ids (rows,) that a request names, checked, or None when it names none.

    Raises InvalidId and LimitExceeded as `check_ids` does.
    """
    if not request.HasField("ids"):
        return None
    ids = decode_ids(request.ids)
    check_ids(ids, limits)
    return ids


def selected_filter(
    request: Filtered,
    limits: Limits,
) -> Filter | None:
    """Return the filter of a request, or None. Raises what `decode_filter` raises."""
    return decode_filter(request.filter, limits) if request.HasField("filter") else None


def required_selection(
    request: v1.DeleteRequest | v1.GetRequest, limits: Limits
) -> tuple[types.IdArray | None, Filter | None]:
    """Return ids or filter of a request that must have one of them; the other is None.

    Raises MalformedMessage when it has neither, or both, and what the two alone raise.
    """
    ids, filter_ = selected_ids(request, limits), selected_filter(request, limits)
    if ids is None and filter_ is None:
        raise MalformedMessage("neither ids nor a filter", field="ids")
    if ids is not None and filter_ is not None:
        raise MalformedMessage("beside ids; give one of them", field="filter")
    return ids, filter_


def encode_include(include: types.Include) -> v1.Include:
    """Write what an answer is to bring along."""
    return v1.Include(vectors=include.vectors, metadata=include.metadata)


def decode_include(include: v1.Include) -> types.Include:
    """Return what an answer is to bring along."""
    return types.Include(vectors=include.vectors, metadata=include.metadata)
