"""How many lists an index should have, and how far a search must look for the recall it asks. Pure.

A shard measures itself after each training. It searches for some of its own rows, each left out of
its own answer. Where the true hits stand among what the codes propose says at once how many
candidates would have done, for each number of lists that were probed; of the settings that reach a
target the one with the least work is kept.
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

TARGETS: Final = (0.80, 0.90, 0.95, 0.99)
"""The recalls that are calibrated; one asked between two of them takes the upper."""

CALIBRATED_K: Final = (10, 100)
"""The numbers of hits that are calibrated. A k between two takes the upper; above the last, the
candidates grow with k. A setting for 10 hits finds .84 of 100."""

ROWS_PER_LIST_MIN: Final = 39
"""FAISS's k-means warns below this many training points a centroid."""

NPROBE_STEP: Final = 1.15
"""Ratio of two nprobes that are tried one after the other: what a target costs at most too much."""

CANDIDATES_MAX: Final = 2_000
"""Candidates whose order is looked at, and so the most that a calibrated search re-ranks."""

RESERVE: Final = 0.1
"""The part of what a target lets a search miss that a setting does not: a sample of a few hundred
queries is off by about as much."""

_FACTOR: Final = {NlistRule.SQRT_4: 4, NlistRule.SQRT_8: 8, NlistRule.SQRT_16: 16}

_FACTOR_BY_KIND: Final = {IndexKind.IVF_FLAT: 4, IndexKind.IVF_SQ8: 4, IndexKind.IVF_PQ: 1}
"""Fast scan costs as much for a list as for hundreds of its codes, so fewer and longer lists reach
a recall sooner, and train and fill faster (`python -m benchmarks --only codes`)."""


def calibrated_k(k: int) -> int:
    """Return the number of hits whose setting a search for k uses; beyond all of them, k."""
    return next((each for each in CALIBRATED_K if k <= each), k)


def nlist_for(config: IndexConfig, rows: int) -> int:
    """Return the number of inverted lists for an index that is trained on `rows` rows."""
    if config.nlist_rule is NlistRule.FIXED:
        wanted = config.nlist
    else:
        factor = _FACTOR.get(config.nlist_rule, _FACTOR_BY_KIND[config.kind])
        wanted = int(factor * math.sqrt(rows))
    return max(1, min(wanted, rows // ROWS_PER_LIST_MIN))


@dataclass(frozen=True, slots=True)
class Setting:
    """How far an index is searched: the lists probed, and the rows of their codes re-ranked."""

    nprobe: int
    candidates: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationPoint:
    """The cheapest setting found to reach a target recall at k hits, and the recall measured."""

    k: int
    target_recall: float
    setting: Setting
    measured_recall: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a shard knows of its index's recall: points for CALIBRATED_K, targets ascending."""

    points: tuple[CalibrationPoint, ...]

    def point_for(self, target_recall: float, k: int) -> CalibrationPoint | None:
        """Return the cheapest calibrated point for a target; None when only all rows will do."""
        k = min(calibrated_k(k), CALIBRATED_K[-1])
        for point in self.points:
            if point.k == k and target_recall <= point.target_recall + 1e-6:
                return point
        return None

    def setting_for(self, effort: Effort, target_recall: float, k: int) -> Setting | None:
        """Return how far a search looks; None when it must score all rows.

        Its own nprobe wins, then its own target, then the collection's `target_recall`. A search
        that names its nprobe gets the candidates of the highest target: it asks for these lists.
        """
        if effort.exact:
            return None
        if effort.nprobe:
            point = self.point_for(TARGETS[-1], k)
            candidates = CANDIDATES_MAX if point is None else point.setting.candidates
            return Setting(effort.nprobe, _for_hits(candidates, k))
        point = self.point_for(effort.target_recall or target_recall, k)
        if point is None:
            return None
        return Setting(point.setting.nprobe, _for_hits(point.setting.candidates, k))


def _for_hits(candidates: int, k: int) -> int:
    """Let candidates grow with a k beyond those that are calibrated."""
    return math.ceil(candidates * max(1.0, k / CALIBRATED_K[-1]))


def merged_chances(k: int, shards: int) -> Float64Array:
    """Return the chance that a shard's 1st, 2nd .. k-th best row is among the k best of all.

    float64 (k,). Rows are placed by chance, so the shard has as many of the k best of all `shards`
    as k throws of a die with so many sides: the j-th best counts when they are j or more.
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
    """Where true hits stand among those proposed, from 0, and how much each weighs.

    `places` int64 and `weights` float64 (hits,) are of those that were proposed, by place; `total`
    is the weight of all that there are.
    """

    places: Int64Array
    weights: Float64Array
    total: float


def places_of(
    ranks: Int64Array, proposed: BoolArray, hits: Int64Array, weights: Float64Array
) -> Places:
    """Return where the k best rows of all queries stand among those proposed.

    Whatever scores as well as another is as good as it: where many rows are alike, which of them
    are found says nothing.

    Parameters
    ----------
    ranks
        int64 (queries, candidates), in the order of what the codes say: how many of the true hits
        score better than each; k and more for what is none.
    proposed
        bool (queries, candidates): which of them are proposed; the others do not count.
    hits
        int64 (queries,): how many rows there are to be found, up to k.
    weights
        float64 (k,): of a hit with so many better ones.
    """
    good = proposed & (ranks < hits[:, None])
    good &= good.cumsum(axis=1, dtype=np.int32) <= hits[:, None]
    query_of, at = np.nonzero(good)
    before = proposed.cumsum(axis=1, dtype=np.int32)
    places = before[query_of, at] - 1
    order = np.argsort(places, kind="stable")
    of_first = np.concatenate([[0.0], np.cumsum(weights)])
    return Places(
        places=places[order].astype(np.int64),
        weights=weights[ranks[query_of, at]][order],
        total=float(of_first[hits].sum()),
    )


def work(setting: Setting, rows_a_list: float, code_bytes: int, dim: int) -> float:
    """Return how much work a search is, in units of no meaning but their ratios.

    Fitted to searches of 1, 16 and 64 queries among 20,000 to 168,000 rows of d = 100, 128 and 768,
    on a core of an EPYC, in nanoseconds: a list costs 80, and each of its codes 1.25 and 0.042 a
    byte; a candidate, which is in memory and in no cache, 120 and 0.35 a component.
    """
    scanned = 80 + rows_a_list * (1.25 + 0.042 * code_bytes)
    return setting.nprobe * scanned + setting.candidates * (120 + 0.35 * dim)


def calibrate(
    places_at: Callable[[int], Mapping[int, Places]],
    nlist: int,
    work_of: Callable[[Setting], float],
    *,
    compressed: bool,
) -> Calibration:
    """Find the setting of least work for each of CALIBRATED_K and TARGETS.

    Parameters
    ----------
    places_at
        Says for each of CALIBRATED_K where the true hits stand at an nprobe, which grows from call
        to call: `places_of`.
    nlist
        The largest nprobe there is.
    work_of
        What a setting costs.
    compressed
        Whether candidates matter; otherwise the index itself knows who is best.
    """
    best: dict[tuple[int, float], tuple[float, CalibrationPoint]] = {}
    for nprobe in _nprobes(nlist):
        places_of_k = places_at(nprobe)
        for k in CALIBRATED_K:
            for target in TARGETS:
                point = _point(places_of_k[k], k, target, nprobe, compressed)
                if point is None:
                    continue
                cost = work_of(point.setting)
                if (k, target) not in best or cost < best[k, target][0]:
                    best[k, target] = cost, point
        if len(best) == len(CALIBRATED_K) * len(TARGETS) and all(
            work_of(Setting(nprobe, point.k)) > cost for cost, point in best.values()
        ):
            break  # these lists alone cost more than all that is known by now
    known = [(k, target) for k in CALIBRATED_K for target in TARGETS if (k, target) in best]
    return Calibration(tuple(best[each][1] for each in known))


def _nprobes(nlist: int) -> Iterator[int]:
    """Yield the nprobes that are tried: 1, 2, 3 ... by NPROBE_STEP, and all lists."""
    nprobe = 1
    while nprobe < nlist:
        yield nprobe
        nprobe = max(nprobe + 1, round(nprobe * NPROBE_STEP))
    yield nlist


def _point(
    places: Places, k: int, target: float, nprobe: int, compressed: bool
) -> CalibrationPoint | None:
    """Return the fewest candidates that reach a target at an nprobe; None if none do."""
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
        setting=Setting(nprobe, candidates),
        measured_recall=measured,
    )
