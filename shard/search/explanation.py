"""Explain why a query finds, or does not find, a row: its place in the index and its rank. Pure.

Everything is measured rather than derived. The row's list is looked up, the index is searched for
the row's code among the candidates, and an exact search determines the rank.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from vectorshard.shard.descriptions import ExplainRequest, Explanation
from vectorshard.shard.index.calibration import CALIBRATED_K
from vectorshard.shard.index.exact import Candidates, costs_of, exact_scores
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import (
    CollectionConfig,
    Effort,
    Float32Array,
    IdArray,
    IndexKind,
    Int64Array,
    Metric,
)

ROWS_AT_ONCE: Final = 65_536  # scored at once: bounds the memory for a rank
_GROWTH: Final = 4  # of the candidates requested, until the row is among them


def looked_up(
    config: CollectionConfig, snapshot: Snapshot, request: ExplainRequest, row: int
) -> Explanation:
    """Explain an id, except for its shard and the fields that `ranked` adds.

    Call it while nothing is being added to the index.

    Parameters
    ----------
    request
        Validated.
    row
        The newest row of its id, dead or alive; -1 without one.

    Raises
    ------
    LookupError
        If the index should hold the row but does not.
    """
    if request.score is not None:
        return Explanation(score=request.score)
    if row < 0:
        return Explanation()
    if snapshot.tombstones.are_dead(np.array([row])).any():
        return Explanation(deleted=True)
    return explained(config, snapshot, np.asarray(request.query, np.float32), row)


def ranked(
    config: CollectionConfig,
    snapshot: Snapshot,
    request: ExplainRequest,
    row: int,
    found: Explanation,
) -> Explanation:
    """Add the rank, and whether the filter hides the row, to the result of `looked_up`."""
    if request.score is None and not found.exists:
        return found
    passes = request.filter is None or row in snapshot.passing(request.filter)
    query = np.asarray(request.query, np.float32)
    return replace(
        found,
        exact_rank=exact_rank(config.metric, snapshot, query, found.score, request.id),
        hidden_by_filter=found.exists and not passes,
    )


def explained(
    config: CollectionConfig, snapshot: Snapshot, query: Float32Array, row: int
) -> Explanation:
    """Explain where a live row is, and what a search needs to score it: see `looked_up`.

    `query` is float32 (1, dim), in the form that the collection stores.
    """
    score = float(scores_of(config.metric, snapshot, query, np.array([row]))[0])
    index = snapshot.index
    if index is None or row >= snapshot.absorbed_until:
        return Explanation(exists=True, buffered=True, score=score)
    list_ = index.ivf.list_of(row, snapshot.vectors_of(np.array([row])))
    nprobe = index.ivf.centroid_rank(query, list_)
    needed = candidates = 0
    if index.kind is not IndexKind.IVF_FLAT:
        k = CALIBRATED_K[0]
        parameters = index.parameters_for(Effort(nprobe=nprobe), config.target_recall, k)
        assert parameters is not None, "a search with an nprobe never scores all rows"
        candidates = max(k, parameters.candidates)
        needed = candidates_needed(index.ivf, query, row, nprobe, snapshot.hidden, candidates)
    return Explanation(
        exists=True,
        list=list_,
        centroid_rank=nprobe,
        nprobe_needed=nprobe if needed <= candidates else 0,
        score=score,
        candidates_needed=needed,
        candidates=candidates,
    )


def candidates_needed(
    ivf: IvfIndex,
    query: Float32Array,
    row: int,
    nprobe: int,
    tombstones: Tombstones,
    usual: int,
) -> int:
    """Return how many candidates a search of `nprobe` lists must take to include a row.

    More than all rows and than `usual` if no number suffices: the code scores worst, and fast scan
    drops it.

    The order of rows with equal codes depends on the number of candidates requested. So the first
    search takes the `usual` number, which makes it certain whether that suffices. Above it, the
    result is exact except for rows with equal codes.
    """
    too_few, wanted = 0, usual
    while True:
        (nearest,) = ivf.nearest(query, wanted, nprobe, tombstones)
        places = np.flatnonzero(nearest == row)
        if len(places):
            return max(int(places[0]), too_few) + 1
        if wanted >= ivf.rows:
            return max(ivf.rows, usual) + 1
        too_few, wanted = wanted, min(_GROWTH * wanted, ivf.rows)


def scores_of(
    metric: Metric, snapshot: Snapshot, query: Float32Array, rows: Int64Array
) -> Float32Array:
    """Return the exact scores of live rows (rows,) for one query (1, dim). float32 (rows,)."""
    pairs = Candidates(np.zeros(len(rows), np.int64), rows)
    return exact_scores(metric, query, snapshot.vectors, pairs.at(snapshot.positions))


def exact_rank(
    metric: Metric,
    snapshot: Snapshot,
    query: Float32Array,
    score: float,
    id_: IdArray,
) -> int:
    """Return the rank of a hit of this score and id (1,) among all live rows, from 1.

    It may be one of them. Equal scores rank by id. `query` is float32 (1, dim), in the form that
    the collection stores.
    """
    cost = costs_of(metric, np.array([score], np.float32))[0]
    before = 0
    for first in range(0, snapshot.rows, ROWS_AT_ONCE):
        rows = snapshot.hidden.live_rows(first, min(first + ROWS_AT_ONCE, snapshot.rows))
        costs = costs_of(metric, scores_of(metric, snapshot, query, rows))
        before += int(np.count_nonzero(costs < cost))
        tied = rows[costs == cost]
        if len(tied):
            before += int(np.count_nonzero(snapshot.ids_of(tied) < id_))
    return before + 1
