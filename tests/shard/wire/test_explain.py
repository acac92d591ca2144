"""Explain: what is asked, of exactly one query and one id, and the answer."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, explain_bytes, matrix, refusal
from tests.shard.wire.strategies import (
    LIMITS,
    assert_same,
    filters,
    id_arrays,
    matrices,
    names,
    uint32s,
    uint64s,
)
from vectorshard.shard import descriptions, types
from vectorshard.shard.errors import InvalidId, InvalidParameter, InvalidRequest, MalformedMessage
from vectorshard.shard.filters import Filter
from vectorshard.shard.wire import searches
from vectorshard.v1 import vectorshard_pb2 as v1

INT64S, STRINGS = v1.Int64Ids, v1.StringIds


@given(
    names,
    matrices(1),
    id_arrays.filter(len).map(lambda ids: ids[:1]),
    st.none() | filters,
    st.none() | st.floats(width=32, allow_nan=False),
)
def test_what_is_asked_comes_back_as_it_was_sent(
    name: str,
    query: types.VectorArray,
    id_: types.IdArray,
    filter_: Filter | None,
    score: float | None,
) -> None:
    request = descriptions.ExplainRequest(
        collection=name, query=query, id=id_, filter=filter_, score=score
    )
    assert_same(
        searches.decode_explain_request(searches.encode_explain_request(request), LIMITS), request
    )


def test_a_score_of_0_is_a_score() -> None:
    query = np.zeros((1, 2), np.float32)
    request = descriptions.ExplainRequest(collection="a", query=query, id=np.array([1]), score=0.0)
    assert (
        searches.decode_explain_request(searches.encode_explain_request(request), LIMITS).score
        == 0.0
    )


@given(
    st.builds(
        descriptions.Explanation,
        **{
            field.name: {"bool": st.booleans(), "float": st.floats(width=32, allow_nan=False)}.get(
                str(field.type), uint64s if field.name == "exact_rank" else uint32s
            )
            for field in dataclasses.fields(descriptions.Explanation)
            if field.name != "exact_reason"
        },
        exact_reason=st.none() | st.sampled_from(types.ExactReason),
    )
)
def test_an_explanation_comes_back_as_it_was_sent(explanation: descriptions.Explanation) -> None:
    payload = searches.encode_explain_response(explanation)
    assert_same(searches.decode_explain_response(payload), explanation)


def test_every_field_of_the_answer_is_in_the_vocabulary() -> None:
    in_the_contract = set(v1.ExplainResponse.DESCRIPTOR.fields_by_name)
    assert {field.name for field in dataclasses.fields(descriptions.Explanation)} == in_the_contract


@pytest.mark.parametrize(
    ("parts", "kind", "field", "row"),
    [
        ({"query": matrix()}, InvalidParameter, "query", None),
        ({"query": v1.Matrix()}, InvalidParameter, "query", None),
        ({"query": matrix(data=bytes(7))}, MalformedMessage, "query", None),
        ({"query": matrix(dtype=9)}, MalformedMessage, "query.dtype", None),
        ({"id": v1.Ids(int64s=INT64S(values=[1, 2]))}, InvalidParameter, "id", None),
        ({"id": v1.Ids(strings=STRINGS(values=["a", "a"]))}, InvalidParameter, "id", None),
        ({"id": v1.Ids()}, InvalidParameter, "id", None),
        ({"id": v1.Ids(strings=STRINGS(values=[""]))}, InvalidId, "id", 0),
        ({"id": v1.Ids(strings=STRINGS(values=["a" * 513]))}, InvalidId, "id", 0),
        ({"filter": v1.Filter()}, InvalidParameter, "filter", None),
        ({"score": float("nan")}, InvalidParameter, "score", None),
    ],
)
def test_what_cannot_be_explained_is_refused_by_its_field(
    parts: dict[str, Any], kind: type[InvalidRequest], field: str, row: int | None
) -> None:
    payload = explain_bytes(**parts)
    assert refusal(kind, REQUEST_DECODERS["explain"], payload) == (field, row)
