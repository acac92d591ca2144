"""Arguments of a client's methods, converted to what travels. Pure.

A client rejects here what no server accepts; limits and the collection's own rules are the
server's.
"""

from __future__ import annotations

import operator
import reprlib
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vectorshard.client.filter_text import filter_from_text
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    InvalidId,
    InvalidParameter,
    InvalidRequest,
    InvalidVector,
    MalformedMessage,
)
from vectorshard.shard.filters import Filter
from vectorshard.shard.types import Effort, IdArray, VectorArray
from vectorshard.shard.wire.metadata import metadata_from_mapping
from vectorshard.shard.wire.primitives import check_recall, float_of, uint32_of

Ids = Sequence[int] | Sequence[str] | IdArray
"""Ids as a caller may pass them."""

FilterLike = Filter | str
"""A filter as a caller may pass it: built from shard.filters, or text, see client.filter_text."""

Metadata = Sequence[Mapping[str, Any] | None]
"""The metadata of rows as a caller may pass it."""

_EnumT = TypeVar("_EnumT", bound=Enum)


def id_array(ids: Ids | npt.NDArray[Any]) -> IdArray:
    """Return ids (rows,): int64 for integers, object of str for strings.

    Raises InvalidId unless all are integers of 64 bits, or all are strings. Names the first other
    row.
    """
    if isinstance(ids, str | bytes):
        raise InvalidId(f"{type(ids).__name__} is not a sequence of ids", field="ids")
    if isinstance(ids, np.ndarray):
        if ids.ndim != 1:
            raise InvalidId(f"shape {ids.shape} is not (rows,)", field="ids")
        if ids.dtype.kind == "i":
            return ids.astype(np.int64, copy=False)
    listed = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    if listed and isinstance(listed[0], str):
        return _string_ids(listed)
    return _int64_ids(listed)


def _string_ids(ids: list[Any]) -> npt.NDArray[np.object_]:
    for row, id_ in enumerate(ids):
        if not isinstance(id_, str):
            reason = f"{_shown(id_)} is not a string; row 0 is a string"
            raise InvalidId(reason, field="ids", row=row)
    strings = np.empty(len(ids), dtype=np.object_)
    strings[:] = ids
    return strings


def _int64_ids(ids: list[Any]) -> npt.NDArray[np.int64]:
    integers = np.empty(len(ids), dtype=np.int64)
    for row, id_ in enumerate(ids):
        try:
            if isinstance(id_, bool | np.bool_):
                raise TypeError
            integers[row] = operator.index(id_)
        except TypeError:
            raise InvalidId(f"{_shown(id_)} is not an integer", field="ids", row=row) from None
        except OverflowError:
            raise InvalidId(f"{int(id_):,} does not fit in 64 bits", field="ids", row=row) from None
    return integers


def _shown(value: Any) -> str:
    """Return the value as Python's own type writes it, not numpy's, in a bounded length."""
    return reprlib.repr(value.item() if isinstance(value, np.generic) else value)


def real_array(values: npt.ArrayLike, field: str) -> npt.NDArray[Any]:
    """Return an array of real numbers of any width, without a copy where there is one.

    Raises InvalidVector if the values are ragged or not real numbers.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:
        ragged = "inhomogeneous" in str(error)
        reason = "the rows have different lengths" if ragged else str(error)
        raise InvalidVector(reason, field=field) from None
    if array.dtype.kind not in "fiu":
        raise InvalidVector(f"expected real numbers, got dtype {array.dtype}", field=field)
    return array


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


def query_matrix(queries: npt.ArrayLike, field: str) -> VectorArray:
    """Return queries (queries, dim) from that shape, or from (dim,)."""
    array = real_array(queries, field)
    if array.ndim == 1:
        array = array.reshape(1 if array.size else 0, array.size)
    if array.ndim != 2:
        raise MalformedMessage(f"shape {array.shape} is not (queries, dim)", field=field)
    return wire_vectors(array, field)


def metadata_bytes(metadata: Metadata | None) -> list[bytes] | None:
    """Return the metadata of each row as bytes; None and {} are b"".

    Raises InvalidParameter for a value that metadata cannot hold. Names the row.
    """
    if metadata is None:
        return None
    return [
        metadata_from_mapping(mapping, row) if mapping else b""
        for row, mapping in enumerate(metadata)
    ]


def filter_of(filter_: FilterLike | None) -> Filter | None:
    """Return the filter that a caller passed; InvalidParameter for a text that does not parse."""
    return filter_from_text(filter_) if isinstance(filter_, str) else filter_


def selection(ids: Ids | None, filter_: FilterLike | None) -> tuple[IdArray | None, Filter | None]:
    """Return ids or a filter as they travel; InvalidParameter unless exactly one is given."""
    if ids is None and filter_ is None:
        raise InvalidParameter("one of ids and filter is required", field="ids, filter")
    if ids is not None and filter_ is not None:
        raise InvalidParameter("ids and filter are mutually exclusive", field="ids, filter")
    return None if ids is None else id_array(ids), filter_of(filter_)


def effort_of(exact: bool, nprobe: int | None, target_recall: float | None) -> Effort:
    """Return the search effort. On the wire a 0 would mean the default, so it is rejected here."""
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise InvalidParameter(
            "exact, nprobe and target_recall are mutually exclusive",
            field="exact, nprobe, target_recall",
        )
    if nprobe is not None:
        largest = Limits().nlist
        nprobe = uint32_of(nprobe, largest, "nprobe", InvalidParameter)
        if nprobe < 1:
            raise InvalidParameter(f"{nprobe} is not in 1..{largest:,}", field="nprobe")
    if target_recall is not None:
        target_recall = float_of(target_recall, "target_recall", InvalidParameter)
        check_recall(target_recall, "target_recall", InvalidParameter)
    return Effort(nprobe=nprobe or 0, target_recall=target_recall or 0.0, exact=exact)


def member_of(
    enum: type[_EnumT], value: _EnumT | str, field: str, error: type[InvalidRequest]
) -> _EnumT:
    """Return the member that `value` is or names; raise `error` if there is no such member."""
    try:
        return enum(value)
    except ValueError:
        allowed = ", ".join(member.value for member in enum)
        raise error(f"{value!r} is not one of {allowed}", field=field) from None
