"""The engine: one collection on one shard.

Reads take one immutable snapshot and nothing else. Writes come from one thread at a time: append to
the row file, sync, commit to the row store, publish, and only then acknowledge. Whatever is
published is durable; whatever is not published does not exist.

Five locks, always taken in this order, and but for the first never for long:

* `_files` (read-write): files are written in the background by some, or let go of by one;
* `_writes` (read-write): writes are applied, or the columns are replaced by one;
* `_index_lock` (read-write): the published index is searched by many or added to by one;
* `_publishing`: the snapshot and the columns change together;
* the row store's own.

Threads: any number read; one at a time calls `apply`; one absorbs and writes checkpoints; one
builds new indexes and rebuilds the row file.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.commit_plan import (
    AdmittedDelete,
    AdmittedFilterDelete,
    AdmittedUpsert,
    AdmittedWrite,
    CommitPlan,
    WriteOutcome,
)
from vectorshard.shard.engine.compaction import Rebuild, remove_stray_row_files
from vectorshard.shard.engine.description import described
from vectorshard.shard.engine.read_write_lock import ReadWriteLock
from vectorshard.shard.engine.upkeep import first_training_due, rebuild_due, retraining_due
from vectorshard.shard.engine.validation import (
    admit_vectors,
    check_filter,
    check_ids,
)
from vectorshard.shard.errors import (
    CollectionNotFound,
    LimitExceeded,
    Overloaded,
    RowFileCorrupt,
    WritesStopped,
)
from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import Calibration
from vectorshard.shard.index.exact import RankedRows, concatenate, exact_scores, rank
from vectorshard.shard.rows.declared_fields import declared_fields
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.search.candidates import generate_candidates
from vectorshard.shard.search.explanation import looked_up, ranked
from vectorshard.shard.search.filtered_search import RememberedFilters
from vectorshard.shard.search.live_recall import LiveRecall
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.storage.checkpoint import Checkpoint
from vectorshard.shard.storage.checksum import row_checksums
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.filter_file import columns_after_start
from vectorshard.shard.storage.index_file import remove_stray_index_files, with_stored_index
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import Commit, StoredRows
from vectorshard.shard.types import (
    CollectionEntry,
    DeleteRequest,
    ExplainRequest,
    Explanation,
    Float32Array,
    IdArray,
    Include,
    Int64Array,
    Ledger,
    Rows,
    SearchRequest,
    ShardDescription,
    ShardReceipt,
    UpsertRequest,
)

COMMIT_IDS_MAX = 20_000
"""Ids that one group commit writes or deletes; a single larger write still goes as one."""

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Hits of a search on one shard, with what was included of them."""

    ranked: RankedRows
    receipt: ShardReceipt
    vectors: Float32Array | None
    metadata: Sequence[bytes] | None


class Collection:
    """One collection on one shard. Use `create` or `open`.

    Parameters
    ----------
    shard
        The number of the shard, for receipts and descriptions.
    entry
        What the collection is.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        directory: Path,
        shard: int,
        entry: CollectionEntry,
        engine: EngineConfig,
        row_file: RowFile,
        row_store: RowStore,
        stored: StoredRows,
    ) -> None:
        self.entry = entry
        self.engine = engine
        self.closed = False
        self._disk = disk
        self._directory = directory
        self._shard = shard
        self._row_store = row_store
        self._files = ReadWriteLock()
        self._writes = ReadWriteLock()
        self._index_lock = ReadWriteLock()
        self._publishing = threading.Lock()
        self._columns = RowColumns(entry.config.id_type, stored.positions, row_file)
        self._superseded: list[weakref.ref[IdColumn]] = []
        self._filters = RememberedFilters()
        self.live = LiveRecall(entry.config, engine.training)
        self._filter_columns, columns_rows = columns_after_start(
            disk, directory, row_store, stored.rows
        )
        self._snapshot = self._recover(stored)
        self._checkpoint = Checkpoint(
            disk,
            directory,
            row_store,
            engine.training,
            self._snapshot,
            self._filter_columns,
            columns_rows,
        )
        stored_index = row_store.index_file
        self._generations = stored_index.generation if stored_index is not None else 0
        self.searches = 0
        """Counts those that began, roughly: whether any come is what matters."""
        self._building = False
        self._rows_before_next_try = 0
        self._rebuild_asked = False
        self._dead_before_next_rebuild = 0
        self._sweep_failed = False
        self._training_asked: list[Future[None]] = []
        self._waiting_for_room: list[Future[None]] = []
        self._writes_stopped = ""
        self.on_change: Callable[[], None] = lambda: None

    @classmethod
    def create(cls, disk: Disk, directory: Path, entry: CollectionEntry) -> None:
        """Create an empty collection's files in an existing, empty directory."""
        row_store = RowStore.create(disk, directory, entry)
        row_store.close()
        RowFile.open(disk, directory / row_store.row_file, entry.config.dim).close()

    @classmethod
    def open(cls, disk: Disk, directory: Path, shard: int, engine: EngineConfig) -> Collection:
        """Open a collection and recover what was committed.

        Raises
        ------
        RowFileCorrupt
            If the row file lacks committed rows, or the newest do not match their checksums.
        RowStoreCorrupt
            If the row store contradicts itself.
        """
        with ExitStack() as opened:
            row_store = opened.enter_context(closing(RowStore.open(disk, directory)))
            remove_stray_index_files(disk, directory, row_store)
            remove_stray_row_files(disk, directory, row_store)
            dim = row_store.entry.config.dim
            path = directory / row_store.row_file
            row_file = opened.enter_context(closing(RowFile.open(disk, path, dim)))
            collection = cls(
                disk=disk,
                directory=directory,
                shard=shard,
                entry=row_store.entry,
                engine=engine,
                row_file=row_file,
                row_store=row_store,
                stored=row_store.load(),
            )
            opened.pop_all()  # from here on they are the collection's to close
            return collection

    # ---- recovery -------------------------------------------------------------------------------

    def _recover(self, stored: StoredRows) -> Snapshot:
        columns = self._columns
        dead = np.concatenate([stored.replaced, stored.deleted])
        tombstones = stored.positions.tombstones().with_dead(dead)
        rows = tombstones.live_rows(0, stored.rows)
        columns.row_file.require(len(stored.squared_norms))
        columns.load(stored.ids, stored.squared_norms, rows)
        rebuilt = self._row_store.last_compaction
        snapshot = Snapshot(
            sequence=stored.sequence,
            vectors=columns.vectors,
            squared_norms=columns.squared_norms,
            ids=columns.ids,
            positions=columns.positions,
            tombstones=tombstones,
            columns=self._filter_columns,
            replaced=rebuilt.replaced + len(stored.replaced),
            deleted=rebuilt.deleted + len(stored.deleted),
        )
        self._verify(snapshot, rows[-_ROWS_VERIFIED_AT_START:])
        return with_stored_index(self._directory, self._row_store, snapshot)

    def _verify(self, snapshot: Snapshot, rows: Int64Array) -> None:
        """Compare rows with their checksums."""
        found = row_checksums(
            rows,
            snapshot.ids_of(rows),
            self._row_store.metadata(rows),
            snapshot.vectors_of(rows),
        )
        wrong = np.flatnonzero(found != self._row_store.checksums(rows))
        if len(wrong):
            raise RowFileCorrupt(
                f"collection {self.entry.config.name}: row {int(rows[wrong[0]])} "
                f"and {len(wrong) - 1} others do not match their checksums"
            )

    # ---- reads: any thread ----------------------------------------------------------------------

    @property
    def snapshot(self) -> Snapshot:
        """What is published now."""
        return self._snapshot

    def search(self, request: SearchRequest) -> Found:
        """Search one batch of queries, which have been admitted.

        Candidates of the index are re-ranked by their exact scores together with those of the
        buffer. The snapshot is taken under the index's lock: what the index holds then is exactly
        the rows below the snapshot's `absorbed_until`.
        """
        self.searches += 1
        config = self.entry.config
        queries = np.asarray(request.queries, dtype=np.float32)
        if request.filter is None and not request.effort.exact and self.live.offer(queries):
            self.on_change()
        with self._index_lock.read():
            snapshot = self._snapshot
            generated = generate_candidates(snapshot, config, queries, request, self._filters)
        setting, exact_part = generated.parameters, generated.exact_part
        candidates = concatenate(
            [generated.from_index, exact_part.candidates(config.metric, queries, request.k)]
        )
        placed = candidates.at(snapshot.positions)
        scores = exact_scores(config.metric, queries, snapshot.vectors, placed)
        ranked = rank(
            config.metric,
            candidates,
            scores,
            snapshot.ids_of,
            len(queries),
            request.k,
            request.score_threshold,
        )
        index = snapshot.index if setting is not None else None
        receipt = ShardReceipt(
            shard=self._shard,
            rows_visible=snapshot.live,
            rows_exact=exact_part.live,
            nlist=index.ivf.nlist if index is not None else 0,
            nprobe=setting.nprobe if setting is not None else 0,
            candidates=setting.candidates if setting is not None else 0,
            generation=index.generation if index is not None else 0,
            rows_passing=generated.rows_passing,
            filter_plan=generated.filter_plan,
        )
        vectors, metadata = self._included(snapshot, ranked.rows, request.include)
        return Found(ranked=ranked, receipt=receipt, vectors=vectors, metadata=metadata)

    def explain(self, request: ExplainRequest) -> Explanation:
        """Say where an id is, how it ranks for a query, and what a search must do to find it.

        The query has been admitted. Raises InvalidRequest for an id or a filter that cannot be.
        """
        config = self.entry.config
        check_ids(config, request.id, "id")
        check_filter(config, request.filter)
        with self._index_lock.read():
            with self._publishing:
                snapshot, row = self._snapshot, int(self._newest_rows(request.id)[0])
            found = looked_up(config, snapshot, request, row)
        return replace(ranked(config, snapshot, request, row, found), shard=self._shard)

    def get(self, ids: IdArray | None, include: Include, filter_: Filter | None = None) -> Rows:
        """Return the rows of the ids that exist, in their order; vectors are verified.

        Without ids, the rows that pass a filter, by row number.

        Raises
        ------
        InvalidRequest
            For ids or a filter that the collection cannot take.
        LimitExceeded
            If more rows pass than one request may name ids.
        RowFileCorrupt
            If a row does not match its checksum.
        """
        snapshot, rows = self._selected(ids, filter_)
        if ids is None and len(rows) > self.engine.limits.rows:
            raise LimitExceeded(
                f"{len(rows):,} rows pass, at most {self.engine.limits.rows:,}: list them by pages",
                field="filter",
            )
        vectors, metadata = self._included(snapshot, rows, include)
        return Rows(ids=snapshot.ids_of(rows), vectors=vectors, metadata=metadata)

    def count(self, ids: IdArray | None, filter_: Filter | None = None) -> int:
        """Count the live rows: all, those of `ids`, those that pass a filter, or those of both."""
        if ids is None and filter_ is None:
            return self._snapshot.live
        return len(self._selected(ids, filter_)[1])

    def _selected(self, ids: IdArray | None, filter_: Filter | None) -> tuple[Snapshot, Int64Array]:
        """Return a snapshot and its live rows that ids and filter, at least one, select."""
        check_filter(self.entry.config, filter_)
        if ids is None:
            assert filter_ is not None
            snapshot = self._snapshot
            return snapshot, snapshot.passing(filter_)
        snapshot, rows = self._live_rows_of(ids)
        rows = rows[rows >= 0]
        if filter_ is not None:
            rows = rows[np.isin(rows, snapshot.passing(filter_))]
        return snapshot, rows

    def list_rows(
        self,
        first_row: int,
        page_size: int,
        include: Include,
        filter_: Filter | None = None,
    ) -> tuple[Rows, int | None]:
        """Return the first `page_size` live rows from `first_row` on, and where to go on.

        With a filter, of those that pass it.
        """
        check_filter(self.entry.config, filter_)
        snapshot = self._snapshot
        first_row = min(first_row, snapshot.rows)
        if filter_ is None:
            rows = snapshot.tombstones.live_rows(first_row, snapshot.rows, page_size + 1)
        else:
            passing = snapshot.passing(filter_)
            first = np.searchsorted(passing, first_row)
            rows = passing[first : first + page_size + 1]
        next_row = int(rows[page_size]) if len(rows) > page_size else None
        rows = rows[:page_size]
        vectors, metadata = self._included(snapshot, rows, include)
        return Rows(ids=snapshot.ids_of(rows), vectors=vectors, metadata=metadata), next_row

    def ledger(self) -> Ledger:
        """Say where every accepted row is, counting what the index really holds."""
        with self._index_lock.read():
            return self._snapshot.ledger()

    def describe(self) -> ShardDescription:
        """Describe this shard's part of the collection."""
        with self._index_lock.read():
            snapshot = self._snapshot
            building = self._building
            ledger = snapshot.ledger()
        with self._publishing:  # a rebuild closes the columns' file once others are published
            rows_memory_bytes = self._columns.memory_bytes
            rows_disk_bytes = self._columns.row_file.disk_bytes
        return described(
            self._shard,
            self.entry.config,
            snapshot,
            ledger,
            self.live,
            building=building,
            memory_bytes=rows_memory_bytes,
            disk_bytes=rows_disk_bytes + self._row_store.disk_bytes + self._checkpoint.index_bytes,
        )

    def _live_rows_of(self, ids: IdArray) -> tuple[Snapshot, Int64Array]:
        """Return the snapshot and, for each id, its live row in it or -1."""
        check_ids(self.entry.config, ids)
        with self._publishing:
            snapshot = self._snapshot
            rows = self._newest_rows(ids)
        exists = rows >= 0
        exists[exists] = ~snapshot.tombstones.are_dead(rows[exists])
        return snapshot, np.where(exists, rows, -1)

    def _newest_rows(self, ids: IdArray) -> Int64Array:
        """Return the newest published row of each id, or -1. int64 (ids,).

        A commit whose publication failed may have left its rows in the id index.
        """
        rows = self._columns.newest_rows(ids)
        return np.where(rows < self._snapshot.rows, rows, -1)

    def _included(
        self, snapshot: Snapshot, rows: Int64Array, include: Include
    ) -> tuple[Float32Array | None, Sequence[bytes] | None]:
        """Return what is included of rows; vectors are verified before they leave."""
        if include.vectors:
            self._verify(snapshot, np.unique(rows))
        vectors = snapshot.vectors_of(rows) if include.vectors else None
        metadata = self._row_store.metadata(rows) if include.metadata else None
        return vectors, metadata

    # ---- writes: one thread at a time -----------------------------------------------------------

    def admit(self, request: UpsertRequest | DeleteRequest) -> AdmittedWrite:
        """Check a write and bring it into the form that is stored.

        Raises
        ------
        InvalidRequest
            For ids, vectors, metadata or a filter that the collection cannot take.
        """
        if isinstance(request, DeleteRequest):
            if request.ids is None:
                assert request.filter is not None
                check_filter(self.entry.config, request.filter)
                return AdmittedFilterDelete(filter=request.filter)
            check_ids(self.entry.config, request.ids)
            return AdmittedDelete(ids=request.ids)
        check_ids(self.entry.config, request.ids)
        return AdmittedUpsert(
            ids=request.ids,
            vectors=admit_vectors(self.entry.config, request.vectors, "vectors"),
            metadata=request.metadata,
            field_values=declared_fields(self.entry.config, request.metadata),
            mode=request.mode,
        )

    def apply(
        self, requests: Sequence[UpsertRequest | DeleteRequest]
    ) -> list[WriteOutcome | Exception]:
        """Commit a group of writes; return an outcome or an error for each, in order.

        What is returned as an outcome is durable and visible to every search that starts later.
        """
        with self._writes.read():
            return self._apply(requests)

    def _apply(
        self, requests: Sequence[UpsertRequest | DeleteRequest]
    ) -> list[WriteOutcome | Exception]:
        outcomes: list[WriteOutcome | Exception] = []
        plan = self._new_plan()
        planned: list[WriteOutcome | Exception] = []
        for request in requests:
            try:
                write = self.admit(request)
                if not plan.fits(write, COMMIT_IDS_MAX):
                    outcomes += self._outcomes(plan, planned)
                    plan, planned = self._new_plan(), []
                planned.append(plan.add(write))
            except Exception as error:
                planned.append(error)
        return outcomes + self._outcomes(plan, planned)

    def _new_plan(self) -> CommitPlan:
        return CommitPlan(
            self._snapshot,
            self.entry.config.id_type,
            self._newest_rows,
            self._row_store.metadata,
        )

    def _outcomes(
        self, plan: CommitPlan, planned: Sequence[WriteOutcome | Exception]
    ) -> list[WriteOutcome | Exception]:
        """Commit a plan and complete its outcomes; errors of single writes stay as they are."""
        try:
            sequence = self._commit(plan)
        except Exception as error:
            return [outcome if isinstance(outcome, Exception) else error for outcome in planned]
        return [
            outcome if isinstance(outcome, Exception) else replace(outcome, sequence=sequence)
            for outcome in planned
        ]

    def _commit(self, plan: CommitPlan) -> int:
        """Make a plan durable, then visible. Returns the sequence number it is visible in."""
        if self._writes_stopped:
            raise WritesStopped(self._writes_stopped)
        if plan.changes_nothing:
            return self._snapshot.sequence
        ids, vectors = plan.ids, plan.vectors
        squared_norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64).astype(np.float32)
        try:
            if plan.rows:
                self._columns.write(plan.first_row, vectors)
            rows = np.arange(plan.first_row, plan.first_row + plan.rows)
            metadata = [b""] * plan.rows
            for row, struct in plan.metadata.items():
                metadata[row - plan.first_row] = struct
            sequence = self._row_store.commit(
                Commit(
                    first_row=plan.first_row,
                    ids=ids,
                    checksums=row_checksums(rows, ids, metadata, vectors),
                    squared_norms=squared_norms,
                    metadata=plan.metadata,
                    replaced=plan.replaced,
                    deleted=plan.deleted,
                )
            )
        except (OSError, sqlite3.Error) as error:
            raise self._write_failure(error) from error
        try:
            self._publish_commit(plan, sequence, squared_norms)
        except BaseException as error:
            # What is committed and what is published differ now: the next append would go astray.
            raise self._stop_writes(f"a commit could not be published ({error!r})") from error
        return sequence

    def _write_failure(self, error: OSError | sqlite3.Error) -> Exception:
        """Translate a failed write. After anything but a full disk, no write is tried again.

        A sync that failed may have thrown the written pages away while it left them readable, so
        that a second try would succeed without having stored anything.
        """
        full = isinstance(error, OSError) and error.errno in _DISK_FULL
        full = full or getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        if full:
            return Overloaded("the disk is full: free some room and try again")
        return self._stop_writes(f"the disk failed a write ({error})")

    def _stop_writes(self, reason: str) -> WritesStopped:
        self._writes_stopped = (
            f"collection {self.entry.config.name} takes no more writes: {reason}; "
            "restart the shard once its cause is gone"
        )
        return WritesStopped(self._writes_stopped)

    def _publish_commit(self, plan: CommitPlan, sequence: int, squared_norms: Float32Array) -> None:
        self._filter_columns.append(plan.field_values, plan.first_row + plan.rows)
        with self._publishing:
            tombstones = plan.tombstones
            vectors, all_squared_norms = self._columns.append(plan.ids, squared_norms)
            old = self._snapshot
            self._snapshot = replace(
                old,
                sequence=sequence,
                vectors=vectors,
                squared_norms=all_squared_norms,
                tombstones=tombstones,
                replaced=old.replaced + len(plan.replaced),
                deleted=old.deleted + len(plan.deleted),
            )
        if (
            self.wants_training
            or self.wants_absorbing
            or self.wants_rebuild
            or self._checkpoint.columns_due(self._snapshot)
        ):
            self.on_change()

    def room_for_rows(self) -> Future[None]:
        """Return what is done as soon as the buffer does not outgrow what is being absorbed.

        Whoever writes waits for it, for `slow_writers_wait_s` at most. It may be cancelled.
        """
        room: Future[None] = Future()
        with self._publishing:
            self._waiting_for_room.append(room)
            self._tell_of_room()
        return room

    def _tell_of_room(self) -> None:
        """Tell those who wait for room if there is some; `_publishing` is held."""
        snapshot = self._snapshot
        buffered = snapshot.rows - snapshot.absorbed_until
        if snapshot.index is None or buffered <= self.engine.buffer.slow_writers_rows:
            waiting, self._waiting_for_room = self._waiting_for_room, []
            for room in waiting:
                if room.set_running_or_notify_cancel():
                    room.set_result(None)

    # ---- the index: background threads ----------------------------------------------------------

    @property
    def wants_training(self) -> bool:
        """Whether an index should be built.

        It is asked for, the first one is due, or the last one is out of date.
        """
        if self._training_asked:
            return True
        snapshot = self._snapshot
        if snapshot.rows < self._rows_before_next_try:
            return False
        return first_training_due(
            snapshot, self.entry.config.index.min_training_size
        ) or retraining_due(snapshot, self.engine.compaction)

    @property
    def wants_absorbing(self) -> bool:
        """Whether the buffer has grown enough to be absorbed."""
        snapshot = self._snapshot
        buffered = snapshot.rows - snapshot.absorbed_until
        return snapshot.index is not None and buffered >= self.engine.buffer.absorb_rows

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the index has outgrown its file, or the filter columns theirs."""
        return self._checkpoint.due(self._snapshot)

    @property
    def rows_since_checkpoint(self) -> int:
        """Rows that the index has absorbed since its file was written."""
        return self._checkpoint.rows_since(self._snapshot)

    def ask_for_training(self) -> Future[None]:
        """Ask for a new index; the future is done when a training that starts after now ends."""
        future: Future[None] = Future()
        with self._publishing:
            self._training_asked.append(future)
        self.on_change()
        return future

    def begin_training(self) -> list[Future[None]]:
        """Enter a training; return whom to tell when it ends."""
        with self._publishing:
            asked, self._training_asked = self._training_asked, []
            self._building = True
        return [future for future in asked if future.set_running_or_notify_cancel()]

    def end_training(self) -> None:
        """Leave a training, whether or not it published an index."""
        self._building = False

    def put_off_training(self) -> None:
        """After a training that failed, try no other before the rows have grown by a tenth."""
        self._rows_before_next_try = self._snapshot.rows * 11 // 10 + 1

    def next_generation(self) -> int:
        """Return the number of the index that is about to be built."""
        self._generations += 1
        return self._generations

    def publish_index(self, index: TrainedIndex, absorbed_until: int, rows_skipped: int) -> None:
        """Replace the index in one step."""
        with self._index_lock.write(), self._publishing:
            self._snapshot = replace(
                self._snapshot,
                index=index,
                absorbed_until=absorbed_until,
                rows_skipped=rows_skipped,
                list_imbalance=index.ivf.list_imbalance,
            )
            self._building = False
            self._tell_of_room()
        self.on_change()

    @contextmanager
    def index_at_rest(self) -> Iterator[Snapshot]:
        """Give what is published; its index is not added to until the context ends."""
        with self._index_lock.read():
            yield self._snapshot

    @property
    def wants_live_recall(self) -> bool:
        """Whether the recall of live searches should be measured."""
        return self.live.due(self._snapshot.index)

    def publish_calibration(self, index: TrainedIndex, calibration: Calibration) -> bool:
        """Calibrate an index anew in one step; say whether it was still in use."""
        with self._publishing:
            snapshot = self._snapshot
            if snapshot.index is not index:
                return False
            self._snapshot = replace(snapshot, index=replace(index, calibration=calibration))
        self.on_change()
        return True

    def absorb_piece(self) -> bool:
        """Move the oldest rows of the buffer into the index; say whether any were left to move.

        A small piece at a time, gathered beforehand: searches wait while the index is added to.
        """
        snapshot = self._snapshot
        index, first = snapshot.index, snapshot.absorbed_until
        last = min(first + self.engine.buffer.absorb_piece_rows, snapshot.rows)
        if index is None or first == last:
            return False
        rows = snapshot.tombstones.live_rows(first, last)
        vectors = snapshot.vectors_of(rows)
        with self._index_lock.write():
            newest = self._snapshot.index
            if newest is None or newest.ivf is not index.ivf:
                return True  # another was published, which holds other rows
            index.ivf.add(rows, vectors)
            list_imbalance = index.ivf.list_imbalance
            with self._publishing:
                self._snapshot = replace(
                    self._snapshot,
                    absorbed_until=last,
                    rows_skipped=snapshot.rows_skipped + (last - first - len(rows)),
                    list_imbalance=list_imbalance,
                )
                self._tell_of_room()
        return True

    def checkpoint(self) -> None:
        """Write what a restart would else make anew: the index and the filter columns.

        Runs on the thread that absorbs: nobody adds to the published index meanwhile.
        """
        with self._files.read():
            if not self.closed:
                self._checkpoint.store(self._snapshot)

    # ---- rebuilding: the thread that builds indexes ---------------------------------------------

    @property
    def wants_rebuild(self) -> bool:
        """Whether so many rows of the row file are dead that it should be rebuilt."""
        snapshot = self._snapshot
        return self._rebuild_asked or (
            len(snapshot.vectors) - snapshot.live >= self._dead_before_next_rebuild
            and rebuild_due(snapshot, self.engine.compaction, asked=False)
        )

    def ask_for_rebuild(self) -> None:
        """Ask for a rebuild, which comes about if enough rows are dead to be worth it."""
        self._rebuild_asked = rebuild_due(self._snapshot, self.engine.compaction, asked=True)

    def rebuild(self, go_on: Callable[[], None]) -> None:
        """Write the living rows anew, so that the dead cost neither disk nor memory any more.

        Writes go on but for the last, short step. A failure leaves everything as it was, and no
        other rebuild is tried before the dead rows have grown by a tenth.

        Parameters
        ----------
        go_on
            Raises what ends the rebuild, if it should end. Called between two steps.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails or is full.
        WritesStopped
            If the rows were replaced on the disk and could not be published.
        """
        self._rebuild_asked = False
        snapshot = self._snapshot
        self._dead_before_next_rebuild = (len(snapshot.vectors) - snapshot.live) * 11 // 10 + 1
        with self._files.read():
            go_on()
            rebuild = Rebuild(
                disk=self._disk,
                directory=self._directory,
                row_store=self._row_store,
                source=self._columns,
                snapshot=snapshot,
                piece_rows=max(
                    1, self.engine.compaction.piece_bytes // (4 * self.entry.config.dim)
                ),
            )
        try:
            # Copying is less work than committing, so this ends however much is written meanwhile.
            while rebuild.rows_behind(self._snapshot) > self.engine.compaction.tail_rows:
                with self._files.read():
                    go_on()
                    rebuild.copy_piece(self._snapshot)
            with self._files.read():
                go_on()
                with self._writes.write():
                    old = self._finish(rebuild)
                self._dead_before_next_rebuild = 0
                self._sweep_failed = False
                old.close()
                with suppress(OSError):  # a start removes it otherwise
                    self._disk.remove(self._directory / old.row_file.name)
        except BaseException:
            with self._files.read():
                # Once closed, the directory may be another process's, or another collection's.
                rebuild.give_up(remove_file=not self.closed)
            raise

    def _finish(self, rebuild: Rebuild) -> RowColumns:
        """Copy the rows that are still behind, publish all, and return what it replaces."""
        while rebuild.rows_behind(self._snapshot):
            rebuild.copy_piece(self._snapshot)
        rebuild.take_into_use()
        try:
            return self._replace_columns(rebuild.columns)
        except BaseException as error:
            raise self._stop_writes(f"a rebuild could not be published ({error!r})") from error

    def _replace_columns(self, columns: RowColumns) -> RowColumns:
        """Publish other columns of the same rows; return the old ones."""
        with self._publishing:
            old = self._columns
            # Every snapshot of them holds the old ids, so they live as long as anybody reads on.
            self._superseded.append(weakref.ref(old.ids, lambda _: self.on_change()))
            self._snapshot = replace(
                self._snapshot,
                vectors=columns.vectors,
                squared_norms=columns.squared_norms,
                ids=columns.ids,
                positions=columns.positions,
            )
            self._columns = columns
        return old

    @property
    def wants_sweeping(self) -> bool:
        """Whether the row store holds what a rebuild has made useless, and nobody reads it."""
        return (
            self._row_store.sweep_due
            and not self._sweep_failed
            and all(ids() is None for ids in self._superseded)
        )

    def sweep(self) -> None:
        """Take a piece of that away. After a failure it waits for the next rebuild or start."""
        with self._files.read():
            if self.closed:
                return
            self._superseded.clear()
            try:
                self._row_store.sweep(self._columns.positions.hold)
            except BaseException:
                self._sweep_failed = True
                raise

    # ---- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the files. Everything acknowledged is durable already."""
        with self._publishing:
            self.closed = True
            asked, self._training_asked = self._training_asked, []
            self._superseded.clear()
        for future in asked:
            if future.set_running_or_notify_cancel():
                future.set_exception(CollectionNotFound(f"{self.entry.config.name} was closed"))
        with self._files.write():
            self._row_store.close()
            self._columns.close()


_ROWS_VERIFIED_AT_START = 10_000
