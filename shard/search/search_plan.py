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
from typing import Final

import numpy as np

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    SearchParameters,
    calibrated_k,
    work,
)
from vectorshard.shard.index.ivf_index import Probes
from vectorshard.shard.index.occupancy import HOLE_CANDIDATES, Wanted, widths
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import TrainedIndex
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

GROWTH_MAX: Final = 0.6  # largest exponent by which nprobe grows with k

_RANKED_FIRST: Final = 4  # times the calibrated lists that are ranked for each query at first
_RANKED_MIN: Final = 16
_INDEX_COST: Final = 1.2  # of a search by the index, in the units of `work`


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPlan:
    """How to search: `parameters` of the index, or None with the reason to score every row.

    `widens` says whether queries may probe more lists, and be scored exactly if that finds too few
    rows: not if the caller chose an nprobe.
    """

    parameters: SearchParameters | None = None
    reason: ExactReason | None = None
    widens: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """An exact scan: the `living` rows that it must score, and the `rows` that it reads.

    `scattered` says whether it gathers the living rows before it scores them.
    """

    living: int
    rows: int
    dim: int
    scattered: bool = False

    def cost(self, k: int) -> float:
        """Return its work for one of ASSUMED_QUERIES, in the units of `work`.

        Fitted to 70 searches of 16 queries for 10 and 100 hits among 300 to 30,000 rows of d = 8 to
        1,536, in which the choice costs at most a sixth more than the best.
        """
        scored = self.rows * (1.95 + 0.04 * self.dim)
        gathered = self.rows * (40 + 0.5 * self.dim) / ASSUMED_QUERIES if self.scattered else 0
        return 1_500 + scored + gathered + 170 * k


def plan_of(
    index: TrainedIndex | None,
    effort: Effort,
    target_recall: float,
    k: int,
    scan: Scan,
    few_rows_work: float,
) -> SearchPlan:
    """Return the plan of a search without a filter.

    Parameters
    ----------
    effort, target_recall, k
        As requested.
    scan
        The exact scan that answers it otherwise.
    few_rows_work
        See `EngineConfig`.
    """
    if effort.exact:
        return SearchPlan(reason=ExactReason.REQUESTED)
    if index is None:
        return SearchPlan(reason=ExactReason.NO_INDEX)
    parameters = index.parameters_for(effort, target_recall, k)
    if effort.nprobe:
        return SearchPlan(parameters=parameters, widens=False)
    if scan.living * (scan.dim + 80) <= few_rows_work:
        return SearchPlan(reason=ExactReason.FEW_ROWS)
    if index.calibration.lacks(k):
        return SearchPlan(reason=ExactReason.UNCALIBRATED)
    if parameters is None:
        return SearchPlan(reason=ExactReason.NO_PARAMETERS)
    if scan.cost(calibrated_k(k)) <= index_cost(index, parameters, scan.dim):
        return SearchPlan(reason=ExactReason.CHEAPER)
    return SearchPlan(parameters=parameters)


def index_cost(index: TrainedIndex, parameters: SearchParameters, dim: int) -> float:
    """Return the work of a search by the index for one query, as `Scan.cost` does."""
    ivf = index.ivf
    return _INDEX_COST * work(parameters, ivf.rows / ivf.nlist, ivf.code_bytes, dim)


def growth_of_nprobe(index: TrainedIndex, effort: Effort, target_recall: float) -> float:
    """Return the exponent by which nprobe grows with k, from the first and the last calibrated."""
    few_k, many_k = CALIBRATED_K[0], CALIBRATED_K[-1]
    few, many = (index.parameters_for(effort, target_recall, k) for k in (few_k, many_k))
    if few is None or many is None:
        return GROWTH_MAX
    growth = math.log(many.nprobe / few.nprobe) / math.log(many_k / few_k)
    return min(max(growth, 0.0), GROWTH_MAX)


@dataclass(frozen=True, slots=True)
class QueryProbes:
    """The lists of each query; none for those that are cheaper to score exactly, which `exact`
    names. `widened` and `in_hole` are those of `Widths`. bool (queries,).
    """

    probes: Probes
    exact: BoolArray
    widened: BoolArray
    in_hole: BoolArray


def probes_of(
    index: TrainedIndex,
    parameters: SearchParameters,
    growth: float,
    queries: Float32Array,
    tombstones: Tombstones,
    k: int,
    scan: Scan,
) -> QueryProbes:
    """Return the lists that each query probes, given how many rows of each list live.

    Call it under the index's lock. Empty lists are skipped.

    Parameters
    ----------
    growth
        See `growth_of_nprobe`.
    queries
        float32 (queries, dim).
    k
        A calibrated number of hits.
    """
    ivf = index.ivf
    occupancy = ivf.occupancy(tombstones)
    wanted = Wanted(
        nprobe=parameters.nprobe,
        at_least=2 * k,
        trained=index.live_when_trained,
        growth=growth,
    )
    ranked = min(ivf.nlist, max(_RANKED_MIN, _RANKED_FIRST * parameters.nprobe))
    nearest = ivf.nearest_lists(queries, ranked)
    found = widths(occupancy, nearest.lists, wanted)
    if ranked < ivf.nlist and (found.lists < 0).any():
        nearest = ivf.nearest_lists(queries, ivf.nlist)
        found = widths(occupancy, nearest.lists, wanted)
    probed = np.arange(nearest.lists.shape[1]) < found.lists[:, None]
    probed &= occupancy.living[nearest.lists] > 0
    rows = (occupancy.held[nearest.lists] * probed).sum(axis=1)
    candidates = parameters.candidates * np.where(found.in_hole, HOLE_CANDIDATES, 1)
    cost = _cost_of(index, probed.sum(axis=1), rows, candidates, scan.dim)
    exact = found.widened & (scan.cost(k) <= cost)
    probed[exact] = False
    used = max(1, int(found.lists.max(where=~exact, initial=1)))
    lists = np.where(probed, nearest.lists, -1)[:, :used]
    return QueryProbes(
        Probes(lists, nearest.distances[:, :used]), exact, found.widened, found.in_hole
    )


def _cost_of(
    index: TrainedIndex, lists: Int64Array, rows: Int64Array, candidates: Int64Array, dim: int
) -> Float64Array:
    """Return `index_cost` of each query, by what it reads; all (queries,)."""
    code_bytes = index.ivf.code_bytes
    a_list = work(SearchParameters(1, 0), 0, code_bytes, dim)
    a_row = work(SearchParameters(1, 0), 1, code_bytes, dim) - a_list
    a_candidate = work(SearchParameters(0, 1), 0, code_bytes, dim)
    cost: Float64Array = _INDEX_COST * (a_list * lists + a_row * rows + a_candidate * candidates)
    return cost
