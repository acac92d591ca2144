"""Why a query does or does not find a row: where the index keeps it, and how it ranks. Pure.

Nothing here is derived from what should be so: the list that holds the row is looked up, the index
is asked whether a search takes the row's code as a candidate, and the rank is that of an exact
search.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import CALIBRATED_K
from vectorshard.shard.index.exact import Candidates, costs_of, exact_scores
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import (
    CollectionConfig,
    Effort,
    ExplainRequest,
    Explanation,
    Float32Array,
    IdArray,
    IndexKind,
    Int64Array,
    Metric,
)

ROWS_AT_ONCE: Final = 65_536
"""Rows that are scored at once: the memory that a rank takes does not grow with the rows."""

_GROWTH: Final = 4  # of the candidates asked for, until the row is among them


def looked_up(
    config: CollectionConfig, snapshot: Snapshot, request: ExplainRequest, row: int
) -> Explanation:
    """Say all of an id but its shard and what `ranked` says.

    Call it while the index is not being added to.

    Parameters
    ----------
    request
        Admitted.
    row
        The newest row of its id, dead or alive; -1 if there is none.

    Raises
    ------
    LookupError
        If the index has lost the row.
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
    """Add to what `looked_up` found the rank and whether the filter hides the row."""
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
    """Say where a live row is, and what a search must do to score it: see `looked_up`.

    `query` is float32 (1, dim), as searches admit it.
    """
    score = float(scores_of(config.metric, snapshot, query, np.array([row]))[0])
    index = snapshot.index
    if index is None or row >= snapshot.absorbed_until:
        return Explanation(exists=True, buffered=True, score=score)
    list_ = index.ivf.list_of(row, snapshot.vectors_of(np.array([row])))
    nprobe = index.ivf.centroid_rank(query, list_)
    needed = candidates = 0
    if config.index.kind is not IndexKind.IVF_FLAT:
        k = CALIBRATED_K[0]
        setting = index.setting_for(Effort(nprobe=nprobe), config.target_recall, k)
        assert setting is not None, "a search that states its nprobe never scores all rows"
        candidates = max(k, setting.candidates)
        needed = candidates_needed(index.ivf, query, row, nprobe, snapshot.tombstones, candidates)
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
    """Return how many candidates a search of `nprobe` lists must take to take a row of them.

    Of rows whose codes look alike any may come first, depending on how many are asked for. So the
    first look is the very search that takes the `usual` number: whether that many are enough is
    certain, and beyond them the answer is exact but for such rows.

    Raises
    ------
    LookupError
        If the lists do not hold the row.
    """
    too_few, wanted = 0, usual
    while True:
        (nearest,) = ivf.nearest(query, wanted, nprobe, tombstones)
        places = np.flatnonzero(nearest == row)
        if len(places):
            return max(int(places[0]), too_few) + 1
        if wanted >= ivf.rows:
            raise LookupError(f"the {nprobe} nearest inverted lists do not propose row {row}")
        too_few, wanted = wanted, min(_GROWTH * wanted, ivf.rows)


def scores_of(
    metric: Metric, snapshot: Snapshot, query: Float32Array, rows: Int64Array
) -> Float32Array:
    """Return the exact scores of rows (rows,) that live for one query (1, dim). float32 (rows,)."""
    pairs = Candidates(np.zeros(len(rows), np.int64), rows)
    return exact_scores(metric, query, snapshot.vectors, pairs.at(snapshot.positions))


def exact_rank(
    metric: Metric,
    snapshot: Snapshot,
    query: Float32Array,
    score: float,
    id_: IdArray,
) -> int:
    """Return where a hit of this score and id (1,) ranks among all live rows, from 1.

    It may be one of them. Equal scores rank by id.

    Parameters
    ----------
    query
        float32 (1, dim), as searches admit it.
    """
    cost = costs_of(metric, np.array([score], np.float32))[0]
    before = 0
    for first in range(0, snapshot.rows, ROWS_AT_ONCE):
        rows = snapshot.tombstones.live_rows(first, min(first + ROWS_AT_ONCE, snapshot.rows))
        costs = costs_of(metric, scores_of(metric, snapshot, query, rows))
        before += int(np.count_nonzero(costs < cost))
        tied = rows[costs == cost]
        if len(tied):
            before += int(np.count_nonzero(snapshot.ids_of(tied) < id_))
    return before + 1
