"""Filters on the wire: what comes back, and what is refused by the path to it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from google.protobuf import struct_pb2
from google.protobuf.message import Message
from hypothesis import given

from tests.shard.wire.messages import REQUEST_DECODERS, refusal
from tests.shard.wire.strategies import LIMITS, filters
from vectorshard.shard.errors import (
    InvalidParameter,
    InvalidRequest,
    LimitExceeded,
    MalformedMessage,
)
from vectorshard.shard.filters import And, Equals, Exists, Filter, In, Not, Range
from vectorshard.shard.wire import selection
from vectorshard.shard.wire.filters import decode_filter, encode_filter
from vectorshard.shard.wire.reads import decode_get_request
from vectorshard.v1 import vectorshard_pb2 as v1

NAN = math.nan
HERE = v1.Filter(exists=v1.FieldExists(field="a"))


def node(kind: str, message: Any) -> v1.Filter:
    """Return a filter of one kind; three of the names are keywords of Python."""
    return v1.Filter(**{kind: message})


def joined(kind: str, *parts: v1.Filter) -> v1.Filter:
    """Return an `and` or an `or`."""
    return node(kind, v1.FilterList(filters=parts))


def equals(**value: Any) -> v1.Filter:
    """Return a field that equals a value of a Struct."""
    return node("equals", v1.FieldEquals(field="a", value=struct_pb2.Value(**value)))


def nots(depth: int) -> v1.Filter:
    """Return so many filters within one another."""
    filter_ = HERE
    for _ in range(depth - 1):
        filter_ = node("not", filter_)
    return filter_


def in_values(values: int, text: str = "") -> v1.Filter:
    """Return a filter that names so many values."""
    each = [struct_pb2.Value(string_value=f"{text}{value}") for value in range(values)]
    return node("in", v1.FieldIn(field="a", values=each))


def path_refused(message: v1.Filter, error: type[InvalidRequest]) -> str:
    """Return the path by which a filter is refused."""
    with pytest.raises(error) as caught:
        decode_filter(message, LIMITS)
    return caught.value.field


@given(filters)
def test_a_filter_comes_back_as_it_was_sent(filter_: Filter) -> None:
    assert decode_filter(encode_filter(filter_), LIMITS) == filter_


@pytest.mark.parametrize(
    ("message", "path"),
    [
        (v1.Filter(), "filter"),
        (joined("and"), "filter.and.filters"),
        (joined("or"), "filter.or.filters"),
        (node("not", v1.Filter()), "filter.not"),
        (joined("and", HERE, HERE, v1.Filter()), "filter.and.filters[2]"),
        (joined("or", HERE, node("not", joined("and"))), "filter.or.filters[1].not.and.filters"),
        (equals(), "filter.equals.value"),
        (equals(null_value=0), "filter.equals.value"),
        (equals(number_value=NAN), "filter.equals.value"),
        (equals(list_value=struct_pb2.ListValue()), "filter.equals.value"),
        (equals(struct_value=struct_pb2.Struct()), "filter.equals.value"),
        (
            node(
                "in",
                v1.FieldIn(
                    field="a",
                    values=[struct_pb2.Value(bool_value=True), struct_pb2.Value(number_value=NAN)],
                ),
            ),
            "filter.in.values[1]",
        ),
        (node("range", v1.FieldRange(field="a", gte=1, lt=NAN)), "filter.range.lt"),
        (joined("and", node("range", v1.FieldRange(gt=NAN))), "filter.and.filters[0].range.gt"),
    ],
)
def test_what_says_nothing_or_holds_no_value_is_refused_by_its_path(
    message: v1.Filter, path: str
) -> None:
    assert path_refused(message, InvalidParameter) == path


def test_filters_within_one_another_are_limited() -> None:
    decode_filter(nots(LIMITS.filter_depth), LIMITS)
    too_deep = nots(LIMITS.filter_depth + 1)
    assert path_refused(too_deep, LimitExceeded) == "filter" + LIMITS.filter_depth * ".not"


def test_filters_in_all_are_limited() -> None:
    most = LIMITS.filter_nodes - 1
    decode_filter(joined("or", *[HERE] * most), LIMITS)
    too_many = joined("or", *[HERE] * (most + 1))
    assert path_refused(too_many, LimitExceeded) == f"filter.or.filters[{most}]"


def test_values_in_all_are_limited() -> None:
    half = in_values(LIMITS.filter_values // 2)
    decode_filter(joined("or", half, half), LIMITS)
    assert path_refused(joined("or", half, half, in_values(1)), LimitExceeded) == (
        "filter.or.filters[2].in.values"
    )


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        ("delete", v1.DeleteRequest()),
        ("get", v1.GetRequest()),
        ("count", v1.CountRequest()),
        ("list", v1.ListRequest()),
        ("search", v1.SearchRequest(k=1)),
        ("explain", v1.ExplainRequest()),
    ],
)
def test_a_filter_of_many_bytes_is_refused_before_it_is_parsed(
    rpc: str, message: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    message.filter.CopyFrom(in_values(2, "x" * (LIMITS.filter_bytes // 2)))
    monkeypatch.setattr(selection, "parse", lambda *_: pytest.fail("it is parsed"))
    payload = message.SerializeToString()
    assert refusal(LimitExceeded, REQUEST_DECODERS[rpc], payload) == ("filter", None)


def test_many_bytes_of_another_field_are_no_filter() -> None:
    request = v1.GetRequest(collection="a", ids=v1.Ids(strings=v1.StringIds()))
    request.ids.strings.values.extend(["x" * 500 + str(row) for row in range(3_000)])
    ids = decode_get_request(request.SerializeToString(), LIMITS).ids
    assert ids is not None
    assert len(ids) == 3_000


@pytest.mark.parametrize(
    "payload",
    [
        b"\x18\x01" * 600_000,
        b"\xff" * 2_000_000,
        b"\x0b" * 2_000_000,
        b"\x12" + b"\xff" * 2_000_000,
    ],
    ids=["many fields", "endless varints", "groups", "an endless length"],
)
def test_large_garbage_costs_next_to_nothing(payload: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_get_request(payload, LIMITS)


def test_a_filter_far_deeper_than_any_message_is_refused_by_sender_and_receiver() -> None:
    filter_: Filter = Exists("a")
    for _ in range(100_000):
        filter_ = Not(filter_)
    with pytest.raises(InvalidParameter, match="nests deeper than"):
        encode_filter(filter_)


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        ("delete", v1.DeleteRequest(filter=v1.Filter())),
        ("get", v1.GetRequest(filter=v1.Filter())),
        ("count", v1.CountRequest(filter=v1.Filter())),
        ("list", v1.ListRequest(filter=v1.Filter())),
        ("search", v1.SearchRequest(filter=v1.Filter(), k=1)),
    ],
)
def test_every_request_with_a_filter_refuses_one_that_says_nothing(
    rpc: str, message: Message
) -> None:
    payload = message.SerializeToString()
    assert refusal(InvalidParameter, REQUEST_DECODERS[rpc], payload) == ("filter", None)


@pytest.mark.parametrize(
    ("rpc", "message"),
    [
        ("delete", v1.DeleteRequest(ids=v1.Ids(), filter=HERE)),
        ("get", v1.GetRequest(ids=v1.Ids(), filter=HERE)),
    ],
)
def test_ids_and_a_filter_at_once_are_refused(rpc: str, message: Message) -> None:
    payload = message.SerializeToString()
    assert refusal(MalformedMessage, REQUEST_DECODERS[rpc], payload) == ("filter", None)


def test_values_of_numpy_are_sent_as_what_they_are() -> None:
    filter_ = In("a", (np.int64(3), np.float64(0.5), np.bool_(True)))  # type: ignore[arg-type]
    assert decode_filter(encode_filter(filter_), LIMITS) == In("a", (3.0, 0.5, True))


@pytest.mark.parametrize(
    "filter_",
    [
        Equals("a", 2**60),
        In("a", (1, 2**53 + 1)),
        Range("a", lt=2**53 + 1),
        Range("a", gte=-(2**53) - 1),
        Range("a", lte=np.int64(2**53 + 1)),  # type: ignore[arg-type]
        Range("a", gt=True),
        Equals("a", None),  # type: ignore[arg-type]
        Range("a", gt="x"),  # type: ignore[arg-type]
        Equals("a", "\ud800"),
    ],
)
def test_what_no_message_holds_is_not_sent(filter_: Filter) -> None:
    with pytest.raises(InvalidParameter) as caught:
        encode_filter(And((Exists("b"), filter_)))
    assert caught.value.field == "filter"
