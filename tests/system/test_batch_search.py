"""Searching in batches: the answers, their receipt and their time, before and after training."""

from __future__ import annotations

import math
from collections.abc import Iterator
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from tests.system.conftest import Server, Stub, adds_up, new_name
from vectorshard import Client, Hits
from vectorshard.shard.types import Float32Array, IndexConfig, Metric, NlistRule, ShardState
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

DIM = 64
ROWS = 1_200
SHARDS = 2
NEVER = 10_000_000
"""A min_training_size that is not reached: nothing trains but by Train."""

EFFORTS: tuple[dict[str, Any], ...] = ({"exact": True}, {}, {"nprobe": 3}, {"target_recall": 0.9})


@pytest.fixture(scope="module")
def vectors() -> Float32Array:
    """Random rows (1,200, 64)."""
    return np.random.default_rng(8).standard_normal((ROWS, DIM), dtype=np.float32)


@pytest.fixture(scope="module", params=["buffered", "trained"])
def name(
    request: pytest.FixtureRequest, shared_server: Server, vectors: Float32Array
) -> Iterator[str]:
    """A collection of all rows, before its training or after it."""
    name = new_name()
    with shared_server.client() as client:
        index = IndexConfig(min_training_size=NEVER)
        client.create_collection(name, dim=DIM, metric=Metric.L2, index=index)
        client.upsert(name, np.arange(ROWS), vectors)
        if request.param == "trained":
            client.train(name, wait=True)
        yield name
        client.drop_collection(name)


def squared_distances(queries: Float32Array, vectors: Float32Array) -> np.ndarray[Any, Any]:
    """Return float64 (queries, rows): the truth."""
    differences = queries[:, None, :].astype(np.float64) - vectors[None, :, :]
    return np.asarray(np.einsum("qrd,qrd->qr", differences, differences))


def assert_same(one: Hits, other: Hits) -> None:
    """Assert that two answers are equal, to the last bit of every score."""
    np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.scores.view(np.uint32), other.scores.view(np.uint32))


def test_a_batch_answers_each_of_its_queries_with_k_hits_best_first(
    client: Client, name: str, vectors: Float32Array
) -> None:
    queries = vectors[:5]
    hits = client.search(name, queries, 7)
    assert len(hits) == 5
    assert hits.counts.tolist() == [7] * 5
    assert hits.ids.shape == hits.scores.shape == (35,)
    assert hits.receipt.coverage == 1.0
    for row, of_query in enumerate(hits):
        assert of_query[0].id == row
        assert of_query[0].score <= 1e-4
        scores = [hit.score for hit in of_query]
        assert scores == sorted(scores)
        assert len({hit.id for hit in of_query}) == 7


def test_an_empty_batch_has_an_empty_answer_and_a_whole_receipt(
    client: Client, stub: Stub, name: str
) -> None:
    hits = client.search(name, np.zeros((0, DIM), dtype=np.float32), 5)
    assert len(hits) == 0
    assert hits.ids.size == hits.scores.size == 0
    assert hits.receipt.shards_answered == SHARDS
    nothing = stub.Search(v1.SearchRequest(collection=name, k=5))
    assert not nothing.counts
    assert not nothing.scores
    assert nothing.receipt.shards_answered == SHARDS


def test_a_single_query_is_a_batch_of_one(client: Client, name: str, vectors: Float32Array) -> None:
    for effort in EFFORTS:
        bare = client.search(name, vectors[17], 4, **effort)
        assert bare.counts.tolist() == [4]
        assert bare[0][0].id == 17
        assert_same(bare, client.search(name, vectors[17:18], 4, **effort))


def test_k_larger_than_the_collection_brings_every_row_once_and_no_padding(
    client: Client, name: str, vectors: Float32Array
) -> None:
    hits = client.search(name, vectors[:3], ROWS + 500, exact=True)
    assert hits.counts.tolist() == [ROWS] * 3
    for query in range(3):
        assert sorted(hits.ids[query * ROWS : (query + 1) * ROWS].tolist()) == list(range(ROWS))
    assert np.isfinite(hits.scores).all()
    everywhere = max(shard.nlist for shard in client.describe(name).shards) or 1
    probed = client.search(name, vectors[:3], ROWS + 500, nprobe=everywhere)
    assert_same(probed, hits)


def test_the_hits_are_the_nearest_rows(client: Client, name: str, vectors: Float32Array) -> None:
    rng = np.random.default_rng(4)
    queries = vectors[rng.choice(ROWS, 20)] + 0.3 * rng.standard_normal((20, DIM), dtype=np.float32)
    truth = squared_distances(queries, vectors)
    order = np.argsort(truth, axis=1, kind="stable")[:, :10]
    exact = client.search(name, queries, 10, exact=True)
    np.testing.assert_array_equal(exact.ids.reshape(20, 10), order)
    np.testing.assert_allclose(
        exact.scores.reshape(20, 10), np.take_along_axis(truth, order, axis=1), rtol=1e-6
    )
    ids = client.search(name, queries, 10).ids.reshape(20, 10)
    found = sum(np.isin(of_query, best).sum() for of_query, best in zip(ids, order, strict=True))
    assert found >= 0.85 * order.size


@pytest.mark.parametrize("effort", EFFORTS, ids=str)
def test_a_batch_answers_as_its_queries_do_one_by_one(
    client: Client, name: str, vectors: Float32Array, effort: dict[str, Any]
) -> None:
    queries = np.random.default_rng(6).standard_normal((64, DIM), dtype=np.float32)
    together = client.search(name, queries, 10, **effort)
    for row, of_query in enumerate(together):
        alone = client.search(name, queries[row], 10, **effort)
        assert alone[0] == of_query


@pytest.mark.parametrize("queries_a_batch", [8, 64])
@pytest.mark.parametrize("exact", [False, True], ids=["usual", "exact"])
def test_a_batch_is_not_slower_than_its_queries_one_by_one(
    client: Client, name: str, vectors: Float32Array, queries_a_batch: int, exact: bool
) -> None:
    queries = vectors[:queries_a_batch]
    batch_s, singles_s = [], []
    for _ in range(5):
        start = perf_counter()
        client.search(name, queries, 10, exact=exact)
        between = perf_counter()
        for query in queries:
            client.search(name, query, 10, exact=exact)
        batch_s.append(between - start)
        singles_s.append(perf_counter() - between)
    assert median(batch_s) <= median(singles_s)


def test_the_recommended_batch_shrinks_as_vectors_grow_and_is_accepted(client: Client) -> None:
    recommended = []
    for dim in (4, 64, 768, 8_192):
        name = new_name()
        client.create_collection(name, dim=dim)
        size = client.describe(name).recommended_batch_size
        assert len(client.search(name, np.ones((size, dim), dtype=np.float32), 3)) == size
        recommended.append(size)
        client.drop_collection(name)
    assert recommended == sorted(recommended, reverse=True)
    assert recommended[0] > 1
    assert recommended[-1] >= 1


@pytest.mark.parametrize(
    ("rule", "nlist", "rows"),
    [
        (NlistRule.BY_KIND, 0, 4_000),
        (NlistRule.SQRT_4, 0, 52_000),
        (NlistRule.SQRT_4, 0, 1_200),
        (NlistRule.SQRT_8, 0, 1_200),
        (NlistRule.SQRT_16, 0, 1_200),
        (NlistRule.FIXED, 5, 1_200),
        (NlistRule.FIXED, 500, 1_200),
    ],
    ids=lambda value: value.name if isinstance(value, NlistRule) else str(value),
)
def test_nlist_follows_its_rule_and_is_never_more_than_k_means_can_use(
    client: Client, rule: NlistRule, nlist: int, rows: int
) -> None:
    name = new_name()
    index = IndexConfig(min_training_size=NEVER, nlist_rule=rule, nlist=nlist)
    client.create_collection(name, dim=4, metric=Metric.L2, index=index)
    vectors = np.random.default_rng(3).standard_normal((rows, 4), dtype=np.float32)
    client.upsert(name, np.arange(rows), vectors)
    factor = {NlistRule.BY_KIND: 1, NlistRule.SQRT_4: 4, NlistRule.SQRT_8: 8, NlistRule.SQRT_16: 16}
    for shard in client.train(name, wait=True):
        trained_rows = shard.ledger.indexed
        wanted = nlist or int(factor[rule] * math.sqrt(trained_rows))
        assert shard.nlist == min(wanted, trained_rows // 39)
        assert 1 <= shard.nprobe <= shard.nlist
    client.drop_collection(name)


def test_a_description_tells_the_configuration_the_ledger_and_every_index(
    client: Client, name: str, vectors: Float32Array
) -> None:
    description = client.describe(name)
    assert description.config.name == name
    assert (description.config.dim, description.config.metric) == (DIM, Metric.L2)
    assert description.config.target_recall == 0.95
    assert description.config.index == IndexConfig(min_training_size=NEVER)
    assert adds_up(description)
    assert description.ledger.accepted == description.ledger.live == ROWS
    assert [shard.shard for shard in description.shards] == [0, 1]
    for shard in description.shards:
        assert not shard.training
        assert shard.memory_bytes > 0
        assert shard.disk_bytes >= shard.ledger.accepted * DIM * 4
        if shard.state is ShardState.TRAINED:
            assert shard.ledger.buffered == 0
            assert shard.rows_trained_on == shard.ledger.indexed
            assert 0.9 <= shard.measured_recall <= 1.0
            assert shard.list_imbalance >= 1.0
            assert shard.generation == 1
            assert 0 < shard.last_training_s < 60
            assert shard.last_trained_at > 1.6e9
        else:
            assert shard.state is ShardState.BUFFERING
            assert (shard.nlist, shard.nprobe, shard.generation) == (0, 0, 0)
            assert shard.ledger.indexed == 0


@pytest.mark.parametrize("trained_after", [0, 300, 600], ids=["never", "before", "after"])
def test_a_deleted_or_replaced_row_is_found_by_no_search(
    client: Client, vectors: Float32Array, trained_after: int
) -> None:
    """Rows die while the buffer holds them, while the index does, and before it is trained."""
    name = new_name()
    client.create_collection(
        name, dim=DIM, metric=Metric.L2, index=IndexConfig(min_training_size=NEVER)
    )
    client.upsert(name, np.arange(300), vectors[:300])
    if trained_after == 300:
        client.train(name, wait=True)
    assert client.delete(name, np.arange(100)) == 100
    client.upsert(name, np.arange(100, 200), vectors[600:700])
    if trained_after == 600:
        client.train(name, wait=True)
    alive = np.concatenate([vectors[600:700], vectors[200:300]])
    for effort in EFFORTS:
        found = client.search(name, alive, 1, **effort)
        np.testing.assert_array_equal(found.ids, np.arange(100, 300))
        dead = client.search(name, vectors[:200], 10, **effort)
        assert dead.ids.min() >= 100
        assert dead.scores.min() > 1
    ledger = client.describe(name).ledger
    assert (ledger.accepted, ledger.live, ledger.deleted, ledger.replaced) == (400, 200, 100, 100)
    client.drop_collection(name)


def test_an_untrained_collection_is_searched_whole_whatever_effort_is_asked(
    client: Client, vectors: Float32Array
) -> None:
    name = new_name()
    client.create_collection(name, dim=DIM, metric=Metric.L2)
    assert client.search(name, vectors[:3], 5).counts.tolist() == [0, 0, 0]
    client.upsert(name, [40], vectors[40:41])
    assert client.search(name, vectors[:3], 5).ids.tolist() == [40, 40, 40]
    client.upsert(name, np.arange(300), vectors[:300])
    exact = client.search(name, vectors[:50], 10, exact=True)
    for effort in EFFORTS:
        hits = client.search(name, vectors[:50], 10, **effort)
        assert_same(hits, exact)
        for part in hits.receipt.shards:
            assert part.rows_exact == part.rows_visible
            assert (part.nlist, part.nprobe, part.generation) == (0, 0, 0)
    states = {shard.state for shard in client.describe(name).shards}
    assert states == {ShardState.BUFFERING}
    client.drop_collection(name)
