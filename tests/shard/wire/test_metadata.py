"""Metadata: one form for equal content, and nothing that an answer could not carry."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
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
from vectorshard.shard.wire.canonical_metadata import (
    canonical_metadata,
    field_columns,
    metadata_from_json,
)
from vectorshard.shard.wire.metadata import (
    json_from_metadata,
    mapping_from_metadata,
    metadata_from_mapping,
    value_of,
)
from vectorshard.shard.wire.writes import decode_upsert_request
from vectorshard.v1 import vectorshard_pb2 as v1


@given(mappings)
def test_metadata_comes_back_as_it_was_given(mapping: dict[str, Any]) -> None:
    assert mapping_from_metadata(metadata_from_mapping(mapping)) == mapping


def struct_bytes(mapping: dict[str, Any]) -> bytes:
    """Return a mapping as protobuf writes it."""
    struct = Struct()
    struct.update(mapping)
    return struct.SerializeToString(deterministic=True)


@given(mappings)
def test_the_bytes_are_those_of_protobuf(mapping: dict[str, Any]) -> None:
    assert metadata_from_mapping(mapping) == struct_bytes(mapping)


@pytest.mark.parametrize("size", [60, 100, 119, 120, 121, 127, 128, 16_383, 16_384])
def test_the_bytes_are_those_of_protobuf_at_every_length(size: int) -> None:
    for mapping in ({"a": "x" * size}, {"x" * size: "a"}, {"x" * size: 1.5}, {"x" * size: None}):
        assert metadata_from_mapping(mapping) == struct_bytes(mapping)
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


@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("key", "struct"),
    [
        ("a", lambda number: {"b": 1.0, "a": number}),
        ("a.b", lambda number: {"a": {"c": "\x11......\xf0\x7f", "b": number}}),
        ("a", lambda number: {"a": [1.0, number]}),
    ],
)
def test_a_number_that_json_lacks_is_refused_by_row_and_key(
    number: str, key: str, struct: Callable[[float], dict[str, Any]]
) -> None:
    many = [b""] * 2_003
    many[2_001] = struct_bytes(struct(float(number)))
    with pytest.raises(InvalidParameter, match=f"key {key}: {number} is not") as raised:
        canonical_metadata(many, Limits())
    assert (raised.value.field, raised.value.row) == ("metadata", 2_001)


def test_bytes_that_look_like_a_number_that_json_lacks_are_taken() -> None:
    looks_alike = {"a": "\x11......\u00f0\x7f", "b": -1.7976931348623157e308}
    metadata = [struct_bytes(looks_alike), b""]
    assert canonical_metadata(metadata, Limits()) == metadata


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
    columns = field_columns([metadata], ["n", "l", "s", "z", "absent"])
    values = [None if raw is None else value_of(raw, floats=True) for (raw,) in columns]
    assert values == [3.0, [1.0, 0.5], "text", None, None]
    assert [type(value) for value in (values[0], *values[1])] == [float, float, float]


@given(mappings)
def test_json_and_a_struct_of_equal_metadata_are_equal(mapping: dict[str, Any]) -> None:
    struct = metadata_from_mapping(mapping)
    for text in (json.dumps(mapping), json.dumps(mapping, ensure_ascii=False, indent=1)):
        assert metadata_from_json([text.encode(), b""], Limits()) == [struct, b""]
    assert metadata_from_json(json_from_metadata([struct]), Limits()) == [struct]


def test_the_last_of_equal_names_counts() -> None:
    assert metadata_from_json([b'{"a":1,"b":2,"a":"c"}'], Limits()) == [
        metadata_from_mapping({"a": "c", "b": 2})
    ]


@pytest.mark.parametrize(
    ("bad", "error", "reason"),
    [
        (b"{", MalformedMessage, "not JSON in UTF-8"),
        (b"{},{}", MalformedMessage, "not JSON in UTF-8"),
        (b'{"a":"\xff"}', MalformedMessage, "not JSON in UTF-8"),
        (b"[1]", MalformedMessage, r"\[1\] is not an object"),
        (b"null", MalformedMessage, "None is not an object"),
        (b'{"a":{"b":NaN}}', InvalidParameter, "key a.b: nan is not"),
        (b'{"a":-Infinity}', InvalidParameter, "key a: -inf is not"),
        (b'{"a":1e999}', InvalidParameter, "key a: inf is not"),
        (b'{"a":9007199254740993}', InvalidParameter, "key a: integer"),
        (b'{"a":"\\ud800"}', InvalidParameter, "key a: "),
        (b'{"a":' * 40 + b"1" + b"}" * 40, InvalidParameter, "nests too deep"),
        (b'{"a":' * 100_000, InvalidParameter, "nests too deep"),
        (b'{"a":"' + b"x" * 70_000 + b'"}', LimitExceeded, "exceed the limit"),
    ],
)
def test_json_that_is_no_metadata_is_refused_by_row(
    bad: bytes, error: type[InvalidParameter], reason: str
) -> None:
    with pytest.raises(error, match=reason) as raised:
        metadata_from_json([b"{}", bad], Limits())
    assert (raised.value.field, raised.value.row) == ("metadata_json", 1)


def test_numbers_that_json_lacks_are_null_in_json() -> None:
    stored = struct_bytes({"a": float("nan"), "b": [1.5, float("inf")], "c": {"d": float("-inf")}})
    (text,) = json_from_metadata([stored])
    assert json.loads(text) == {"a": None, "b": [1.5, None], "c": {"d": None}}


def test_an_upsert_has_metadata_in_one_form_and_for_each_row() -> None:
    texts = [b'{"a":1}', b""]
    request, _ = decode_upsert_request(upsert_bytes(metadata_json=texts), LIMITS)
    assert request.metadata == [metadata_from_mapping({"a": 1}), b""]
    for parts in ({"metadata_json": texts, "metadata": [{}, {}]}, {"metadata_json": texts[:1]}):
        refused = refusal(MalformedMessage, decode_upsert_request, upsert_bytes(**parts), LIMITS)
        assert refused == ("metadata_json", None)
