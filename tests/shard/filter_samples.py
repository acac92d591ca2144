"""Filters and metadata for tests: declared fields, rows that have them, and the plain truth.

`holds` says in plain Python which rows pass; the product is compared with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from google.protobuf import struct_pb2
from hypothesis import strategies as st

from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Or, Range
from vectorshard.shard.types import FieldType, FilterField

FIELDS: Final = (
    FilterField("lang", FieldType.KEYWORD),
    FilterField("year", FieldType.INT64),
    FilterField("rating", FieldType.DOUBLE),
    FilterField("public", FieldType.BOOL),
)

KEYWORDS: Final = ("en", "de", "", "日本")
YEARS: Final = (-1, 0, 1, 1990, 2**53, -(2**53))
RATINGS: Final = (-2.5, 0.0, 0.5, 1.0, 1e300, float("inf"))

mappings: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "lang": st.none()
        | st.sampled_from(KEYWORDS)
        | st.lists(st.sampled_from(KEYWORDS), max_size=3),
        "year": st.none() | st.sampled_from(YEARS),
        "rating": st.none() | st.sampled_from(RATINGS),
        "public": st.none() | st.booleans(),
        "undeclared": st.integers(0, 3) | st.text(max_size=3),
    },
)
"""Metadata that the fields take."""

_bounds = st.none() | st.sampled_from([-1.0, 0.25, 1.0, 1990.0, float("inf")])
_values: Mapping[str, st.SearchStrategy[Any]] = {
    "lang": st.sampled_from(KEYWORDS),
    "year": st.sampled_from(YEARS).map(float),
    "rating": st.sampled_from(RATINGS),
    "public": st.booleans(),
}
_conditions = st.one_of(
    st.sampled_from(list(_values)).flatmap(
        lambda name: st.one_of(
            st.builds(Equals, st.just(name), _values[name]),
            st.builds(In, st.just(name), st.lists(_values[name], max_size=3).map(tuple)),
            st.builds(Exists, st.just(name)),
        )
    ),
    st.builds(Range, st.sampled_from(["year", "rating"]), _bounds, _bounds, _bounds, _bounds),
)
filters: st.SearchStrategy[Filter] = st.recursive(
    _conditions,
    lambda inner: st.one_of(
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Not, inner),
    ),
    max_leaves=8,
)
"""Filters that a collection with these fields takes."""


def holds(filter_: Filter, mapping: Mapping[str, Any]) -> bool:
    """Say whether a row with this metadata passes."""
    if isinstance(filter_, And):
        return all(holds(each, mapping) for each in filter_.filters)
    if isinstance(filter_, Or):
        return any(holds(each, mapping) for each in filter_.filters)
    if isinstance(filter_, Not):
        return not holds(filter_.filter, mapping)
    assert isinstance(filter_, Equals | In | Range | Exists)
    value = mapping.get(filter_.field)
    if value is None:
        return False
    if isinstance(filter_, Exists):
        return True
    if isinstance(filter_, Range):
        return (
            (filter_.gt is None or value > filter_.gt)
            and (filter_.gte is None or value >= filter_.gte)
            and (filter_.lt is None or value < filter_.lt)
            and (filter_.lte is None or value <= filter_.lte)
        )
    wanted = filter_.values if isinstance(filter_, In) else (filter_.value,)
    return any(each in wanted for each in (value if isinstance(value, list) else [value]))


def some_mappings(rows: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return metadata of so many rows: `part` of 100, a few languages, some rows without any."""
    random = np.random.default_rng(seed)
    return [
        {}
        if row % 17 == 16
        else {
            "lang": ["en", "de"] if row % 5 == 4 else ("en", "de", "fr", "it")[row % 4],
            "year": int(random.integers(1900, 2000)),
            "rating": float(random.random()),
            "public": bool(row % 2),
        }
        for row in range(rows)
    ]


def packed(mappings_: list[dict[str, Any]]) -> list[bytes]:
    """Return metadata as it is kept."""
    return [_serialized(mapping) for mapping in mappings_]


def _serialized(mapping: Mapping[str, Any]) -> bytes:
    """Return metadata as any client may send it: `metadata_from_mapping` refuses infinity."""
    struct = struct_pb2.Struct()
    struct.update(mapping)
    return struct.SerializeToString(deterministic=True)
