"""The declared fields in rows' metadata, and the values that each field type allows. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.rows.filter_columns import FieldValue, FieldValues
from vectorshard.shard.types import CollectionConfig, FieldType, FilterField
from vectorshard.shard.wire.canonical_metadata import field_columns
from vectorshard.shard.wire.metadata import NUMBER_BYTES, NUMBER_TAG, value_of

_INT64_LIMIT: Final = 2.0**63
NUMBERS: Final = (FieldType.INT64, FieldType.DOUBLE)
TAKES: Final[Mapping[FieldType, str]] = {
    FieldType.KEYWORD: "a string or a list of strings",
    FieldType.INT64: "a 64-bit integer",
    FieldType.DOUBLE: "a number",
    FieldType.BOOL: "true or false",
}


def declared_fields(
    config: CollectionConfig, metadata: Sequence[bytes] | None
) -> list[FieldValues] | None:
    """Return the declared fields of each row of a batch; None without metadata or declared fields.

    A field may be absent or null. Raises InvalidParameter if a value does not have the declared
    type; names the row.
    """
    if metadata is None or not config.filter_fields:
        return None
    fields = config.filter_fields
    columns: list[Sequence[FieldValue]] = []
    refused: list[InvalidParameter] = []
    for field, raw in zip(fields, field_columns(metadata, [f.name for f in fields]), strict=True):
        try:
            columns.append(_column(field, raw))
        except InvalidParameter as error:
            refused.append(error)
    if refused:
        raise min(refused, key=lambda error: error.row or 0)
    return list(zip(*columns, strict=True))


def _column(field: FilterField, raw: Sequence[bytes | None]) -> Sequence[FieldValue]:
    """Return a field of each row, from serialized Values; None where it is absent."""
    if field.type in NUMBERS and (numbers := _numbers(field.type, raw)) is not None:
        return numbers
    values = _Values(field, raw)
    return [values[each] for each in raw]


def _numbers(field_type: FieldType, raw: Sequence[bytes | None]) -> list[float] | None:
    """Return the numbers of a field, if every row has one of its type."""
    try:
        packed = np.frombuffer(b"".join(raw), np.uint8)  # type: ignore[arg-type]
    except TypeError:
        return None
    if set(map(len, raw)) != {NUMBER_BYTES}:  # type: ignore[arg-type]
        return None
    values = packed.reshape(-1, NUMBER_BYTES)
    if (values[:, 0] != NUMBER_TAG).any():
        return None
    numbers = np.ascontiguousarray(values[:, 1:]).view("<f8")[:, 0]
    if field_type is FieldType.INT64:
        whole = (numbers == np.floor(numbers)) & (np.abs(numbers) < _INT64_LIMIT)
        if not whole.all():
            return None
    found: list[float] = numbers.tolist()
    return found


class _Values(dict[bytes | None, FieldValue]):
    """The values of a field by their bytes: rows have the same ones again and again."""

    def __init__(self, field: FilterField, raw: Sequence[bytes | None]) -> None:
        super().__init__({None: None})
        self._field = field
        self._raw = raw

    def __missing__(self, raw: bytes) -> FieldValue:
        value = _field_value(self._field, raw, self._raw)
        self[raw] = value
        return value


def _field_value(field: FilterField, raw: bytes, column: Sequence[bytes | None]) -> FieldValue:
    value = value_of(raw, floats=True)
    if value is None:
        return None
    if field.type is FieldType.KEYWORD:
        keywords = value if isinstance(value, list) else [value]
        if all(isinstance(keyword, str) for keyword in keywords):
            return tuple(keywords)
    elif is_of(field.type, value):
        return value  # type: ignore[no-any-return]
    reason = f"expected {TAKES[field.type]} ({field.type.name}), got {reprlib.repr(value)}"
    raise InvalidParameter(reason, field=f"metadata.{field.name}", row=column.index(raw))


def is_of(field_type: FieldType, value: Any) -> bool:
    """Return whether a single value, with numbers as float, has a field's type."""
    if field_type is FieldType.KEYWORD:
        return isinstance(value, str)
    if field_type is FieldType.BOOL:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if field_type is FieldType.INT64:
        return float(value).is_integer() and -_INT64_LIMIT <= value < _INT64_LIMIT
    return True
