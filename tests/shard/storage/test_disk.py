"""The real disk: whole files, and which failures pass when there is room again."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from vectorshard.shard.storage.disk import Disk, DiskError, is_disk_full, type_of_mount


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
        (sqlite_error(sqlite3.SQLITE_IOERR_SHMSIZE), True),
        (sqlite_error(sqlite3.SQLITE_IOERR), False),
        (sqlite3.OperationalError("without a code"), False),
    ],
)
def test_a_full_disk_is_told_from_a_broken_one(error: DiskError, full: bool) -> None:
    assert is_disk_full(error) == full


MOUNTS = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:38 / /mnt/with\\040space rw,relatime shared:2 - nfs4 10.0.0.1:/export rw
41 22 0:39 / /data rw,relatime - xfs /dev/vdb rw
42 41 0:40 / /data rw,relatime - fuse.sshfs other: rw
"""


@pytest.mark.parametrize(
    ("path", "type_"),
    [
        ("/home", "ext4"),
        ("/mnt", "ext4"),
        ("/mnt/with space/shard-0", "nfs4"),
        ("/mnt/with space else", "ext4"),
        ("/data", "fuse.sshfs"),
        ("/data/0", "fuse.sshfs"),
        ("/database", "ext4"),
    ],
)
def test_the_nearest_mount_says_the_type_of_a_file_system(path: str, type_: str) -> None:
    assert type_of_mount(MOUNTS, Path(path)) == type_


def test_the_real_disk_has_free_space_and_a_type(tmp_path: Path) -> None:
    free, size = Disk().free_bytes(tmp_path)
    assert 0 <= free <= size
    assert Disk().file_system(tmp_path)
