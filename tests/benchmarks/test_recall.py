"""Recall and the ground truth that it is held against."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.load import recall
from benchmarks.load.recall import nearest_rows, recall_at_k
from vectorshard.shard.types import IdArray, Metric
from vectorshard.v1 import vectorshard_pb2 as v1

TRUTH = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9], [10, 11, 12]])


def answer(*hits: list[int]) -> bytes:
    """Return the answer to a batch of queries."""
    flat = [id_ for of_query in hits for id_ in of_query]
    ids = v1.Ids(int64s=v1.Int64Ids(values=flat))
    return v1.SearchResponse(counts=map(len, hits), ids=ids).SerializeToString()


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({0: answer([1, 2]), 3: answer([11, 10])}, (1.0, 2)),
        ({1: answer([4, 6]), 2: answer([1, 2])}, (0.25, 2)),
        ({0: answer([1]), 1: answer([])}, (0.25, 2)),
        ({}, (0.0, 0)),
    ],
    ids=["all", "a quarter", "too few hits count as misses", "no answers"],
)
def test_recall_is_the_part_of_the_k_nearest_that_was_found(
    answers: dict[int, bytes], expected: tuple[float, int]
) -> None:
    assert recall_at_k(answers, TRUTH, batch=1, k=2) == expected


def test_the_hits_of_a_batch_are_told_apart() -> None:
    batches = {1: answer([7, 0], [10, 11])}
    assert recall_at_k(batches, TRUTH, batch=2, k=2) == (0.75, 2)
    assert recall_at_k({0: answer([1], [4], [7], [10], [1])}, TRUTH, batch=5, k=1) == (1.0, 5)


def test_string_ids_count_too() -> None:
    truth: IdArray = np.array([["a", "b"]], dtype=object)
    ids = v1.Ids(strings=v1.StringIds(values=["b", "c"]))
    said = v1.SearchResponse(counts=[2], ids=ids).SerializeToString()
    assert recall_at_k({0: said}, truth, batch=1, k=2) == (0.5, 1)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("block_elements", [1, 2_000, 10**6])
def test_the_nearest_rows_are_those_of_the_definition(
    metric: Metric, block_elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "BLOCK_ELEMENTS", block_elements)
    rng = np.random.default_rng(3)
    vectors = rng.standard_normal((600, 5), dtype=np.float32)  # numpy sorts all of a few
    queries = rng.standard_normal((7, 5), dtype=np.float32)
    if metric is Metric.L2:
        keys = ((queries[:, None] - vectors) ** 2).sum(axis=2)
    else:
        keys = -(queries @ vectors.T)
        if metric is Metric.COSINE:
            keys /= np.linalg.norm(vectors, axis=1)
    expected = np.argsort(keys, axis=1)
    assert np.array_equal(nearest_rows(vectors, queries, 300, metric), expected[:, :300])
    assert np.array_equal(nearest_rows(vectors, queries, 600, metric), expected)
