"""Measure an index's recall: its answers beside an exact search of the rows that it holds. Pure.

What is measured are the index's proposals, at growing nprobe; `shard.index.calibration` makes
settings of
them. No clock and no collection enters here.
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
from vectorshard.shard.index.exact import costs_of, exact_scores, rank
from vectorshard.shard.index.ivf_index import IvfIndex, costs_that_tie, float32_costs
from vectorshard.shard.index.row_range import TrainingBuffer
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    Float32Array,
    IndexKind,
    Int32Array,
    Int64Array,
    Metric,
)

CALIBRATED_AT_ONCE: Final = 32
"""Queries of a calibration in one call of FAISS."""

NO_ROW: Final = -2
"""The row of a query that is none."""

NPROBES_A_LOOK: Final = 4
"""Ratio of the most to the fewest lists of which one search of an index tells. Of wider ones more
of the first candidates lie in lists that narrower searches do not probe."""

NPROBE_FIRST_LOOK: Final = 8

_NOWHERE: Final = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Truth:
    """What an exact search finds for some queries, up to the last of CALIBRATED_K.

    `limits` are the highest costs of a row that is as good as the 1st, 2nd .. best, float32
    (queries, k), infinite beyond the last; `hits` how many there are, int64 (queries,). Of `shards`
    shards is it one.
    """

    limits: Float32Array
    hits: Int64Array
    shards: int

    def ranks(self, costs: Float32Array) -> Int64Array:
        """Return how many true hits are better than each row, int64 (queries, n), by its cost."""
        pairs = zip(self.limits, costs, strict=True)
        return np.array(
            [np.searchsorted(limits, each) for limits, each in pairs], np.int64
        ).reshape(costs.shape)

    def places(self, ranks: Int64Array, proposed: BoolArray, k: int) -> Places:
        """Return where the k best rows stand among those proposed: `places_of`."""
        weights = merged_chances(k, self.shards)
        return places_of(ranks, proposed, np.minimum(self.hits, k), weights)


@dataclass(frozen=True, slots=True)
class Look:
    """A search of an index, which tells what searches of fewer of its lists would propose.

    They would propose the same rows in the same order, but for those of lists beyond theirs.
    `ranks`, int64 (queries, n), are in the order of the codes and say how many true hits are better
    than each row; `list_ranks`, int32 of that shape, where its list stands among those that are
    probed for its query.
    """

    nprobe: int
    ranks: Int64Array
    list_ranks: Int32Array


def truth_of(
    metric: Metric, held: TrainingBuffer, queries: Float32Array, own_rows: Int64Array, shards: int
) -> Truth:
    """Search `held` exactly, each query's own row left out of its answer.

    For the parameters see `measured_calibration`.
    """
    k = CALIBRATED_K[-1]
    candidates = held.propose(metric, queries, k + 1)
    others = candidates.where(candidates.row_of != own_rows[candidates.query_of])
    scores = exact_scores(metric, queries, held.vectors, others.at(held.positions))
    best = rank(metric, others, scores, lambda rows: rows, len(queries), k)
    counts = best.counts.astype(np.int64)
    _, end = held.positions.span(0, held.last)
    norms = np.full((len(queries), 1), held.squared_norms[:end].max(initial=0.0))
    costs = np.full((len(queries), k), np.inf, np.float32)
    costs[np.arange(k) < counts[:, None]] = costs_of(metric, best.scores)
    return Truth(costs_that_tie(metric, queries, costs, norms), counts, shards)


def found_of(
    metric: Metric,
    held: TrainingBuffer,
    queries: Float32Array,
    proposed: Int64Array,
    k: int,
    shards: int,
) -> tuple[float, float]:
    """Return how many of the queries' k best rows were proposed, and how many there are: weighed.

    Parameters
    ----------
    proposed
        int64 (queries, candidates): what the index proposed while it held exactly `held`.
    k
        One of CALIBRATED_K.
    shards
        Of how many shards the answers are merged: `shard.index.calibration.merged_chances`.
    """
    truth = truth_of(metric, held, queries, np.full(len(queries), NO_ROW), shards)
    older = _older(proposed, held.last)
    costs = float32_costs(metric, queries, held.positions.of_padded(older), held.vectors)
    places = truth.places(truth.ranks(costs), older >= 0, k)
    return min(float(places.weights.sum()), places.total), places.total


def measured_calibration(
    config: CollectionConfig,
    ivf: IvfIndex,
    held: TrainingBuffer,
    queries: Float32Array,
    own_rows: Int64Array,
    go_on: Callable[[], None],
    *,
    shards: int = 1,
    asking: Callable[[], AbstractContextManager[object]] = nullcontext,
    at_once: int = CALIBRATED_AT_ONCE,
) -> Calibration:
    """Return the settings that reach each target recall for these queries.

    Parameters
    ----------
    held
        Exactly the rows that the index holds, or held a moment ago: what it has absorbed since is
        passed over.
    queries
        float32 (queries, dim).
    own_rows
        int64 (queries,): the row that each query is, to be left out of its answer; NO_ROW for none.
    go_on
        Raises what ends the calibration, if it should end. Called before each search of the index.
    shards
        Of how many shards the answers are merged: `shard.index.calibration.merged_chances`.
    asking
        What a call of FAISS is made in: a lock, for an index that is in use.
    at_once
        Queries in one call of FAISS.
    """
    metric, k = config.metric, CALIBRATED_K[-1]
    truth = truth_of(metric, held, queries, own_rows, shards)
    compressed = config.index.kind is not IndexKind.IVF_FLAT
    proposals = min(CANDIDATES_MAX if compressed else k, max(1, ivf.rows))

    with asking():
        lists = ivf.lists_of_rows(held.last)

    def costs_and_list_ranks(nprobe: int, piece: slice) -> tuple[Float32Array, Int32Array]:
        go_on()
        asked = queries[piece]
        with asking():
            rows = ivf.nearest(asked, proposals + 1, nprobe, held.tombstones)
        rows = _older(without(rows, own_rows[piece]), held.last)
        costs = float32_costs(metric, asked, held.positions.of_padded(rows), held.vectors)
        ranks = np.take_along_axis(ivf.centroid_ranks(asked), lists[rows], axis=1)
        return costs, np.where(rows >= 0, ranks, _NOWHERE)

    def look(nprobe: int) -> Look:
        pieces = range(0, max(1, len(queries)), at_once)
        parts = [costs_and_list_ranks(nprobe, slice(piece, piece + at_once)) for piece in pieces]
        costs, list_ranks = zip(*parts, strict=True)
        return Look(nprobe, truth.ranks(np.concatenate(costs)), np.concatenate(list_ranks))

    last = look(min(NPROBE_FIRST_LOOK, ivf.nlist))

    def places_at(nprobe: int) -> Mapping[int, Places]:
        nonlocal last
        if nprobe > last.nprobe:
            last = look(min(nprobe * NPROBES_A_LOOK, ivf.nlist))
        proposed = last.list_ranks < nprobe
        return {each: truth.places(last.ranks, proposed, each) for each in CALIBRATED_K}

    rows_a_list, dim = ivf.rows / ivf.nlist, queries.shape[1]
    work_of = partial(work, rows_a_list=rows_a_list, code_bytes=ivf.code_bytes, dim=dim)
    return calibrate(places_at, ivf.nlist, work_of, compressed=compressed)


def without(rows: Int64Array, own_rows: Int64Array) -> Int64Array:
    """Return `rows` (queries, n) without each query's own, or else without its last: n - 1 each.

    `own_rows` is int64 (queries,), NO_ROW for a query that is no row.
    """
    kept = rows != own_rows[:, None]
    kept[kept.all(axis=1), -1] = False
    others: Int64Array = rows[kept].reshape(len(rows), rows.shape[1] - 1)
    return others


def _older(rows: Int64Array, last: int) -> Int64Array:
    """Return `rows` (queries, n) without those from `last` on; those behind them move up."""
    newer = rows >= last
    if not newer.any():
        return rows
    order = np.argsort(newer, axis=1, kind="stable")
    older: Int64Array = np.take_along_axis(np.where(newer, -1, rows), order, axis=1)
    return older
