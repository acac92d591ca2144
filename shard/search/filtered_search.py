"""Searches with a filter. Pure.

If few rows pass the filter, all of them are scored exactly. Otherwise the index is searched, and
the number of lists probed determines the recall, in two steps:

1. The k best passing rows are as far from the query as k / (share that passes) hits of all rows.
   So the search probes as many lists as it would for that many hits.
2. That suffices if the passing rows are spread evenly. If they are not (another language, another
   region of the space), the nearest of them are in lists further out. The centroid of a list with
   hits may lie further away than the k-th hit by a distance that is a property of the index. The
   shard measures it after each training, on its own rows, as the *margins*. Queries that have
   unprobed lists within the margin of their k-th hit are searched again, including those lists.

`python -m benchmarks --only filters` measures recall and cost.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    TARGETS,
    SearchParameters,
    calibrated_k,
)
from vectorshard.shard.index.exact import (
    Candidates,
    concatenate,
    costs_of,
    exact_candidates,
    exact_scores,
    kth_costs,
)
from vectorshard.shard.index.float32_kernels import shortlist
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.recall import exact_hits
from vectorshard.shard.index.row_range import SCORED_ONE_BY_ONE, RowRange
from vectorshard.shard.rows.filter_columns import packed_bits
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.search.search_plan import (
    Scan,
    SearchPlan,
    index_cost,
    plan_of,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import Effort, ExactReason, Float32Array, Int64Array, Metric

MARGIN_K: Final = CALIBRATED_K[0]  # hits for which margins are measured, at least
MARGIN_QUERIES: Final = 128  # rows that a shard uses as queries to measure its margins
REMEMBERED_FILTERS: Final = 16
REMEMBERED_ROWS_MAX: Final = 65_536  # with more rows, the search takes the time, not the filter

REMEMBERED_BYTES_MAX: Final = 1024 * 1024
"""Bytes of vectors copied for one filter: to read them from all over the row file takes longer than
to score them."""

_WIDENED: Final = 1.15  # of the lists for evenly spread rows; the calibration error
_SECOND_STEP: Final = 2.0  # average cost of both steps, relative to the first, on words
_LOST_HITS: Final = 2.0
"""Misses that the margins permit, relative to the target's. The first step alone finds most hits:
measured on words, with filters from independent to aligned with clusters, 0.95 becomes 0.955 to
0.97."""
_GATHERED_BYTES: Final = 4 * 1024 * 1024  # vectors copied at once: they fit the cache


_Seen: TypeAlias = tuple[int, int]
"""A commit, and the rows that were hidden after it: some may be found damaged between two."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """Contiguous copies of some rows: `vectors` (rows, dim), `squared_norms` (rows,)."""

    vectors: Float32Array
    squared_norms: Float32Array

    def candidates(self, metric: Metric, queries: Float32Array, k: int) -> Candidates:
        """Return a superset of the k best rows for each query, by their places in the copies."""
        rows = len(self.vectors)
        if rows and 0 < len(queries) <= SCORED_ONE_BY_ONE:
            places = np.tile(np.arange(rows), (len(queries), 1))
            return shortlist(metric, queries, places, k, self.vectors, self.squared_norms)
        return exact_candidates(metric, queries, self.vectors, self.squared_norms, None, 0, rows, k)


@dataclass(frozen=True, slots=True)
class PassingRows:
    """The visible rows that pass a filter: `rows` int64, ascending, and perhaps copies of them.

    `positions` maps rows to the shard's `vectors` (positions, dim) and `squared_norms`.
    """

    vectors: Float32Array
    squared_norms: Float32Array
    positions: RowMap
    rows: Int64Array
    copies: Gathered | None = None

    @classmethod
    def of(
        cls, snapshot: Snapshot, rows: Int64Array, copies: Gathered | None = None
    ) -> PassingRows:
        """Return these rows of a snapshot."""
        vectors = np.asarray(snapshot.vectors)  # indexing a memory map is slower
        return cls(vectors, snapshot.squared_norms, snapshot.positions, rows, copies)

    @property
    def live(self) -> int:
        """The number of rows."""
        return len(self.rows)

    def since(self, first: int) -> PassingRows:
        """Return the rows from `first` on."""
        return replace(self, rows=self.rows[np.searchsorted(self.rows, first) :], copies=None)

    def until(self, last: int) -> PassingRows:
        """Return the rows below `last`."""
        if not len(self.rows) or self.rows[-1] < last:
            return self
        return replace(self, rows=self.rows[: np.searchsorted(self.rows, last)], copies=None)

    def gathered(self, rows: Int64Array) -> Gathered:
        """Copy some of the rows."""
        at = self.positions.of(rows)
        return Gathered(self.vectors.take(at, axis=0), self.squared_norms[at])

    def candidates(
        self,
        metric: Metric,
        queries: Float32Array,
        k: int,
        go_on: Callable[[], None] = lambda: None,
    ) -> Candidates:
        """Return a superset of the k best rows for each query, including ties.

        `go_on` is called before each block of rows, and may raise.
        """
        if self.copies is not None:
            found = self.copies.candidates(metric, queries, k)
            return Candidates(found.query_of, self.rows[found.row_of])
        rows_at_once = max(1_024, _GATHERED_BYTES // (4 * self.vectors.shape[1]))
        parts = []
        for first in range(0, len(self.rows), rows_at_once):
            go_on()
            rows = self.rows[first : first + rows_at_once]
            found = self.gathered(rows).candidates(metric, queries, k)
            parts.append(Candidates(found.query_of, rows[found.row_of]))
        return concatenate(parts)


class RememberedFilters:
    """A cache of the rows that passed the last few filters, since searches often repeat filters.

    No filter passes all live rows: for few of them in a long row file.

    For few rows it holds copies of the vectors too. Thread-safe.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Filter | None, tuple[_Seen, Int64Array, Gathered | None]] = {}

    def forget(self) -> None:
        """Forget all, also what is being looked up: the filter columns were repaired."""
        self._found = {}

    def passing(self, snapshot: Snapshot, filter_: Filter | None) -> PassingRows:
        """Return the visible rows of a snapshot that pass a validated filter, if there is one."""
        remembered, seen = self._found, (snapshot.sequence, snapshot.hidden.count)
        found = remembered.get(filter_)
        if found is not None and found[0] == seen:
            return PassingRows.of(snapshot, *found[1:])
        if filter_ is None:
            rows = snapshot.hidden.live_rows(0, snapshot.rows)
        else:
            rows = snapshot.passing(filter_)
        passing = PassingRows.of(snapshot, rows)
        if len(rows) <= REMEMBERED_ROWS_MAX:
            copies = None
            if 4 * rows.size * passing.vectors.shape[1] <= REMEMBERED_BYTES_MAX:
                copies = passing.gathered(rows)
                passing = replace(passing, copies=copies)
            with self._lock:
                remembered.pop(filter_, None)
                if len(remembered) == REMEMBERED_FILTERS:
                    del remembered[next(iter(remembered))]
                remembered[filter_] = seen, rows, copies
        return passing


def filtered_plan(
    index: TrainedIndex | None,
    effort: Effort,
    target_recall: float,
    k: int,
    passing: PassingRows,
    indexed: int,
    few_rows_work: float,
) -> SearchPlan:
    """Return the plan of a search with a filter; `parameters` are those of the first step.

    Few passing rows are all scored, also if the caller chose an nprobe, which is not widened.

    Parameters
    ----------
    effort, target_recall, k
        As requested.
    indexed
        Passing rows that the index holds.
    few_rows_work
        See `EngineConfig`.
    """
    dim = passing.vectors.shape[1]
    scan = Scan(living=passing.live, rows=passing.live, dim=dim, scattered=passing.copies is None)
    plan = plan_of(index, effort, target_recall, k, scan, few_rows_work)
    parameters = plan.parameters
    if index is None or parameters is None:
        return plan
    if not passing.live:
        return SearchPlan(k=calibrated_k(k), scan=scan, reason=ExactReason.FEW_ROWS)
    steps = 1.0
    if not effort.nprobe:
        # Evenly spread, the k best of these are among the best k / share of those calibrated on.
        calibrated = min(index.calibrated_rows, index.ivf.rows)
        share = min(1.0, indexed / max(1, calibrated))
        nlist = index.ivf.nlist
        assert plan.growth is not None
        grown = float(plan.growth.nprobe(nlist, share))
        parameters = SearchParameters(
            min(math.ceil(_WIDENED * grown), nlist), plan.growth.candidates(share)
        )
        steps = _SECOND_STEP
    if scan.rows_cost <= steps * index_cost(index, parameters, dim):
        return SearchPlan(k=calibrated_k(k), scan=scan, reason=ExactReason.CHEAPER)
    return replace(plan, parameters=parameters)


def margin_for(index: TrainedIndex, effort: Effort, target_recall: float) -> float | None:
    """Return how much further than the k-th hit a list's centroid may lie; None: no second step."""
    if effort.nprobe or not index.filter_margins:
        return None
    wanted = effort.target_recall or target_recall
    for target, margin in zip(TARGETS, index.filter_margins, strict=True):
        if wanted <= target + 1e-6:
            return margin
    return index.filter_margins[-1]


def filtered_candidates(
    snapshot: Snapshot,
    index: TrainedIndex,
    metric: Metric,
    queries: Float32Array,
    k: int,
    parameters: SearchParameters,
    margin: float | None,
    passing: PassingRows,
    scan_cost: float = math.inf,
) -> tuple[Candidates, Int64Array]:
    """Return candidates among the passing rows, as `IvfIndex.proposed` does among all rows, and
    how many lists each query probed: int64 (queries,). -1: none and no candidates, because to score
    all passing rows is cheaper.

    They include the best of the calibrated number of hits, which is at least k: what a query finds
    must not depend on the k of others that it is joined with. Call it under the index's lock.

    Parameters
    ----------
    parameters, margin
        Of the first step, and of the second, which searches some queries again unless it is None.
    scan_cost
        The work to score all passing rows for a query: a second step that costs more is not made.
    """
    bits = packed_bits(passing.rows, snapshot.rows)
    wanted = max(calibrated_k(k), MARGIN_K)

    def search(chosen: Float32Array, nprobe: int) -> Candidates:
        return index.ivf.proposed(
            chosen,
            wanted,
            replace(parameters, nprobe=nprobe),
            snapshot.hidden,
            snapshot.vectors,
            snapshot.squared_norms,
            snapshot.positions,
            bits,
        ).candidates

    found = search(queries, parameters.nprobe)
    lists = np.full(len(queries), min(parameters.nprobe, index.ivf.nlist))
    if margin is None or parameters.nprobe == index.ivf.nlist:
        return found, lists
    needed = _lists_needed(snapshot, index, metric, queries, found, wanted, margin)
    parts = [found.where(needed[found.query_of] <= parameters.nprobe)]
    nprobe = parameters.nprobe
    while nprobe < index.ivf.nlist:
        least, nprobe = nprobe, min(2 * nprobe, index.ivf.nlist)
        again = np.flatnonzero((needed > least) & (needed <= nprobe))
        if len(again):
            step = replace(parameters, nprobe=nprobe)
            if index_cost(index, step, queries.shape[1]) > scan_cost:
                lists[again] = -1
                continue
            lists[again] = nprobe
            further = search(np.ascontiguousarray(queries[again]), nprobe)
            parts.append(Candidates(again[further.query_of], further.row_of))
    return concatenate(parts), lists


def _lists_needed(
    snapshot: Snapshot,
    index: TrainedIndex,
    metric: Metric,
    queries: Float32Array,
    found: Candidates,
    k: int,
    margin: float,
) -> Int64Array:
    """Return how many lists of each query lie within a margin of its k-th hit. int64 (queries,)."""
    scores = exact_scores(metric, queries, snapshot.vectors, found.at(snapshot.positions))
    kth = kth_costs(found.query_of, costs_of(metric, scores), len(queries), k)
    limits = remoteness(metric, queries, kth[:, None])[:, 0] + np.float32(margin)
    centroids = remoteness(metric, queries, costs_of(metric, index.ivf.centroid_scores(queries)))
    needed: Int64Array = np.count_nonzero(centroids <= limits[:, None], axis=1)
    return needed


def remoteness(metric: Metric, queries: Float32Array, costs: Float32Array) -> Float32Array:
    """Convert costs (queries, n) to a measure whose differences are comparable across queries.

    The distance under L2; otherwise the negated product with the query's direction. Infinite where
    a cost is.
    """
    if metric is Metric.L2:
        return np.sqrt(np.maximum(costs, 0))
    norms = np.sqrt(np.vecdot(queries, queries))
    norms[norms == 0] = 1
    remote: Float32Array = costs / norms[:, None]
    return remote


def measured_margins(
    metric: Metric,
    ivf: IvfIndex,
    held: RowRange,
    queries: Float32Array,
    own_rows: Int64Array,
) -> tuple[float, ...]:
    """Return how much further than the MARGIN_K-th hit the centroids of the hits' lists lie.

    One margin for each of TARGETS; the share of hits beyond it is `_LOST_HITS` times the target's
    misses.

    Parameters
    ----------
    held
        Exactly the rows in the index.
    queries
        float32 (queries, dim); at most MARGIN_QUERIES are used.
    own_rows
        int64 (queries,): the row of each query, excluded from its result with its copies.
    """
    queries, own_rows = queries[:MARGIN_QUERIES], own_rows[:MARGIN_QUERIES]
    hits, _ = exact_hits(metric, held, queries, own_rows, MARGIN_K)
    if not len(hits.rows):
        return ()
    query_of = np.repeat(np.arange(len(queries)), hits.counts)
    furthest = np.full(len(queries), -np.inf, np.float32)
    np.maximum.at(furthest, query_of, costs_of(metric, hits.scores))
    centroids = costs_of(metric, ivf.centroid_scores(queries))
    at = held.positions.of(hits.rows)
    lists = ivf.lists_of(np.asarray(held.vectors).take(at, axis=0))
    beyond = (
        remoteness(metric, queries, centroids)[query_of, lists]
        - remoteness(metric, queries, furthest[:, None])[query_of, 0]
    )
    shares = [max(0.0, 1 - _LOST_HITS * (1 - target)) for target in TARGETS]
    return tuple(np.quantile(beyond, shares).tolist())
