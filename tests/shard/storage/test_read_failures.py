"""A disk that fails a read is told from a database that is damaged."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.read_failures import (
    failure_behind,
    is_read_failure,
    release,
    try_twice,
)

ROWS = 200
PAGE_BYTES = 4_096


def corrupt() -> sqlite3.DatabaseError:
    """Return what SQLite raises for EIO, and for a page that is damaged."""
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    return error


@pytest.fixture
def database(tmp_path: Path) -> Path:
    path = tmp_path / "store.db"
    with closing(Disk().connect(path)) as connection:
        connection.execute("CREATE TABLE numbers (row INTEGER PRIMARY KEY, text)")
        connection.execute("BEGIN")
        connection.executemany(
            "INSERT INTO numbers VALUES (?, ?)", [(row, "x" * 500) for row in range(ROWS)]
        )
        connection.execute("COMMIT")
    return path


def test_a_damaged_page_is_damage(database: Path) -> None:
    contents = bytearray(database.read_bytes())
    contents[10 * PAGE_BYTES : 10 * PAGE_BYTES + 8] = b"\xff" * 8
    database.write_bytes(contents)
    with closing(Disk().connect(database)) as connection:
        with pytest.raises(sqlite3.DatabaseError, match="malformed") as raised:
            connection.execute("SELECT sum(length(text)) FROM numbers").fetchall()
        assert failure_behind(database, raised.value) is None
    release(database)


@pytest.mark.parametrize("failures", [1, 2])
def test_what_sqlite_calls_malformed_is_tried_once_more(failures: int) -> None:
    errors = [corrupt() for _ in range(failures)]

    def read() -> str:
        if errors:
            raise RowStoreCorrupt("malformed") from errors.pop()
        return "read"

    if failures == 1:
        assert try_twice(read) == "read"
    else:
        with pytest.raises(RowStoreCorrupt):
            try_twice(read)
    assert not errors


def test_what_is_found_to_be_damaged_is_not_tried_again() -> None:
    tried = []

    def read() -> None:
        tried.append(1)
        raise RowStoreCorrupt("the ledger does not add up")

    with pytest.raises(RowStoreCorrupt):
        try_twice(read)
    assert len(tried) == 1


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_fails_to_be_read_is_a_failed_read(
    database: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    wanted = database.with_name(database.name + suffix)
    wanted.touch()

    def failing(descriptor: int, length: int, offset: int) -> bytes:
        if os.path.samestat(os.fstat(descriptor), wanted.stat()):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return b""

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", failing)
        failure = failure_behind(database, corrupt())
    assert failure is not None
    assert f"{wanted.name}: Input/output error" in str(failure)
    release(database)


def test_looking_takes_no_lock_away_from_sqlite(database: Path) -> None:
    with closing(Disk().connect(database)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("DELETE FROM numbers")
        failure_behind(database, corrupt())
        other = (
            f"import sqlite3; sqlite3.connect({str(database)!r}, timeout=0)"
            ".execute('PRAGMA locking_mode=EXCLUSIVE').connection.execute('BEGIN EXCLUSIVE')"
        )
        tried = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True)
        assert "database is locked" in tried.stderr
        connection.execute("ROLLBACK")
    release(database)


def test_descriptors_are_closed_with_the_database(database: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        failure_behind(database, corrupt())
    release(database)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("error", "failed"),
    [
        (OSError(errno.EIO, "Input/output error"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), False),
        (MemoryError(), False),
        (ValueError("malformed"), False),
        (corrupt(), False),
    ],
)
def test_what_says_that_the_disk_failed(error: Exception, failed: bool) -> None:
    assert is_read_failure(error) == failed


@pytest.mark.parametrize("code", [sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_CORRUPTFS])
def test_every_kind_of_a_failed_read_of_sqlite_counts(code: int) -> None:
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = code
    assert is_read_failure(error)
