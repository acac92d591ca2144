"""Vectors and queries: little-endian, of their own width, and never half a row."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.shard.wire.messages import REQUEST_DECODERS, matrix, refusal, search_bytes, upsert_bytes
from tests.shard.wire.strategies import LIMITS
from vectorshard.shard import types
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.wire.searches import decode_search_request
from vectorshard.shard.wire.writes import decode_upsert_request, encode_upsert_request
from vectorshard.v1 import vectorshard_pb2 as v1


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_vectors_are_little_endian_and_keep_their_width(dtype: str) -> None:
    vectors = np.array([[1.5, -2.0], [0.25, 4.0]], dtype=dtype)
    request = types.UpsertRequest(collection="a", ids=np.arange(2), vectors=vectors)
    payload = encode_upsert_request(request)
    message = v1.UpsertRequest.FromString(payload)
    assert message.vectors.data == struct.pack("<4" + "fe"[dtype == "<f2"], 1.5, -2.0, 0.25, 4.0)
    assert decode_upsert_request(payload, LIMITS)[0].vectors.dtype == np.dtype(dtype)


def test_arrays_of_any_layout_are_sent_by_value() -> None:
    vectors = np.arange(12, dtype=">f8").reshape(3, 4).T
    request = types.UpsertRequest(
        collection="a",
        ids=np.arange(8)[::2].astype(">i8"),
        vectors=vectors,
    )
    decoded, _ = decode_upsert_request(encode_upsert_request(request), LIMITS)
    assert decoded.ids.tolist() == [0, 2, 4, 6]
    assert decoded.vectors.tolist() == vectors.tolist()


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (matrix(data=bytes(15)), ""),
        (matrix(data=bytes(12)), ""),
        (matrix(dim=0), ""),
        (matrix(dim=2**32 - 1), ""),
        (matrix(dtype=0), ".dtype"),
        (matrix(dtype=3), ".dtype"),
        (matrix(dtype=-1), ".dtype"),
    ],
)
def test_a_matrix_that_is_none_is_refused(bad: v1.Matrix, field: str) -> None:
    upsert, search = upsert_bytes(vectors=bad), search_bytes(queries=bad)
    assert refusal(MalformedMessage, REQUEST_DECODERS["upsert"], upsert) == (
        "vectors" + field,
        None,
    )
    assert refusal(MalformedMessage, REQUEST_DECODERS["search"], search) == (
        "queries" + field,
        None,
    )


@pytest.mark.parametrize("empty", [None, v1.Matrix(), matrix(data=b"")])
def test_no_rows_are_a_legal_batch(empty: v1.Matrix | None) -> None:
    request, _ = decode_upsert_request(upsert_bytes(vectors=empty, ids=None), LIMITS)
    assert len(request.vectors) == len(request.ids) == 0
    assert len(decode_search_request(search_bytes(queries=empty), LIMITS).queries) == 0
