"""Vectors as a caller hands them over, converted to a matrix of numbers. Pure.

Arrays of other libraries are recognized by their module's name: none of those libraries is imported
here, or has to be installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, KeysView, ValuesView
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from vectorshard.client.id_arguments import why_not_rows
from vectorshard.shard.errors import InvalidVector, MalformedMessage
from vectorshard.shard.types import VectorArray
from vectorshard.shard.wire.primitives import shown

Vectors: TypeAlias = npt.ArrayLike | Iterable[npt.ArrayLike]
"""Vectors as a caller may pass them: an array, or any iterable of rows."""


def library_of(value: object) -> str:
    """Return the top package of a value's class: ``torch``, ``pandas``, ``pyarrow``."""
    return type(value).__module__.partition(".")[0]


def real_array(values: Any, field: str) -> npt.NDArray[Any]:
    """Return an array of real numbers of any width, without a copy where there is one.

    Raises InvalidVector if the values are ragged, masked, without an order, or not real numbers.
    """
    array = _array(values, field)
    if array.dtype == np.object_ and array.ndim == 1 and array.size:
        array = _stacked(array, field)
    if array.dtype.kind not in "fiu":
        raise InvalidVector(
            f"expected real numbers, got {_what(values, array)}{_cure(array)}", field=field
        )
    return array


def _array(values: Any, field: str) -> npt.NDArray[Any]:
    """Return what numpy makes of the values; refuse what it would misread."""
    rows = {*map(type, values)} if isinstance(values, list | tuple) else {type(values)}
    if any(issubclass(each, np.ma.MaskedArray) for each in rows):
        raise InvalidVector(
            "a masked array is not accepted: pass .filled(0), or .data", field=field
        )
    if reason := why_not_rows(values):
        raise InvalidVector(reason, field=field)
    if library_of(values) == "pyarrow":
        return _of_arrow(values, field)
    if any(hasattr(each, "as_py") for each in rows):
        return _array([_array(each, field) for each in values], field)
    if isinstance(values, Iterator | KeysView | ValuesView):
        return _array(list(values), field)
    try:
        return np.asarray(values)
    except ValueError as error:
        ragged = "inhomogeneous" in str(error)
        reason = "the rows have different lengths" if ragged else str(error)
        raise InvalidVector(reason, field=field) from None
    except Exception as error:  # of another library: a tensor on a device, or with a gradient
        reason = f"{type(values).__name__} is not readable as an array: {error}"
        cure = "pass .detach().cpu(), and .float() for bfloat16"
        raise InvalidVector(f"{reason}: {cure}", field=field) from None


def _what(values: object, array: npt.NDArray[Any]) -> str:
    """Return what is there instead of numbers: a type, or a dtype."""
    if array.ndim == 0 and array.dtype == np.object_:
        return type(values).__name__
    return f"dtype {array.dtype}"


def _cure(array: npt.NDArray[Any]) -> str:
    if array.dtype.kind == "b":
        return ": pass .astype(np.float32)"
    if array.dtype == np.object_ and array.ndim == 0:
        return ": pass an array, or lists of numbers"
    return ""


def _stacked(rows: npt.NDArray[np.object_], field: str) -> npt.NDArray[Any]:
    """Return the matrix of an array of arrays, such as a Series of embeddings."""
    read: list[npt.NDArray[Any]] = []
    for row, values in enumerate(rows.tolist()):
        array = _array(values, field)
        if array.dtype.kind not in "fiu" or array.ndim != 1:
            raise InvalidVector(f"{shown(values)} is not a vector of numbers", field=field, row=row)
        if read and array.size != read[0].size:
            reason = f"{array.size:,} components do not match the {read[0].size:,} of row 0"
            raise InvalidVector(reason, field=field, row=row)
        read.append(array)
    return np.stack(read)


def _of_arrow(values: Any, field: str) -> npt.NDArray[Any]:
    """Return the matrix of an Arrow array of lists, or the vector of an array of numbers."""
    if hasattr(values, "as_py"):  # one value of an array
        return _array(values.as_py(), field)
    if hasattr(values, "combine_chunks"):
        values = values.combine_chunks()
    if hasattr(values, "column_names"):
        raise InvalidVector(
            f"{type(values).__name__} has columns: pass one of them, as .column(name)", field=field
        )
    if getattr(values, "null_count", 0):
        row = values.is_null().to_pylist().index(True)
        raise InvalidVector("null is not a vector", field=field, row=row)
    size = getattr(getattr(values, "type", None), "list_size", None)
    if size is None:
        return _array(values.to_pylist(), field)
    components = values.flatten().to_numpy(zero_copy_only=False)
    matrix: npt.NDArray[Any] = components.reshape(len(values), size)
    return matrix


def wire_vectors(array: npt.NDArray[Any], field: str) -> VectorArray:
    """Return numbers (rows, dim) as they travel: float16 unchanged, everything else as float32.

    Raises InvalidVector for a finite number that float32 cannot hold; names the row.
    """
    if array.dtype == np.float16:
        return array
    try:
        with np.errstate(over="raise"):
            return array.astype(np.float32, copy=False)
    except FloatingPointError:
        with np.errstate(over="ignore"):
            too_large = np.isfinite(array) & ~np.isfinite(array.astype(np.float32))
        row = int(np.flatnonzero(too_large.any(axis=1))[0])
        (component,) = array[row][too_large[row]][:1].tolist()
        reason = f"{component:g} does not fit in float32"
        raise InvalidVector(reason, field=field, row=row) from None


def query_matrix(queries: Vectors, field: str) -> VectorArray:
    """Return queries (queries, dim) from that shape, or from (dim,)."""
    array = real_array(queries, field)
    if array.ndim == 1:
        array = array.reshape(1 if array.size else 0, array.size)
    if array.ndim != 2 or (len(array) and not array.size):  # queries without a component
        raise MalformedMessage(f"shape {array.shape} is not (queries, dim)", field=field)
    return wire_vectors(array, field)


def row_matrix(vectors: Vectors, *, is_one: bool = False) -> npt.NDArray[Any]:
    """Return vectors (rows, dim) from that shape, or from (dim,) for a single id."""
    array = real_array(vectors, "vectors")
    if array.ndim == 1 and (is_one or not array.size):
        return array.reshape(1 if array.size else 0, array.size)
    if array.ndim != 2:
        cure = ": pass [vector] for one row" if array.ndim == 1 else ""
        raise MalformedMessage(f"shape {array.shape} is not (rows, dim){cure}", field="vectors")
    return array
