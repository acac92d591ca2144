"""Metadata: mappings to the one deterministic form of a google.protobuf.Struct, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any, Final

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError, EncodeError

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.wire.primitives import shown
from vectorshard.v1 import vectorshard_pb2 as v1

_DEEP_METADATA_BYTES = 190  # shorter metadata never nests too deep: 2 bytes a level, 100 levels
EXACT_INTEGER = 2**53
"""The largest magnitude up to which a double holds every integer."""


def metadata_from_mapping(mapping: Mapping[str, Any], row: int | None = None) -> bytes:
    """Return metadata as the deterministic bytes of a google.protobuf.Struct; {} is b"".

    Raises InvalidParameter for another type, NaN and infinity, an integer that a double does not
    hold exactly, text that is not UTF-8, or nesting that is too deep for a message.

    Values are None, bool, numbers (doubles), str, and mappings and sequences of these. An error
    names the `row` and the key.
    """
    struct = struct_pb2.Struct()
    try:
        _fill_struct(struct, mapping)
        metadata = struct.SerializeToString(deterministic=True)
        _check_depth(metadata)
    except (RecursionError, DecodeError):
        raise InvalidParameter("metadata nests too deep", field="metadata", row=row) from None
    except (TypeError, ValueError, EncodeError) as error:
        raise InvalidParameter(str(error), field="metadata", row=row) from None
    return metadata


def _fill_struct(struct: struct_pb2.Struct, mapping: Mapping[str, Any]) -> None:
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise TypeError(f"name {shown(name)} is not a string: pass str(name)")
        try:
            _fill_value(struct.fields[name], value)
        except (TypeError, ValueError) as error:
            raise type(error)(*_with_key(error, name)) from None


def _with_key(error: Exception, name: str) -> tuple[object, ...]:
    """Return the arguments of an error that also names the key, outermost first."""
    if isinstance(error, UnicodeError):
        return error.args  # it has no text of its own
    text = str(error)
    inner = text.removeprefix("key ")
    if inner != text:
        return (f"key {name}.{inner}",)
    return (f"key {name}: {text}",)


def _fill_value(target: struct_pb2.Value, value: Any) -> None:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        target.null_value = struct_pb2.NULL_VALUE
    elif isinstance(value, bool):
        target.bool_value = value
    elif isinstance(value, int | float):
        check_exact(value)
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number of JSON: leave it out, or use None")
        target.number_value = value
    elif isinstance(value, str):
        target.string_value = value
    elif isinstance(value, Mapping):
        target.struct_value.SetInParent()
        _fill_struct(target.struct_value, value)
    elif isinstance(value, list | tuple | np.ndarray):
        target.list_value.SetInParent()
        for element in value:
            _fill_value(target.list_value.values.add(), element)
    else:
        raise TypeError(f"type {type(value).__name__} is not supported in metadata{_cure(value)}")


_CURES: Final = {
    "date": ".isoformat()",
    "datetime": ".isoformat()",
    "time": ".isoformat()",
    "timedelta": ".total_seconds()",
    "Timestamp": ".isoformat()",
    "bytes": ".decode()",
}
"""What makes text or a number of a value, by the name of its type."""


def _cure(value: object) -> str:
    """Return what to pass instead of a value of another type."""
    kind = type(value).__name__
    if kind in _CURES:
        return f": use value{_CURES[kind]}"
    if isinstance(value, Set):
        return ": use a list, such as sorted(value)"
    if kind == "Decimal":
        return ": use float(value), or str(value) to keep all digits"
    return ": use str(value)" if kind == "UUID" else ""


def check_exact(number: float) -> None:
    """Raise ValueError for an integer beyond those that a double always holds exactly."""
    if isinstance(number, int) and not -EXACT_INTEGER <= number <= EXACT_INTEGER:
        raise ValueError(
            f"integer {number:,} is not in -2**53..2**53, which a double holds exactly: "
            "use a string"
        )


def mapping_from_metadata(metadata: bytes) -> dict[str, Any]:
    """Return the mapping of `metadata_from_mapping`'s bytes. An integral number is an int.

    Raises MalformedMessage if the bytes are not a google.protobuf.Struct.
    """
    if not metadata:
        return {}
    try:
        return _mapping_of(struct_pb2.Struct.FromString(metadata))
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None


def _mapping_of(struct: struct_pb2.Struct) -> dict[str, Any]:
    return {name: _value_of(value) for name, value in struct.fields.items()}


def _value_of(value: struct_pb2.Value, *, floats: bool = False) -> Any:
    """Return a value. With `floats`, an integral number is a float, too, unless in a struct."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return _mapping_of(value.struct_value)
    if kind == "list_value":
        return [_value_of(element, floats=floats) for element in value.list_value.values]
    if kind == "number_value" and not floats:
        number = value.number_value
        exact = number.is_integer() and abs(number) <= EXACT_INTEGER
        return int(number) if exact else number
    return getattr(value, kind)


def declared_values(metadata: bytes, names: Sequence[str]) -> list[Any]:
    """Return the values of the fields of these names; None where one is absent or null.

    Every number is a float; a list is a list of such values, a struct a dict. Raises
    MalformedMessage if the bytes are not a google.protobuf.Struct.
    """
    try:
        values = struct_pb2.Struct.FromString(metadata).fields
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None
    return [_value_of(values[name], floats=True) if name in values else None for name in names]


def canonical_metadata(metadata: Sequence[bytes], limits: Limits) -> list[bytes]:
    """Return each row's metadata in its deterministic form: equal metadata has equal bytes.

    Raises MalformedMessage if it is not a Struct or nests too deep, LimitExceeded for more bytes
    than the limits allow.
    """
    return [_canonical_struct(struct, row, limits) for row, struct in enumerate(metadata)]


def _canonical_struct(metadata: bytes, row: int, limits: Limits) -> bytes:
    if not metadata:
        return b""
    try:
        canonical = struct_pb2.Struct.FromString(metadata).SerializeToString(deterministic=True)
        _check_depth(canonical)
    except (DecodeError, EncodeError) as error:
        raise MalformedMessage(
            f"not a google.protobuf.Struct: {error}", field="metadata", row=row
        ) from None
    if len(canonical) > limits.metadata_bytes:
        raise LimitExceeded(
            f"{len(canonical):,} bytes exceed the limit of {limits.metadata_bytes:,} bytes",
            field="metadata",
            row=row,
        )
    return canonical


def _check_depth(metadata: bytes) -> None:
    """Raise DecodeError if it nests so deep that a response with it would not parse.

    protobuf rejects more than about 100 levels of messages, counted from the outermost, and
    SearchStreamResponse wraps metadata in the most levels.
    """
    if len(metadata) < _DEEP_METADATA_BYTES:
        return
    response = twins.SearchResponseTwin(metadata=[metadata]).SerializeToString()
    outer = v1.SearchStreamResponse.DESCRIPTOR.fields_by_name["response"].number
    v1.SearchStreamResponse.FromString(_delimited(outer, response))


def _delimited(number: int, content: bytes) -> bytes:
    """Return a length-delimited field, as the protobuf encoding defines it (wire type 2)."""
    head = bytearray([number << 3 | 2])
    length = len(content)
    while length > 0x7F:
        head.append(length & 0x7F | 0x80)
        length >>= 7
    head.append(length)
    return bytes(head) + content
