"""A disk that fails a read, told from a database that is damaged.

SQLite answers SQLITE_CORRUPT in both cases: it takes EIO for a broken file system, and its virtual
machine reports that as a malformed database (os_unix.c, seekAndRead; vdbe.c, abort_due_to_error).
So the files are read once more, without SQLite: a disk that fails again is named. What it reads
this time may have failed before, so the caller tries once more, too.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import structlog

from vectorshard.shard.errors import ReadFailed, RowStoreCorrupt
from vectorshard.shard.storage.disk import is_disk_full, is_exhausted

_PIECE_BYTES: Final = 1024 * 1024

_READ_CODES: Final = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}

_log = structlog.get_logger(__name__)

T = TypeVar("T")

_keeping = threading.Lock()
_kept: dict[Path, int] = {}
"""Descriptors of databases and logs. They stay open until `release`: closing one would take away
the locks of SQLite's connections to that file (sqlite.org/howtocorrupt.html, 2.2)."""


def is_read_failure(error: BaseException) -> bool:
    """Whether an error of a read says that the disk failed, and nothing about what is stored.

    A limit of the machine is no failure of the disk.
    """
    if is_exhausted(error) or is_disk_full(error):
        return False
    if isinstance(error, OSError):
        return True
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _READ_CODES


def is_malformed(error: BaseException | None) -> bool:
    """Whether SQLite calls a database malformed: it is damaged, or a read of it failed."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_CORRUPT


def failure_behind(path: Path, error: sqlite3.Error) -> ReadFailed | None:
    """Return the failed read behind an error of SQLite; None if the files can be read.

    For SQLITE_CORRUPT it reads all of the database and its log.
    """
    if not is_malformed(error):
        return None
    found = _failure_at(path)
    return ReadFailed(f"{path.parent}: the disk failed a read ({found})") if found else None


def _failure_at(path: Path) -> str:
    for file in _files_of(path):
        try:
            _read_all(file)
        except FileNotFoundError:
            continue
        except OSError as error:
            return f"{file.name}: {os.strerror(error.errno or 0)}"
    return ""


def try_twice(read: Callable[[], T]) -> T:
    """Read; once more if SQLite calls the database malformed, which may have been a failed read."""
    try:
        return read()
    except RowStoreCorrupt as error:
        if not is_malformed(error.__cause__):
            raise
        _log.warning("read retried", error=str(error))
    return read()


def release(path: Path) -> None:
    """Close what was opened to look at a database that no connection has open any more."""
    with _keeping:
        for file in _files_of(path):
            if (descriptor := _kept.pop(file, None)) is not None:
                os.close(descriptor)


def _files_of(path: Path) -> tuple[Path, Path]:
    return path, path.with_name(path.name + "-wal")


def _read_all(file: Path) -> None:
    with _keeping:
        descriptor = _kept.get(file)
        if descriptor is None:
            descriptor = _kept[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        offset = 0
        while piece := os.pread(descriptor, _PIECE_BYTES, offset):
            offset += len(piece)
