"""Filters, and metadata against declared fields: what is refused, by which path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from google.protobuf import struct_pb2

from tests.bare_wire import check, int64s, matrix
from tests.shard.server.bare import GOOD, NAN, Stub, refused, upsert
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.asyncio(loop_scope="module")

FILTERED_CALLS: dict[str, Callable[[Stub, str, v1.Filter], Awaitable[Any]]] = {
    "Delete": lambda stub, name, filter_: stub.Delete(
        v1.DeleteRequest(collection=name, filter=filter_)
    ),
    "Get": lambda stub, name, filter_: stub.Get(v1.GetRequest(collection=name, filter=filter_)),
    "Count": lambda stub, name, filter_: stub.Count(
        v1.CountRequest(collection=name, filter=filter_)
    ),
    "List": lambda stub, name, filter_: stub.List(v1.ListRequest(collection=name, filter=filter_)),
    "Search": lambda stub, name, filter_: stub.Search(
        v1.SearchRequest(collection=name, queries=matrix(GOOD), k=1, filter=filter_)
    ),
    "Explain": lambda stub, name, filter_: stub.Explain(
        v1.ExplainRequest(collection=name, query=matrix(GOOD[:1]), id=int64s(1), filter=filter_)
    ),
}


def condition(kind: str, message: Any) -> v1.Filter:
    """Return a filter of one kind; three of the names are keywords of Python."""
    return v1.Filter(**{kind: message})


def equals(field: str, **value: Any) -> v1.Filter:
    """Return a field that equals a value of a Struct."""
    return condition("equals", v1.FieldEquals(field=field, value=struct_pb2.Value(**value)))


def every(*filters: v1.Filter) -> v1.Filter:
    """Return what holds when all of them do."""
    return condition("and", v1.FilterList(filters=filters))


def within(depth: int) -> v1.Filter:
    """Return so many filters within one another."""
    filter_ = YEAR_EXISTS
    for _ in range(depth - 1):
        filter_ = condition("not", filter_)
    return filter_


YEAR_EXISTS = v1.Filter(exists=v1.FieldExists(field="year"))
YEAR_IS_TEXT = equals("year", string_value="1990")

BAD_FILTERS = {
    "says nothing": (v1.Filter(), "filter"),
    "an empty list": (every(), "filter.and.filters"),
    "undeclared": (equals("author", string_value="a"), "filter.equals.field"),
    "no field at all": (condition("exists", v1.FieldExists()), "filter.exists.field"),
    "deep inside": (
        every(YEAR_EXISTS, condition("not", every(YEAR_EXISTS, YEAR_EXISTS, YEAR_IS_TEXT))),
        "filter.and.filters[1].not.and.filters[2].equals.value",
    ),
    "null": (equals("year", null_value=0), "filter.equals.value"),
    "no value": (equals("year"), "filter.equals.value"),
    "NaN": (equals("year", number_value=NAN), "filter.equals.value"),
    "no whole number": (equals("year", number_value=0.5), "filter.equals.value"),
    "a rounded integer": (equals("year", number_value=2**53 + 3), "filter.equals.value"),
    "an integer beyond int64": (equals("year", number_value=2.0**63), "filter.equals.value"),
    "a rounded integer of several": (
        condition(
            "in",
            v1.FieldIn(
                field="year",
                values=[struct_pb2.Value(number_value=each) for each in (1, -(2**53) - 3)],
            ),
        ),
        "filter.in.values[1]",
    ),
    "text for a bool": (equals("public", string_value="true"), "filter.equals.value"),
    "a number for a keyword": (equals("lang", number_value=1), "filter.equals.value"),
    "one of several values": (
        condition(
            "in",
            v1.FieldIn(
                field="lang",
                values=[struct_pb2.Value(string_value="en"), struct_pb2.Value(bool_value=True)],
            ),
        ),
        "filter.in.values[1]",
    ),
    "a range of keywords": (
        condition("range", v1.FieldRange(field="lang", gte=1)),
        "filter.range.field",
    ),
    "a bound that is NaN": (
        condition("range", v1.FieldRange(field="year", gte=1, lte=NAN)),
        "filter.range.lte",
    ),
    "too deep": (within(17), "filter" + 16 * ".not"),
    "too many": (every(*[YEAR_EXISTS] * 256), "filter.and.filters[255]"),
}


@pytest.mark.parametrize("rpc", FILTERED_CALLS)
@pytest.mark.parametrize("bad", BAD_FILTERS)
async def test_a_filter_that_cannot_be_is_refused_by_its_path(
    stub: Stub, bad: str, rpc: str
) -> None:
    filter_, path = BAD_FILTERS[bad]
    check(await refused(FILTERED_CALLS[rpc](stub, "filtered", filter_)), path)


@pytest.mark.parametrize("rpc", FILTERED_CALLS)
async def test_a_filter_at_its_limits_is_taken(stub: Stub, rpc: str) -> None:
    limits = (await stub.GetServerInfo(v1.GetServerInfoRequest())).limits
    assert (limits.filter_depth, limits.filter_nodes) == (16, 256)
    assert (limits.filter_values, limits.filter_bytes) == (10_000, 2**20)
    nobody = condition("not", YEAR_EXISTS)
    await FILTERED_CALLS[rpc](stub, "filtered", every(nobody, *[YEAR_EXISTS] * 253))
    await FILTERED_CALLS[rpc](stub, "filtered", every(nobody, within(15)))


@pytest.mark.parametrize("rpc", FILTERED_CALLS)
async def test_no_field_can_be_meant_where_none_is_declared(stub: Stub, rpc: str) -> None:
    refusal = await refused(FILTERED_CALLS[rpc](stub, "l2", YEAR_EXISTS))
    check(refusal, "filter.exists.field")
    assert refusal.reason == "INVALID_PARAMETER"


@pytest.mark.parametrize("rpc", ["Delete", "Get"])
async def test_ids_beside_a_filter_are_refused(stub: Stub, rpc: str) -> None:
    request = getattr(v1, f"{rpc}Request")(collection="filtered", ids=int64s(1), filter=YEAR_EXISTS)
    check(await refused(getattr(stub, rpc)(request)), "filter")


@pytest.mark.parametrize("stream", [False, True], ids=["Upsert", "UpsertStream"])
@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"year": "1990"}, "year"), ({"lang": ["en", 1]}, "lang"), ({"public": 1}, "public")],
)
async def test_metadata_of_another_type_than_was_declared_is_refused_by_row_and_field(
    stub: Stub, wrong: dict[str, Any], field: str, stream: bool
) -> None:
    metadata = [struct_pb2.Struct() for _ in GOOD]
    metadata[2].update(wrong)
    request = v1.UpsertRequest(
        collection="filtered", ids=int64s(7, 8, 9), vectors=matrix(GOOD), metadata=metadata
    )
    check(await refused(upsert(stub, request, stream)), f"metadata.{field}", 2)
