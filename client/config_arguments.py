"""Enums, configurations and numbers as a caller hands them over. Pure.

Each may be given as text, in any case, as well as by its own class.
"""

from __future__ import annotations

from collections.abc import ItemsView, Iterable, Mapping
from dataclasses import fields, replace
from enum import Enum
from typing import Any, Final, TypeAlias, TypeVar

from vectorshard.client.id_arguments import is_listed, why_not_rows
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidConfig, InvalidParameter, InvalidRequest
from vectorshard.shard.types import FieldType, FilterField, IndexConfig, IndexKind, NlistRule
from vectorshard.shard.wire.primitives import float_of, shown, str_of, uint32_of

IndexLike: TypeAlias = IndexConfig | IndexKind | str | Mapping[str, Any]
"""The configuration of an index as a caller may pass it; an enum or text is its kind."""

FilterFields: TypeAlias = (
    Iterable[FilterField | tuple[str, FieldType | str]] | Mapping[str, FieldType | str]
)
"""Declared fields as a caller may pass them."""

SECONDS_MAX: Final = 1e8
"""Three years: gRPC takes a deadline of some centuries for one that has passed."""

_EnumT = TypeVar("_EnumT", bound=Enum)
_INDEX_FIELDS: Final = tuple(field.name for field in fields(IndexConfig))


def member_of(
    enum: type[_EnumT], value: _EnumT | str, field: str, error: type[InvalidRequest]
) -> _EnumT:
    """Return the member that `value` is or names; raise `error` if there is no such member."""
    if isinstance(value, enum):
        return value
    if isinstance(value, str) and not isinstance(value, Enum):
        name = value.strip().lower().replace("-", "_")
        for member in enum:
            if member.value == name:
                return member
    allowed = ", ".join(member.value for member in enum)
    raise error(f"{shown(value)} is not one of {allowed}", field=field) from None


def index_of(index: IndexLike | None) -> IndexConfig | None:
    """Return the configuration of an index, with its enums.

    An `nlist` means the rule FIXED, unless another rule than the default is given with it.
    """
    if index is None:
        return None
    if isinstance(index, IndexKind | str):
        index = {"kind": index}
    if isinstance(index, Mapping):
        unknown = [name for name in index if name not in _INDEX_FIELDS]
        if unknown:
            reason = f"{shown(unknown[0])} is not one of {', '.join(_INDEX_FIELDS)}"
            raise InvalidConfig(reason, field="config.index")
        index = IndexConfig(**index)
    if not isinstance(index, IndexConfig):
        reason = f"{shown(index)} is not an IndexConfig, or the name of a kind"
        raise InvalidConfig(reason, field="config.index")
    nlist = uint32_of(index.nlist, Limits().nlist, "config.index.nlist", InvalidConfig)
    rule = member_of(NlistRule, index.nlist_rule, "config.index.nlist_rule", InvalidConfig)
    return replace(
        index,
        kind=member_of(IndexKind, index.kind, "config.index.kind", InvalidConfig),
        min_training_size=uint32_of(
            index.min_training_size, 2**32 - 1, "config.index.min_training_size", InvalidConfig
        ),
        nlist_rule=NlistRule.FIXED if nlist and rule is NlistRule.BY_KIND else rule,
        nlist=nlist,
    )


def filter_fields_of(declared: FilterFields) -> tuple[FilterField, ...]:
    """Return declared fields from `FilterField`s, pairs of name and type, or a mapping."""
    if isinstance(declared, FilterField):
        declared = [declared]
    if isinstance(declared, Mapping):
        declared = list(declared.items())
    if isinstance(declared, ItemsView):
        declared = list(declared)
    if isinstance(declared, str) or why_not_rows(declared) or not is_listed(declared):
        reason = f"{shown(declared)} is not a list of fields, such as [('lang', 'keyword')]"
        raise InvalidConfig(reason, field="config.filter_fields")
    return tuple(_filter_field(each, row) for row, each in enumerate(declared))


def _filter_field(given: Any, row: int) -> FilterField:
    field = "config.filter_fields"
    if isinstance(given, tuple | list) and len(given) == 2:
        given = FilterField(*given)
    if not isinstance(given, FilterField):
        reason = f"{shown(given)} is not a FilterField, or a pair of name and type"
        raise InvalidConfig(reason, field=field, row=row)
    name = str_of(given.name, field, InvalidConfig)
    return FilterField(name, member_of(FieldType, given.type, field, InvalidConfig))


def name_of(name: str) -> str:
    """Return the name of a collection; raise InvalidParameter unless it is a string."""
    return str_of(name, "collection", InvalidParameter)


def seconds_of(value: Any, field: str = "timeout_s") -> float:
    """Return a duration in seconds, infinity as SECONDS_MAX.

    Raises InvalidParameter unless it is a positive number.
    """
    seconds = float_of(value, field, InvalidParameter)
    if not seconds > 0.0:
        raise InvalidParameter(f"{seconds:g} is not a positive number of seconds", field=field)
    return min(seconds, SECONDS_MAX)


def flag_of(value: Any, field: str) -> bool:
    """Return a bool; raise InvalidParameter for another type, of which text is the usual one."""
    if not (value is True or value is False or type(value).__name__ in {"bool", "bool_"}):
        raise InvalidParameter(f"{shown(value)} is not True or False", field=field)
    return bool(value)
