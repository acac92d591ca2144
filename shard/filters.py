"""Filters: conditions on metadata, as immutable values that can be compared and hashed.

    Equals("lang", "en") & ~Range("year", lt=1990)

Vocabulary: what a filter says, not which rows pass it (shard.rows.filter_columns), nor which
filters a
collection takes (shard.engine.validation). A path names a part of a filter as the contract spells
it, such
as ``filter.and.filters[2].equals.field``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

FilterValue: TypeAlias = str | float | bool
"""What a field is compared with. Numbers are float, as metadata holds them."""


class Filter:
    """A condition on a row's metadata: one of the classes below."""

    __slots__ = ()
    kind: ClassVar[str]
    """The condition's name in the contract."""

    def __and__(self, other: Filter) -> And:
        """Both hold."""
        return And((self, other))

    def __or__(self, other: Filter) -> Or:
        """At least one holds."""
        return Or((self, other))

    def __invert__(self) -> Not:
        """It does not hold."""
        return Not(self)


@dataclass(frozen=True, slots=True)
class And(Filter):
    """Every one of them holds; there is at least one."""

    kind: ClassVar[str] = "and"
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Or(Filter):
    """At least one of them holds; there is at least one."""

    kind: ClassVar[str] = "or"
    filters: tuple[Filter, ...]


@dataclass(frozen=True, slots=True)
class Not(Filter):
    """It does not hold; so also where its field is missing."""

    kind: ClassVar[str] = "not"
    filter: Filter


@dataclass(frozen=True, slots=True)
class Equals(Filter):
    """The field is this value; for a list of keywords, one of its elements is."""

    kind: ClassVar[str] = "equals"
    field: str
    value: FilterValue


@dataclass(frozen=True, slots=True)
class In(Filter):
    """The field, or one of its elements, is one of these values. Of no values: it never is."""

    kind: ClassVar[str] = "in"
    field: str
    values: tuple[FilterValue, ...]


@dataclass(frozen=True, slots=True)
class Range(Filter):
    """The number lies within these bounds; an absent one is open."""

    kind: ClassVar[str] = "range"
    field: str
    gt: float | None = None
    gte: float | None = None
    lt: float | None = None
    lte: float | None = None


@dataclass(frozen=True, slots=True)
class Exists(Filter):
    """The field is there and not null."""

    kind: ClassVar[str] = "exists"
    field: str


Condition: TypeAlias = Equals | In | Range | Exists
"""A filter about one field."""


def conditions(filter_: Filter, path: str = "filter") -> Iterator[tuple[str, Condition]]:
    """Yield the conditions about fields in a filter, each with the path to its content."""
    inner = f"{path}.{filter_.kind}"
    if isinstance(filter_, And | Or):
        for place, each in enumerate(filter_.filters):
            yield from conditions(each, f"{inner}.filters[{place}]")
    elif isinstance(filter_, Not):
        yield from conditions(filter_.filter, inner)
    elif isinstance(filter_, Equals | In | Range | Exists):
        yield inner, filter_
