"""Ids to their message and back, and the validation of ids that needs no collection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidId, LimitExceeded, MalformedMessage
from vectorshard.v1 import vectorshard_pb2 as v1

_MAX_UTF8_BYTES = 4  # of one character: RFC 3629


def encode_ids(ids: types.IdArray) -> twins.IdsTwin:
    """Write ids (rows,). Raises InvalidId for a string that UTF-8 cannot encode."""
    if ids.dtype != np.object_:
        return twins.IdsTwin(
            int64s=twins.Int64IdsTwin(values=np.ascontiguousarray(ids, dtype="<i8").tobytes())
        )
    try:
        return twins.IdsTwin(strings=v1.StringIds(values=ids.tolist()))
    except UnicodeEncodeError as error:
        raise InvalidId(
            "id has a lone surrogate, which UTF-8 does not encode",
            field="ids",
            row=ids.tolist().index(error.object),
        ) from None


def split_ids(twin: twins.IdsTwin) -> tuple[Sequence[str] | None, bytes | None]:
    """Return the strings, or the bytes of the int64s; None for what is absent."""
    kind = twin.WhichOneof("kind")
    if kind == "int64s":
        return None, twin.int64s.values
    return (twin.strings.values if kind == "strings" else None), None


def ids_of(strings: Sequence[str] | None, id_bytes: bytes | None) -> types.IdArray:
    """Return the ids (rows,) from the result of `split_ids`: int64, or object of str.

    Without ids the array is empty, of int64. Raises MalformedMessage for a partial int64.
    """
    if strings is not None:
        ids = np.empty(len(strings), dtype=np.object_)
        ids[:] = strings
        return ids
    id_bytes = id_bytes or b""
    if len(id_bytes) % 8:
        raise MalformedMessage(f"values length {len(id_bytes)} is not a multiple of 8", field="ids")
    return np.frombuffer(id_bytes, dtype="<i8")


def decode_ids(ids: v1.Ids) -> types.IdArray:
    """Read ids (rows,) through their twin, serialized again so that they are packed."""
    return ids_of(*split_ids(twins.IdsTwin.FromString(ids.SerializeToString())))


def check_ids(ids: types.IdArray, limits: Limits, field: str = "ids") -> None:
    """Refuse ids (rows,) that no collection accepts in one request, naming `field`.

    Raises
    ------
    LimitExceeded
        For more than `limits.rows` ids.
    InvalidId
        For an empty or over-long string, and for a duplicate, whose second row is named.
    """
    if ids.size > limits.rows:
        raise LimitExceeded(f"{ids.size:,} ids exceed the limit of {limits.rows:,}", field=field)
    if ids.dtype == np.object_:
        _check_string_ids(ids.tolist(), limits, field)
    elif ids.size > 1:
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            _refuse_second_occurrence(ids, field)


def _check_string_ids(ids: Sequence[str], limits: Limits, field: str) -> None:
    unique = set(ids)
    if "" in unique:
        raise InvalidId("id must not be empty", field=field, row=ids.index(""))
    if max(map(len, ids), default=0) * _MAX_UTF8_BYTES > limits.id_bytes:
        for row, id_ in enumerate(ids):
            if (length := len(id_.encode())) > limits.id_bytes:
                raise InvalidId(
                    f"id of {length:,} bytes exceeds the limit of {limits.id_bytes:,} bytes",
                    field=field,
                    row=row,
                )
    if len(unique) != len(ids):
        _refuse_second_occurrence(np.array(ids, dtype=np.object_), field)


def _refuse_second_occurrence(ids: types.IdArray, field: str) -> NoReturn:
    """Raise InvalidId for the first row whose id an earlier row has."""
    _, first_rows = np.unique(ids, return_index=True)
    again = np.ones(ids.size, dtype=bool)
    again[first_rows] = False
    row = int(np.argmax(again))
    (twice,) = ids[row : row + 1].tolist()
    raise InvalidId(f"id {twice!r} occurs twice", field=field, row=row)
