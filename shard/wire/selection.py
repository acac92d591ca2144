"""What requests have in common: the selection of rows, and the fields to include."""

from __future__ import annotations

from typing import Final, TypeAlias, TypeVar

from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.filters import Filter
from vectorshard.shard.wire.filters import decode_filter, encode_filter
from vectorshard.shard.wire.ids import check_ids, decode_ids, encode_ids
from vectorshard.shard.wire.primitives import parse
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

FilteredT = TypeVar("FilteredT", bound=Filtered)

_FIELDS_MAX: Final = 1_000
"""Fields that are looked at: more than any message has, few enough to look at on the event loop."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def parse_filtered(message: type[FilteredT], payload: bytes, limits: Limits) -> FilteredT:
    """Return the message. Raises MalformedMessage, and LimitExceeded for a filter of many bytes.

    Such a filter is refused before it is parsed: a million values take seconds.
    """
    if len(payload) > limits.filter_bytes:
        filter_bytes = _bytes_of(payload, message.DESCRIPTOR.fields_by_name["filter"].number)
        if filter_bytes > limits.filter_bytes:
            raise LimitExceeded(
                f"filter has {filter_bytes:,} bytes, the limit is {limits.filter_bytes:,}",
                field="filter",
            )
    return parse(message, payload)


def _bytes_of(payload: bytes, number: int) -> int:
    """Return the bytes of field `number` of a message, wherever and however often it occurs.

    Source: "Encoding", protobuf.dev. What does not parse is left to the parser to name.
    """
    place = found = 0
    try:
        for _ in range(_FIELDS_MAX):
            if place >= len(payload):
                return found
            tag, place = _varint(payload, place)
            kind = tag & 7
            if kind == _VARINT:
                _, place = _varint(payload, place)
            elif kind == _BYTES:
                length, place = _varint(payload, place)
                place += length
                found += length if tag >> 3 == number else 0
            elif kind in (_FIXED64, _FIXED32):
                place += 8 if kind == _FIXED64 else 4
            else:
                raise MalformedMessage("it contains a group", field="message")
    except IndexError:
        return found
    raise MalformedMessage(f"it has more than {_FIELDS_MAX:,} fields", field="message")


def _varint(payload: bytes, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = payload[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise MalformedMessage("a number of more than 64 bits", field="message")


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
        return v1.Include(
            vectors=include.vectors,
            metadata=include.metadata,
            metadata_json=include.metadata_json,
        )
    except TypeError:
        reason = "vectors and metadata are true or false"
        raise InvalidParameter(reason, field="include") from None


def decode_include(include: v1.Include) -> types.Include:
    """Return which fields of rows a response includes."""
    return types.Include(
        vectors=include.vectors,
        metadata=include.metadata or include.metadata_json,
        metadata_json=include.metadata_json,
    )
