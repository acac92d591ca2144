"""Measure the recall of an index against an exact search of the rows that it holds. Pure.

It measures the index's candidates at increasing nprobe; `shard.index.calibration` derives search
parameters from them. No clock and no collection enters here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    CANDIDATES_MAX,
    CANDIDATES_MAX_SMALL_K,
    Calibration,
    Reach,
    SearchParameters,
    calibrate,
    candidates_tried,
    hits_beyond,
    merged_chances,
    targets_reached,
    work,
)
from vectorshard.shard.index.calibration_sample import CalibrationQueries
from vectorshard.shard.index.exact import (
    Candidates,
    RankedRows,
    concatenate,
    costs_of,
    exact_scores,
    rank,
)
from vectorshard.shard.index.float32_kernels import costs_that_tie, float32_costs
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.merged_ties import Ties
from vectorshard.shard.index.own_rows import OwnRows, no_own_rows
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.types import (
    CollectionConfig,
    Float32Array,
    Float64Array,
    IndexKind,
    Int32Array,
    Int64Array,
    Metric,
)

CALIBRATED_AT_ONCE: Final = 32  # queries of a calibration in one call of FAISS

NPROBES_A_LOOK: Final = 4
"""The ratio of the largest to the smallest nprobe that one search of the index measures. In a wider
search, more of the first candidates come from lists that the narrow searches do not probe."""

NPROBE_FIRST_LOOK: Final = 8
_NOWHERE: Final = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth: the result of an exact search.

    `costs` are those of the 1st, 2nd .. best row, float32 (queries, k), infinite beyond the last.
    `hits` is their number, int64 (queries,). `shards` is the number of shards whose results are
    merged. `own` are rows that are no hits.
    """

    costs: Float32Array
    hits: Int64Array
    shards: int
    own: OwnRows = field(default_factory=no_own_rows)

    def ranks(self, costs: Float32Array) -> Int64Array:
        """Return the number of true hits better than each row, by cost. int64 (queries, n)."""
        pairs = zip(self.costs, costs, strict=True)
        return np.array([np.searchsorted(hits, each) for hits, each in pairs], np.int64).reshape(
            costs.shape
        )

    def costs_of(
        self, metric: Metric, held: RowRange, queries: Float32Array, rows: Int64Array, first: int
    ) -> Float32Array:
        """Return the costs of candidates; those of true hits are exact. float32, as `rows`.

        float32 kernels, which score the others, cannot tell near duplicates from each other: then
        nearly every candidate would count as a hit.

        Parameters
        ----------
        queries, first
            float32 (n, dim): those from the `first` on.
        rows
            int64 (n, candidates), padded with -1.
        """
        at = held.positions.of_padded(rows)
        costs = float32_costs(metric, queries, at, held.vectors)
        _, end = held.positions.span(0, held.last)
        norms = np.full((len(queries), 1), held.squared_norms[:end].max(initial=0.0))
        last = self.costs[first : first + len(queries), -1:]
        near = (costs <= costs_that_tie(metric, queries, last, norms)) & (rows >= 0)
        query_of, place = np.nonzero(near)
        pairs = Candidates(query_of, at[query_of, place])
        costs[query_of, place] = costs_of(
            metric, exact_scores(metric, queries, held.vectors, pairs)
        )
        return costs

    def found(self, ranks: Int64Array, list_ranks: Int32Array) -> FoundHits:
        """Return the true hits among the candidates; for the parameters see `FoundHits.of`."""
        ties = Ties.of(self.ranks(self.costs), self.hits)
        return FoundHits.of(ranks, list_ranks, self.hits, self.shards, ties)


@dataclass(frozen=True, slots=True)
class FoundHits:
    """The candidates of a search of the index that are true hits, by query and rank.

    Rows of equal score are interchangeable: any of them counts as a hit, and the first that is
    found of those at rank r counts as the r-th, the second as the next. (If each had the weight of
    rank r, a query among copies would count once for every copy.) Of crowds, `ties` says how many
    count: those of the last hit's score replace better rows that were missed.

    The arrays are (found,): the query of each, its place in the search of all lists, its rank, the
    rank of its list, and the place in these arrays where its query and rank begin. `list_ranks` is
    that of all candidates, int32 (queries, candidates).
    """

    query_of: Int64Array
    at: Int64Array
    ranks: Int64Array
    ranks_of_list: Int32Array
    begins: Int64Array
    list_ranks: Int32Array
    hits: Int64Array
    shards: int
    ties: Ties | None = None

    @classmethod
    def of(
        cls,
        ranks: Int64Array,
        list_ranks: Int32Array,
        hits: Int64Array,
        shards: int,
        ties: Ties | None = None,
    ) -> FoundHits:
        """Return those of a search, which also contains the searches with a smaller nprobe.

        They return the same candidates in the same order, without those in lists that they do not
        probe.

        Parameters
        ----------
        ranks
            int64 (queries, candidates), in the order of the codes: how many true hits are better.
        list_ranks
            int32 of that shape: the rank of the candidate's list for its query.
        hits, shards
            As in `Truth`.
        ties
            Crowds of the true hits; None if there are none.
        """
        query_of, at = np.nonzero(ranks < hits[:, None])
        rank_of = ranks[query_of, at]
        order = np.lexsort((rank_of, query_of))  # stable: by place among equals
        query_of, at, rank_of = query_of[order], at[order], rank_of[order]
        begins = np.ones(len(order), np.bool_)
        begins[1:] = (query_of[1:] != query_of[:-1]) | (rank_of[1:] != rank_of[:-1])
        starts = np.flatnonzero(begins)
        return cls(
            query_of=query_of,
            at=at,
            ranks=rank_of,
            ranks_of_list=list_ranks[query_of, at],
            begins=starts[np.cumsum(begins) - 1] if len(order) else starts,
            list_ranks=list_ranks,
            hits=hits,
            shards=shards,
            ties=ties,
        )

    def recalls(self, nprobe: int, tried_of_k: Mapping[int, Int64Array]) -> dict[int, Float64Array]:
        """Return the recall of each query at an nprobe.

        For each k of `tried_of_k`, float64 (queries, n), one column for each of its n numbers of
        candidates. Queries without true hits have a recall of 1.
        """
        retrieved = self.ranks_of_list < nprobe
        counted = np.cumsum(retrieved)
        before = np.concatenate([[0], counted])[self.begins]
        kept = np.flatnonzero(retrieved)
        ordinals = self.ranks[kept] + (counted[kept] - 1 - before[kept])
        query_of = self.query_of[kept]
        in_lists = np.cumsum(self.list_ranks < nprobe, axis=1, dtype=np.int32)
        places = in_lists[query_of, self.at[kept]].astype(np.int64)  # from 1
        found = {}
        for k, tried in tried_of_k.items():
            hits = np.minimum(self.hits, k)
            good = ordinals < hits[query_of]
            weights = merged_chances(k, self.shards)
            column = np.searchsorted(tried, places[good])
            cells = query_of[good] * (len(tried) + 1) + column
            shape = len(hits), len(tried) + 1
            sums = np.bincount(cells, weights[ordinals[good]], shape[0] * shape[1]).reshape(shape)
            total = np.concatenate([[0.0], np.cumsum(weights)])[hits][:, None]
            reached = np.cumsum(sums[:, :-1], axis=1, dtype=np.float64)
            recalls = np.ones_like(reached)
            np.divide(reached, total, out=recalls, where=total > 0)
            found[k] = np.minimum(recalls, 1.0)
            if self.ties is not None:
                crowded = np.unique(self.ties.query_of)
                of_these = np.isin(query_of, crowded)
                tied = self.ties.merged(k, self.shards).recalls(
                    query_of[of_these],
                    self.ranks[kept][of_these],
                    ordinals[of_these],
                    np.searchsorted(tried, places[of_these]),
                    len(tried),
                )
                found[k][crowded] = tied[crowded]
        return found


def exact_hits(
    metric: Metric, held: RowRange, queries: Float32Array, own_rows: Int64Array, k: int
) -> tuple[RankedRows, OwnRows]:
    """Search `held` exactly, without each query's own rows, and return these too.

    Equal scores rank by row.
    """
    candidates = held.candidates(metric, queries, k + 1)
    own = OwnRows.among(candidates, held, queries, own_rows)
    more = np.flatnonzero(own.counts > 1)
    if len(more):
        found = held.candidates(metric, queries[more], k + own.most)
        candidates = concatenate(
            [
                candidates.where(own.counts[candidates.query_of] <= 1),
                Candidates(more[found.query_of], found.row_of),
            ]
        )
    others = own.left_out_of(candidates)
    scores = exact_scores(metric, queries, held.vectors, others.at(held.positions))
    return rank(metric, others, scores, lambda rows: rows, len(queries), k), own


def truth_of(
    metric: Metric,
    held: RowRange,
    queries: Float32Array,
    own_rows: Int64Array,
    shards: int,
    k: int = CALIBRATED_K[-1],
) -> Truth:
    """Return the ground truth of an exact search of `held` for k hits.

    `queries` float32 (queries, dim) with their `own_rows` int64 (queries,), NO_ROW for none;
    `shards` as for `merged_chances`.
    """
    best, own = exact_hits(metric, held, queries, own_rows, k)
    counts = best.counts.astype(np.int64)
    costs = np.full((len(queries), k), np.inf, np.float32)
    costs[np.arange(k) < counts[:, None]] = costs_of(metric, best.scores)
    return Truth(costs, counts, shards, own)


def recalls_of(
    metric: Metric,
    held: RowRange,
    queries: Float32Array,
    candidates: Int64Array,
    truth: Truth,
) -> Float64Array:
    """Return the recall of each query for as many hits as the truth has. float64 (queries,).

    Parameters
    ----------
    candidates
        int64 (queries, candidates): from the index while it held exactly `held`.
    truth
        Of `held`.
    """
    older, are_own = truth.own.set_back(_older(candidates, held.last), 0)
    costs = truth.costs_of(metric, held, queries, older, 0)
    costs[are_own] = np.inf
    found = truth.found(truth.ranks(costs), np.where(older >= 0, 0, _NOWHERE).astype(np.int32))
    everything, k = np.array([candidates.shape[1]]), truth.costs.shape[1]
    return found.recalls(1, {k: everything})[k][:, 0]


@dataclass(frozen=True, slots=True)
class _Searches:
    """Searches of an index for the queries of a calibration; for the fields see there."""

    metric: Metric
    ivf: IvfIndex
    held: RowRange
    sample: CalibrationQueries
    truth: Truth
    candidates: int
    lists: Int32Array  # int32 (rows,): the list of each row
    locked: Callable[[], AbstractContextManager[object]]

    def costs_and_list_ranks(self, nprobe: int, piece: slice) -> tuple[Float32Array, Int32Array]:
        """Search for some queries: the costs and list ranks of the candidates."""
        queries, held, own = self.sample.vectors[piece], self.held, self.truth.own
        wanted = self.candidates + max(1, own.most)
        with self.locked():
            rows = self.ivf.nearest(queries, wanted, nprobe, held.tombstones)
        rows, is_own = own.set_back(_older(rows, held.last), piece.start)
        costs = self.truth.costs_of(self.metric, held, queries, rows, piece.start)
        costs[is_own] = np.inf
        ranks = np.take_along_axis(self.ivf.centroid_ranks(queries), self.lists[rows], axis=1)
        return costs, np.where(rows >= 0, ranks, _NOWHERE)


def measured_calibration(
    config: CollectionConfig,
    ivf: IvfIndex,
    held: RowRange,
    sample: CalibrationQueries,
    go_on: Callable[[], None],
    *,
    ks: Sequence[int] = CALIBRATED_K,
    shards: int = 1,
    locked: Callable[[], AbstractContextManager[object]] = nullcontext,
    at_once: int = CALIBRATED_AT_ONCE,
    candidate_price: float = 1.0,
) -> Calibration:
    """Return the search parameters that reach each target recall for each part of the sample.

    Parameters
    ----------
    held
        The rows in the index, now or a moment ago: rows absorbed since then are skipped.
    go_on
        Called before each search of the index. It may raise to end the calibration.
    ks
        The numbers of hits, ascending; `hits_beyond` the last are measured too.
    shards
        The number of shards whose results are merged: `merged_chances`.
    locked
        A context for each use of the index: its lock, if the index is in use.
    at_once
        Queries in one call of FAISS.
    """
    metric, queries = config.metric, sample.vectors
    ks = (*ks, hits_beyond(ks[-1]))
    truth = truth_of(metric, held, queries, sample.own_rows, shards, ks[-1])
    tried = _tried(ivf.kind, ks)
    with locked():
        lists = ivf.lists_of_rows(held.last)
    candidates = min(int(tried[ks[-1]][-1]), max(1, ivf.rows))
    searches = _Searches(metric, ivf, held, sample, truth, candidates, lists, locked)

    def look(nprobe: int) -> FoundHits:
        parts = []
        for begin in range(0, max(1, len(queries)), at_once):
            go_on()
            parts.append(searches.costs_and_list_ranks(nprobe, slice(begin, begin + at_once)))
        costs, list_ranks = zip(*parts, strict=True)
        return truth.found(truth.ranks(np.concatenate(costs)), np.concatenate(list_ranks))

    looked = min(NPROBE_FIRST_LOOK, ivf.nlist)
    found = look(looked)

    def reach_at(nprobe: int) -> Mapping[int, Reach]:
        nonlocal looked, found
        if nprobe > looked:
            looked = min(nprobe * NPROBES_A_LOOK, ivf.nlist)
            found = look(looked)
        recalls, more = found.recalls(nprobe, tried), truth.own.more_candidates(ivf.kind)
        return {k: _reach(sample, tried[k] + more, recalls[k], shards) for k in ks}

    work_of = _work_of(ivf, queries.shape[1], candidate_price)
    return replace(calibrate(reach_at, ivf.nlist, work_of, ks), candidate_price=candidate_price)


def _work_of(ivf: IvfIndex, dim: int, price: float) -> Callable[[SearchParameters], float]:
    rows_a_list, code_bytes = ivf.rows / ivf.nlist, ivf.code_bytes
    return lambda parameters: work(parameters, rows_a_list, code_bytes, dim, price)


def _tried(kind: IndexKind, ks: Sequence[int]) -> dict[int, Int64Array]:
    """Return the numbers of candidates to try for each k; IVF_FLAT ranks by exact scores."""
    if kind is IndexKind.IVF_FLAT:
        return {k: np.array([k]) for k in ks}
    most = CANDIDATES_MAX if ks[0] > CALIBRATED_K[-1] else CANDIDATES_MAX_SMALL_K
    return {k: candidates_tried(k, most) for k in ks}


def _reach(
    sample: CalibrationQueries, tried: Int64Array, recalls: Float64Array, shards: int
) -> Reach:
    """Return what the parts of a sample reach with each number of candidates.

    `recalls` is float64 (queries, candidates tried). The balanced part keeps no reserve: what is
    promised is promised for queries like the distinct rows. Of live queries the worst tenth is
    ignored, since random ones have no neighbors to find.
    """
    distinct, balanced, live = (recalls[part] for part in sample.parts)
    of_rows = np.minimum(
        targets_reached(distinct, shards),
        targets_reached(balanced, shards, reserve=False),
    )
    targets = np.minimum(of_rows, targets_reached(live, shards, worst=False))
    rows_first = distinct if len(distinct) else live
    return Reach(
        tried, targets, _mean(rows_first), _mean(balanced if len(balanced) else rows_first)
    )


def _mean(recalls: Float64Array) -> Float64Array:
    """Return the mean of the queries, 1 without queries. float64 (n,)."""
    mean: Float64Array = recalls.mean(axis=0) if len(recalls) else np.ones(recalls.shape[1])
    return mean


def _older(rows: Int64Array, last: int) -> Int64Array:
    """Return `rows` (queries, n) without those from `last` on, padded with -1 at the end."""
    newer = rows >= last
    if not newer.any():
        return rows
    order = np.argsort(newer, axis=1, kind="stable")
    older: Int64Array = np.take_along_axis(np.where(newer, -1, rows), order, axis=1)
    return older
