"""The index, and the facts about FAISS that it is built on: an upgrade that changes one is seen."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shard.samples import some_vectors
from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.index.exact import Candidates, costs_of, exact_scores
from vectorshard.shard.index.float32_kernels import shortlist
from vectorshard.shard.index.ivf_index import IvfIndex, use_cores
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Float32Array, IndexKind, Int64Array, Metric

EVERY_KIND = pytest.mark.parametrize("kind", list(IndexKind))
NOBODY = Tombstones()


def squared_norms(vectors: Float32Array) -> Float32Array:
    norms: Float32Array = np.einsum("ij,ij->i", vectors, vectors)
    return norms


def trained(
    vectors: Float32Array,
    nlist: int = 8,
    kind: IndexKind = IndexKind.IVF_FLAT,
    metric: Metric = Metric.L2,
) -> IvfIndex:
    """Return an index that holds `vectors` under their positions."""
    index = IvfIndex.train(kind, metric, vectors, nlist, seed=1)
    index.add(np.arange(len(vectors)), vectors)
    return index


def propose(
    index: IvfIndex,
    queries: Float32Array,
    k: int,
    nprobe: int,
    vectors: Float32Array,
    tombstones: Tombstones = NOBODY,
    candidates: int = 1_000,
) -> Candidates:
    """Propose rows of an index that holds `vectors` under their positions."""
    setting = SearchParameters(nprobe, candidates)
    norms = squared_norms(vectors)
    return index.proposed(queries, k, setting, tombstones, vectors, norms).candidates


def proposed(candidates: Candidates, queries: int) -> list[set[int]]:
    """Return the proposed rows of each query; no pair may occur twice."""
    rows = [candidates.row_of[candidates.query_of == query].tolist() for query in range(queries)]
    assert all(len(each) == len(set(each)) for each in rows)
    return [set(each) for each in rows]


def nearest(vectors: Float32Array, queries: Float32Array, k: int) -> list[set[int]]:
    distances = ((queries[:, None] - vectors[None]).astype(np.float64) ** 2).sum(axis=2)
    return [set(order[:k].tolist()) for order in np.argsort(distances, axis=1)]


# ---- facts about FAISS --------------------------------------------------------------------------


def faiss_index(vectors: Float32Array, nlist: int = 2) -> faiss.IndexIVFFlat:
    quantizer = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_L2)
    index = faiss.IndexIVFFlat(quantizer, vectors.shape[1], nlist, faiss.METRIC_L2)
    index.cp.min_points_per_centroid = 1
    index.train(vectors)
    return index


def faiss_rows(
    index: faiss.IndexIVFFlat, queries: Float32Array, k: int, **how: object
) -> Int64Array:
    parameters = faiss.SearchParametersIVF(nprobe=index.nlist, **how)
    return np.asarray(index.search(queries, k, params=parameters)[1])


def test_a_bitmap_selector_answers_false_past_its_end_and_not_turns_that_around() -> None:
    vectors = some_vectors(20)
    index = faiss_index(vectors)
    index.add(vectors)
    bitmap = np.full(1, 0b11111111, dtype=np.uint8)
    within = faiss.IDSelectorBitmap(bitmap)
    found = faiss_rows(index, vectors[:1], 20, sel=within)
    assert sorted(found[found >= 0].tolist()) == list(range(8))
    found = faiss_rows(index, vectors[:1], 20, sel=faiss.IDSelectorNot(within))
    assert sorted(found[found >= 0].tolist()) == list(range(8, 20))


def test_faiss_pads_missing_hits_with_row_minus_1_and_the_worst_score() -> None:
    vectors = some_vectors(3)
    index = faiss_index(vectors, nlist=1)
    index.add(vectors)
    scores, rows = index.search(vectors[:1], 5)
    assert rows[0, 3:].tolist() == [-1, -1]
    assert (scores[0, 3:] == np.finfo(np.float32).max).all()


def test_faiss_stores_a_row_that_is_added_twice_twice() -> None:
    vectors = some_vectors(10)
    index = faiss_index(vectors)
    for _ in range(2):
        index.add_with_ids(vectors, np.arange(10))
    assert index.ntotal == 20
    assert faiss_rows(index, vectors[:1], 2)[0].tolist() == [0, 0]


def test_faiss_drops_a_nan_row_silently_and_counts_it_all_the_same() -> None:
    vectors = some_vectors(10)
    index = faiss_index(vectors)
    bad = vectors.copy()
    bad[4, 0] = np.nan
    index.add_with_ids(bad, np.arange(10))
    held = sum(index.invlists.list_size(number) for number in range(index.nlist))
    assert (held, index.ntotal) == (9, 10)


def test_faiss_loads_an_index_with_a_flipped_bit_without_an_error() -> None:
    vectors = some_vectors(50)
    index = faiss_index(vectors)
    index.add(vectors)
    serialized = faiss.serialize_index(index)
    serialized[-100] ^= 1  # in the codes
    assert faiss.deserialize_index(serialized).ntotal == 50


def test_the_number_of_cores_belongs_to_the_calling_thread() -> None:
    def cores_after(cores: int) -> int:
        use_cores(cores)
        return int(faiss.omp_get_max_threads())

    with ThreadPoolExecutor(1) as other:
        assert other.submit(cores_after, 1).result() == 1
        assert cores_after(2) == 2
        assert other.submit(faiss.omp_get_max_threads).result() == 1


def test_concurrent_searches_answer_as_one_after_the_other() -> None:
    vectors, queries = some_vectors(2_000), some_vectors(64, seed=1)
    index = trained(vectors)

    def search() -> list[set[int]]:
        candidates = propose(index, queries, 10, 3, vectors)
        return proposed(candidates, len(queries))

    expected = search()
    with ThreadPoolExecutor(4) as threads:
        assert all(future.result() == expected for future in [threads.submit(search)] * 20)


# ---- the index ----------------------------------------------------------------------------------


@EVERY_KIND
@pytest.mark.parametrize("metric", list(Metric))
def test_every_list_together_propose_the_best_rows(kind: IndexKind, metric: Metric) -> None:
    vectors, queries = some_vectors(500), some_vectors(10, seed=1)
    if metric is Metric.COSINE:
        vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    index = trained(vectors, kind=kind, metric=metric)
    candidates = propose(index, queries, 10, 8, vectors)
    products = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    best = (
        nearest(vectors, queries, 10)
        if metric is Metric.L2
        else [set(order[:10].tolist()) for order in np.argsort(-products, axis=1)]
    )
    for rows, expected in zip(proposed(candidates, 10), best, strict=True):
        assert expected <= rows


def test_nprobe_travels_with_each_call_and_the_index_keeps_its_own() -> None:
    vectors, queries = some_vectors(400), some_vectors(5, seed=1)
    index = trained(vectors)
    few = [len(rows) for rows in proposed(propose(index, queries, 400, 1, vectors), 5)]
    all_of_them = [len(rows) for rows in proposed(propose(index, queries, 400, 8, vectors), 5)]
    again = [len(rows) for rows in proposed(propose(index, queries, 400, 1, vectors), 5)]
    assert all_of_them == [400] * 5
    assert max(few) < 400
    assert few == again
    assert index._index.nprobe == 1


@EVERY_KIND
def test_missing_hits_are_left_out(kind: IndexKind) -> None:
    vectors = some_vectors(60)
    index = trained(vectors, nlist=1, kind=kind)
    candidates = propose(index, vectors[:3], 1_000, 1, vectors)
    assert proposed(candidates, 3) == [set(range(60))] * 3
    assert candidates.row_of.min() == 0


@EVERY_KIND
def test_the_dead_are_not_proposed_and_rows_past_the_bitmap_are(kind: IndexKind) -> None:
    vectors = some_vectors(300)
    index = trained(vectors, kind=kind)
    dead = np.arange(0, 100, 2)
    tombstones = Tombstones().with_dead(dead)
    candidates = propose(index, vectors[:4], 300, 8, vectors, tombstones)
    assert proposed(candidates, 4) == [set(range(300)) - set(dead.tolist())] * 4


def test_an_index_of_dead_rows_proposes_nothing() -> None:
    vectors = some_vectors(50)
    index = trained(vectors, nlist=1)
    tombstones = Tombstones().with_dead(np.arange(50))
    assert len(propose(index, vectors[:3], 5, 1, vectors, tombstones)) == 0


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("k", [1, 10])
def test_all_rows_that_tie_with_the_kth_are_proposed(metric: Metric, k: int) -> None:
    vectors = np.tile(some_vectors(3), (100, 1))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    index = trained(vectors, nlist=2, metric=metric)
    candidates = propose(index, vectors[:3], k, 2, vectors)
    for query, rows in enumerate(proposed(candidates, 3)):
        assert set(range(query, 300, 3)) <= rows


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_whatever_ties_on_a_grid_the_best_rows_with_their_ties_are_proposed(
    k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    vectors = random.integers(0, 3, (120, 3)).astype(np.float32)
    queries = random.integers(0, 3, (4, 3)).astype(np.float32)
    index = trained(vectors, nlist=2)
    candidates = propose(index, queries, k, 2, vectors)
    distances = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
    for rows, to_rows in zip(proposed(candidates, 4), distances, strict=True):
        limit = np.sort(to_rows)[k - 1]
        assert set(np.flatnonzero(to_rows <= limit).tolist()) <= rows


@EVERY_KIND
def test_no_queries_get_no_candidates(kind: IndexKind) -> None:
    vectors = some_vectors(100)
    index = trained(vectors, kind=kind)
    assert len(propose(index, vectors[:0], 5, 2, vectors)) == 0


def test_adding_no_rows_changes_nothing() -> None:
    index = IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, some_vectors(50), 2, seed=1)
    index.add(np.zeros(0, dtype=np.int64), some_vectors(0))
    assert index.rows == 0
    assert index.list_imbalance == 1.0


def test_rows_keep_their_numbers_however_sparse() -> None:
    vectors = some_vectors(50)
    index = IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, 2, seed=1)
    rows = np.arange(50) * 7 + 3
    index.add(rows, vectors)
    sparse = np.zeros((400, vectors.shape[1]), dtype=np.float32)
    sparse[rows] = vectors
    found = proposed(propose(index, vectors, 1, 2, sparse), 50)
    assert all(row in each for row, each in zip(rows.tolist(), found, strict=True))


@EVERY_KIND
def test_an_index_comes_back_from_its_bytes_as_it_was(kind: IndexKind) -> None:
    vectors, queries = some_vectors(300), some_vectors(10, seed=1)
    index = trained(vectors, kind=kind)
    back = IvfIndex.from_bytes(vectors.shape[1], index.to_bytes().tobytes())
    assert back.kind is kind
    assert (back.rows, back.nlist) == (index.rows, index.nlist) == (300, 8)
    assert back.list_imbalance == index.list_imbalance
    assert proposed(propose(back, queries, 10, 2, vectors), 10) == proposed(
        propose(index, queries, 10, 2, vectors), 10
    )
    back.add(np.arange(300, 310), some_vectors(10, seed=2))
    assert (back.rows, index.rows) == (310, 300)


@EVERY_KIND
@pytest.mark.parametrize("metric", list(Metric))
def test_the_same_rows_and_seed_give_the_same_index(kind: IndexKind, metric: Metric) -> None:
    vectors = some_vectors(300)
    one, other = (trained(vectors, kind=kind, metric=metric).to_bytes() for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_as_many_lists_as_rows_can_be_trained() -> None:
    vectors = some_vectors(20)
    assert trained(vectors, nlist=20).nlist == 20


@pytest.mark.parametrize("rows", [1, 3, 15])
def test_a_handful_of_rows_can_be_trained_on(rows: int) -> None:
    vectors = some_vectors(rows)
    for kind in IndexKind:
        index = trained(vectors, nlist=1, kind=kind)
        found = proposed(propose(index, vectors, 1, 1, vectors), rows)
        assert all(row in each for row, each in enumerate(found))


@pytest.mark.parametrize("dim", [1, 2, 7, 64, 255, 256, 257])
@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_product_quantizers_take_every_dim(dim: int, metric: Metric) -> None:
    vectors, queries = some_vectors(200, dim=dim), some_vectors(5, dim=dim, seed=1)
    index = trained(vectors, kind=IndexKind.IVF_PQ, metric=metric)
    flat = trained(vectors, kind=IndexKind.IVF_FLAT, metric=metric)
    everything = proposed(propose(index, queries, 10, 8, vectors), 5)
    best = proposed(propose(flat, queries, 10, 8, vectors), 5)
    for rows, flat_rows in zip(everything, best, strict=True):
        assert len(rows & flat_rows) >= 10


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_few_candidates_are_those_whose_codes_look_best(metric: Metric) -> None:
    vectors, queries = some_vectors(2_000, dim=16), some_vectors(20, dim=16, seed=1)
    index = trained(vectors, kind=IndexKind.IVF_PQ, metric=metric)
    looked_at = index.nearest(queries, 30, 8, NOBODY)
    found = proposed(propose(index, queries, 10, 8, vectors, candidates=30), 20)
    for rows, looked in zip(found, looked_at, strict=True):
        assert rows <= set(looked.tolist())
        assert len(rows) >= 10


def test_codes_without_candidates_to_spare_still_propose_k() -> None:
    vectors = some_vectors(500)
    index = trained(vectors, kind=IndexKind.IVF_PQ)
    found = proposed(propose(index, vectors[:4], 20, 8, vectors, candidates=1), 4)
    assert all(len(rows) == 20 for rows in found)


@pytest.mark.parametrize("metric", list(Metric))
@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
@settings(max_examples=60)
def test_a_shortlist_holds_the_k_best_by_exact_score_with_their_ties(
    metric: Metric, k: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    dim = int(random.integers(1, 40))
    scale = float(10.0 ** random.integers(-20, 15))
    vectors = (random.integers(0, 3, (60, dim)) * scale).astype(np.float32)
    vectors += (scale * 1e-6 * random.standard_normal((60, dim))).astype(np.float32)
    queries = (random.integers(0, 3, (3, dim)) * scale).astype(np.float32)
    rows = np.stack([random.permutation(60)[:20] for _ in range(3)])
    rows[0, 5:] = -1
    kept = shortlist(metric, queries, rows, k, vectors, squared_norms(vectors))
    for query, there in enumerate(proposed(kept, 3)):
        asked = rows[query][rows[query] >= 0]
        pairs = Candidates(np.full(len(asked), query), asked)
        costs = costs_of(metric, exact_scores(metric, queries, vectors, pairs))
        limit = np.sort(costs)[min(k, len(costs)) - 1]
        assert set(asked[costs <= limit].tolist()) <= there <= set(asked.tolist())


def test_a_shortlist_is_as_long_for_each_query_and_hardly_longer_than_k() -> None:
    vectors, queries = some_vectors(5_000, dim=100), some_vectors(64, dim=100, seed=1)
    rows = np.tile(np.arange(200), (64, 1))
    kept = shortlist(Metric.L2, queries, rows, 10, vectors, squared_norms(vectors))
    assert kept.each == 14
    assert len(kept) == 64 * 14


@pytest.mark.parametrize("metric", list(Metric))
def test_a_shortlist_has_a_few_rows_to_spare_for_ties_and_is_not_cut_among_more(
    metric: Metric,
) -> None:
    vectors = np.concatenate([np.eye(30, dtype=np.float32)] * 3)
    queries = np.stack([np.full(30, 0.1, np.float32), vectors[0] + vectors[1] / 2])
    rows = np.array([[*range(10, 30), *range(40, 47)], [*range(10, 31), *range(60, 65), 1]])
    queries[0, 10:20] = 9 + 0.01 * np.arange(10)  # the second query has two best rows, both at 0
    for asked, k in ((queries[1:], 2), (queries[1:], 1), (queries, 1)):
        found = shortlist(metric, asked, rows[-len(asked) :], k, vectors, squared_norms(vectors))
        assert found.each == k + 4
    crowd = shortlist(metric, queries[1:], rows[1:], 5, vectors, squared_norms(vectors))
    assert crowd.each == 0  # all others tie with the fifth
    assert len(crowd) == 27


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_far_from_the_origin_centroids_score_as_exactly_and_alone_as_in_a_batch(
    metric: Metric,
) -> None:
    vectors = some_vectors(400, 12) + np.float32(3_000)
    index, queries = trained(vectors, 40, metric=metric), vectors[:50]
    centroids = index.centroid_scores(queries)
    alone = [index.centroid_scores(queries[at : at + 1])[0] for at in range(len(queries))]
    np.testing.assert_array_equal(alone, centroids)
    if metric is Metric.L2:
        ranks = np.argsort(np.argsort(centroids, axis=1), axis=1)
        np.testing.assert_array_equal(ranks, index.centroid_ranks(queries))


def test_memory_grows_with_the_rows_and_compressed_codes_are_smaller() -> None:
    vectors = some_vectors(400, dim=64)
    flat, small = trained(vectors), trained(vectors, kind=IndexKind.IVF_SQ8)
    smallest = trained(vectors, kind=IndexKind.IVF_PQ)
    assert flat.memory_bytes >= 400 * 64 * 4
    assert small.memory_bytes < flat.memory_bytes / 2
    assert (flat.code_bytes, small.code_bytes, smallest.code_bytes) == (64 * 4, 64, 64 // 4)
    before = flat.memory_bytes
    flat.add(np.arange(400, 500), some_vectors(100, dim=64, seed=1))
    assert flat.memory_bytes == before + 100 * (64 * 4 + 8)


def test_imbalance_is_1_for_even_lists_and_more_for_uneven_ones() -> None:
    corners = np.repeat(np.eye(8, dtype=np.float32) * 100, 40, axis=0)
    assert trained(corners, nlist=1).list_imbalance == pytest.approx(1.0)
    several = trained(corners, nlist=8)
    before = several.list_imbalance
    several.add(np.arange(320, 720), np.repeat(corners[:1], 400, axis=0))
    assert several.list_imbalance > before + 1
