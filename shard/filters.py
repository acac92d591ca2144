"""Filters: conditions on metadata, as immutable values that can be compared and hashed.

    Equals("lang", "en") & ~Range("year", lt=1990)

shard.rows.filter_columns evaluates them, and shard.engine.validation checks them against a
collection. A path names a part of a filter as the contract spells it, such as
``filter.and.filters[2].equals.field``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from vectorshard.shard.errors import InvalidParameter

FilterValue: TypeAlias = str | float | bool
"""The value that a field is compared with. Numbers are float, as in metadata."""


class Filter:
    """A condition on a row's metadata; one of the classes below."""

    __slots__ = ()
    kind: ClassVar[str]
    """The name of the condition in the contract."""

    def __and__(self, other: Filter) -> And:
        """Return a filter that passes when both pass."""
        return And((self, other))

    def __or__(self, other: Filter) -> Or:
        """Return a filter that passes when at least one passes."""
        return Or((self, other))

    def __invert__(self) -> Not:
        """Return a filter that passes when this one does not."""
        return Not(self)

    def __bool__(self) -> bool:
        """Raise InvalidParameter: `a and b` would return b alone, and `not a` would be False."""
        reason = "a filter is neither true nor false: use & for and, | for or, ~ for not"
        raise InvalidParameter(reason, field="filter")


@dataclass(frozen=True, slots=True)
class And(Filter):
    """All of the filters pass; there is at least one."""

    kind: ClassVar[str] = "and"
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """At least one of the filters passes; there is at least one."""

    kind: ClassVar[str] = "or"
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """The filter does not pass; true also where its field is missing."""

    kind: ClassVar[str] = "not"
    filter: Filter


@dataclass(frozen=True, slots=True)
class Equals(Filter):
    """The field equals the value; for a list of keywords, one of its elements does."""

    kind: ClassVar[str] = "equals"
    field: str
    value: FilterValue


@dataclass(frozen=True, slots=True)
class In(Filter):
    """The field, or one of its elements, is one of the values. Without values it never passes."""

    kind: ClassVar[str] = "in"
    field: str
    values: tuple[FilterValue, ...]


@dataclass(frozen=True, slots=True)
class Range(Filter):
    """The number lies within the bounds; an absent bound is open."""

    kind: ClassVar[str] = "range"
    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class Exists(Filter):
    """The field is present and not null."""

    kind: ClassVar[str] = "exists"
    field: str


Condition: TypeAlias = Equals | In | Range | Exists
"""A filter on one field."""


def conditions(filter_: Filter, path: str = "filter") -> Iterator[tuple[str, Condition]]:
    """Yield the conditions on fields in a filter, each with the path to its content."""
    inner = f"{path}.{filter_.kind}"
    if isinstance(filter_, And | Or):
        for place, each in enumerate(filter_.filters):
            yield from conditions(each, f"{inner}.filters[{place}]")
    elif isinstance(filter_, Not):
        yield from conditions(filter_.filter, inner)
    elif isinstance(filter_, Equals | In | Range | Exists):
        yield inner, filter_
