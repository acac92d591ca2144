"""The number of inverted lists, and the search parameters that reach each target recall. Pure.

A shard calibrates its index after each training. It searches for some of the rows it holds, each
excluded from its own result. The places of the true hits among the candidates, in the order of
their codes, show how many candidates suffice at each nprobe. For each target recall the calibration
keeps the search parameters that reach it with the least work: a curve, whose cost never falls as
the target grows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final

import numpy as np

from vectorshard.shard.types import (
    Effort,
    Float64Array,
    IndexConfig,
    IndexKind,
    Int64Array,
    NlistRule,
)

TARGETS: Final = (0.80, 0.90, 0.95, 0.99)
"""Targets with margins for filters. Above the last, a search scores every row."""

CURVE: Final = tuple(round(0.5 + step / 200, 3) for step in range(99))
"""The targets of a curve: 0.5, 0.505 .. 0.99. A search uses the next at or above its own."""

CALIBRATED_K: Final = (10, 20, 50, 100)
"""The numbers of hits that each calibration measures. A k between two uses the upper: search
parameters for 10 hits find .84 of 100. They are close together for what `shard.index.growth` takes
from them: with half of the rows deleted, the best 10 are among the best 20 of all, and rows in
clusters of 15 need eight times as many lists for 20 hits as for 10."""

LARGE_K: Final = (300, 1_000)
"""Numbers of hits that are measured once a search asks for them, because measuring them takes as
long as all of CALIBRATED_K. Nothing measured at 10 and 100 hits predicts them: on clusters of 100
rows, 100 hits need 1 list and 300 need 47. Above the last, searches are exact."""

ROWS_PER_LIST_MIN: Final = 39  # FAISS's k-means warns about fewer training points per centroid
NPROBE_STEP: Final = 1.15  # ratio of consecutive nprobes tried; bounds the excess cost of a target
CANDIDATES_STEP: Final = 1.06  # the same for the candidates
CANDIDATES_MAX: Final = 6_000  # the most candidates that a calibrated search re-ranks
CANDIDATES_MAX_SMALL_K: Final = 2_000
"""The same up to the last of CALIBRATED_K: more were never cheaper, and a calibration looks at all
of them."""

RESERVE: Final = 0.1
"""The least part of a target's permitted misses that calibration keeps in reserve."""

RESERVE_ERRORS: Final = 1.64
"""The least reserve in standard errors of the measured mean: 19 of 20 samples keep their target."""

WORST_SHARE: Final = 0.1
WORST_BELOW: Final = 0.20
"""The mean recall of the worst tenth of queries is at most this far below the target. So a minority
of difficult rows is not paid for by a majority of easy ones."""

RULE: Final = 3
"""The version of these rules. An index that was calibrated under an earlier one is recalibrated."""

_FACTOR: Final = {NlistRule.SQRT_4: 4, NlistRule.SQRT_8: 8, NlistRule.SQRT_16: 16}

_FACTOR_BY_KIND: Final = {IndexKind.IVF_FLAT: 4, IndexKind.IVF_SQ8: 4, IndexKind.IVF_PQ: 1}
"""With fast scan, a list costs as much as hundreds of codes. So fewer, longer lists reach a recall
with less work, and train and fill faster (`python -m benchmarks --only codes`)."""


@lru_cache(maxsize=4_096)
def calibrated_k(k: int) -> int:
    """Return the calibrated number of hits that a search for k uses; k itself beyond the last."""
    return next((each for each in (*CALIBRATED_K, *LARGE_K) if k <= each), k)


def hits_beyond(k: int) -> int:
    """Return the number of hits that is measured beyond the last of some, for deletes.

    Where a fifth of the rows died, the best 100 are among the best 125 of all. Of clusters of 101
    rows, 100 hits lie in one, and 125 in two.
    """
    return k * 5 // 4


def nlist_for(
    config: IndexConfig,
    rows: int,
    distinct_rows: int | None = None,
    rows_per_list: int = ROWS_PER_LIST_MIN,
) -> int:
    """Return the number of inverted lists of an index that is trained on `rows` rows.

    With more lists than distinct vectors, k-means makes twin centroids. All rows fall into one of
    the twins, and a search that probes the other finds nothing.

    Parameters
    ----------
    distinct_rows
        Distinct vectors in the sample for k-means; None: not counted yet.
    rows_per_list
        Rows of that sample for each list, if they are fewer than ROWS_PER_LIST_MIN.
    """
    if config.nlist_rule is NlistRule.FIXED:
        wanted = config.nlist
    else:
        factor = _FACTOR.get(config.nlist_rule, _FACTOR_BY_KIND[config.kind])
        wanted = int(factor * math.sqrt(rows))
    most = rows // ROWS_PER_LIST_MIN
    if distinct_rows is not None:
        most = min(most, distinct_rows // max(1, min(rows_per_list, ROWS_PER_LIST_MIN)))
    return max(1, min(wanted, most))


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """How an index is searched: the lists probed, and the candidates re-ranked."""

    nprobe: int
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """The cheapest search parameters for a target recall at k hits, and the recall measured.

    `measured_recall` is that of a sample of distinct rows, `measured_recall_balanced` that of a
    sample in which each list is equally likely.
    """

    k: int
    target_recall: float
    parameters: SearchParameters
    measured_recall: float
    measured_recall_balanced: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationBasis:
    """What a calibration was measured on. The defaults are those of a calibration by older rules.

    `rows` are the live rows that the sample was drawn from, `queries` those of the sample of
    distinct rows. `at` is in seconds since 1970. `changes` counts the rows ever written or deleted
    by then. `large_k` are those of LARGE_K that were measured. `live` reports whether live queries
    took part, `provisional` whether so few queries did that a full calibration is to follow.
    """

    rule: int = 0
    rows: int = 0
    queries: int = 0
    at: float = 0.0
    changes: int = 0
    large_k: tuple[int, ...] = ()
    live: bool = False
    provisional: bool = False


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of an index: for each k, points with ascending targets and cost."""

    points: tuple[CalibrationPoint, ...]
    basis: CalibrationBasis = field(default_factory=CalibrationBasis)
    candidate_price: float = 1.0
    """That of `work` on the machine that trained the index."""

    @property
    def outdated(self) -> bool:
        """Whether older rules made it."""
        return self.basis.rule < RULE

    def lacks(self, k: int) -> bool:
        """Whether the search parameters for k hits are measured only when a search needs them."""
        large = CALIBRATED_K[-1] < k <= LARGE_K[-1]
        return large and calibrated_k(k) not in self.basis.large_k

    def point_for(self, target_recall: float, k: int) -> CalibrationPoint | None:
        """Return the calibrated point for a target; None if only an exact search reaches it."""
        return self._point_at(self._measured_k(k), target_recall)

    def _point_at(self, k: int, target_recall: float) -> CalibrationPoint | None:
        for point in self.points:
            if point.k == k and target_recall <= point.target_recall + 1e-6:
                return point
        return None

    def points_above(self, k: int, target_recall: float) -> list[CalibrationPoint]:
        """Return the points for a target of each larger number of hits that was measured."""
        larger = sorted({point.k for point in self.points if point.k > k})
        points = [self._point_at(each, target_recall) for each in larger]
        return [point for point in points if point is not None]

    def parameters_for(
        self, effort: Effort, target_recall: float, k: int
    ) -> SearchParameters | None:
        """Return the search parameters; None if the search must score all rows.

        Precedence: the search's nprobe, its target recall, the collection's `target_recall`. A
        search with an nprobe uses the candidates of the highest target.
        """
        if effort.exact:
            return None
        if effort.nprobe:
            return SearchParameters(effort.nprobe, self._candidates_for(k))
        point = self.point_for(effort.target_recall or target_recall, k)
        return None if point is None else point.parameters

    def with_large_k(self, k: int, points: Sequence[CalibrationPoint]) -> Calibration:
        """Return this calibration with the points of one of LARGE_K and beyond it; perhaps none."""
        others = [point for point in self.points if point.k not in (k, hits_beyond(k))]
        measured = tuple(sorted({*self.basis.large_k, k}))
        return Calibration(
            tuple(sorted((*others, *points), key=lambda point: (point.k, point.target_recall))),
            replace(self.basis, large_k=measured),
            self.candidate_price,
        )

    def keeping_large_k_of(self, before: Calibration) -> Calibration:
        """Return this calibration with what another one of the same index has of LARGE_K."""
        kept = self
        for k in before.basis.large_k:
            measured = [each for each in before.points if each.k in (k, hits_beyond(k))]
            kept = kept.with_large_k(k, measured)
        return kept

    def _measured_k(self, k: int) -> int:
        """Return the k whose points a search uses: by older rules there are only two."""
        if self.outdated and self.points:
            return next((each.k for each in self.points if k <= each.k), k)
        return calibrated_k(k)

    def _candidates_for(self, k: int) -> int:
        """Return the candidates of a search with an nprobe; they depend on `calibrated_k` alone."""
        k = calibrated_k(k)
        point = self.point_for(TARGETS[-1], k)
        if point is not None:
            return point.parameters.candidates
        last = self.point_for(TARGETS[-1], CALIBRATED_K[-1])
        candidates = CANDIDATES_MAX_SMALL_K if last is None else last.parameters.candidates
        return math.ceil(candidates * max(1.0, k / CALIBRATED_K[-1]))


def merged_chances(k: int, shards: int) -> Float64Array:
    """Return the chance that a shard's 1st, 2nd .. k-th best row is among the k best of all.

    float64 (k,). Rows are placed at random, so the number of the k best rows of all `shards` that
    one shard holds is binomial (k, 1 / shards). The j-th best counts if that number is at least j.
    """
    if shards == 1:
        return np.ones(k)
    inside, outside = math.log(1 / shards), math.log1p(-1 / shards)
    of_shard = [  # by logarithms: the binomial coefficients of k > 1,029 overflow a float
        math.exp(
            math.lgamma(k + 1)
            - math.lgamma(rows + 1)
            - math.lgamma(k - rows + 1)
            + rows * inside
            + (k - rows) * outside
        )
        for rows in range(k + 1)
    ]
    at_least: Float64Array = np.cumsum(of_shard[::-1])[::-1]
    return np.minimum(at_least[1:], 1.0)


@dataclass(frozen=True, slots=True)
class Reach:
    """What one nprobe reaches with growing numbers of candidates. All arrays are (n,).

    `candidates` int64, ascending; `targets` float64, the highest target that each number reaches;
    `recall` and `recall_balanced` float64, the mean recall of the two samples.
    """

    candidates: Int64Array
    targets: Float64Array
    recall: Float64Array
    recall_balanced: Float64Array


def candidates_tried(k: int, most: int) -> Int64Array:
    """Return the numbers of candidates to try for k hits: k .. `most` by CANDIDATES_STEP."""
    tried = [k]
    while tried[-1] < most:
        tried.append(min(most, max(tried[-1] + 1, int(tried[-1] * CANDIDATES_STEP))))
    return np.array(tried, np.int64)


def targets_reached(
    recalls: Float64Array, shards: int = 1, *, reserve: bool = True, worst: bool = True
) -> Float64Array:
    """Return the highest target that the recalls of some queries support. float64 (n,).

    A target T needs a mean of T, with `reserve` plus RESERVE of the permitted misses or
    RESERVE_ERRORS standard errors, whichever is larger. With `worst`, the worst tenth needs
    T - WORST_BELOW.

    Parameters
    ----------
    recalls
        float64 (queries, n): of each query, in n settings.
    shards
        Whose answers are merged. A merged recall is the mean of so many shards, each of which is
        calibrated independently, so its deviations are smaller by the root of that.
    """
    queries = len(recalls)
    if not queries:
        return np.ones(recalls.shape[1])
    mean: Float64Array = recalls.mean(axis=0)
    reached = mean
    if reserve:
        error = recalls.std(axis=0) / math.sqrt(queries * shards)
        reached = np.minimum((mean - RESERVE) / (1 - RESERVE), mean - RESERVE_ERRORS * error)
    if worst:
        few = max(1, int(queries * WORST_SHARE))
        lowest = np.partition(recalls, few - 1, axis=0)[:few].mean(axis=0)
        reached = np.minimum(reached, mean - (mean - lowest) / math.sqrt(shards) + WORST_BELOW)
    return reached


def work(
    parameters: SearchParameters,
    rows_a_list: float,
    code_bytes: int,
    dim: int,
    candidate_price: float = 1.0,
) -> float:
    """Return the work of a search for one query. Only ratios of it are meaningful.

    Fitted to searches of 1, 16 and 64 queries among 20,000 to 168,000 rows of d = 100, 128 and 768,
    on one EPYC core, in nanoseconds: 80 per list, plus 1.25 and 0.042 per byte for each of its
    codes; 120 plus 0.35 per component for each candidate, whose vector is in no cache.

    `candidate_price` is what a candidate costs on another machine, relative to a list and to these.
    """
    scanned = 80 + rows_a_list * (1.25 + 0.042 * code_bytes)
    candidate = candidate_price * (120 + 0.35 * dim)
    return parameters.nprobe * scanned + parameters.candidates * candidate


def calibrate(
    reach_at: Callable[[int], Mapping[int, Reach]],
    nlist: int,
    work_of: Callable[[SearchParameters], float],
    ks: Sequence[int] = CALIBRATED_K,
) -> Calibration:
    """Find the search parameters of least work for each of `ks` and each target of CURVE.

    Consecutive targets with the same search parameters share a point.

    Parameters
    ----------
    reach_at
        Returns what an nprobe reaches for each of `ks`. The nprobe increases from call to call.
    nlist
        The largest nprobe.
    work_of
        The work of search parameters.
    """
    curves = {k: _Curve(k, work_of) for k in ks}
    for nprobe in _nprobes(nlist):
        reach = reach_at(nprobe)
        for k, curve in curves.items():
            curve.add(nprobe, reach[k])
        if all(
            work_of(SearchParameters(nprobe, k)) > curve.highest_cost for k, curve in curves.items()
        ):
            break  # probing these lists alone costs more than every known point
    return Calibration(tuple(point for curve in curves.values() for point in curve.points()))


class _Curve:
    """The cheapest search parameters so far for each target of CURVE, at k hits."""

    def __init__(self, k: int, work_of: Callable[[SearchParameters], float]) -> None:
        self._k = k
        self._work_of = work_of
        self._costs = [math.inf] * len(CURVE)
        self._best: list[CalibrationPoint | None] = [None] * len(CURVE)

    @property
    def highest_cost(self) -> float:
        """The cost of the dearest target; infinite while one is not reached."""
        return self._costs[-1]

    def add(self, nprobe: int, reach: Reach) -> None:
        """Take in what an nprobe reaches."""
        reached = np.maximum.accumulate(reach.targets)
        at = np.searchsorted(reached, np.array(CURVE) - 1e-9)
        for place, first in enumerate(at.tolist()):
            if first == len(reached):
                break
            parameters = SearchParameters(nprobe, int(reach.candidates[first]))
            cost = self._work_of(parameters)
            if cost < self._costs[place]:
                self._costs[place] = cost
                self._best[place] = CalibrationPoint(
                    k=self._k,
                    target_recall=CURVE[place],
                    parameters=parameters,
                    measured_recall=float(reach.recall[first]),
                    measured_recall_balanced=float(reach.recall_balanced[first]),
                )

    def points(self) -> list[CalibrationPoint]:
        """Return the points by ascending target, the highest target of each setting."""
        known = [point for point in self._best if point is not None]
        last = known[-1:]
        return [
            point for point, upper in pairwise(known) if point.parameters != upper.parameters
        ] + last


def _nprobes(nlist: int) -> Iterator[int]:
    """Yield the nprobes to try: 1, 2, 3 ... by NPROBE_STEP, and all lists."""
    nprobe = 1
    while nprobe < nlist:
        yield nprobe
        nprobe = max(nprobe + 1, round(nprobe * NPROBE_STEP))
    yield nlist
