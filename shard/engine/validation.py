"""Which ids, vectors, metadata and filters a collection takes. Pure.

Everything that is refused here is refused with its field, and its row where it is one row's.

A router asks before it fans out, so that no shard writes its part of a batch that another refuses;
the shard asks again, because it may be called by others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from vectorshard.shard.errors import DimensionMismatch, InvalidId, InvalidParameter, InvalidVector
from vectorshard.shard.filters import Equals, Filter, FilterValue, In, Range, conditions
from vectorshard.shard.index.exact import SQUARED_NORM_MAX, exact_squared_norms
from vectorshard.shard.rows.declared_fields import NUMBERS, TAKES, is_of
from vectorshard.shard.types import (
    CollectionConfig,
    FieldType,
    Float32Array,
    IdArray,
    IdType,
    Metric,
    VectorArray,
)


def _norms_of_finite(vectors: VectorArray, field: str) -> npt.NDArray[np.float64]:
    """Return squared norms (rows,), or refuse the first row that has none to speak of."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared_norms = exact_squared_norms(vectors)
    if not squared_norms.max(initial=0.0) <= SQUARED_NORM_MAX:  # NaN is the largest of all
        row = int(np.flatnonzero(~(squared_norms <= SQUARED_NORM_MAX))[0])
        finite = bool(np.isfinite(vectors[row]).all())
        reason = "its scores would overflow float32" if finite else "contains NaN or Inf"
        raise InvalidVector(reason, field=field, row=row)
    return squared_norms


def check_vectors(config: CollectionConfig, vectors: VectorArray, field: str) -> None:
    """Refuse vectors (rows, dim) that the collection cannot take.

    Raises
    ------
    DimensionMismatch
        If dim is not the collection's.
    InvalidVector
        For NaN, Inf, a magnitude whose scores overflow float32, or norm 0 under COSINE.
    """
    _admitted_norms(config, vectors, field)


def _admitted_norms(
    config: CollectionConfig, vectors: VectorArray, field: str
) -> npt.NDArray[np.float64]:
    if vectors.ndim != 2 or (vectors.shape[1] != config.dim and len(vectors)):
        raise DimensionMismatch(
            f"dim is {vectors.shape[-1]}, the collection's is {config.dim}", field=field
        )
    squared_norms = _norms_of_finite(vectors, field)
    if config.metric is Metric.COSINE and not squared_norms.min(initial=1.0) > 0.0:
        row = int(np.flatnonzero(squared_norms == 0)[0])
        raise InvalidVector("has norm 0, so no angle", field=field, row=row)
    return squared_norms


def admit_vectors(config: CollectionConfig, vectors: VectorArray, field: str) -> Float32Array:
    """Check vectors (rows, dim) and return them as the collection keeps them.

    Float32, C-contiguous, read-only or not; under COSINE of norm 1, divided in float64 and rounded
    once. Raises what `check_vectors` raises.
    """
    squared_norms = _admitted_norms(config, vectors, field)
    if len(vectors) == 0:
        return np.zeros((0, config.dim), dtype=np.float32)
    if config.metric is Metric.COSINE:
        return (vectors / np.sqrt(squared_norms)[:, None]).astype(np.float32)
    return np.ascontiguousarray(vectors, dtype=np.float32)


def check_ids(config: CollectionConfig, ids: IdArray, field: str = "ids") -> None:
    """Refuse ids of the wrong kind. Length and uniqueness are the wire's business.

    Raises
    ------
    InvalidId
        If the ids are not of the collection's id type.
    """
    id_type = IdType.STRING if ids.dtype == np.dtype(object) else IdType.INT64
    if id_type is not config.id_type and len(ids):
        raise InvalidId(
            f"the collection's ids are {config.id_type.name}, these are {id_type.name}", field=field
        )


def check_filter(config: CollectionConfig, filter_: Filter | None, field: str = "filter") -> None:
    """Refuse a filter that means fields that the collection did not declare, or not as such.

    Depth, size and emptiness are the wire's business.

    Raises
    ------
    InvalidParameter
        For an undeclared field, or a value or range that does not fit the field's type. The error's
        field is the path to it, from `field` on.
    """
    if filter_ is None:
        return
    declared = {each.name: each.type for each in config.filter_fields}
    for path, condition in conditions(filter_, field):
        field_type = declared.get(condition.field)
        if field_type is None:
            known = ", ".join(declared) or "none"
            raise InvalidParameter(
                f"{condition.field!r} is not declared; declared are: {known}", field=f"{path}.field"
            )
        if isinstance(condition, Range) and field_type not in NUMBERS:
            raise InvalidParameter(
                f"{condition.field!r} is {field_type.name}; a range needs INT64 or DOUBLE",
                field=f"{path}.field",
            )
        if isinstance(condition, Equals):
            _check_value(field_type, condition.value, f"{path}.value")
        elif isinstance(condition, In):
            for place, value in enumerate(condition.values):
                _check_value(field_type, value, f"{path}.values[{place}]")


def _check_value(field_type: FieldType, value: FilterValue, path: str) -> None:
    if not is_of(field_type, value):
        wanted = "a string" if field_type is FieldType.KEYWORD else TAKES[field_type]
        raise InvalidParameter(
            f"{value!r} cannot be: the field is {field_type.name}, {wanted}", field=path
        )
