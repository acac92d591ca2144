"""The ballast gives a full disk the room that making room needs."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash_disk import FailingDisk
from tests.shard.samples import identity_of
from vectorshard.shard.storage.ballast import BALLAST_BYTES, BALLAST_FILE, Ballast
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Bytes, Disk
from vectorshard.shard.storage.session import SESSION_FILE


class FullDisk(Disk):
    """A disk that is full until a file is removed."""

    is_full = True

    def remove(self, path: Path) -> None:
        super().remove(path)
        self.is_full = False

    def write_new_file(self, path: Path, contents: Bytes) -> None:
        self.store()
        super().write_new_file(path, contents)

    def store(self) -> str:
        """Fail while the disk is full."""
        if self.is_full:
            raise OSError(errno.ENOSPC, "no space")
        return "stored"


def test_a_write_that_finds_no_room_takes_that_of_the_ballast(tmp_path: Path) -> None:
    disk = FullDisk()
    ballast = Ballast(disk, tmp_path)
    ballast.fill()
    assert (tmp_path / BALLAST_FILE).stat().st_size == BALLAST_BYTES
    assert ballast.spend(disk.store) == "stored"
    assert not (tmp_path / BALLAST_FILE).exists()
    ballast.fill()
    assert (tmp_path / BALLAST_FILE).stat().st_size == BALLAST_BYTES


def test_without_a_ballast_or_with_another_failure_the_write_fails(tmp_path: Path) -> None:
    disk = FullDisk()
    ballast = Ballast(disk, tmp_path)
    with pytest.raises(OSError, match="no space"):
        ballast.spend(disk.store)
    ballast.fill()

    def fail() -> None:
        raise OSError(errno.EIO, "input/output")

    with pytest.raises(OSError, match="input/output"):
        ballast.spend(fail)
    assert (tmp_path / BALLAST_FILE).exists()


@pytest.mark.parametrize("kind", ["open", "write", "sync"])
def test_no_room_for_the_ballast_leaves_nothing_of_it(tmp_path: Path, kind: str) -> None:
    disk = FailingDisk()
    disk.fail(kind, code=errno.ENOSPC)  # type: ignore[arg-type]
    Ballast(disk, tmp_path).fill()
    assert not (tmp_path / BALLAST_FILE).exists()


def test_a_start_without_its_session_file_takes_the_room_of_the_ballast(tmp_path: Path) -> None:
    identity = identity_of()
    DataDirectory.open(Disk(), tmp_path, identity).close()
    (tmp_path / SESSION_FILE).unlink()
    with closing(DataDirectory.open(FullDisk(), tmp_path, identity)) as directory:
        assert directory.opens == 1
