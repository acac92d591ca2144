"""Measure an index's recall: its answers beside an exact search of the rows that it holds. Pure.

What is measured are the index's proposals at growing nprobe; `shard.calibration` makes settings of
them. No clock and no collection enters here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import numpy as np

from shard.calibration import CALIBRATED_K, CANDIDATES_MAX, Calibration, calibrate, places_of, work
from shard.exact import RankedRows, costs_of, exact_scores, rank
from shard.ivf_index import IvfIndex, costs_that_tie, float32_costs
from shard.training_buffer import TrainingBuffer
from shard.types import CollectionConfig, Float32Array, IndexKind, Int64Array, Metric

CALIBRATED_AT_ONCE: Final = 32
"""Queries of a calibration in one call of FAISS."""


def measured_calibration(
    config: CollectionConfig,
    ivf: IvfIndex,
    held: TrainingBuffer,
    queries: Float32Array,
    own_rows: Int64Array,
    go_on: Callable[[], None],
) -> Calibration:
    """Return the settings that reach each target recall for these queries.

    Parameters
    ----------
    held
        Exactly the rows that the index holds.
    queries
        float32 (queries, dim).
    own_rows
        int64 (queries,): the row that each query is, to be left out of its answer; -2 for none.
    """
    metric, k = config.metric, CALIBRATED_K[-1]
    candidates = held.propose(metric, queries, k + 1)
    others = candidates.where(candidates.row_of != own_rows[candidates.query_of])
    scores = exact_scores(metric, queries, held.vectors, held.positions.placed(others))
    best = rank(metric, others, scores, lambda rows: rows, len(queries), k)
    counts = best.counts.astype(np.int64)
    _, end = held.positions.span(0, held.last)
    norms = np.full((len(queries), 1), held.squared_norms[:end].max(initial=0.0))
    hits_of_k = {each: np.minimum(counts, each) for each in CALIBRATED_K}
    limits_of_k = {
        each: costs_that_tie(metric, queries, _last_costs(metric, best, hits), norms)[:, 0]
        for each, hits in hits_of_k.items()
    }
    compressed = config.index.kind is not IndexKind.IVF_FLAT
    proposals = min(CANDIDATES_MAX if compressed else k, max(1, ivf.rows))

    def costs_at(nprobe: int, piece: slice) -> Float32Array:
        rows = ivf.nearest(queries[piece], proposals + 1, nprobe, held.tombstones)
        rows = without(rows, own_rows[piece])
        return float32_costs(metric, queries[piece], held.positions.of_padded(rows), held.vectors)

    def places_at(nprobe: int) -> Mapping[int, Int64Array]:
        go_on()
        pieces = range(0, max(1, len(queries)), CALIBRATED_AT_ONCE)
        costs = np.concatenate(
            [costs_at(nprobe, slice(piece, piece + CALIBRATED_AT_ONCE)) for piece in pieces]
        )
        return {
            each: places_of(costs, limits_of_k[each], hits_of_k[each], each)
            for each in CALIBRATED_K
        }

    rows_a_list, dim = ivf.rows / ivf.nlist, queries.shape[1]
    work_of = partial(work, rows_a_list=rows_a_list, code_bytes=ivf.code_bytes, dim=dim)
    return calibrate(places_at, ivf.nlist, work_of, compressed=compressed)


def without(rows: Int64Array, own_rows: Int64Array) -> Int64Array:
    """Return `rows` (queries, n) without each query's own, or else without its last: n - 1 each.

    `own_rows` is int64 (queries,), -2 for a query that is no row.
    """
    kept = rows != own_rows[:, None]
    kept[kept.all(axis=1), -1] = False
    others: Int64Array = rows[kept].reshape(len(rows), rows.shape[1] - 1)
    return others


def _last_costs(metric: Metric, best: RankedRows, hits: Int64Array) -> Float32Array:
    """Return the cost of each query's hit number `hits` (queries,); infinite for 0. (queries, 1)"""
    begins = np.cumsum(best.counts, dtype=np.int64) - best.counts
    costs = np.append(costs_of(metric, best.scores), np.float32(np.inf))
    return costs[np.where(hits > 0, begins + hits - 1, -1)][:, None]
