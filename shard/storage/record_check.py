"""Compares the records of a row store with what the server has in memory, piece by piece.

A start reads each record once and checks it; afterwards the disk may lose it, and the memory may
change. The checksum of a record tells which of the two is wrong. Nothing is changed here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.storage.content_hash import from_bytes
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import LastCompaction, Record, blob_bytes, is_sound
from vectorshard.shard.types import Float32Array, Int64Array, UInt64Array

COMMITS_AT_ONCE: Final = 32
"""Records read in a piece. Larger: fewer queries, longer pieces."""

PAGES_CHECKED_BYTES: Final = 256 * 1024 * 1024
"""A larger database has its pages not checked: SQLite does it in one step, and a drop would wait.
Its records are verified one by one in any case."""


@dataclass(frozen=True, slots=True)
class Sound:
    """Norms and hashes of rows in a sound record that differ from those in memory.

    `first` is the position of the first: `squared_norms` float32 (rows,), `content_hashes` uint64
    (rows, 2).
    """

    first: int
    squared_norms: Float32Array
    content_hashes: UInt64Array


@dataclass(slots=True)
class Found:
    """What the check of some records found, and the bytes that it read."""

    bytes_read: int = 0
    damaged: list[str] = field(default_factory=list)  # records that do not match their checksum
    differ: list[Sound] = field(default_factory=list)
    memory: list[str] = field(default_factory=list)  # differences that cannot be repaired in place


class RecordCheck:
    """Checks the records that stand for one generation of the row file, in order.

    Parameters
    ----------
    columns, tombstones
        Those of a snapshot, with the commits up to its `sequence`.
    last
        The compaction that wrote the row file of `columns`. Once another is in use, what this finds
        means nothing.
    """

    def __init__(
        self,
        row_store: RowStore,
        last: LastCompaction,
        columns: RowColumns,
        tombstones: Tombstones,
        sequence: int,
    ) -> None:
        self._row_store = row_store
        self._last = last
        self._columns = columns
        self._tombstones = tombstones
        self._until = sequence
        self._position = 0
        self._next_kept = 0  # a row
        self._sequence = last.sequence
        self._rows = last.rebuilt_until
        self._of_kept = last.generation > 0 and last.kept > 0
        self.done = False

    @property
    def position(self) -> int:
        """How many positions are checked."""
        return self._position

    def next_piece(self) -> Found:
        """Check the next records; `done` is set after the last ones."""
        found = Found()
        with self._row_store.loader() as loader:
            if self._of_kept:
                records = loader.kept_from(self._next_kept)
            else:
                records = loader.commits_after(self._sequence, self._until, COMMITS_AT_ONCE)
        if self._of_kept:
            self._check_kept(records, found)
        else:
            self._check_commits(records, found)
        return found

    def _check_kept(self, records: list[Record], found: Found) -> None:
        if not records:
            if self._position != self._last.kept:
                found.damaged.append(
                    f"{self._last.kept - self._position} kept rows from row {self._next_kept} on "
                    "are missing"
                )
                self._position = self._last.kept
            self._of_kept = False
            return
        for record in records:
            _, first_row, last_row = record[:3]
            if not is_sound(record):
                found.damaged.append(f"the record of the kept rows from {first_row} on")
                rows = self._columns.positions.of(np.array([last_row + 1]))
                self._position = max(self._position, min(int(rows[0]), self._last.kept))
            else:
                numbers = np.frombuffer(record[4], dtype="<i8")
                positions = self._position + np.arange(len(numbers))
                if not np.array_equal(self._columns.positions.rows_at(positions), numbers):
                    found.memory.append(f"the row numbers from {first_row} on")
                self._compare(record[5], record[6], record[7], len(numbers), found)
            found.bytes_read += blob_bytes(record)
            self._next_kept = last_row + 1

    def _check_commits(self, records: list[Record], found: Found) -> None:
        for record in records:
            sequence, first_row, rows = record[:3]
            if sequence != self._sequence + 1 or first_row != self._rows:
                found.damaged.append(f"commit {self._sequence + 1} is missing")
                self._position += max(0, first_row - self._rows)
            if not is_sound(record):
                found.damaged.append(f"the record of commit {sequence}, rows from {first_row} on")
                self._position += rows
            else:
                dead = np.frombuffer(record[4] + record[5], dtype="<i8")
                if not self._tombstones.are_dead(dead).all():
                    found.memory.append(f"the tombstones of commit {sequence}")
                self._compare(record[6], record[7], record[8], rows, found)
            found.bytes_read += blob_bytes(record)
            self._sequence, self._rows = sequence, first_row + rows
        if not records:
            if self._sequence != self._until:
                found.damaged.append(f"the commits after {self._sequence} are missing")
            self.done = True

    def _compare(self, hashes: bytes, norms: bytes, ids: bytes, rows: int, found: Found) -> None:
        """Compare the columns of sound records with those in memory."""
        columns, first = self._columns, self._position
        self._position += rows
        there = slice(first, first + rows)
        stored_norms, stored_hashes = np.frombuffer(norms, dtype="<f4"), from_bytes(hashes)
        same = np.array_equal(columns.content_hashes[there], stored_hashes)
        if not same or columns.squared_norms[there].tobytes() != norms:
            found.differ.append(Sound(first, stored_norms, stored_hashes))
        positions: Int64Array = np.arange(first, first + rows)
        try:
            if columns.ids.take_encoded(positions) == ids:
                return
        except (IndexError, ValueError, MemoryError):  # the places of strings are wrong
            pass
        found.memory.append(f"the ids of rows from {int(columns.positions.rows_at(positions)[0])}")


def small_tables(row_store: RowStore, *, pages: bool) -> list[str]:
    """Return what is wrong with the properties, the sessions and, if `pages`, with the pages."""
    found = []
    with row_store.loader(forget_cached=pages) as loader:
        if (version := loader.stored_version()) != row_store.version:
            found.append(f"its format version is {version}, not {row_store.version}")
        for read in (loader.properties, loader.sessions):
            try:
                read()
            except RowStoreCorrupt as error:
                found.append(str(error))
        if pages and row_store.disk_bytes <= PAGES_CHECKED_BYTES:
            found += [text for text in [loader.integrity()] if text]
    return found
