"""Everything that a shard keeps of each row by position: one generation of the row file, and the
ids and norms in memory.

A compaction fills new columns and replaces these as a whole, so that vectors, norms and ids shrink
together; holders of an older snapshot keep reading the old columns. One thread writes at a time.
Which rows are dead must not enter here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vectorshard.shard.rows.id_column import IdColumn, IdIndex
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.types import Float32Array, IdArray, IdType, Int64Array

_NORMS_MIN = 1_024


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
        )

    @property
    def vectors(self) -> Float32Array:
        """float32 (positions, dim): a read-only view of the rows so far."""
        return self.row_file.view(len(self.ids))

    @property
    def squared_norms(self) -> Float32Array:
        """float32 (positions,)"""
        return self._squared_norms[: len(self.ids)]

    def newest_rows(self, ids: IdArray) -> Int64Array:
        """Return the newest row of each id, dead or alive, or -1. int64 (ids,)."""
        positions = self._id_index.lookup(ids)
        return np.where(positions < 0, -1, self.positions.rows_at(np.maximum(positions, 0)))

    def load(
        self, ids: Sequence[tuple[bytes, int]], squared_norms: Float32Array, live_rows: Int64Array
    ) -> None:
        """Load what is stored of the rows in the file.

        `ids` are blobs of `encode_ids` with the rows in each, and `squared_norms` float32
        (positions,), in the order of positions. The id index finds `live_rows`, int64.
        """
        for blob, rows in ids:
            self.ids.extend_encoded(blob, rows)
        self._squared_norms = squared_norms
        positions = self.positions.of(live_rows)
        self._id_index.put(self.ids.take(positions), positions)

    def write(self, first_row: int, vectors: Float32Array) -> None:
        """Write vectors (rows, dim) of the next rows, durably; an OSError leaves others intact."""
        (position,) = self.positions.of(np.array([first_row])).tolist()
        self.row_file.append(position, vectors)

    def append(
        self, ids: IdArray, squared_norms: Float32Array
    ) -> tuple[Float32Array, Float32Array]:
        """Append the next rows, whose vectors are written: ids and float32 norms, (rows,).

        Returns views of the vectors and the squared norms of all rows. If memory runs out, the id
        index finds every id where it was.
        """
        first = len(self.ids)
        end = first + len(ids)
        self._append_norms(squared_norms)
        vectors = self.row_file.view(end)
        self.ids.append(ids)
        self._id_index.put(ids, np.arange(first, end))
        return vectors, self._squared_norms[:end]

    def append_kept(self, source: RowColumns, rows: Int64Array, ids: bytes) -> None:
        """Copy live rows of `source`, including the vectors, durably.

        `rows`, int64 (rows,), ascend; no two have one id, and none has an id that is here. `ids`
        are theirs, by `encode_ids`.
        """
        there = source.positions.of(rows)
        first = len(self.ids)
        self.row_file.append(first, source.vectors.take(there, axis=0))
        self._append_norms(source.squared_norms[there])
        self.ids.extend_encoded(ids, len(rows))
        self._id_index.put_new(np.arange(first, len(self.ids)), source._id_index.hashes(there))

    def append_newer(self, source: RowColumns, last: int, live_rows: Int64Array) -> None:
        """Copy the rows of `source` from here up to row `last`, including the vectors, durably.

        `live_rows`, int64, are those of them that the id index must find.
        """
        first = len(self.ids)
        begin, end = source.positions.span(self.rows, last)
        self.row_file.append(first, source.vectors[begin:end])
        self._append_norms(source.squared_norms[begin:end])
        self.ids.extend_encoded(source.ids.take_encoded(np.arange(begin, end)), end - begin)
        positions = self.positions.of(live_rows)
        self._id_index.put(self.ids.take(positions), positions)

    def close(self) -> None:
        """Close the file. Views of it stay valid."""
        self.row_file.close()

    def _append_norms(self, squared_norms: Float32Array) -> None:
        first = len(self.ids)
        end = first + len(squared_norms)
        if end > len(self._squared_norms):
            grown = np.zeros(max(_NORMS_MIN, 2 * end), dtype=np.float32)
            grown[:first] = self._squared_norms[:first]
            self._squared_norms = grown
        self._squared_norms[first:end] = squared_norms
