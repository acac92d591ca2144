"""The files of a row store: closed while nothing uses it, and opened on a full disk."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.crash_disk import FailingDisk
from tests.shard.samples import open_files
from tests.shard.storage.row_store_samples import ENTRY, commit_of
from tests.tiny_disk import fill, needs_mount, tiny_disk
from vectorshard.shard.errors import RowStoreCorrupt, WritesStopped
from vectorshard.shard.storage import store_files
from vectorshard.shard.storage.disk import Disk, is_disk_full
from vectorshard.shard.storage.open_stores import OpenStores
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.store_files import HeldFiles


class FrugalDisk(FailingDisk):
    """A disk on which few stores are open at a time."""

    def __init__(self, most: int = 1) -> None:
        super().__init__()
        self.open_stores = OpenStores(most)


def store_in(directory: Path, disk: Disk, rows: int = 3) -> RowStore:
    """Return a new store with some rows, each with metadata, written in one commit."""
    directory.mkdir()
    store = RowStore.create(disk, directory, ENTRY)
    add(store, 0, rows)
    return store


def add(store: RowStore, first_row: int, rows: int) -> int:
    """Commit rows with metadata; return the sequence number."""
    metadata = {row: b"row %d" % row for row in range(first_row, first_row + rows)}
    return store.commit(commit_of(first_row, rows, metadata=metadata))


def check(store: RowStore, rows: int) -> None:
    """Assert that a store has these rows."""
    assert store.metadata(np.arange(rows)) == [b"row %d" % row for row in range(rows)]
    assert store.load().rows == rows


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[FrugalDisk, RowStore, RowStore]]:
    """A disk on which one store may be open, and two stores, of which the second is."""
    disk = FrugalDisk()
    first, second = (store_in(tmp_path / name, disk) for name in ("a", "b"))
    yield disk, first, second
    first.close()
    second.close()
    assert open_files(tmp_path) == []


def test_a_store_that_is_not_used_has_no_file_open_and_is_opened_by_the_next_use(
    two: tuple[FrugalDisk, RowStore, RowStore], tmp_path: Path
) -> None:
    _, first, second = two
    assert {name.partition("/")[0] for name in open_files(tmp_path)} == {"b"}
    assert not (tmp_path / "a" / "store.db-wal").exists()
    check(first, 3)
    assert {name.partition("/")[0] for name in open_files(tmp_path)} == {"a"}
    assert add(second, 3, 2) == 2
    assert add(first, 3, 4) == 2
    check(second, 5)
    check(first, 7)


def test_many_stores_are_whole_however_they_are_opened_and_closed(tmp_path: Path) -> None:
    chance, disk = Random(11), FrugalDisk(most=2)
    stores = [store_in(tmp_path / str(number), disk, 1) for number in range(6)]
    rows = [1] * len(stores)
    for _ in range(60):
        number = chance.randrange(len(stores))
        if chance.random() < 0.5:
            added = chance.randrange(1, 4)
            add(stores[number], rows[number], added)
            rows[number] += added
        check(stores[number], rows[number])
        assert len({name.partition("/")[0] for name in open_files(tmp_path)}) <= 2
    for number, store in enumerate(stores):
        store.close()
        looked_at = RowStore.open(Disk(), tmp_path / str(number))
        check(looked_at, rows[number])
        looked_at.close()


def test_a_read_in_progress_keeps_its_store_open(
    two: tuple[FrugalDisk, RowStore, RowStore], tmp_path: Path
) -> None:
    _, first, second = two
    with first._database.reader() as reader:
        check(second, 3)
        assert {name.partition("/")[0] for name in open_files(tmp_path)} == {"a", "b"}
        assert reader.execute("SELECT count(*) FROM commits").fetchone() == (1,)
    check(second, 3)
    assert {name.partition("/")[0] for name in open_files(tmp_path)} == {"b"}


@pytest.mark.parametrize("code", [errno.EIO, errno.EMFILE])
def test_a_store_whose_log_cannot_be_moved_stays_open_and_loses_nothing(
    two: tuple[FrugalDisk, RowStore, RowStore], tmp_path: Path, code: int
) -> None:
    disk, first, second = two
    check(first, 3)
    disk.fail("checkpoint", code=code)
    second.metadata(np.arange(3))  # closes the files of the first, if it can
    assert {name.partition("/")[0] for name in open_files(tmp_path)} == {"a", "b"}
    add(first, 3, 1)
    check(first, 4)


def test_a_start_sees_its_store_as_it_was_when_it_began_to_look(tmp_path: Path) -> None:
    store_in(tmp_path / "a", Disk()).close()
    looked_at = RowStore.open(Disk(), tmp_path / "a")
    with closing(sqlite3.connect(tmp_path / "a" / "store.db", isolation_level=None)) as another:
        another.execute("UPDATE ledger SET accepted = accepted + 1")
    assert looked_at.load().rows == 3
    looked_at.close()


@pytest.mark.parametrize("harm", ["older copy", "missing"])
def test_files_that_were_replaced_meanwhile_are_noticed_and_left_as_they_are(
    two: tuple[FrugalDisk, RowStore, RowStore], tmp_path: Path, harm: str
) -> None:
    _, first, second = two
    path = tmp_path / "a" / "store.db"
    older = path.read_bytes()
    add(first, 3, 1)
    check(second, 3)
    assert open_files(tmp_path / "a") == []
    if harm == "missing":
        path.unlink()
    else:
        path.write_bytes(older)
    before = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    for use in (lambda: first.metadata(np.arange(2)), lambda: add(first, 4, 1)):
        with pytest.raises(RowStoreCorrupt):
            use()
    left = {file.name: file.read_bytes() for file in (tmp_path / "a").iterdir()}
    assert {name: left[name] for name in before} == before


# ---- files that are harmed while they are open --------------------------------------------------


def replace_by_copy(file: Path) -> None:
    copy = file.with_name("copy")
    copy.write_bytes(file.read_bytes())
    copy.rename(file)


@pytest.mark.parametrize("name", ["store.db", "store.db-wal", "log-end"])
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "removed"),
        (replace_by_copy, "replaced"),
        (lambda file: os.truncate(file, 0), "shortened"),
    ],
)
def test_nothing_is_committed_into_files_that_are_no_longer_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    harm: Callable[[Path], None],
    said: str,
) -> None:
    monkeypatch.setattr(store_files, "LOOK_EVERY_S", 0)
    store_in(tmp_path / "a", Disk()).close()
    store = RowStore.open(Disk(), tmp_path / "a")
    store.load()
    store.start_writing()
    add(store, 3, 1)
    harm(tmp_path / "a" / name)
    for _ in range(2):
        with pytest.raises(WritesStopped, match=f"{name} was {said} while the server ran"):
            add(store, 4, 1)
    with suppress(sqlite3.Error):  # what was cut off is gone
        store.close()


def test_a_store_looks_at_its_files_once_a_second(tmp_path: Path) -> None:
    store_in(tmp_path / "a", Disk()).close()
    now_s = 100.0
    held = HeldFiles(tmp_path / "a", lambda: now_s)
    assert not held.harm()
    (tmp_path / "a" / "store.db").unlink()
    assert not held.harm()
    now_s += store_files.LOOK_EVERY_S
    assert held.harm() == "store.db was removed while the server ran"


# ---- a full disk ---------------------------------------------------------------------------------


@needs_mount
def test_a_store_is_opened_read_and_closed_on_a_full_disk(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as mount:
        store_in(mount / "a", Disk()).close()
        filler = fill(mount)
        plain = sqlite3.connect(mount / "a" / "store.db")
        with closing(plain), pytest.raises(sqlite3.OperationalError):
            plain.execute("SELECT * FROM commits")

        store = RowStore.open(Disk(), mount / "a")
        check(store, 3)
        store.start_writing()
        check(store, 3)
        with pytest.raises(sqlite3.OperationalError) as full:
            add(store, 3, 100)
        assert is_disk_full(full.value)
        check(store, 3)

        filler.unlink()
        add(store, 3, 100)
        check(store, 103)
        store.close()


@needs_mount
def test_the_log_of_a_killed_server_is_read_on_a_full_disk_and_stays(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk") as mount:
        store = store_in(mount / "a", Disk())
        add(store, 3, 200)
        (mount / "b").mkdir()
        for name in ("store.db", "store.db-wal", "log-end"):  # as a kill leaves them
            (mount / "b" / name).write_bytes((mount / "a" / name).read_bytes())
        store.close()
        fill(mount)
        log = (mount / "b" / "store.db-wal").read_bytes()

        looked_at = RowStore.open(Disk(), mount / "b")
        check(looked_at, 203)
        looked_at.close()
        assert (mount / "b" / "store.db-wal").read_bytes() == log

        opened = RowStore.open(Disk(), mount / "b")
        opened.load()
        opened.start_writing()
        check(opened, 203)
        opened.close()
        again = RowStore.open(Disk(), mount / "b")
        check(again, 203)
        again.close()
