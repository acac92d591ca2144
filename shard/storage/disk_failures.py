"""What a failure of the disk means, in words: its cause as the system names it, and the cure.

Nothing here decides what is lost: that stored bytes do not match their checksums is another kind
of error.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.disk import DiskError
from vectorshard.shard.storage.store_files import obstacle_in, wrong_kind


@dataclass(frozen=True, slots=True)
class DiskFailure:
    """Why the disk failed, and what an operator does about it: two clauses without a full stop."""

    reason: str
    cure: str


_LIMITS: Final = {
    errno.EMFILE: "the process has too many open files",
    errno.ENFILE: "the machine has too many open files",
    errno.ENOMEM: "the machine has too little memory",
}


def failure_at_open(directory: Path, error: DiskError | MemoryError) -> DiskFailure:
    """Return what an error means that opening the files of a directory has raised.

    SQLite withholds the system's error number where it cannot open a file. Opening the files again
    usually fails alike; none of them may be open, or SQLite would lose its locks.
    """
    if obstacle := _obstacle(directory):
        return DiskFailure(obstacle, "Move it away")
    code = _code_of(error)
    if code is None and isinstance(error, sqlite3.Error):
        code = _code_of_opening(directory)
    if code is None and isinstance(error, sqlite3.Error):
        return _failure_of_sqlite(error)
    what = os.strerror(code) if code else str(error)
    if code in _LIMITS:
        return DiskFailure(f"{_LIMITS[code]} ({what})", "Raise that limit")
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFailure(f"the disk is full ({what})", "Free space")
    if code in {errno.EACCES, errno.EPERM}:
        return DiskFailure(f"its files may not be opened ({what})", "Correct their permissions")
    return DiskFailure(f"the disk failed ({what})", "Check the disk")


def _obstacle(directory: Path) -> str:
    """Return what is in place of a file of a collection; empty if nothing, or unknown."""
    try:
        return obstacle_in(directory) or next(
            (wrong for path in sorted(directory.glob("rows-*")) if (wrong := wrong_kind(path))), ""
        )
    except OSError:
        return ""


def _failure_of_sqlite(error: sqlite3.Error) -> DiskFailure:
    """Return what an error means that has no number of the system."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return DiskFailure("another program has locked store.db", "Stop that program")
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH}:
        return DiskFailure("store.db may not be written", "Correct the permissions of its files")
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return DiskFailure(f"SQLite could not open store.db ({name})", "Check the disk")


def _code_of(error: DiskError | MemoryError) -> int | None:
    """Return the system's error number of an error, or None if it has none."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    code = getattr(error, "sqlite_errorcode", 0)
    if code in {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE}:
        return errno.ENOSPC
    return {sqlite3.SQLITE_NOMEM: errno.ENOMEM, sqlite3.SQLITE_IOERR: errno.EIO}.get(code & 0xFF)


def _code_of_opening(directory: Path) -> int | None:
    try:
        for path in (path for path in directory.iterdir() if path.is_file()):
            os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno
    return None
