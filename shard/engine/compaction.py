"""A rebuild: the living rows written anew, so that dead ones cost neither disk nor memory.

It works on what a snapshot saw. The rows that lived then go to a new row file and, with their ids,
checksums and norms, to the row store, piece by piece, while writes go on. The rows that were
written since follow, dead or not, as their commits stay as they are. Until `take_into_use`, nothing
of it counts: a crash, a full disk or a stop leaves everything as it was. Row numbers never change.

It takes no lock: whoever drives it sees to it that the files are not closed meanwhile, and that
nothing is written during the last `copy_piece` and `take_into_use`.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import KeptRows, LastCompaction
from vectorshard.shard.types import Int64Array


class Rebuild:
    """One rebuild of a collection's rows, from the snapshot that it begins with.

    Parameters
    ----------
    source
        The columns that it replaces.
    snapshot
        What they hold now.
    piece_rows
        How many rows are copied between two syncs.

    Raises
    ------
    OSError, sqlite3.Error
        If the disk fails or is full; every method may raise these.
    """

    def __init__(
        self,
        *,
        disk: Disk,
        directory: Path,
        row_store: RowStore,
        source: RowColumns,
        snapshot: Snapshot,
        piece_rows: int,
    ) -> None:
        self._disk = disk
        self._row_store = row_store
        self._source = source
        self._snapshot = snapshot
        self._piece_rows = piece_rows
        self._live_rows = snapshot.tombstones.live_rows(0, snapshot.rows)
        self._rebuilt = LastCompaction(
            generation=row_store.next_generation(),
            sequence=snapshot.sequence,
            rebuilt_until=snapshot.rows,
            replaced=snapshot.replaced,
            deleted=snapshot.deleted,
        )
        self._path = directory / self._rebuilt.row_file
        self._kept = 0  # of the rows that lived
        self._copied_until = snapshot.rows  # of those written since
        self._may_be_named = False
        config = row_store.entry.config
        self.columns = RowColumns(
            config.id_type,
            RowMap.of_kept(self._live_rows, snapshot.rows),
            RowFile.open(disk, self._path, config.dim),
            room=len(self._live_rows),
        )
        """What takes the place of `source`."""

    def rows_behind(self, newest: Snapshot) -> int:
        """Return how many rows are still to be copied, up to those of the newest snapshot."""
        return len(self._live_rows) - self._kept + newest.rows - self._copied_until

    def copy_piece(self, newest: Snapshot) -> None:
        """Copy the next rows that lived, or else those that were written since."""
        if self._kept < len(self._live_rows):
            self._copy_kept(self._live_rows[self._kept : self._kept + self._piece_rows])
        else:
            self._copy_newer(newest)

    def _copy_kept(self, rows: Int64Array) -> None:
        positions = self._source.positions.of(rows)
        ids = self._source.ids.take_encoded(positions)
        self.columns.append_kept(self._source, rows, ids)
        self._row_store.keep(
            self._rebuilt.generation,
            KeptRows(
                rows=rows,
                ids=ids,
                checksums=self._row_store.checksums(rows),
                squared_norms=self._snapshot.squared_norms[positions],
            ),
        )
        self._kept += len(rows)

    def _copy_newer(self, newest: Snapshot) -> None:
        """Copy them dead or alive, as their commits stay; an id is found at the row that lives."""
        first = self._copied_until
        self._copied_until = min(first + self._piece_rows, newest.rows)
        live_rows = newest.tombstones.live_rows(first, self._copied_until)
        self.columns.append_newer(self._source, self._copied_until, live_rows)

    def take_into_use(self) -> None:
        """Make it the collection's rows, durably, in one transaction."""
        self._may_be_named = True
        self._row_store.take_into_use(self._rebuilt)

    def give_up(self, *, remove_file: bool) -> None:
        """Leave everything as it was. What the row store has of it is swept later.

        Where `take_into_use` has failed the file stays: after a crash it may prove to be in use.
        """
        self.columns.close()
        if remove_file and not self._may_be_named:
            with suppress(OSError):  # a start removes it otherwise
                self._disk.remove(self._path)


def remove_stray_row_files(disk: Disk, directory: Path, row_store: RowStore) -> None:
    """Remove row files that are not in use: the one before, and what a crash left."""
    for path in directory.glob("rows-*"):
        if path.name != row_store.row_file:
            disk.remove(path)
