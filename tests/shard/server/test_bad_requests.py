"""What is refused: with which code, naming which field and row, and that nothing was written.

Messages of the contract, sent to a service in this process: a client of ours would refuse half of
them before they are sent.
"""

from __future__ import annotations

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import struct_pb2

from tests.bare_wire import check, int64s, matrix, strings
from tests.shard.server.bare import DIM, GOOD, INF, NAN, Stub, create_request, refused, upsert
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.asyncio(loop_scope="module")

NOT_IN_A_NAME = ("", "A", "-a", "_a", "a b", "a/b", "..", "ä", "a" * 65, "a\n")


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


@pytest.mark.parametrize("stream", [False, True], ids=["Upsert", "UpsertStream"])
@pytest.mark.parametrize("case", BAD_UPSERTS.values(), ids=BAD_UPSERTS.keys())
async def test_a_bad_upsert_is_refused_by_field_and_row_and_writes_nothing(
    stub: Stub, case: Case, stream: bool
) -> None:
    collection, asked, field, row = case
    request = v1.UpsertRequest(collection=collection, **asked)
    check(await refused(upsert(stub, request, stream)), field, row)


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


@pytest.mark.parametrize("case", BAD_SEARCHES.values(), ids=BAD_SEARCHES.keys())
async def test_a_bad_search_is_refused_by_field_and_row(stub: Stub, case: Case) -> None:
    asked: dict[str, Any] = {"collection": case[0], "k": 3, "queries": matrix(GOOD)}
    request = v1.SearchRequest(**(asked | case[1]))
    check(await refused(stub.Search(request)), *case[2:])


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
async def test_what_cannot_be_explained_is_refused_by_field(
    stub: Stub,
    collection: str,
    asked: dict[str, Any],
    field: str,
    row: int | None,
) -> None:
    whole = {"query": matrix(GOOD[:1]), "id": int64s(1)}
    request = v1.ExplainRequest(collection=collection, **(whole | asked))
    check(await refused(stub.Explain(request)), field, row)


async def test_a_token_of_another_collection_is_refused(stub: Stub) -> None:
    deleted = await stub.Delete(v1.DeleteRequest(collection="l2", ids=int64s(12345)))
    token = deleted.token
    await stub.Search(v1.SearchRequest(collection="l2", k=1, queries=matrix(GOOD), token=token))
    request = v1.SearchRequest(collection="inner_product", k=1, queries=matrix(GOOD), token=token)
    check(await refused(stub.Search(request)), "token")


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
async def test_bad_ids_are_refused_wherever_rows_are_named(
    stub: Stub, rpc: str, collection: str, ids: v1.Ids, row: int | None
) -> None:
    request = getattr(v1, f"{rpc}Request")(collection=collection, ids=ids)
    check(await refused(getattr(stub, rpc)(request)), "ids", row)


@pytest.mark.parametrize("rpc", ["Delete", "Get"])
async def test_rows_must_be_named(stub: Stub, rpc: str) -> None:
    request = getattr(v1, f"{rpc}Request")(collection="l2")
    check(await refused(getattr(stub, rpc)(request)), "ids")


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"page_size": 10_001}, "page_size"),
        ({"cursor": b"junk"}, "cursor"),
        ({"cursor": b"\x0a\x01x\x10\x63"}, "cursor"),
    ],
    ids=["page_size", "cursor", "cursor of nobody's"],
)
async def test_a_bad_page_is_refused(stub: Stub, asked: dict[str, Any], field: str) -> None:
    request = v1.ListRequest(collection="l2", **asked)
    check(await refused(stub.List(request)), field)


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
async def test_a_collection_that_cannot_be_is_refused_and_not_created(
    stub: Stub, case: tuple[dict[str, Any], str, int | None]
) -> None:
    changes, field, row = case
    check(await refused(stub.CreateCollection(create_request(**changes))), field, row)


async def test_a_missing_configuration_is_refused(stub: Stub) -> None:
    check(await refused(stub.CreateCollection(v1.CreateCollectionRequest())), "config")


async def test_another_configuration_under_a_name_is_already_exists(stub: Stub) -> None:
    same = await stub.CreateCollection(create_request(name="l2"))
    assert not same.created
    refusal = await refused(stub.CreateCollection(create_request(name="l2", dim=5)))
    assert refusal.code is grpc.StatusCode.ALREADY_EXISTS
    assert refusal.reason == "COLLECTION_EXISTS"


@pytest.mark.parametrize("target_recall", [None, 0.0, -0.5, 1.5, NAN])
async def test_an_update_to_no_recall_is_refused_and_changes_nothing(
    stub: Stub, target_recall: float | None
) -> None:
    request = v1.UpdateCollectionRequest(collection="l2", target_recall=target_recall)
    check(await refused(stub.UpdateCollection(request)), "target_recall")
    described = await stub.DescribeCollection(v1.DescribeCollectionRequest(collection="l2"))
    assert described.config.target_recall == pytest.approx(0.95)


OF_A_COLLECTION: dict[str, dict[str, Any]] = {
    "DropCollection": {},
    "UpdateCollection": {"target_recall": 0.9},
    "DescribeCollection": {},
    "Upsert": {"ids": THREE, "vectors": matrix(GOOD)},
    "UpsertStream": {"ids": THREE, "vectors": matrix(GOOD)},
    "Delete": {"ids": THREE},
    "Get": {"ids": THREE},
    "Count": {},
    "List": {},
    "Search": {"queries": matrix(GOOD), "k": 1},
    "Explain": {"query": matrix(GOOD[:1]), "id": int64s(1)},
    "Train": {"wait": True},
}


@pytest.mark.parametrize("name", ["absent", "", "Not A Name"])
@pytest.mark.parametrize("rpc", OF_A_COLLECTION)
async def test_an_unknown_collection_is_not_found(stub: Stub, rpc: str, name: str) -> None:
    asked = OF_A_COLLECTION[rpc]
    if rpc == "UpsertStream":
        call = upsert(stub, v1.UpsertRequest(collection=name, **asked), stream=True)
    else:
        call = getattr(stub, rpc)(getattr(v1, f"{rpc}Request")(collection=name, **asked))
    refusal = await refused(call)
    assert refusal.code is grpc.StatusCode.NOT_FOUND
    assert refusal.reason == "COLLECTION_NOT_FOUND"
