"""When an index is retrained or calibrated again, and when the row file is compacted. Pure: rules
over a snapshot, and over seconds that the caller has measured.

No rule can fire again and again: the work that it asks for removes its reason, and only writes in
proportion to that work can restore it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.index.calibration import Calibration
from vectorshard.shard.index.drift import Drift
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex

GROWTH_BEFORE_RETRAINING: Final = 4
"""A new index is trained when the live rows are this many times those of the last training."""

IMBALANCE_BEFORE_RETRAINING: Final = 2.0
"""A new index is trained when the lists are this many times as unbalanced as they were when it was
trained: a search then reads about as many times the rows."""

GROWTH_BEFORE_REBALANCING: Final = 1.5
"""But only once the index has absorbed half as many rows as it was trained for. Some rows never get
balanced lists, so each further training must be paid for by as many writes."""

DRIFT_REPLACED_SHARE: Final = 0.2
"""After harmful drift, a new index is trained once this share of the rows was replaced since the
last training. A window that moves by a standard deviation a tenth has recall .89 by then, .82 with
.3. Smaller: more trainings while rows are being replaced."""

GROWTH_BEFORE_CALIBRATING: Final = 1.5
"""An index is calibrated again when it holds this many times the rows of its calibration, once a
load has ended: of rows that came in order of difficulty, .84 was found where .90 was told."""

QUIET_S: Final = 5.0
"""Without writes for so long, a load has ended or paused: harmful drift starts a training, whatever
share was replaced, and a provisional or outgrown calibration is replaced."""

REST_WHEN_QUIET: Final = 3.0
PATIENCE_S: Final = 60.0
REST_WHILE_WRITTEN: Final = 10.0
"""A training for drift comes no sooner after the last one than so many times what that one took:
when quiet, and while rows are being written. The latter also waits PATIENCE_S."""

PROVISIONAL_S: Final = 10.0
"""A provisional calibration is replaced after so long, even while rows are being written. A load
that is still so young has outgrown its index four times by then."""


def first_training_due(snapshot: Snapshot, min_training_size: int) -> bool:
    """Whether there are enough rows for the first index."""
    return snapshot.index is None and snapshot.visible >= max(1, min_training_size)


def retraining_due(snapshot: Snapshot, config: CompactionConfig) -> bool:
    """Whether the index is outgrown, holds too many dead rows, or is too unbalanced."""
    index = snapshot.index
    if index is None or snapshot.visible == 0:
        return False
    held = rows_held(snapshot)
    outgrown = snapshot.visible >= GROWTH_BEFORE_RETRAINING * index.live_when_trained
    return outgrown or _half_dead(snapshot, held, config) or _unbalanced(snapshot, held, index)


@dataclass(frozen=True, slots=True, kw_only=True)
class Waited:
    """How long ago things happened, in seconds.

    `quiet_s` since the last write, `trained_s` since the last training ended, which took
    `training_s`, `alarmed_s` since drift was found harmful: as far as looks at the collection show.
    """

    quiet_s: float = 0.0
    trained_s: float = 0.0
    training_s: float = 0.0
    alarmed_s: float = 0.0


def drift_training_due(snapshot: Snapshot, drift: Drift, waited: Waited) -> bool:
    """Whether a new index should be trained because the newest rows have a low recall.

    While rows are replaced, each training is paid for by a share of them. The last rows of a load
    may be fewer: a pause pays for one more training, and so does a long time.
    """
    index = snapshot.index
    if index is None or snapshot.visible == 0 or not drift.harmful:
        return False
    replaced = min(rows_added(snapshot), _dead_codes(snapshot, rows_held(snapshot)))
    if replaced >= DRIFT_REPLACED_SHARE * index.live_when_trained:
        return True
    if waited.quiet_s >= QUIET_S and waited.trained_s >= REST_WHEN_QUIET * waited.training_s:
        return True
    rest_s = max(PATIENCE_S, REST_WHILE_WRITTEN * waited.training_s)
    return waited.alarmed_s >= PATIENCE_S and waited.trained_s >= rest_s


def is_provisional(calibration: Calibration) -> bool:
    """Whether a calibration was made in haste, for an index that a load will soon outgrow, or by
    the rules of an earlier release."""
    return calibration.basis.provisional or calibration.outdated


def has_outgrown_calibration(snapshot: Snapshot) -> bool:
    """Whether the index holds many more live rows than those of its calibration.

    Not if live queries took part in that: their recall is measured anyway.
    """
    index = snapshot.index
    if index is None or index.calibration.basis.live:
        return False
    least = GROWTH_BEFORE_CALIBRATING * (index.calibration.basis.rows or index.live_when_trained)
    if min(snapshot.visible, rows_held(snapshot)) < least:  # the most that it can hold
        return False
    return snapshot.visible - snapshot.buffer.live >= least


def recalibration_due(snapshot: Snapshot, waited: Waited) -> bool:
    """Whether a provisional or outgrown calibration should be replaced by a full one."""
    index = snapshot.index
    if index is None or snapshot.visible == 0:
        return False
    quiet = waited.quiet_s >= QUIET_S
    if not is_provisional(index.calibration):
        return quiet and has_outgrown_calibration(snapshot)
    return index.calibration.outdated or quiet or waited.trained_s >= PROVISIONAL_S


def compaction_due(snapshot: Snapshot, config: CompactionConfig, *, asked: bool) -> bool:
    """Whether enough rows of the row file are dead; fewer suffice if a training was asked for."""
    stored = len(snapshot.vectors)
    share = config.dead_share_when_asked if asked else config.dead_share
    return stored - snapshot.live >= max(config.dead_rows_min, share * stored)


def rows_held(snapshot: Snapshot) -> int:
    """Return the rows in the index, dead ones included."""
    return snapshot.absorbed_until - snapshot.rows_skipped


def rows_added(snapshot: Snapshot) -> int:
    """Return the rows that the index has taken in beyond those of its training."""
    index = snapshot.index
    return max(0, rows_held(snapshot) - index.live_when_trained) if index is not None else 0


def _half_dead(snapshot: Snapshot, held: int, config: CompactionConfig) -> bool:
    """Whether the dead share of the rows in the index reaches that of a compaction.

    A training leaves no dead rows in it, so the next one needs as many deaths as rows live.
    """
    least = max(config.dead_codes_min, config.dead_share * held)
    buffered = snapshot.rows - snapshot.absorbed_until
    if held - snapshot.visible + buffered < least:  # the most that can be dead of it
        return False
    return _dead_codes(snapshot, held) >= least


def _dead_codes(snapshot: Snapshot, held: int) -> int:
    """Return the dead rows among those that the index holds."""
    return held - (snapshot.visible - snapshot.buffer.live)


def _unbalanced(snapshot: Snapshot, held: int, index: TrainedIndex) -> bool:
    """Whether the rows since the training are far less evenly spread than those before."""
    grown = held >= GROWTH_BEFORE_REBALANCING * index.live_when_trained
    limit = IMBALANCE_BEFORE_RETRAINING * index.imbalance_when_trained
    return grown and snapshot.list_imbalance >= limit


class Lull:
    """How long a collection has not been written to, as far as its looks at it show."""

    def __init__(self) -> None:
        self._sequence = -1
        self._since = 0.0

    def seconds(self, sequence: int, now: float) -> float:
        """Return the seconds since the newest commit, `sequence`, was first seen; `now` as well."""
        if sequence != self._sequence:
            self._sequence, self._since = sequence, now
        return now - self._since
