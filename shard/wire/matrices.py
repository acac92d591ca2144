"""Vectors and queries to their message and back."""

from __future__ import annotations

from typing import Any

import numpy as np

from vectorshard.shard import types
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.primitives import unknown
from vectorshard.v1 import vectorshard_pb2 as v1

_DTYPES: dict[int, np.dtype[Any]] = {
    v1.D_TYPE_FLOAT32: np.dtype("<f4"),
    v1.D_TYPE_FLOAT16: np.dtype("<f2"),
}


def encode_matrix(vectors: types.VectorArray) -> v1.Matrix:
    """Write vectors (rows, dim): float16 as FLOAT16, everything else as FLOAT32."""
    half = vectors.dtype == np.float16
    dtype = v1.D_TYPE_FLOAT16 if half else v1.D_TYPE_FLOAT32
    return v1.Matrix(
        data=np.ascontiguousarray(vectors, dtype=_DTYPES[dtype]).tobytes(),
        dim=vectors.shape[1],
        dtype=dtype,
    )


def decode_matrix(
    vectors_bytes: bytes, dim: int, dtype_number: int, field: str
) -> types.VectorArray:
    """Return vectors (rows, dim), float32 or float16, read-only. An empty matrix is (0, dim).

    Takes the message's fields, because every access to its bytes copies them. Raises
    MalformedMessage, naming `field`, for an unknown dtype or a partial row.
    """
    if not vectors_bytes and dim == 0:
        return np.empty((0, 0), dtype="<f4")
    dtype = _DTYPES.get(dtype_number)
    if dtype is None:
        raise MalformedMessage(
            unknown(dtype_number, ("FLOAT32", "FLOAT16")), field=f"{field}.dtype"
        )
    if dim == 0:
        raise MalformedMessage("dim must be at least 1 when data is not empty", field=field)
    if len(vectors_bytes) % (row_bytes := dim * dtype.itemsize):
        raise MalformedMessage(
            f"data length {len(vectors_bytes):,} is not a multiple of "
            f"dim * {dtype.itemsize} = {row_bytes:,}",
            field=field,
        )
    return np.frombuffer(vectors_bytes, dtype=dtype).reshape(-1, dim)
