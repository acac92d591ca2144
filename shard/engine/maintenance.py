"""The upkeep of one collection's index: when it is due, absorbing, checkpoints.

The builder thread trains and calibrates indexes and measures recall, see `index_builder`; the
absorber thread calls `absorb_piece` and `checkpoint`. Any thread asks what is due.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from enum import Enum, auto

import numpy as np
import structlog

from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.engine.upkeep import (
    Lull,
    Waited,
    drift_training_due,
    first_training_due,
    has_outgrown_calibration,
    is_provisional,
    recalibration_due,
    retraining_due,
    rows_added,
)
from vectorshard.shard.index.drift import MEASURED_A_PIECE
from vectorshard.shard.storage.room import PutOff

_log = structlog.get_logger(__name__)


class Measuring(Enum):
    """What the builder measures of a published index."""

    DRIFT = auto()
    CALIBRATION = auto()
    LARGE_K = auto()
    LIVE_RECALL = auto()


class Step(Enum):
    """Work of the builder that rows which are replaced fast make due again before it has ended."""

    COMPACTION = auto()
    TRAINING = auto()


class Maintenance:
    """Keeps the index of one collection on one shard in step with its rows."""

    def __init__(self, state: CollectionState) -> None:
        self._state = state
        stored = state.row_store.index_file
        self._generations = stored.generation if stored is not None else 0
        self._rows_before_next_try = 0
        self._training_asked: list[Future[None]] = []
        self._lull = Lull()
        self._published = (0, 0.0)  # a generation, and when a look first saw it
        self._alarmed_at: float | None = None
        self._waited = Waited()
        self._checked_until = 0  # rows below it are sound, or known to be damaged
        self._given_up: dict[Measuring, int] = {}  # what failed, and for which generation
        self.last_step: Step | None = None
        """What the builder did last for this collection, if that lets something else go first."""

    # ---- training: the builder thread -----------------------------------------------------------

    @property
    def training_due(self) -> bool:
        """Whether to train: on request, for the first index, or because the index is outdated."""
        state = self._state
        if self._training_asked:
            return True
        snapshot = state.snapshot
        if snapshot.rows < self._rows_before_next_try:
            return False
        return (
            first_training_due(snapshot, state.entry.config.index.min_training_size)
            or retraining_due(snapshot, state.engine.compaction)
            or drift_training_due(snapshot, state.drift, self._waited)
        )

    def ask_for_training(self) -> Future[None]:
        """Ask for a new index; the future is done when a training that starts after now ends."""
        future: Future[None] = Future()
        with self._state.publish_lock:
            self._training_asked.append(future)
        self._state.on_change()
        return future

    @contextmanager
    def training(self) -> Iterator[bool]:
        """Enter a training; yield whether it was asked for, and report its end to those who asked.

        After a failed training, the next is put off until the rows have grown by a tenth.
        """
        asked = self._take_asked()
        self._state.training = True
        failure: BaseException | None = None
        try:
            yield bool(asked)
        except BaseException as error:
            self._rows_before_next_try = self._state.snapshot.rows * 11 // 10 + 1
            failure = error
            raise
        finally:
            self._state.training = False
            for future in asked:
                future.set_exception(failure) if failure else future.set_result(None)

    def _take_asked(self) -> list[Future[None]]:
        """Return the futures of the trainings that are asked for, once each."""
        with self._state.publish_lock:
            asked, self._training_asked = self._training_asked, []
        return [future for future in asked if future.set_running_or_notify_cancel()]

    def fail_asked(self, error: Exception) -> None:
        """Fail the futures of trainings that will not run."""
        for future in self._take_asked():
            future.set_exception(error)

    def next_generation(self) -> int:
        """Return the number of the index that is about to be published."""
        self._generations += 1
        return self._generations

    # ---- what time makes due: the builder thread ------------------------------------------------

    def look(self, now: float) -> None:
        """Note what has happened since the last look. `now` is in seconds of any clock.

        What depends on time is due as of the last look.
        """
        snapshot = self._state.snapshot
        index = snapshot.index
        quiet_s = self._lull.seconds(snapshot.sequence, now)
        if index is None:
            return
        if self._published[0] != index.generation:
            self._published = index.generation, now
            self._alarmed_at = None
        if self._state.drift.harmful and self._alarmed_at is None:
            self._alarmed_at = now
        self._waited = Waited(
            quiet_s=quiet_s,
            trained_s=now - self._published[1],
            training_s=index.training_s,
            alarmed_s=0.0 if self._alarmed_at is None else now - self._alarmed_at,
        )

    @property
    def looks_wanted(self) -> bool:
        """Whether something may become due because time passes."""
        state, snapshot = self._state, self._state.snapshot
        index = snapshot.index
        if index is None or snapshot.visible == 0:
            return False
        if state.drift.harmful:
            return True
        due = is_provisional(index.calibration) or has_outgrown_calibration(snapshot)
        return due and self._may(Measuring.CALIBRATION)

    @property
    def recalibration_due(self) -> bool:
        """Whether the index should be calibrated again, and not trained."""
        due = recalibration_due(self._state.snapshot, self._waited)
        return due and self._may(Measuring.CALIBRATION)

    def _may(self, measuring: Measuring) -> bool:
        index = self._state.snapshot.index
        return index is not None and self._given_up.get(measuring) != index.generation

    def give_up(self, measuring: Measuring) -> None:
        """Measure this of the published index no more: it failed, and would fail at each look."""
        index = self._state.snapshot.index
        if index is not None:
            self._given_up[measuring] = index.generation

    @property
    def drift_measurement_due(self) -> bool:
        """Whether the newest rows differ so much that their recall should be measured.

        Not under the calibration of an earlier release: its low recall is no reason to train.
        """
        state, snapshot = self._state, self._state.snapshot
        index = snapshot.index
        return (
            index is not None
            and snapshot.visible > 0
            and not (index.calibration.outdated and self._may(Measuring.CALIBRATION))
            and state.drift.alarm(rows_added(snapshot), index.live_when_trained)
            and self._may(Measuring.DRIFT)
        )

    @property
    def live_recall_due(self) -> bool:
        """Whether the recall of live searches should be measured."""
        due = self._state.live.due(self._state.snapshot.index)
        return due and self._may(Measuring.LIVE_RECALL)

    @property
    def large_k_due(self) -> bool:
        """Whether to measure search parameters for a large k that a search asked for."""
        due = self._state.large_k.due(self._state.snapshot.index) is not None
        return due and self._may(Measuring.LARGE_K)

    # ---- absorbing and checkpoints: the absorber thread -----------------------------------------

    @property
    def absorbing_due(self) -> bool:
        """Whether the buffer has grown enough to be absorbed."""
        snapshot = self._state.snapshot
        buffered = snapshot.rows - snapshot.absorbed_until
        return snapshot.index is not None and buffered >= self._state.engine.buffer.absorb_rows

    def absorb_piece(self) -> bool:
        """Move the oldest rows of the buffer into the index; return whether there were any.

        Searches wait while the index is added to, so a piece is small and gathered beforehand.
        """
        state = self._state
        snapshot = state.snapshot
        index, first = snapshot.index, snapshot.absorbed_until
        last = min(first + state.engine.buffer.absorb_piece_rows, snapshot.rows)
        if index is None or first == last:
            return False
        if self._checked_until < last:
            with state.files_lock.read():
                if state.closed:
                    return False
                self._checked_until = state.check_vectors(first, last, "absorbing")
            snapshot = replace(snapshot, damaged=state.damaged_of(snapshot))
        rows = snapshot.hidden.live_rows(first, last)
        vectors = snapshot.vectors_of(rows)
        if not (finite := np.isfinite(vectors).all(axis=1)).all():  # FAISS would drop these rows
            state.found_damaged(snapshot, rows[~finite], "absorbing")
            return True
        measured = vectors[:: max(1, len(rows) // MEASURED_A_PIECE)]
        distances = index.ivf.centroid_distances(measured)
        with state.index_lock.write():
            newest = state.snapshot.index
            if newest is None or newest.ivf is not index.ivf:
                return True  # another index was published, which holds other rows
            index.ivf.add(rows, vectors)
            skipped = snapshot.rows_skipped + (last - first - len(rows))
            state.publish_absorbed(last, skipped, index.ivf.list_imbalance, distances)
        return True

    @property
    def checkpoint_due(self) -> bool:
        """Whether the index has outgrown its file, or the filter columns theirs."""
        return self._state.checkpoint.due(self._state.snapshot)

    @property
    def rows_since_checkpoint(self) -> int:
        """Rows that the index has absorbed since its file was written."""
        return self._state.checkpoint.rows_since(self._state.snapshot)

    def checkpoint(self) -> None:
        """Write what a restart would otherwise compute: the index and the filter columns.

        Runs on the thread that absorbs, so the published index does not change meanwhile.
        """
        with self._state.files_lock.read():
            if not self._state.closed:
                self._state.checkpoint.store(self._state.snapshot)

    def checkpoint_at_close(self) -> None:
        """Write them if that saves the next start some work; a failure is logged."""
        enough = self.rows_since_checkpoint >= self._state.engine.buffer.absorb_rows
        if self.checkpoint_due or enough:
            try:
                self.checkpoint()
            except PutOff:  # the next start computes it
                pass
            except Exception:
                _log.exception("checkpoint failed", collection=self._state.entry.config.name)
