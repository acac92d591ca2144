"""The scrub of rows: what is stored of each, and what memory derives from it.

Each piece takes its own snapshot and lets go of it. What looks wrong is checked again under the
lock that keeps it from changing, because writes, compactions and trainings go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.engine.scrub_findings import DISK_CURE, MEMORY_CURE, Findings, Piece
from vectorshard.shard.engine.scrub_index import IndexScrub
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.index.code_check import HeldRows
from vectorshard.shard.rows.column_check import ColumnCheck
from vectorshard.shard.rows.filter_columns import FieldValues
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.storage.file_reader import Scratch
from vectorshard.shard.storage.filter_file import field_values_of, is_taken
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.texts import counted
from vectorshard.shard.types import BoolArray, Float32Array, Int64Array

PIECE_ROWS: Final = 1_000
"""Rows of a piece. Fewer: more overhead; more: searches wait longer for Python's lock."""

PIECE_BYTES: Final = 1024 * 1024
"""Vectors of a piece."""

COLUMNS_SLOWER: Final = 4
"""Pieces are so much smaller where the filter columns are compared: metadata is read in Python."""

KEYWORDS_AT_ONCE: Final = 2_000
PLACES_AT_ONCE: Final = 8_192
"""Places of the id index in a piece."""

NORM_TOLERANCE: Final = 1e-5
"""Earlier releases may have summed in another order. A smaller difference shows against the record
of the row, and changes no score."""


@dataclass(frozen=True, slots=True)
class _Read:
    """Live rows of a snapshot as they were read: vectors float32 (rows, dim), and metadata."""

    snapshot: Snapshot
    columns: RowColumns
    rows: Int64Array
    vectors: Float32Array
    metadata: list[bytes]
    bytes_read: int
    from_disk: bool

    def differing(self) -> Int64Array:
        """Return the rows that do not match their content hashes."""
        snapshot, rows = self.snapshot, self.rows
        found = content_hashes(snapshot.ids_of(rows), self.metadata, self.vectors)
        wrong: Int64Array = rows[(found != snapshot.content_hashes_of(rows)).any(axis=1)]
        return wrong


class RowScrub:
    """One pass over the rows of a collection.

    `read_disk` asks for vectors from the disk; `did_read_disk` says whether they came from there.
    """

    def __init__(
        self,
        state: CollectionState,
        findings: Findings,
        index: IndexScrub,
        *,
        read_disk: bool,
    ) -> None:
        self._state = state
        self._findings = findings
        self._index = index
        self._read_disk = read_disk
        self._scratch = Scratch()
        self.did_read_disk = read_disk
        declared = state.entry.config.filter_fields
        self._columns = ColumnCheck(state.filter_columns) if declared else None
        row_bytes = 4 * state.entry.config.dim
        self._piece_rows = max(1, min(PIECE_ROWS, PIECE_BYTES // row_bytes))

    def next_row(self, first: int, *, with_columns: bool) -> int:
        """Return where the piece that begins at row `first` ends."""
        snapshot = self._state.snapshot
        sparse = max(1, len(snapshot.vectors) // max(1, snapshot.live))
        spread = max(1, snapshot.rows // max(1, len(snapshot.vectors)))
        rows = self._piece_rows
        if self._columns is not None and with_columns:
            rows = max(1, rows // COLUMNS_SLOWER)
        return min(first + rows * max(1, min(8, sparse)) * spread, snapshot.rows)

    def pieces(
        self, first: int, last: int, held: HeldRows | None, *, with_columns: bool = True
    ) -> Iterator[Piece]:
        """Verify the live rows in [first, last), and the codes that the index `held` of them.

        `with_columns`: their filter columns, too.
        """
        yield self._check(first, last, held, with_columns=with_columns)

    def _check(self, first: int, last: int, held: HeldRows | None, *, with_columns: bool) -> Piece:
        read = self._read(first, last)
        if read is None:
            return Piece()
        damaged = self._damaged(read)
        sound = _without(read.rows, damaged)
        self._check_norms(read, sound)
        self._check_ids(sound)
        if self._columns is not None and with_columns:
            self._check_columns(read, sound)
        if held is not None:
            places = np.searchsorted(read.rows, held.rows)
            places = np.minimum(places, len(read.rows) - 1)
            ours = read.rows[places] == held.rows
            if len(damaged):
                ours &= np.isin(held.rows, sound)
            self._index.check_codes(held, ours, read.vectors[places])
        return Piece(len(read.rows), read.bytes_read)

    # ---- rows and their content hashes ----------------------------------------------------------

    def _read(self, first: int, last: int, rows: Int64Array | None = None) -> _Read | None:
        """Read the live rows in [first, last), or those of `rows` that live still."""
        state = self._state
        scratch = self._scratch if rows is None else None  # what is read again stands beside it
        for _ in range(3):  # a compaction may replace the file
            with state.publish_lock:
                snapshot, columns = state.snapshot, state.columns
            if rows is None:
                live = snapshot.tombstones.live_rows(first, min(last, snapshot.rows))
            else:
                live = rows[~snapshot.tombstones.are_dead(rows)]
            live = _without(live, snapshot.damaged)
            if not len(live):
                return None
            try:
                return self._read_live(snapshot, columns, live, scratch)
            except OSError:
                if state.columns is columns:
                    raise
        return None

    def _read_live(
        self,
        snapshot: Snapshot,
        columns: RowColumns,
        rows: Int64Array,
        scratch: Scratch | None,
    ) -> _Read:
        positions = snapshot.positions.of(rows)
        first, span = int(positions[0]), int(positions[-1] - positions[0]) + 1
        row_file = columns.row_file
        with row_file.reader(past_cache=self._read_disk, scratch=scratch) as reader:
            self.did_read_disk &= reader.reads_disk
            vectors = row_file.read_rows(reader, first, span)
            from_disk = reader.reads_disk
        if span != len(rows):
            vectors = vectors[positions - first]
        metadata = self._state.row_store.metadata(rows)
        size = span * 4 * snapshot.vectors.shape[1] + sum(map(len, metadata))
        return _Read(snapshot, columns, rows, vectors, metadata, size, from_disk)

    def _damaged(self, read: _Read) -> Int64Array:
        """Note the rows that do not match their content hashes; return them."""
        rows = read.differing()
        if not len(rows):
            return rows
        again = self._read(0, 0, rows)
        if again is None:
            return rows
        wrong = again.differing()
        if len(wrong) and again.from_disk:
            wrong = self._written_again(again, wrong)
        if len(wrong):
            ids = read.snapshot.ids_of(wrong[:3]).tolist()
            self._findings.add(
                f"{counted(len(wrong), 'damaged row')}, from row {int(wrong[0])} on, ids {ids}: "
                "an upsert or a delete of an id heals its row",
                repaired=False,
            )
            self._state.note_damaged(wrong, "scrub")
        return rows

    def _written_again(self, read: _Read, wrong: Int64Array) -> Int64Array:
        """Write rows again that are sound in memory; return those that are not.

        What a restart would find damaged is sound in the page cache.
        """
        snapshot, state = read.snapshot, self._state
        mapped = snapshot.vectors_of(wrong)
        metadata = state.row_store.metadata(wrong)
        found = content_hashes(snapshot.ids_of(wrong), metadata, mapped)
        sound = (found == snapshot.content_hashes_of(wrong)).all(axis=1)
        for row, vector in zip(wrong[sound].tolist(), mapped[sound], strict=True):
            if state.columns is not read.columns:
                break
            position = int(snapshot.positions.of(np.array([row]))[0])
            read.columns.row_file.write_again(position, vector)
        if sound.any():
            rows = wrong[sound]
            after = self._read(0, 0, rows)
            decayed = counted(len(rows), "row")
            text = f"{decayed}, from row {int(rows[0])} on, had decayed on the disk"
            if after is not None and len(after.differing()):
                self._findings.add(f"{text}, and do so again after a write", DISK_CURE)
            else:
                self._findings.add(f"{text}; they were sound in memory and are written again")
        damaged: Int64Array = wrong[~sound]
        return damaged

    # ---- what memory derives from rows ----------------------------------------------------------

    def _check_norms(self, read: _Read, sound: Int64Array) -> None:
        """Compare squared norms with vectors; write those again that differ."""
        vectors = read.vectors
        norms = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
        stored = read.snapshot.squared_norms[read.snapshot.positions.of(read.rows)]
        wrong = ~(np.abs(stored - norms) <= NORM_TOLERANCE * norms)
        if not wrong.any():
            return
        wrong &= np.isin(read.rows, sound)
        for place in np.flatnonzero(wrong).tolist():
            row = read.rows[place : place + 1]
            with self._state.writes_lock.write():
                columns = self._state.columns
                if not columns.positions.hold(row).all():
                    continue
                position = int(columns.positions.of(row)[0])
                norm = norms[place : place + 1].astype(np.float32)
                columns.correct(position, norm, columns.content_hashes[position : position + 1])
            self._findings.add(f"the squared norm of row {int(row[0])} was wrong; repaired")

    def _check_ids(self, rows: Int64Array) -> None:
        """Look up the ids of live rows; enter those again that are not found."""
        if not len(rows) or not len(self._lost_ids(rows)):
            return
        with self._state.publish_lock:
            rows = self._lost_ids(rows)
            twice = rows[self._live_twice(rows)]
        if len(twice):
            self._findings.add(f"rows {twice[:3].tolist()} live though replaced", MEMORY_CURE)
        elif len(rows):
            self._findings.add(
                f"the id index did not find {counted(len(rows), 'row')}, "
                f"from row {int(rows[0])} on; repaired"
            )
            self._rebuild_id_index()

    def _lost_ids(self, rows: Int64Array) -> Int64Array:
        snapshot = self._state.snapshot
        rows = rows[~snapshot.tombstones.are_dead(rows)]
        try:
            found = self._state.columns.newest_rows(snapshot.ids_of(rows))
        except IndexError:  # an entry is no position
            return rows
        lost: Int64Array = rows[found != rows]
        return lost

    def _live_twice(self, rows: Int64Array) -> BoolArray:
        """Return whether another live row has the id of each of `rows`."""
        snapshot = self._state.snapshot
        try:
            found = self._state.columns.newest_rows(snapshot.ids_of(rows))
        except IndexError:
            return np.zeros(len(rows), dtype=np.bool_)
        others = (found >= 0) & (found != rows)
        twice: BoolArray = others & ~snapshot.tombstones.are_dead(np.maximum(found, 0))
        return twice

    def _rebuild_id_index(self) -> None:
        state = self._state
        with state.writes_lock.write():
            snapshot = state.snapshot
            live = snapshot.tombstones.live_rows(0, snapshot.rows)
            state.columns.rebuild_id_index(live)

    def check_id_index(self) -> Iterator[Piece]:
        """Look for entries of the id index that should not be there."""
        state, first = self._state, 0
        while first < state.columns.id_places:
            last = first + PLACES_AT_ONCE
            if self._foreign(first, last):
                with state.writes_lock.write():  # an id may have been entered meanwhile
                    foreign = self._foreign(first, last)
                if foreign:
                    entries = counted(foreign, "wrong entry", "wrong entries")
                    self._findings.add(f"the id index held {entries}; repaired")
                    self._rebuild_id_index()
            first = last
            yield Piece()

    def _foreign(self, first: int, last: int) -> int:
        try:
            return self._state.columns.foreign_ids(first, last)
        except IndexError:
            return 1

    # ---- filter columns -------------------------------------------------------------------------

    def _check_columns(self, read: _Read, sound: Int64Array) -> None:
        assert self._columns is not None
        metadata = [read.metadata[place] for place in np.searchsorted(read.rows, sound).tolist()]
        values = self._values(sound, metadata)
        wrong = self._columns.wrong_rows(values)
        config, struct_of = (
            self._state.entry.config,
            dict(zip(sound.tolist(), metadata, strict=True)),
        )
        # An earlier release took values that are rejected today; its columns hold them.
        differ = [row for row in wrong.tolist() if is_taken(config, struct_of[row])]
        if differ:
            self._rewrite({row: values[row] for row in differ})

    def _values(self, rows: Int64Array, metadata: list[bytes]) -> Mapping[int, FieldValues]:
        values = field_values_of(self._state.entry.config, metadata)
        return dict(zip(rows.tolist(), values, strict=True))

    def _rewrite(self, values: Mapping[int, FieldValues]) -> None:
        """Write the filter columns of rows again, and their file."""
        with self._state.writes_lock.write():
            self._state.filter_columns.rewrite(values)
        self._state.on_columns_repaired()
        self._state.checkpoint.ask_columns()
        self._findings.add(
            f"the filter columns of {counted(len(values), 'row')}, from row {min(values)} on, "
            "did not match their metadata; repaired"
        )
        self._state.on_change()

    def check_keywords(self) -> Iterator[Piece]:
        """Count the rows of each keyword, after all rows are checked."""
        if self._columns is None:
            return
        keywords = self._state.filter_columns.keywords()
        for at in range(0, len(keywords), KEYWORDS_AT_ONCE):
            rows = self._columns.wrong_keywords(keywords[at : at + KEYWORDS_AT_ONCE])
            rows = rows[~self._state.snapshot.tombstones.are_dead(rows)]
            for begin in range(0, len(rows), PIECE_ROWS):
                some = rows[begin : begin + PIECE_ROWS]
                metadata = self._state.row_store.metadata(some)
                self._rewrite(self._values(some, metadata))
                yield Piece(0, sum(map(len, metadata)))
            yield Piece()


def _without(rows: Int64Array, others: Int64Array) -> Int64Array:
    """Return the rows that are not among `others`."""
    return rows[~np.isin(rows, others)] if len(others) else rows
