"""What a start finds in a data directory, whatever an operator or a crash did to it."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import asdict, replace
from pathlib import Path
from random import Random

import pytest
from structlog.testing import capture_logs

from tests.crash_disk import FailingDisk, RecordingDisk
from tests.shard.samples import config_of
from vectorshard.shard.errors import DataDirectoryError
from vectorshard.shard.membership import CollectionState
from vectorshard.shard.storage import register
from vectorshard.shard.storage.data_directory import (
    TOMBSTONES_KEPT,
    DataDirectory,
    ShardIdentity,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.register import Register, Registered
from vectorshard.shard.storage.stock import Place, take_stock
from vectorshard.shard.storage.stored_entry import CollectionFiles
from vectorshard.shard.types import CollectionEntry

IDENTITY = ShardIdentity(
    cluster="blue", shard=1, shards_total=2, slots=((2048, 4095),), placement_epoch=1
)
LIVE, LOST, FOREIGN = CollectionState.LIVE, CollectionState.LOST, CollectionState.FOREIGN
MINE = "mine"


def look(path: Path) -> CollectionFiles | None:
    """Read what `create` wrote in the place of a row store."""
    try:
        read = json.loads((path / "store.db").read_text())
    except (OSError, ValueError):
        return None
    return files_of(read["name"], read["incarnation"], read["directory"], has_rows=read["has_rows"])


def opened(path: Path, disk: Disk | None = None, **changes: object) -> DataDirectory:
    identity = replace(IDENTITY, **changes)  # type: ignore[arg-type]  # of a test
    return DataDirectory.open(disk or Disk(), path, identity, new_directory=lambda: MINE)


def store(disk: Disk, directory: Path, files: CollectionFiles) -> None:
    with closing(disk.open(directory / "store.db")) as file:
        fields = {
            "name": files.name,
            "incarnation": files.incarnation,
            "directory": files.directory,
            "has_rows": files.has_rows,
        }
        disk.write(file, 0, json.dumps(fields).encode())
        disk.sync(file)


def files_of(
    name: str, incarnation: str = "", directory: str = MINE, *, has_rows: bool = False
) -> CollectionFiles:
    entry = CollectionEntry(
        config=replace(config_of(), name=name), incarnation=incarnation or f"first-{name}"
    )
    return CollectionFiles(entry=entry, directory=directory, has_rows=has_rows)


def create(directory: DataDirectory, name: str, incarnation: str = "", disk: Disk | None = None):  # type: ignore[no-untyped-def]
    files = files_of(name, incarnation)
    with directory.creating_collection(name, files.incarnation) as building:
        store(disk or Disk(), building, files)


def found(path: Path, disk: Disk | None = None) -> list[tuple[str, str, CollectionState]]:
    """Return what a start finds, and close the directory again."""
    with closing(opened(path, disk)) as directory:
        return [(each.name, each.incarnation, each.state) for each in take_stock(directory, look)]


def place_of(path: Path, name: str) -> Place:
    with closing(opened(path)) as directory:
        (place,) = [each for each in take_stock(directory, look) if each.name == name]
        return place


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A closed directory with the collections `words` and `images`."""
    with closing(opened(tmp_path)) as directory:
        create(directory, "words")
        create(directory, "images")
    return tmp_path


WORDS = ("words", "first-words", LIVE)
IMAGES = ("images", "first-images", LIVE)


def test_what_was_created_is_served(closed: Path) -> None:
    assert found(closed) == [IMAGES, WORDS]


def test_a_collection_whose_directory_is_gone_is_lost(closed: Path) -> None:
    shutil.rmtree(closed / "collections" / "words")
    assert found(closed) == [IMAGES, ("words", "first-words", LOST)]
    assert "its directory is gone" in place_of(closed, "words").reason
    (closed / "collections" / ".repairing-words").mkdir()
    place = place_of(closed, "words")
    assert "a repair was interrupted" in place.reason
    assert "vectorshard repair DIR --write" in place.cure


def test_a_lost_collection_that_is_put_back_is_served(closed: Path, tmp_path: Path) -> None:
    apart = tmp_path / "apart"
    (closed / "collections" / "words").rename(apart)
    assert ("words", "first-words", LOST) in found(closed)
    apart.rename(closed / "collections" / "words")
    assert found(closed) == [IMAGES, WORDS]


def test_a_dropped_collection_is_not_lost(closed: Path) -> None:
    with closing(opened(closed)) as directory:
        directory.drop_collection("words", "first-words")
        assert directory.register.state_of("first-words") is Registered.DROPPED
    assert found(closed) == [IMAGES]


def test_files_of_another_data_directory_are_set_aside_and_left_alone(closed: Path) -> None:
    foreign = files_of("words", directory="another", has_rows=True)
    store(Disk(), closed / "collections" / "words", foreign)
    assert found(closed) == [IMAGES, ("words", "first-words", FOREIGN)]
    assert look(closed / "collections" / "words") == foreign


@pytest.mark.parametrize(
    "files",
    [
        files_of("words", "second-words", has_rows=True),
        files_of("images"),
    ],
)
def test_other_files_in_the_place_of_a_collection_are_set_aside(
    closed: Path, files: CollectionFiles
) -> None:
    (closed / "collections" / "words" / "store.db").unlink()
    store(Disk(), closed / "collections" / "words", files)
    assert found(closed) == [IMAGES, ("words", "first-words", FOREIGN)]


def test_a_copy_of_a_dropped_collection_is_set_aside(closed: Path) -> None:
    with closing(opened(closed)) as directory:
        directory.drop_collection("words", "first-words")
        directory.register.forget(["first-words"])
    (closed / "collections" / "words").mkdir()
    store(Disk(), closed / "collections" / "words", files_of("words", has_rows=True))
    assert found(closed) == [IMAGES, ("words", "first-words", FOREIGN)]


def test_a_collection_of_an_earlier_release_that_is_put_back_is_served(closed: Path) -> None:
    (closed / "collections" / "old").mkdir()
    store(Disk(), closed / "collections" / "old", files_of("old", directory="", has_rows=True))
    assert found(closed) == [IMAGES, ("old", "first-old", LIVE), WORDS]


def test_strays_never_break_a_start_and_stay(closed: Path) -> None:
    collections = closed / "collections"
    for stray in ("lost+found", "words.bak", "Words", "empty", "words.damaged", ".snapshot"):
        (collections / stray).mkdir()
    shutil.copy(collections / "words" / "store.db", collections / "words.bak")
    (collections / "copy").mkdir()
    shutil.copy(collections / "words" / "store.db", collections / "copy")
    (collections / "notes.txt").write_text("of the operator")
    (collections / "nowhere").symlink_to(closed / "absent")
    before = sorted(entry.name for entry in collections.iterdir())
    with capture_logs() as logs:
        assert found(closed) == [IMAGES, WORDS]
    assert sorted(entry.name for entry in collections.iterdir()) == before
    named = {Path(log["path"]).name for log in logs if "ignored" in log["event"]}
    assert named == set(before) - {"words", "images", "words.damaged"}


def test_a_stray_directory_is_not_replaced_by_a_create(closed: Path) -> None:
    (closed / "collections" / "empty").mkdir()
    with closing(opened(closed)) as directory:
        take_stock(directory, look)
        with pytest.raises(DataDirectoryError, match="is in the way"):
            create(directory, "empty")
        assert directory.register.live == {"first-words", "first-images"}


def test_unreadable_files_are_opened_to_say_why_under_their_incarnation(closed: Path) -> None:
    (closed / "collections" / "words" / "store.db").write_bytes(b"damaged")
    assert found(closed) == [IMAGES, WORDS]


def test_what_could_not_be_read_when_the_register_was_made_is_served_once_it_can_be(
    closed: Path,
) -> None:
    """Two faults at one start; without a note of it, the collection would be foreign later."""
    store_file = closed / "collections" / "words" / "store.db"
    store_file.unlink()
    store(Disk(), store_file.parent, files_of("words", has_rows=True))
    contents = store_file.read_bytes()
    (closed / "register.json").write_text("{}")
    store_file.write_text("unreadable")
    assert found(closed) == [IMAGES, ("words", "", LIVE)]  # opening it says what is wrong
    store_file.write_bytes(contents)
    for _ in range(2):
        assert found(closed) == [IMAGES, WORDS]
    with closing(opened(closed)) as directory:
        directory.drop_collection("words", "first-words")
        directory.register.forget(["first-words"])
    store_file.parent.mkdir()
    store_file.write_bytes(contents)
    assert found(closed) == [IMAGES, ("words", "first-words", FOREIGN)]


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: file.write_text('{"crc32c":1}')])
def test_a_register_that_is_gone_or_damaged_is_made_from_what_is_there(
    closed: Path, harm: Callable[[Path], object]
) -> None:
    harm(closed / "register.json")
    shutil.rmtree(closed / "collections" / "images")
    with capture_logs() as logs:
        assert found(closed) == [WORDS]
    assert [log for log in logs if log["log_level"] == "error" and "register" in log["event"]]
    content = Register.read(closed)
    assert content is not None
    assert {each.incarnation for each in content.collections} == {"first-words"}


def test_drops_that_are_finished_are_remembered_up_to_a_number(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(register, "FORGOTTEN_KEPT", 2)
    opened = Register(Disk(), closed)
    for each in "abc":
        opened.put(each, "words", Registered.DROPPED)
        opened.forget([each])
    opened = Register(Disk(), closed, Register.read(closed))
    assert [opened.is_forgotten(each) for each in "abc"] == [False, True, True]
    opened.recall({"a": "words", "c": "words"})
    opened = Register(Disk(), closed, Register.read(closed))
    assert [each.incarnation for each in opened.entries] == ["c"]
    assert [opened.was_dropped(each) for each in "abc"] == [False, True, True]


def test_a_cluster_of_one_shard_keeps_few_tombstones(tmp_path: Path) -> None:
    with closing(opened(tmp_path, shard=0, shards_total=1)) as directory:
        for number in range(TOMBSTONES_KEPT + 3):
            create(directory, "words", f"incarnation-{number}")
            directory.drop_collection("words", f"incarnation-{number}")
        assert len(directory.register.entries) == TOMBSTONES_KEPT
        assert directory.register.state_of("incarnation-2") is None
        assert directory.register.state_of("incarnation-3") is Registered.DROPPED


# ---- links --------------------------------------------------------------------------------------


def on_another_disk(path: Path, tmp_path: Path) -> Path:
    """Move a directory to another place, and leave a link to it."""
    target = tmp_path / "larger disk" / path.name
    target.parent.mkdir()
    path.rename(target)
    path.symlink_to(target)
    return target


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory that holds a closed data directory `data` with the collection `words`."""
    with closing(opened(tmp_path / "data")) as directory:
        create(directory, "words")
    return tmp_path


def test_a_link_to_a_collection_is_served_dropped_and_created_again(home: Path) -> None:
    target = on_another_disk(home / "data" / "collections" / "words", home)
    assert found(home / "data") == [WORDS]
    with closing(opened(home / "data")) as directory:
        take_stock(directory, look)
        directory.drop_collection("words", "first-words")
    assert not target.exists()
    assert found(home / "data") == []
    with closing(opened(home / "data")) as directory:
        create(directory, "words", "second-words")
    assert found(home / "data") == [("words", "second-words", LIVE)]


class MountedDisk(Disk):
    """A disk on which a directory is a mount point: the system does not remove it."""

    def remove_directory(self, path: Path) -> None:
        if path.parent.name == "larger disk":
            raise OSError(errno.EBUSY, "mount point")
        super().remove_directory(path)


def test_a_drop_empties_a_mount_point_that_a_link_points_to(home: Path) -> None:
    target = on_another_disk(home / "data" / "collections" / "words", home)
    with closing(opened(home / "data", MountedDisk())) as directory:
        directory.drop_collection("words", "first-words")
    assert list(target.iterdir()) == []
    assert list((home / "data" / "collections").iterdir()) == []
    assert found(home / "data") == []


def test_a_link_to_nowhere_is_a_lost_collection_which_may_be_dropped(home: Path) -> None:
    target = on_another_disk(home / "data" / "collections" / "words", home)
    target.rename(home / "unmounted")
    assert found(home / "data") == [("words", "first-words", LOST)]
    assert f"a link to {target}" in place_of(home / "data", "words").reason
    with closing(opened(home / "data")) as directory:
        directory.drop_collection("words", "first-words")
    assert found(home / "data") == []
    assert list((home / "data" / "collections").iterdir()) == []


@pytest.mark.parametrize("linked", ["data", "data/collections"])
def test_the_data_directory_and_its_collections_may_be_links(home: Path, linked: str) -> None:
    target = on_another_disk(home / linked, home)
    assert found(home / "data") == [WORDS]
    with closing(opened(home / "data")) as directory:
        create(directory, "images")
        directory.drop_collection("words", "first-words")
    assert found(home / "data") == [IMAGES]
    target.rename(home / "unmounted")
    with pytest.raises(DataDirectoryError, match=r"is a link to .* mount that disk"):
        opened(home / "data")


# ---- what was set apart -------------------------------------------------------------------------


def test_two_sets_of_damaged_files_are_kept_and_a_third_is_refused(home: Path) -> None:
    with closing(opened(home / "data")) as directory:
        kept = []
        for _ in range(2):
            kept.append(directory.set_damaged_apart("words"))
            create(directory, "words")
        assert [path and path.name for path in kept] == ["words.damaged", "words.damaged-2"]
        assert directory.kept_directories() == kept
        with pytest.raises(DataDirectoryError, match=r"words\.damaged and words\.damaged-2"):
            directory.set_damaged_apart("words")
        assert directory.set_damaged_apart("absent") is None
    assert found(home / "data") == [WORDS]


# ---- crashes ------------------------------------------------------------------------------------


class Steps:
    """Creates and drops of collections, and what each step that has returned makes certain."""

    def __init__(self, disk: RecordingDisk, directory: DataDirectory) -> None:
        self._disk = disk
        self._directory = directory

    def create(self, name: str, incarnation: str) -> None:
        create(self._directory, name, incarnation, self._disk)
        self._disk.mark(("created", name, incarnation))

    def drop(self, name: str, incarnation: str) -> None:
        self._disk.mark(("dropping", name, incarnation))
        self._directory.drop_collection(name, incarnation)
        self._disk.mark(("dropped", name, incarnation))


def judged(marks: list[object], places: list[tuple[str, str, CollectionState]]) -> None:
    """Check what a start after a crash finds against the steps before it."""
    created: set[object] = set()
    dropped: set[object] = set()
    uncertain: set[object] = set()
    for mark in marks:
        assert isinstance(mark, tuple)
        what, *which = mark
        {"created": created, "dropping": uncertain, "dropped": dropped}[what].add(tuple(which))
    there = {(name, incarnation) for name, incarnation, _ in places}
    assert {state for _, _, state in places} <= {LIVE}
    assert len({name for name, _ in there}) == len(there)
    assert not there & dropped
    assert there >= created - dropped - uncertain


def test_a_crash_at_any_step_leaves_what_was_acknowledged_and_nothing_lost(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    disk = RecordingDisk(live)
    with closing(opened(live / "data", disk)) as directory:
        take_stock(directory, look)
        steps = Steps(disk, directory)
        steps.create("words", "1")
        steps.create("images", "2")
        steps.drop("words", "1")
        steps.create("words", "3")
    with closing(opened(live / "data", disk)) as directory:
        take_stock(directory, look)
        Steps(disk, directory).drop("images", "2")
    seen = set()
    for number, state in enumerate(disk.crash_states(Random(7), 60)):
        rebuilt = tmp_path / str(number)
        rebuilt.mkdir()
        state.materialise(rebuilt)
        places = found(rebuilt / "data")
        judged(state.marks, places)
        assert found(rebuilt / "data") == places
        seen.add(tuple(places))
        shutil.rmtree(rebuilt)
    assert len(seen) > 3


def test_a_drop_that_a_crash_interrupts_is_finished_by_the_next_start(closed: Path) -> None:
    disk = FailingDisk()
    with closing(opened(closed, disk)) as directory:
        disk.fail("rename", after=1)  # the first one is that of the register
        directory.drop_collection("words", "first-words")
        assert (closed / "collections" / "words").exists()
    assert found(closed) == [IMAGES]
    assert [entry.name for entry in (closed / "collections").iterdir()] == ["images"]


def test_a_drop_that_the_disk_failed_has_not_happened(closed: Path) -> None:
    disk = FailingDisk()
    with closing(opened(closed, disk)) as directory:
        disk.fail("sync_directory")
        with pytest.raises(OSError, match="error"):
            directory.drop_collection("words", "first-words")
    assert found(closed) == [IMAGES, WORDS]


def test_a_create_that_is_repeated_and_fails_again_is_not_taken_for_a_loss(tmp_path: Path) -> None:
    disk = FailingDisk()
    with closing(opened(tmp_path, disk)) as directory:
        disk.fail("sync_directory", after=2)  # of the register, which has it as live by then
        with pytest.raises(OSError, match="error"):
            create(directory, "words", "1", disk)
        content = Register.read(tmp_path)
        assert content is not None
        assert {each.name for each in content.collections} == {"words"}
        disk.fail("make_directory")  # after the removal of what the first attempt has left
        with pytest.raises(OSError, match="error"):
            create(directory, "words", "2", disk)
    assert found(tmp_path) == []


def earlier_release(disk: Disk, path: Path) -> None:
    """Write a directory of format version 1 with two collections."""
    disk.make_directory(path)
    identity = {"format_version": 1, **asdict(IDENTITY)}
    disk.make_directory(path / "collections")
    for name in ("words", "images"):
        disk.make_directory(path / "collections" / name)
        store(disk, path / "collections" / name, files_of(name, directory="", has_rows=True))
        disk.sync_directory(path / "collections" / name)
    disk.sync_directory(path / "collections")
    disk.write_new_file(path / "shard.json", json.dumps(identity, indent=2).encode())
    disk.sync_directory(path.parent)


def test_a_directory_of_an_earlier_release_gets_an_id_and_a_register(tmp_path: Path) -> None:
    earlier_release(Disk(), tmp_path / "data")
    assert found(tmp_path / "data") == [IMAGES, WORDS]
    stored = json.loads((tmp_path / "data" / "shard.json").read_text())
    assert (stored["format_version"], stored["directory"], stored["life"]) == (2, MINE, 1)
    shutil.rmtree(tmp_path / "data" / "collections" / "words")
    assert found(tmp_path / "data") == [IMAGES, ("words", "first-words", LOST)]


def test_a_crash_in_the_upgrade_is_repaired_by_the_next_start(tmp_path: Path) -> None:
    live = tmp_path / "live"
    live.mkdir()
    disk = RecordingDisk(live)
    earlier_release(disk, live / "data")
    disk.mark("written")
    assert found(live / "data", disk) == [IMAGES, WORDS]
    for number, state in enumerate(disk.crash_states(Random(3), 60)):
        if "written" not in state.marks:
            continue
        rebuilt = tmp_path / str(number)
        rebuilt.mkdir()
        state.materialise(rebuilt)
        with capture_logs() as logs:
            assert found(rebuilt / "data") == [IMAGES, WORDS]
        assert not [log for log in logs if log["log_level"] == "error"]
        shutil.rmtree(rebuilt)


STEPS = ("write", "sync", "rename", "sync_directory", "make_directory")


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("after", range(4))
def test_a_create_or_drop_that_a_disk_failed_may_be_repeated_and_nothing_is_lost(
    tmp_path: Path, kind: str, after: int
) -> None:
    disk = FailingDisk()
    with closing(opened(tmp_path, disk)) as directory:
        create(directory, "words", "1", disk)
        disk.fail(kind, after=after)  # type: ignore[arg-type]  # one of its kinds
        with suppress(OSError):
            create(directory, "images", "2", disk)
            directory.drop_collection("words", "1")
            create(directory, "words", "3", disk)
    before = found(tmp_path)
    assert {state for _, _, state in before} <= {LIVE}
    with closing(opened(tmp_path)) as directory:
        names = {each.name: each.incarnation for each in take_stock(directory, look)}
        for name in ("words", "images"):
            if name in names:
                directory.drop_collection(name, names[name])
            create(directory, name, f"again-{name}")
    assert found(tmp_path) == [("images", "again-images", LIVE), ("words", "again-words", LIVE)]


@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("after", range(4))
def test_a_create_that_a_disk_failed_is_repeated_by_the_same_process(
    tmp_path: Path, kind: str, after: int
) -> None:
    disk = FailingDisk()
    with closing(opened(tmp_path, disk)) as directory:
        disk.fail(kind, after=after)  # type: ignore[arg-type]  # one of its kinds
        with suppress(OSError):
            create(directory, "words", "1", disk)
        if not directory.register.live:
            create(directory, "words", "2", disk)
    ((name, _, state),) = found(tmp_path)
    assert (name, state) == ("words", LIVE)
