"""The real disk: whole files, and which failures pass when there is room again."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from vectorshard.shard.storage.disk import Disk, DiskError, is_disk_full


def test_a_whole_file_replaces_what_a_crash_left_of_a_longer_one(tmp_path: Path) -> None:
    (tmp_path / "file.new").write_bytes(b"of an attempt that was cut short")
    Disk().write_new_file(tmp_path / "file", b"short")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"short"


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("of a test")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "no space"), True),
        (OSError(errno.EDQUOT, "quota"), True),
        (OSError(errno.EIO, "input/output"), False),
        (sqlite_error(sqlite3.SQLITE_FULL), True),
        (sqlite_error(sqlite3.SQLITE_IOERR), False),
        (sqlite3.OperationalError("without a code"), False),
    ],
)
def test_a_full_disk_is_told_from_a_broken_one(error: DiskError, full: bool) -> None:
    assert is_disk_full(error) == full
