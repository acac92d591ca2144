"""The files of a collection, looked at before SQLite or a reader opens them, and while it writes.

SQLite removes the log of an empty database, even if it may only read. A pipe makes a reader wait,
and a device may have no end. So each file must be a file, and the database must begin like one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vectorshard.shard.errors import RowStoreCorrupt

STORE_FILE: Final = "store.db"

_LOG: Final = f"{STORE_FILE}-wal"

MEMBERS: Final = (STORE_FILE, _LOG, f"{STORE_FILE}-shm", "log-end")
"""What is opened of a collection, besides its row file and what is derived from it."""

JOURNAL: Final = f"{STORE_FILE}-journal"
"""What SQLite would roll back. A database with a log never has one."""

_MAGIC: Final = b"SQLite format 3\x00"
_HEADER_BYTES: Final = 100  # sqlite.org/fileformat.html, 1.3
_WITH_LOG: Final = b"\x02\x02"  # bytes 18 and 19: written, and read, with a log


def wrong_kind(path: Path) -> str:
    """Return what is wrong with what should be a file; empty if nothing is, or it is absent."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return f"{path.name} is a link to {path.readlink()}, which is absent"
        return ""
    return "" if stat.S_ISREG(mode) else f"{path.name} is not a file"


def require_file(path: Path) -> None:
    """Raise OSError if something else than a file is in its place."""
    if wrong := wrong_kind(path):
        raise OSError(errno.EINVAL, wrong, str(path))


def read_file(path: Path, at_most: int = -1) -> bytes:
    """Return the contents of a file, or so many bytes of it.

    Raises OSError if something else is in its place: it is not opened then.
    """
    require_file(path)
    with path.open("rb") as file:
        return file.read(at_most)


def obstacle_in(directory: Path) -> str:
    """Return what keeps the files of a collection from being opened safely; empty if nothing."""
    for name in MEMBERS:
        if wrong := wrong_kind(directory / name):
            return wrong
    if os.path.lexists(directory / JOURNAL):
        return f"{JOURNAL} is no file of a collection"
    return ""


def check_store_files(path: Path) -> None:
    """Look at a database that no connection has open, before SQLite opens it. Changes nothing.

    Raises
    ------
    RowStoreCorrupt
        If it is missing, or does not begin like a database with a log.
    OSError
        If a directory, a device or the like is in place of a file, or a journal is there.
    """
    if obstacle := obstacle_in(path.parent):
        raise OSError(errno.EINVAL, obstacle, str(path.parent))
    check_header(path)


def check_header(path: Path) -> None:
    """Raise RowStoreCorrupt if a database does not begin like one with a log; see above."""
    try:
        header = read_file(path, _HEADER_BYTES)
    except FileNotFoundError as error:
        raise RowStoreCorrupt(f"{path} is missing") from error
    if len(header) < _HEADER_BYTES:
        raise RowStoreCorrupt(f"{path} is not a row store: it has {len(header)} bytes")
    if not header.startswith(_MAGIC) or header[18:20] != _WITH_LOG:
        raise RowStoreCorrupt(f"{path} is not a row store: its header is damaged")


# ---- while they are open ------------------------------------------------------------------------

LOOK_EVERY_S: Final = 1.0
"""How often a store that is written looks at its files. What is committed into a file that was
removed is gone with the process. Smaller: fewer such commits, and more calls of the system."""

_WRITTEN: Final = (STORE_FILE, _LOG, "log-end")


class HeldFiles:
    """The files of a store that is open to be written, as they were when it was looked at last.

    They keep their places, and only grow. `clock` tells seconds.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._seen: dict[str, tuple[int, int, int]] = {}
        self._harm = ""
        self._look()
        self._due_s = 0.0

    def harm(self) -> str:
        """Return what has happened to a file since; empty if nothing. Looks once a second."""
        now_s = self._clock()
        if now_s >= self._due_s and not self._harm:
            self._due_s = now_s + LOOK_EVERY_S
            self._harm = self._look()
        return self._harm

    def committed(self) -> None:
        """Note that the log is not empty from now on."""
        device, inode, size = self._seen.get(_LOG, (0, 0, 1))
        if not size:
            self._seen[_LOG] = device, inode, 1

    def _look(self) -> str:
        for name in _WRITTEN:
            before = self._seen.get(name)
            try:
                found = (self._directory / name).stat()
            except FileNotFoundError:
                if before is None:
                    continue
                return f"{name} was removed while the server ran"
            self._seen[name] = now = found.st_dev, found.st_ino, found.st_size
            if before is not None and now[:2] != before[:2]:
                return f"{name} was replaced while the server ran"
            if before is not None and now[2] < before[2]:
                return f"{name} was shortened while the server ran"
        return ""
