"""FAISS in process: what it is compared by must be right."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import glove
from benchmarks.peers import (
    EFFORT_MAX,
    Codes,
    Int64Array,
    Point,
    Search,
    Setting,
    batches_of,
    cheapest,
    curve,
    efforts,
    flat,
    hnsw,
    recall_of,
)
from benchmarks.vectors import Float32Array, clustered

ROWS, DIM, NLIST, K = 2_000, 16, 20, 10
VECTORS = glove.unit(clustered(ROWS, DIM))
QUERIES = glove.unit(clustered(50, DIM, part=1))
TRUTH: Int64Array = np.argsort(-(QUERIES @ VECTORS.T), axis=1)[:, :K]


@pytest.fixture(scope="module")
def codes() -> Codes:
    return Codes(VECTORS, NLIST, 2)


def test_all_lists_and_enough_candidates_find_the_truth(codes: Codes) -> None:
    setting = Setting(NLIST, ROWS // 2)
    found = codes.search(batches_of(QUERIES, 16), K, [setting] * 2)
    assert recall_of(found, TRUTH) > 0.999


def test_fewer_lists_and_candidates_find_less(codes: Codes) -> None:
    batches = batches_of(QUERIES, 16)
    recalls = [
        recall_of(codes.search(batches, K, [Setting(nprobe, K)] * 2), TRUTH) for nprobe in (1, 8)
    ]
    assert recalls[0] < recalls[1] < 1


def test_the_places_tell_the_recall_of_a_setting(codes: Codes) -> None:
    batches = batches_of(QUERIES, 16)
    places = codes.places(batches, TRUTH, 5, 500)
    for candidates in (K, 30):
        found = codes.search(batches, K, [Setting(5, candidates)] * 2)
        assert recall_of(found, TRUTH) == pytest.approx((places < candidates).mean(), abs=0.01)


@pytest.mark.parametrize("index", [flat, hnsw])
def test_the_other_indexes_find_the_truth_with_enough_effort(
    index: Callable[[Float32Array], Search],
) -> None:
    found = index(VECTORS)(batches_of(QUERIES, 16), K, 1_000)
    assert recall_of(found, TRUTH) > 0.99


def test_recall_is_the_share_of_the_neighbors_found() -> None:
    found = np.array([[3, 1, -1], [7, 8, 9]])
    assert recall_of(found, np.array([[1, 2, 3], [9, 8, 7]])) == pytest.approx(5 / 6)


def test_efforts_grow_to_their_end() -> None:
    tried = list(efforts(1))
    assert tried[:4] == [1, 2, 3, 4]
    assert all(low < high for low, high in pairwise(tried))
    assert tried[-1] <= EFFORT_MAX


def test_a_curve_ends_with_the_first_effort_that_reaches_its_recall() -> None:
    truth = np.arange(10)[None]

    def search(effort: int) -> Int64Array:
        return np.where(truth < effort, truth, -1)

    points = curve(search, truth, lowest=1, recall_from=0.3, recall_to=0.6, passes=2)
    assert [(point.effort, point.recall) for point in points] == [
        (effort, effort / 10) for effort in (3, 4, 5, 6)
    ]


def test_the_cheapest_is_that_of_least_effort_with_the_recall() -> None:
    points = [Point(4, 0.9, 3.0), Point(5, 0.96, 2.0), Point(6, 0.97, 5.0)]
    assert cheapest(points, 0.95).effort == 5
    with pytest.raises(ValueError, match="empty"):
        cheapest(points, 0.99)
