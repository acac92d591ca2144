"""Metadata as a server takes it: one canonical form for equal content, and its declared fields.

Rows are parsed and serialized together, in a few calls of protobuf: row by row they take three
times as long. Only if some are refused, they are looked at one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Final

from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, EncodeError

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.wire.metadata import (
    NOT_FINITE,
    check_depth,
    deepest_response,
    metadata_from_mapping,
    parsed_structs,
)
from vectorshard.shard.wire.primitives import shown

_FROM_JSON: Final = json.JSONDecoder().decode
_JSON: Final = "metadata_json"

_AT_ONCE: Final = 1_000
"""Rows that one call of protobuf parses; it keeps the GIL meanwhile."""

_MAY_NOT_BE_FINITE: Final = re.compile(rb"\x11.{6}[\xf0-\xff][\x7f\xff]", re.DOTALL)
"""Finds every double of a Value that is NaN or infinite, by its exponent, and perhaps others."""


def canonical_metadata(metadata: Sequence[bytes], limits: Limits) -> Sequence[bytes]:
    """Return each row's metadata in its deterministic form: equal metadata has equal bytes.

    Raises
    ------
    MalformedMessage
        If it is not a Struct, or nests too deep.
    InvalidParameter
        For NaN or infinity, which JSON does not have. Names the row and the key.
    LimitExceeded
        For more bytes than the limits allow.
    """
    canonical: list[bytes] = []
    for first in range(0, len(metadata), _AT_ONCE):
        piece = metadata[first : first + _AT_ONCE]
        try:
            canonical += _canonical_piece(piece)
        except (DecodeError, EncodeError):
            canonical += [_canonical_row(each, first + row) for row, each in enumerate(piece)]
    _check_sizes(canonical, limits, "metadata")
    if _MAY_NOT_BE_FINITE.search(b"".join(canonical)):
        for row, each in enumerate(canonical):
            if _MAY_NOT_BE_FINITE.search(each):
                _require_finite(each, row)
    return canonical


def metadata_from_json(metadata: Sequence[bytes], limits: Limits) -> Sequence[bytes]:
    """Return each row's metadata, a JSON object or nothing, in the form of `canonical_metadata`.

    Raises
    ------
    MalformedMessage
        If it is not a JSON object in UTF-8.
    InvalidParameter
        For NaN, infinity, an integer that a double does not hold, text that UTF-8 does not encode,
        or nesting that is too deep. Names the row and the key.
    LimitExceeded
        For more bytes than the limits allow.
    """
    canonical = [_row_from_json(each, row) if each else b"" for row, each in enumerate(metadata)]
    _check_sizes(canonical, limits, "metadata_json")
    return canonical


def _row_from_json(metadata: bytes, row: int) -> bytes:
    try:
        mapping = _FROM_JSON(metadata.decode())
    except RecursionError:
        reason = "metadata nests too deep"
        raise InvalidParameter(reason, field=_JSON, row=row) from None
    except ValueError as error:
        raise MalformedMessage(f"not JSON in UTF-8: {error}", field=_JSON, row=row) from None
    if not isinstance(mapping, dict):
        raise MalformedMessage(f"{shown(mapping)} is not an object", field=_JSON, row=row)
    return metadata_from_mapping(mapping, row, _JSON)


def _check_sizes(canonical: Sequence[bytes], limits: Limits, field: str) -> None:
    sizes = list(map(len, canonical))
    if max(sizes, default=0) > limits.metadata_bytes:
        row = next(row for row, size in enumerate(sizes) if size > limits.metadata_bytes)
        raise LimitExceeded(
            f"{sizes[row]:,} bytes exceed the limit of {limits.metadata_bytes:,} bytes",
            field=field,
            row=row,
        )


def _canonical_piece(metadata: Sequence[bytes]) -> Sequence[bytes]:
    given = twins.SearchResponseTwin(metadata=metadata).SerializeToString()
    canonical = deepest_response(given).response.SerializeToString(deterministic=True)
    if canonical == given:
        return metadata
    return list(twins.SearchResponseTwin.FromString(canonical).metadata)


def _canonical_row(metadata: bytes, row: int) -> bytes:
    try:
        canonical = struct_pb2.Struct.FromString(metadata).SerializeToString(deterministic=True)
        check_depth(canonical)
    except (DecodeError, EncodeError) as error:
        raise MalformedMessage(
            f"not a google.protobuf.Struct: {error}", field="metadata", row=row
        ) from None
    return canonical


def _require_finite(metadata: bytes, row: int) -> None:
    for path, number in _numbers_of(struct_pb2.Struct.FromString(metadata), ""):
        if number - number != 0:
            reason = f"key {path}: {NOT_FINITE.format(number)}"
            raise InvalidParameter(reason, field="metadata", row=row)


def _numbers_of(struct: struct_pb2.Struct, prefix: str) -> Iterator[tuple[str, float]]:
    """Yield the numbers of a Struct and their keys."""
    for name, value in struct.fields.items():
        yield from _numbers_in(value, prefix + name)


def _numbers_in(value: struct_pb2.Value, path: str) -> Iterator[tuple[str, float]]:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        yield path, value.number_value
    elif kind == "struct_value":
        yield from _numbers_of(value.struct_value, path + ".")
    elif kind == "list_value":
        for each in value.list_value.values:
            yield from _numbers_in(each, path)


def field_columns(metadata: Sequence[bytes], names: Sequence[str]) -> list[list[bytes | None]]:
    """Return the fields of these names, for each name one serialized Value a row; None if absent.

    Raises MalformedMessage if the bytes are not a google.protobuf.Struct.
    """
    try:
        fields = [struct.fields for struct in parsed_structs(metadata)]
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None
    return [[of_row.get(name) for of_row in fields] for name in names]
