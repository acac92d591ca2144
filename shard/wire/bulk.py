"""Messages that carry many rows, read and written through their twins.

The twins, in vectorshard.internal.v1, hold packed numbers as bytes. A sender may legally write such
a field unpacked, in several pieces, or more than once; a twin then reads only a part of it. So a
twin is used only when its fields account for every byte of the message. Otherwise the bytes are
parsed as the original message and serialized again, which packs them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from google.protobuf.message import Message

from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import LimitExceeded, MalformedMessage
from vectorshard.shard.texts import counted
from vectorshard.shard.wire.ids import encode_ids, ids_of, split_ids
from vectorshard.shard.wire.matrices import decode_matrix, encode_matrix
from vectorshard.shard.wire.metadata import json_from_metadata
from vectorshard.shard.wire.primitives import parse

_TwinT = TypeVar("_TwinT", twins.UpsertRequestTwin, twins.RowsTwin)


# ---- the account of bytes ------------------------------------------------------------------------


def _varint_bytes(value: int) -> int:
    return max(1, (value.bit_length() + 6) // 7)


def field_bytes(length: int) -> int:
    """Return the bytes of a field of `length` bytes: tag (numbers 1 to 15), length, content."""
    return 1 + _varint_bytes(length) + length


def number_bytes(value: int) -> int:
    """Return the bytes of a varint field that is omitted when it is zero."""
    return 1 + _varint_bytes(value) if value else 0


def content_bytes(length: int) -> int:
    """Return the bytes of a field of `length` bytes that is omitted when it is empty."""
    return field_bytes(length) if length else 0


def ids_bytes(ids: twins.IdsTwin) -> int:
    """Return the bytes of a field of ids that are packed."""
    return _ids_bytes(ids, split_ids(ids)[1])


def _ids_bytes(ids: twins.IdsTwin, int64s: bytes | None) -> int:
    packed_bytes = 0 if int64s is None else field_bytes(content_bytes(len(int64s)))
    return field_bytes(ids.ByteSize() if int64s is None else packed_bytes)


# ---- reading -------------------------------------------------------------------------------------


class Bulk:
    """The fields that all twins have, each read from its message once, as every access copies it.

    `account` is the number of bytes of these fields in a packed message.
    """

    __slots__ = (
        *("_dim", "_dtype", "_id_bytes", "_strings", "_vectors_bytes"),
        *("account", "metadata", "metadata_json"),
    )

    def __init__(
        self, twin: twins.UpsertRequestTwin | twins.SearchResponseTwin | twins.RowsTwin
    ) -> None:
        self._strings, self._id_bytes = split_ids(twin.ids)
        self._vectors_bytes = twin.vectors.data
        self._dim, self._dtype = twin.vectors.dim, twin.vectors.dtype
        self.metadata = list(twin.metadata)
        self.metadata_json = list(twin.metadata_json)
        self.account = sum(map(field_bytes, map(len, self.metadata + self.metadata_json)))
        if twin.HasField("ids"):
            self.account += _ids_bytes(twin.ids, self._id_bytes)
        if twin.HasField("vectors"):
            self.account += field_bytes(
                content_bytes(len(self._vectors_bytes))
                + number_bytes(self._dim)
                + number_bytes(self._dtype)
            )

    def ids(self) -> types.IdArray:
        """Return the ids (rows,), as `ids_of` does."""
        return ids_of(self._strings, self._id_bytes)

    def vectors(self) -> types.VectorArray:
        """Return the vectors (rows, dim), as `decode_matrix` does."""
        return decode_matrix(self._vectors_bytes, self._dim, self._dtype, "vectors")

    def included(
        self, include: types.Include, rows: int
    ) -> tuple[types.Float32Array | None, list[bytes] | None]:
        """Return vectors (rows, dim) and metadata of a response, each None if not requested.

        A server of an earlier release answers with Structs where JSON is requested. Raises
        MalformedMessage if one of them has another number of rows.
        """
        vectors = self.vectors().astype("<f4", copy=False) if include.vectors else None
        if vectors is not None:
            check_count("vectors", len(vectors), rows)
        metadata = self.metadata if include.metadata else None
        if include.metadata_json:
            metadata = self.metadata_json or json_from_metadata(self.metadata)
        if metadata is not None:
            check_count("metadata", len(metadata), rows)
        return vectors, metadata


def check_count(field: str, count: int, ids: int) -> None:
    """Raise MalformedMessage unless `field` has as many rows as there are ids."""
    if count != ids:
        raise MalformedMessage(f"{counted(count, 'row')} for {counted(ids, 'id')}", field=field)


def read_twin(
    kind: type[_TwinT],
    original: type[Message],
    payload: bytes,
    other_bytes: Callable[[_TwinT], int],
) -> tuple[_TwinT, Bulk]:
    """Read the bytes of the contract's message `original` through its twin.

    `other_bytes` returns the packed bytes of the fields that Bulk does not read. Raises
    MalformedMessage if the bytes do not parse.
    """
    twin = parse(kind, payload, original)
    bulk = Bulk(twin)
    if bulk.account + other_bytes(twin) != len(payload):
        twin = kind.FromString(packed(original, payload))
        bulk = Bulk(twin)
    return twin, bulk


def packed(original: type[Message], payload: bytes) -> bytes:
    """Return the message serialized again: every field once, numbers packed."""
    return parse(original, payload).SerializeToString()


# ---- writing -------------------------------------------------------------------------------------


def write_answer(
    twin: twins.SearchResponseTwin | twins.RowsTwin,
    ids: types.IdArray,
    vectors: types.Float32Array | None,
    metadata: Sequence[bytes] | None,
    limits: Limits,
    *,
    is_json: bool,
    field: str,
    advice: str,
) -> bytes:
    """Add ids (rows,), vectors (rows, dim) and metadata to a response, and return its bytes.

    If `is_json`, the metadata is JSON. `twin` has all other fields. If the response does not fit
    into one message, raises LimitExceeded with this field and this advice to the caller.
    """
    # Checked first: a response that is far too large is not serialized at all.
    large_bytes = (0 if vectors is None else vectors.nbytes) + sum(map(len, metadata or ()))
    _check_size(large_bytes, limits, field, advice)
    twin.ids.CopyFrom(encode_ids(ids))
    if vectors is not None:
        twin.vectors.CopyFrom(encode_matrix(vectors))
    if metadata is not None:
        (twin.metadata_json if is_json else twin.metadata).extend(metadata)
    payload = twin.SerializeToString()
    _check_size(len(payload), limits, field, advice)
    return payload


def _check_size(answer_bytes: int, limits: Limits, field: str, advice: str) -> None:
    if answer_bytes > limits.message_bytes:
        raise LimitExceeded(
            f"response of {answer_bytes:,} bytes exceeds the message limit of "
            f"{limits.message_bytes:,} bytes: {advice}",
            field=field,
        )
