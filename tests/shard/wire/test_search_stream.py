"""The envelopes of a search stream are the public messages, however a sender spells them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import delimited
from tests.shard.wire.strategies import uint64s
from vectorshard.internal.v1 import internal_pb2 as twins
from vectorshard.shard.errors import MalformedMessage
from vectorshard.shard.types import Include, SearchRequest
from vectorshard.shard.wire import search_stream
from vectorshard.shard.wire.searches import expected_answer_bytes
from vectorshard.v1 import vectorshard_pb2 as v1

SEARCH = v1.SearchRequest(collection="words", k=3).SerializeToString()
uint32s = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize(
    ("twin", "original"),
    [
        (twins.SearchStreamRequestTwin, v1.SearchStreamRequest),
        (twins.SearchStreamResponseTwin, v1.SearchStreamResponse),
    ],
)
def test_a_twin_has_the_fields_of_its_original(twin: type, original: type) -> None:
    def numbers(message: type) -> dict[str, int]:
        fields = message.DESCRIPTOR.fields  # type: ignore[attr-defined]  # every message has one
        return {field.name: field.number for field in fields}

    assert numbers(twin) == numbers(original)


@given(uint64s, uint32s, st.text(max_size=40), uint32s)
def test_a_search_is_the_public_message_byte_for_byte(
    request_id: int, timeout_ms: int, incarnation: str, answer_bytes_max: int
) -> None:
    request = search_stream.StreamRequest(
        request_id=request_id,
        search=SEARCH,
        timeout_ms=timeout_ms,
        incarnation=incarnation,
        answer_bytes_max=answer_bytes_max,
    )
    payload = search_stream.encode_search_stream_request(request)
    message = v1.SearchStreamRequest.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    assert (message.search.collection, message.search.k) == ("words", 3)
    assert search_stream.decode_search_stream_request(payload) == request


def test_a_cancel_is_the_public_message() -> None:
    request = search_stream.StreamRequest(request_id=7, cancels=True)
    payload = search_stream.encode_search_stream_request(request)
    assert payload == v1.SearchStreamRequest(request_id=7, cancel=v1.Cancel()).SerializeToString()
    assert search_stream.decode_search_stream_request(payload) == request


def test_a_message_may_be_neither() -> None:
    payload = v1.SearchStreamRequest(request_id=7).SerializeToString()
    assert search_stream.decode_search_stream_request(payload) == search_stream.StreamRequest(
        request_id=7
    )


def test_a_search_in_pieces_is_merged_as_protobuf_merges_it() -> None:
    head = v1.SearchStreamRequest(request_id=7).SerializeToString()
    pieces = [
        v1.SearchRequest(collection="words").SerializeToString(),
        v1.SearchRequest(k=3).SerializeToString(),
    ]
    payload = b"".join(delimited(3, piece) for piece in pieces) + head
    read = search_stream.decode_search_stream_request(payload)
    assert (read.request_id, read.search) == (7, SEARCH)


def test_what_is_bad_inside_is_not_the_envelopes_business() -> None:
    payload = v1.SearchStreamRequest(request_id=7).SerializeToString() + delimited(3, b"\xff\xff")
    assert search_stream.decode_search_stream_request(payload).search == b"\xff\xff"


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x08", delimited(5, b"\xff")])
def test_an_envelope_that_does_not_parse_is_refused(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        search_stream.decode_search_stream_request(payload)


@given(uint64s, st.integers(0, 300))
def test_an_answer_is_the_public_message_byte_for_byte(request_id: int, queries: int) -> None:
    response = v1.SearchResponse(counts=[0] * queries).SerializeToString()
    answer = search_stream.StreamAnswer(request_id=request_id, response=response)
    payload = search_stream.encode_search_stream_response(answer)
    message = v1.SearchStreamResponse.FromString(payload)
    assert message.SerializeToString(deterministic=True) == payload
    assert len(message.response.counts) == queries
    assert message.WhichOneof("kind") == "response"
    assert search_stream.decode_search_stream_response(payload) == answer


def test_an_envelope_adds_less_than_is_reckoned_with() -> None:
    answer = search_stream.StreamAnswer(request_id=2**64 - 1, response=bytes(64 * 1024 * 1024))
    added = len(search_stream.encode_search_stream_response(answer)) - 64 * 1024 * 1024
    assert 0 < added <= search_stream.ENVELOPE_BYTES


def test_an_error_is_the_public_message() -> None:
    status = v1.SearchStreamResponse().error.__class__(code=3, message="no")
    answer = search_stream.StreamAnswer(request_id=9, error=status.SerializeToString())
    payload = search_stream.encode_search_stream_response(answer)
    assert v1.SearchStreamResponse.FromString(payload).error == status
    assert search_stream.decode_search_stream_response(payload) == answer


@pytest.mark.parametrize(
    ("include", "hit_bytes"),
    [
        (Include(), 12),
        (Include(vectors=True), 12 + 4 * 5),
        (Include(metadata=True), 12 + 1_024),
    ],
)
def test_an_answer_is_expected_to_take_what_its_hits_take(include: Include, hit_bytes: int) -> None:
    queries = np.zeros((3, 5), dtype=np.float32)
    request = SearchRequest(collection="words", queries=queries, k=4, include=include)
    assert expected_answer_bytes(request) == 3 * 4 * hit_bytes
