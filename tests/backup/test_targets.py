"""A target that is a directory: whole objects or none, paced, create-if-absent."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vectorshard.backup.failures import ObjectExists, ObjectNotFound, TargetError
from vectorshard.backup.targets import PIECE_BYTES, UNFINISHED, DirectoryTarget, open_target
from vectorshard.shard.storage.disk import Bytes, Disk, DiskFile


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    """Return an empty target."""
    return DirectoryTarget(tmp_path / "target", create=True, paced=False)


def test_an_object_is_read_as_it_was_stored(target: DirectoryTarget) -> None:
    target.put("blocks/one/0-1.block", b"rows of one")
    assert target.get("blocks/one/0-1.block") == b"rows of one"
    assert target.get_range("blocks/one/0-1.block", 5, 2) == b"of"


def test_objects_are_listed_below_a_folder_by_name(target: DirectoryTarget) -> None:
    for name in ("b/2", "a/1", "b/1/deep"):
        target.put(name, b"x" * len(name))
    assert [(each.name, each.size_bytes) for each in target.list("b/")] == [
        ("b/1/deep", 8),
        ("b/2", 3),
    ]
    assert list(target.list("absent/")) == []


def test_a_folder_that_may_not_be_read_is_no_empty_folder(
    target: DirectoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    target.put("b/1/deep", b"x")
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if str(path).endswith("b/1"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(TargetError, match="b/1: Permission denied"):
        list(target.list("b/"))


def test_an_absent_object_is_not_found(target: DirectoryTarget) -> None:
    target.put("a/1", b"")
    for name in ("a/2", "b/1", "a/1/deeper"):
        with pytest.raises(ObjectNotFound):
            target.get(name)
        with pytest.raises(ObjectNotFound):
            target.get_range(name, 0, 1)
        target.delete(name)


def test_only_one_of_two_creates_an_object(target: DirectoryTarget) -> None:
    target.put("backups/one.json", b"first", if_absent=True)
    with pytest.raises(ObjectExists):
        target.put("backups/one.json", b"second", if_absent=True)
    assert target.get("backups/one.json") == b"first"
    assert [each.name for each in target.list("")] == ["backups/one.json"]


def test_only_one_of_two_creates_an_object_without_links(
    target: DirectoryTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_link)
    test_only_one_of_two_creates_an_object(target)


def test_a_deleted_object_leaves_no_empty_folders(target: DirectoryTarget, tmp_path: Path) -> None:
    target.put("blocks/one/shard/0.block", b"x")
    target.put("blocks/two/shard/0.block", b"x")
    target.delete("blocks/one/shard/0.block")
    assert [path.name for path in (tmp_path / "target" / "blocks").iterdir()] == ["two"]


class RecordingDisk(Disk):
    """Records what is written and synced, and may fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.writes_left = 1_000

    def write(self, file: DiskFile, offset: int, contents: Bytes) -> None:
        """Write, or fail as a full disk does."""
        self.writes_left -= 1
        if self.writes_left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.calls.append(("write", len(memoryview(contents))))
        super().write(file, offset, contents)

    def sync(self, file: DiskFile) -> None:
        """Sync."""
        self.calls.append(("sync", 0))
        super().sync(file)


def test_a_file_is_synced_piece_by_piece_with_rests_as_long_as_the_piece_took(
    tmp_path: Path,
) -> None:
    disk, now, rests = RecordingDisk(), iter([0.0, 0.25, 1.0, 1.5, 2.0, 2.125]), list[float]()
    target = DirectoryTarget(
        tmp_path, disk=disk, sleep=rests.append, clock=lambda: next(now), create=True
    )
    target.put("a", bytes(2 * PIECE_BYTES + 1))
    assert disk.calls == [
        ("write", PIECE_BYTES),
        ("sync", 0),
        ("write", PIECE_BYTES),
        ("sync", 0),
        ("write", 1),
        ("sync", 0),
    ]
    assert rests == [0.25, 0.5, 0.125]


def test_a_write_that_fails_leaves_no_object_and_says_which(tmp_path: Path) -> None:
    disk = RecordingDisk()
    target = DirectoryTarget(tmp_path / "target", disk=disk, paced=False, create=True)
    target.put("a", b"earlier")
    disk.writes_left = 1
    with pytest.raises(TargetError, match="target/a: No space left on device"):
        target.put("a", bytes(2 * PIECE_BYTES))
    assert target.get("a") == b"earlier"
    assert [each.name for each in target.list("")] == ["a"]


def test_what_a_crash_left_is_listed_as_unfinished_and_is_overwritten(
    target: DirectoryTarget, tmp_path: Path
) -> None:
    target.put("blocks/a", b"")
    (tmp_path / "target/blocks" / ("b" + UNFINISHED)).write_bytes(b"longer than the object")
    assert [each.name for each in target.list("blocks/")] == ["blocks/a", "blocks/b.new"]
    target.put("blocks/b", b"short")
    assert target.get("blocks/b") == b"short"
    assert [each.name for each in target.list("blocks/")] == ["blocks/a", "blocks/b"]


def test_no_data_directory_becomes_a_target(tmp_path: Path) -> None:
    (tmp_path / "data" / "shard-0").mkdir(parents=True)
    (tmp_path / "data" / "shard-0" / "shard.json").write_bytes(b"{}")
    (tmp_path / "link").symlink_to(tmp_path / "data" / "shard-0")
    for where in ("data", "data/shard-0", "data/shard-0/new/deep", "link/new"):
        with pytest.raises(TargetError, match="data/shard-0 is the data directory of a shard"):
            open_target(str(tmp_path / where), create=True)
    open_target(str(tmp_path / "data-backups"), create=True)
    assert [each.name for each in (tmp_path / "data" / "shard-0").iterdir()] == ["shard.json"]


def test_a_target_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="there is no such directory"):
        open_target(str(tmp_path / "absent"))
    with pytest.raises(TargetError, match="a directory, or s3://"):
        open_target("gs://bucket/prefix")
    for where in ("s3:/bucket/prefix", "s3:bucket", "gs://bucket"):
        with pytest.raises(TargetError, match=f"write ./{where} for a directory"):
            open_target(where, create=True)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(TargetError, match="file: it is not a directory"):
        open_target(str(tmp_path / "file"))
    for where in ("file", "file/deeper", "x" * 300):
        with pytest.raises(TargetError, match=where):
            open_target(str(tmp_path / where), create=True)
    open_target(str(tmp_path / "new" / "deep"), create=True)
    assert (tmp_path / "new" / "deep").is_dir()
