"""The number of inverted lists, and the search parameters that reach each target recall. Pure.

A shard calibrates its index after each training. It searches for some of the rows it holds, each
excluded from its own result. The places of the true hits among the candidates, in the order of
their codes, show how many candidates suffice at each nprobe. Of the search parameters that reach
a target, the calibration keeps those with the least work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.types import (
    BoolArray,
    Effort,
    Float64Array,
    IndexConfig,
    IndexKind,
    Int64Array,
    NlistRule,
)

TARGETS: Final = (0.80, 0.90, 0.95, 0.99)  # a target between two of them uses the upper one

CALIBRATED_K: Final = (10, 100)
"""The calibrated numbers of hits. A k between two uses the upper; above the last, the candidates
grow with k. Search parameters for 10 hits find .84 of 100."""

ROWS_PER_LIST_MIN: Final = 39  # FAISS's k-means warns about fewer training points per centroid
NPROBE_STEP: Final = 1.15  # ratio of consecutive nprobes tried; bounds the excess cost of a target
CANDIDATES_MAX: Final = 2_000  # the most candidates that a calibrated search re-ranks

RESERVE: Final = 0.1
"""The part of a target's permitted misses that calibration keeps in reserve: about the sampling
error of a few hundred queries."""

_FACTOR: Final = {NlistRule.SQRT_4: 4, NlistRule.SQRT_8: 8, NlistRule.SQRT_16: 16}

_FACTOR_BY_KIND: Final = {IndexKind.IVF_FLAT: 4, IndexKind.IVF_SQ8: 4, IndexKind.IVF_PQ: 1}
"""With fast scan, a list costs as much as hundreds of codes. So fewer, longer lists reach a recall
with less work, and train and fill faster (`python -m benchmarks --only codes`)."""


def calibrated_k(k: int) -> int:
    """Return the calibrated number of hits that a search for k uses; k itself beyond the last."""
    return next((each for each in CALIBRATED_K if k <= each), k)


def nlist_for(config: IndexConfig, rows: int) -> int:
    """Return the number of inverted lists of an index that is trained on `rows` rows."""
    if config.nlist_rule is NlistRule.FIXED:
        wanted = config.nlist
    else:
        factor = _FACTOR.get(config.nlist_rule, _FACTOR_BY_KIND[config.kind])
        wanted = int(factor * math.sqrt(rows))
    return max(1, min(wanted, rows // ROWS_PER_LIST_MIN))


@dataclass(frozen=True, slots=True)
class SearchParameters:
    """How an index is searched: the lists probed, and the candidates re-ranked."""

    nprobe: int
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """The cheapest search parameters for a target recall at k hits, and the recall measured."""

    k: int
    target_recall: float
    parameters: SearchParameters
    measured_recall: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibration of an index: points by CALIBRATED_K, targets ascending."""

    points: tuple[CalibrationPoint, ...]

    def point_for(self, target_recall: float, k: int) -> CalibrationPoint | None:
        """Return the calibrated point for a target; None if only an exact search reaches it."""
        k = min(calibrated_k(k), CALIBRATED_K[-1])
        for point in self.points:
            if point.k == k and target_recall <= point.target_recall + 1e-6:
                return point
        return None

    def lacks(self, k: int) -> bool:
        """Whether no search parameters for k hits have been measured."""
        return k > CALIBRATED_K[-1]

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
            point = self.point_for(TARGETS[-1], k)
            candidates = CANDIDATES_MAX if point is None else point.parameters.candidates
            return SearchParameters(effort.nprobe, _for_hits(candidates, k))
        point = self.point_for(effort.target_recall or target_recall, k)
        if point is None:
            return None
        return SearchParameters(point.parameters.nprobe, _for_hits(point.parameters.candidates, k))


def _for_hits(candidates: int, k: int) -> int:
    """Scale the candidates with k beyond the calibrated ones."""
    return math.ceil(candidates * max(1.0, k / CALIBRATED_K[-1]))


def merged_chances(k: int, shards: int) -> Float64Array:
    """Return the chance that a shard's 1st, 2nd .. k-th best row is among the k best of all.

    float64 (k,). Rows are placed at random, so the number of the k best rows of all `shards` that
    one shard holds is binomial (k, 1 / shards). The j-th best counts if that number is at least j.
    """
    if shards == 1:
        return np.ones(k)
    share = 1 / shards
    of_shard = [
        math.comb(k, rows) * share**rows * (1 - share) ** (k - rows) for rows in range(k + 1)
    ]
    at_least: Float64Array = np.cumsum(of_shard[::-1])[::-1]
    return at_least[1:]


@dataclass(frozen=True, slots=True)
class Places:
    """The places of the true hits among the candidates, from 0, and the weight of each.

    `places` int64 and `weights` float64 (hits,) cover the hits that are candidates, sorted by
    place; `total` is the weight of all true hits.
    """

    places: Int64Array
    weights: Float64Array
    total: float


def places_of(
    ranks: Int64Array, retrieved: BoolArray, hits: Int64Array, weights: Float64Array
) -> Places:
    """Return the places of the k best rows of all queries among the candidates retrieved.

    Rows of equal score are interchangeable: any of them counts as a hit.

    Parameters
    ----------
    ranks
        int64 (queries, candidates), in the order of the codes: how many true hits score better
        than each candidate; k or more for a candidate that is not a hit.
    retrieved
        bool (queries, candidates): the candidates that count; the others are ignored.
    hits
        int64 (queries,): the number of true hits, up to k.
    weights
        float64 (k,): the weight of a hit by the number of better hits.
    """
    good = retrieved & (ranks < hits[:, None])
    good &= good.cumsum(axis=1, dtype=np.int32) <= hits[:, None]
    query_of, at = np.nonzero(good)
    before = retrieved.cumsum(axis=1, dtype=np.int32)
    places = before[query_of, at] - 1
    order = np.argsort(places, kind="stable")
    of_first = np.concatenate([[0.0], np.cumsum(weights)])
    return Places(
        places=places[order].astype(np.int64),
        weights=weights[ranks[query_of, at]][order],
        total=float(of_first[hits].sum()),
    )


def work(parameters: SearchParameters, rows_a_list: float, code_bytes: int, dim: int) -> float:
    """Return the work of a search for one query. Only ratios of it are meaningful.

    Fitted to searches of 1, 16 and 64 queries among 20,000 to 168,000 rows of d = 100, 128 and 768,
    on one EPYC core, in nanoseconds: 80 per list, plus 1.25 and 0.042 per byte for each of its
    codes; 120 plus 0.35 per component for each candidate, whose vector is in no cache.
    """
    scanned = 80 + rows_a_list * (1.25 + 0.042 * code_bytes)
    return parameters.nprobe * scanned + parameters.candidates * (120 + 0.35 * dim)


def calibrate(
    places_at: Callable[[int], Mapping[int, Places]],
    nlist: int,
    work_of: Callable[[SearchParameters], float],
    *,
    compressed: bool,
) -> Calibration:
    """Find the search parameters of least work for each of CALIBRATED_K and TARGETS.

    Parameters
    ----------
    places_at
        Returns the places of the true hits at an nprobe for each of CALIBRATED_K: `places_of`.
        The nprobe increases from call to call.
    nlist
        The largest nprobe.
    work_of
        The work of search parameters.
    compressed
        Whether candidates are re-ranked; otherwise the index ranks by exact scores.
    """
    best: dict[tuple[int, float], tuple[float, CalibrationPoint]] = {}
    for nprobe in _nprobes(nlist):
        places_of_k = places_at(nprobe)
        for k in CALIBRATED_K:
            for target in TARGETS:
                point = _point(places_of_k[k], k, target, nprobe, compressed)
                if point is None:
                    continue
                cost = work_of(point.parameters)
                if (k, target) not in best or cost < best[k, target][0]:
                    best[k, target] = cost, point
        if len(best) == len(CALIBRATED_K) * len(TARGETS) and all(
            work_of(SearchParameters(nprobe, point.k)) > cost for cost, point in best.values()
        ):
            break  # probing these lists alone costs more than every known point
    known = [(k, target) for k in CALIBRATED_K for target in TARGETS if (k, target) in best]
    return Calibration(tuple(best[each][1] for each in known))


def _nprobes(nlist: int) -> Iterator[int]:
    """Yield the nprobes to try: 1, 2, 3 ... by NPROBE_STEP, and all lists."""
    nprobe = 1
    while nprobe < nlist:
        yield nprobe
        nprobe = max(nprobe + 1, round(nprobe * NPROBE_STEP))
    yield nlist


def _point(
    places: Places, k: int, target: float, nprobe: int, compressed: bool
) -> CalibrationPoint | None:
    """Return the fewest candidates that reach a target at an nprobe; None if no number does."""
    reached = np.cumsum(places.weights)
    needed = (target + RESERVE * (1 - target)) * places.total - 1e-9
    at = int(np.searchsorted(reached, needed))
    if at == len(reached) and needed > 0:
        return None
    candidates = max(k, int(places.places[at]) + 1) if compressed and len(reached) else k
    found = int(np.searchsorted(places.places, candidates))
    if (found <= at and needed > 0) or candidates > CANDIDATES_MAX:
        return None
    measured = min(1.0, float(reached[found - 1]) / places.total) if found else 1.0
    return CalibrationPoint(
        k=k,
        target_recall=target,
        parameters=SearchParameters(nprobe, candidates),
        measured_recall=measured,
    )
