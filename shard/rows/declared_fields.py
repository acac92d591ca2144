"""The declared fields in rows' metadata, and the values that each field type allows. Pure."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.rows.filter_columns import FieldValue, FieldValues
from vectorshard.shard.types import CollectionConfig, FieldType
from vectorshard.shard.wire.metadata import declared_values

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
    names = [field.name for field in config.filter_fields]
    nothing: FieldValues = (None,) * len(names)
    return [
        _field_values(config, declared_values(each, names), row) if each else nothing
        for row, each in enumerate(metadata)
    ]


def _field_values(config: CollectionConfig, values: Sequence[Any], row: int) -> FieldValues:
    return tuple(
        _field_value(field.name, field.type, value, row)
        for field, value in zip(config.filter_fields, values, strict=True)
    )


def _field_value(name: str, field_type: FieldType, value: Any, row: int) -> FieldValue:
    if value is None:
        return None
    if field_type is FieldType.KEYWORD:
        keywords = value if isinstance(value, list) else [value]
        if all(isinstance(keyword, str) for keyword in keywords):
            return tuple(keywords)
    elif is_of(field_type, value):
        return value  # type: ignore[no-any-return]
    reason = f"expected {TAKES[field_type]} ({field_type.name}), got {reprlib.repr(value)}"
    raise InvalidParameter(reason, field=f"metadata.{name}", row=row)


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
