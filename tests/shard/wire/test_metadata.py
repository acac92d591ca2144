"""Metadata: one form for equal content, and nothing that an answer could not carry."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.struct_pb2 import Struct
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.wire.messages import REQUEST_DECODERS, delimited, refusal, upsert_bytes
from tests.shard.wire.strategies import LIMITS, mappings
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter, LimitExceeded, MalformedMessage
from vectorshard.shard.wire.metadata import (
    declared_values,
    mapping_from_metadata,
    metadata_from_mapping,
)
from vectorshard.shard.wire.writes import decode_upsert_request
from vectorshard.v1 import vectorshard_pb2 as v1


@given(mappings)
def test_metadata_comes_back_as_it_was_given(mapping: dict[str, Any]) -> None:
    assert mapping_from_metadata(metadata_from_mapping(mapping)) == mapping


def nested(levels: int) -> dict[str, Any]:
    """Return mappings within mappings."""
    mapping: dict[str, Any] = {}
    for _ in range(levels):
        mapping = {"a": mapping}
    return mapping


def test_metadata_that_is_none_is_refused_by_row() -> None:
    payload = upsert_bytes() + delimited(4, b"") + delimited(4, b"\x0a\x05abc")
    assert refusal(MalformedMessage, REQUEST_DECODERS["upsert"], payload) == ("metadata", 1)


def test_metadata_over_its_limit_is_refused_by_row() -> None:
    payload = upsert_bytes(metadata=[{}, {"text": "x" * 100}])
    field_and_row = refusal(
        LimitExceeded, decode_upsert_request, payload, Limits(metadata_bytes=100)
    )
    assert field_and_row == ("metadata", 1)


@given(mappings, st.randoms())
def test_equal_metadata_has_equal_bytes(mapping: dict[str, Any], random: Any) -> None:
    """Whatever the order of its fields, and whichever of them come twice."""
    entries = [
        v1.UpsertRequest(metadata=[{name: value}]).metadata[0].SerializeToString()
        for name, value in mapping.items()
    ]
    shuffled = [*entries, *entries]
    random.shuffle(shuffled)
    payload = upsert_bytes() + delimited(4, b"".join(shuffled)) + delimited(4, b"")
    request, _ = decode_upsert_request(payload, LIMITS)
    assert request.metadata == [metadata_from_mapping(mapping), b""]


@given(st.integers(28, 52), st.booleans())
def test_metadata_is_refused_or_every_answer_with_it_parses(levels: int, lists: bool) -> None:
    # Made by hand: {"": [[...]]} or {"": {"": ...}}, at two or three messages a level.
    value = b""
    for _ in range(levels):
        value = (
            delimited(6, delimited(1, value))
            if lists
            else delimited(5, delimited(1, delimited(1, b"") + delimited(2, value)))
        )
    deep = delimited(1, delimited(1, b"") + delimited(2, value))
    payload = upsert_bytes() + delimited(4, b"") + delimited(4, deep)
    if levels > 50:
        decode = REQUEST_DECODERS["upsert"]
        assert refusal(MalformedMessage, decode, payload) == ("metadata", 1)
    with contextlib.suppress(MalformedMessage):
        request, _ = decode_upsert_request(payload, LIMITS)
        assert_an_answer_holds(request.metadata)


def assert_an_answer_holds(metadata: Sequence[bytes] | None) -> None:
    """Assert that the deepest answer around the second row's metadata parses."""
    assert metadata is not None
    answer = delimited(2, delimited(5, metadata[1]))
    assert len(v1.SearchStreamResponse.FromString(answer).response.metadata) == 1


@pytest.mark.parametrize(
    "bad",
    [
        {"a": object()},
        {"a": 2**53 + 1},
        {"a": [1, {2}]},
        {1: "a"},
        {"a": "\ud800"},
        {"a": b"bytes"},
        nested(40),
        nested(2_000),
    ],
)
def test_metadata_that_no_struct_holds_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidParameter) as raised:
        metadata_from_mapping(bad, row=4)
    assert (raised.value.field, raised.value.row) == ("metadata", 4)


def test_metadata_of_numpy_values_is_taken() -> None:
    mapping = {"n": np.int64(3), "x": np.float32(0.5), "b": np.True_, "l": np.arange(2)}
    decoded = mapping_from_metadata(metadata_from_mapping(mapping))
    assert decoded == {"n": 3, "x": 0.5, "b": True, "l": [0, 1]}
    assert isinstance(decoded["n"], int)


def test_a_value_without_a_kind_reads_as_none() -> None:
    struct_of_nothing = Struct()
    struct_of_nothing.fields["a"].SetInParent()
    assert mapping_from_metadata(struct_of_nothing.SerializeToString()) == {"a": None}


def test_every_number_of_a_declared_field_is_a_float() -> None:
    metadata = metadata_from_mapping({"n": 3, "l": [1, 0.5], "s": "text", "z": None})
    values = declared_values(metadata, ["n", "l", "s", "z", "absent"])
    assert values == [3.0, [1.0, 0.5], "text", None, None]
    assert [type(value) for value in (values[0], *values[1])] == [float, float, float]
