"""Ids: what cannot be one is refused, by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, delimited, matrix, refusal, upsert_bytes
from tests.shard.wire.strategies import LIMITS
from vectorshard.shard import types
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidId, LimitExceeded, MalformedMessage
from vectorshard.shard.wire.ids import check_ids
from vectorshard.shard.wire.reads import decode_get_request
from vectorshard.shard.wire.writes import (
    decode_delete_request,
    decode_upsert_request,
    encode_delete_request,
)
from vectorshard.v1 import vectorshard_pb2 as v1


def ids_requests(ids: v1.Ids) -> list[tuple[str, bytes]]:
    """Return every request that carries ids."""
    rows = len(ids.int64s.values) + len(ids.strings.values)
    return [
        ("upsert", upsert_bytes(ids=ids, vectors=matrix(data=bytes(8 * rows)))),
        ("delete", v1.DeleteRequest(ids=ids).SerializeToString()),
        ("get", v1.GetRequest(ids=ids).SerializeToString()),
        ("count", v1.CountRequest(ids=ids).SerializeToString()),
    ]


def test_half_an_int64_is_refused() -> None:
    payload = upsert_bytes(ids=None) + delimited(2, delimited(1, delimited(1, bytes(15))))
    assert refusal(MalformedMessage, REQUEST_DECODERS["upsert"], payload)[0] == "ids"


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
        assert refusal(InvalidId, REQUEST_DECODERS[rpc], payload) == ("ids", row)


def test_the_longest_ids_are_taken() -> None:
    longest = ["ä" * 256, "b" * 512]
    message = v1.Ids(strings=v1.StringIds(values=longest))
    for rpc, payload in ids_requests(message):
        REQUEST_DECODERS[rpc](payload)


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
        (decode_upsert_request, upsert_bytes(ids=ids, vectors=matrix(data=bytes(24)))),
        (decode_delete_request, v1.DeleteRequest(ids=ids).SerializeToString()),
        (decode_get_request, v1.GetRequest(ids=ids).SerializeToString()),
    ):
        assert refusal(LimitExceeded, decode, payload, limits)[0] == "ids"


def test_an_id_that_utf8_cannot_write_is_refused_by_row() -> None:
    ids = np.array(["a", "\ud800"], dtype=object)
    request = types.DeleteRequest(collection="a", ids=ids)
    assert refusal(InvalidId, encode_delete_request, request) == ("ids", 1)
