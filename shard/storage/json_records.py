"""JSON records on disk: frozen dataclasses to JSON and back, strictly.

Pure. One kind of error names the file and the field. Which records there are, and where, must not
enter here; docs/formats.md lists them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")

_HINTS: Final[dict[object, Mapping[str, Any]]] = {}
"""The types of each record's fields: finding them takes longer than the rest of its reading."""


class InvalidRecord(ValueError):
    """JSON that does not hold the expected record. The text names the file and the field."""


def to_json(record: DataclassInstance, **layout: Any) -> str:
    """Return a record as JSON, enums by value; `layout` is what else `json.dumps` takes."""
    return json.dumps(asdict(record), default=lambda member: member.value, **layout)


def from_json(kind: type[T], text: str, source: str, optional: Collection[str] = ()) -> T:
    """Return the record in a JSON text: `record_of` what `parsed_object` returns."""
    return record_of(kind, parsed_object(text, source), source, optional)


def parsed_object(text: str | bytes, source: str) -> dict[str, object]:
    """Return the fields of a JSON object; InvalidRecord for anything else names `source`."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRecord(f"{source}: invalid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRecord(f"{source}: expected an object, found {parsed!r}")
    return parsed


def record_of(
    kind: type[T], parsed: Mapping[str, object], source: str, optional: Collection[str] = ()
) -> T:
    """Return the record of a parsed JSON object.

    Its fields are those of the dataclass `kind`: str, int, float (an integer stays one), enums by
    value, dataclasses, and tuples of these. Only fields in `optional` may be absent. Raises
    InvalidRecord if a field is unknown, missing or of another type.
    """
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(parsed.keys() - names):
        raise InvalidRecord(f"{source}: unknown field {unknown[0]}")
    if missing := sorted(names - parsed.keys() - set(optional)):
        raise InvalidRecord(f"{source}: missing field {missing[0]}")
    hints = _HINTS.get(kind) or _HINTS.setdefault(kind, get_type_hints(kind))
    return kind(
        **{name: _value(hints[name], value, f"{source}: {name}") for name, value in parsed.items()}
    )


def _value(hint: Any, value: object, where: str) -> Any:
    """Return a parsed value as a field of type `hint`."""
    if isinstance(hint, type) and is_dataclass(hint) and isinstance(value, dict):
        return record_of(hint, value, where)
    if get_origin(hint) is tuple and isinstance(value, list):
        kinds = get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return tuple(_value(kind, each, f"{where}[{place}]") for place, (kind, each) in pairs)
    elif isinstance(hint, type) and issubclass(hint, Enum):
        for member in hint:
            if member.value == value:
                return member
    elif type(value) is hint or (hint is float and type(value) is int):
        return value
    raise InvalidRecord(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")
