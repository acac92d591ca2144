"""How many lists an index should have, and how many of them a search should probe. Pure.

A shard measures itself: it searches for some of its own rows, each left out of its own answer,
and notes the smallest nprobe that reaches each target recall.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from shard.types import Effort, IndexConfig, Int64Array, NlistRule

TARGETS: Final = (0.80, 0.90, 0.95, 0.99)
"""The recalls that are calibrated; one asked between two of them takes the upper."""

CALIBRATION_K: Final = 10

ROWS_PER_LIST_MIN: Final = 39
"""FAISS's k-means warns below this many training points a centroid."""

_FACTOR = {NlistRule.SQRT_4: 4, NlistRule.SQRT_8: 8, NlistRule.SQRT_16: 16}


def nlist_for(config: IndexConfig, rows: int) -> int:
    """Return the number of inverted lists for an index that is trained on `rows` rows."""
    if config.nlist_rule is NlistRule.FIXED:
        wanted = config.nlist
    else:
        wanted = int(_FACTOR[config.nlist_rule] * math.sqrt(rows))
    return max(1, min(wanted, rows // ROWS_PER_LIST_MIN))


@dataclass(frozen=True, slots=True)
class CalibrationPoint:
    """The smallest nprobe found to reach a target recall, and the recall measured there."""

    target_recall: float
    nprobe: int
    measured_recall: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One point for each of TARGETS, ascending."""

    points: tuple[CalibrationPoint, ...]

    def point_for(self, target_recall: float, nlist: int) -> CalibrationPoint:
        """Return the cheapest calibrated point for a target; above the last, probe every list."""
        for point in self.points:
            if target_recall <= point.target_recall + 1e-6:
                return point
        return CalibrationPoint(target_recall, nlist, 1.0)

    def nprobe_for(self, effort: Effort, target_recall: float, nlist: int) -> int:
        """Return the nprobe of a search: its own, or the one for its or the collection's target."""
        if effort.nprobe:
            return min(effort.nprobe, nlist)
        return self.point_for(effort.target_recall or target_recall, nlist).nprobe


def recall(found: Sequence[Int64Array], truth: Sequence[Int64Array]) -> float:
    """Return the mean share of each query's true rows that were found; 1 without any."""
    shares = [
        len(np.intersect1d(rows, true_rows)) / len(true_rows)
        for rows, true_rows in zip(found, truth, strict=True)
        if len(true_rows)
    ]
    return float(np.mean(shares)) if shares else 1.0


def calibrate(recall_at: Callable[[int], float], nlist: int) -> Calibration:
    """Find the smallest nprobe for each of TARGETS.

    Doubles nprobe until the highest target is met, then bisects for each target, trusting that
    recall grows with nprobe.

    Parameters
    ----------
    recall_at
        Measures the recall at an nprobe; called about 2 * log2(nlist) times.
    nlist
        The largest nprobe there is. It is taken to meet every target.
    """
    measured: dict[int, float] = {}

    def measure(nprobe: int) -> float:
        if nprobe not in measured:
            measured[nprobe] = recall_at(nprobe)
        return measured[nprobe]

    upper = 1
    while upper < nlist and measure(upper) < TARGETS[-1]:
        upper = min(2 * upper, nlist)
    points = []
    low = 1
    for target in TARGETS:
        high = upper
        while low < high:
            middle = (low + high) // 2
            if measure(middle) >= target:
                high = middle
            else:
                low = middle + 1
        points.append(CalibrationPoint(target, low, measure(low)))
    return Calibration(tuple(points))
