"""How a search finds the rows that pass a filter. Pure.

Few rows that pass are all scored exactly. With many, the index is searched for them, and twice over
the number of lists decides about the recall, not the number of hits:

1. The k best of a part of the rows lie as far from the query as more than k hits of all of them do,
   so the search probes as many lists as it would for k divided by that part.
2. That is enough where the rows that pass are spread evenly. Where they are not (another language,
   another region of the space) the nearest of them lie in lists further out. How much further than
   the k-th hit the centroid of a list may lie that still holds hits is a property of the index: the
   shard measures it after each training, on its own rows, as the *margins*. Queries with
   lists left within the margin of their k-th hit are searched again, with those lists too.

`python -m benchmarks --only filters` shows what it finds and what it costs.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import CALIBRATED_K, TARGETS, Setting, work
from vectorshard.shard.index.exact import (
    Candidates,
    concatenate,
    costs_of,
    exact_candidates,
    exact_scores,
    kth_costs,
    rank,
)
from vectorshard.shard.index.ivf_index import IvfIndex, shortlist
from vectorshard.shard.index.row_range import TrainingBuffer
from vectorshard.shard.rows.filter_columns import packed_bits
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import Effort, Float32Array, Int64Array, Metric

MARGIN_K: Final = CALIBRATED_K[0]
"""The hits by which margins are measured; a search for fewer is held to so many."""

MARGIN_QUERIES: Final = 128
"""Rows of its own by which a shard measures its margins."""

SCORED_ONE_BY_ONE: Final = 4
"""Queries up to which each is scored by itself; more are worth one product for all."""

REMEMBERED_FILTERS: Final = 16

REMEMBERED_ROWS_MAX: Final = 65_536
"""Rows beyond which it is the search that takes the time, not the filter."""

REMEMBERED_BYTES_MAX: Final = 1024 * 1024
"""Bytes of vectors that are copied for one filter: reading them from all over the row file takes
longer than scoring them."""

_WIDENED: Final = 1.15  # of the lists that evenly spread rows need; calibration is off by as much
_GROWTH_MAX: Final = 0.6  # exponent by which nprobe may grow with k, whatever two points say
_SECOND_STEP: Final = 1.5  # what both steps cost, on average, of what the first does
_LOST_HITS: Final = 2.0
"""The first of the two steps finds most hits alone, so that the margins may leave out twice as many
as the target allows: measured on words, with filters from independent to aligned with clusters,
0.95 becomes 0.955 to 0.97."""
_GATHERED_BYTES: Final = 4 * 1024 * 1024  # vectors copied at once: they stay in the cache


@dataclass(frozen=True, slots=True)
class Gathered:
    """Copies of some rows, one after the other: `vectors` (rows, dim), `squared_norms` (rows,)."""

    vectors: Float32Array
    squared_norms: Float32Array

    def propose(self, metric: Metric, queries: Float32Array, k: int) -> Candidates:
        """Return a superset of the k best of them for each query, by their places here."""
        rows = len(self.vectors)
        if rows and len(queries) <= SCORED_ONE_BY_ONE:
            places = np.tile(np.arange(rows), (len(queries), 1))
            return shortlist(metric, queries, places, k, self.vectors, self.squared_norms)
        return exact_candidates(metric, queries, self.vectors, self.squared_norms, None, 0, rows, k)


@dataclass(frozen=True, slots=True)
class PassingRows:
    """The live rows that pass a filter: `rows` int64, ascending, which lie at `positions` of a
    shard's `vectors` (positions, dim) and `squared_norms` (positions,); perhaps copies of them."""

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
        vectors = np.asarray(snapshot.vectors)  # a memory map's own indexing is slower
        return cls(vectors, snapshot.squared_norms, snapshot.positions, rows, copies)

    @property
    def live(self) -> int:
        """How many there are."""
        return len(self.rows)

    def since(self, first: int) -> PassingRows:
        """Return those from row `first` on."""
        return replace(self, rows=self.rows[np.searchsorted(self.rows, first) :], copies=None)

    def gathered(self, rows: Int64Array) -> Gathered:
        """Copy some of them."""
        at = self.positions.of(rows)
        return Gathered(self.vectors.take(at, axis=0), self.squared_norms[at])

    def propose(self, metric: Metric, queries: Float32Array, k: int) -> Candidates:
        """Return a superset of the k best of them for each query, ties included."""
        if self.copies is not None:
            found = self.copies.propose(metric, queries, k)
            return Candidates(found.query_of, self.rows[found.row_of])
        rows_at_once = max(1_024, _GATHERED_BYTES // (4 * self.vectors.shape[1]))
        parts = []
        for first in range(0, len(self.rows), rows_at_once):
            rows = self.rows[first : first + rows_at_once]
            found = self.gathered(rows).propose(metric, queries, k)
            parts.append(Candidates(found.query_of, rows[found.row_of]))
        return concatenate(parts)


class RememberedFilters:
    """The rows that passed the last few filters; searches tend to ask the same ones.

    Of few rows the vectors are remembered too. May be used by many threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[Filter, tuple[int, Int64Array, Gathered | None]] = {}

    def passing(self, snapshot: Snapshot, filter_: Filter) -> PassingRows:
        """Return the live rows of a snapshot that pass a filter that was admitted."""
        found = self._found.get(filter_)
        if found is not None and found[0] == snapshot.sequence:
            return PassingRows.of(snapshot, *found[1:])
        rows = snapshot.passing(filter_)
        passing = PassingRows.of(snapshot, rows)
        if len(rows) <= REMEMBERED_ROWS_MAX:
            copies = None
            if 4 * rows.size * passing.vectors.shape[1] <= REMEMBERED_BYTES_MAX:
                copies = passing.gathered(rows)
                passing = replace(passing, copies=copies)
            with self._lock:
                self._found.pop(filter_, None)
                if len(self._found) == REMEMBERED_FILTERS:
                    del self._found[next(iter(self._found))]
                self._found[filter_] = snapshot.sequence, rows, copies
        return passing


def index_setting(
    index: TrainedIndex,
    effort: Effort,
    target_recall: float,
    k: int,
    queries: int,
    passing: PassingRows,
    live: int,
) -> Setting | None:
    """Return how far the index is searched at first for rows that pass; None to score all of them.

    Parameters
    ----------
    effort, target_recall, k
        What is asked for. An nprobe is not widened.
    queries
        How many there are.
    live
        Rows of the shard, those that do not pass included.
    """
    setting = index.setting_for(effort, target_recall, k)
    if setting is None or not passing.live:
        return None
    if not effort.nprobe:
        growth = _growth_of_nprobe(index, effort, target_recall)
        nprobe = _WIDENED * setting.nprobe * (live / passing.live) ** growth
        setting = replace(setting, nprobe=min(math.ceil(nprobe), index.ivf.nlist))
    dim = passing.vectors.shape[1]
    rows_a_list = index.ivf.rows / index.ivf.nlist
    through_index = queries * work(setting, rows_a_list, index.ivf.code_bytes, dim)
    if not effort.nprobe:
        through_index *= _SECOND_STEP
    return None if exact_work(queries, passing.live, dim) <= through_index else setting


def exact_work(queries: int, rows: int, dim: int) -> float:
    """Return how much work it is to score some rows for all queries, in the units of `work`.

    Fitted as those are: to gather a row costs 40 ns and 0.5 ns a component, to score it for a query
    1 ns and 0.04 ns a component.
    """
    return rows * (40 + 0.5 * dim + queries * (1 + 0.04 * dim))


def _growth_of_nprobe(index: TrainedIndex, effort: Effort, target_recall: float) -> float:
    """Return the exponent by which nprobe grows with k, from the two k that are calibrated."""
    few, many = (index.setting_for(effort, target_recall, k) for k in CALIBRATED_K)
    if few is None or many is None:
        return _GROWTH_MAX
    growth = math.log(many.nprobe / few.nprobe) / math.log(CALIBRATED_K[1] / CALIBRATED_K[0])
    return min(max(growth, 0.0), _GROWTH_MAX)


def margin_for(index: TrainedIndex, effort: Effort, target_recall: float) -> float | None:
    """Return how much further than the k-th hit a list's centroid may lie; None: do not look."""
    if effort.nprobe or not index.filter_margins:
        return None
    wanted = effort.target_recall or target_recall
    for target, margin in zip(TARGETS, index.filter_margins, strict=True):
        if wanted <= target + 1e-6:
            return margin
    return index.filter_margins[-1]


def propose_passing(
    snapshot: Snapshot,
    index: TrainedIndex,
    metric: Metric,
    queries: Float32Array,
    k: int,
    setting: Setting,
    margin: float | None,
    passing: PassingRows,
) -> Candidates:
    """Propose rows that pass for each query, as `IvfIndex.propose` does of all rows.

    Call it under the index's lock.

    Parameters
    ----------
    setting
        How far the index is searched at first.
    margin
        Which queries are searched once more, and how far; None: none.
    """
    bits = packed_bits(passing.rows, snapshot.rows)
    wanted = max(k, MARGIN_K) if margin is not None else k

    def propose(chosen: Float32Array, nprobe: int) -> Candidates:
        return index.ivf.propose(
            chosen,
            wanted,
            replace(setting, nprobe=nprobe),
            snapshot.tombstones,
            snapshot.vectors,
            snapshot.squared_norms,
            snapshot.positions,
            bits,
        )

    found = propose(queries, setting.nprobe)
    if margin is None or setting.nprobe == index.ivf.nlist:
        return found
    scores = exact_scores(metric, queries, snapshot.vectors, found.at(snapshot.positions))
    kth = kth_costs(found.query_of, costs_of(metric, scores), len(queries), wanted)
    limits = remoteness(metric, queries, kth[:, None])[:, 0] + np.float32(margin)
    centroids = remoteness(metric, queries, costs_of(metric, index.ivf.centroid_scores(queries)))
    needed = np.count_nonzero(centroids <= limits[:, None], axis=1)
    parts = [found.where(needed[found.query_of] <= setting.nprobe)]
    nprobe = setting.nprobe
    while nprobe < index.ivf.nlist:
        least, nprobe = nprobe, min(2 * nprobe, index.ivf.nlist)
        again = np.flatnonzero((needed > least) & (needed <= nprobe))
        if len(again):
            further = propose(np.ascontiguousarray(queries[again]), nprobe)
            parts.append(Candidates(again[further.query_of], further.row_of))
    return concatenate(parts)


def remoteness(metric: Metric, queries: Float32Array, costs: Float32Array) -> Float32Array:
    """Return how far costs (queries, n) lie out, by a measure whose differences compare.

    The distance under L2; otherwise the product with the query's direction, turned so that less
    is nearer. Infinite where a cost is.
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
    held: TrainingBuffer,
    queries: Float32Array,
    own_rows: Int64Array,
) -> tuple[float, ...]:
    """Return how much further than the MARGIN_K-th hit the centroids of the hits' lists lie.

    For each of TARGETS: so far that as many hits are within it as `_LOST_HITS` says.

    Parameters
    ----------
    held
        Exactly the rows that the index holds.
    queries
        float32 (queries, dim): at most MARGIN_QUERIES of them are used.
    own_rows
        int64 (queries,): the row that each query is, to be left out of its answer.
    """
    queries, own_rows = queries[:MARGIN_QUERIES], own_rows[:MARGIN_QUERIES]
    candidates = held.propose(metric, queries, MARGIN_K + 1)
    others = candidates.where(candidates.row_of != own_rows[candidates.query_of])
    scores = exact_scores(metric, queries, held.vectors, others.at(held.positions))
    hits = rank(metric, others, scores, lambda rows: rows, len(queries), MARGIN_K)
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
