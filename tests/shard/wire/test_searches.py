"""Searches: what is asked, its ranges and defaults, and hits that fit together."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, matrix, refusal, search_bytes, some_hits
from tests.shard.wire.strategies import (
    LIMITS,
    assert_same,
    filters,
    float32s,
    includes,
    matrices,
    names,
    search_results,
    tokens,
)
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.filters import Filter
from vectorshard.shard.wire import searches
from vectorshard.shard.wire.reads import encode_list_request
from vectorshard.v1 import vectorshard_pb2 as v1


@given(
    names,
    st.sampled_from([0, 1, 4]).flatmap(matrices),
    st.integers(1, LIMITS.k),
    st.one_of(
        st.just(types.Effort()),
        st.just(types.Effort(exact=True)),
        st.builds(types.Effort, nprobe=st.integers(1, LIMITS.nlist)),
        st.builds(types.Effort, target_recall=float32s.filter(bool)),
    ),
    st.none() | filters,
    includes,
    st.none() | st.floats(width=32, allow_nan=False),
    float32s,
    st.none() | tokens,
)
def test_a_search_comes_back_as_it_was_sent(
    name: str,
    queries: types.VectorArray,
    k: int,
    effort: types.Effort,
    filter_: Filter | None,
    include: types.Include,
    score_threshold: float | None,
    min_coverage: float,
    token: types.Token | None,
) -> None:
    request = types.SearchRequest(
        collection=name,
        queries=queries,
        k=k,
        effort=effort,
        filter=filter_,
        include=include,
        score_threshold=score_threshold,
        min_coverage=min_coverage,
        token=token,
    )
    payload = searches.encode_search_request(request)
    assert_same(searches.decode_search_request(payload, LIMITS), request)
    templates = searches.SearchTemplates(LIMITS)
    templates.decode(payload)
    others = dataclasses.replace(request, queries=np.roll(queries, 1))
    again = templates.decode(searches.encode_search_request(others))
    assert_same(again, others)
    assert again.encoded == searches.encode_search_request(others)


def unusual_searches() -> dict[str, bytes]:
    """Return searches of one length whose queries lie elsewhere, or twice, or in two parts."""
    one, other = (matrix(data=np.arange(n, n + 2, dtype="<f4").tobytes()) for n in (1, 5))
    usual = search_bytes(queries=one)
    field = b"\x12" + bytes([other.ByteSize()]) + other.SerializeToString()
    length = len(usual) + len(field)

    def padded(payload: bytes) -> bytes:
        name = "words" + "x" * (length - len(payload))
        return payload.replace(b"\x0a\x05words", b"\x0a" + bytes([len(name)]) + name.encode())

    alone = usual.replace(b"\x12" + bytes([one.ByteSize()]) + one.SerializeToString(), b"")
    halves = (v1.Matrix(dim=2), v1.Matrix(data=other.data, dtype=other.dtype))
    parts = [b"\x12" + bytes([each.ByteSize()]) + each.SerializeToString() for each in halves]
    return {
        "usual": padded(usual),
        "twice": usual + field,
        "last": padded(alone + field),
        "in parts": padded(alone + parts[0] + parts[1]),
        "unknown field": padded(usual + b"\xf8\x07\x01"),
    }


@pytest.mark.parametrize("first", unusual_searches())
def test_a_template_reads_what_the_parser_reads(first: str) -> None:
    templates = searches.SearchTemplates(LIMITS)
    payloads = unusual_searches()
    for name in (first, *payloads, *payloads):
        decoded = searches.decode_search_request(payloads[name], LIMITS)
        assert_same(templates.decode(payloads[name]), decoded)


def test_templates_are_bounded_and_hold_no_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "_TEMPLATES_MAX", 3)
    templates = searches.SearchTemplates(LIMITS)
    for k in range(1, 9):
        payload = search_bytes(k=k)
        templates.decode(payload)
        assert sys.getrefcount(payload) == 2  # the name, and the call itself
        assert 0 < len(templates._requests) <= 3


@given(search_results())
def test_hits_come_back_as_they_were_sent(
    drawn: tuple[types.SearchResult, types.Include],
) -> None:
    result, include = drawn
    payload = searches.encode_search_response(result, LIMITS)
    assert_same(searches.decode_search_response(payload, include), result)


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"k": 0}, "k"),
        ({"k": LIMITS.k + 1}, "k"),
        ({"nprobe": 0}, "nprobe"),
        ({"nprobe": LIMITS.nlist + 1}, "nprobe"),
        ({"target_recall": 0.0}, "target_recall"),
        ({"target_recall": -0.5}, "target_recall"),
        ({"target_recall": 1.01}, "target_recall"),
        ({"target_recall": float("nan")}, "target_recall"),
        ({"min_coverage": -0.1}, "min_coverage"),
        ({"min_coverage": 1.1}, "min_coverage"),
        ({"min_coverage": float("nan")}, "min_coverage"),
        ({"score_threshold": float("nan")}, "score_threshold"),
        ({"token": b"garbage"}, "token"),
        ({"token": b"\x08\x01"}, "token"),
    ],
)
def test_parameters_out_of_their_range_are_refused(parts: dict[str, Any], field: str) -> None:
    assert refusal(InvalidParameter, REQUEST_DECODERS["search"], search_bytes(**parts)) == (
        field,
        None,
    )


def test_parameters_that_are_left_out_have_their_defaults() -> None:
    request = searches.decode_search_request(search_bytes(), LIMITS)
    assert request.effort == types.Effort()
    assert request.min_coverage == 1.0
    assert request.score_threshold is None
    assert request.token is None
    assert request.include == types.Include()
    assert (
        searches.decode_search_request(search_bytes(exact=False), LIMITS).effort == types.Effort()
    )


def test_a_stated_zero_coverage_and_threshold_are_kept() -> None:
    payload = search_bytes(min_coverage=0.0, score_threshold=0.0)
    request = searches.decode_search_request(payload, LIMITS)
    assert request.min_coverage == 0.0
    assert request.score_threshold == 0.0


def test_recall_and_coverage_are_the_decimals_that_were_stated() -> None:
    request = searches.decode_search_request(
        search_bytes(target_recall=0.95, min_coverage=0.6), LIMITS
    )
    assert request.effort.target_recall == 0.95
    assert request.min_coverage == 0.6


def test_more_queries_or_hits_than_the_limits_allow_are_refused() -> None:
    three = search_bytes(queries=matrix(data=bytes(24)))
    queries = (searches.decode_search_request, three, Limits(queries=2))
    assert refusal(LimitExceeded, *queries) == ("queries", None)
    hits = (searches.decode_search_request, three, Limits(hits=8))
    assert refusal(LimitExceeded, *hits) == ("k", None)


def test_what_a_client_cannot_write_is_refused_there() -> None:
    queries = np.zeros((1, 2), dtype=np.float32)
    for k in (-1, 2**32):
        request = types.SearchRequest(collection="a", queries=queries, k=k)
        refusal(InvalidParameter, searches.encode_search_request, request)
    listing = types.ListRequest(collection="a", page_size=-1)
    assert refusal(InvalidParameter, encode_list_request, listing)[0] == "page_size"


@pytest.mark.parametrize(
    ("broken", "field"),
    [
        ({"counts": [3]}, "counts"),
        ({"counts": [2**32 - 1, 5]}, "counts"),
        ({"scores": [0.5]}, "scores"),
        ({"ids": v1.Ids(int64s=v1.Int64Ids(values=[1]))}, "scores"),
        ({"vectors": matrix(data=bytes(8))}, "vectors"),
        ({"metadata": [{}]}, "metadata"),
    ],
)
def test_an_answer_whose_parts_do_not_fit_is_malformed(broken: dict[str, Any], field: str) -> None:
    message = v1.SearchResponse.FromString(searches.encode_search_response(some_hits(), LIMITS))
    for name in broken:
        message.ClearField(name)
    message.MergeFrom(v1.SearchResponse(**broken))
    if field in {"vectors", "metadata"}:
        include = types.Include(vectors=field == "vectors", metadata=field == "metadata")
    else:
        include = types.Include()
    payload = message.SerializeToString()
    assert refusal(MalformedMessage, searches.decode_search_response, payload, include)[0] == field


def test_an_answer_without_what_was_asked_for_is_malformed() -> None:
    payload = searches.encode_search_response(some_hits(), LIMITS)
    for include in (types.Include(vectors=True), types.Include(metadata=True)):
        with pytest.raises(MalformedMessage):
            searches.decode_search_response(payload, include)
