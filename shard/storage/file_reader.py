"""Reads parts of a file for the scrub: from the disk where that is possible, or as a search would.

A map of a file shows what the page cache holds, which may be sound while the disk is not. So the
scrub reads some passes past the cache. Formats must not enter here.
"""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Final, Self

from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.store_files import require_file

_PAGE: Final = mmap.PAGESIZE


class Scratch:
    """Memory that one read after another uses: fresh pages cost more than to read into them."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PAGE)

    def of(self, size: int) -> memoryview:
        """Return memory that begins at a page, for one read; the last one's contents are gone."""
        if size > len(self._memory):
            self._memory = mmap.mmap(-1, size)  # arrays of the old one keep it alive
        return memoryview(self._memory)[:size]


class FileReader:
    """A file that is open to be read in parts; a context that closes it.

    Parameters
    ----------
    past_cache
        Whether to read the disk. Where the file system does not allow it, the page cache is read,
        and `reads_disk` is False.
    scratch
        Where to read to; the result of a read is gone with the next one. None: new memory.

    Raises
    ------
    OSError
        If opening the file fails, or if it is not a file.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        *,
        past_cache: bool = False,
        scratch: Scratch | None = None,
    ) -> None:
        require_file(path)
        self._scratch = scratch
        self._disk = disk
        self.reads_disk = past_cache
        self._file = self._opened(path)

    def _opened(self, path: Path) -> DiskFile:
        if self.reads_disk:
            try:
                return self._disk.open_to_read(path, past_cache=True)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self.reads_disk = False
        return self._disk.open_to_read(path)

    @property
    def identity(self) -> tuple[int, int]:
        """Which file it is: its device and inode."""
        found = os.fstat(self._file.descriptor)
        return found.st_dev, found.st_ino

    @property
    def size(self) -> int:
        """Length in bytes."""
        return self._file.size

    def read(self, offset: int, size: int) -> memoryview:
        """Return up to `size` bytes at `offset`: fewer at the end of the file."""
        before = offset % _PAGE if self.reads_disk else 0
        wanted = before + size
        room = -(-wanted // _PAGE) * _PAGE if self.reads_disk else wanted
        if not room:
            return memoryview(b"")
        buffer = (self._scratch or Scratch()).of(room)  # whole pages, as O_DIRECT requires
        found = 0
        while found < wanted:
            read = self._disk.read(self._file, offset - before + found, buffer[found:])
            found += read
            if not read or (self.reads_disk and found % _PAGE):
                break
        return buffer[before : min(found, wanted)]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
