"""A data directory belongs to one shard, serves one process, and holds only whole collections."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.crash_disk import CrashState, FailingDisk, Kind, RecordingDisk
from vectorshard.shard.errors import (
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryTooNew,
)
from vectorshard.shard.storage.data_directory import DataDirectory, ShardIdentity, identity_in
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord

IDENTITY = ShardIdentity(
    cluster="blue", shard=1, shards_total=2, slots=((2048, 4095),), placement_epoch=1
)


def opened(path: Path, wanted: ShardIdentity = IDENTITY, disk: Disk | None = None) -> DataDirectory:
    return DataDirectory.open(disk or Disk(), path, wanted, new_cluster=lambda: "a-new-one")


def names(directory: DataDirectory) -> list[str]:
    return [path.name for path in directory.collection_directories()]


def incarnation_of(name: str) -> str:
    return f"incarnation-of-{name}"


def create(directory: DataDirectory, name: str) -> None:
    with directory.creating_collection(name, incarnation_of(name)) as building:
        (building / "file").write_bytes(name.encode())


def test_the_directory_and_its_parents_are_created(tmp_path: Path) -> None:
    directory = opened(tmp_path / "a" / "b")
    assert directory.identity == IDENTITY
    assert names(directory) == []


class SharedDisk(Disk):
    """Somebody else makes a directory of this name a moment before."""

    def make_directory(self, path: Path) -> None:
        """Make it, a second time if it is that one."""
        if path.name == "shared":
            path.mkdir()
        super().make_directory(path)


def test_shards_that_start_side_by_side_may_make_the_same_parent(tmp_path: Path) -> None:
    assert opened(tmp_path / "shared" / "b", disk=SharedDisk()).identity == IDENTITY


def test_the_identity_is_found_again(tmp_path: Path) -> None:
    opened(tmp_path).close()
    assert opened(tmp_path).identity == IDENTITY


def test_a_new_directory_without_a_cluster_gets_one_and_keeps_it(tmp_path: Path) -> None:
    first = opened(tmp_path, replace(IDENTITY, cluster=""))
    assert first.identity == replace(IDENTITY, cluster="a-new-one")
    first.close()
    again = DataDirectory.open(
        Disk(), tmp_path, replace(IDENTITY, cluster=""), new_cluster=lambda: "another"
    )
    assert again.identity.cluster == "a-new-one"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cluster", "green"),
        ("shard", 0),
        ("shards_total", 3),
        ("slots", ((0, 2047),)),
        ("placement_epoch", 2),
    ],
)
def test_a_directory_of_another_identity_is_refused_with_the_field_that_differs(
    tmp_path: Path, field: str, value: object
) -> None:
    opened(tmp_path).close()
    with pytest.raises(DataDirectoryForeign, match=f"has {field} .*choose another"):
        opened(tmp_path, replace(IDENTITY, **{field: value}))  # type: ignore[arg-type]  # one field
    opened(tmp_path).close()  # the refusal released the lock and changed nothing


def test_a_directory_in_use_is_refused_with_the_process_that_uses_it(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(DataDirectoryLocked, match="is open in this process: close it first"):
        opened(tmp_path)
    (tmp_path / "LOCK").write_text(f"{7:<20}\n")
    with pytest.raises(DataDirectoryLocked, match="in use by process 7: stop it"):
        opened(tmp_path)
    of_a_forked_child = os.dup(first._lock.descriptor)
    first.close()
    opened(tmp_path)
    os.close(of_a_forked_child)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "shard.json"
    file.write_text(json.dumps({"format_version": 3, "whatever": "it holds"}))
    with pytest.raises(DataDirectoryTooNew, match="format version 3"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "invalid JSON"),
        ("{", "invalid JSON"),
        ("[]", "expected an object"),
        ('"x"', "expected an object"),
        ('{"format_version": 1}', "missing field cluster"),
        ('{"format_version": 2}', "missing field directory"),
        ('{"format_version": "1"}', "format_version: expected int, found '1'"),
        ('{"shard": 1}', "format_version: expected int, found None"),
    ],
)
def test_an_unreadable_identity_is_refused(tmp_path: Path, text: str, told: str) -> None:
    opened(tmp_path).close()
    (tmp_path / "shard.json").write_text(text)
    with pytest.raises(DataDirectoryError, match=rf"shard\.json: {told}.*restore the file"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("shard", "0", "shard: expected int, found '0'"),
        ("shard", True, "shard: expected int, found True"),
        ("slots", [[0, 1, 2]], r"slots\[0\]: expected tuple, found \[0, 1, 2\]"),
        ("slots", [[0, 1.5]], r"slots\[0\]\[1\]: expected int, found 1.5"),
        ("rack", 3, "unknown field rack"),
    ],
)
def test_an_identity_with_another_field_or_type_is_refused(
    tmp_path: Path, field: str, value: object, told: str
) -> None:
    opened(tmp_path).close()
    file = tmp_path / "shard.json"
    stored = {**json.loads(file.read_text()), field: value}
    del stored["crc32c"]
    file.write_text(json.dumps(stored))
    with pytest.raises(DataDirectoryError, match=rf"shard\.json: {told}"):
        opened(tmp_path)


def test_each_flipped_bit_of_an_identity_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "shard.json"
    sound = file.read_bytes()
    expected = identity_in(sound, file)
    noticed = 0
    for bit in range(len(sound) * 8):
        flipped = bytearray(sound)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert identity_in(bytes(flipped), file) == expected, chr(sound[bit // 8])
        except (InvalidRecord, DataDirectoryTooNew):
            noticed += 1
    assert noticed > len(sound) * 7


def test_an_identity_without_a_checksum_is_that_of_an_earlier_build(tmp_path: Path) -> None:
    opened(tmp_path).close()
    file = tmp_path / "shard.json"
    stored = json.loads(file.read_text())
    del stored["crc32c"]
    file.write_text(json.dumps(stored))
    opened(tmp_path).close()


def test_collections_without_an_identity_are_refused(tmp_path: Path) -> None:
    opened(tmp_path).close()
    (tmp_path / "shard.json").unlink()
    with pytest.raises(DataDirectoryForeign, match=r"no shard\.json"):
        opened(tmp_path)


def test_a_created_collection_is_there_after_reopening(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    create(directory, "words")
    create(directory, "images")
    directory.close()
    again = opened(tmp_path)
    assert names(again) == ["images", "words"]
    assert (again.collection_directory("words") / "file").read_bytes() == b"words"


def test_a_collection_whose_creation_failed_is_not_there_and_may_be_created_again(
    tmp_path: Path,
) -> None:
    directory = opened(tmp_path)

    def create_half() -> None:
        with directory.creating_collection("words", "1f") as building:
            (building / "file").write_bytes(b"half")
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(OSError, match="full"):
        create_half()
    assert names(directory) == []
    create(directory, "words")
    assert names(directory) == ["words"]


def test_what_a_creation_left_whose_last_sync_failed_is_replaced(tmp_path: Path) -> None:
    disk = FailingDisk()
    directory = opened(tmp_path, disk=disk)
    disk.fail("sync_directory", after=1)
    with pytest.raises(OSError, match="error"):
        create(directory, "words")
    assert names(directory) == ["words"]
    create(directory, "words")
    assert names(directory) == ["words"]


def test_a_drop_whose_sync_failed_may_be_repeated(tmp_path: Path) -> None:
    disk = FailingDisk()
    directory = opened(tmp_path, disk=disk)
    create(directory, "words")
    disk.fail("sync_directory")
    with pytest.raises(OSError, match="error"):
        directory.drop_collection("words", "1f")
    assert names(directory) == ["words"]
    directory.drop_collection("words", "1f")
    assert names(directory) == []
    assert list((tmp_path / "collections").iterdir()) == []


def test_a_dropped_collection_is_gone_with_its_files(tmp_path: Path) -> None:
    directory = opened(tmp_path)
    create(directory, "words")
    directory.drop_collection("words", "1f")
    assert names(directory) == []
    assert list((tmp_path / "collections").iterdir()) == []


def test_a_drop_counts_although_its_files_cannot_be_removed_until_the_next_open(
    tmp_path: Path,
) -> None:
    disk = FailingDisk()
    directory = opened(tmp_path, disk=disk)
    create(directory, "words")
    disk.fail("remove")
    directory.drop_collection("words", "1f")
    assert names(directory) == []
    directory.close()
    again = opened(tmp_path)
    assert list((tmp_path / "collections").iterdir()) == []
    assert names(again) == []


@pytest.mark.parametrize("leftover", [".creating-words", ".dropped-1f"])
def test_leftovers_of_a_crash_are_removed_at_open(tmp_path: Path, leftover: str) -> None:
    opened(tmp_path).close()
    (tmp_path / "collections" / leftover / "deep").mkdir(parents=True)
    (tmp_path / "collections" / leftover / "deep" / "file").write_bytes(b"x")
    opened(tmp_path)
    assert list((tmp_path / "collections").iterdir()) == []


@pytest.mark.parametrize("name", ["creating-words", "dropped-1f", "collections", "lock"])
def test_a_collection_may_have_any_legal_name(tmp_path: Path, name: str) -> None:
    directory = opened(tmp_path)
    create(directory, name)
    directory.close()
    assert names(opened(tmp_path)) == [name]


KINDS: list[Kind] = ["make_directory", "open", "write", "sync", "sync_directory", "rename"]


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_disk_that_failed_at_open_the_next_open_succeeds(
    tmp_path: Path, kind: Kind
) -> None:
    for after in range(3):
        path = tmp_path / str(after)
        disk = FailingDisk()
        disk.fail(kind, after=after)
        with suppress(OSError):
            opened(path, disk=disk).close()
        assert opened(path).identity == IDENTITY


def test_a_whole_file_replaces_the_old_one_in_one_step(tmp_path: Path) -> None:
    disk = FailingDisk()
    path = tmp_path / "file"
    disk.write_new_file(path, b"the first contents")
    disk.fail("write")
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        disk.write_new_file(path, b"a longer second contents")
    assert path.read_bytes() == b"the first contents"
    disk.write_new_file(path, b"short")
    assert path.read_bytes() == b"short"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("syncs", range(7))
def test_what_a_process_finds_after_another_was_killed_is_durable(
    tmp_path: Path, syncs: int
) -> None:
    live = tmp_path / "live"
    live.mkdir()
    disk = RecordingDisk(live)
    disk.fail("sync_directory", after=syncs)  # where it is killed
    with suppress(OSError):
        create(opened(live / "shard-0", disk=disk), "words")
    unlocked = live / "shard-0" / "LOCK"
    unlocked.unlink(missing_ok=True)  # as a process's death does
    found = names(opened(live / "shard-0", disk=disk))
    for seed in range(20):
        rebuilt = tmp_path / str(seed)
        rebuilt.mkdir()
        CrashState(tuple(disk.operations), len(disk.operations), seed).materialise(rebuilt)
        assert (rebuilt / "shard-0" / "shard.json").exists()
        assert names(opened(rebuilt / "shard-0")) == found
