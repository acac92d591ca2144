"""Why a query does or does not find a row: where the index keeps it, and how it ranks. Pure.

Nothing here is derived from what should be so: the list that holds the row is looked up, the index
is asked whether a search takes the row's code as a candidate, and the rank is that of an exact
search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from shard.calibration import CALIBRATED_K
from shard.exact import Candidates, costs_of, exact_scores
from shard.ivf_index import IvfIndex
from shard.snapshot import Snapshot
from shard.tombstones import Tombstones
from shard.types import (
    CollectionConfig,
    Effort,
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


def explained(
    config: CollectionConfig, snapshot: Snapshot, query: Float32Array, row: int
) -> Explanation:
    """Say where a live row is, and what a search must do to score it; its rank is not said.

    Call it while the index is not being added to.

    Parameters
    ----------
    query
        float32 (1, dim), as searches admit it.

    Raises
    ------
    LookupError
        If the index has lost the row.
    """
    score = float(score_of(config.metric, snapshot.vectors, query, row))
    index = snapshot.index
    if index is None or row >= snapshot.absorbed_until:
        return Explanation(exists=True, buffered=True, score=score)
    list_ = index.ivf.list_of(row, np.asarray(snapshot.vectors[row]))
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


def score_of(metric: Metric, vectors: Float32Array, query: Float32Array, row: int) -> np.float32:
    """Return the exact score of one row for one query (1, dim)."""
    pair = Candidates(np.zeros(1, np.int64), np.array([row]))
    score: np.float32 = exact_scores(metric, query, vectors, pair)[0]
    return score


def exact_rank(
    metric: Metric,
    snapshot: Snapshot,
    query: Float32Array,
    score: float,
    id_: IdArray,
    ids_of: Callable[[Int64Array], IdArray],
) -> int:
    """Return where a hit of this score and id (1,) ranks among all live rows, from 1.

    It may be one of them. Equal scores rank by id.

    Parameters
    ----------
    query
        float32 (1, dim), as searches admit it.
    ids_of
        rows int64 (n,) -> ids (n,); asked of the rows that tie with the score.
    """
    cost = costs_of(metric, np.array([score], np.float32))[0]
    before = 0
    for first in range(0, snapshot.rows, ROWS_AT_ONCE):
        rows = snapshot.tombstones.live_rows(first, min(first + ROWS_AT_ONCE, snapshot.rows))
        pairs = Candidates(np.zeros(len(rows), np.int64), rows)
        costs = costs_of(metric, exact_scores(metric, query, snapshot.vectors, pairs))
        before += int(np.count_nonzero(costs < cost))
        tied = rows[costs == cost]
        if len(tied):
            before += int(np.count_nonzero(ids_of(tied) < id_))
    return before + 1
