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


@dataclass(frozen=True, slots=True)
class DiskFailure:
    """Why the disk failed, and what an operator does about it: two clauses without a full stop."""

    reason: str
    cure: str


_FILES: Final = ("store.db", "rows-", "log-end")
"""How the names of files begin that a collection is opened with."""

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
    for path in sorted(directory.iterdir()):
        if path.name.startswith(_FILES) and path.exists() and not path.is_file():
            return DiskFailure(f"{path.name} is not a file", "Move it away")
    code = _code_of(error)
    if code is None and isinstance(error, sqlite3.Error):
        code = _code_of_opening(directory)
    what = os.strerror(code) if code else str(error)
    if code in _LIMITS:
        return DiskFailure(f"{_LIMITS[code]} ({what})", "Raise that limit")
    if code in {errno.ENOSPC, errno.EDQUOT}:
        return DiskFailure(f"the disk is full ({what})", "Free space")
    if code in {errno.EACCES, errno.EPERM}:
        return DiskFailure(f"its files may not be opened ({what})", "Correct their permissions")
    return DiskFailure(f"the disk failed ({what})", "Check the disk")


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
