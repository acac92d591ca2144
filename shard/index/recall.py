"""Measure the recall of an index against an exact search of the rows that it holds. Pure.

It measures the index's candidates at increasing nprobe; `shard.index.calibration` derives search
parameters from them. No clock and no collection enters here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    CANDIDATES_MAX,
    Calibration,
    Places,
    calibrate,
    merged_chances,
    places_of,
    work,
)
from vectorshard.shard.index.exact import RankedRows, costs_of, exact_scores, rank
from vectorshard.shard.index.float32_kernels import costs_that_tie, float32_costs
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    Float32Array,
    IndexKind,
    Int32Array,
    Int64Array,
    Metric,
)

CALIBRATED_AT_ONCE: Final = 32  # queries of a calibration in one call of FAISS
NO_ROW: Final = -2  # the own row of a query that is not a row

NPROBES_A_LOOK: Final = 4
"""The ratio of the largest to the smallest nprobe that one search of the index measures. In a wider
search, more of the first candidates come from lists that the narrow searches do not probe."""

NPROBE_FIRST_LOOK: Final = 8
_NOWHERE: Final = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Truth:
    """Ground truth: the result of an exact search, up to the last of CALIBRATED_K.

    `limits` are the highest costs of a row that is as good as the 1st, 2nd .. best, float32
    (queries, k), infinite beyond the last. `hits` is their number, int64 (queries,). `shards` is
    the number of shards whose results are merged.
    """

    limits: Float32Array
    hits: Int64Array
    shards: int

    def ranks(self, costs: Float32Array) -> Int64Array:
        """Return the number of true hits better than each row, by cost. int64 (queries, n)."""
        pairs = zip(self.limits, costs, strict=True)
        return np.array(
            [np.searchsorted(limits, each) for limits, each in pairs], np.int64
        ).reshape(costs.shape)

    def places(self, ranks: Int64Array, retrieved: BoolArray, k: int) -> Places:
        """Return the places of the k best rows among the candidates retrieved: `places_of`."""
        weights = merged_chances(k, self.shards)
        return places_of(ranks, retrieved, np.minimum(self.hits, k), weights)


@dataclass(frozen=True, slots=True)
class Look:
    """A search of an index, which also gives the results of searches with a smaller nprobe.

    They return the same candidates in the same order, without those in lists that they do not
    probe. `ranks`, int64 (queries, n), is the number of true hits better than each candidate, in
    the order of the codes. `list_ranks`, int32 of that shape, is the rank of the candidate's list
    for its query.
    """

    nprobe: int
    ranks: Int64Array
    list_ranks: Int32Array


def exact_hits(
    metric: Metric, held: RowRange, queries: Float32Array, own_rows: Int64Array, k: int
) -> RankedRows:
    """Search `held` exactly, excluding each query's own row. Equal scores rank by row."""
    candidates = held.candidates(metric, queries, k + 1)
    others = candidates.where(candidates.row_of != own_rows[candidates.query_of])
    scores = exact_scores(metric, queries, held.vectors, others.at(held.positions))
    return rank(metric, others, scores, lambda rows: rows, len(queries), k)


def truth_of(
    metric: Metric, held: RowRange, queries: Float32Array, own_rows: Int64Array, shards: int
) -> Truth:
    """Return the ground truth of an exact search of `held`.

    For the parameters see `measured_calibration`.
    """
    k = CALIBRATED_K[-1]
    best = exact_hits(metric, held, queries, own_rows, k)
    counts = best.counts.astype(np.int64)
    _, end = held.positions.span(0, held.last)
    norms = np.full((len(queries), 1), held.squared_norms[:end].max(initial=0.0))
    costs = np.full((len(queries), k), np.inf, np.float32)
    costs[np.arange(k) < counts[:, None]] = costs_of(metric, best.scores)
    return Truth(costs_that_tie(metric, queries, costs, norms), counts, shards)


def found_of(
    metric: Metric,
    held: RowRange,
    queries: Float32Array,
    candidates: Int64Array,
    k: int,
    shards: int,
) -> tuple[float, float]:
    """Return the weights of the queries' k best rows: of those among the candidates, and of all.

    Parameters
    ----------
    candidates
        int64 (queries, candidates): from the index while it held exactly `held`.
    k
        One of CALIBRATED_K.
    shards
        The number of shards whose results are merged: `merged_chances`.
    """
    truth = truth_of(metric, held, queries, np.full(len(queries), NO_ROW), shards)
    older = _older(candidates, held.last)
    costs = float32_costs(metric, queries, held.positions.of_padded(older), held.vectors)
    places = truth.places(truth.ranks(costs), older >= 0, k)
    return min(float(places.weights.sum()), places.total), places.total


@dataclass(frozen=True, slots=True)
class _Searches:
    """Searches of an index for the queries of a calibration; for the fields see there."""

    metric: Metric
    ivf: IvfIndex
    held: RowRange
    queries: Float32Array
    own_rows: Int64Array
    candidates: int
    lists: Int32Array  # int32 (rows,): the list of each row
    locked: Callable[[], AbstractContextManager[object]]

    def costs_and_list_ranks(self, nprobe: int, piece: slice) -> tuple[Float32Array, Int32Array]:
        """Search for some queries: the costs and list ranks of the candidates, as in `Look`."""
        queries, held = self.queries[piece], self.held
        with self.locked():
            rows = self.ivf.nearest(queries, self.candidates + 1, nprobe, held.tombstones)
        rows = _older(without(rows, self.own_rows[piece]), held.last)
        costs = float32_costs(self.metric, queries, held.positions.of_padded(rows), held.vectors)
        ranks = np.take_along_axis(self.ivf.centroid_ranks(queries), self.lists[rows], axis=1)
        return costs, np.where(rows >= 0, ranks, _NOWHERE)


def measured_calibration(
    config: CollectionConfig,
    ivf: IvfIndex,
    held: RowRange,
    queries: Float32Array,
    own_rows: Int64Array,
    go_on: Callable[[], None],
    *,
    shards: int = 1,
    locked: Callable[[], AbstractContextManager[object]] = nullcontext,
    at_once: int = CALIBRATED_AT_ONCE,
) -> Calibration:
    """Return the search parameters that reach each target recall for these queries.

    Parameters
    ----------
    held
        The rows in the index, now or a moment ago: rows absorbed since then are skipped.
    queries
        float32 (queries, dim).
    own_rows
        int64 (queries,): the row of each query, excluded from its result; NO_ROW for none.
    go_on
        Called before each search of the index. It may raise to end the calibration.
    shards
        The number of shards whose results are merged: `merged_chances`.
    locked
        A context for each use of the index: its lock, if the index is in use.
    at_once
        Queries in one call of FAISS.
    """
    metric, k = config.metric, CALIBRATED_K[-1]
    truth = truth_of(metric, held, queries, own_rows, shards)
    compressed = config.index.kind is not IndexKind.IVF_FLAT
    candidates = min(CANDIDATES_MAX if compressed else k, max(1, ivf.rows))
    with locked():
        lists = ivf.lists_of_rows(held.last)
    searches = _Searches(metric, ivf, held, queries, own_rows, candidates, lists, locked)

    def look(nprobe: int) -> Look:
        parts = []
        for begin in range(0, max(1, len(queries)), at_once):
            go_on()
            parts.append(searches.costs_and_list_ranks(nprobe, slice(begin, begin + at_once)))
        costs, list_ranks = zip(*parts, strict=True)
        return Look(nprobe, truth.ranks(np.concatenate(costs)), np.concatenate(list_ranks))

    last = look(min(NPROBE_FIRST_LOOK, ivf.nlist))

    def places_at(nprobe: int) -> Mapping[int, Places]:
        nonlocal last
        if nprobe > last.nprobe:
            last = look(min(nprobe * NPROBES_A_LOOK, ivf.nlist))
        retrieved = last.list_ranks < nprobe
        return {each: truth.places(last.ranks, retrieved, each) for each in CALIBRATED_K}

    rows_a_list, dim = ivf.rows / ivf.nlist, queries.shape[1]
    work_of = partial(work, rows_a_list=rows_a_list, code_bytes=ivf.code_bytes, dim=dim)
    return calibrate(places_at, ivf.nlist, work_of, compressed=compressed)


def without(rows: Int64Array, own_rows: Int64Array) -> Int64Array:
    """Return `rows` (queries, n) without each query's own row, else without its last: n - 1 each.

    `own_rows` is int64 (queries,), NO_ROW for a query that is not a row.
    """
    kept = rows != own_rows[:, None]
    kept[kept.all(axis=1), -1] = False
    others: Int64Array = rows[kept].reshape(len(rows), rows.shape[1] - 1)
    return others


def _older(rows: Int64Array, last: int) -> Int64Array:
    """Return `rows` (queries, n) without those from `last` on, padded with -1 at the end."""
    newer = rows >= last
    if not newer.any():
        return rows
    order = np.argsort(newer, axis=1, kind="stable")
    older: Int64Array = np.take_along_axis(np.where(newer, -1, rows), order, axis=1)
    return older
