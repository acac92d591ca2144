"""The background threads of a shard, for all of its collections: the builder, the absorber, the one
that syncs log marks (`log_sync`), and the scrub (`scrub_thread`).

The builder trains indexes, compacts row files and measures recall. Its work may take long and
delays nothing, because its results are private until they are published in one step. The absorber
moves buffered rows into the index, so that the old index keeps growing meanwhile, and writes
checkpoints. The threads only look for work; the collection decides what is due.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import (
    WorkAbandoned,
    build_index,
    calibrate_published,
    go_on_unless,
    measure_drift,
    measure_large_k,
    measure_live_recall,
)
from vectorshard.shard.engine.log_sync import LogSync
from vectorshard.shard.engine.machine import limit_reached
from vectorshard.shard.engine.maintenance import Measuring, Step
from vectorshard.shard.engine.scrub_thread import ScrubThread
from vectorshard.shard.index.ivf_index import use_cores
from vectorshard.shard.storage.room import PutOff

ABSORBED_PIECES: Final = 200
"""Pieces that one collection absorbs before the next collection gets a turn."""

REST_A_PIECE: Final = 2.0
"""How long the absorber rests after a piece while searches come, as a ratio to what it took. A low
priority would not help: searches wait for the lock that it holds."""

LOOK_S: Final = 2.5
"""How long after IDLE_S without a change the builder looks again at collections that may need work
because time passes."""

SEARCHES_COME_S: Final = 0.05
"""Searches come if there was one within that time."""

IDLE_S: Final = 1.0
"""How long a thread has no work before the memory of its work is returned to the system."""

BUILDER_NICENESS: Final = 10
"""Searches come before training where they compete for a core."""

BUILDER_FAREWELL_S: Final = 1.0
"""How long a stop waits for the builder. FAISS's k-means has no way to be interrupted and may take
minutes; its result is derived data, so a stop abandons it."""

ABANDONED: Final = "abandoned-builder"
"""The name of a builder's thread that a stop did not wait for."""

RESTS_A_PIECE: Final = 9
"""Rests after a piece of measuring live recall, each as long as the piece took. That is wall time
of a thread that yields to all others: the busier the machine, the longer it rests."""

_log = structlog.get_logger(__name__)


def wait_for_abandoned() -> None:
    """Wait for the builders that stops have abandoned.

    A thread inside of FAISS would crash while the interpreter shuts down.
    """
    for thread in threading.enumerate():
        if thread.name == ABANDONED:
            thread.join()


class Pace:
    """The pace of absorbing: rests after pieces while searches come, and none otherwise.

    The first piece begins at `now`, in seconds of any clock, after so many `searches`.
    """

    def __init__(self, now: float, searches: int) -> None:
        self._begun = now
        self._searches = searches
        self._searched_at = -math.inf

    def rest_s(self, now: float, searches: int) -> float:
        """Return how long to rest after a piece; 0 if the next one follows immediately."""
        took_s, self._begun = now - self._begun, now
        if searches != self._searches:
            self._searches, self._searched_at = searches, now
        return REST_A_PIECE * took_s if now - self._searched_at < SEARCHES_COME_S else 0.0

    def rested(self, now: float) -> None:
        """Note that the next piece begins now."""
        self._begun = now


class BackgroundThreads:
    """Runs the background work of many collections on four threads.

    Parameters
    ----------
    clock
        Seconds since 1970.
    stopwatch
        Seconds since any moment.
    when_idle
        Called on a thread after IDLE_S without work, once until the thread wakes again.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        stopwatch: Callable[[], float] = time.monotonic,
        when_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._clock = clock
        self._stopwatch = stopwatch
        self._when_idle = when_idle
        self._changed = threading.Condition()
        self._changes = 0
        self._collections: tuple[Collection, ...] = ()
        self._stopping = False
        self._builder = self._thread("builder", self.build_step, BUILDER_NICENESS, self._look_s)
        self._absorber = self._thread("absorber", self._absorb, 0, self._look_for_room_s)
        self._log_sync = LogSync()
        self._scrub = ScrubThread()

    def _thread(
        self,
        name: str,
        step: Callable[[Collection], bool],
        niceness: int,
        look_s: Callable[[], float | None],
    ) -> threading.Thread:
        arguments = step, niceness, look_s
        return threading.Thread(target=self._loop, args=arguments, name=name, daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._builder.start()
        self._absorber.start()
        self._log_sync.start()
        self._scrub.start()

    def attach(self, collection: Collection) -> None:
        """Work for a collection from now on."""
        collection.state.on_change = self._wake
        self._log_sync.attach(collection.state.row_store.log_end)
        with self._changed:
            self._collections = (*self._collections, collection)
        self._scrub.attach(collection)
        self._wake()

    def detach(self, collection: Collection) -> None:
        """Work for a collection no longer. A step that runs finishes."""
        self._scrub.detach(collection)
        with self._changed:
            self._collections = tuple(c for c in self._collections if c is not collection)
        self._log_sync.detach(collection.state.row_store.log_end)

    def stop(self) -> None:
        """End the threads after their current steps; a long k-means is abandoned."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._log_sync.stop()
        self._scrub.stop()
        self._absorber.join()
        self._builder.join(BUILDER_FAREWELL_S)
        if self._builder.is_alive():
            self._builder.name = ABANDONED

    def _is_stopping(self) -> bool:
        return self._stopping

    def _wake(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _loop(
        self, step: Callable[[Collection], bool], niceness: int, look_s: Callable[[], float | None]
    ) -> None:
        use_cores(1)
        if niceness:  # on Linux, of this thread alone
            os.nice(niceness)
        seen = -1
        while not self._stopping:
            with self._changed:
                has_work = self._changed.wait_for(partial(self._has_changed, seen), IDLE_S)
            if not has_work:
                self._when_idle()
            with self._changed:
                self._changed.wait_for(partial(self._has_changed, seen), look_s())
                seen = self._changes
            self._run_all(step)

    def _has_changed(self, seen: int) -> bool:
        return self._changes != seen or self._stopping

    def _run_all(self, step: Callable[[Collection], bool]) -> None:
        """Run a step for all collections in turn, until none has anything left to do.

        Separate from the thread's loop, so that a waiting thread keeps no collection alive.
        """
        busy = True
        while busy and not self._stopping:
            busy = False
            for collection in self._collections:
                busy |= self._run(step, collection)

    def _run(self, step: Callable[[Collection], bool], collection: Collection) -> bool:
        """Run a step; return whether there is more to do. A failure affects this step alone."""
        try:
            return not self._stopping and not collection.closed and step(collection)
        except (WorkAbandoned, PutOff):
            return False
        except Exception as error:
            if collection in self._collections and not collection.closed:  # it is not dropped
                name = collection.entry.config.name
                if (limit := limit_reached(error)) is not None:
                    _log.warning("background work failed", collection=name, reason=str(limit))
                else:
                    _log.exception("background work failed", collection=name)
            return False

    # ---- the builder ----------------------------------------------------------------------------

    def _look_s(self) -> float | None:
        """Return after how long to look again without a change; None if nothing waits for time."""
        wanted = any(each.maintenance.looks_wanted for each in self._collections)
        return LOOK_S if wanted else self._look_for_room_s()

    def _look_for_room_s(self) -> float | None:
        """Return after how long to look again for room on the disk; None if nothing waits."""
        waits = any(each.state.room.is_waited_for for each in self._collections)
        return LOOK_S if waits else None

    def build_step(self, collection: Collection) -> bool:
        """Do the most urgent piece of the builder's work; return whether any was due.

        A compaction comes before a training: it is a tenth of the work, and the training then reads
        fewer rows. If both are always due, they take turns; if only trainings are, a piece of the
        sweep follows each of them.
        """
        maintenance, compaction = collection.maintenance, collection.compaction
        maintenance.look(self._stopwatch())
        last, maintenance.last_step = maintenance.last_step, None
        training_due = maintenance.training_due
        if compaction.due and not (training_due and last is Step.COMPACTION):
            maintenance.last_step = Step.COMPACTION
            self._compact(collection)
        elif training_due and not (compaction.sweep_due and last is Step.TRAINING):
            maintenance.last_step = Step.TRAINING
            self._train(collection)
        elif compaction.sweep_due:
            compaction.sweep()
        elif maintenance.drift_measurement_due:
            with self._measuring(collection, Measuring.DRIFT):
                measure_drift(collection, go_on_unless(self._is_stopping, collection))
        elif maintenance.recalibration_due:
            with self._measuring(collection, Measuring.CALIBRATION):
                calibrate_published(collection, self._unhurried(collection), self._clock)
        elif maintenance.large_k_due:
            with self._measuring(collection, Measuring.LARGE_K):
                measure_large_k(collection, self._unhurried(collection), self._clock)
        elif maintenance.live_recall_due:
            with self._measuring(collection, Measuring.LIVE_RECALL):
                measure_live_recall(collection, self._unhurried(collection), self._clock)
        else:
            return False
        return True

    def _compact(self, collection: Collection) -> None:
        try:
            collection.compaction.run(go_on_unless(self._is_stopping, collection))
        except BaseException:
            self._wake()  # it is put off, and what else is due goes on
            raise

    def _train(self, collection: Collection) -> None:
        with collection.maintenance.training() as asked:
            build_index(collection, self._clock, self._is_stopping, thorough=asked)
            if asked:
                collection.compaction.ask()

    @contextmanager
    def _measuring(self, collection: Collection, measuring: Measuring) -> Iterator[None]:
        """Give up what fails; what is abandoned is still due."""
        try:
            yield
        except WorkAbandoned:
            raise
        except Exception:
            collection.maintenance.give_up(measuring)
            raise

    def _unhurried(self, collection: Collection) -> Callable[[], None]:
        """Return a function that rests between two pieces, and ends the work if other work is due.

        See `go_on_unless`.
        """
        go_on = go_on_unless(lambda: self._stopping or self._has_other_work(), collection)
        begun = self._stopwatch()

        def rest() -> None:
            nonlocal begun
            self._rest(RESTS_A_PIECE * (self._stopwatch() - begun), self._has_other_work)
            go_on()
            begun = self._stopwatch()

        return rest

    def _has_other_work(self) -> bool:
        return any(
            each.maintenance.training_due
            or each.maintenance.drift_measurement_due
            or each.compaction.due
            or each.compaction.sweep_due
            for each in self._collections
            if not each.closed
        )

    def _rest(self, rest_s: float, is_over: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or is_over(), rest_s)

    # ---- the absorber ---------------------------------------------------------------------------

    def _absorb(self, collection: Collection) -> bool:
        maintenance = collection.maintenance
        if maintenance.absorbing_due:
            pace = Pace(self._stopwatch(), collection.reads.searches)
            for _ in range(ABSORBED_PIECES):
                if self._stopping or collection.closed or not maintenance.absorb_piece():
                    break
                rest_s = pace.rest_s(self._stopwatch(), collection.reads.searches)
                if rest_s:
                    self._rest(rest_s, lambda: False)
                    pace.rested(self._stopwatch())
            if maintenance.training_due or maintenance.drift_measurement_due:
                self._wake()  # the builder, which sees no absorption
        if maintenance.checkpoint_due:
            maintenance.checkpoint()
        return maintenance.absorbing_due
