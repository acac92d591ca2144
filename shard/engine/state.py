"""The state that the threads of one collection share: its locks, its snapshot, its publications.

Four locks, always taken in this order. All but the first are held briefly, and the row store's own
lock comes after them:

* `files_lock` (read-write): background work on files holds it to read, `close` to write;
* `writes_lock` (read-write): `Writes.apply` holds it to read, the end of a compaction to write;
* `index_lock` (read-write): searches of the published index hold it to read, additions to write;
* `publish_lock`: the snapshot and the columns change together.

The snapshot changes in this module alone, by one assignment per publication. A thread that reads it
once therefore sees a consistent collection.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.commit_plan import CommitPlan
from vectorshard.shard.engine.damaged_rows import (
    around,
    damaged_at_start,
    log_damaged,
    mismatches,
    problem_text,
    suspects,
)
from vectorshard.shard.engine.index_training import drift_after_start
from vectorshard.shard.engine.noticed import Noticed
from vectorshard.shard.engine.read_write_lock import ReadWriteLock
from vectorshard.shard.errors import CorruptData, ReadFailed, WritesStopped
from vectorshard.shard.index.calibration import Calibration
from vectorshard.shard.index.drift import Drift
from vectorshard.shard.membership import Problem, ProblemKind
from vectorshard.shard.search.large_k import LargeK
from vectorshard.shard.search.live_recall import LiveRecall
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.storage.checkpoint import Checkpoint
from vectorshard.shard.storage.content_hash import sum_bytes
from vectorshard.shard.storage.disk import DISK_ERRORS, Disk
from vectorshard.shard.storage.filter_file import columns_after_start, remove_stray_columns
from vectorshard.shard.storage.index_file import remove_stray_index_files, with_stored_index
from vectorshard.shard.storage.memory_map import require_readable
from vectorshard.shard.storage.room import Room
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import Commit
from vectorshard.shard.storage.row_store_load import live_sum
from vectorshard.shard.storage.row_store_upgrade import Upgrade, fill_content_hashes
from vectorshard.shard.types import (
    CollectionEntry,
    Float32Array,
    IdArray,
    Int64Array,
    UInt64Array,
)

_log = structlog.get_logger(__name__)

ROWS_VERIFIED_AT_START: Final = 10_000
"""The newest live rows, whose content hashes a start verifies. Larger: slower starts."""


class CollectionState:
    """What the threads of one collection share: opens its files and recovers what was committed.

    `shard` is the number of the shard, for receipts and descriptions. See `Collection.open`.
    """

    def __init__(
        self, disk: Disk, directory: Path, shard: int, engine: EngineConfig, session: int = 0
    ) -> None:
        self.disk = disk
        self.directory = directory
        self.shard = shard
        self.engine = engine
        self.files_lock = ReadWriteLock()
        self.writes_lock = ReadWriteLock()
        self.index_lock = ReadWriteLock()
        self.publish_lock = threading.Lock()
        self._recording = threading.Lock()  # damaged rows; the row store's lock comes after it
        self.closed = False
        self.training = False
        """Whether an index is being trained."""
        self.drift = Drift()
        """How far the rows that the index has taken in differ from those of its training. It
        changes with `publish_lock` held."""
        self.stop_reason = ""
        """Why the collection takes no more writes; empty while it does."""
        self._waiting_for_room: list[Future[None]] = []
        self.on_change: Callable[[], None] = lambda: None
        """Called when background work may be due; returns immediately."""
        self.on_columns_repaired: Callable[[], None] = lambda: None
        """Called when the scrub has changed filter columns."""
        self.require_room: Callable[[], None] = lambda: None
        """Called before rows are written; raises Overloaded if the disk is nearly full."""
        self.require_writable: Callable[[], None] = lambda: None
        """Called before any write; raises DiskFailed if the disk is read-only."""
        self.room = Room(directory.name)
        """For what is written in the background."""
        with ExitStack() as opened:
            # Until all of it is verified, nothing is changed: what is damaged is evidence.
            self.row_store = opened.enter_context(closing(RowStore.open(disk, directory)))
            self.entry = self.row_store.entry
            self.live = LiveRecall(self.entry.config, engine.training, engine.few_rows_work)
            self.large_k = LargeK()
            self.noticed = Noticed(shard, self.entry.config.name)
            path = directory / self.row_store.row_file
            row_file = RowFile.open_existing(disk, path, self.entry.config.dim)
            upgrade = self._recover(opened.enter_context(closing(row_file)))
            self.row_store.start_writing(session, upgrade)
            self.row_store.log_end.on_failure = self.stop_writes
            self._record_damaged()
            self._remove_strays()
            opened.pop_all()  # from here on `Collection.close` closes them

    # ---- recovery -------------------------------------------------------------------------------

    def _recover(self, row_file: RowFile) -> Upgrade | None:
        """Load and verify what is stored; return what brings an earlier format up to date."""
        stored = self.row_store.load()
        self.columns = columns = RowColumns(self.entry.config.id_type, stored.positions, row_file)
        dead = np.concatenate([stored.replaced, stored.deleted])
        tombstones = stored.positions.tombstones().with_dead(dead)
        rows = tombstones.live_rows(0, stored.rows)
        row_file.require(len(stored.squared_norms))
        columns.load(stored.ids, stored.squared_norms, stored.content_hashes, rows)
        upgrade = None
        if stored.checksums is not None:
            fill_content_hashes(columns, stored.checksums, self.row_store.metadata)
            upgrade = Upgrade(
                content_hashes=columns.content_hashes,
                vectors=columns.vectors,
                sum=live_sum(stored, dead),
            )
        last = self.row_store.last_compaction
        snapshot = Snapshot(
            sequence=stored.sequence,
            vectors=columns.vectors,
            squared_norms=columns.squared_norms,
            ids=columns.ids,
            content_hashes=columns.content_hashes,
            positions=columns.positions,
            tombstones=tombstones,
            replaced=last.replaced + len(stored.replaced),
            deleted=last.deleted + len(stored.deleted),
            sum=self.row_store.sum if upgrade is None else sum_bytes(upgrade.sum),
            lost=self.row_store.lost,
        )
        newest = rows[-ROWS_VERIFIED_AT_START:]
        from_start = self.engine.machine.read_all or not len(newest)
        first = 0 if from_start else int(columns.positions.of(newest[:1])[0])
        require_readable(columns.vectors[first:])
        snapshot, columns_rows = self._verified(snapshot, newest, upgrades=upgrade is not None)
        self.snapshot = with_stored_index(self.directory, self.row_store, snapshot, self._repaired)
        """What is published now."""
        self.large_k.remember(self.snapshot.index)
        self.drift = drift_after_start(self.snapshot)
        self.checkpoint = Checkpoint(
            self.disk,
            self.directory,
            self.row_store,
            self.engine.training,
            self.snapshot,
            self.filter_columns,
            columns_rows,
            self.room,
        )
        return upgrade

    def _verified(
        self, snapshot: Snapshot, newest: Int64Array, *, upgrades: bool
    ) -> tuple[Snapshot, int]:
        """Return a snapshot with its filter columns and the damaged rows that a start finds, and
        how many rows of the columns a file holds.
        """
        row_store = self.row_store
        damaged, self._repaired = damaged_at_start(row_store, snapshot, newest, upgrades=upgrades)
        """Rows that were damaged once and are sound: derived files may lack them."""
        self.filter_columns, columns_rows, others = columns_after_start(
            self.directory, row_store, replace(snapshot, damaged=damaged), self._repaired
        )
        damaged = np.union1d(damaged, others)
        if len(damaged):
            ids, name = snapshot.ids_of(damaged), self.entry.config.name
            log_damaged(name, self.shard, ids, damaged, by="start")
        return replace(snapshot, damaged=damaged, columns=self.filter_columns), columns_rows

    def _remove_strays(self) -> None:
        """Remove files that are not in use: of an earlier generation, or left by a crash.

        A file that the disk fails to remove stays, and costs nothing but space.
        """
        strays = [
            path for path in self.directory.glob("rows-*") if path.name != self.row_store.row_file
        ]
        for path in strays:
            with suppress(OSError):
                self.disk.remove(path)
        with suppress(OSError):
            remove_stray_index_files(self.disk, self.directory, self.row_store)
        with suppress(OSError):
            remove_stray_columns(self.disk, self.directory, self.checkpoint.columns_rows)

    # ---- damaged rows ---------------------------------------------------------------------------

    def mismatches(self, snapshot: Snapshot, rows: Int64Array) -> Int64Array:
        """Return those of `rows`, live and in any order, that do not match their content hashes."""
        return mismatches(self.row_store, snapshot, rows)

    def note_damaged(self, rows: Int64Array, by: str) -> None:
        """Hide rows from searches that start later, and report them as damaged. Any thread may.

        Dead rows and those that are noted already are ignored. `by` says what found them, for the
        log. The set is recorded as far as the disk lets it: what is not recorded is found again. Of
        the locks, the caller holds at most `files_lock` and `writes_lock`.
        """
        with self.publish_lock:
            snapshot = self.snapshot
            rows = np.unique(rows[rows < snapshot.rows])
            rows = rows[~snapshot.hidden.are_dead(rows)]
            if not len(rows):
                return
            self.snapshot = replace(snapshot, damaged=np.union1d(snapshot.damaged, rows))
        log_damaged(self.entry.config.name, self.shard, snapshot.ids_of(rows), rows, by)
        self._record_damaged()
        self.on_change()

    def check_vectors(self, first: int, last: int, by: str) -> int:
        """Note damaged rows of [first, last), found by the checksums of the ranges of vectors.

        Returns the end of the last range, at least `last`. The caller holds `files_lock` to read,
        and the collection is open. Raises OSError or sqlite3.Error if the disk fails.
        """
        snapshot = self.snapshot
        rows, until = suspects(self.row_store, snapshot, first, last)
        if len(rows) and len(damaged := self.mismatches(snapshot, rows)):
            self.found_damaged(snapshot, damaged, by)
        return until

    def found_damaged(self, snapshot: Snapshot, rows: Int64Array, by: str) -> None:
        """Note rows that a reader of a snapshot found damaged, and those damaged around them.

        A compaction may have copied them to another file since, where they are sound.
        """
        with suppress(*DISK_ERRORS, CorruptData, ReadFailed):
            rows = around(self.row_store, snapshot, rows)
        newest = self.snapshot
        if newest.positions is not snapshot.positions:
            rows = self.mismatches(newest, rows[~newest.tombstones.are_dead(rows)])
        self.note_damaged(rows, by)

    def damaged_of(self, snapshot: Snapshot) -> Int64Array:
        """Return the live rows of an earlier snapshot that are known to be damaged by now."""
        damaged = self.snapshot.damaged
        damaged = damaged[damaged < snapshot.rows]
        return np.union1d(snapshot.damaged, damaged)

    def _record_damaged(self) -> None:
        """Record the damaged rows durably. A failure is logged."""
        with self._recording:
            snapshot, repaired = self.snapshot, self._repaired
            repaired = repaired[~snapshot.tombstones.are_dead(repaired)]
            damaged = np.union1d(snapshot.damaged, repaired)
            if np.array_equal(damaged, self.row_store.damaged):
                return
            try:
                self.row_store.record_damaged(damaged)
            except Exception as error:
                name = self.entry.config.name
                _log.warning("damaged rows not recorded", collection=name, reason=str(error))

    # ---- publishing -----------------------------------------------------------------------------

    def newest_rows(self, ids: IdArray, id_hashes: UInt64Array | None = None) -> Int64Array:
        """Return the newest published row of each id, dead or alive, or -1. int64 (ids,).

        `id_hashes` are the xxh3-64 of the ids, if they are known. A commit whose publication failed
        may have left its rows in the id index.
        """
        rows = self.columns.newest_rows(ids, id_hashes)
        return np.where(rows < self.snapshot.rows, rows, -1)

    def publish_commit(self, plan: CommitPlan, sequence: int, commit: Commit) -> None:
        """Make a commit visible: its rows, and the tombstones of the rows that it replaces."""
        self.filter_columns.append(plan.field_values, plan.first_row + plan.rows)
        with self.publish_lock:
            tombstones = plan.tombstones
            vectors, squared_norms, hashes = self.columns.append(
                plan.ids, commit.squared_norms, commit.content_hashes, plan.id_hashes
            )
            old = self.snapshot
            damaged = old.damaged
            if len(damaged):
                damaged = damaged[~tombstones.are_dead(damaged)]
            self.snapshot = replace(
                old,
                sequence=sequence,
                vectors=vectors,
                squared_norms=squared_norms,
                content_hashes=hashes,
                tombstones=tombstones,
                damaged=damaged,
                replaced=old.replaced + len(plan.replaced),
                deleted=old.deleted + len(plan.deleted),
                sum=self.row_store.sum,
            )

    def record_loss(self, lost: int) -> None:
        """Record durably that so many rows in all are lost, and show it in the ledger."""
        self.row_store.record_loss(lost)
        with self.publish_lock:
            self.snapshot = replace(self.snapshot, lost=lost)

    def publish_index(
        self, index: TrainedIndex, absorbed_until: int, rows_skipped: int, distances: Float32Array
    ) -> None:
        """Replace the index in one step.

        `distances`, float32 (rows,), are those of rows written since its training began to their
        centroids.
        """
        with self.index_lock.write(), self.publish_lock:
            self.snapshot = replace(
                self.snapshot,
                index=index,
                absorbed_until=absorbed_until,
                rows_skipped=rows_skipped,
                list_imbalance=index.ivf.list_imbalance,
            )
            self.training = False
            self.drift = Drift(base=index.distance_when_trained).with_distances(distances)
            self._announce_room()
        self.on_change()

    def publish_absorbed(
        self, absorbed_until: int, rows_skipped: int, imbalance: float, distances: Float32Array
    ) -> None:
        """Publish that the index holds more rows; `index_lock` is held to write.

        `distances` are those of some of the rows to their centroids, float32 (rows,).
        """
        with self.publish_lock:
            self.snapshot = replace(
                self.snapshot,
                absorbed_until=absorbed_until,
                rows_skipped=rows_skipped,
                list_imbalance=imbalance,
            )
            self.drift = self.drift.with_distances(distances)
            self._announce_room()

    def publish_calibration(self, index: TrainedIndex, calibration: Calibration) -> bool:
        """Replace an index's calibration; return whether the index was still in use."""
        with self.publish_lock:
            snapshot = self.snapshot
            if snapshot.index is not index:
                return False
            self.snapshot = replace(snapshot, index=replace(index, calibration=calibration))
        self.on_change()
        return True

    def publish_configuration(self, entry: CollectionEntry) -> None:
        """Replace the collection's entry by one with another target recall."""
        self.entry = entry
        self.live.follow(entry.config)
        self.on_change()

    def publish_verdict(self, index: TrainedIndex, added: int, *, harmful: bool) -> None:
        """Note what a measurement of the newest rows found, unless the index was replaced since.

        `added` is the number of rows that the index had taken in by then.
        """
        with self.publish_lock:
            newest = self.snapshot.index
            if newest is not None and newest.ivf is index.ivf:
                drift = self.drift
                self.drift = drift.found_harmful() if harmful else drift.found_harmless(added)
        self.on_change()

    def publish_columns(self, columns: RowColumns) -> None:
        """Replace the columns by others of the same rows; `writes_lock` is held to write."""
        with self.publish_lock:
            self.snapshot = replace(
                self.snapshot,
                vectors=columns.vectors,
                squared_norms=columns.squared_norms,
                ids=columns.ids,
                content_hashes=columns.content_hashes,
                positions=columns.positions,
            )
            self.columns = columns

    @contextmanager
    def index_at_rest(self) -> Iterator[Snapshot]:
        """Lend the snapshot; nothing is added to its index until the context ends."""
        with self.index_lock.read():
            yield self.snapshot

    # ---- writers --------------------------------------------------------------------------------

    def room_for_rows(self) -> Future[None]:
        """Return a future that is done once the training buffer has room. It may be cancelled.

        The buffer has room at `slow_writers_rows` rows or fewer, and before the first training.
        """
        room: Future[None] = Future()
        with self.publish_lock:
            self._waiting_for_room.append(room)
            self._announce_room()
        return room

    def _announce_room(self) -> None:
        """Complete the futures that wait for room if there is room; `publish_lock` is held."""
        snapshot = self.snapshot
        buffered = snapshot.rows - snapshot.absorbed_until
        if snapshot.index is None or buffered <= self.engine.buffer.slow_writers_rows:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for room in waiting:
                if room.set_running_or_notify_cancel():
                    room.set_result(None)

    @property
    def problems(self) -> list[Problem]:
        """What an operator has to look at."""
        texts = {}
        if self.stop_reason:
            texts[ProblemKind.WRITES_STOPPED] = self.stop_reason
        snapshot, name = self.snapshot, self.entry.config.name
        if len(snapshot.damaged):
            texts[ProblemKind.ROWS_DAMAGED] = problem_text(name, snapshot)
        found = [
            Problem(shard=self.shard, kind=kind, collection=name, text=text)
            for kind, text in texts.items()
        ]
        return [*found, *self.noticed.problems]

    def stop_writes(self, reason: str) -> WritesStopped:
        """Refuse all writes from now on; return the error that says why."""
        self.stop_reason = (
            f"collection {self.entry.config.name!r} takes no more writes: {reason}. The write that "
            "failed may have been done: a restart shows it. Restart the shard after removing the "
            "cause."
        )
        return WritesStopped(self.stop_reason)
