"""Compaction: the row file is rewritten without its dead rows, which then cost no disk or memory.

It works on what a snapshot saw. The rows that lived then go to a new row file and, with their ids,
hashes and norms, to the row store, piece by piece, while writes go on. The rows written since
follow, dead or alive, because their commits stay as they are. Until `RowCopy.take_into_use`, a
crash, a full disk or a stop leaves everything as it was. Row numbers never change. A damaged
row is copied as it is and stays damaged: the checksum of its piece matches nothing.

The builder thread runs all of it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import numpy as np

from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.engine.upkeep import compaction_due
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.room import PutOff
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store_format import (
    MATCHES_NOTHING,
    KeptRows,
    LastCompaction,
)
from vectorshard.shard.types import Int64Array

COMPACTION: Final = "compaction"
SWEEP: Final = "removal of old records"
"""The work, as the log names it."""

RECORD_BYTES: Final = 32
"""Of a row in the row store, without its id: content hash, norm, checksums."""


class Compaction:
    """Compacts the row file of one collection on one shard, and sweeps what that leaves."""

    def __init__(self, state: CollectionState) -> None:
        self._state = state
        self._asked = False
        self._dead_before_next = 0
        self._sweep_failed = False
        self._superseded: list[weakref.ref[IdColumn]] = []

    @property
    def due(self) -> bool:
        """Whether so many rows of the row file are dead that it should be compacted."""
        snapshot = self._state.snapshot
        wanted = self._asked or (
            len(snapshot.vectors) - snapshot.live >= self._dead_before_next
            and compaction_due(snapshot, self._state.engine.compaction, asked=False)
        )
        return wanted and self._state.room.is_there_for(COMPACTION)

    def ask(self) -> None:
        """Ask for a compaction; it becomes due if enough rows are dead to be worth it."""
        state = self._state
        self._asked = compaction_due(state.snapshot, state.engine.compaction, asked=True)

    def run(self, go_on: Callable[[], None]) -> None:
        """Rewrite the row file without its dead rows.

        Writes go on except during the last, short step. A failure leaves everything as it was, and
        the next compaction is put off until the dead rows have grown by a tenth. Without room on
        the disk, it is put off until there is.

        Parameters
        ----------
        go_on
            Called between two steps; raises to end the compaction.

        Raises
        ------
        PutOff
            If the disk has no room for a second row file.
        OSError, sqlite3.Error
            If the disk fails.
        WritesStopped
            If the rows were replaced on the disk and could not be published.
        """
        state = self._state
        asked, self._asked = self._asked, False
        snapshot = state.snapshot
        self._dead_before_next = (len(snapshot.vectors) - snapshot.live) * 11 // 10 + 1
        try:
            with state.room.taken_by(COMPACTION, self._bytes_needed()):
                self._rewrite(go_on)
        except PutOff:
            self._asked, self._dead_before_next = asked, 0
            raise

    def _bytes_needed(self) -> int:
        """Return about how many bytes it writes: a row file, and records, which the log has too."""
        state, rows = self._state, self._state.snapshot.live
        ids_bytes = state.columns.ids.memory_bytes // max(1, len(state.columns.ids))
        return rows * (4 * state.entry.config.dim + 2 * (RECORD_BYTES + ids_bytes))

    def _rewrite(self, go_on: Callable[[], None]) -> None:
        state = self._state
        with state.files_lock.read():
            go_on()
            copy = RowCopy(state)
        try:
            # Copying is less work than committing, so this ends under any load of writes.
            while copy.rows_behind > state.engine.compaction.tail_rows:
                with state.files_lock.read():
                    go_on()
                    copy.copy_piece()
            with state.files_lock.read():
                go_on()
                with state.writes_lock.write():
                    self._finish(copy)
                self._dead_before_next = 0
                self._sweep_failed = False
                copy.source.close()
                with suppress(OSError):  # otherwise the next start removes it
                    state.disk.remove(state.directory / copy.source.row_file.name)
        except BaseException:
            with state.files_lock.read():
                # A closed directory may belong to another process or another collection.
                copy.give_up(remove_file=not state.closed)
            raise

    def _finish(self, copy: RowCopy) -> None:
        """Copy the rows that are still behind, and publish the new row file."""
        state = self._state
        while copy.rows_behind:
            copy.copy_piece()
        copy.take_into_use()
        # Every snapshot of the old columns holds the old ids, which live as long as a reader.
        self._superseded.append(weakref.ref(copy.source.ids, lambda _: state.on_change()))
        try:
            state.publish_columns(copy.columns)
        except BaseException as error:
            raise state.stop_writes(f"a compaction could not be published ({error!r})") from error

    @property
    def sweep_due(self) -> bool:
        """Whether the row store holds garbage of a compaction, and no reader needs it."""
        return (
            self._state.row_store.sweep_due
            and not self._sweep_failed
            and self._state.room.is_there_for(SWEEP)
            and all(ids() is None for ids in self._superseded)
        )

    def sweep(self) -> None:
        """Delete a piece of that garbage; a failure puts it off to the next compaction or start."""
        state = self._state
        with state.files_lock.read():
            if state.closed:
                return
            self._superseded.clear()
            try:
                with state.room.taken_by(SWEEP, 0):
                    state.row_store.sweep(state.columns.positions.hold)
            except PutOff:
                raise
            except BaseException:
                self._sweep_failed = True
                raise

    def forget_readers(self) -> None:
        """Report no more when the readers of old snapshots end; the collection closes."""
        self._superseded.clear()


class RowCopy:
    """The rows of a collection on their way to a new row file, beginning with its snapshot.

    It takes no lock. Its caller keeps the files open, and keeps writes away from the last
    `copy_piece` until `take_into_use` and the publication are done. Every method may raise OSError
    or sqlite3.Error.
    """

    def __init__(self, state: CollectionState) -> None:
        self._state = state
        self.source = state.columns
        """The columns to replace."""
        config, row_store = state.entry.config, state.row_store
        self._snapshot = snapshot = state.snapshot
        self._piece_rows = max(1, state.engine.compaction.piece_bytes // (4 * config.dim))
        self._live_rows = snapshot.tombstones.live_rows(0, snapshot.rows)
        self._rebuilt = LastCompaction(
            generation=row_store.next_generation(),
            sequence=snapshot.sequence,
            rebuilt_until=snapshot.rows,
            replaced=snapshot.replaced,
            deleted=snapshot.deleted,
        )
        self._path = state.directory / self._rebuilt.row_file
        self._kept = 0  # of the rows that lived
        self._copied_until = snapshot.rows  # of those written since
        self._may_be_named = False
        self.columns = RowColumns(
            config.id_type,
            RowMap.of_kept(self._live_rows, snapshot.rows),
            RowFile.open(state.disk, self._path, config.dim),
            room=len(self._live_rows),
        )
        """The columns that replace `source`."""

    @property
    def rows_behind(self) -> int:
        """How many rows are still to be copied, up to the newest."""
        newer = self._state.snapshot.rows - self._copied_until
        return len(self._live_rows) - self._kept + newer

    def copy_piece(self) -> None:
        """Copy the next rows that lived, or else those that were written since."""
        if self._kept < len(self._live_rows):
            self._copy_kept(self._live_rows[self._kept : self._kept + self._piece_rows])
        else:
            self._copy_newer(self._state.snapshot)

    def _copy_kept(self, rows: Int64Array) -> None:
        positions = self.source.positions.of(rows)
        ids = self.source.ids.take_encoded(positions)
        range_crc32c = self.columns.append_kept(self.source, rows, ids)
        # After the copy: damage that came before it is seen, and damage afterwards was not copied.
        state = self._state
        state.check_vectors(int(rows[0]), int(rows[-1]) + 1, "compaction")
        if np.isin(rows, state.damaged_of(self._snapshot)).any():
            range_crc32c ^= MATCHES_NOTHING
        kept = KeptRows(
            rows=rows,
            ids=ids,
            content_hashes=self._snapshot.content_hashes[positions],
            squared_norms=self._snapshot.squared_norms[positions],
            range_crc32c=range_crc32c,
        )
        state.row_store.keep(self._rebuilt.generation, kept)
        self._kept += len(rows)

    def _copy_newer(self, newest: Snapshot) -> None:
        """Copy rows dead or alive, as their commits stay; an id is found at the row that lives."""
        first = self._copied_until
        self._copied_until = min(first + self._piece_rows, newest.rows)
        live_rows = newest.tombstones.live_rows(first, self._copied_until)
        self.columns.append_newer(self.source, self._copied_until, live_rows)

    def take_into_use(self) -> None:
        """Make it the collection's rows, durably, in one transaction."""
        self._may_be_named = True
        self._state.row_store.take_into_use(self._rebuilt)

    def give_up(self, *, remove_file: bool) -> None:
        """Leave everything as it was. A later sweep deletes the records in the row store.

        If `take_into_use` failed, the file stays: after a crash it may prove to be in use.
        """
        self.columns.close()
        if remove_file and not self._may_be_named:
            with suppress(OSError):  # otherwise the next start removes it
                self._state.disk.remove(self._path)
