"""When derived data, the index and the filter columns, is written to disk.

A restart rebuilds what is missing: files older than the rows cost time at a start, nothing else.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vectorshard.shard.config import TrainingConfig
from vectorshard.shard.rows.filter_columns import FilterColumns
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.filter_file import FILTER_FILE, Origin, store_columns
from vectorshard.shard.storage.index_file import INDEX_FILE, store_index
from vectorshard.shard.storage.room import PutOff, Room
from vectorshard.shard.storage.row_store import RowStore


class Checkpoint:
    """What of one collection's derived data is on disk.

    It takes no lock: one thread at a time stores, and the index does not change meanwhile.
    `recovered` was published at the start, with the stored index; `columns_rows` rows of the filter
    `columns` were stored.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        row_store: RowStore,
        training: TrainingConfig,
        recovered: Snapshot,
        columns: FilterColumns,
        columns_rows: int,
        room: Room,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._row_store = row_store
        self._training = training
        self._index = recovered.index
        self._index_rows = recovered.absorbed_until
        self._columns = columns
        self._columns_rows = columns_rows
        self._room = room
        self._index_asked = False
        self._columns_asked = self._columns_answered = 0  # a request may come during a write

    def ask_index(self) -> None:
        """Ask for the index file to be written again: what the disk holds is damaged."""
        self._index_asked = True

    def ask_columns(self) -> None:
        """The same of the file of the filter columns, which may hold what was repaired since."""
        self._columns_asked += 1

    def due(self, snapshot: Snapshot) -> bool:
        """Whether the index has outgrown its file, or the filter columns theirs."""
        return self._index_due(snapshot) or self.columns_due(snapshot)

    def _index_due(self, snapshot: Snapshot) -> bool:
        if snapshot.index is None or not self._room.is_there_for(INDEX_FILE):
            return False
        if snapshot.index is not self._index or self._index_asked:
            return True
        return self._outgrown(self.rows_since(snapshot), self._index_rows)

    def columns_due(self, snapshot: Snapshot) -> bool:
        """Whether the filter columns have outgrown their file."""
        if not self._row_store.entry.config.filter_fields:
            return False
        new_rows = snapshot.rows - self._columns_rows
        asked = self._columns_asked != self._columns_answered
        due = asked or self._outgrown(new_rows, self._columns_rows)
        return due and self._room.is_there_for(FILTER_FILE)

    def _outgrown(self, new_rows: int, stored_rows: int) -> bool:
        least = max(
            self._training.checkpoint_min_rows, self._training.checkpoint_growth * stored_rows
        )
        return new_rows >= least

    def rows_since(self, snapshot: Snapshot) -> int:
        """Rows that the index has absorbed since its file was written."""
        return snapshot.absorbed_until - self._index_rows

    @property
    def columns_rows(self) -> int:
        """Rows of the filter columns in their file; 0 without one."""
        return self._columns_rows

    @property
    def index_bytes(self) -> int:
        """Bytes of the index's file."""
        stored = self._row_store.index_file
        return stored.file_bytes if stored is not None else 0

    def store(self, snapshot: Snapshot) -> None:
        """Write what is published.

        Raises PutOff if the disk has no room, OSError or sqlite3.Error if it fails.
        """
        room = self._room
        declared = bool(self._row_store.entry.config.filter_fields)
        asked = self._columns_asked
        columns_due = snapshot.rows != self._columns_rows or asked != self._columns_answered
        if declared and columns_due and room.is_there_for(FILTER_FILE):
            with suppress(PutOff):  # the index may have room
                self._store_columns(snapshot)
                self._columns_rows, self._columns_answered = snapshot.rows, asked
        if snapshot.index is not None and room.is_there_for(INDEX_FILE):
            again = self._index_asked
            store_index(self._disk, self._directory, self._row_store, snapshot, room, again=again)
            self._index_asked = False
            self._index, self._index_rows = snapshot.index, snapshot.absorbed_until

    def _store_columns(self, snapshot: Snapshot) -> None:
        store_columns(
            self._disk,
            self._directory,
            self._columns,
            snapshot.rows,
            snapshot.sequence,
            Origin.of(self._row_store),
            self._room,
        )
