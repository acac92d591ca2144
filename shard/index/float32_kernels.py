"""Scores of rows by number, by FAISS's float32 kernels: in place, without a copy. Pure.

They only tell which rows may be among the best: `shard.index.exact` scores those.
"""

from __future__ import annotations

from typing import Final

import faiss
import numpy as np

from vectorshard.shard.index.exact import Candidates, costs_of
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.types import Float32Array, Int64Array, Metric

_UNIT_ROUNDOFF: Final = 2.0**-24  # of float32
_UNDERFLOW: Final = 2.0**-146  # above the underflow error of a float32 component's square
_NEAREST_SPARE: Final = 4  # rows that FAISS returns beyond the k-th, in case they may tie with it


def shortlist(
    metric: Metric,
    queries: Float32Array,
    rows: Int64Array,
    k: int,
    vectors: Float32Array,
    squared_norms: Float32Array,
    positions: RowMap | None = None,
) -> Candidates:
    """Return the rows that may be among the k best of each query, including ties.

    FAISS's float32 kernels score the rows in place, without a copy. Their error is bounded as in
    `shard.index.exact`, so exact scores are only needed for rows near the k-th: seldom more than k.

    Parameters
    ----------
    queries
        Float32 (queries, dim).
    rows
        Int64 (queries, candidates), padded with -1.
    vectors, squared_norms
        Float32 (positions, dim), row-major, and (positions,), at least one.
    positions
        Maps rows to positions in those two; None: the identity.
    """
    positions = positions or RowMap()
    at = positions.of_padded(rows)
    if len(rows) and k + _NEAREST_SPARE < rows.shape[1]:
        nearest = _nearest_of(metric, queries, at, k, vectors, squared_norms)
        if nearest is not None:
            return Candidates.of_each(positions.rows_at(nearest.ravel()).reshape(nearest.shape))
    costs = float32_costs(metric, queries, at, vectors)
    wanted = min(k, rows.shape[1])
    kth = np.partition(costs, wanted - 1, axis=1)[:, wanted - 1 : wanted]
    kth = np.fmin(kth, np.float32(np.inf))  # NaN, which sorts last, if a damaged row is among them
    near = costs <= costs_that_tie(metric, queries, kth, _largest(metric, at, squared_norms))
    near &= rows >= 0
    query_of, place = np.nonzero(near)
    return Candidates(query_of, rows[query_of, place])


def _nearest_of(
    metric: Metric,
    queries: Float32Array,
    at: Int64Array,
    k: int,
    vectors: Float32Array,
    squared_norms: Float32Array,
) -> Int64Array | None:
    """Return the same as positions, and a few more, for each query: one call of FAISS finds them.

    int64 (queries, k + _NEAREST_SPARE). None if a query has fewer, or as many near its k-th.
    """
    number, width = at.shape
    kept = k + _NEAREST_SPARE
    queries, at = np.ascontiguousarray(queries), np.ascontiguousarray(at)
    scores = np.empty((number, kept), np.float32)
    nearest = np.empty((number, kept), np.int64)
    kernel = faiss.knn_L2sqr_by_idx if metric.smaller_is_better else faiss.knn_inner_products_by_idx
    kernel(
        *map(faiss.swig_ptr, (queries, vectors, at)),
        queries.shape[1],
        number,
        len(vectors),
        width,
        kept,
        *map(faiss.swig_ptr, (scores, nearest)),
        width,  # from one query's rows to the next's
    )
    if np.count_nonzero(nearest[:, -1] < 0):
        return None
    costs = costs_of(metric, scores)
    largest = _largest(metric, at, squared_norms)
    limits = costs_that_tie(metric, queries, costs[:, k - 1 : k], largest)
    return None if np.count_nonzero(costs[:, -1:] <= limits) else nearest


def _largest(metric: Metric, at: Int64Array, squared_norms: Float32Array) -> Float32Array:
    """Return the largest squared norm of each query's rows, (queries, 1), if `metric` needs it."""
    if metric.smaller_is_better:
        return squared_norms[:0]
    largest: Float32Array = squared_norms.take(at, mode="wrap").max(axis=1, keepdims=True)
    return largest


def float32_costs(
    metric: Metric, queries: Float32Array, rows: Int64Array, vectors: Float32Array
) -> Float32Array:
    """Return the costs of rows by FAISS's float32 kernels; smaller is better.

    float32 (queries, candidates), infinite where `rows`, int64 of that shape, is -1. `queries` is
    float32 (queries, dim); `vectors`, float32 (rows, dim), is read only at `rows`.
    """
    queries = np.ascontiguousarray(queries)
    scores = np.empty(rows.shape, np.float32)
    kernel = (
        faiss.fvec_L2sqr_by_idx if metric.smaller_is_better else faiss.fvec_inner_products_by_idx
    )
    kernel(
        faiss.swig_ptr(scores),
        faiss.swig_ptr(queries),
        faiss.swig_ptr(vectors),
        faiss.swig_ptr(rows),
        queries.shape[1],
        *rows.shape,
    )
    return costs_of(metric, scores)


def costs_that_tie(
    metric: Metric, queries: Float32Array, costs: Float32Array, squared_norms: Float32Array
) -> Float32Array:
    """Return the highest costs by `float32_costs` that may have the same exact score as `costs`.

    Parameters
    ----------
    costs
        Float32 (queries, n), exact or by `float32_costs`.
    squared_norms
        Float32 (queries, 1): the largest among the rows compared.
    """
    dim = queries.shape[1]
    # Four errors: of both costs, of the exact score, and of the limit.
    relative = 4 * (dim + 4) * _UNIT_ROUNDOFF
    if metric.smaller_is_better:  # sums of squares: the error is relative
        return np.asarray(costs * np.float32(1 + relative) + np.float32(dim * _UNDERFLOW))
    query_norms = np.sqrt(np.vecdot(queries, queries))[:, None]
    return np.asarray(costs + relative * query_norms * np.sqrt(squared_norms))
