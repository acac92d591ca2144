"""The vectors: an append-only float32 matrix in one file, read through a memory map.

docs/formats.md describes the layout. Which rows exist, and at which position each lies, belongs to
the row store and must not enter here.
"""

from __future__ import annotations

import errno
import os
import threading
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vectorshard.shard.errors import RowFileCorrupt
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.file_reader import FileReader, Scratch
from vectorshard.shard.storage.memory_map import MemoryMap
from vectorshard.shard.storage.store_files import require_file
from vectorshard.shard.types import Float32Array

FIRST_BYTES = 1024 * 1024
"""Length of a file with one row. It doubles from here on: each step costs one more map."""

LARGEST_STEP_BYTES = 256 * 1024 * 1024
"""The most that a file grows at once; the space is not allocated until rows are written."""

COMPONENT = np.dtype("<f4")


class RowFile:
    """A (rows, dim) matrix on disk. One thread appends; any thread views.

    Written with pwrite, never through the map, and never shortened while it is mapped: reading a
    map past the end of its file kills the process. The map needs no descriptor. An append leaves
    the file open for the next one, while few enough are (`Disk.open_row_files`).
    """

    def __init__(self, disk: Disk, file: DiskFile, dim: int) -> None:
        self._disk = disk
        self._path = file.path
        self._identity = _identity_of(file)
        self._dim = dim
        self._row_bytes = dim * COMPONENT.itemsize
        self._is_closed = False
        self._file: DiskFile | None = None
        self._appending = threading.Lock()
        self._map = _mapped(file)

    @classmethod
    def open(cls, disk: Disk, path: Path, dim: int) -> RowFile:
        """Open the file, creating it durably if it is absent. `dim` is the components of a row.

        Raises OSError if creating, lengthening or mapping it fails.
        """
        with closing(disk.open(path)) as file:
            # Even when the file was there: its creator may have been killed before this line.
            disk.sync_directory(path.parent)
            return cls(disk, file, dim)

    @classmethod
    def open_existing(cls, disk: Disk, path: Path, dim: int) -> RowFile:
        """Open a file that must exist, and change nothing.

        Raises RowFileCorrupt if it does not exist, OSError if opening or mapping it fails.
        """
        require_file(path)
        if not path.exists():
            raise RowFileCorrupt(f"{path} is missing")
        with closing(disk.open(path)) as file:
            return cls(disk, file, dim)

    @property
    def name(self) -> str:
        """Its name in its directory."""
        return self._path.name

    @property
    def disk_bytes(self) -> int:
        """Bytes that the file occupies, without the holes in it; 0 if it was removed."""
        with suppress(FileNotFoundError):
            return self._path.stat().st_blocks * 512
        return 0

    def require(self, rows: int) -> None:
        """Raise RowFileCorrupt if the file is shorter than `rows` committed rows."""
        if len(self._map) < rows * self._row_bytes:
            raise RowFileCorrupt(
                f"{self._path} has {len(self._map)} bytes; "
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
        contents = np.ascontiguousarray(vectors, dtype=COMPONENT).data
        with self._appending:
            file = self._in_its_place()
            self._grow(file, start + len(vectors) * self._row_bytes)
            self._disk.write(file, start, contents)
            self._disk.sync(file)
        self._disk.open_row_files.used(self)

    def view(self, rows: int) -> Float32Array:
        """Return the first `rows` rows, float32 (rows, dim), read-only, without reading them.

        The array stays valid while rows are appended, and after `close`.
        """
        return np.ndarray((rows, self._dim), dtype=COMPONENT, buffer=self._map)

    def reader(self, *, past_cache: bool = False, scratch: Scratch | None = None) -> FileReader:
        """Return a reader of the file that is mapped; `read_rows` reads rows with it.

        Raises OSError if the file is not in its place any more.
        """
        reader = FileReader(self._disk, self._path, past_cache=past_cache, scratch=scratch)
        if reader.identity != self._identity:
            reader.close()
            raise OSError(errno.ESTALE, "the row file was replaced", str(self._path))
        return reader

    def read_rows(self, reader: FileReader, first: int, rows: int) -> Float32Array:
        """Read the rows at the positions from `first` on, float32 (rows, dim), read-only.

        Raises RowFileCorrupt if the file ends before them.
        """
        found = reader.read(first * self._row_bytes, rows * self._row_bytes)
        if len(found) < rows * self._row_bytes:
            raise RowFileCorrupt(f"{self._path} ends before position {first + rows}")
        return np.frombuffer(found, dtype=COMPONENT).reshape(rows, self._dim)

    def write_again(self, position: int, vector: Float32Array) -> None:
        """Write a committed row as it is in memory, durably: what the disk holds has decayed."""
        with self._appending:
            file = self._in_its_place()
            contents = np.ascontiguousarray(vector, dtype=COMPONENT).data
            self._disk.write(file, position * self._row_bytes, contents)
            self._disk.sync(file)
        self._disk.open_row_files.used(self)

    def close(self) -> None:
        """Take no more rows. Views stay valid."""
        self._disk.open_row_files.forget(self)
        with self._appending:
            self._is_closed = True
            self._close_file()

    def try_to_close_files(self) -> bool:
        """Close the file until the next append, unless one is running; return whether it is."""
        if not self._appending.acquire(blocking=False):
            return False
        try:
            self._close_file()
            return True
        finally:
            self._appending.release()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _in_its_place(self) -> DiskFile:
        """Return the file that was mapped; OSError, and no new file, if it is not in its place."""
        if self._is_closed:
            raise ValueError(f"{self._path} is closed")
        if self._file is None:
            try:
                found = self._path.stat()  # before it is opened, which would create it
            except FileNotFoundError as error:
                raise OSError(errno.ESTALE, "the row file was removed", str(self._path)) from error
            if (found.st_dev, found.st_ino) != self._identity:
                raise OSError(errno.ESTALE, "the row file was replaced", str(self._path))
            self._file = self._disk.open(self._path)
        elif not os.fstat(self._file.descriptor).st_nlink:
            what = "replaced" if self._path.exists() else "removed"
            raise OSError(errno.ESTALE, f"the row file was {what}", str(self._path))
        return self._file

    def _grow(self, file: DiskFile, needed_bytes: int) -> None:
        if needed_bytes <= len(self._map):
            return
        size = max(FIRST_BYTES, len(self._map))
        while size < needed_bytes:
            size += min(size, LARGEST_STEP_BYTES)
        self._disk.extend(file, size)
        self._map = _mapped(file)


def _mapped(file: DiskFile) -> npt.NDArray[np.uint8]:
    """Return the bytes of a file, read-only, without reading them."""
    size = file.size
    if not size:
        return np.zeros(0, dtype=np.uint8)  # no system maps an empty file
    return MemoryMap(file.descriptor, size).bytes()


def _identity_of(file: DiskFile) -> tuple[int, int]:
    found = os.fstat(file.descriptor)
    return found.st_dev, found.st_ino
