"""Upsert and Delete: batches and acknowledgements arrive as they were sent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, matrix, refusal, upsert_bytes
from tests.shard.wire.strategies import (
    LIMITS,
    assert_same,
    texts,
    tokens,
    uint32s,
    uint64s,
    upsert_requests,
)
from vectorshard.shard import types
from vectorshard.shard.errors import InvalidParameter, MalformedMessage
from vectorshard.shard.wire import writes


@given(upsert_requests(), uint64s)
def test_an_upsert_comes_back_as_it_was_sent(request: types.UpsertRequest, request_id: int) -> None:
    payload = writes.encode_upsert_request(request, request_id)
    decoded, decoded_id = writes.decode_upsert_request(payload, LIMITS)
    assert_same(decoded, request)
    assert decoded_id == request_id


@given(
    uint64s,
    st.lists(st.builds(types.RowError, uint32s, st.integers(0, 16), texts), max_size=3).map(tuple),
    tokens,
    uint64s,
)
def test_acknowledgements_come_back_as_they_were_sent(
    accepted: int, errors: tuple[types.RowError, ...], token: types.Token, request_id: int
) -> None:
    upserted = types.UpsertResult(accepted=accepted, errors=errors, token=token)
    payload = writes.encode_upsert_response(upserted, request_id)
    assert writes.decode_upsert_response(payload) == (upserted, request_id)
    deleted = types.DeleteResult(deleted=accepted, token=token)
    assert writes.decode_delete_response(writes.encode_delete_response(deleted)) == deleted


def test_counts_that_do_not_match_are_refused() -> None:
    one_row = upsert_bytes(vectors=matrix(data=bytes(8)))
    assert refusal(MalformedMessage, REQUEST_DECODERS["upsert"], one_row) == ("vectors", None)
    one_struct = upsert_bytes(metadata=[{}])
    assert refusal(MalformedMessage, REQUEST_DECODERS["upsert"], one_struct) == ("metadata", None)


def test_an_unknown_mode_is_refused_and_none_means_upsert() -> None:
    assert refusal(InvalidParameter, REQUEST_DECODERS["upsert"], upsert_bytes(mode=3)) == (
        "mode",
        None,
    )
    request, _ = writes.decode_upsert_request(upsert_bytes(), LIMITS)
    assert request.mode is types.WriteMode.UPSERT
