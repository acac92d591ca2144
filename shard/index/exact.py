"""Exact scores, ranking and the exact scan. Pure.

On every path `exact_scores` scores the candidates and `rank` orders them, so equal rows get equal
scores. No index and no buffer enters here, and no approximate number leaves.

A candidate is a pair of a query and a row. A *cost* is a score with its sign chosen so that smaller
is better; internally it may be shifted or scaled by a constant of its query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    Float64Array,
    IdArray,
    Int64Array,
    Metric,
    UInt32Array,
    VectorArray,
)

SQUARED_NORM_MAX = float(np.finfo(np.float32).max) / 4
"""Largest squared norm of a row or a query. Within it no score and no cost overflows float32."""

_SCORED_ELEMENTS = 32_768  # pairs * dim scored at once: float64 copies fit the L2 cache
_BLOCK_ELEMENTS = 524_288  # rows * queries of one product, 2 MB: fewer GIL switches
_QUERIES_AT_ONCE = 256  # more: a block is read less often, and is shorter
_GROUPS_PER_HIT = 4  # of rows in a block; more: a sharper first limit, found slower
_CROWD_PER_HIT = 2  # candidates per hit above which they are pruned
_POOL_PER_HIT = 16  # the same for the pool of all blocks so far
_ROUNDINGS = 16  # float32 roundings of a cost, in addition to one per component
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_UNDERFLOW = 2.0**-149  # float32's smallest number: twice the error of an underflow


@dataclass(frozen=True, slots=True)
class Candidates:
    """Distinct pairs to score: `query_of` and `row_of`, int64 (pairs,).

    `each`, unless 0, says that every query of the search has so many pairs, and that they are in
    query order. Scoring and ranking such pairs takes half of the steps.
    """

    query_of: Int64Array
    row_of: Int64Array
    each: int = 0

    @classmethod
    def of_each(cls, rows: Int64Array) -> Candidates:
        """Return the pairs of the queries with their rows, int64 (queries, n)."""
        queries, each = rows.shape
        query_of = np.zeros(each, np.int64)
        if queries != 1:
            query_of = np.repeat(np.arange(queries), each)
        return cls(query_of, rows.ravel(), each)

    def __len__(self) -> int:
        """The number of pairs."""
        return len(self.query_of)

    def where(self, kept: BoolArray) -> Candidates:
        """Return the pairs where `kept`, bool (pairs,), is true."""
        return Candidates(self.query_of[kept], self.row_of[kept])

    def at(self, positions: RowMap) -> Candidates:
        """Return the pairs with row numbers replaced by positions in the row file."""
        if positions.is_identity:
            return self
        return Candidates(self.query_of, positions.of(self.row_of), self.each)


NO_CANDIDATES: Final = Candidates(np.empty(0, np.int64), np.empty(0, np.int64))


@dataclass(frozen=True, slots=True)
class RankedRows:
    """The best rows of each query, flat in query order, best first.

    `counts` uint32 (queries,) is the number of hits of each query; `rows`, `ids` and `scores` are
    (hits,).
    """

    counts: UInt32Array
    rows: Int64Array
    ids: IdArray
    scores: Float32Array


def concatenate(parts: Sequence[Candidates]) -> Candidates:
    """Return the pairs of all parts, in order. The parts have no pair in common."""
    filled = [part for part in parts if len(part)]
    if len(filled) <= 1:
        return filled[0] if filled else NO_CANDIDATES
    return Candidates(
        np.concatenate([part.query_of for part in filled]),
        np.concatenate([part.row_of for part in filled]),
    )


def exact_scores(
    metric: Metric, queries: Float32Array, rows: Float32Array, candidates: Candidates
) -> Float32Array:
    """Return the score of each candidate, float32 (pairs,).

    The squared distance under L2, else the dot product, of the float32 components: accumulated in
    float64 and rounded once. The score of a pair is independent of the other pairs.

    Parameters
    ----------
    metric
        COSINE expects queries and rows of norm 1.
    queries
        float32 (queries, dim).
    rows
        float32 (rows, dim); only the rows of `candidates` are read.
    candidates
        In any order.

    Raises
    ------
    IndexError
        If a candidate refers to a query or a row that does not exist.
    """
    rows = np.asarray(rows)  # indexing a memory map is slower
    exact_queries = queries.astype(np.float64)
    scores = np.empty(len(candidates), np.float32)
    pairs_at_once = max(1, _SCORED_ELEMENTS // queries.shape[1])
    if each := candidates.each:
        pairs_at_once = max(1, pairs_at_once // each) * each
    for first in range(0, len(candidates), pairs_at_once):
        chunk = slice(first, first + pairs_at_once)
        left = rows.take(candidates.row_of[chunk], axis=0).astype(np.float64)
        if each:
            right = exact_queries[first // each : (first + pairs_at_once) // each, None]
            left = left.reshape(len(right), each, -1)
        else:
            right = exact_queries.take(candidates.query_of[chunk], axis=0)
        if metric is Metric.L2:
            left -= right
            right = left
        scores[chunk] = np.vecdot(left, right).ravel()  # one BLAS dot per pair
    return scores


def exact_squared_norms(vectors: VectorArray) -> Float64Array:
    """Return the squared norms of vectors (rows, dim), accumulated in float64. (rows,)"""
    norms = np.empty(len(vectors), np.float64)
    rows_at_once = max(1, _SCORED_ELEMENTS // max(1, vectors.shape[1]))
    for first in range(0, len(vectors), rows_at_once):
        chunk = slice(first, first + rows_at_once)
        exact = vectors[chunk].astype(np.float64)
        np.vecdot(exact, exact, out=norms[chunk])
    return norms


def stored_squared_norms(vectors: Float32Array) -> Float32Array:
    """Return the squared norms of vectors (rows, dim) as each write stores them, bit by bit."""
    norms: Float32Array = row_squared_norms(vectors).astype(np.float32)
    return norms


def row_squared_norms(vectors: VectorArray) -> Float64Array:
    """Return what `stored_squared_norms` rounds: float64 (rows,)."""
    norms: Float64Array = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return norms


def exact_candidates(
    metric: Metric,
    queries: Float32Array,
    rows: Float32Array,
    squared_norms: Float32Array,
    live: BoolArray | None,
    first: int,
    last: int,
    k: int,
    go_on: Callable[[], None] = lambda: None,
) -> Candidates:
    """Return candidates among the live rows of [first, last) that include the k best per query.

    They include all ties with the k-th, and all live rows if there are at most k. The number of
    other candidates depends on the rows. The memory used is bounded by a block and the ties.

    Each block is scored by one float32 product. Its error is bounded (see `_Bounds`), so no hit is
    missed. The limit for a candidate falls as better rows are found.

    Parameters
    ----------
    metric
        COSINE expects queries and rows of norm 1.
    queries
        float32 (queries, dim), of squared norms up to SQUARED_NORM_MAX.
    rows
        float32 (rows, dim), row-major, of squared norms up to SQUARED_NORM_MAX.
    squared_norms
        float32 (rows,): those norms, summed in float32 or better.
    live
        bool (last - first,), or None if all are live.
    first, last
        The range of rows to search.
    k
        Hits wanted for each query, at least 1.
    go_on
        Called before each block. It may raise to end the scan: a deadline has passed.
    """
    rows = np.asarray(rows)
    parts = []
    for begin in range(0, len(queries), _QUERIES_AT_ONCE):
        scan = _Scan(metric, queries[begin : begin + _QUERIES_AT_ONCE], rows, squared_norms, k)
        scan.scan(live, first, last, go_on)
        parts.append(Candidates(scan.pool.query_of + begin, scan.pool.row_of))
    return concatenate(parts)


def rank(
    metric: Metric,
    candidates: Candidates,
    scores: Float32Array,
    ids_of: Callable[[Int64Array], IdArray],
    queries: int,
    k: int,
    score_threshold: float | None = None,
) -> RankedRows:
    """Return the k best candidates of each query; equal scores rank by id, ascending.

    Parameters
    ----------
    metric
        Determines whether small or large scores are better.
    candidates
        In any order.
    scores
        float32 (pairs,), of the candidates.
    ids_of
        rows int64 (n,) -> ids (n,). Called once, for the hits and some near misses.
    queries
        The number of queries; those without candidates get no hits.
    k
        Hits to keep for each query, at least 1.
    score_threshold
        Only scores at least this good: <= under L2, >= otherwise. None keeps all.
    """
    if score_threshold is not None:
        exact = scores.astype(np.float64)
        good = exact <= score_threshold if metric.smaller_is_better else exact >= score_threshold
        candidates, scores = candidates.where(good), scores[good]
    elif candidates.each and (best := _best_of_each(metric, candidates, scores, k)) is not None:
        hits = min(k, candidates.each)
        return RankedRows(
            counts=np.full(queries, hits, np.uint32),
            rows=(rows := candidates.row_of[best]),
            ids=ids_of(rows),
            scores=scores[best],
        )
    costs = costs_of(metric, scores)
    if len(candidates) > _CROWD_PER_HIT * k * queries:
        near = costs <= kth_costs(candidates.query_of, costs, queries, k)[candidates.query_of]
        candidates, scores, costs = candidates.where(near), scores[near], costs[near]
    ids = ids_of(candidates.row_of)
    order = best_first(candidates.query_of, costs, ids)
    counts = np.bincount(candidates.query_of, minlength=queries)
    places = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = order[places < k]
    return RankedRows(
        counts=np.minimum(counts, k).astype(np.uint32),
        rows=candidates.row_of[order],
        ids=ids[order],
        scores=scores[order],
    )


def _best_of_each(
    metric: Metric, candidates: Candidates, scores: Float32Array, k: int
) -> Int64Array | None:
    """Return the places of the k best pairs of each query, best first; None if costs tie there."""
    costs = costs_of(metric, scores).reshape(-1, candidates.each)
    order = costs.argsort(axis=1, kind="stable")[:, : k + 1]
    if len(costs) > 1:
        order += np.arange(0, len(scores), candidates.each)[:, None]
    ranked = costs.take(order)
    if np.count_nonzero(ranked[:, 1:] == ranked[:, :-1]):
        return None
    best: Int64Array = order[:, :k].ravel()
    return best


def costs_of(metric: Metric, scores: Float32Array) -> Float32Array:
    """Return scores with their sign chosen so that smaller is better."""
    costs: Float32Array = scores if metric.smaller_is_better else -scores
    return costs


def best_first(query_of: Int64Array, costs: Float32Array, ids: IdArray) -> Int64Array:
    """Return the order by query, cost and id, all (pairs,). Ids are compared only if costs tie.

    For costs see `costs_of`.
    """
    order = np.lexsort((costs, query_of))
    sorted_costs, sorted_query_of = costs[order], query_of[order]
    ties = (sorted_costs[1:] == sorted_costs[:-1]) & (sorted_query_of[1:] == sorted_query_of[:-1])
    return np.lexsort((ids, costs, query_of)) if ties.any() else order


def kth_costs(query_of: Int64Array, costs: Float32Array, queries: int, k: int) -> Float32Array:
    """Return the k-th smallest cost of each query, infinite where there are fewer. (queries,)."""
    counts = np.bincount(query_of, minlength=queries)
    ends = np.cumsum(counts)
    begins = ends - counts
    # numpy radix-sorts integers of one or two bytes.
    grouped = costs[np.argsort(query_of.astype(np.min_scalar_type(queries)), kind="stable")]
    enough = np.flatnonzero(counts >= k)
    for begin, end in zip(begins[enough].tolist(), ends[enough].tolist(), strict=True):
        grouped[begin:end].partition(k - 1)
    kth = np.full(queries, np.inf, np.float32)
    kth[enough] = grouped[begins[enough] + k - 1]
    return kth


class _Bounds:
    """Error bounds of the costs that a float32 product gives for some queries.

    With u = 2^-24, g = n u / (1 - n u) and n = dim + _ROUNDINGS, the error of a dot product of
    float32 vectors is at most g |q| |x|, in any order of summation (Higham, Accuracy and Stability
    of Numerical Algorithms, 2nd edition, section 3.1). The roundings beyond dim cover the norms,
    scaling, sums and the rounding of the score, so that rows of *equal score* stay together.
    Underflow adds up to 2^-150 for each operation.

    L2: the cost is |x|^2 - 2 q.x, the score without |q|^2. As 2 |q| |x| <= |q|^2 + |x|^2, its error
    is at most g |q|^2 + 2 g |x|^2. INNER_PRODUCT and COSINE: the cost is -q.x / |q|, its error at
    most g |x|. The row's term becomes an interval around its cost, the query's term is `slack`.
    """

    def __init__(self, metric: Metric, queries: Float32Array) -> None:
        exact = queries.astype(np.float64)
        squared = np.vecdot(exact, exact)
        dim = queries.shape[1]
        roundings = (dim + _ROUNDINGS) * _UNIT_ROUNDOFF
        self._metric = metric
        self._relative = roundings / (1 - roundings)
        self._underflow = (dim + _ROUNDINGS) * _UNDERFLOW
        self.slack: Float64Array
        """float64 (queries,): how far a cost may lie outside its row's interval."""
        self.directions: Float32Array
        """float32 (dim, queries): rows times this, plus `lowest` of `of_rows`, are costs."""
        if metric is Metric.L2:
            self.slack = self._relative * squared + self._underflow
            self.directions = (queries * np.float32(-2)).T
        else:
            norms = np.sqrt(squared)
            norms[norms == 0] = 1
            self.slack = self._underflow + _UNDERFLOW / norms
            self.directions = (exact / -norms[:, None]).astype(np.float32).T

    def of_rows(self, squared_norms: Float32Array) -> tuple[Float32Array, Float32Array]:
        """Return the offset from each row's product to its lowest possible cost, float32 (rows,),
        and the spread from there to its highest.
        """
        if self._metric is Metric.L2:
            off = (2 * self._relative) * squared_norms
            lowest = squared_norms - off
        else:
            # If the squared norm underflowed, this still bounds the norm of the row.
            off = self._relative * np.sqrt(squared_norms + self._underflow)
            lowest = -off
        return lowest, 2 * off

    def limits(self, highest_costs: Float32Array) -> Float32Array:
        """Return the limit that a row's lowest cost must stay below. float32 (queries,)."""
        limits = (highest_costs + 2 * self.slack).astype(np.float32)
        return np.nextafter(limits, np.float32(np.inf))


class _Scan:
    """One pass over a range of rows for a group of queries, and its pool of candidates."""

    def __init__(
        self,
        metric: Metric,
        queries: Float32Array,
        rows: Float32Array,
        squared_norms: Float32Array,
        k: int,
    ) -> None:
        self._metric = metric
        self._queries = queries
        self._rows = rows
        self._squared_norms = squared_norms
        self._k = k
        self._bounds = _Bounds(metric, queries)
        self._limits = np.full(len(queries), np.inf, np.float32)
        self._pool_limit = _POOL_PER_HIT * k * len(queries)
        self._lowest = np.empty(0, np.float32)  # of the pool's pairs
        self.pool = concatenate([])

    def scan(
        self, live: BoolArray | None, first: int, last: int, go_on: Callable[[], None]
    ) -> None:
        """Scan the rows of [first, last) block by block, calling `go_on` before each."""
        wanted = self._k * len(self._queries)
        block_rows = max(_BLOCK_ELEMENTS // len(self._queries), _GROUPS_PER_HIT * self._k)
        shape = (min(block_rows, last - first), len(self._queries))
        lowest, near = np.empty(shape, np.float32), np.empty(shape, np.bool_)
        for begin in range(first, last, block_rows):
            go_on()
            end = min(begin + block_rows, last)
            self._scan_block(
                begin,
                None if live is None else live[begin - first : end - first],
                lowest[: end - begin],
                near[: end - begin],
            )
            if len(self.pool) > self._pool_limit:
                self._prune()
                self._keep_the_best()
                self._pool_limit = max(self._pool_limit, 2 * len(self.pool))
        if len(self.pool) > _CROWD_PER_HIT * wanted:
            self._prune()

    def _scan_block(
        self, begin: int, live: BoolArray | None, lowest: Float32Array, near: BoolArray
    ) -> None:
        """Add to the pool the rows of a block, from `begin` on, that may be among the best.

        `lowest` and `near`, (rows, queries), are work space: allocating it for each block would
        cost as much as the product.
        """
        block = slice(begin, begin + len(lowest))
        lowest_of_row, spread_of_row = self._bounds.of_rows(self._squared_norms[block])
        if live is not None:
            lowest_of_row[~live] = np.inf
        # A row may be damaged, hidden or yet to be found: its products overflow and rank nowhere.
        with np.errstate(over="ignore", invalid="ignore"):
            np.matmul(self._rows[block], self._bounds.directions, out=lowest)
            lowest += lowest_of_row[:, None]
        np.less(lowest, self._limits, out=near)
        if np.count_nonzero(near) > _CROWD_PER_HIT * self._k * len(self._queries):
            # The block has more than k rows.
            self._lower_limits(_kth_of_block(lowest, spread_of_row, self._k))
            np.less(lowest, self._limits, out=near)
        flat = np.flatnonzero(near)
        at, query_of = np.divmod(flat, len(self._queries))
        self.pool = concatenate([self.pool, Candidates(query_of, at + begin)])
        self._lowest = np.concatenate([self._lowest, lowest.ravel()[flat]])

    def _lower_limits(self, highest_costs: Float32Array) -> None:
        self._limits = np.fmin(self._limits, self._bounds.limits(highest_costs))

    def _prune(self) -> None:
        """Lower the limits to the pool's k-th costs, and drop the candidates beyond them."""
        _, spread = self._bounds.of_rows(self._squared_norms[self.pool.row_of])
        highest = self._lowest + spread
        self._lower_limits(kth_costs(self.pool.query_of, highest, len(self._queries), self._k))
        self._keep(self._lowest < self._limits[self.pool.query_of])

    def _keep_the_best(self) -> None:
        """If the pool is still too large, score it exactly and keep the k best and ties."""
        if len(self.pool) <= self._pool_limit:
            return
        costs = costs_of(
            self._metric, exact_scores(self._metric, self._queries, self._rows, self.pool)
        )
        kth = kth_costs(self.pool.query_of, costs, len(self._queries), self._k)
        self._keep(costs <= kth[self.pool.query_of])

    def _keep(self, kept: BoolArray) -> None:
        self.pool = self.pool.where(kept)
        self._lowest = self._lowest[kept]


def _kth_of_block(lowest: Float32Array, spread: Float32Array, k: int) -> Float32Array:
    """Return for each query a cost that at least k rows of a block do not exceed. (queries,).

    The best rows of disjoint groups are distinct, so the k-th best of them suffices. It is little
    more than the k-th of all rows, and far cheaper to find.

    Parameters
    ----------
    lowest
        float32 (rows, queries): the lowest possible cost of each row. At least k rows.
    spread
        float32 (rows,): the difference to the highest possible cost.
    """
    rows, queries = lowest.shape
    groups = min(rows, _GROUPS_PER_HIT * k)
    grouped_rows = rows // groups * groups
    highest = np.fmin.reduce(lowest[:grouped_rows].reshape(-1, groups, queries), axis=0)
    highest += spread[:grouped_rows].reshape(-1, groups).max(axis=0)[:, None]
    kth: Float32Array = np.partition(highest.T, k - 1, axis=1)[:, k - 1]
    return kth
