"""Ids to their message and back, and what no id and no batch of them may be."""

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
    """Write ids (rows,). Raises InvalidId for a string that UTF-8 cannot write."""
    if ids.dtype != np.object_:
        return twins.IdsTwin(
            int64s=twins.Int64IdsTwin(values=np.ascontiguousarray(ids, dtype="<i8").tobytes())
        )
    try:
        return twins.IdsTwin(strings=v1.StringIds(values=ids.tolist()))
    except UnicodeEncodeError as error:
        raise InvalidId(
            "a lone surrogate is not UTF-8", field="ids", row=ids.tolist().index(error.object)
        ) from None


def split_ids(twin: twins.IdsTwin) -> tuple[Sequence[str] | None, bytes | None]:
    """Return the strings, or the bytes of the int64s; the other, or both, are None."""
    kind = twin.WhichOneof("kind")
    if kind == "int64s":
        return None, twin.int64s.values
    return (twin.strings.values if kind == "strings" else None), None


def ids_of(strings: Sequence[str] | None, id_bytes: bytes | None) -> types.IdArray:
    """Return the ids (rows,) of what `split_ids` returned: int64, or object of str.

    No ids at all are an empty int64 array. Raises MalformedMessage for a part of an int64.
    """
    if strings is not None:
        ids = np.empty(len(strings), dtype=np.object_)
        ids[:] = strings
        return ids
    id_bytes = id_bytes or b""
    if len(id_bytes) % 8:
        raise MalformedMessage(f"{len(id_bytes)} bytes are no whole number of int64s", field="ids")
    return np.frombuffer(id_bytes, dtype="<i8")


def decode_ids(ids: v1.Ids) -> types.IdArray:
    """Read ids (rows,) through their twin: written anew they are packed, so it sees all of them."""
    return ids_of(*split_ids(twins.IdsTwin.FromString(ids.SerializeToString())))


def check_ids(ids: types.IdArray, limits: Limits, field: str = "ids") -> None:
    """Refuse ids (rows,) that no collection takes in one request, naming `field`.

    Raises
    ------
    LimitExceeded
        For more than `limits.rows`.
    InvalidId
        For an empty or over-long string, and for one that comes twice: the row is the second's.
    """
    if ids.size > limits.rows:
        raise LimitExceeded(f"{ids.size:,} rows, at most {limits.rows:,}", field=field)
    if ids.dtype == np.object_:
        _check_string_ids(ids.tolist(), limits, field)
    elif ids.size > 1:
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            _refuse_second_occurrence(ids, field)


def _check_string_ids(ids: Sequence[str], limits: Limits, field: str) -> None:
    unique = set(ids)
    if "" in unique:
        raise InvalidId("an id must not be empty", field=field, row=ids.index(""))
    if max(map(len, ids), default=0) * _MAX_UTF8_BYTES > limits.id_bytes:
        for row, id_ in enumerate(ids):
            if (length := len(id_.encode())) > limits.id_bytes:
                raise InvalidId(
                    f"an id of {length:,} bytes, at most {limits.id_bytes}", field=field, row=row
                )
    if len(unique) != len(ids):
        _refuse_second_occurrence(np.array(ids, dtype=np.object_), field)


def _refuse_second_occurrence(ids: types.IdArray, field: str) -> NoReturn:
    """Name the first row whose id an earlier row has."""
    _, first_rows = np.unique(ids, return_index=True)
    again = np.ones(ids.size, dtype=bool)
    again[first_rows] = False
    row = int(np.argmax(again))
    raise InvalidId(f"the id {ids[row]!r} comes twice", field=field, row=row)
