"""Fast scan has one answer for a query, alone and in any batch, by either implementation."""

from __future__ import annotations

import faiss
import numpy as np
import pytest

from tests.shard.samples import some_vectors
from vectorshard.shard.index.fast_scan import (
    EACH_ALONE,
    LIST_BY_LIST,
    SHARED_LISTS,
    FastScan,
    NearestLists,
    shared_lists_min,
    untrained_pq,
)
from vectorshard.shard.types import Float32Array, Int64Array, Metric

NLIST = 30
NPROBE = 7
WANTED = 40

METRICS = pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])


def filled(metric: Metric, vectors: Float32Array) -> faiss.IndexIVFPQFastScan:
    """Return an index of `vectors` (rows, dim), under their positions."""
    of_faiss = faiss.METRIC_L2 if metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
    index = untrained_pq(vectors.shape[1], NLIST, of_faiss, seed=1)
    index.train(vectors)
    index.add_with_ids(vectors, np.arange(len(vectors)))
    return index


def centroids_of(index: faiss.IndexIVFPQFastScan) -> Float32Array:
    """Return the centroids, float32 (nlist, dim)."""
    centroids: Float32Array = index.quantizer.reconstruct_n(0, NLIST)
    return centroids


def nearest_in_float64(
    metric: Metric, centroids: Float32Array, queries: Float32Array, n: int
) -> Int64Array:
    """Return the nearest lists by number, as NearestLists defines them."""
    points, asked = centroids, queries
    if metric is Metric.L2:
        origin = centroids.mean(axis=0, dtype=np.float64).astype(np.float32)
        points, asked = centroids - origin, queries - origin
    exact = asked.astype(np.float64) @ points.T.astype(np.float64)
    if metric is Metric.L2:
        exact -= np.vecdot(points, points, dtype=np.float64) / 2
    return np.sort(np.argsort(-exact, axis=1, kind="stable")[:, :n], axis=1)


@METRICS
def test_both_implementations_give_the_distances_of_the_default_and_the_same_rows(
    metric: Metric,
) -> None:
    vectors = np.round(some_vectors(3_000, dim=8))  # many codes tie with the last candidate's
    queries = np.round(some_vectors(64, dim=8, seed=1))
    index = filled(metric, vectors)
    default = faiss.SearchParametersIVF(nprobe=NPROBE)
    # The default ranks lists by itself, and these queries tie between lists: give it ours.
    lists = NearestLists(metric, centroids_of(index)).of(queries, NPROBE)
    expected = np.empty((64, WANTED), np.float32), np.empty((64, WANTED), np.int64)
    arrays = lists, np.zeros(lists.shape, np.float32), *expected
    pointers = [faiss.swig_ptr(array) for array in (queries, *arrays)]
    asked, at_lists, at_distances, at_scores, at_rows = pointers
    assert index.implem == 0
    index.search_preassigned_c(
        64, asked, WANTED, at_lists, at_distances, at_scores, at_rows, False, default
    )
    for shared_lists in (0.0, float("inf")):  # LIST_BY_LIST for all, EACH_ALONE for all
        scan = FastScan(index, metric, centroids_of(index), shared_lists)
        scores, rows = scan.nearest(queries, WANTED, NPROBE, None)
        np.testing.assert_array_equal(scores, expected[0])
        np.testing.assert_array_equal(rows, expected[1])
        alone = [scan.nearest(query[None], WANTED, NPROBE, None)[1][0] for query in queries]
        np.testing.assert_array_equal(alone, expected[1])
        shuffled = np.random.default_rng(0).permuted(lists, axis=1)
        _, rows = scan.nearest(queries, WANTED, NPROBE, None, shuffled)
        np.testing.assert_array_equal(rows, expected[1])


def test_rows_that_are_added_later_are_found_by_both() -> None:
    vectors = some_vectors(400, dim=8)
    index = filled(Metric.L2, vectors)
    scans = [
        FastScan(index, Metric.L2, centroids_of(index), shared) for shared in (0.0, float("inf"))
    ]
    index.add_with_ids(vectors[:50], np.arange(400, 450))
    for scan in scans:
        _, rows = scan.nearest(vectors[:50], 450, NLIST, None)
        assert (np.sort(rows, axis=1) == np.arange(450)).all()


@METRICS
@pytest.mark.parametrize("offset", [0, 1_000])
def test_the_nearest_lists_are_those_of_exact_arithmetic_alone_and_in_a_batch(
    metric: Metric, offset: int
) -> None:
    # Pairs of centroids that float32 products cannot tell apart.
    centroids = some_vectors(40, dim=24) + np.float32(offset)
    centroids = np.concatenate([centroids, centroids * np.float32(1 + 2e-7)])
    queries = some_vectors(64, dim=24, seed=1) + np.float32(offset)
    nearest = NearestLists(metric, centroids)
    for n in (1, 3, 9, 80):
        expected = nearest_in_float64(metric, centroids, queries, n)
        np.testing.assert_array_equal(nearest.of(queries, n), expected)
        alone = [nearest.of(query[None], n)[0] for query in queries]
        np.testing.assert_array_equal(alone, expected)


def test_of_lists_with_equal_centroids_the_first_are_taken() -> None:
    centroids = np.repeat(some_vectors(4, dim=8), 5, axis=0)
    lists = NearestLists(Metric.L2, centroids).of(centroids[7:8], 3)
    assert lists.tolist() == [[5, 6, 7]]


def test_lists_are_scanned_for_several_queries_where_that_is_faster() -> None:
    assert (EACH_ALONE, LIST_BY_LIST) == (11, 13)
    assert shared_lists_min(faiss.SIMDLevel_AVX2) == SHARED_LISTS
    assert shared_lists_min(faiss.SIMDLevel_ARM_NEON) == SHARED_LISTS
    assert shared_lists_min(faiss.SIMDLevel_AVX512_SPR) == float("inf")
