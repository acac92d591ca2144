"""Candidate generation: what the index contributes to a search, and which rows are scanned. Pure.

Call it under the index's lock. Only while nothing is absorbed does the index hold exactly the rows
below the snapshot's `absorbed_until`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.index.exact import Candidates, concatenate
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.search.filtered_search import (
    PassingRows,
    RememberedFilters,
    filtered_candidates,
    filtered_parameters,
    margin_for,
)
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import CollectionConfig, FilterPlan, Float32Array, SearchRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedCandidates:
    """Candidates from the index, and the rows that remain to be scanned exactly.

    `parameters` are those of the index search; None if the index was not searched.
    """

    exact_part: RowRange | PassingRows
    parameters: SearchParameters | None = None
    from_index: Candidates = field(default_factory=lambda: concatenate([]))
    rows_passing: int = 0
    filter_plan: FilterPlan | None = None


def generate_candidates(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    remembered: RememberedFilters,
) -> GeneratedCandidates:
    """Search the index, if the request uses it, and return the rows left to scan.

    Parameters
    ----------
    queries
        float32 (queries, dim): the request's, in the form that the collection stores.
    request
        Validated.
    remembered
        Of the collection.
    """
    if request.filter is not None:
        passing = remembered.passing(snapshot, request.filter)
        return _generate_filtered(snapshot, config, queries, request, passing)
    index, parameters = snapshot.index, None
    if index is not None:
        parameters = index.parameters_for(request.effort, config.target_recall, request.k)
    if index is None or parameters is None:
        return GeneratedCandidates(exact_part=snapshot.everything)
    return GeneratedCandidates(
        exact_part=snapshot.buffer,
        parameters=parameters,
        from_index=index.ivf.candidates(
            queries,
            request.k,
            parameters,
            snapshot.tombstones,
            snapshot.vectors,
            snapshot.squared_norms,
            snapshot.positions,
        ),
    )


def _generate_filtered(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    passing: PassingRows,
) -> GeneratedCandidates:
    """Do the same for the rows that pass a filter; if they are few, scan all of them."""
    effort, target_recall, k = request.effort, config.target_recall, request.k
    index, parameters = snapshot.index, None
    if index is not None:
        parameters = filtered_parameters(
            index, effort, target_recall, k, len(queries), passing, snapshot.live
        )
    if index is None or parameters is None:
        return GeneratedCandidates(
            exact_part=passing, rows_passing=passing.live, filter_plan=FilterPlan.EXACT
        )
    margin = margin_for(index, effort, target_recall)
    return GeneratedCandidates(
        exact_part=passing.since(snapshot.absorbed_until),
        parameters=parameters,
        from_index=filtered_candidates(
            snapshot, index, config.metric, queries, k, parameters, margin, passing
        ),
        rows_passing=passing.live,
        filter_plan=FilterPlan.INDEX,
    )
