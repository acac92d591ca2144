"""The background work of a shard: building indexes, absorbing the buffer, writing checkpoints,
rebuilding the row file, measuring the recall of live searches.

Two threads. One builds new indexes and row files, which may take long and disturbs nobody: what is
new is private until it replaces the old in one step. The other absorbs, so that the old index keeps
growing meanwhile, and writes checkpoints. Both only look; the collection knows what is due.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.index.calibration import CALIBRATED_K, Calibration, nlist_for
from vectorshard.shard.index.ivf_index import IvfIndex, use_cores
from vectorshard.shard.index.recall import measured_calibration
from vectorshard.shard.search.filtered_search import measured_margins
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex

BUILD_PIECE_ROWS: Final = 4_096
"""Rows added to a private index in one call; only memory limits it."""

CATCHING_UP_ROUNDS: Final = 3
"""How often a private index takes in what was written meanwhile before it is published anyway:
from then on, writers are slowed until the buffer is small."""

ABSORBED_PIECES: Final = 200
"""Pieces that one collection absorbs before it is the next one's turn."""

REST_A_PIECE: Final = 2.0
"""How long the absorber rests after a piece while searches come, as a ratio to what it took. Adding
has no niceness of its own, because searches wait for the lock that it holds."""

SEARCHES_COME_S: Final = 0.05
"""Searches come if there was one within that time."""

IDLE_S: Final = 1.0
"""How long a thread has no work until what its work took is given back to the system."""

BUILDER_NICENESS: Final = 10
"""Searches come before training where they compete for a core."""

BUILDER_FAREWELL_S: Final = 1.0
"""How long a stop waits for the builder. FAISS's k-means cannot be interrupted and may take
minutes; what it builds is derived data, so a stop leaves it behind."""

RESTS_A_PIECE: Final = 9
"""Rests after a piece of measuring live recall, each as long as the piece took. That is wall time
of a thread that yields to all others: the busier the machine, the longer it rests."""

_log = structlog.get_logger(__name__)


class TrainingAbandoned(Exception):
    """The shard stops, and nobody needs the index, or the row file, any more; or what only uses
    idle time has to make way, and is begun again."""


def _go_on(collection: Collection, is_stopping: Callable[[], bool]) -> Callable[[], None]:
    """Return what raises TrainingAbandoned once the shard or the collection stops."""

    def go_on() -> None:
        if is_stopping() or collection.closed:
            raise TrainingAbandoned

    return go_on


def build_index(
    collection: Collection, clock: Callable[[], float], is_stopping: Callable[[], bool] = bool
) -> None:
    """Train a new index on the live rows, fill it, calibrate it, and put it in the old one's place.

    `clock` gives seconds since 1970. Without live rows there is nothing to train on.

    Raises
    ------
    TrainingAbandoned
        If `is_stopping` says so between two steps.
    """

    go_on = _go_on(collection, is_stopping)
    started = clock()
    config, training = collection.entry.config, collection.engine.training
    snapshot = collection.snapshot
    live_rows = snapshot.tombstones.live_rows(0, snapshot.rows)
    if len(live_rows) == 0:
        return
    random = np.random.default_rng(training.seed)
    nlist = nlist_for(config.index, len(live_rows))
    wanted = min(len(live_rows), nlist * training.points_per_list)
    sample_rows = np.sort(random.choice(live_rows, size=wanted, replace=False))
    ivf = IvfIndex.train(
        config.index.kind, config.metric, snapshot.vectors_of(sample_rows), nlist, training.seed
    )
    go_on()
    snapshot, rows_skipped = _catch_up(collection, ivf, 0, go_on)
    calibration, filter_margins = _calibrate(
        collection, ivf, snapshot, snapshot.rows, random, go_on
    )
    # What was written meanwhile would be a large buffer, and slow searches, until it is absorbed.
    snapshot, skipped_since = _catch_up(collection, ivf, snapshot.rows, go_on)
    now = clock()
    collection.publish_index(
        TrainedIndex(
            ivf=ivf,
            generation=collection.next_generation(),
            calibration=calibration,
            live_when_trained=len(live_rows),
            rows_trained_on=len(sample_rows),
            trained_at=now,
            training_s=now - started,
            imbalance_when_trained=ivf.list_imbalance,
            filter_margins=filter_margins,
        ),
        snapshot.rows,
        rows_skipped + skipped_since,
    )


def _catch_up(
    collection: Collection, ivf: IvfIndex, first: int, go_on: Callable[[], None]
) -> tuple[Snapshot, int]:
    """Add the rows from `first` on to a private index, and in a few rounds those written meanwhile.

    Returns the snapshot of which it holds all rows then, and how many of those added were dead.
    """
    skipped = 0
    for _ in range(CATCHING_UP_ROUNDS):
        snapshot = collection.snapshot
        skipped += _absorb(ivf, snapshot, first, snapshot.rows, go_on)
        first = snapshot.rows
        if collection.snapshot.rows - first <= collection.engine.buffer.absorb_rows:
            break
    return snapshot, skipped


def _absorb(
    ivf: IvfIndex, snapshot: Snapshot, first: int, last: int, go_on: Callable[[], None]
) -> int:
    """Add the live rows of [first, last) to a private index; return how many were dead."""
    skipped = 0
    for piece in range(first, last, BUILD_PIECE_ROWS):
        go_on()
        piece_last = min(piece + BUILD_PIECE_ROWS, last)
        rows = snapshot.tombstones.live_rows(piece, piece_last)
        ivf.add(rows, snapshot.vectors_of(rows))
        skipped += piece_last - piece - len(rows)
    return skipped


def _calibrate(
    collection: Collection,
    ivf: IvfIndex,
    snapshot: Snapshot,
    absorbed_until: int,
    random: np.random.Generator,
    go_on: Callable[[], None],
) -> tuple[Calibration, tuple[float, ...]]:
    """Measure the recall of an index on a sample of its own rows, each left out of its answer.

    Beside it the margins of searches with filters, where fields are declared for them.
    """
    live_rows = snapshot.tombstones.live_rows(0, absorbed_until)
    size = min(len(live_rows), collection.engine.training.calibration_queries)
    query_rows = np.sort(random.choice(live_rows, size=size, replace=False))
    queries = snapshot.vectors_of(query_rows)
    held = snapshot.between(0, absorbed_until)
    config = collection.entry.config
    margins: tuple[float, ...] = ()
    if config.filter_fields:
        margins = measured_margins(config.metric, ivf, held, queries, query_rows)
    calibration = measured_calibration(
        config,
        ivf,
        held,
        queries,
        query_rows,
        go_on,
        shards=collection.engine.training.merged_shards,
    )
    return calibration, margins


def measure_live_recall(collection: Collection, go_on: Callable[[], None]) -> None:
    """Measure the recall of live searches; calibrate the index on them if it stays too low.

    `go_on` is called between two pieces of the work and raises what ends it.
    """
    live, index = collection.live, collection.snapshot.index
    if not live.measure(collection.index_at_rest, go_on) or index is None:
        return
    before = live.measured_of(index)
    if before is None:  # another index was published first
        return
    calibration = live.calibrated(index, collection.index_at_rest, go_on)
    if not collection.publish_calibration(index, calibration):
        return
    target_recall = collection.entry.config.target_recall
    settings = {
        name: each.point_for(target_recall, CALIBRATED_K[0])
        for name, each in (("before", index.calibration), ("after", calibration))
    }
    _log.info(
        "calibrated on live queries",
        collection=collection.entry.config.name,
        live_recall=round(before.recall, 4),
        live_queries=before.queries,
        target_recall=target_recall,
        **{
            f"{name}_{field}": getattr(point.parameters, field) if point else "all"
            for name, point in settings.items()
            for field in ("nprobe", "candidates")
        },
    )


class Pace:
    """How fast rows are absorbed: at once while nobody searches, else with rests for the searches.

    Times are in seconds, of any one clock.

    Parameters
    ----------
    now
        When the first piece begins.
    searches
        How many searches there have been by then.
    """

    def __init__(self, now: float, searches: int) -> None:
        self._begun = now
        self._searches = searches
        self._searched_at = -math.inf

    def rest_s(self, now: float, searches: int) -> float:
        """Return how long to rest after a piece; 0 where the next one follows at once."""
        took_s, self._begun = now - self._begun, now
        if searches != self._searches:
            self._searches, self._searched_at = searches, now
        return REST_A_PIECE * took_s if now - self._searched_at < SEARCHES_COME_S else 0.0

    def rested(self, now: float) -> None:
        """Take the next piece to begin now."""
        self._begun = now


class Trainer:
    """Runs the background work of many collections on two threads.

    Parameters
    ----------
    clock
        Seconds since 1970.
    stopwatch
        Seconds since any moment.
    when_idle
        Called on either thread when it has had no work for IDLE_S, once until it has some again.
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
        self._builder = self._thread("builder", self._build, BUILDER_NICENESS)
        self._absorber = self._thread("absorber", self._absorb, 0)

    def _thread(
        self, name: str, step: Callable[[Collection], bool], niceness: int
    ) -> threading.Thread:
        return threading.Thread(target=self._loop, args=(step, niceness), name=name, daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._builder.start()
        self._absorber.start()

    def attach(self, collection: Collection) -> None:
        """Take care of a collection from now on."""
        collection.on_change = self._wake
        with self._changed:
            self._collections = (*self._collections, collection)
        self._wake()

    def detach(self, collection: Collection) -> None:
        """Take no more care of a collection. A step that runs finishes."""
        with self._changed:
            self._collections = tuple(c for c in self._collections if c is not collection)

    def stop(self) -> None:
        """End the threads after the steps that run; a k-means that takes long is left behind."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._absorber.join()
        self._builder.join(BUILDER_FAREWELL_S)

    def _wake(self) -> None:
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def _loop(self, step: Callable[[Collection], bool], niceness: int) -> None:
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
                self._changed.wait_for(partial(self._has_changed, seen))
                seen = self._changes
            self._run_all(step)

    def _has_changed(self, seen: int) -> bool:
        return self._changes != seen or self._stopping

    def _run_all(self, step: Callable[[Collection], bool]) -> None:
        """Run a step for all collections in turn, until none has anything left to do.

        Apart from the thread's loop: a thread that waits keeps no collection alive.
        """
        busy = True
        while busy and not self._stopping:
            busy = False
            for collection in self._collections:
                busy |= self._run(step, collection)

    def _run(self, step: Callable[[Collection], bool], collection: Collection) -> bool:
        """Run a step; say whether there is more to do. Its failure is nobody else's."""
        try:
            return not self._stopping and not collection.closed and step(collection)
        except TrainingAbandoned:
            return False
        except Exception:
            if not collection.closed:
                _log.exception("background work failed", collection=collection.entry.config.name)
            return False

    def _build(self, collection: Collection) -> bool:
        if collection.wants_training:
            self._train(collection)
        elif collection.wants_rebuild:
            collection.rebuild(_go_on(collection, lambda: self._stopping))
        elif collection.wants_sweeping:
            collection.sweep()
        elif collection.wants_live_recall:
            measure_live_recall(collection, self._unhurried(collection))
        else:
            return False
        return True

    def _unhurried(self, collection: Collection) -> Callable[[], None]:
        """Return what makes way for all other work of the builder, and rests between two pieces."""
        go_on = _go_on(collection, lambda: self._stopping or self._has_other_work())
        begun = self._stopwatch()

        def rest() -> None:
            nonlocal begun
            self._rest(RESTS_A_PIECE * (self._stopwatch() - begun), self._has_other_work)
            go_on()
            begun = self._stopwatch()

        return rest

    def _rest(self, rest_s: float, is_over: Callable[[], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or is_over(), rest_s)

    def _has_other_work(self) -> bool:
        return any(
            each.wants_training or each.wants_rebuild or each.wants_sweeping
            for each in self._collections
            if not each.closed
        )

    def _train(self, collection: Collection) -> None:
        asked = collection.begin_training()
        try:
            build_index(collection, self._clock, lambda: self._stopping)
        except BaseException as error:
            collection.put_off_training()
            for future in asked:
                future.set_exception(error)
            raise
        finally:
            collection.end_training()
        if asked:
            collection.ask_for_rebuild()
        for future in asked:
            future.set_result(None)

    def _absorb(self, collection: Collection) -> bool:
        if collection.wants_absorbing:
            pace = Pace(self._stopwatch(), collection.searches)
            for _ in range(ABSORBED_PIECES):
                if self._stopping or collection.closed or not collection.absorb_piece():
                    break
                rest_s = pace.rest_s(self._stopwatch(), collection.searches)
                if rest_s:
                    self._rest(rest_s, lambda: False)
                    pace.rested(self._stopwatch())
        if collection.wants_checkpoint:
            collection.checkpoint()
        return collection.wants_absorbing
