"""Everything that a shard keeps of each row by position: one generation of the row file, and the
ids, norms and content hashes in memory.

A compaction fills new columns and replaces these as a whole, so that all of them shrink together;
holders of an older snapshot keep reading the old columns. One thread writes at a time. Which rows
are dead must not enter here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vectorshard.shard.rows.id_column import IdColumn, IdIndex
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.types import Float32Array, IdArray, IdType, Int64Array, UInt64Array

_ROWS_MIN = 1_024


class RowColumns:
    """The columns of the rows in one row file, which `close` closes.

    `positions` maps rows to positions; `room` is how many ids the id index has room for at first.
    """

    def __init__(
        self, id_type: IdType, positions: RowMap, row_file: RowFile, room: int = 0
    ) -> None:
        self.positions = positions
        self.row_file = row_file
        self.ids = IdColumn(id_type)
        self._id_index = IdIndex(self.ids, room=room)
        self._squared_norms = np.zeros(0, dtype=np.float32)
        self._content_hashes = np.zeros((0, 2), dtype=np.uint64)

    @property
    def rows(self) -> int:
        """Rows ever committed, including those that compaction removed from the file."""
        return self.positions.rows(len(self.ids))

    @property
    def memory_bytes(self) -> int:
        """Bytes allocated, including room to grow, excluding the mapped file."""
        return (
            self.positions.memory_bytes
            + self.ids.memory_bytes
            + self._id_index.memory_bytes
            + self._squared_norms.nbytes
            + self._content_hashes.nbytes
        )

    @property
    def vectors(self) -> Float32Array:
        """float32 (positions, dim): a read-only view of the rows so far."""
        return self.row_file.view(len(self.ids))

    @property
    def squared_norms(self) -> Float32Array:
        """float32 (positions,)"""
        return self._squared_norms[: len(self.ids)]

    @property
    def content_hashes(self) -> UInt64Array:
        """uint64 (positions, 2), as they are stored."""
        return self._content_hashes[: len(self.ids)]

    def newest_rows(self, ids: IdArray, id_hashes: UInt64Array | None = None) -> Int64Array:
        """Return the newest row of each id, dead or alive, or -1. int64 (ids,).

        `id_hashes` are the xxh3-64 of the ids, if they are known.
        """
        positions = self._id_index.lookup(ids, id_hashes)
        return np.where(positions < 0, -1, self.positions.rows_at(np.maximum(positions, 0)))

    @property
    def id_places(self) -> int:
        """The places of the id index."""
        return self._id_index.places

    def foreign_ids(self, first: int, last: int) -> int:
        """Count the entries of the id index in the places [first, last) that are wrong."""
        return self._id_index.foreign_in(first, last)

    def rebuild_id_index(self, live_rows: Int64Array) -> None:
        """Build the id index again, so that it finds these rows. No write may run meanwhile."""
        index = IdIndex(self.ids, room=len(live_rows))
        positions = self.positions.of(live_rows)
        index.put(self.ids.take(positions), positions)
        self._id_index = index

    def correct(self, first: int, squared_norms: Float32Array, content_hashes: UInt64Array) -> None:
        """Write norms and hashes as they are stored, from a position on. No write may run."""
        last = first + len(squared_norms)
        self._squared_norms[first:last] = squared_norms
        self._content_hashes[first:last] = content_hashes

    def load(
        self,
        ids: Sequence[tuple[bytes, int]],
        squared_norms: Float32Array,
        content_hashes: UInt64Array,
        live_rows: Int64Array,
    ) -> None:
        """Load what is stored of the rows in the file.

        `ids` are blobs of `encode_ids` with the rows in each, `squared_norms` float32 (positions,)
        and `content_hashes` uint64 (positions, 2), in the order of positions. The id index finds
        `live_rows`, int64.
        """
        for blob, rows in ids:
            self.ids.extend_encoded(blob, rows)
        self._squared_norms = squared_norms
        self._content_hashes = content_hashes
        positions = self.positions.of(live_rows)
        self._id_index.put(self.ids.take(positions), positions)

    def write(self, first_row: int, vectors: Float32Array) -> None:
        """Write vectors (rows, dim) of the next rows, durably; an OSError leaves others intact."""
        (position,) = self.positions.of(np.array([first_row])).tolist()
        self.row_file.append(position, vectors)

    def append(
        self,
        ids: IdArray,
        squared_norms: Float32Array,
        content_hashes: UInt64Array,
        id_hashes: UInt64Array | None = None,
    ) -> tuple[Float32Array, Float32Array, UInt64Array]:
        """Append the next rows, whose vectors are written: ids, norms and hashes.

        `id_hashes` are the xxh3-64 of the ids, if they are known.
        Returns views of the vectors, norms and hashes of all rows. If memory runs out, the id index
        finds every id where it was.
        """
        first = len(self.ids)
        end = first + len(ids)
        self._append_columns(squared_norms, content_hashes)
        views = self.row_file.view(end), self._squared_norms[:end], self._content_hashes[:end]
        self.ids.append(ids)
        self._id_index.put(ids, np.arange(first, end), id_hashes)
        return views

    def append_kept(self, source: RowColumns, rows: Int64Array, ids: bytes) -> int:
        """Copy live rows of `source`, including the vectors, durably; return their vectors' CRC.

        `rows`, int64 (rows,), ascend; no two have one id, and none has an id that is here. `ids`
        are theirs, by `encode_ids`.
        """
        there = source.positions.of(rows)
        first = len(self.ids)
        vectors = source.vectors.take(there, axis=0)
        self.row_file.append(first, vectors)
        self._append_columns(source.squared_norms[there], source.content_hashes[there])
        self.ids.extend_encoded(ids, len(rows))
        self._id_index.put_new(np.arange(first, len(self.ids)), source._id_index.hashes(there))
        return checksum(vectors.view(np.uint8))

    def append_newer(self, source: RowColumns, last: int, live_rows: Int64Array) -> None:
        """Copy the rows of `source` from here up to row `last`, including the vectors, durably.

        `live_rows`, int64, are those of them that the id index must find.
        """
        first = len(self.ids)
        begin, end = source.positions.span(self.rows, last)
        self.row_file.append(first, source.vectors[begin:end])
        self._append_columns(source.squared_norms[begin:end], source.content_hashes[begin:end])
        self.ids.extend_encoded(source.ids.take_encoded(np.arange(begin, end)), end - begin)
        positions = self.positions.of(live_rows)
        self._id_index.put(self.ids.take(positions), positions)

    def close(self) -> None:
        """Close the file. Views of it stay valid."""
        self.row_file.close()

    def _append_columns(self, squared_norms: Float32Array, content_hashes: UInt64Array) -> None:
        first = len(self.ids)
        end = first + len(squared_norms)
        if end > len(self._squared_norms):
            room = max(_ROWS_MIN, 2 * end)
            norms, hashes = np.zeros(room, np.float32), np.zeros((room, 2), np.uint64)
            norms[:first] = self._squared_norms[:first]
            hashes[:first] = self._content_hashes[:first]
            self._squared_norms, self._content_hashes = norms, hashes
        self._squared_norms[first:end] = squared_norms
        self._content_hashes[first:end] = content_hashes
