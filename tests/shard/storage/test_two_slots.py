"""The newest of two records outlives a torn write, a flipped bit and a short file."""

from __future__ import annotations

import errno
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash_disk import FailingDisk
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.two_slots import SLOT_BYTES, Slot, TwoSlots, write_durably


@pytest.fixture
def path(tmp_path: Path) -> Path:
    TwoSlots.create(Disk(), tmp_path / "slots", Slot(1, 7))
    return tmp_path / "slots"


def write(path: Path, *slots: Slot) -> None:
    with closing(TwoSlots.open(Disk(), path)) as file:
        for slot in slots:
            file.write(slot)


def test_the_newest_record_is_read_and_the_file_keeps_its_size(path: Path) -> None:
    assert TwoSlots.read(path) == Slot(1, 7)
    size = path.stat().st_size
    for counter in range(2, 9):
        write(path, Slot(counter, 2**63), Slot(counter + 10, 2**64 - 1))
        assert TwoSlots.read(path) == Slot(counter + 10, 2**64 - 1)
        TwoSlots.create(Disk(), path, Slot(counter, 1))
    assert path.stat().st_size == size == 2 * SLOT_BYTES


def test_a_write_goes_over_the_older_record_after_a_restart_too(path: Path) -> None:
    for counter in range(2, 6):
        write(path, Slot(counter))
        contents = bytearray(path.read_bytes())
        for place in (0, SLOT_BYTES):
            harmed = contents.copy()
            harmed[place + 9] ^= 4
            (path.parent / "harmed").write_bytes(harmed)
            newest = TwoSlots.read(path.parent / "harmed")
            assert newest is not None
            assert newest.counter in {counter - 1, counter}


def test_every_flipped_bit_of_the_newest_record_is_noticed(path: Path) -> None:
    write(path, Slot(2, 5))
    contents = path.read_bytes()
    (place,) = (place for place in (0, SLOT_BYTES) if contents[place + 8] == 2)
    for bit in range(28 * 8):
        harmed = bytearray(contents)
        harmed[place + bit // 8] ^= 1 << bit % 8
        path.write_bytes(harmed)
        assert TwoSlots.read(path) == Slot(1, 7)


@pytest.mark.parametrize("contents", [b"", bytes(2 * SLOT_BYTES), b"\xff" * 100])
def test_without_a_whole_record_there_is_none_and_a_write_repairs_it(
    tmp_path: Path, contents: bytes
) -> None:
    path = tmp_path / "slots"
    assert TwoSlots.read(path) is None
    path.write_bytes(contents)
    assert TwoSlots.read(path) is None
    write_durably(Disk(), path, Slot(3, 4))
    assert TwoSlots.read(path) == Slot(3, 4)


def test_a_record_that_is_not_newer_is_refused(path: Path) -> None:
    with closing(TwoSlots.open(Disk(), path)) as file, pytest.raises(ValueError, match="follow 1"):
        file.write(Slot(1, 8))


def test_a_failed_write_leaves_the_newest_record_and_may_be_repeated(path: Path) -> None:
    disk = FailingDisk()
    with closing(TwoSlots.open(disk, path)) as file:
        file.write(Slot(2))
        disk.fail("write")
        with pytest.raises(OSError, match="Input/output"):
            file.write(Slot(3))
        assert TwoSlots.read(path) == Slot(2)
        file.write(Slot(3))
        disk.fail("sync", code=errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            file.sync()
    assert TwoSlots.read(path) == Slot(3)


def test_opening_a_file_that_is_absent_creates_none(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TwoSlots.open(Disk(), tmp_path / "slots")
    assert list(tmp_path.iterdir()) == []
