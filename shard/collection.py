"""The engine: one collection on one shard.

Reads take one immutable snapshot and nothing else. Writes come from one thread at a time: append to
the row file, sync, commit to the row store, publish, and only then acknowledge. Whatever is
published is durable; whatever is not published does not exist.

Four locks, always taken in this order, and but for the first never for long:

* `_files`: an index file is written, or the files are let go of;
* `_index_lock` (read-write): the published index is searched by many or added to by one;
* `_publishing`: the snapshot and the id index change together;
* the row store's own.

Threads: any number read; one at a time calls `apply`; one absorbs and writes checkpoints; one
builds new indexes.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shard.admission import admit_vectors, check_ids
from shard.calibration import CALIBRATED_K
from shard.checksum import row_checksums
from shard.commit_plan import (
    AdmittedDelete,
    AdmittedUpsert,
    AdmittedWrite,
    CommitPlan,
    WriteOutcome,
)
from shard.config import EngineConfig
from shard.disk import Disk
from shard.errors import (
    CollectionNotFound,
    Overloaded,
    RowFileCorrupt,
    WritesStopped,
)
from shard.exact import RankedRows, concatenate, exact_scores, rank
from shard.explanation import exact_rank, explained
from shard.id_column import IdColumn, IdIndex
from shard.index_file import remove_stray_index_files, store_index, with_stored_index
from shard.read_write_lock import ReadWriteLock
from shard.row_file import RowFile
from shard.row_store import Commit, RowStore, StoredRows
from shard.snapshot import Snapshot, TrainedIndex
from shard.tombstones import Tombstones
from shard.types import (
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
    ShardState,
    UpsertRequest,
)

COMMIT_IDS_MAX = 20_000
"""Ids that one group commit writes or deletes; a single larger write still goes as one."""

GROWTH_BEFORE_RETRAINING = 4
"""A new index is trained when the live rows are this many times those of the last training."""

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
        self._row_file = row_file
        self._row_store = row_store
        self._index_lock = ReadWriteLock()
        self._publishing = threading.Condition()
        self._files = threading.Lock()
        self._ids = IdColumn(entry.config.id_type)
        self._id_index = IdIndex(self._ids)
        self._squared_norms = np.zeros(0, dtype=np.float32)
        self._snapshot = self._recover(stored)
        stored_index = row_store.index_file
        self._generations = stored_index.generation if stored_index is not None else 0
        self._checkpointed_rows = self._snapshot.absorbed_until
        self._checkpointed_generation = self._generations
        self._building = False
        self._rows_before_next_try = 0
        self._training_asked: list[Future[None]] = []
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
        self._row_file.require(stored.rows)
        for blob, blob_rows in stored.ids:
            self._ids.extend_encoded(blob, blob_rows)
        tombstones = Tombstones().with_dead(np.concatenate([stored.replaced, stored.deleted]))
        rows = tombstones.live_rows(0, stored.rows)
        self._id_index.put(self._ids.take(rows), rows)
        self._squared_norms = stored.squared_norms
        snapshot = Snapshot(
            sequence=stored.sequence,
            vectors=self._row_file.view(stored.rows),
            squared_norms=self._squared_norms,
            tombstones=tombstones,
            replaced=len(stored.replaced),
            deleted=len(stored.deleted),
        )
        self._verify(snapshot, rows[-_ROWS_VERIFIED_AT_START:])
        return with_stored_index(self._directory, self._row_store, snapshot)

    def _verify(self, snapshot: Snapshot, rows: Int64Array) -> None:
        """Compare rows with their checksums."""
        found = row_checksums(
            rows,
            self._ids.take(rows),
            self._row_store.metadata(rows),
            np.asarray(snapshot.vectors[rows]),
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
        config = self.entry.config
        queries = np.asarray(request.queries, dtype=np.float32)
        parts = []
        with self._index_lock.read():
            snapshot = self._snapshot
            index, setting = snapshot.index, None
            if index is not None:
                setting = index.setting_for(request.effort, config.target_recall, request.k)
            if index is not None and setting is not None:
                parts.append(
                    index.ivf.propose(
                        queries,
                        request.k,
                        setting,
                        snapshot.tombstones,
                        snapshot.vectors,
                        snapshot.squared_norms,
                    )
                )
        exact_part = snapshot.everything if setting is None else snapshot.buffer
        parts.append(exact_part.propose(config.metric, queries, request.k))
        candidates = concatenate(parts)
        scores = exact_scores(config.metric, queries, snapshot.vectors, candidates)
        ranked = rank(
            config.metric,
            candidates,
            scores,
            self._ids.take,
            len(queries),
            request.k,
            request.score_threshold,
        )
        receipt = ShardReceipt(
            shard=self._shard,
            rows_visible=snapshot.live,
            rows_exact=exact_part.live,
            nlist=index.ivf.nlist if index is not None and setting is not None else 0,
            nprobe=setting.nprobe if setting is not None else 0,
            candidates=setting.candidates if setting is not None else 0,
            generation=index.generation if index is not None and setting is not None else 0,
        )
        vectors, metadata = self._included(snapshot, ranked.rows, request.include)
        return Found(ranked=ranked, receipt=receipt, vectors=vectors, metadata=metadata)

    def explain(self, request: ExplainRequest) -> Explanation:
        """Say where an id is, how it ranks for a query, and what a search must do to find it.

        The query has been admitted.

        Raises
        ------
        InvalidId
            If the id is not of the collection's type.
        """
        config = self.entry.config
        check_ids(config, request.id, "id")
        query = np.asarray(request.query, dtype=np.float32)
        with self._index_lock.read():
            with self._publishing:
                snapshot = self._snapshot
                row = int(self._newest_rows(request.id)[0])
            if request.score is not None:
                found = Explanation(score=request.score)
            elif row < 0:
                return Explanation(shard=self._shard)
            elif snapshot.tombstones.are_dead(np.array([row])).any():
                return Explanation(shard=self._shard, deleted=True)
            else:
                found = explained(config, snapshot, query, row)
        rank_ = exact_rank(config.metric, snapshot, query, found.score, request.id, self._ids.take)
        return replace(found, shard=self._shard, exact_rank=rank_)

    def get(self, ids: IdArray, include: Include) -> Rows:
        """Return the rows of the ids that exist, in their order; vectors are verified.

        Raises
        ------
        RowFileCorrupt
            If a row does not match its checksum.
        """
        snapshot, rows = self._live_rows_of(ids)
        rows = rows[rows >= 0]
        vectors, metadata = self._included(snapshot, rows, include)
        return Rows(ids=self._ids.take(rows), vectors=vectors, metadata=metadata)

    def count(self, ids: IdArray | None) -> int:
        """Count the live rows, or how many of `ids` live."""
        if ids is None:
            return self._snapshot.live
        _, rows = self._live_rows_of(ids)
        return int(np.count_nonzero(rows >= 0))

    def list_rows(
        self, first_row: int, page_size: int, include: Include
    ) -> tuple[Rows, int | None]:
        """Return the first `page_size` live rows from `first_row` on, and where to go on."""
        snapshot = self._snapshot
        first_row = min(first_row, snapshot.rows)
        rows = snapshot.tombstones.live_rows(first_row, snapshot.rows, page_size + 1)
        next_row = int(rows[page_size]) if len(rows) > page_size else None
        rows = rows[:page_size]
        vectors, metadata = self._included(snapshot, rows, include)
        return Rows(ids=self._ids.take(rows), vectors=vectors, metadata=metadata), next_row

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
            imbalance = snapshot.index.ivf.list_imbalance if snapshot.index else 0.0
        index_bytes = snapshot.index.ivf.memory_bytes if snapshot.index else 0
        memory_bytes = (
            index_bytes
            + self._ids.memory_bytes
            + self._id_index.memory_bytes
            + self._squared_norms.nbytes
            + snapshot.tombstones.bits.nbytes
        )
        disk_bytes = self._row_file.disk_bytes + self._row_store.disk_bytes + self._index_file_bytes
        if snapshot.index is None:
            return ShardDescription(
                shard=self._shard,
                state=ShardState.TRAINING if building else ShardState.BUFFERING,
                training=building,
                ledger=ledger,
                memory_bytes=memory_bytes,
                disk_bytes=disk_bytes,
            )
        index = snapshot.index
        point = index.calibration.point_for(self.entry.config.target_recall, CALIBRATED_K[0])
        return ShardDescription(
            shard=self._shard,
            state=ShardState.TRAINED,
            training=building,
            ledger=ledger,
            nlist=index.ivf.nlist,
            nprobe=0 if point is None else point.setting.nprobe,
            candidates=0 if point is None else point.setting.candidates,
            measured_recall=1.0 if point is None else point.measured_recall,
            generation=index.generation,
            rows_trained_on=index.rows_trained_on,
            list_imbalance=imbalance,
            last_training_s=index.training_s,
            last_trained_at=index.trained_at,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
        )

    @property
    def _index_file_bytes(self) -> int:
        stored = self._row_store.index_file
        return stored.file_bytes if stored is not None else 0

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
        rows = self._id_index.lookup(ids)
        return np.where(rows < self._snapshot.rows, rows, -1)

    def _included(
        self, snapshot: Snapshot, rows: Int64Array, include: Include
    ) -> tuple[Float32Array | None, Sequence[bytes] | None]:
        """Return what is included of rows; vectors are verified before they leave."""
        if include.vectors:
            self._verify(snapshot, np.unique(rows))
        vectors = np.asarray(snapshot.vectors[rows]) if include.vectors else None
        metadata = self._row_store.metadata(rows) if include.metadata else None
        return vectors, metadata

    # ---- writes: one thread at a time -----------------------------------------------------------

    def admit(self, request: UpsertRequest | DeleteRequest) -> AdmittedWrite:
        """Check a write and bring it into the form that is stored.

        Raises
        ------
        InvalidRequest
            For ids or vectors that the collection cannot take.
        """
        check_ids(self.entry.config, request.ids)
        if isinstance(request, DeleteRequest):
            return AdmittedDelete(ids=request.ids)
        return AdmittedUpsert(
            ids=request.ids,
            vectors=admit_vectors(self.entry.config, request.vectors, "vectors"),
            metadata=request.metadata,
            mode=request.mode,
        )

    def apply(
        self, requests: Sequence[UpsertRequest | DeleteRequest]
    ) -> list[WriteOutcome | Exception]:
        """Commit a group of writes; return an outcome or an error for each, in order.

        What is returned as an outcome is durable and visible to every search that starts later.
        """
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
        if plan.rows:
            self._wait_for_absorption()
        ids, vectors = plan.ids, plan.vectors
        squared_norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64).astype(np.float32)
        try:
            if plan.rows:
                self._row_file.append(plan.first_row, vectors)
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
        rows = plan.first_row + plan.rows
        self._keep_squared_norms(plan.first_row, squared_norms)
        with self._publishing:
            ids = plan.ids
            old = self._snapshot
            published = replace(
                old,
                sequence=sequence,
                vectors=self._row_file.view(rows),
                squared_norms=self._squared_norms[:rows],
                tombstones=plan.tombstones,
                replaced=old.replaced + len(plan.replaced),
                deleted=old.deleted + len(plan.deleted),
            )
            self._ids.append(ids)
            self._id_index.put(ids, np.arange(plan.first_row, rows))
            self._snapshot = published
        if self.wants_training or self.wants_absorbing:
            self.on_change()

    def _keep_squared_norms(self, first_row: int, squared_norms: Float32Array) -> None:
        rows = first_row + len(squared_norms)
        if rows > len(self._squared_norms):
            grown = np.zeros(max(1_024, 2 * rows), dtype=np.float32)
            grown[:first_row] = self._squared_norms[:first_row]
            self._squared_norms = grown
        self._squared_norms[first_row:rows] = squared_norms

    def _wait_for_absorption(self) -> None:
        """Slow writers down while the buffer outgrows what is being absorbed."""
        buffer = self.engine.buffer

        def bearable() -> bool:
            snapshot = self._snapshot
            buffered = snapshot.rows - snapshot.absorbed_until
            return snapshot.index is None or buffered <= buffer.slow_writers_rows or self.closed

        with self._publishing:
            self._publishing.wait_for(bearable, timeout=buffer.slow_writers_wait_s)

    # ---- the index: background threads ----------------------------------------------------------

    @property
    def wants_training(self) -> bool:
        """Whether an index should be built.

        It is asked for, the first one is due, the live rows have outgrown what the index was
        trained on, or most of what it holds is dead.
        """
        if self._training_asked:
            return True
        snapshot = self._snapshot
        if snapshot.live == 0 or snapshot.rows < self._rows_before_next_try:
            return False
        if snapshot.index is None:
            return snapshot.live >= self.entry.config.index.min_training_size
        trained_on = snapshot.index.live_when_trained
        held = snapshot.absorbed_until - snapshot.rows_skipped
        outgrown = snapshot.live >= GROWTH_BEFORE_RETRAINING * trained_on
        return outgrown or held >= GROWTH_BEFORE_RETRAINING * max(snapshot.live, trained_on)

    @property
    def wants_absorbing(self) -> bool:
        """Whether the buffer has grown enough to be absorbed."""
        snapshot = self._snapshot
        buffered = snapshot.rows - snapshot.absorbed_until
        return snapshot.index is not None and buffered >= self.engine.buffer.absorb_rows

    @property
    def wants_checkpoint(self) -> bool:
        """Whether the index has outgrown its file."""
        snapshot = self._snapshot
        if snapshot.index is None:
            return False
        if snapshot.index.generation != self._checkpointed_generation:
            return True
        training = self.engine.training
        least = max(
            training.checkpoint_min_rows, training.checkpoint_growth * self._checkpointed_rows
        )
        return self.rows_since_checkpoint >= least

    @property
    def rows_since_checkpoint(self) -> int:
        """Rows that the index has absorbed since its file was written."""
        return self._snapshot.absorbed_until - self._checkpointed_rows

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
            )
            self._building = False
            self._publishing.notify_all()
        self.on_change()

    def absorb_piece(self) -> bool:
        """Move the oldest rows of the buffer into the index; say whether any were left to move.

        A small piece at a time: searches wait while the index is added to.
        """
        with self._index_lock.write():
            snapshot = self._snapshot
            first = snapshot.absorbed_until
            last = min(first + self.engine.buffer.absorb_piece_rows, snapshot.rows)
            if snapshot.index is None or first == last:
                return False
            rows = snapshot.tombstones.live_rows(first, last)
            snapshot.index.ivf.add(rows, snapshot.vectors[rows])
            with self._publishing:
                self._snapshot = replace(
                    self._snapshot,
                    absorbed_until=last,
                    rows_skipped=snapshot.rows_skipped + (last - first - len(rows)),
                )
                self._publishing.notify_all()
        return True

    def checkpoint(self) -> None:
        """Write the index to disk, so that a restart need not train.

        Runs on the thread that absorbs: nobody adds to the published index meanwhile.
        """
        with self._files:
            if not self.closed:
                self._checkpoint()

    def _checkpoint(self) -> None:
        snapshot = self._snapshot
        index = snapshot.index
        if index is None:
            return
        store_index(self._disk, self._directory, self._row_store, snapshot)
        self._checkpointed_rows = snapshot.absorbed_until
        self._checkpointed_generation = index.generation

    # ---- the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the files. Everything acknowledged is durable already."""
        with self._publishing:
            self.closed = True
            asked, self._training_asked = self._training_asked, []
            self._publishing.notify_all()
        for future in asked:
            if future.set_running_or_notify_cancel():
                future.set_exception(CollectionNotFound(f"{self.entry.config.name} was closed"))
        with self._files:
            self._row_store.close()
            self._row_file.close()


_ROWS_VERIFIED_AT_START = 10_000
