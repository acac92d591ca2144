"""The rows of a damaged collection, read from its row file and compared with their content hashes.

The row file is read, never mapped: a disk that fails must not end the process. Nothing is written.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from vectorshard.shard.index.exact import stored_squared_norms
from vectorshard.shard.storage.content_hash import content_hashes, sum_of
from vectorshard.shard.storage.repair_bits import row_without_flip
from vectorshard.shard.storage.repair_findings import DamagedRow
from vectorshard.shard.types import (
    BoolArray,
    Float32Array,
    IdArray,
    Int64Array,
    UInt64Array,
)

ROWS_AT_ONCE: Final = 5_000
FLIPS_TRIED_ROWS: Final = 1_000
"""Rows of which every bit is tried: 10 to 50 ms each."""

ReadMetadata: TypeAlias = Callable[[Int64Array], Sequence[bytes]]
"""Returns the metadata of rows (rows,), empty where a row has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRows:
    """Live rows by ascending number: `numbers` and `positions` int64 (rows,), `ids` (rows,).

    `content_hashes` uint64 (rows, 2), `squared_norms` float32 (rows,), all as they are stored.
    """

    numbers: Int64Array
    positions: Int64Array
    ids: IdArray
    content_hashes: UInt64Array
    squared_norms: Float32Array

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, chosen: BoolArray | Int64Array) -> LiveRows:
        """Return some of the rows."""
        return LiveRows(
            numbers=self.numbers[chosen],
            positions=self.positions[chosen],
            ids=self.ids[chosen],
            content_hashes=self.content_hashes[chosen],
            squared_norms=self.squared_norms[chosen],
        )

    def renumbered(self, numbers: Int64Array) -> LiveRows:
        """Return the rows under other numbers."""
        return replace(self, numbers=numbers)

    def moved(self, positions: Int64Array) -> LiveRows:
        """Return the rows at other positions."""
        return replace(self, positions=positions)

    def with_norms(self, norms: Float32Array) -> LiveRows:
        """Return the rows with other squared norms."""
        return replace(self, squared_norms=norms)

    @property
    def sum(self) -> int:
        """The sum of their content hashes."""
        return sum_of(self.content_hashes)


class StoredVectors:
    """The vectors of a row file, which may be absent or cut. Close it after use."""

    def __init__(self, path: Path, dim: int) -> None:
        self.path = path
        self._dim = dim
        self._row_bytes = dim * 4
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._descriptor = -1
        self.rows = 0
        """How many rows the file has room for, committed or not."""
        if self._descriptor >= 0:
            self.rows = os.fstat(self._descriptor).st_size // self._row_bytes
        self.restored: dict[int, bytes] = {}
        """Vectors by position of which a flipped bit was undone; `read` returns them."""

    @property
    def is_absent(self) -> bool:
        """Whether there is no such file."""
        return self._descriptor < 0

    def read(self, positions: Int64Array) -> Float32Array:
        """Return the vectors at positions, float32 (positions, dim).

        Zeros beyond the end of the file. Raises OSError if the disk fails.
        """
        vectors = np.zeros((len(positions), self._dim), dtype="<f4")
        places = np.flatnonzero(positions < self.rows)
        there = positions[places]
        if len(there):
            first, last = int(there.min()), int(there.max()) + 1
            if last - first <= 4 * len(there):
                span = np.frombuffer(self._bytes(first, last), "<f4").reshape(-1, self._dim)
                vectors[places] = span[there - first]
            else:
                for place, position in zip(places.tolist(), there.tolist(), strict=True):
                    row = self._bytes(position, position + 1)
                    vectors[place] = np.frombuffer(row, "<f4")
        if self.restored:
            for place, position in enumerate(positions.tolist()):
                if (vector := self.restored.get(position)) is not None:
                    vectors[place] = np.frombuffer(vector, "<f4")
        return vectors

    def _bytes(self, first: int, last: int) -> bytes:
        at, end = first * self._row_bytes, last * self._row_bytes
        parts = []
        while at < end:
            part = os.pread(self._descriptor, min(end - at, 2**26), at)
            if not part:
                raise OSError(f"{self.path} was shortened while it was read")
            parts.append(part)
            at += len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(slots=True, kw_only=True)
class Checked:
    """What a comparison found: the damaged rows, and the metadata that was restored, by row."""

    damaged: list[DamagedRow]
    metadata: dict[int, bytes]


def checked(rows: LiveRows, vectors: StoredVectors, metadata: ReadMetadata) -> Checked:
    """Compare all rows with their content hashes, and undo single flipped bits."""
    result = Checked(damaged=[], metadata={})
    by_position = np.argsort(rows.positions, kind="stable")
    for first in range(0, len(rows), ROWS_AT_ONCE):
        piece = rows.take(by_position[first : first + ROWS_AT_ONCE])
        found, structs = vectors.read(piece.positions), metadata(piece.numbers)
        hashes = content_hashes(piece.ids, structs, found)
        for wrong in np.flatnonzero((hashes != piece.content_hashes).any(axis=1)).tolist():
            row = piece.take(np.array([wrong]))
            restored = False
            if len(result.damaged) < FLIPS_TRIED_ROWS and int(row.positions[0]) < vectors.rows:
                restored = _restored(row, structs[wrong], found[wrong], vectors, result)
            result.damaged.append(_damaged(row, vectors, restored))
    result.damaged.sort(key=lambda each: each.row)
    return result


def _restored(
    row: LiveRows,
    struct: bytes,
    vector: Float32Array,
    vectors: StoredVectors,
    result: Checked,
) -> bool:
    stored = row.content_hashes.tobytes()
    sound = row_without_flip(row.ids, struct, vector.tobytes(), stored)
    if sound is None:
        return False
    if sound[0] != struct:
        result.metadata[int(row.numbers[0])] = sound[0]
    else:
        vectors.restored[int(row.positions[0])] = sound[1]
    return True


def _damaged(row: LiveRows, vectors: StoredVectors, restored: bool) -> DamagedRow:
    found = "it does not match its content hash"
    if int(row.positions[0]) >= vectors.rows:
        found = "its vector is gone"
    if restored:
        found = "a bit of it was flipped"
    return DamagedRow(
        row=int(row.numbers[0]), id=row.ids.tolist()[0], found=found, restored=restored
    )


def located(rows: LiveRows, vectors: StoredVectors, metadata: ReadMetadata) -> Int64Array:
    """Return where rows are in a row file in which they lie elsewhere, int64 (rows,).

    Rows that are not in it are beyond its end. Norms find candidates, and content hashes decide.
    """
    norms = [
        stored_squared_norms(
            vectors.read(np.arange(first, min(first + ROWS_AT_ONCE, vectors.rows)))
        )
        for first in range(0, vectors.rows, ROWS_AT_ONCE)
    ]
    every = np.concatenate([np.zeros(0, np.float32), *norms])
    order = np.argsort(every, kind="stable")
    places = np.searchsorted(every[order], rows.squared_norms)
    found = np.full(len(rows), vectors.rows, dtype=np.int64)
    for row, place in enumerate(places.tolist()):
        one = rows.take(np.array([row]))
        structs = metadata(one.numbers)
        while place < len(order) and every[order[place]] == rows.squared_norms[row]:
            position = order[place : place + 1].astype(np.int64)
            hashes = content_hashes(one.ids, structs, vectors.read(position))
            if (hashes == one.content_hashes).all():
                found[row] = position[0]
                break
            place += 1
    return found


def pieces(rows: LiveRows) -> Iterator[LiveRows]:
    """Yield the rows in pieces of ROWS_AT_ONCE."""
    for first in range(0, len(rows), ROWS_AT_ONCE):
        yield rows.take(np.arange(first, min(first + ROWS_AT_ONCE, len(rows))))
