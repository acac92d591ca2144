"""Whom a search asks for candidates, and which rows are left to be scored beside them. Pure.

Call it under the index's lock: what the index holds is exactly the rows below the snapshot's
`absorbed_until` as long as nothing is absorbed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vectorshard.shard.index.calibration import Setting
from vectorshard.shard.index.exact import Candidates, concatenate
from vectorshard.shard.index.row_range import TrainingBuffer
from vectorshard.shard.search.filtered_search import (
    PassingRows,
    RememberedFilters,
    index_setting,
    margin_for,
    propose_passing,
)
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import CollectionConfig, FilterPlan, Float32Array, SearchRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposed:
    """Candidates of the index, and the rows that are to be scored beside them.

    `setting` says how the index was asked, None when it was not.
    """

    exact_part: TrainingBuffer | PassingRows
    setting: Setting | None = None
    of_index: Candidates = field(default_factory=lambda: concatenate([]))
    rows_passing: int = 0
    filter_plan: FilterPlan | None = None


def propose(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    remembered: RememberedFilters,
) -> Proposed:
    """Ask the index, if it is to be asked, and say what is left to score.

    Parameters
    ----------
    queries
        float32 (queries, dim): the request's, as the collection keeps vectors.
    request
        Admitted.
    remembered
        The collection's.
    """
    if request.filter is not None:
        passing = remembered.passing(snapshot, request.filter)
        return _propose_passing(snapshot, config, queries, request, passing)
    index, setting = snapshot.index, None
    if index is not None:
        setting = index.setting_for(request.effort, config.target_recall, request.k)
    if index is None or setting is None:
        return Proposed(exact_part=snapshot.everything)
    return Proposed(
        exact_part=snapshot.buffer,
        setting=setting,
        of_index=index.ivf.propose(
            queries,
            request.k,
            setting,
            snapshot.tombstones,
            snapshot.vectors,
            snapshot.squared_norms,
            snapshot.positions,
        ),
    )


def _propose_passing(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    passing: PassingRows,
) -> Proposed:
    """Do the same for the rows that pass a filter; where they are few, all are left to score."""
    effort, target_recall, k = request.effort, config.target_recall, request.k
    index, setting = snapshot.index, None
    if index is not None:
        setting = index_setting(
            index, effort, target_recall, k, len(queries), passing, snapshot.live
        )
    if index is None or setting is None:
        return Proposed(exact_part=passing, rows_passing=passing.live, filter_plan=FilterPlan.EXACT)
    margin = margin_for(index, effort, target_recall)
    return Proposed(
        exact_part=passing.since(snapshot.absorbed_until),
        setting=setting,
        of_index=propose_passing(
            snapshot, index, config.metric, queries, k, setting, margin, passing
        ),
        rows_passing=passing.live,
        filter_plan=FilterPlan.INDEX,
    )
