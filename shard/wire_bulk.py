"""Bulk on the wire: ids, vectors and scores between bytes and numpy, in one copy.

Part of shard.wire. Bulk messages are read through their twins in vectorshard.internal.v1, which
hold packed numbers as bytes. A sender may legally write such a field unpacked, in several pieces,
or more than once; a twin then sees too little. So a twin is believed only when its fields account
for every byte of the message. Otherwise the bytes are parsed as the original message and written
anew, which packs them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types
from shard.config import Limits
from shard.errors import InvalidId, LimitExceeded, MalformedMessage

_MAX_UTF8_BYTES = 4  # of one character: RFC 3629

_MessageT = TypeVar("_MessageT", bound=Message)

_DTYPES: dict[int, np.dtype[Any]] = {
    v1.D_TYPE_FLOAT32: np.dtype("<f4"),
    v1.D_TYPE_FLOAT16: np.dtype("<f2"),
}


# ---- bytes and their account ---------------------------------------------------------------------


def parse(message: type[_MessageT], payload: bytes) -> _MessageT:
    """Return the message; raise MalformedMessage (field `message`) for bytes that are none."""
    try:
        return message.FromString(payload)
    except DecodeError as error:
        raise MalformedMessage(
            f"not a {message.DESCRIPTOR.full_name}: {error}", field="message"
        ) from None


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def _field_bytes(length: int) -> int:
    """Return the bytes of a field of `length` bytes: tag (numbers 1 to 15), length, content."""
    return 1 + _varint_bytes(length) + length


def _number_bytes(value: int) -> int:
    """Return the bytes of a varint field that is left out when it is zero."""
    return 1 + _varint_bytes(value) if value else 0


def _bytes_bytes(length: int) -> int:
    """Return the bytes of a bytes or string field that is left out when it is empty."""
    return _field_bytes(length) if length else 0


def _counts_bytes(counts: types.UInt32Array) -> int:
    """Return the bytes of a field of packed varints: one each, and one for each 7 bits more."""
    content = counts.size
    if counts.max(initial=0) > 0x7F:
        content += sum(int(np.count_nonzero(counts >> bits)) for bits in (7, 14, 21, 28))
    return _bytes_bytes(content)


class Bulk:
    """The parts that all twins have, each taken out of its message once: every access copies it.

    `account` is the number of bytes that these parts have in a message that was written packed.
    """

    __slots__ = ("account", "id_bytes", "metadata", "strings", "vectors", "vectors_bytes")

    def __init__(
        self, twin: twins.UpsertRequestTwin | twins.SearchResponseTwin | twins.RowsTwin
    ) -> None:
        self.strings, self.id_bytes = _split_ids(twin.ids)
        self.vectors = twin.vectors
        self.vectors_bytes = twin.vectors.data
        self.metadata = list(twin.metadata)
        self.account = sum(map(_field_bytes, map(len, self.metadata)))
        if twin.HasField("ids"):
            self.account += _field_bytes(
                twin.ids.ByteSize()
                if self.id_bytes is None
                else _field_bytes(_bytes_bytes(len(self.id_bytes)))
            )
        if twin.HasField("vectors"):
            self.account += _field_bytes(
                _bytes_bytes(len(self.vectors_bytes))
                + _number_bytes(self.vectors.dim)
                + _number_bytes(self.vectors.dtype)
            )

    def ids(self) -> types.IdArray:
        """Return the ids (rows,), as `_ids_of` does."""
        return _ids_of(self.strings, self.id_bytes)

    def matrix(self) -> types.VectorArray:
        """Return the vectors (rows, dim), as `_matrix_of` does."""
        return _matrix_of(self.vectors_bytes, self.vectors.dim, self.vectors.dtype, "vectors")

    def included(
        self, include: types.Include, rows: int
    ) -> tuple[types.Float32Array | None, list[bytes] | None]:
        """Return vectors (rows, dim) and metadata of an answer, each None when not asked for."""
        vectors = self.matrix().astype("<f4", copy=False) if include.vectors else None
        if vectors is not None:
            check_count("vectors", len(vectors), rows)
        metadata = self.metadata if include.metadata else None
        if metadata is not None:
            check_count("metadata", len(metadata), rows)
        return vectors, metadata


def check_count(field: str, count: int, ids: int) -> None:
    """Raise MalformedMessage when a part is not of as many rows as there are ids."""
    if count != ids:
        raise MalformedMessage(f"{count:,} rows for {ids:,} ids", field=field)


def read_upsert_request(payload: bytes) -> tuple[twins.UpsertRequestTwin, Bulk]:
    """Return the twin of an Upsert, and its bulk; see `parse`."""
    twin = parse(twins.UpsertRequestTwin, payload)
    bulk = Bulk(twin)
    account = (
        bulk.account
        + _bytes_bytes(len(twin.collection.encode()))
        + _number_bytes(twin.mode)
        + _number_bytes(twin.request_id)
    )
    if account != len(payload):
        packed = parse(v1.UpsertRequest, payload).SerializeToString()
        twin = twins.UpsertRequestTwin.FromString(packed)
        bulk = Bulk(twin)
    return twin, bulk


def read_search_response(payload: bytes) -> tuple[twins.SearchResponseTwin, Bulk]:
    """Return the twin of an answer to Search, and its bulk; see `parse`."""
    twin = parse(twins.SearchResponseTwin, payload)
    bulk = Bulk(twin)
    account = (
        bulk.account
        + _counts_bytes(np.array(twin.counts, dtype=np.uint32))
        + _bytes_bytes(len(twin.scores))
        + (_field_bytes(twin.receipt.ByteSize()) if twin.HasField("receipt") else 0)
    )
    if account != len(payload):
        packed = parse(v1.SearchResponse, payload).SerializeToString()
        twin = twins.SearchResponseTwin.FromString(packed)
        bulk = Bulk(twin)
    return twin, bulk


def read_rows(
    message: type[v1.GetResponse] | type[v1.ListResponse], payload: bytes
) -> tuple[twins.RowsTwin, Bulk]:
    """Return the twin of an answer to Get or List, and its bulk; see `parse`."""
    twin = parse(twins.RowsTwin, payload)
    bulk = Bulk(twin)
    if bulk.account + _bytes_bytes(len(twin.cursor)) != len(payload):
        twin = twins.RowsTwin.FromString(parse(message, payload).SerializeToString())
        bulk = Bulk(twin)
    return twin, bulk


def serialize(
    message: Message, limits: Limits, content_bytes: int, *, field: str, advice: str
) -> bytes:
    """Return the bytes of an answer, unless they exceed the limit on messages.

    `content_bytes` is a lower bound of their number. It is looked at first: an answer that is far
    too large is not written at all.
    """
    payload = b"" if content_bytes > limits.message_bytes else message.SerializeToString()
    if max(content_bytes, len(payload)) > limits.message_bytes:
        raise LimitExceeded(
            f"the answer would take {max(content_bytes, len(payload)):,} bytes, "
            f"more than the {limits.message_bytes:,} of a message: {advice}",
            field=field,
        )
    return payload


# ---- ids -----------------------------------------------------------------------------------------


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


def _split_ids(twin: twins.IdsTwin) -> tuple[Sequence[str] | None, bytes | None]:
    """Return the strings, or the bytes of the int64s; the other, or both, are None."""
    kind = twin.WhichOneof("kind")
    if kind == "int64s":
        return None, twin.int64s.values
    return (twin.strings.values if kind == "strings" else None), None


def _ids_of(strings: Sequence[str] | None, id_bytes: bytes | None) -> types.IdArray:
    """Return ids (rows,): int64, or object of str. No ids at all are an empty int64 array."""
    if strings is not None:
        ids = np.empty(len(strings), dtype=np.object_)
        ids[:] = strings
        return ids
    id_bytes = id_bytes or b""
    if len(id_bytes) % 8:
        raise MalformedMessage(f"{len(id_bytes)} bytes are no whole number of int64s", field="ids")
    return np.frombuffer(id_bytes, dtype="<i8")


def decode_public_ids(ids: v1.Ids) -> types.IdArray:
    """Read ids through their twin: written anew they are packed, so it sees all of them."""
    return _ids_of(*_split_ids(twins.IdsTwin.FromString(ids.SerializeToString())))


def check_ids(ids: types.IdArray, limits: Limits) -> None:
    """Refuse ids (rows,) that no collection takes in one request.

    Raises
    ------
    LimitExceeded
        For more than `limits.rows`.
    InvalidId
        For an empty or over-long string, and for one that comes twice: the row is the second's.
    """
    if ids.size > limits.rows:
        raise LimitExceeded(f"{ids.size:,} rows, at most {limits.rows:,}", field="ids")
    if ids.dtype == np.object_:
        _check_string_ids(ids.tolist(), limits)
    elif ids.size > 1:
        ordered = np.sort(ids)
        if (ordered[1:] == ordered[:-1]).any():
            _refuse_second_occurrence(ids)


def _check_string_ids(ids: Sequence[str], limits: Limits) -> None:
    unique = set(ids)
    if "" in unique:
        raise InvalidId("an id must not be empty", field="ids", row=ids.index(""))
    if max(map(len, ids), default=0) * _MAX_UTF8_BYTES > limits.id_bytes:
        for row, id_ in enumerate(ids):
            if (length := len(id_.encode())) > limits.id_bytes:
                raise InvalidId(
                    f"an id of {length:,} bytes, at most {limits.id_bytes}", field="ids", row=row
                )
    if len(unique) != len(ids):
        _refuse_second_occurrence(np.array(ids, dtype=np.object_))


def _refuse_second_occurrence(ids: types.IdArray) -> NoReturn:
    """Name the first row whose id an earlier row has."""
    _, first_rows = np.unique(ids, return_index=True)
    again = np.ones(ids.size, dtype=bool)
    again[first_rows] = False
    row = int(np.argmax(again))
    raise InvalidId(f"the id {ids[row]!r} comes twice", field="ids", row=row)


# ---- vectors -------------------------------------------------------------------------------------


def encode_matrix(vectors: types.VectorArray) -> v1.Matrix:
    """Write vectors (rows, dim): float16 as FLOAT16, everything else as FLOAT32."""
    half = vectors.dtype == np.float16
    dtype = v1.D_TYPE_FLOAT16 if half else v1.D_TYPE_FLOAT32
    return v1.Matrix(
        data=np.ascontiguousarray(vectors, dtype=_DTYPES[dtype]).tobytes(),
        dim=vectors.shape[1],
        dtype=dtype,
    )


def decode_matrix(matrix: v1.Matrix, field: str) -> types.VectorArray:
    """Read vectors (rows, dim), as `_matrix_of` does."""
    return _matrix_of(matrix.data, matrix.dim, matrix.dtype, field)


def _matrix_of(vectors_bytes: bytes, dim: int, dtype_number: int, field: str) -> types.VectorArray:
    """Return vectors (rows, dim), float32 or float16, read-only. An empty matrix is (0, dim)."""
    if not vectors_bytes and dim == 0:
        return np.empty((0, 0), dtype="<f4")
    dtype = _DTYPES.get(dtype_number)
    if dtype is None:
        what = f"unknown value {dtype_number}" if dtype_number else "unspecified"
        raise MalformedMessage(what, field=f"{field}.dtype")
    if dim == 0:
        raise MalformedMessage("components, but a dim of 0", field=field)
    if len(vectors_bytes) % (dim * dtype.itemsize):
        raise MalformedMessage(
            f"{len(vectors_bytes):,} bytes are no whole number of rows of {dim} {dtype.name}",
            field=field,
        )
    return np.frombuffer(vectors_bytes, dtype=dtype).reshape(-1, dim)
