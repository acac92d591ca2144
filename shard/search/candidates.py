"""Candidate generation: what the index contributes to a search, and which rows are scanned. Pure.

Call it under the index's lock. Only while nothing is absorbed does the index hold exactly the rows
below the snapshot's `absorbed_until`.

No answer is short unless the caller chose an nprobe. The index may propose too few rows for a
query: because rows died, or because fast scan drops the rows whose codes score worst, in whatever
list. Such queries are scored exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import SearchParameters, calibrated_k
from vectorshard.shard.index.exact import NO_CANDIDATES, Candidates, concatenate
from vectorshard.shard.index.ivf_index import Probes, Proposed
from vectorshard.shard.index.occupancy import HOLE_CANDIDATES
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.search.filtered_search import (
    PassingRows,
    RememberedFilters,
    filtered_candidates,
    filtered_plan,
    margin_for,
)
from vectorshard.shard.search.search_plan import (
    QueryProbes,
    RememberedPlans,
    probes_of,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    ExactReason,
    FilterPlan,
    Float32Array,
    Int64Array,
    Metric,
    SearchRequest,
)

_NO_QUERIES: Final = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedCandidates:
    """Candidates from the index, and the rows that remain to be scanned exactly.

    `parameters` are those of the index search, with the largest nprobe of a query; None if the
    index was not searched. `nprobe_mean` is the mean nprobe. `exact_part` is scanned for all
    queries, `exact_rest` for those of `exact_queries`, int64, in place of the index. `reason` says
    why some, or all, were not answered by the index.
    """

    exact_part: RowRange | PassingRows
    parameters: SearchParameters | None = None
    from_index: Candidates = NO_CANDIDATES
    rows_passing: int = 0
    filter_plan: FilterPlan | None = None
    reason: ExactReason | None = None
    lacks_k: int = 0
    exact_rest: RowRange | PassingRows | None = None
    exact_queries: Int64Array = field(default_factory=lambda: _NO_QUERIES)
    queries_widened: int = 0
    nprobe_mean: float = 0.0

    def with_exact(
        self, metric: Metric, queries: Float32Array, k: int, go_on: Callable[[], None]
    ) -> Candidates:
        """Return all candidates of a search, after the exact scans that are left.

        `go_on` is called before each block of rows, and may raise.
        """
        parts = [self.from_index, self.exact_part.candidates(metric, queries, k, go_on)]
        if self.exact_rest is not None and len(self.exact_queries):
            rest = self.exact_rest.candidates(metric, queries[self.exact_queries], k, go_on)
            parts.append(Candidates(self.exact_queries[rest.query_of], rest.row_of))
        return concatenate(parts)


def generate_candidates(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    filters: RememberedFilters,
    plans: RememberedPlans,
) -> GeneratedCandidates:
    """Search the index, if the request uses it, and return the rows left to scan.

    Parameters
    ----------
    queries
        float32 (queries, dim): the request's, in the form that the collection stores.
    request
        Validated.
    filters, plans
        Of the collection.
    """
    if request.filter is not None:
        passing = filters.passing(snapshot, request.filter)
        return _generate_filtered(snapshot, config, queries, request, passing, plans.few_rows_work)
    plan = plans.of(snapshot, request.effort, config.target_recall, request.k)
    index, scattered = snapshot.index, plan.scan.scattered

    def below(last: int) -> RowRange | PassingRows:
        if scattered:
            return filters.passing(snapshot, None).until(last)
        return snapshot.between(0, last)

    if index is None or plan.parameters is None:
        return GeneratedCandidates(
            exact_part=below(snapshot.rows), reason=plan.reason, lacks_k=plan.lacks_k
        )
    search = _IndexSearch(snapshot, index, queries, request.k, plan.parameters)
    if not plan.widens:
        return search.answer(search.propose(queries, plan.parameters, enough=0).candidates)
    tombstones = snapshot.hidden
    if not plan.grows and index.ivf.is_even(tombstones):
        found = search.propose(queries, plan.parameters, enough=plan.k)
        if not len(found.short):
            return search.answer(found.candidates)
        asked, kept = found.short, without(found.candidates, found.short, len(queries))
        chosen = probes_of(index, plan, queries[asked], tombstones)
        again = chosen.widened & ~chosen.exact  # the others would be short in the same lists
    else:
        chosen = probes_of(index, plan, queries, tombstones)
        parameters = SearchParameters(plan.parameters.nprobe, chosen.candidates)
        search = _IndexSearch(snapshot, index, queries, request.k, parameters)
        if chosen.is_plain:
            found = search.propose(queries, search.parameters, chosen.probes, enough=plan.k)
            if not len(found.short):
                return search.answer(found.candidates, chosen.lists, chosen.widened)
        asked, kept = np.arange(len(queries)), concatenate([])
        again = ~chosen.exact
    return search.never_short(plan.k, asked, kept, chosen, again, below)


@dataclass(frozen=True, slots=True)
class _IndexSearch:
    """A search of the index without a filter, under its lock, and what it leaves to be scanned."""

    snapshot: Snapshot
    index: TrainedIndex
    queries: Float32Array
    k: int
    parameters: SearchParameters

    def propose(
        self,
        queries: Float32Array,
        parameters: SearchParameters,
        probes: Probes | None = None,
        *,
        enough: int,
    ) -> Proposed:
        snapshot = self.snapshot
        return self.index.ivf.proposed(
            queries,
            self.k,
            parameters,
            snapshot.hidden,
            snapshot.vectors,
            snapshot.squared_norms,
            snapshot.positions,
            probes=probes,
            enough=enough,
        )

    def answer(
        self,
        found: Candidates,
        lists: Int64Array | None = None,
        widened: BoolArray | None = None,
        *,
        in_hole: bool = False,
    ) -> GeneratedCandidates:
        """Return the answer of the index to its queries, each of which probed so many `lists`, by
        default as calibrated. `in_hole` says whether any of them lies in a hole.
        """
        nprobe = self.parameters.nprobe
        parameters, mean, wider = self.parameters, float(nprobe), 0
        if lists is not None:
            numbers = lists.tolist()  # of one query: quicker than an array
            candidates = self.parameters.candidates * (HOLE_CANDIDATES if in_hole else 1)
            parameters = SearchParameters(max(numbers, default=0), candidates)
            mean = sum(numbers) / max(1, len(numbers))
        if widened is not None:
            wider = sum(widened.tolist())
        return GeneratedCandidates(
            exact_part=self.snapshot.buffer,
            parameters=parameters,
            from_index=found,
            nprobe_mean=mean,
            queries_widened=wider,
        )

    def never_short(
        self,
        enough: int,
        asked: Int64Array,
        kept: Candidates,
        chosen: QueryProbes,
        again: BoolArray,
        below: Callable[[int], RowRange | PassingRows],
    ) -> GeneratedCandidates:
        """Search for some queries with an nprobe for each, and name those that are scored exactly.

        Whether a query has enough proposals is judged by the calibrated number of hits: it must not
        depend on the k of other queries that it is joined with.

        Parameters
        ----------
        enough
            That number.
        asked
            int64: the queries of `chosen`. `kept` are the candidates of all others.
        again
            Bool, which of these the index is searched for.
        below
            Returns the live rows below a row; called only if a query needs them.
        """
        parts, scanned = [kept], [asked[~again]]
        for part, candidates in ((~chosen.in_hole, 1), (chosen.in_hole, HOLE_CANDIDATES)):
            places = np.flatnonzero(again & part)
            if len(places):
                at, probes = asked[places], chosen.probes.of(places)
                wanted = candidates * self.parameters.candidates
                parameters = replace(self.parameters, candidates=wanted)
                found = self.propose(self.queries[at], parameters, probes, enough=enough)
                full = without(found.candidates, found.short, len(at))
                parts.append(Candidates(at[full.query_of], full.row_of))
                scanned.append(at[found.short])
        exact_queries = np.sort(np.concatenate(scanned))
        lists = np.full(len(self.queries), self.parameters.nprobe)
        lists[asked[again]] = chosen.lists[again]
        widened = np.zeros(len(self.queries), np.bool_)
        widened[asked] = chosen.widened
        by_index = np.ones(len(self.queries), np.bool_)
        by_index[exact_queries] = False
        only_cheaper = len(exact_queries) == np.count_nonzero(chosen.exact)
        reason = ExactReason.CHEAPER if only_cheaper else ExactReason.SHORT
        if not by_index.any():
            return GeneratedCandidates(exact_part=below(self.snapshot.rows), reason=reason)
        in_hole = bool((chosen.in_hole & by_index[asked]).any())
        answer = self.answer(
            concatenate(parts), lists[by_index], widened[by_index], in_hole=in_hole
        )
        if not len(exact_queries):
            return answer
        rest = below(self.snapshot.absorbed_until)
        return replace(answer, reason=reason, exact_rest=rest, exact_queries=exact_queries)


def without(found: Candidates, queries: Int64Array, total: int) -> Candidates:
    """Return the candidates of all but some of the `total` queries."""
    if not len(queries):
        return found
    kept = np.ones(total, np.bool_)
    kept[queries] = False
    return found.where(kept[found.query_of])


def _generate_filtered(
    snapshot: Snapshot,
    config: CollectionConfig,
    queries: Float32Array,
    request: SearchRequest,
    passing: PassingRows,
    few_rows_work: float,
) -> GeneratedCandidates:
    """Do the same for the rows that pass a filter; if they are few, scan all of them."""
    effort, target_recall, k = request.effort, config.target_recall, request.k
    index, held = snapshot.index, passing.until(snapshot.absorbed_until)
    plan = filtered_plan(index, effort, target_recall, k, passing, held.live, few_rows_work)
    if index is None or plan.parameters is None:
        return GeneratedCandidates(
            exact_part=passing,
            rows_passing=passing.live,
            filter_plan=FilterPlan.EXACT,
            reason=plan.reason,
            lacks_k=plan.lacks_k,
        )
    margin = margin_for(index, effort, target_recall)
    arguments = snapshot, index, config.metric, queries, k, plan.parameters, margin, passing
    found, lists = filtered_candidates(*arguments, plan.scan.rows_cost)
    scanned, short = lists < 0, np.zeros(len(queries), np.bool_)
    if plan.widens:
        enough = min(calibrated_k(k), held.live)
        short = np.bincount(found.query_of, minlength=len(queries)) < enough
    exact_queries, lists = np.flatnonzero(scanned | short), lists[~(scanned | short)]
    reason = ExactReason.SHORT if (short & ~scanned).any() else ExactReason.CHEAPER
    if not len(lists):
        return GeneratedCandidates(
            exact_part=passing,
            rows_passing=passing.live,
            filter_plan=FilterPlan.EXACT,
            reason=reason,
        )
    return GeneratedCandidates(
        exact_part=passing.since(snapshot.absorbed_until),
        parameters=replace(plan.parameters, nprobe=int(lists.max(initial=0))),
        from_index=without(found, exact_queries, len(queries)),
        rows_passing=passing.live,
        filter_plan=FilterPlan.INDEX,
        reason=reason if len(exact_queries) else None,
        exact_rest=held,
        exact_queries=exact_queries,
        nprobe_mean=float(lists.mean()),
    )
