"""What is refused: with which code, naming which field and row, and that nothing was written.

Over the bare wire: a client of ours would refuse half of it before it is sent.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2

from tests.system.conftest import (
    VECTORSHARD,
    Refusal,
    Server,
    Starter,
    Stub,
    int64s,
    ledger_of,
    matrix,
    new_name,
    refused,
    stream_bytes,
    strings,
    unary_bytes,
    wait_until,
)
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

DIM = 4
NAN, INF = float("nan"), float("inf")
GOOD = np.eye(3, DIM, dtype=np.float32)
UNPARSABLE = b"\xff\xff\xff"
UNARY_RPCS = (
    "CreateCollection",
    "DropCollection",
    "ListCollections",
    "DescribeCollection",
    "Upsert",
    "Delete",
    "Get",
    "Count",
    "List",
    "Search",
    "Explain",
    "Train",
    "GetServerInfo",
)
NOT_IN_A_NAME = ("", "A", "-a", "_a", "a b", "a/b", "..", "ä", "a" * 65, "a\n")


@dataclass(frozen=True, slots=True)
class Names:
    """Collections of dim 4 with three rows each, by what they are."""

    l2: str
    inner_product: str
    cosine: str
    """Its ids are strings."""


@pytest.fixture(scope="module")
def names(shared_server: Server) -> Iterator[Names]:
    """Three collections."""
    names = Names(new_name(), new_name(), new_name())
    with shared_server.stub() as stub:
        for name, metric, id_type, ids in (
            (names.l2, v1.METRIC_L2, v1.ID_TYPE_INT64, int64s(1, 2, 3)),
            (names.inner_product, v1.METRIC_INNER_PRODUCT, v1.ID_TYPE_INT64, int64s(1, 2, 3)),
            (names.cosine, v1.METRIC_COSINE, v1.ID_TYPE_STRING, strings("a", "b", "c")),
        ):
            stub.CreateCollection(
                create_request(name=name, metric=metric, id_type=id_type), wait_for_ready=True
            )
            stub.Upsert(v1.UpsertRequest(collection=name, ids=ids, vectors=matrix(GOOD)))
        yield names
        for name in (names.l2, names.inner_product, names.cosine):
            stub.DropCollection(v1.DropCollectionRequest(collection=name))


@pytest.fixture
def untouched(stub: Stub, names: Names) -> Iterator[None]:
    """Assert that the test leaves all rows as they are."""
    everything = (names.l2, names.inner_product, names.cosine)
    before = [ledger_of(stub, name) for name in everything]
    yield
    assert [ledger_of(stub, name) for name in everything] == before
    for name in everything:
        assert stub.Count(v1.CountRequest(collection=name)).count == 3
        page = stub.List(v1.ListRequest(collection=name, include=v1.Include(vectors=True)))
        stored = np.frombuffer(page.vectors.data, dtype="<f4").reshape(-1, DIM)
        assert sorted(stored.tolist()) == sorted(GOOD.tolist())


def create_request(**changes: Any) -> v1.CreateCollectionRequest:
    """Return a request for a collection that could be, but for `changes`."""
    config: dict[str, Any] = {
        "name": "never-created",
        "dim": DIM,
        "metric": v1.METRIC_L2,
        "id_type": v1.ID_TYPE_INT64,
    }
    return v1.CreateCollectionRequest(config=v1.CollectionConfig(**(config | changes)))


def check(refusal: Refusal, field: str, row: int | None = None) -> None:
    """Assert that a call was refused as the caller's mistake, naming field and row."""
    assert refusal.code is grpc.StatusCode.INVALID_ARGUMENT, refusal
    assert refusal.fields == (field,)
    assert refusal.facts["field"] == field
    assert refusal.facts.get("row") == (None if row is None else str(row))
    assert refusal.descriptions[0].startswith(f"row {row}: ") is (row is not None)
    assert refusal.message.startswith(f"{field}: ")
    assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", refusal.reason)


def with_row(row: int, components: list[float]) -> v1.Matrix:
    """Return three good vectors, but for one of them."""
    vectors = GOOD.copy()
    vectors[row] = components
    return matrix(vectors)


def half(*rows: list[float]) -> v1.Matrix:
    """Return vectors as FLOAT16."""
    array = np.array(rows, dtype="<f2")
    return v1.Matrix(data=array.tobytes(), dim=array.shape[1], dtype=v1.D_TYPE_FLOAT16)


TWO, THREE = int64s(7, 8), int64s(7, 8, 9)
WORDS = strings("x", "y", "z")

Case = tuple[str, dict[str, Any], str, int | None]

BAD_UPSERTS: dict[str, Case] = {
    "wrong dim": ("l2", {"ids": THREE, "vectors": matrix(np.ones((3, 5)))}, "vectors", None),
    "no whole number of rows": (
        "l2",
        {
            "ids": TWO,
            "vectors": v1.Matrix(data=b"\0" * 31, dim=DIM, dtype=v1.D_TYPE_FLOAT32),
        },
        "vectors",
        None,
    ),
    "components without a dim": (
        "l2",
        {"ids": TWO, "vectors": v1.Matrix(data=b"\0" * 32, dtype=v1.D_TYPE_FLOAT32)},
        "vectors",
        None,
    ),
    "no dtype": (
        "l2",
        {"ids": TWO, "vectors": v1.Matrix(data=b"\0" * 32, dim=DIM)},
        "vectors.dtype",
        None,
    ),
    "unknown dtype": (
        "l2",
        {"ids": TWO, "vectors": v1.Matrix(data=b"\0" * 32, dim=DIM, dtype=9)},  # type: ignore[arg-type]  # a number that the enum lacks
        "vectors.dtype",
        None,
    ),
    "NaN": ("l2", {"ids": THREE, "vectors": with_row(1, [0, NAN, 0, 0])}, "vectors", 1),
    "Inf": ("l2", {"ids": THREE, "vectors": with_row(2, [0, 0, 0, INF])}, "vectors", 2),
    "-Inf": ("l2", {"ids": THREE, "vectors": with_row(0, [-INF, 0, 0, 0])}, "vectors", 0),
    "NaN under COSINE": (
        "cosine",
        {"ids": WORDS, "vectors": with_row(1, [0, NAN, 0, 0])},
        "vectors",
        1,
    ),
    "float16 Inf": (
        "l2",
        {"ids": TWO, "vectors": half([1, 0, 0, 0], [INF, 0, 0, 0])},
        "vectors",
        1,
    ),
    "float16 NaN": (
        "l2",
        {"ids": TWO, "vectors": half([NAN, 0, 0, 0], [1, 0, 0, 0])},
        "vectors",
        0,
    ),
    "overflowing distance": (
        "l2",
        {"ids": THREE, "vectors": with_row(2, [2e19, 0, 0, 0])},
        "vectors",
        2,
    ),
    "overflowing product": (
        "inner_product",
        {"ids": THREE, "vectors": with_row(1, [3e38, 0, 0, 0])},
        "vectors",
        1,
    ),
    "norm 0 under COSINE": (
        "cosine",
        {"ids": WORDS, "vectors": with_row(1, [0, 0, 0, 0])},
        "vectors",
        1,
    ),
    "an int64 id twice": ("l2", {"ids": int64s(7, 9, 7), "vectors": matrix(GOOD)}, "ids", 2),
    "a string id twice": (
        "cosine",
        {"ids": strings("x", "x", "y"), "vectors": matrix(GOOD)},
        "ids",
        1,
    ),
    "more vectors than ids": ("l2", {"ids": TWO, "vectors": matrix(GOOD)}, "vectors", None),
    "fewer vectors than ids": ("l2", {"ids": THREE, "vectors": matrix(GOOD[:2])}, "vectors", None),
    "no ids": ("l2", {"vectors": matrix(GOOD)}, "vectors", None),
    "no vectors": ("l2", {"ids": THREE}, "vectors", None),
    "fewer metadata than ids": (
        "l2",
        {"ids": THREE, "vectors": matrix(GOOD), "metadata": [struct_pb2.Struct()]},
        "metadata",
        None,
    ),
    "over-long metadata": (
        "l2",
        {
            "ids": TWO,
            "vectors": matrix(GOOD[:2]),
            "metadata": [
                struct_pb2.Struct(),
                struct_pb2.Struct(fields={"t": struct_pb2.Value(string_value="x" * 65_537)}),
            ],
        },
        "metadata",
        1,
    ),
    "an empty id": ("cosine", {"ids": strings("x", "", "y"), "vectors": matrix(GOOD)}, "ids", 1),
    "an over-long id": (
        "cosine",
        {"ids": strings("x", "y", "z" * 513), "vectors": matrix(GOOD)},
        "ids",
        2,
    ),
    "an id of 257 letters of two bytes": (
        "cosine",
        {"ids": strings("ä" * 257, "y", "z"), "vectors": matrix(GOOD)},
        "ids",
        0,
    ),
    "strings for int64s": ("l2", {"ids": WORDS, "vectors": matrix(GOOD)}, "ids", None),
    "int64s for strings": ("cosine", {"ids": THREE, "vectors": matrix(GOOD)}, "ids", None),
    "an unknown mode": ("l2", {"ids": THREE, "vectors": matrix(GOOD), "mode": 9}, "mode", None),
    "too many rows": (
        "l2",
        {"ids": int64s(*range(100_001)), "vectors": matrix(np.ones((100_001, DIM)))},
        "ids",
        None,
    ),
}


def upsert_request(names: Names, case: Case) -> v1.UpsertRequest:
    """Return the request of a case."""
    return v1.UpsertRequest(collection=getattr(names, case[0]), **case[1])


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", BAD_UPSERTS.values(), ids=BAD_UPSERTS.keys())
def test_a_bad_upsert_is_refused_by_field_and_row_and_writes_nothing(
    stub: Stub, names: Names, case: Case
) -> None:
    request = upsert_request(names, case)
    check(refused(lambda: stub.Upsert(request)), *case[2:])


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", BAD_UPSERTS.values(), ids=BAD_UPSERTS.keys())
def test_a_bad_upsert_ends_a_stream_with_the_same_status(
    stub: Stub, names: Names, case: Case
) -> None:
    request = upsert_request(names, case)
    check(refused(lambda: list(stub.UpsertStream(iter([request])))), *case[2:])


@pytest.mark.usefixtures("untouched")
def test_a_row_that_one_shard_would_refuse_keeps_the_others_from_being_written(
    stub: Stub, names: Names
) -> None:
    vectors = np.ones((64, DIM), dtype=np.float32)
    vectors[63, 0] = NAN
    request = v1.UpsertRequest(
        collection=names.l2, ids=int64s(*range(100, 164)), vectors=matrix(vectors)
    )
    check(refused(lambda: stub.Upsert(request)), "vectors", 63)


BAD_SEARCHES: dict[str, Case] = {
    "k of 0": ("l2", {"k": 0}, "k", None),
    "k over the limit": ("l2", {"k": 10_001}, "k", None),
    "too many hits": ("l2", {"k": 10_000, "queries": matrix(np.ones((101, DIM)))}, "k", None),
    "too many queries": ("l2", {"queries": matrix(np.ones((10_001, DIM)))}, "queries", None),
    "wrong dim": ("l2", {"queries": matrix(np.ones((2, 5)))}, "queries", None),
    "no whole number of rows": (
        "l2",
        {"queries": v1.Matrix(data=b"\0" * 15, dim=DIM, dtype=v1.D_TYPE_FLOAT32)},
        "queries",
        None,
    ),
    "no dtype": ("l2", {"queries": v1.Matrix(data=b"\0" * 16, dim=DIM)}, "queries.dtype", None),
    "NaN": ("l2", {"queries": with_row(2, [NAN, 0, 0, 0])}, "queries", 2),
    "Inf": ("inner_product", {"queries": with_row(1, [INF, 0, 0, 0])}, "queries", 1),
    "overflow": ("inner_product", {"queries": with_row(0, [3e38, 0, 0, 0])}, "queries", 0),
    "norm 0 under COSINE": ("cosine", {"queries": with_row(1, [0, 0, 0, 0])}, "queries", 1),
    "nprobe of 0": ("l2", {"nprobe": 0}, "nprobe", None),
    "nprobe over the limit": ("l2", {"nprobe": 65_537}, "nprobe", None),
    "target_recall of 0": ("l2", {"target_recall": 0.0}, "target_recall", None),
    "target_recall over 1": ("l2", {"target_recall": 1.5}, "target_recall", None),
    "target_recall NaN": ("l2", {"target_recall": NAN}, "target_recall", None),
    "score_threshold NaN": ("l2", {"score_threshold": NAN}, "score_threshold", None),
    "min_coverage over 1": ("l2", {"min_coverage": 1.1}, "min_coverage", None),
    "min_coverage NaN": ("l2", {"min_coverage": NAN}, "min_coverage", None),
    "a token of nobody's": ("l2", {"token": b"\x0a\x01xjunk"}, "token", None),
}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", BAD_SEARCHES.values(), ids=BAD_SEARCHES.keys())
def test_a_bad_search_is_refused_by_field_and_row(stub: Stub, names: Names, case: Case) -> None:
    asked: dict[str, Any] = {"collection": getattr(names, case[0]), "k": 3, "queries": matrix(GOOD)}
    request = v1.SearchRequest(**(asked | case[1]))
    check(refused(lambda: stub.Search(request)), *case[2:])


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("collection", "asked", "field", "row"),
    [
        ("l2", {"query": matrix(GOOD)}, "query", None),
        ("l2", {"query": matrix(np.eye(1, 5))}, "query", None),
        ("l2", {"query": matrix([[0, NAN, 0, 0]])}, "query", 0),
        ("cosine", {"query": matrix(np.zeros((1, 4))), "id": strings("a")}, "query", 0),
        ("l2", {"id": int64s(1, 2)}, "id", None),
        ("l2", {"id": int64s()}, "id", None),
        ("l2", {"id": strings("a")}, "id", None),
        ("l2", {"score": NAN}, "score", None),
    ],
    ids=[
        "three queries",
        "another dim",
        "NaN",
        "norm 0 under COSINE",
        "two ids",
        "no id",
        "a string for an int64",
        "score NaN",
    ],
)
def test_what_cannot_be_explained_is_refused_by_field(
    stub: Stub,
    names: Names,
    collection: str,
    asked: dict[str, Any],
    field: str,
    row: int | None,
) -> None:
    whole = {"query": matrix(GOOD[:1]), "id": int64s(1)}
    request = v1.ExplainRequest(collection=getattr(names, collection), **(whole | asked))
    check(refused(lambda: stub.Explain(request)), field, row)


def test_a_token_of_another_collection_is_refused(stub: Stub, names: Names) -> None:
    token = stub.Delete(v1.DeleteRequest(collection=names.l2, ids=int64s(12345))).token
    stub.Search(v1.SearchRequest(collection=names.l2, k=1, queries=matrix(GOOD), token=token))
    request = v1.SearchRequest(
        collection=names.inner_product, k=1, queries=matrix(GOOD), token=token
    )
    check(refused(lambda: stub.Search(request)), "token")


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", ["Delete", "Get", "Count"])
@pytest.mark.parametrize(
    ("collection", "ids", "row"),
    [
        ("l2", int64s(1, 2, 1), 2),
        ("cosine", strings("a", "b", "b"), 2),
        ("cosine", strings("a", ""), 1),
        ("cosine", strings("a" * 513), 0),
        ("l2", strings("a"), None),
        ("cosine", int64s(1), None),
        ("l2", int64s(*range(100_001)), None),
    ],
    ids=[
        "an int64 twice",
        "a string twice",
        "an empty string",
        "an over-long string",
        "a string for an int64",
        "an int64 for a string",
        "too many",
    ],
)
def test_bad_ids_are_refused_wherever_rows_are_named(
    stub: Stub, names: Names, rpc: str, collection: str, ids: v1.Ids, row: int | None
) -> None:
    request = getattr(v1, f"{rpc}Request")(collection=getattr(names, collection), ids=ids)
    check(refused(lambda: getattr(stub, rpc)(request)), "ids", row)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", ["Delete", "Get"])
def test_rows_must_be_named(stub: Stub, names: Names, rpc: str) -> None:
    request = getattr(v1, f"{rpc}Request")(collection=names.l2)
    check(refused(lambda: getattr(stub, rpc)(request)), "ids")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"page_size": 10_001}, "page_size"),
        ({"cursor": b"junk"}, "cursor"),
        ({"cursor": b"\x0a\x01x\x10\x63"}, "cursor"),
    ],
    ids=["page_size", "cursor", "cursor of nobody's"],
)
def test_a_bad_page_is_refused(stub: Stub, names: Names, asked: dict[str, Any], field: str) -> None:
    request = v1.ListRequest(collection=names.l2, **asked)
    check(refused(lambda: stub.List(request)), field)


BAD_CONFIGS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "dim of 0": ({"dim": 0}, "config.dim", None),
    "dim over the limit": ({"dim": 8_193}, "config.dim", None),
    "no metric": ({"metric": 0}, "config.metric", None),
    "an unknown metric": ({"metric": 9}, "config.metric", None),
    "no id type": ({"id_type": 0}, "config.id_type", None),
    "an unknown id type": ({"id_type": 9}, "config.id_type", None),
    "an unknown kind": ({"index": {"kind": 9}}, "config.index.kind", None),
    "an unknown nlist rule": ({"index": {"nlist_rule": 9}}, "config.index.nlist_rule", None),
    "nlist with a rule": (
        {"index": {"nlist_rule": v1.NLIST_RULE_SQRT_8, "nlist": 3}},
        "config.index.nlist",
        None,
    ),
    "FIXED without nlist": (
        {"index": {"nlist_rule": v1.NLIST_RULE_FIXED}},
        "config.index.nlist",
        None,
    ),
    "nlist over the limit": ({"index": {"nlist": 65_537}}, "config.index.nlist", None),
    "target_recall over 1": ({"target_recall": 1.01}, "config.target_recall", None),
    "target_recall NaN": ({"target_recall": NAN}, "config.target_recall", None),
    "negative target_recall": ({"target_recall": -0.5}, "config.target_recall", None),
    "an unknown type of field": (
        {"filter_fields": [{"name": "a", "type": 1}, {"name": "b", "type": 9}]},
        "config.filter_fields",
        1,
    ),
    "a field twice": (
        {"filter_fields": [{"name": "a", "type": 1}, {"name": "a", "type": 2}]},
        "config.filter_fields",
        1,
    ),
    **{f"name {name[:8]!r}": ({"name": name}, "config.name", None) for name in NOT_IN_A_NAME},
}


@pytest.mark.parametrize("case", BAD_CONFIGS.values(), ids=BAD_CONFIGS.keys())
def test_a_collection_that_cannot_be_is_refused_and_not_created(
    stub: Stub, case: tuple[dict[str, Any], str, int | None]
) -> None:
    before = stub.ListCollections(v1.ListCollectionsRequest()).collections
    changes, field, row = case
    check(refused(lambda: stub.CreateCollection(create_request(**changes))), field, row)
    assert stub.ListCollections(v1.ListCollectionsRequest()).collections == before


def test_a_missing_configuration_is_refused(stub: Stub) -> None:
    check(refused(lambda: stub.CreateCollection(v1.CreateCollectionRequest())), "config")


def test_another_configuration_under_a_name_is_already_exists(stub: Stub, names: Names) -> None:
    same = stub.CreateCollection(create_request(name=names.l2))
    assert not same.created
    refusal = refused(lambda: stub.CreateCollection(create_request(name=names.l2, dim=5)))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "COLLECTION_EXISTS"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", UNARY_RPCS)
def test_bytes_that_do_not_parse_are_refused_by_every_call(shared_server: Server, rpc: str) -> None:
    with shared_server.channel() as channel:
        check(refused(lambda: unary_bytes(channel, rpc)(UNPARSABLE)), "message")


@pytest.mark.usefixtures("untouched")
def test_bytes_that_do_not_parse_end_a_stream_with_a_status(shared_server: Server) -> None:
    with shared_server.channel() as channel:
        stream = stream_bytes(channel, "UpsertStream")
        check(refused(lambda: list(stream(iter([UNPARSABLE])))), "message")


@pytest.mark.parametrize("name", ["absent", "", "Not A Name"])
@pytest.mark.parametrize(
    "call",
    [
        lambda stub, name: stub.DropCollection(v1.DropCollectionRequest(collection=name)),
        lambda stub, name: stub.DescribeCollection(v1.DescribeCollectionRequest(collection=name)),
        lambda stub, name: stub.Upsert(
            v1.UpsertRequest(collection=name, ids=THREE, vectors=matrix(GOOD))
        ),
        lambda stub, name: list(
            stub.UpsertStream(
                iter([v1.UpsertRequest(collection=name, ids=THREE, vectors=matrix(GOOD))])
            )
        ),
        lambda stub, name: stub.Delete(v1.DeleteRequest(collection=name, ids=THREE)),
        lambda stub, name: stub.Get(v1.GetRequest(collection=name, ids=THREE)),
        lambda stub, name: stub.Count(v1.CountRequest(collection=name)),
        lambda stub, name: stub.List(v1.ListRequest(collection=name)),
        lambda stub, name: stub.Search(
            v1.SearchRequest(collection=name, queries=matrix(GOOD), k=1)
        ),
        lambda stub, name: stub.Explain(
            v1.ExplainRequest(collection=name, query=matrix(GOOD[:1]), id=int64s(1))
        ),
        lambda stub, name: stub.Train(v1.TrainRequest(collection=name, wait=True)),
    ],
    ids=[
        "Drop",
        "Describe",
        "Upsert",
        "UpsertStream",
        "Delete",
        "Get",
        "Count",
        "List",
        "Search",
        "Explain",
        "Train",
    ],
)
def test_an_unknown_collection_is_not_found(
    stub: Stub, call: Callable[[Stub, str], object], name: str
) -> None:
    refusal = refused(lambda: call(stub, name))
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.reason == "COLLECTION_NOT_FOUND"


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", ["Upsert", "Search", "UpsertStream"])
def test_a_message_over_the_limit_is_resource_exhausted(
    shared_server: Server, stub: Stub, rpc: str
) -> None:
    limit = stub.GetServerInfo(v1.GetServerInfoRequest()).limits.message_bytes
    payload = bytes(limit + 1)
    with shared_server.channel() as channel:
        if rpc == "UpsertStream":
            stream = stream_bytes(channel, rpc)
            refusal = refused(lambda: list(stream(iter([payload]))))
        else:
            refusal = refused(lambda: unary_bytes(channel, rpc)(payload))
    assert refusal.code is grpc.StatusCode.RESOURCE_EXHAUSTED


FILTERED_CALLS: dict[str, Callable[[Stub, str, v1.Filter], object]] = {
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
FIELDS = [
    v1.FilterField(name="year", type=v1.FIELD_TYPE_INT64),
    v1.FilterField(name="lang", type=v1.FIELD_TYPE_KEYWORD),
    v1.FilterField(name="public", type=v1.FIELD_TYPE_BOOL),
]
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


@pytest.fixture(scope="module")
def filtered(shared_server: Server) -> Iterator[str]:
    """A collection of three rows with declared fields."""
    name = new_name()
    with shared_server.stub() as stub:
        stub.CreateCollection(create_request(name=name, filter_fields=FIELDS), wait_for_ready=True)
        metadata = [struct_pb2.Struct() for _ in GOOD]
        for row, struct in enumerate(metadata):
            struct.update({"year": 1990 + row, "lang": ["en", "de"], "public": True})
        stub.Upsert(
            v1.UpsertRequest(
                collection=name, ids=int64s(1, 2, 3), vectors=matrix(GOOD), metadata=metadata
            )
        )
        yield name
        stub.DropCollection(v1.DropCollectionRequest(collection=name))


@pytest.mark.parametrize("rpc", FILTERED_CALLS)
@pytest.mark.parametrize("bad", BAD_FILTERS)
def test_a_filter_that_cannot_be_is_refused_by_its_path(
    stub: Stub, filtered: str, bad: str, rpc: str
) -> None:
    filter_, path = BAD_FILTERS[bad]
    check(refused(lambda: FILTERED_CALLS[rpc](stub, filtered, filter_)), path)
    assert stub.Count(v1.CountRequest(collection=filtered)).count == 3


@pytest.mark.parametrize("rpc", FILTERED_CALLS)
def test_a_filter_at_its_limits_is_taken(stub: Stub, filtered: str, rpc: str) -> None:
    limits = stub.GetServerInfo(v1.GetServerInfoRequest()).limits
    assert (limits.filter_depth, limits.filter_nodes) == (16, 256)
    nobody = condition("not", YEAR_EXISTS)
    FILTERED_CALLS[rpc](stub, filtered, every(nobody, *[YEAR_EXISTS] * 253))
    FILTERED_CALLS[rpc](stub, filtered, every(nobody, within(15)))
    assert stub.Count(v1.CountRequest(collection=filtered)).count == 3


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("rpc", FILTERED_CALLS)
def test_no_field_can_be_meant_where_none_is_declared(stub: Stub, names: Names, rpc: str) -> None:
    refusal = refused(lambda: FILTERED_CALLS[rpc](stub, names.l2, YEAR_EXISTS))
    check(refusal, "filter.exists.field")
    assert refusal.reason == "INVALID_PARAMETER"


@pytest.mark.parametrize(
    "call",
    [
        lambda stub, name: stub.Delete(
            v1.DeleteRequest(collection=name, ids=int64s(1), filter=YEAR_EXISTS)
        ),
        lambda stub, name: stub.Get(
            v1.GetRequest(collection=name, ids=int64s(1), filter=YEAR_EXISTS)
        ),
    ],
    ids=["Delete", "Get"],
)
def test_ids_beside_a_filter_are_refused(
    stub: Stub, filtered: str, call: Callable[[Stub, str], object]
) -> None:
    check(refused(lambda: call(stub, filtered)), "filter")


@pytest.mark.parametrize("stream", [False, True], ids=["Upsert", "UpsertStream"])
@pytest.mark.parametrize(
    ("wrong", "field"),
    [({"year": "1990"}, "year"), ({"lang": ["en", 1]}, "lang"), ({"public": 1}, "public")],
)
def test_metadata_of_another_type_than_was_declared_is_refused_by_row_and_field(
    stub: Stub, filtered: str, wrong: dict[str, Any], field: str, stream: bool
) -> None:
    metadata = [struct_pb2.Struct() for _ in GOOD]
    metadata[2].update(wrong)
    request = v1.UpsertRequest(
        collection=filtered, ids=int64s(7, 8, 9), vectors=matrix(GOOD), metadata=metadata
    )
    if stream:
        refusal = refused(lambda: list(stub.UpsertStream(iter([request]))))
    else:
        refusal = refused(lambda: stub.Upsert(request))
    check(refusal, f"metadata.{field}", 2)
    assert stub.Count(v1.CountRequest(collection=filtered)).count == 3


def test_an_error_of_the_servers_own_is_opaque_and_its_text_goes_to_the_log_only(
    start_server: Starter,
) -> None:
    server = start_server(1)
    with server.stub() as stub:
        for name in ("lost", "kept"):
            stub.CreateCollection(create_request(name=name))
            stub.Upsert(v1.UpsertRequest(collection=name, ids=THREE, vectors=matrix(GOOD)))
        shutil.rmtree(server.data / "shard-0" / "collections" / "lost")
        drop = v1.DropCollectionRequest(collection="lost")
        refusal = refused(lambda: stub.DropCollection(drop))
        assert refusal.code is grpc.StatusCode.INTERNAL
        assert refusal.reason == "INTERNAL_ERROR"
        error_id = refusal.facts["error_id"]
        assert re.fullmatch(r"[0-9a-f]{16}", error_id)
        assert error_id in refusal.message
        assert not re.search(r"shard-0|lost|No such file|Traceback|\.py", refusal.message)
        assert refusal.facts == {"error_id": error_id}

        wait_until(lambda: error_id in server.log_text())
        [told] = [line for line in server.log_text().splitlines() if error_id in line]
        assert "FileNotFoundError" in told
        assert "Traceback" in told
        assert stub.Count(v1.CountRequest(collection="kept")).count == 3
    server.stop()


def test_a_damaged_row_is_data_loss_and_what_is_damaged_goes_to_the_log_only(
    start_server: Starter,
) -> None:
    server = start_server(1)
    with server.stub() as stub:
        stub.CreateCollection(create_request(name="w"))
        stub.Upsert(v1.UpsertRequest(collection="w", ids=THREE, vectors=matrix(GOOD)))
        with (server.data / "shard-0" / "collections" / "w" / "rows-0.f32").open("r+b") as rows:
            rows.write(b"\x55")
        refusal = refused(lambda: stub.Get(v1.GetRequest(collection="w", ids=THREE)))
        assert refusal.code is grpc.StatusCode.DATA_LOSS
        assert refusal.reason == "ROW_FILE_CORRUPT"
        assert "row 0" not in refusal.message
        error_id = refusal.facts["error_id"]
        wait_until(lambda: error_id in server.log_text())
        [told] = [line for line in server.log_text().splitlines() if error_id in line]
        assert "row 0" in told
    server.stop()


@pytest.mark.parametrize(
    ("command", "environment"),
    [
        ([sys.executable, "-O", "-m", "vectorshard.cli"], {}),
        ([str(VECTORSHARD)], {"PYTHONOPTIMIZE": "1"}),
    ],
    ids=["python -O", "PYTHONOPTIMIZE"],
)
def test_a_server_without_assertions_is_refused_at_its_start(
    start_server: Starter, command: list[str], environment: dict[str, str]
) -> None:
    server = start_server(1, start=False)
    ended = subprocess.run(
        [*command, "serve", "--data", str(server.data), "--listen", "127.0.0.1:0"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert len(ended.stderr.splitlines()) == 1
    assert "python -O" in ended.stderr
    assert not server.data.exists()
