"""The row store keeps every commit, whole or not at all, and notices when it has been damaged."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crash_disk import FailingDisk, Kind
from tests.shard.storage.row_store_samples import (
    ENTRY,
    INDEX_FILE,
    STRING_ENTRY,
    assert_same,
    commit_of,
    hashes_of,
    opened,
    reopened,
    stored_ids,
)
from vectorshard.shard.storage import row_database
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.types import IdType


def test_a_new_store_is_empty_and_knows_its_collection(store: RowStore, tmp_path: Path) -> None:
    again = reopened(store, tmp_path)
    assert again.entry == ENTRY
    assert again.row_file == "rows-0.f32"
    assert again.index_file is None
    stored = again.load()
    assert (stored.rows, stored.sequence, stored.ids) == (0, 0, [])
    assert [len(stored.squared_norms), len(stored.replaced), len(stored.deleted)] == [0, 0, 0]


def test_commits_are_loaded_in_their_order(store: RowStore, tmp_path: Path) -> None:
    assert store.commit(commit_of(0, 3)) == 1
    assert store.commit(commit_of(3, 2, replaced=[1])) == 2
    assert store.commit(commit_of(5, 0, deleted=[4, 0])) == 3
    stored = reopened(store, tmp_path).load()
    assert (stored.rows, stored.sequence) == (5, 3)
    assert stored_ids(stored) == [0, 10, 20, 30, 40]
    np.testing.assert_array_equal(stored.squared_norms, np.arange(5, dtype=np.float32) + 0.5)
    assert stored.squared_norms.dtype == np.float32
    assert (stored.replaced.tolist(), stored.deleted.tolist()) == ([1], [4, 0])


def test_string_ids_are_loaded_as_they_were(tmp_path: Path) -> None:
    store = RowStore.create(Disk(), tmp_path, STRING_ENTRY)
    ids = np.array(["tea", "Zürich", "日本"], dtype=np.object_)
    store.commit(commit_of(0, 3, ids=ids))
    stored = reopened(store, tmp_path).load()
    assert stored_ids(stored, IdType.STRING) == ids.tolist()


@settings(max_examples=30, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    asked=st.lists(st.integers(0, 399), max_size=60),
    described=st.sets(st.integers(0, 399)),
)
def test_what_was_committed_is_what_is_read_whatever_the_commits(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    asked: list[int],
    described: set[int],
) -> None:
    directory = tmp_path_factory.mktemp("store")
    store = RowStore.create(Disk(), directory, ENTRY)
    total = 0
    for rows in sizes:
        metadata = {r: b"\0%d\0" % r for r in range(total, total + rows) if r in described}
        store.commit(commit_of(total, rows, metadata=metadata))
        total += rows
    store = reopened(store, directory)
    stored = store.load()
    assert stored_ids(stored) == [row * 10 for row in range(total)]
    wanted = np.array([row for row in asked if row < total], dtype=np.int64)
    assert store.metadata(wanted) == [
        b"\0%d\0" % row if row in described else b"" for row in wanted.tolist()
    ]
    np.testing.assert_array_equal(stored.content_hashes, hashes_of(np.arange(total)))
    store.close()


# ---- metadata ----------------------------------------------------------------------------------


def test_metadata_comes_in_the_order_asked_however_much_it_is(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_database, "METADATA_ROWS", 10)
    metadata = {row: bytes([row]) * (1 + row * 97 % 2_000) for row in range(0, 100, 3)}
    store.commit(commit_of(0, 100, metadata=metadata))
    rows = np.array([99, 3, 3, 4, *range(100)])
    assert store.metadata(rows) == [metadata.get(row, b"") for row in rows.tolist()]


def test_empty_metadata_is_not_stored(store: RowStore, tmp_path: Path) -> None:
    store.commit(commit_of(0, 2, metadata={0: b"", 1: b""}))
    store.close()
    with sqlite3.connect(tmp_path / "store.db") as connection:
        assert connection.execute("SELECT count(*) FROM metadata").fetchall() == [(0,)]


def test_a_collection_without_metadata_is_not_asked_for_any(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RowDatabase) -> AbstractContextManager[sqlite3.Connection]:
        raise AssertionError("a reader was used")

    monkeypatch.setattr(RowDatabase, "reader", refuse)
    store.commit(commit_of(0, 3))
    assert store.metadata(np.array([2, 0])) == [b"", b""]
    store.commit(commit_of(3, 1, metadata={3: b"x"}))
    with pytest.raises(AssertionError, match="a reader was used"):
        store.metadata(np.array([3]))


def test_metadata_is_found_after_a_restart(store: RowStore, tmp_path: Path) -> None:
    store.commit(commit_of(0, 2, metadata={1: b"one"}))
    assert reopened(store, tmp_path).metadata(np.array([0, 1])) == [b"", b"one"]


def test_readers_see_whole_commits_while_others_are_written(store: RowStore) -> None:
    store.commit(commit_of(0, 4, metadata={row: b"m%d" % row for row in range(4)}))
    committed = [4]
    wrong: list[object] = []

    def read() -> None:
        while committed[0] < 400:
            rows = np.arange(committed[0])
            if store.metadata(rows) != [b"m%d" % row for row in rows]:
                wrong.append(rows)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for first in range(4, 400, 4):
        store.commit(commit_of(first, 4, metadata={r: b"m%d" % r for r in range(first, first + 4)}))
        committed[0] = first + 4
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_reader_can_neither_write_nor_checkpoint(store: RowStore) -> None:
    with store._database.reader() as reader:
        assert reader.execute("PRAGMA wal_autocheckpoint").fetchall() == [(0,)]
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("UPDATE ledger SET deleted = 1")


# ---- failing disks ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_failed_commit_changes_nothing_and_reads_go_on(
    store: RowStore, disk: FailingDisk, tmp_path: Path, code: int
) -> None:
    store.commit(commit_of(0, 3, metadata={2: b"two"}))
    before = store.load()
    disk.fail("commit", code=code)
    with pytest.raises(sqlite3.OperationalError):
        store.commit(commit_of(3, 2, metadata={3: b"three"}, deleted=[0]))
    assert_same(store.load(), before)
    assert store.metadata(np.array([2, 3])) == [b"two", b""]
    assert store.commit(commit_of(3, 1, metadata={3: b"again"})) == 2
    again = reopened(store, tmp_path)
    assert (again.load().rows, again.metadata(np.array([3]))) == (4, [b"again"])


def test_a_full_disk_that_sqlite_meets_by_itself_changes_nothing(store: RowStore) -> None:
    store.commit(commit_of(0, 3))
    before = store.load()
    store._database.connection.execute("PRAGMA max_page_count = 1")  # not below what there is
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.commit(commit_of(3, 1, metadata={3: bytes(100_000)}))
    assert_same(store.load(), before)


def test_a_commit_that_does_not_follow_the_last_is_refused(store: RowStore) -> None:
    store.commit(commit_of(0, 3))
    for first_row in (0, 2, 4):
        with pytest.raises(ValueError, match=f"first_row is {first_row}, but the next row is 3"):
            store.commit(commit_of(first_row, 1))


def test_a_commit_with_columns_of_different_lengths_is_refused(store: RowStore) -> None:
    with pytest.raises(ValueError, match="must have one entry for each id"):
        store.commit(replace(commit_of(0, 3), content_hashes=np.zeros((2, 2), np.uint64)))
    assert store.load().rows == 0


def test_the_log_is_moved_into_the_database_when_it_has_grown_and_before_a_commit(
    store: RowStore, disk: FailingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_database, "CHECKPOINT_BYTES", 100_000)
    for first in range(0, 40_000, 1_000):
        store.commit(commit_of(first, 1_000))
    assert 5 < disk.counts["checkpoint"] < 20
    assert (tmp_path / "store.db-wal").stat().st_size < 400_000
    disk.fail("checkpoint")

    def commit_until_it_fails() -> None:
        for first in range(40_000, 50_000, 1_000):
            store.commit(commit_of(first, 1_000))

    with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
        commit_until_it_fails()
    stored = store.load()
    assert stored.rows == 40_000 + 1_000 * (stored.sequence - 40)
    assert store.commit(commit_of(stored.rows, 1)) == stored.sequence + 1


def test_opening_makes_a_killed_process_last_commit_durable(
    store: RowStore, tmp_path: Path
) -> None:
    store.commit(commit_of(0, 3))
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("store.db", "store.db-wal", "log-end"):
        shutil.copy(tmp_path / name, killed / name)
    opened(killed)
    alone = tmp_path / "alone"  # what the database holds without its log
    alone.mkdir()
    for name in ("store.db", "log-end"):
        shutil.copy(killed / name, alone / name)
    assert RowStore.open(Disk(), alone).load().rows == 3


KINDS: list[Kind] = ["connect", "write", "sync", "rename", "commit", "sync_directory"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_creation_that_fails_is_raised(tmp_path: Path, kind: Kind) -> None:
    disk = FailingDisk()
    disk.fail(kind)
    with pytest.raises((OSError, sqlite3.OperationalError)):
        RowStore.create(disk, tmp_path, ENTRY)


# ---- the index file -----------------------------------------------------------------------------


def test_the_index_file_is_remembered_until_it_is_replaced_or_taken_away(
    store: RowStore, tmp_path: Path
) -> None:
    store.set_index_file(INDEX_FILE)
    assert store.index_file == INDEX_FILE
    store = reopened(store, tmp_path)
    assert store.index_file == INDEX_FILE
    other = replace(INDEX_FILE, generation=3, calibration=())
    store.set_index_file(other)
    store = reopened(store, tmp_path)
    assert store.index_file == other
    store.set_index_file(None)
    store = reopened(store, tmp_path)
    assert store.index_file is None


def test_an_index_file_that_could_not_be_stored_is_not_in_use(
    store: RowStore, disk: FailingDisk
) -> None:
    store.set_index_file(INDEX_FILE)
    disk.fail("commit")
    with pytest.raises(sqlite3.OperationalError):
        store.set_index_file(None)
    assert store.index_file == INDEX_FILE
