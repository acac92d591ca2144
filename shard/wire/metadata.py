"""Metadata: mappings to the one deterministic form of a google.protobuf.Struct, and back."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Mapping, Sequence, Set
from functools import lru_cache
from math import copysign, isfinite
from typing import Any, Final

import numpy as np
from google.protobuf import struct_pb2
from google.protobuf.message import DecodeError

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.wire.primitives import TIMES, shown
from vectorshard.v1 import vectorshard_pb2 as v1

_DEEP_METADATA_BYTES = 190  # shorter metadata never nests too deep: 2 bytes a level, 100 levels
_SAFE_LEVELS: Final = 16  # a Struct in a Struct takes three levels of messages
EXACT_INTEGER = 2**53
"""The largest magnitude up to which a double holds every integer."""
NOT_FINITE: Final = "{} is not a number of JSON: leave it out, or use None"

_TO_JSON: Final = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
).encode
_PACK: Final = struct.Struct("<d").pack
_UNPACK: Final = struct.Struct("<d").unpack_from
_REMEMBERED_CHARS: Final = 100  # longer keys are not kept in memory
NUMBER_TAG, _STRING_TAG = 0x11, 0x1A
NUMBER_BYTES: Final = 9
"""The first byte and the length of a google.protobuf.Value that is a number."""
_SHORT_BYTES: Final = 130  # of a string whose length fits in one byte, with its head
_CONSTANTS: Final = {b"\x20\x01": True, b"\x20\x00": False, b"\x08\x00": None}


def metadata_from_mapping(
    mapping: Mapping[str, Any], row: int | None = None, field: str = "metadata"
) -> bytes:
    """Return metadata as the deterministic bytes of a google.protobuf.Struct; {} is b"".

    Raises InvalidParameter for another type, NaN and infinity, an integer that a double does not
    hold exactly, text that is not UTF-8, or nesting that is too deep for a message.

    Values are None, bool, numbers (doubles), str, and mappings and sequences of these. An error
    names the `field` of the request, the `row` and the key.
    """
    try:
        try:
            return _struct_of(mapping, _SAFE_LEVELS)
        except _NestsDeep:
            metadata = _struct_of(mapping, sys.maxsize)
            check_depth(metadata)
            return metadata
    except (RecursionError, DecodeError):
        cure = f"use at most {_SAFE_LEVELS} levels, or text such as JSON"
        reason = f"key {_deep_key(mapping)}: nests too deep: {cure}"
        raise InvalidParameter(reason, field=field, row=row) from None
    except (TypeError, ValueError) as error:
        raise InvalidParameter(str(error), field=field, row=row) from None


# ---- writing ------------------------------------------------------------------------------------
# By hand, as the protobuf encoding defines it: an object of protobuf for each value takes five
# times as long. The fields of a Struct are a map, whose entries are messages of a key (field 1) and
# a Value (field 2). protobuf sorts them by the UTF-8 of their keys, "ab" before "a" but after "aa".


class _NestsDeep(Exception):
    """It nests deeper than all messages allow for certain."""


@lru_cache(maxsize=1_024)
def _entry_parts(name: str) -> tuple[bytes, bytes, int, bytes, bytes, bytes, bytes]:
    """Return what entries of a map have in front of their values.

    What the entries are sorted by; the key as a field with the tag of the value; its length; all of
    an entry before a double; and the entries of True, False and None as a whole.
    """
    text = _utf8(name, "name")
    key = _delimited(1, text) + _tag(2)
    length = len(key)
    number = _tag(1) + _varint(length + 10) + key + b"\x09\x11"
    short = _tag(1) + _varint(length + 3) + key + b"\x02"
    after = text + b"\xff"  # which is in no UTF-8: so a key comes after those that begin with it
    return after, key, length, number, short + b"\x20\x01", short + b"\x20\x00", short + b"\x08\x00"


def _struct_of(mapping: Mapping[str, Any], levels: int) -> bytes:
    if not levels:
        raise _NestsDeep
    entries = []
    for name, value in mapping.items():
        if not isinstance(name, str):
            raise TypeError(f"name {shown(name)} is not a string: pass str(name)")
        parts = _entry_parts if len(name) <= _REMEMBERED_CHARS else _entry_parts.__wrapped__
        place, key, length, number, true, false, null = parts(name)
        kind = type(value)
        if kind is str:
            try:
                text = value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"key {name}: {_not_utf8(value)}") from None
            size = len(text)
            if length + size < 123:  # all three lengths fit in a byte
                entry = b"\n%c%b%c\x1a%c%b" % (length + size + 3, key, size + 2, size, text)
            else:
                entry = _delimited(1, key + _sized(_delimited(3, text)))
        elif (kind is float and isfinite(value)) or (
            kind is int and -EXACT_INTEGER <= value <= EXACT_INTEGER
        ):
            entry = number + _PACK(value)
        elif value is None:
            entry = null
        elif kind is bool:
            entry = true if value else false
        else:
            try:
                entry = _delimited(1, key + _sized(_value_bytes(value, levels)))
            except (TypeError, ValueError) as error:
                raise type(error)(_with_key(error, name)) from None
        entries.append((place, entry))
    entries.sort()
    return b"".join([entry for _, entry in entries])


def _deep_key(mapping: Mapping[str, Any]) -> str:
    """Return the first key whose value nests too deep for a message."""
    for name, value in mapping.items():
        try:
            check_depth(_struct_of({name: value}, sys.maxsize))
        except (RecursionError, DecodeError):
            return name
    return ", ".join(mapping)


def _utf8(text: str, what: str = "value") -> bytes:
    """Return text as UTF-8; ValueError for text that UTF-8 cannot hold."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise ValueError(_not_utf8(text, what)) from None


def _not_utf8(text: str, what: str = "value") -> str:
    """Return why a text is refused, and what to do; `what` names it."""
    return (
        f"{what} {shown(text)} has a lone surrogate, which UTF-8 cannot hold: "
        f'use {what}.encode("utf-8", "replace").decode()'
    )


def _value_bytes(value: Any, levels: int) -> bytes:
    """Return a Value; `levels` of nesting are left."""
    if isinstance(value, np.generic) and not isinstance(value, TIMES):
        value = value.item()
    if value is None:
        return b"\x08\x00"
    if isinstance(value, bool):
        return b"\x20\x01" if value else b"\x20\x00"
    if isinstance(value, int | float):
        check_exact(value)
        if not isfinite(value):
            raise ValueError(NOT_FINITE.format(value))
        return b"\x11" + _PACK(value)
    if isinstance(value, str):
        return _delimited(3, _utf8(value))
    if isinstance(value, Mapping):
        return _delimited(5, _struct_of(value, levels - 1))
    if isinstance(value, list | tuple | np.ndarray):
        if levels <= 1:
            raise _NestsDeep
        elements = value if not isinstance(value, np.ndarray) or value.ndim else [value[()]]
        values = [_delimited(1, _value_bytes(element, levels - 1)) for element in elements]
        return _delimited(6, b"".join(values))
    raise TypeError(f"type {type(value).__name__} is not supported in metadata{_cure(value)}")


def _tag(number: int) -> bytes:
    return bytes((number << 3 | 2,))


def _varint(value: int) -> bytes:
    head = bytearray()
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    head.append(value)
    return bytes(head)


def _sized(content: bytes) -> bytes:
    return _varint(len(content)) + content


def _delimited(number: int, content: bytes) -> bytes:
    """Return a length-delimited field (wire type 2)."""
    return _tag(number) + _sized(content)


def check_depth(metadata: bytes) -> None:
    """Raise DecodeError if metadata nests so deep that a response with it would not parse.

    protobuf rejects more than about 100 levels of messages, counted from the outermost, and
    SearchStreamResponse wraps metadata in the most levels.
    """
    if len(metadata) >= _DEEP_METADATA_BYTES:
        deepest_response(twins.SearchResponseTwin(metadata=[metadata]).SerializeToString())


def deepest_response(response: bytes) -> v1.SearchStreamResponse:
    """Parse a SearchResponse inside of the message that nests it deepest.

    Raises DecodeError if it does not parse.
    """
    outer = v1.SearchStreamResponse.DESCRIPTOR.fields_by_name["response"].number
    return v1.SearchStreamResponse.FromString(_delimited(outer, response))


def _with_key(error: Exception, name: str) -> str:
    """Return the text of an error that also names the key, outermost first."""
    text = str(error)
    inner = text.removeprefix("key ")
    if inner != text:
        return f"key {name}.{inner}"
    return f"key {name}: {text}"


_CURES: Final = {
    "date": ".isoformat()",
    "datetime": ".isoformat()",
    "time": ".isoformat()",
    "timedelta": ".total_seconds()",
    "Timestamp": ".isoformat()",
    "Timedelta": ".total_seconds()",
    "datetime64": ".astype(str)",
    "timedelta64": ".astype(str)",
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
    for method in ("as_py", "to_pylist", "tolist"):  # of Arrow; of pandas and torch
        if hasattr(value, method):
            return f": use value.{method}()"
    return ": use str(value)" if kind == "UUID" else ""


def check_exact(number: float) -> None:
    """Raise ValueError for an integer beyond those that a double always holds exactly."""
    if isinstance(number, int) and not -EXACT_INTEGER <= number <= EXACT_INTEGER:
        raise ValueError(
            f"integer {number:,} is not in -2**53..2**53, which a double holds exactly: "
            "use a string"
        )


# ---- reading ------------------------------------------------------------------------------------


def mapping_from_metadata(metadata: bytes) -> dict[str, Any]:
    """Return the mapping of `metadata_from_mapping`'s bytes. Integral numbers are ints.

    Raises MalformedMessage if the bytes are not a google.protobuf.Struct.
    """
    if not metadata:
        return {}
    try:
        return _mapping_of(twins.StructTwin.FromString(metadata))
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None


def mappings_from_metadata(metadata: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the mapping of each row's metadata, as `mapping_from_metadata` does."""
    try:
        return [_mapping_of(struct) for struct in parsed_structs(metadata)]
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None


def json_from_metadata(metadata: Sequence[bytes]) -> list[bytes]:
    """Return each row's metadata as a JSON object; empty where a row has none.

    NaN and infinity, which earlier releases took, become null.
    """
    mappings = mappings_from_metadata(metadata)
    return [
        _json_of(mapping) if each else b"" for mapping, each in zip(mappings, metadata, strict=True)
    ]


def _json_of(mapping: dict[str, Any]) -> bytes:
    try:
        return _TO_JSON(mapping).encode()
    except ValueError:
        return _TO_JSON(_finite(mapping)).encode()


def _finite(value: Any) -> Any:
    """Return a value with None for each number that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def parsed_structs(metadata: Sequence[bytes]) -> Sequence[twins.StructTwin]:
    """Parse metadata, a Struct for each row, whose values stay bytes. Raises DecodeError."""
    packed = twins.StructsTwin(structs=metadata).SerializeToString()
    return twins.Structs.FromString(packed).structs


def _mapping_of(struct: twins.StructTwin) -> dict[str, Any]:
    fields = struct.fields
    return {name: value_of(fields[name]) for name in fields}


def value_of(value: bytes, *, floats: bool = False) -> Any:
    """Return the value of a serialized Value. Raises MalformedMessage.

    With `floats`, an integral number is a float, too, unless in a struct.
    """
    length = len(value)
    if length == NUMBER_BYTES and value[0] == NUMBER_TAG:
        (number,) = _UNPACK(value, 1)
        return number if floats else _plain(number)
    if 2 <= length < _SHORT_BYTES:
        if value[0] == _STRING_TAG and value[1] == length - 2:
            try:
                return value[2:].decode()
            except UnicodeDecodeError as error:
                raise MalformedMessage(str(error), field="metadata") from None
        if value in _CONSTANTS:
            return _CONSTANTS[value]
    try:
        return _parsed_value(struct_pb2.Value.FromString(value), floats=floats)
    except DecodeError as error:
        raise MalformedMessage(str(error), field="metadata") from None


def _parsed_value(value: struct_pb2.Value, *, floats: bool) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        fields = value.struct_value.fields
        return {name: _parsed_value(each, floats=False) for name, each in fields.items()}
    if kind == "list_value":
        return [_parsed_value(element, floats=floats) for element in value.list_value.values]
    if kind == "number_value" and not floats:
        return _plain(value.number_value)
    return getattr(value, kind)


def _plain(number: float) -> float:
    """Return an integral number as an int, if that is the same number: -0.0 is not."""
    exact = number.is_integer() and abs(number) <= EXACT_INTEGER
    return int(number) if exact and (number or copysign(1.0, number) > 0) else number
