"""The vectors: an append-only float32 matrix in one file, read through a memory map.

docs/formats.md describes the layout. Which rows exist, and at which position each lies, belongs to
the row store and must not enter here.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np

from vectorshard.shard.errors import RowFileCorrupt
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.types import Float32Array

FIRST_BYTES = 1024 * 1024
"""Length of a file with one row. It doubles from here on: each step costs one more map."""

LARGEST_STEP_BYTES = 256 * 1024 * 1024
"""The most that a file grows at once; the space is not allocated until rows are written."""

COMPONENT = np.dtype("<f4")


class RowFile:
    """A (rows, dim) matrix on disk. One thread appends; any thread views.

    Written with pwrite, never through the map, and never shortened while it is mapped: reading a
    map past the end of its file kills the process.
    """

    def __init__(self, disk: Disk, file: DiskFile, dim: int) -> None:
        self._disk = disk
        self._file = file
        self._dim = dim
        self._row_bytes = dim * COMPONENT.itemsize
        self._map = self._mapped()

    @classmethod
    def open(cls, disk: Disk, path: Path, dim: int) -> RowFile:
        """Open the file, creating it durably if it is absent. `dim` is the components of a row.

        Raises OSError if creating, lengthening or mapping it fails.
        """
        file = disk.open(path)
        try:
            # Even when the file was there: its creator may have been killed before this line.
            disk.sync_directory(path.parent)
            return cls(disk, file, dim)
        except BaseException:
            file.close()
            raise

    @classmethod
    def open_existing(cls, disk: Disk, path: Path, dim: int) -> RowFile:
        """Open a file that must exist, and change nothing.

        Raises RowFileCorrupt if it does not exist, OSError if opening or mapping it fails.
        """
        if not path.exists():
            raise RowFileCorrupt(f"{path} is missing")
        file = disk.open(path)
        try:
            return cls(disk, file, dim)
        except BaseException:
            file.close()
            raise

    @property
    def name(self) -> str:
        """Its name in its directory."""
        return self._file.path.name

    @property
    def disk_bytes(self) -> int:
        """Bytes that the file occupies, without the holes in it."""
        return os.fstat(self._file.descriptor).st_blocks * 512

    def require(self, rows: int) -> None:
        """Raise RowFileCorrupt if the file is shorter than `rows` committed rows."""
        if len(self._map) < rows * self._row_bytes:
            raise RowFileCorrupt(
                f"{self._file.path} has {len(self._map)} bytes; "
                f"{rows} committed rows of dim {self._dim} need {rows * self._row_bytes}"
            )

    def append(self, position: int, vectors: Float32Array) -> None:
        """Write `vectors`, float32 (rows, dim), from `position` on, durably.

        An append may overwrite rows that were never committed. The caller ensures that it touches
        no committed row. After an OSError, the committed rows are intact.
        """
        if not len(vectors):
            return
        start = position * self._row_bytes
        self._grow(start + len(vectors) * self._row_bytes)
        self._disk.write(self._file, start, np.ascontiguousarray(vectors, dtype=COMPONENT).data)
        self._disk.sync(self._file)

    def view(self, rows: int) -> Float32Array:
        """Return the first `rows` rows, float32 (rows, dim), read-only, without reading them.

        The array stays valid while rows are appended, and after `close`.
        """
        return np.ndarray((rows, self._dim), dtype=COMPONENT, buffer=self._map)

    def close(self) -> None:
        """Close the file. Views keep their map."""
        self._file.close()

    def _grow(self, needed_bytes: int) -> None:
        if needed_bytes <= len(self._map):
            return
        size = max(FIRST_BYTES, len(self._map))
        while size < needed_bytes:
            size += min(size, LARGEST_STEP_BYTES)
        self._disk.extend(self._file, size)
        self._map = self._mapped()

    def _mapped(self) -> mmap.mmap | bytes:
        size = self._file.size
        if not size:
            return b""  # mmap rejects an empty file
        return mmap.mmap(self._file.descriptor, size, access=mmap.ACCESS_READ)
