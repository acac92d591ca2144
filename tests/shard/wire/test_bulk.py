"""Bulk messages are the public ones byte for byte, however a sender spells them."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given

from tests.shard.wire.messages import delimited, refusal, some_hits, upsert_bytes
from tests.shard.wire.strategies import LIMITS, search_results, uint64s, upsert_requests
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import LimitExceeded, MalformedMessage
from vectorshard.shard.wire import bulk, searches
from vectorshard.shard.wire.reads import (
    decode_get_request,
    encode_get_response,
    encode_list_response,
)
from vectorshard.shard.wire.searches import decode_search_response, encode_search_response
from vectorshard.shard.wire.writes import (
    decode_delete_request,
    decode_upsert_request,
    encode_upsert_request,
)
from vectorshard.v1 import vectorshard_pb2 as v1

UNPACKED = b"".join(b"\x09" + struct.pack("<q", id_) for id_ in (1, 2))
PACKED = delimited(1, struct.pack("<2q", 1, 2))
CHUNKED = delimited(1, struct.pack("<q", 1)) + delimited(1, struct.pack("<q", 2))
MIXED = delimited(1, struct.pack("<q", 1)) + b"\x09" + struct.pack("<q", 2)


@given(upsert_requests(), uint64s)
def test_an_upsert_is_the_public_message_byte_for_byte(
    request: types.UpsertRequest, request_id: int
) -> None:
    payload = encode_upsert_request(request, request_id)
    message = v1.UpsertRequest.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    ids = message.ids.strings if request.ids.dtype == np.object_ else message.ids.int64s
    assert list(ids.values) == request.ids.tolist()
    assert message.vectors.data == request.vectors.tobytes()
    assert len(message.metadata) == len(request.metadata or ())


@given(search_results())
def test_hits_are_the_public_message_byte_for_byte(
    drawn: tuple[types.SearchResult, types.Include],
) -> None:
    result, _ = drawn
    payload = encode_search_response(result, LIMITS)
    message = v1.SearchResponse.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    assert np.array(message.scores, dtype="<f4").tobytes() == result.hits.scores.tobytes()
    assert list(message.counts) == result.hits.counts.tolist()
    assert message.receipt.shards_total == len(result.receipt.shards)


@pytest.mark.parametrize("values", [PACKED, UNPACKED, CHUNKED, MIXED])
def test_ids_arrive_however_they_are_spelt(values: bytes) -> None:
    without_ids = upsert_bytes(ids=None)
    for ids_field in (
        delimited(2, delimited(1, values)),
        # protobuf merges a message that comes twice.
        delimited(2, delimited(1, b"")) + delimited(2, delimited(1, values)),
    ):
        for payload in (without_ids + ids_field, ids_field + without_ids):
            request, _ = decode_upsert_request(payload, LIMITS)
            assert request.ids.tolist() == [1, 2]
            assert request.vectors.tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize("values", [PACKED, UNPACKED, CHUNKED, MIXED])
def test_ids_of_small_requests_arrive_however_they_are_spelt(values: bytes) -> None:
    payload = delimited(1, b"words") + delimited(2, delimited(1, values))
    for decode in (decode_delete_request, decode_get_request):
        ids = decode(payload, LIMITS).ids
        assert ids is not None
        assert ids.tolist() == [1, 2]


@pytest.mark.parametrize("extra", [UNPACKED, PACKED, CHUNKED])
def test_ids_beyond_what_a_twin_sees_are_counted(extra: bytes) -> None:
    """A twin sees the two last ids, which is as many as there are vectors; there are four."""
    more = delimited(1, struct.pack("<2q", 8, 9))
    for values in (extra + more, more + extra):
        payload = upsert_bytes(ids=None) + delimited(2, delimited(1, values))
        assert refusal(MalformedMessage, decode_upsert_request, payload, LIMITS) == (
            "vectors",
            None,
        )


def test_the_last_of_two_kinds_of_ids_counts() -> None:
    payload = upsert_bytes(ids=v1.Ids(strings=v1.StringIds(values=["a", "b"])))
    payload += delimited(2, delimited(1, PACKED))
    assert decode_upsert_request(payload, LIMITS)[0].ids.tolist() == [1, 2]


def test_fields_of_a_later_contract_are_passed_over() -> None:
    later = b"\xf8\x7f\x01"  # field 2047, varint
    assert decode_upsert_request(upsert_bytes() + later, LIMITS)[0].ids.tolist() == [1, 2]
    hits = v1.SearchResponse(counts=[0]).SerializeToString()
    decoded = decode_search_response(hits + later, types.Include())
    assert decoded.hits.counts.tolist() == [0]


def test_scores_arrive_however_they_are_spelt() -> None:
    head = v1.SearchResponse(counts=[2], ids=v1.Ids(int64s=v1.Int64Ids(values=[1, 2])))
    unpacked = b"".join(b"\x1d" + struct.pack("<f", score) for score in (0.5, 0.25))
    chunked = delimited(3, struct.pack("<f", 0.5)) + delimited(3, struct.pack("<f", 0.25))
    for scores in (unpacked, chunked, delimited(3, struct.pack("<2f", 0.5, 0.25))):
        payload = head.SerializeToString() + scores
        result = decode_search_response(payload, types.Include())
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
    payload = encode_search_response(result, LIMITS)
    monkeypatch.delattr(searches, "packed")
    assert decode_search_response(payload, types.Include()).hits.counts.tolist() == counts


def test_a_receipt_arrives_in_one_piece_or_in_several() -> None:
    shards = [v1.Receipt(shards=[v1.ShardReceipt(shard=shard)]) for shard in range(2)]
    pieces = b"".join(delimited(6, shard.SerializeToString()) for shard in shards)
    payload = v1.SearchResponse(counts=[0]).SerializeToString() + pieces
    receipt = decode_search_response(payload, types.Include()).receipt
    assert [shard.shard for shard in receipt.shards] == [0, 1]


@given(upsert_requests(), uint64s)
def test_a_packed_upsert_is_parsed_once(request: types.UpsertRequest, request_id: int) -> None:
    payload = encode_upsert_request(request, request_id)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr(bulk, "packed")
        decode_upsert_request(payload, LIMITS)


@pytest.mark.parametrize("message_bytes", [20, 100])
def test_an_answer_over_the_limit_is_refused_with_advice(message_bytes: int) -> None:
    limits = Limits(message_bytes=message_bytes)
    vectors = np.zeros((4, 9), dtype=np.float32)
    with pytest.raises(LimitExceeded, match="fewer queries") as raised:
        encode_search_response(some_hits(vectors), limits)
    assert raised.value.field == "k"
    rows = types.Rows(ids=np.arange(4), vectors=vectors)
    with pytest.raises(LimitExceeded, match="fewer ids"):
        encode_get_response(rows, limits)
    with pytest.raises(LimitExceeded, match="smaller pages"):
        encode_list_response(rows, limits)


def test_an_answer_of_just_the_limit_is_sent() -> None:
    payload = encode_search_response(some_hits(), LIMITS)
    assert encode_search_response(some_hits(), Limits(message_bytes=len(payload))) == payload
    with pytest.raises(LimitExceeded):
        encode_search_response(some_hits(), Limits(message_bytes=len(payload) - 1))
