"""What requests have in common: the rows that they mean, and what they want of them."""

from __future__ import annotations

from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types
from shard.config import Limits
from shard.errors import MalformedMessage, Unsupported
from shard.wire.ids import check_ids, decode_ids, encode_ids


def set_ids(
    message: v1.DeleteRequest | v1.GetRequest | v1.CountRequest, ids: types.IdArray
) -> None:
    """Set `ids`, which is present also when there are none: the kind of none is written."""
    message.ids.MergeFromString(encode_ids(ids).SerializeToString())


def selected_ids(
    request: v1.DeleteRequest | v1.GetRequest | v1.CountRequest, limits: Limits
) -> types.IdArray | None:
    """Return the ids (rows,) that a request names, checked, or None when it names none.

    Raises InvalidId and LimitExceeded as `check_ids` does, Unsupported for a filter.
    """
    refuse_filter(request)
    if not request.HasField("ids"):
        return None
    ids = decode_ids(request.ids)
    check_ids(ids, limits)
    return ids


def required_ids(request: v1.DeleteRequest | v1.GetRequest, limits: Limits) -> types.IdArray:
    """Return `selected_ids`; raise MalformedMessage when the request names none."""
    ids = selected_ids(request, limits)
    if ids is None:
        raise MalformedMessage("neither ids nor a filter", field="ids")
    return ids


def refuse_filter(
    request: v1.DeleteRequest
    | v1.GetRequest
    | v1.CountRequest
    | v1.ListRequest
    | v1.SearchRequest
    | v1.ExplainRequest,
) -> None:
    """Raise Unsupported for a request with a filter."""
    if request.HasField("filter"):
        raise Unsupported("filters are not part of this release")


def encode_include(include: types.Include) -> v1.Include:
    """Write what an answer is to bring along."""
    return v1.Include(vectors=include.vectors, metadata=include.metadata)


def decode_include(include: v1.Include) -> types.Include:
    """Return what an answer is to bring along."""
    return types.Include(vectors=include.vectors, metadata=include.metadata)
