"""What the right answer is, in float64, and how much of it was found. Ties count as found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    Float64Array,
    IdArray,
    Int64Array,
    Metric,
    SearchResult,
)

RELATIVE_ERROR: Final = 2e-6
"""Of a score: stored rows and scores are float32, and COSINE stores rows of norm 1."""

QUERIES_AT_ONCE: Final = 64
"""Bounds the memory: 64 queries over 50,000 rows are 25 MB of scores."""


@dataclass(frozen=True, slots=True)
class Found:
    """Answers to queries: `counts` (queries,), and `ids`, flat in the order of the queries."""

    k: int
    counts: Int64Array
    ids: IdArray

    @classmethod
    def of(cls, k: int, results: list[SearchResult]) -> Found:
        """Join the answers to consecutive batches."""
        return cls(
            k,
            np.concatenate([result.hits.counts for result in results]).astype(np.int64),
            np.concatenate([result.hits.ids for result in results]),
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """How good answers are: the recall of each query, and whether a query got too few hits."""

    recalls: Float64Array
    short: BoolArray

    @property
    def recall(self) -> float:
        """The mean over the queries."""
        return float(self.recalls.mean())

    @property
    def standard_error(self) -> float:
        """Of `recall`."""
        return float(self.recalls.std() / np.sqrt(len(self.recalls)))


def judged(metric: Metric, queries: Float32Array, rows: Float32Array, found: Found) -> Judged:
    """Compare answers with brute force over `rows` (ids, dim), whose ids are their places.

    A row that may not be found is NaN: a hit there fails, as does one hit given twice.
    """
    living = np.flatnonzero(~np.isnan(rows[:, 0]))
    wanted = min(found.k, len(living))
    ends = np.cumsum(found.counts)
    recalls = np.ones(len(queries))
    exact_rows = _normal(metric, rows[living])
    exact_queries = _normal(metric, queries)
    squares = np.einsum("rd,rd->r", exact_rows, exact_rows)
    place_of = np.full(len(rows), -1)
    place_of[living] = np.arange(len(living))
    for first in range(0, len(queries), QUERIES_AT_ONCE):
        if wanted == 0:
            break
        chunk = slice(first, first + QUERIES_AT_ONCE)
        costs = _costs(metric, exact_queries[chunk], exact_rows, squares)
        kth = np.partition(costs, wanted - 1, axis=1)[:, wanted - 1]
        for query, worst in enumerate(kth + _tolerance(metric, exact_queries[chunk], squares, kth)):
            end, count = ends[first + query], found.counts[first + query]
            places = place_of[found.ids[end - count : end].astype(np.int64)]
            assert (places >= 0).all(), "a hit is dead, or does not pass the filter"
            assert len(set(places.tolist())) == count, "a hit was returned twice"
            hits = int(np.count_nonzero(costs[query, places] <= worst))
            recalls[first + query] = min(hits, wanted) / wanted
    return Judged(recalls, found.counts < wanted)


def _normal(metric: Metric, vectors: Float32Array) -> Float64Array:
    """Return vectors in float64, of norm 1 under COSINE."""
    exact = vectors.astype(np.float64)
    if metric is Metric.COSINE:
        exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    return exact


def _costs(
    metric: Metric, queries: Float64Array, rows: Float64Array, squares: Float64Array
) -> Float64Array:
    """Return (queries, rows), smaller for nearer rows."""
    products: Float64Array = queries @ rows.T
    products *= -2 if metric is Metric.L2 else -1
    if metric is Metric.L2:
        products += squares
        products += np.einsum("qd,qd->q", queries, queries)[:, None]
    return products


def _tolerance(
    metric: Metric, queries: Float64Array, squares: Float64Array, kth: Float64Array
) -> Float64Array:
    """Return the error of a cost near `kth`, (queries,)."""
    relative: Float64Array = RELATIVE_ERROR * np.abs(kth)
    if metric is Metric.L2:
        relative += 1e-14 * squares.max()  # what the sum of squares cancels
        return relative
    norms = np.linalg.norm(queries, axis=1) * np.sqrt(np.median(squares))
    tolerance: Float64Array = np.maximum(relative, RELATIVE_ERROR * norms)
    return tolerance


def contents_of(vectors: Float32Array) -> Float64Array:
    """Return a number for each of (rows, dim) that equal rows share, and others hardly do."""
    weights = np.random.default_rng(0).standard_normal(vectors.shape[1])
    contents: Float64Array = np.einsum("rd,d->r", vectors.astype(np.float64), weights)
    return contents
