"""Validation: which ids, vectors and filters a collection accepts. Pure.

Every error names the field, and the row if one row is wrong. A router validates before it fans out,
so that no shard writes its part of a batch that another shard refuses. The shard validates again,
because it has other callers.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np

from vectorshard.shard.errors import (
    CollectionExists,
    DimensionMismatch,
    InvalidId,
    InvalidParameter,
    InvalidVector,
)
from vectorshard.shard.filters import Equals, Filter, FilterValue, In, Range, conditions
from vectorshard.shard.index.exact import (
    SQUARED_NORM_MAX,
    exact_squared_norms,
    row_squared_norms,
    stored_squared_norms,
)
from vectorshard.shard.rows.declared_fields import NUMBERS, TAKES, is_of
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    FilterField,
    Float32Array,
    Float64Array,
    IdArray,
    IdType,
    Metric,
    VectorArray,
)
from vectorshard.shard.wire.metadata import EXACT_INTEGER
from vectorshard.shard.wire.primitives import with_article

NormsOf: TypeAlias = Callable[[VectorArray], Float64Array]
"""Returns the squared norms of vectors."""


def _norms_of_finite(vectors: VectorArray, field: str, norms_of: NormsOf) -> Float64Array:
    """Return squared norms (rows,), or refuse the first row that is not finite or too large."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared_norms = norms_of(vectors)
    if np.count_nonzero(squared_norms <= SQUARED_NORM_MAX) < len(squared_norms):  # NaN too
        row = int(np.flatnonzero(~(squared_norms <= SQUARED_NORM_MAX))[0])
        reason = "contains NaN or Inf; every component must be finite"
        if np.isfinite(vectors[row]).all():
            reason = (
                f"squared norm {squared_norms[row]:.3g} exceeds {SQUARED_NORM_MAX:.3g}; "
                "scores would overflow float32"
            )
        raise InvalidVector(reason, field=field, row=row)
    return squared_norms


def check_vectors(config: CollectionConfig, vectors: VectorArray, field: str) -> None:
    """Refuse vectors (rows, dim) that do not fit the collection.

    Raises
    ------
    DimensionMismatch
        If dim differs from the collection's.
    InvalidVector
        For NaN, Inf, a magnitude whose scores overflow float32, or norm 0 under COSINE.
    """
    _checked_norms(config, vectors, field)


def _checked_norms(
    config: CollectionConfig,
    vectors: VectorArray,
    field: str,
    norms_of: NormsOf = exact_squared_norms,
) -> Float64Array:
    if vectors.ndim != 2 or (vectors.shape[1] != config.dim and len(vectors)):
        raise DimensionMismatch(
            f"dim is {vectors.shape[-1]:,}; the collection's dim is {config.dim:,}", field=field
        )
    squared_norms = _norms_of_finite(vectors, field, norms_of)
    if config.metric is Metric.COSINE and np.count_nonzero(squared_norms) < len(squared_norms):
        row = int(np.flatnonzero(squared_norms == 0)[0])
        reason = "a zero vector has no direction; COSINE requires a non-zero norm"
        raise InvalidVector(reason, field=field, row=row)
    return squared_norms


def admit_vectors(config: CollectionConfig, vectors: VectorArray, field: str) -> Float32Array:
    """Check vectors (rows, dim) and return them as the collection stores them.

    The result is float32, C-contiguous and may be read-only. Under COSINE it has norm 1, divided in
    float64 and rounded once. Raises the errors of `check_vectors`.
    """
    squared_norms = _checked_norms(config, vectors, field)
    if len(vectors) == 0:
        return np.zeros((0, config.dim), dtype=np.float32)
    if config.metric is Metric.COSINE:
        return (vectors / np.sqrt(squared_norms)[:, None]).astype(np.float32)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def admit_rows(
    config: CollectionConfig, vectors: VectorArray, field: str
) -> tuple[Float32Array, Float32Array]:
    """Check vectors as `admit_vectors` does; return also their squared norms as they are stored.

    Where the stored vectors are the given ones, their norms are computed once.
    """
    if config.metric is Metric.COSINE or not len(vectors):
        admitted = admit_vectors(config, vectors, field)
        return admitted, stored_squared_norms(admitted)
    admitted = np.ascontiguousarray(vectors, dtype=np.float32)
    exact = _checked_norms(config, admitted, field, row_squared_norms)
    return admitted, exact.astype(np.float32)


def check_ids(config: CollectionConfig, ids: IdArray, field: str = "ids") -> None:
    """Raise InvalidId for ids of the wrong type. The wire checks their length and uniqueness."""
    id_type = IdType.STRING if ids.dtype == np.dtype(object) else IdType.INT64
    if id_type is not config.id_type and len(ids):
        raise InvalidId(
            f"ids are {id_type.name}; the collection's ids are {config.id_type.name}",
            field=field,
        )


def check_filter(config: CollectionConfig, filter_: Filter | None, field: str = "filter") -> None:
    """Refuse a filter that does not fit the declared fields. The wire checks its depth and size.

    Raises
    ------
    InvalidParameter
        For an undeclared field, or a value or range that does not fit the field's type; for INT64,
        a value that may be a rounded integer. The error's field is the path to it, starting with
        `field`.
    """
    if filter_ is None:
        return
    declared = {each.name: each.type for each in config.filter_fields}
    for path, condition in conditions(filter_, field):
        field_type = declared.get(condition.field)
        if field_type is None:
            raise InvalidParameter(
                f"{condition.field!r} is not a declared field; declared fields: "
                f"{', '.join(declared) or 'none'}",
                field=f"{path}.field",
            )
        if isinstance(condition, Range) and field_type not in NUMBERS:
            raise InvalidParameter(
                f"{condition.field!r} is {field_type.name}; a range requires INT64 or DOUBLE",
                field=f"{path}.field",
            )
        if isinstance(condition, Range):
            _check_bounds(condition, path)
        elif isinstance(condition, Equals):
            _check_value(field_type, condition.value, f"{path}.value")
        elif isinstance(condition, In):
            for place, value in enumerate(condition.values):
                _check_value(field_type, value, f"{path}.values[{place}]")


def _check_bounds(range_: Range, path: str) -> None:
    """Refuse integers that become another double; a double itself is a bound as it is."""
    for name in ("gt", "gte", "lt", "lte"):
        bound = getattr(range_, name)
        if isinstance(bound, int) and not _is_exact(bound):
            raise InvalidParameter(f"{bound!r} is not in -2**53..2**53", field=f"{path}.{name}")


def _is_exact(value: FilterValue) -> bool:
    """Return whether a number is certainly not an integer that was rounded to a double."""
    return isinstance(value, int | float) and abs(value) <= EXACT_INTEGER


def _check_value(field_type: FieldType, value: FilterValue, path: str) -> None:
    if not is_of(field_type, value):
        wanted = "a string" if field_type is FieldType.KEYWORD else TAKES[field_type]
        raise InvalidParameter(
            f"{with_article(field_type.name)} field does not accept {reprlib.repr(value)} "
            f"({with_article(type(value).__name__)}); it accepts {wanted}",
            field=path,
        )
    if field_type is FieldType.INT64 and not _is_exact(value):
        raise InvalidParameter(
            f"{value!r} is not in -2**53..2**53: beyond, a double may be another, rounded integer",
            field=path,
        )


def already_exists(existing: CollectionConfig, asked: CollectionConfig) -> CollectionExists:
    """Return the error for a collection of the same name; its text lists the differences."""
    differences = "; ".join(_differences(existing, asked, ""))
    return CollectionExists(f"collection {existing.name!r} already exists with {differences}")


def _differences(existing: object, asked: object, prefix: str) -> Iterator[str]:
    for each in fields(existing):  # type: ignore[arg-type]  # both are of the same dataclass
        ours, theirs = getattr(existing, each.name), getattr(asked, each.name)
        if ours == theirs:
            continue
        if is_dataclass(ours):
            yield from _differences(ours, theirs, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name} {_shown(ours)}, not {_shown(theirs)}"


def _shown(value: object) -> str:
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, FilterField):
        return f"{value.name}: {value.type.value}"
    if isinstance(value, tuple):
        return f"({', '.join(map(_shown, value))})"
    return f"{value:,}" if isinstance(value, int) else str(value)
