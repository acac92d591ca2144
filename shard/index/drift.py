"""Whether the rows that an index takes in still resemble those that it was trained on. Pure.

The measure is the mean distance of added rows to their nearest centroid, as a ratio to that of the
training. k-means fits its own sample: without any drift, the ratio to its rows is 1.04 to 1.11. So
the base is the mean over rows that k-means did not see.

The ratio only raises an alarm. Rows that merely scatter more widely have a ratio of 1.7 and a full
recall, so an alarm leads to a measurement, and only a low recall to a training. Another embedding
model has a ratio of 3.6 from its first rows on, and recall .45; a window that moves by one standard
deviation for each tenth of the rows has 1.33 and recall .89 after the second tenth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vectorshard.shard.types import Float32Array

DRIFT_ALARM: Final = 1.25
"""The ratio that raises an alarm. 100 rows scatter by .05 to .08; with 1.2, noise raises one."""

DRIFT_ROWS_MIN: Final = 100  # rows measured before the ratio counts, and rows added before an alarm

ADDED_SHARE_MIN: Final = 0.02
"""Rows added before an alarm, relative to those of the training: fewer change no mean recall."""

ADDED_SHARE_CHECKED: Final = 0.25
"""Rows added that lead to a measurement at any ratio, relative to those of the training. An index
that was trained while another model's rows came in knows their centroids, so the ratio stays near
1. But those rows have since become several times as dense as its codes were calibrated for."""

RATIO_MAX: Final = 1_000.0  # also where the base rows were all equal to their centroids
UNKNOWN: Final = -1.0  # the base of an index that was trained on too few rows

RATIO_RISE: Final = 1.1  # above the ratio that was found harmless; less is noise
ADDED_GROWTH: Final = 1.5  # of the rows added since; alarms without harm become ever rarer

WINDOW_ROWS: Final = 512
"""Rows measured that the mean represents: beyond twice as many, older rows count half. Larger: less
noise, but drift that begins late is diluted by the rows before it."""

BASE_ROWS_MIN: Final = 16  # of fewer, the base is too uncertain: drift is not measured
BASE_ROWS: Final = 512  # at most so many are measured for the base
HELD_OUT_SHARE: Final = 0.1  # of the rows, left out of k-means if it would see all of them

MEASURED_A_PIECE: Final = 32  # rows of an absorbed piece that are measured; more cost CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """The distances of the rows that one generation of an index has taken in since its training.

    `base` is the mean distance at the training, UNKNOWN without rows to measure it. `measured` and
    `total` are the number of distances of the window and their sum. `harmless_ratio` and
    `harmless_added` describe the last alarm that a measurement found harmless. `harmful` is whether
    one found a low recall.
    """

    base: float = UNKNOWN
    measured: float = 0.0
    total: float = 0.0
    harmless_ratio: float = 0.0
    harmless_added: int = 0
    harmful: bool = False

    @property
    def ratio(self) -> float:
        """The mean distance of the newest rows relative to the base; 0 if it is unknown."""
        if self.base < 0 or self.measured < DRIFT_ROWS_MIN:
            return 0.0
        distance = self.total / self.measured
        if distance < RATIO_MAX * self.base:
            return distance / self.base
        return RATIO_MAX if distance else 1.0  # both 0: all rows are equal

    def with_distances(self, distances: Float32Array) -> Drift:
        """Return the drift after more rows, given their distances to their centroids, (rows,)."""
        measured, total = self.measured, self.total
        if measured > 2 * WINDOW_ROWS:
            measured, total = measured / 2, total / 2
        total += float(distances.sum(dtype=np.float64))
        return replace(self, measured=measured + len(distances), total=total)

    def alarm(self, added: int, rows_trained: int) -> bool:
        """Whether the recall of the newest rows should be measured.

        Parameters
        ----------
        added
            Rows that the index has taken in since its training.
        rows_trained
            Live rows at the training.
        """
        if self.harmful or added < max(DRIFT_ROWS_MIN, ADDED_SHARE_MIN * rows_trained):
            return False
        if added < self.harmless_added + DRIFT_ROWS_MIN:
            return False
        grown = added >= ADDED_GROWTH * self.harmless_added
        if grown and added >= ADDED_SHARE_CHECKED * rows_trained:
            return True
        risen = self.ratio >= RATIO_RISE * self.harmless_ratio
        return self.ratio >= DRIFT_ALARM and (grown or risen)

    def found_harmless(self, added: int) -> Drift:
        """Return the drift after a measurement that reached the target; the window starts again."""
        return replace(
            self, measured=0.0, total=0.0, harmless_ratio=self.ratio, harmless_added=added
        )

    def found_harmful(self) -> Drift:
        """Return the drift after a measurement that fell short of the target."""
        return replace(self, harmful=True)
