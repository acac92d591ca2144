"""The declared fields of rows' metadata: which values each field type takes. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from vectorshard.shard import wire
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.rows.filter_columns import FieldValue, FieldValues
from vectorshard.shard.types import CollectionConfig, FieldType

_INT64_LIMIT: Final = 2.0**63
NUMBERS: Final = (FieldType.INT64, FieldType.DOUBLE)
TAKES: Final[Mapping[FieldType, str]] = {
    FieldType.KEYWORD: "a string or a list of strings",
    FieldType.INT64: "a whole number of 64 bits",
    FieldType.DOUBLE: "a number",
    FieldType.BOOL: "true or false",
}


def declared_fields(
    config: CollectionConfig, metadata: Sequence[bytes] | None
) -> list[FieldValues] | None:
    """Return the declared fields of each row of a batch, or None when there is nothing of them.

    A field may be absent or null. Without declared fields no metadata is looked into.

    Raises
    ------
    InvalidParameter
        If a declared field is of another type than it was declared with; names the row.
    """
    if metadata is None or not config.filter_fields:
        return None
    names = [field.name for field in config.filter_fields]
    nothing: FieldValues = (None,) * len(names)
    return [
        _field_values(config, wire.declared_values(each, names), row) if each else nothing
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
    raise InvalidParameter(
        f"is declared as {field_type.name}, {TAKES[field_type]}", field=f"metadata.{name}", row=row
    )


def is_of(field_type: FieldType, value: Any) -> bool:
    """Say whether a single value, numbers being float, is of a field's type."""
    if field_type is FieldType.KEYWORD:
        return isinstance(value, str)
    if field_type is FieldType.BOOL:
        return isinstance(value, bool)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if field_type is FieldType.INT64:
        return float(value).is_integer() and -_INT64_LIMIT <= value < _INT64_LIMIT
    return True
