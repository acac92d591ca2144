"""The plan of a search: score rows exactly, or search the index, and which lists. Pure.

The choice depends on the rows, the dim, k and the calibration, and never on how many queries come
together: a batch must answer as its queries do one by one. It compares the work of both for
ASSUMED_QUERIES at once.

A query that would see fewer rows than the calibration assumed, because rows were deleted, probes
more lists. Where that costs more than to score all rows, they are scored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeVar

import numpy as np

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    LARGE_K,
    SearchParameters,
    calibrated_k,
    work,
)
from vectorshard.shard.index.growth import Growth, probed_odds
from vectorshard.shard.index.ivf_index import Probes
from vectorshard.shard.index.occupancy import (
    HOLE_CANDIDATES,
    Occupancy,
    Wanted,
    Widths,
    lists_ranked_first,
    widths,
)
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import (
    BoolArray,
    Effort,
    ExactReason,
    Float32Array,
    Float64Array,
    Int64Array,
)

ASSUMED_QUERIES: Final = 16
"""The queries for which an exact scan and the index are compared. Alone, a query is up to a third
slower than by the other choice; with 64 at once, up to 2.4 times."""

_SCATTERED: Final = 3
"""Positions of the row file for each live row from which on the live rows are gathered instead of
scanned among the dead ones."""

GROWTH_MAX: Final = 0.6  # largest exponent by which the odds of nprobe grow with k

_DEAD_UNCALIBRATED: Final = 0.2
"""With a larger share of dead rows, a search needs the calibration for k / share hits, although
that is one of LARGE_K. With a smaller one, what `hits_beyond` measures suffices."""

_REMEMBERED_PLANS: Final = 64
_HIT_COST: Final = 170
"""Of scoring and ranking one hit, in the units of `work`. _INDEX_COST covers up to 100 of them, for
which it was fitted; more cost the index as much as they cost an exact scan."""

_INDEX_COST: Final = 1.2  # of a search by the index, in the units of `work`


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """An exact scan: the `living` rows that it must score, and the `rows` that it reads.

    `scattered` says whether it gathers the living rows before it scores them.
    """

    living: int
    rows: int
    dim: int
    scattered: bool = False

    @classmethod
    def of(cls, snapshot: Snapshot) -> Scan:
        """Return the scan of all visible rows of a snapshot."""
        living = snapshot.visible
        positions, dim = snapshot.vectors.shape
        scattered = _SCATTERED * living <= positions
        rows = living if scattered else positions
        return cls(living=living, rows=rows, dim=dim, scattered=scattered)

    def cost(self, k: int) -> float:
        """Return its work for one of ASSUMED_QUERIES, in the units of `work`.

        Fitted to 70 searches of 16 queries for 10 and 100 hits among 300 to 30,000 rows of d = 8 to
        1,536, in which the choice costs at most a sixth more than the best.
        """
        return 1_500 + _HIT_COST * k + self.rows_cost

    @property
    def rows_cost(self) -> float:
        """The part of the cost that grows with the rows."""
        scored = self.rows * (1.95 + 0.04 * self.dim)
        gathered = self.rows * (40 + 0.5 * self.dim) / ASSUMED_QUERIES if self.scattered else 0
        return scored + gathered


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How to search: `parameters` of the index, or None with the reason to score every row.

    `lacks_k` is a number of hits for which the index must be calibrated before it can answer; 0 if
    none. `widens` says whether queries may probe more lists, and be scored exactly if that finds
    too few rows: not if the caller chose an nprobe. `k` is the calibrated number of hits, which
    each query must find as far as there are so many. `scan` answers it otherwise. `growth` says
    what is searched where fewer rows live than at the calibration; None without parameters.
    `grows` says whether that is much more although no list lost much.
    """

    k: int
    scan: Scan
    parameters: SearchParameters | None = None
    reason: ExactReason | None = None
    lacks_k: int = 0
    widens: bool = True
    growth: Growth | None = None
    grows: bool = False


def plan_of(
    index: TrainedIndex | None,
    effort: Effort,
    target_recall: float,
    k: int,
    scan: Scan,
    few_rows_work: float,
    share: float = 1.0,
) -> SearchPlan:
    """Return the plan of a search.

    Parameters
    ----------
    effort, target_recall, k
        As requested.
    scan
        The exact scan that answers it otherwise.
    few_rows_work
        See `EngineConfig`.
    share
        Of the rows of the calibration, those that live: the k best are among the best k / share.
    """
    hits = calibrated_k(k)
    if effort.exact:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.REQUESTED)
    if index is None:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.NO_INDEX)
    parameters = index.parameters_for(effort, target_recall, k)
    if effort.nprobe:
        return SearchPlan(k=hits, scan=scan, parameters=parameters, widens=False)
    if scan.living * (scan.dim + 80) <= few_rows_work:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.FEW_ROWS)
    if index.calibration.lacks(k):
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.UNCALIBRATED, lacks_k=k)
    if parameters is None:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.NO_PARAMETERS)
    many_hits = _HIT_COST * max(0, hits - CALIBRATED_K[-1])
    by_index = index_cost(index, parameters, scan.dim) + many_hits
    if few_rows_work and scan.cost(hits) <= by_index:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.CHEAPER)
    more = math.ceil(hits / share) if share < 1 - _DEAD_UNCALIBRATED else hits
    if index.calibration.lacks(more) or more > LARGE_K[-1]:
        return SearchPlan(k=hits, scan=scan, reason=ExactReason.UNCALIBRATED, lacks_k=more)
    growth = growth_of(index, effort, target_recall, hits, parameters)
    grows = share < 1 and growth.is_much(index.ivf.nlist, share)
    return SearchPlan(k=hits, scan=scan, parameters=parameters, growth=growth, grows=grows)


class RememberedPlans:
    """The plans of the newest snapshot of a collection: most searches repeat one. Thread-safe.

    Parameters
    ----------
    few_rows_work
        See `EngineConfig`.
    """

    def __init__(self, few_rows_work: float) -> None:
        self.few_rows_work = few_rows_work
        self._last: tuple[object, dict[tuple[Effort, int], SearchPlan]] = None, {}

    def of(self, snapshot: Snapshot, effort: Effort, target_recall: float, k: int) -> SearchPlan:
        """Return the plan of a search without a filter."""
        index = snapshot.index
        state = (  # what a plan depends on, without keeping a snapshot alive
            snapshot.sequence,
            snapshot.hidden.count,  # rows may be found damaged between two commits
            snapshot.absorbed_until,
            len(snapshot.vectors),
            target_recall,
            None if index is None else index.generation,
            None if index is None else index.calibration,
        )
        last, plans = self._last
        if last != state or len(plans) > _REMEMBERED_PLANS:
            plans = {}
            self._last = state, plans
        plan = plans.get((effort, k))
        if plan is None:
            scan = Scan.of(snapshot)
            share = 1.0 if index is None else scan.living / index.calibrated_rows
            plan = plan_of(index, effort, target_recall, k, scan, self.few_rows_work, share)
            plans[effort, k] = plan
        return plan


def index_cost(index: TrainedIndex, parameters: SearchParameters, dim: int) -> float:
    """Return the work of a search by the index for one query, as `Scan.cost` does."""
    ivf = index.ivf
    return _INDEX_COST * work(parameters, ivf.rows / ivf.nlist, ivf.code_bytes, dim)


def growth_of(
    index: TrainedIndex,
    effort: Effort,
    target_recall: float,
    k: int,
    parameters: SearchParameters,
) -> Growth:
    """Return how the `parameters` for a calibrated k grow.

    The exponent is that by which the odds of nprobe grow from the first to the last calibrated k.
    """
    few_k, many_k = CALIBRATED_K[0], CALIBRATED_K[-1]
    few, many = (index.parameters_for(effort, target_recall, each) for each in (few_k, many_k))
    exponent = GROWTH_MAX
    if few is not None and many is not None:
        few_odds, many_odds = (probed_odds(each.nprobe, index.ivf.nlist) for each in (few, many))
        exponent = math.log(many_odds / few_odds) / math.log(many_k / few_k)
    wanted = effort.target_recall or target_recall
    more_hits = [(each / k, more) for each, more in index.parameters_above(k, wanted)]
    return Growth(parameters, min(max(exponent, 0.0), GROWTH_MAX), tuple(more_hits))


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryProbes:
    """The lists of each query; none for those that are cheaper to score exactly.

    `exact` names these; `widened` and `in_hole` are those of `Widths`: bool (queries,). `lists`,
    int64 (queries,), is the number probed, and `candidates` the number re-ranked for each query
    that lies in no hole.
    """

    probes: Probes
    candidates: int
    lists: Int64Array
    exact: BoolArray
    widened: BoolArray
    in_hole: BoolArray

    @property
    def is_plain(self) -> bool:
        """Whether the index answers all queries with as many candidates as calibrated."""
        return not (self.in_hole.any() or self.exact.any())


def probes_of(
    index: TrainedIndex, plan: SearchPlan, queries: Float32Array, tombstones: Tombstones
) -> QueryProbes:
    """Return the lists that each query probes, given how many rows of each list live.

    Call it under the index's lock. Empty lists are skipped.

    Parameters
    ----------
    plan
        With parameters of the index.
    queries
        float32 (queries, dim).
    """
    ivf = index.ivf
    assert plan.growth is not None
    occupancy = ivf.occupancy(tombstones)
    wanted = Wanted(at_least=2 * plan.k, calibrated=index.calibrated_rows, growth=plan.growth)
    candidates = occupancy.shares(wanted).candidates
    nearest = ivf.nearest_lists(queries, lists_ranked_first(occupancy, wanted))
    found = widths(occupancy, nearest.lists, wanted)
    lacking = np.flatnonzero(found.lists < 0)
    if len(lacking):
        # Each query by itself: what others lack must not decide how its own lists are ranked.
        rest = ivf.nearest_lists(np.ascontiguousarray(queries[lacking]), ivf.nlist)
        nearest = nearest.replaced(lacking, rest)
        found = found.replaced(lacking, widths(occupancy, rest.lists, wanted))
    lists = found.lists
    used = int(lists.max(initial=1))
    ranks, distances = nearest.lists[:, :used], nearest.distances[:, :used]
    if not (occupancy.none_dead and (lists == used).all()):
        probed = np.arange(used) < lists[:, None]
        probed &= occupancy.living[ranks] > 0
        lists = np.count_nonzero(probed, axis=1)
        ranks = np.where(probed, ranks, -1)
    return QueryProbes(
        probes=Probes(ranks, distances),
        candidates=candidates,
        lists=lists,
        exact=_are_cheaper_exact(index, plan, occupancy, found, ranks, candidates),
        widened=found.widened,
        in_hole=found.in_hole,
    )


def _are_cheaper_exact(
    index: TrainedIndex,
    plan: SearchPlan,
    occupancy: Occupancy,
    found: Widths,
    probed: Int64Array,
    candidates: int,
) -> BoolArray:
    """Return which queries that read more than calibrated are cheaper to score exactly. (queries,)

    `probed`, int64 (queries, n), are their lists, padded with -1; `candidates` what each re-ranks.
    """
    scan = plan.scan.cost(plan.k)
    most, dim = probed.shape[1], plan.scan.dim
    if scan > _cost_of(index, most, most * occupancy.largest, HOLE_CANDIDATES * candidates, dim):
        return np.zeros(len(probed), np.bool_)
    there = probed >= 0
    cost = _cost_of(
        index,
        np.count_nonzero(there, axis=1),
        (occupancy.held[probed] * there).sum(axis=1),
        candidates * np.where(found.in_hole, HOLE_CANDIDATES, 1),
        dim,
    )
    return (found.widened | found.in_hole) & (scan <= cost)


def proposals_of(
    index: TrainedIndex, plan: SearchPlan, queries: Float32Array, tombstones: Tombstones
) -> tuple[Int64Array, BoolArray]:
    """Return the rows that a search by this plan re-ranks, and which queries it scores exactly.

    The rows are int64 (queries, n), padded with -1; meaningless for exact queries, bool (queries,).
    Call it under the index's lock. It measures recall: `candidates` searches.
    """
    ivf, parameters = index.ivf, plan.parameters
    assert parameters is not None
    nprobe = parameters.nprobe
    if not plan.grows and ivf.is_even(tombstones):
        rows = ivf.nearest(queries, max(plan.k, parameters.candidates), nprobe, tombstones)
        exact = np.zeros(len(queries), np.bool_)
    else:
        chosen = probes_of(index, plan, queries, tombstones)
        wanted = max(plan.k, chosen.candidates)
        rows = ivf.nearest(queries, HOLE_CANDIDATES * wanted, nprobe, tombstones, chosen.probes)
        rows[~chosen.in_hole, wanted:] = -1
        exact = chosen.exact
    return rows, exact | (rows[:, plan.k - 1] < 0)


_Number = TypeVar("_Number", int, Int64Array)


def _cost_of(
    index: TrainedIndex, lists: _Number, rows: _Number, candidates: _Number, dim: int
) -> Float64Array | float:
    """Return `index_cost` of a query, or of each of some, by what it reads; all (queries,)."""
    code_bytes = index.ivf.code_bytes
    a_list = work(SearchParameters(1, 0), 0, code_bytes, dim)
    a_row = work(SearchParameters(1, 0), 1, code_bytes, dim) - a_list
    a_candidate = work(SearchParameters(0, 1), 0, code_bytes, dim)
    cost: Float64Array | float = a_list * lists + a_row * rows + a_candidate * candidates
    return _INDEX_COST * cost
