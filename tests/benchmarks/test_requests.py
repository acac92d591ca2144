"""What calls say, read back with the contract's own messages."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load.plan import Plan
from benchmarks.load.requests import (
    FRESH_ID,
    FRESH_IDS,
    empty_calls,
    fresh_id,
    searches,
    upserts,
    with_effort,
)
from vectorshard.shard.types import Float32Array, IdType
from vectorshard.v1 import vectorshard_pb2 as v1

VECTORS = np.arange(14, dtype=np.float32).reshape(7, 2)


def vectors_of(matrix: v1.Matrix) -> Float32Array:
    """Return float32 (rows, dim)."""
    dtype = "<f4" if matrix.dtype == v1.D_TYPE_FLOAT32 else "<f2"
    return np.frombuffer(matrix.data, dtype).astype(np.float32).reshape(-1, matrix.dim)


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f4"])
def test_searches_ask_the_queries_in_their_order_a_batch_at_a_time(dtype: str) -> None:
    requests = searches(Plan(target="", collection="c", batch=3, k=4), VECTORS.astype(dtype))
    assert (requests.rpc, requests.distinct) == ("Search", 2)
    for number, rows in ((0, slice(0, 3)), (1, slice(3, 6)), (2, slice(0, 3))):
        said = v1.SearchRequest.FromString(requests[number])
        assert (said.collection, said.k) == ("c", 4)
        assert said.WhichOneof("effort") is None
        assert np.array_equal(vectors_of(said.queries), VECTORS[rows])


def test_searches_have_the_filter_of_the_plan() -> None:
    said = v1.SearchRequest.FromString(searches(Plan(target="", filter="n > 7"), VECTORS)[0])
    assert (said.filter.range.field, said.filter.range.gt) == ("n", 7)


def test_a_batch_of_more_queries_than_there_are_repeats_them() -> None:
    requests = searches(Plan(target="", batch=9), VECTORS)
    assert requests.distinct == 1
    said = v1.SearchRequest.FromString(requests[0])
    assert np.array_equal(vectors_of(said.queries), VECTORS[[*range(7), 0, 1]])


def test_searches_without_an_effort_state_the_collections_target() -> None:
    plan = with_effort(Plan(target=""), 0.9)
    said = v1.SearchRequest.FromString(searches(plan, VECTORS)[0])
    assert said.target_recall == pytest.approx(0.9)
    for stated in (Plan(target="", nprobe=5), Plan(target="", exact=True)):
        assert with_effort(stated, 0.9) is stated


@pytest.mark.parametrize(
    ("plan", "effort", "value"),
    [
        (Plan(target="", nprobe=5), "nprobe", 5),
        (Plan(target="", target_recall=0.5), "target_recall", 0.5),
        (Plan(target="", exact=True), "exact", True),
    ],
)
def test_a_search_states_the_effort_of_the_plan(plan: Plan, effort: str, value: float) -> None:
    said = v1.SearchRequest.FromString(searches(plan, VECTORS)[0])
    assert said.WhichOneof("effort") == effort
    assert getattr(said, effort) == value


@pytest.mark.parametrize("id_type", list(IdType))
def test_no_id_is_ever_written_twice_though_the_vectors_come_again(id_type: IdType) -> None:
    requests = upserts(Plan(target="", collection="c", batch=3), VECTORS, id_type, FRESH_ID)
    ids: list[int | str] = []
    for number in range(4):
        said = v1.UpsertRequest.FromString(requests[number])
        kind = said.ids.strings if id_type is IdType.STRING else said.ids.int64s
        ids += list(kind.values)
        assert said.collection == "c"
        rows = slice(0, 3) if number % 2 == 0 else slice(3, 6)
        assert np.array_equal(vectors_of(said.vectors), VECTORS[rows])
    assert [int(id_) for id_ in ids] == list(range(FRESH_ID, FRESH_ID + 12))


def test_two_runs_begin_at_different_ids_that_are_all_int64() -> None:
    assert fresh_id() != fresh_id()
    assert fresh_id(lambda bound: 0) == FRESH_ID
    assert fresh_id(lambda bound: bound - 1) + 2**61 < 2**63
    assert fresh_id(lambda bound: bound - 1) < FRESH_ID + FRESH_IDS


def test_an_empty_call_says_nothing() -> None:
    assert (empty_calls().rpc, empty_calls()[7]) == ("GetServerInfo", b"")
