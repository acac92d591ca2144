"""Ids and vectors arrive however they are spelt; what is none is refused by field and row."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vectorshard.v1 import vectorshard_pb2 as v1

from shard import types, wire
from shard.config import Limits
from shard.errors import (
    InvalidId,
    LimitExceeded,
    MalformedMessage,
)
from shard.wire_bulk import check_ids
from tests.shard.wire_samples import (
    DECODERS,
    LIMITS,
    delimited,
    matrix,
    refusal,
    search_bytes,
    uint64s,
    upsert_bytes,
    upsert_requests,
)

# ---- other spellings of the same message ---------------------------------------------------------


UNPACKED = b"".join(b"\x09" + struct.pack("<q", id_) for id_ in (1, 2))
PACKED = delimited(1, struct.pack("<2q", 1, 2))
CHUNKED = delimited(1, struct.pack("<q", 1)) + delimited(1, struct.pack("<q", 2))
MIXED = delimited(1, struct.pack("<q", 1)) + b"\x09" + struct.pack("<q", 2)


@pytest.mark.parametrize("values", [PACKED, UNPACKED, CHUNKED, MIXED])
def test_ids_arrive_however_they_are_spelt(values: bytes) -> None:
    without_ids = upsert_bytes(ids=None)
    for ids_field in (
        delimited(2, delimited(1, values)),
        # protobuf merges a message that comes twice.
        delimited(2, delimited(1, b"")) + delimited(2, delimited(1, values)),
    ):
        for payload in (without_ids + ids_field, ids_field + without_ids):
            request, _ = wire.decode_upsert_request(payload, LIMITS)
            assert request.ids.tolist() == [1, 2]
            assert request.vectors.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("values", [PACKED, UNPACKED, CHUNKED, MIXED])
def test_ids_of_small_requests_arrive_however_they_are_spelt(values: bytes) -> None:
    payload = delimited(1, b"words") + delimited(2, delimited(1, values))
    assert wire.decode_delete_request(payload, LIMITS).ids.tolist() == [1, 2]
    assert wire.decode_get_request(payload, LIMITS).ids.tolist() == [1, 2]


@pytest.mark.parametrize("extra", [UNPACKED, PACKED, CHUNKED])
def test_ids_beyond_what_a_twin_sees_are_counted(extra: bytes) -> None:
    """A twin sees the two last ids, which is as many as there are vectors; there are four."""
    more = delimited(1, struct.pack("<2q", 8, 9))
    for values in (extra + more, more + extra):
        payload = upsert_bytes(ids=None) + delimited(2, delimited(1, values))
        assert refusal(MalformedMessage, wire.decode_upsert_request, payload, LIMITS) == (
            "vectors",
            None,
        )


def test_the_last_of_two_kinds_of_ids_counts() -> None:
    payload = upsert_bytes(ids=v1.Ids(strings=v1.StringIds(values=["a", "b"])))
    payload += delimited(2, delimited(1, PACKED))
    assert wire.decode_upsert_request(payload, LIMITS)[0].ids.tolist() == [1, 2]


def test_fields_of_a_later_contract_are_passed_over() -> None:
    later = b"\xf8\x7f\x01"  # field 2047, varint
    assert wire.decode_upsert_request(upsert_bytes() + later, LIMITS)[0].ids.tolist() == [1, 2]
    hits = v1.SearchResponse(counts=[0]).SerializeToString()
    decoded = wire.decode_search_response(hits + later, types.Include())
    assert decoded.hits.counts.tolist() == [0]


def test_scores_arrive_however_they_are_spelt() -> None:
    head = v1.SearchResponse(counts=[2], ids=v1.Ids(int64s=v1.Int64Ids(values=[1, 2])))
    unpacked = b"".join(b"\x1d" + struct.pack("<f", score) for score in (0.5, 0.25))
    chunked = delimited(3, struct.pack("<f", 0.5)) + delimited(3, struct.pack("<f", 0.25))
    for scores in (unpacked, chunked, delimited(3, struct.pack("<2f", 0.5, 0.25))):
        payload = head.SerializeToString() + scores
        result = wire.decode_search_response(payload, types.Include())
        assert result.hits.scores.tolist() == [0.5, 0.25]


def test_large_counts_are_accounted_for_without_a_second_parse(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = [0, 1, 127, 128, 16_383, 16_384]
    hits = sum(counts)
    result = types.SearchResult(
        hits=types.TopK(
            counts=np.array(counts, dtype=np.uint32),
            ids=np.arange(hits),
            scores=np.zeros(hits, dtype=np.float32),
        ),
        receipt=types.Receipt(shards=(), coverage=1.0),
    )
    payload = wire.encode_search_response(result, LIMITS)
    monkeypatch.delattr(v1, "SearchResponse")
    assert wire.decode_search_response(payload, types.Include()).hits.counts.tolist() == counts


@given(upsert_requests(), uint64s)
def test_a_packed_upsert_is_parsed_once(request: types.UpsertRequest, request_id: int) -> None:
    payload = wire.encode_upsert_request(request, request_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(v1, "UpsertRequest")
        wire.decode_upsert_request(payload, LIMITS)


@pytest.mark.parametrize("dtype", ["<f4", "<f2"])
def test_vectors_are_little_endian_and_keep_their_width(dtype: str) -> None:
    vectors = np.array([[1.5, -2.0], [0.25, 4.0]], dtype=dtype)
    request = types.UpsertRequest(collection="a", ids=np.arange(2), vectors=vectors)
    payload = wire.encode_upsert_request(request)
    message = v1.UpsertRequest.FromString(payload)
    assert message.vectors.data == struct.pack("<4" + "fe"[dtype == "<f2"], 1.5, -2.0, 0.25, 4.0)
    assert wire.decode_upsert_request(payload, LIMITS)[0].vectors.dtype == np.dtype(dtype)


def test_arrays_of_any_layout_are_sent_by_value() -> None:
    vectors = np.arange(12, dtype=">f8").reshape(3, 4).T
    request = types.UpsertRequest(
        collection="a",
        ids=np.arange(8)[::2].astype(">i8"),
        vectors=vectors,
    )
    decoded, _ = wire.decode_upsert_request(wire.encode_upsert_request(request), LIMITS)
    assert decoded.ids.tolist() == [0, 2, 4, 6]
    assert decoded.vectors.tolist() == vectors.tolist()


# ---- matrices, counts, ids -----------------------------------------------------------------------


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
    assert refusal(MalformedMessage, DECODERS["upsert"], upsert) == ("vectors" + field, None)
    assert refusal(MalformedMessage, DECODERS["search"], search) == ("queries" + field, None)


@pytest.mark.parametrize("empty", [None, v1.Matrix(), matrix(data=b"")])
def test_no_rows_are_a_legal_batch(empty: v1.Matrix | None) -> None:
    request, _ = wire.decode_upsert_request(upsert_bytes(vectors=empty, ids=None), LIMITS)
    assert len(request.vectors) == len(request.ids) == 0
    assert len(wire.decode_search_request(search_bytes(queries=empty), LIMITS).queries) == 0


def test_counts_that_do_not_match_are_refused() -> None:
    one_row = upsert_bytes(vectors=matrix(data=bytes(8)))
    assert refusal(MalformedMessage, DECODERS["upsert"], one_row) == ("vectors", None)
    one_struct = upsert_bytes(metadata=[{}])
    assert refusal(MalformedMessage, DECODERS["upsert"], one_struct) == ("metadata", None)


def test_half_an_int64_is_refused() -> None:
    payload = upsert_bytes(ids=None) + delimited(2, delimited(1, delimited(1, bytes(15))))
    assert refusal(MalformedMessage, DECODERS["upsert"], payload)[0] == "ids"


def ids_requests(ids: v1.Ids) -> list[tuple[str, bytes]]:
    """Return every request that carries ids."""
    rows = len(ids.int64s.values) + len(ids.strings.values)
    return [
        ("upsert", upsert_bytes(ids=ids, vectors=matrix(data=bytes(8 * rows)))),
        ("delete", v1.DeleteRequest(ids=ids).SerializeToString()),
        ("get", v1.GetRequest(ids=ids).SerializeToString()),
        ("count", v1.CountRequest(ids=ids).SerializeToString()),
    ]


@pytest.mark.parametrize(
    ("ids", "row"),
    [
        (["a", ""], 1),
        (["a", "b" * 513], 1),
        (["ä" * 257, "b"], 0),
        (["a", "b", "c", "b", "a"], 3),
        ([5, 6, 7, 6, 5], 3),
        ([-(2**63), 0, -(2**63)], 2),
    ],
)
def test_ids_that_cannot_be_are_refused_by_row(ids: list[Any], row: int) -> None:
    if isinstance(ids[0], str):
        message = v1.Ids(strings=v1.StringIds(values=ids))
    else:
        message = v1.Ids(int64s=v1.Int64Ids(values=ids))
    for rpc, payload in ids_requests(message):
        assert refusal(InvalidId, DECODERS[rpc], payload) == ("ids", row)


def test_the_longest_ids_are_taken() -> None:
    longest = ["ä" * 256, "b" * 512]
    message = v1.Ids(strings=v1.StringIds(values=longest))
    for rpc, payload in ids_requests(message):
        DECODERS[rpc](payload)


@given(st.lists(st.integers(0, 8), max_size=8))
def test_the_first_repetition_is_named(ids: list[int]) -> None:
    expected = next((row for row, id_ in enumerate(ids) if id_ in ids[:row]), None)
    for array in (np.array(ids, dtype=np.int64), np.array([*map(str, ids), 0], dtype=object)[:-1]):
        if expected is None:
            check_ids(array, LIMITS)
        else:
            assert refusal(InvalidId, check_ids, array, LIMITS) == ("ids", expected)


def test_too_many_rows_are_refused() -> None:
    limits = Limits(rows=2)
    ids = v1.Ids(int64s=v1.Int64Ids(values=[1, 2, 3]))
    for decode, payload in (
        (wire.decode_upsert_request, upsert_bytes(ids=ids, vectors=matrix(data=bytes(24)))),
        (wire.decode_delete_request, v1.DeleteRequest(ids=ids).SerializeToString()),
        (wire.decode_get_request, v1.GetRequest(ids=ids).SerializeToString()),
    ):
        assert refusal(LimitExceeded, decode, payload, limits)[0] == "ids"


def test_a_delete_or_get_of_nothing_named_is_refused() -> None:
    for rpc, request in (("delete", v1.DeleteRequest()), ("get", v1.GetRequest())):
        assert refusal(MalformedMessage, DECODERS[rpc], request.SerializeToString())[0] == "ids"


def test_a_get_without_include_brings_everything() -> None:
    request = v1.GetRequest(ids=v1.Ids(int64s=v1.Int64Ids(values=[1])))
    decoded = wire.decode_get_request(request.SerializeToString(), LIMITS)
    assert decoded.include == types.Include(vectors=True, metadata=True)
    request.include.SetInParent()
    decoded = wire.decode_get_request(request.SerializeToString(), LIMITS)
    assert decoded.include == types.Include()


def test_an_id_that_utf8_cannot_write_is_refused_by_row() -> None:
    ids = np.array(["a", "\ud800"], dtype=object)
    request = types.DeleteRequest(collection="a", ids=ids)
    assert refusal(InvalidId, wire.encode_delete_request, request) == ("ids", 1)
