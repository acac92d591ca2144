"""Which ids and vectors a collection takes. Pure; everything refused here names its field and row.

A router asks before it fans out, so that no shard writes its part of a batch that another refuses;
the shard asks again, because it may be called by others.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from shard.errors import DimensionMismatch, InvalidId, InvalidVector
from shard.exact import SQUARED_NORM_MAX
from shard.types import CollectionConfig, Float32Array, IdArray, IdType, Metric, VectorArray


def _norms_of_finite(vectors: VectorArray, field: str) -> npt.NDArray[np.float64]:
    """Return squared norms (rows,), or refuse the first row that has none to speak of."""
    with np.errstate(invalid="ignore", over="ignore"):
        squared_norms: npt.NDArray[np.float64] = np.einsum(
            "ij,ij->i", vectors, vectors, dtype=np.float64
        )
    refused = np.flatnonzero(~(squared_norms <= SQUARED_NORM_MAX))
    if len(refused):
        row = int(refused[0])
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
    if config.metric is Metric.COSINE:
        refused = np.flatnonzero(squared_norms == 0)
        if len(refused):
            raise InvalidVector("has norm 0, so no angle", field=field, row=int(refused[0]))
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
