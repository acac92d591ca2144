"""A file that is given up when the disk is full, so that what makes room has room itself.

Dropping a collection, or starting, writes a few kilobytes. On a full disk that would fail, and
nothing could ever be removed. docs/formats.md lists the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final, TypeVar

from vectorshard.shard.storage.disk import Disk, is_disk_full

BALLAST_FILE: Final = "ballast"

BALLAST_BYTES: Final = 1024 * 1024
"""More than a thousand small files need."""

LEAST_FREE_BYTES: Final = 4 * BALLAST_BYTES
"""A disk with less room gets no ballast: the writes that it is for have that room."""

T = TypeVar("T")


class Ballast:
    """The ballast of one data directory. `fill` makes it."""

    def __init__(self, disk: Disk, directory: Path) -> None:
        self._disk = disk
        self._path = directory / BALLAST_FILE

    def fill(self) -> None:
        """Make the ballast if it is not there, unless the disk has no room for it."""
        with suppress(OSError):
            if self._path.exists() and self._path.stat().st_blocks * 512 >= BALLAST_BYTES:
                return
            free, _ = self._disk.free_bytes(self._path.parent)
            if free < LEAST_FREE_BYTES:  # others need it more
                return
            try:
                with closing(self._disk.open(self._path)) as file:
                    # Bytes that do not repeat: a file system may compress others to nothing.
                    self._disk.write(file, 0, os.urandom(BALLAST_BYTES))
                    self._disk.sync(file)
            except OSError:
                self._disk.remove(self._path)
                raise

    def spend(self, write: Callable[[], T]) -> T:
        """Return what `write` returns; if the disk is full, remove the ballast and repeat it.

        Raises what `write` raises.
        """
        try:
            return write()
        except Exception as error:
            if not is_disk_full(error) or not self._path.exists():
                raise
        self._disk.remove(self._path)
        return write()
