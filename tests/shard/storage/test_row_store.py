"""The row store keeps every commit, whole or not at all, and notices when it has been damaged."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.crash_disk import FailingDisk, Kind
from vectorshard.shard.errors import DataDirectoryTooNew, RowStoreCorrupt
from vectorshard.shard.rows.id_column import decode_ids, encode_ids
from vectorshard.shard.storage import row_store
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_store import (
    Commit,
    IndexFile,
    KeptRows,
    Rebuilt,
    RowStore,
    StoredRows,
)
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    CollectionEntry,
    FieldType,
    FilterField,
    IdArray,
    IdType,
    Int64Array,
    Metric,
)

ENTRY = CollectionEntry(
    config=CollectionConfig(
        name="words",
        dim=100,
        metric=Metric.COSINE,
        id_type=IdType.INT64,
        target_recall=0.9,
        filter_fields=(FilterField("language", FieldType.KEYWORD),),
    ),
    incarnation="1f",
)
STRING_ENTRY = replace(ENTRY, config=replace(ENTRY.config, id_type=IdType.STRING))
INDEX_FILE = IndexFile(
    name="index-2-900.faiss",
    generation=2,
    absorbed_until=900,
    rows_skipped=3,
    crc32c=2**32 - 1,
    file_bytes=12_345,
    live_when_trained=800,
    rows_trained_on=790,
    trained_at=1_700_000_000.25,
    training_s=0.125,
    calibration=((0.8, 4, 0.83), (0.95, 17, 0.951)),
)


def commit_of(
    first_row: int,
    rows: int,
    *,
    ids: IdArray | None = None,
    metadata: dict[int, bytes] | None = None,
    replaced: Sequence[int] = (),
    deleted: Sequence[int] = (),
) -> Commit:
    """Return a commit whose columns tell its rows apart."""
    numbers = np.arange(first_row, first_row + rows)
    return Commit(
        first_row=first_row,
        ids=numbers * 10 if ids is None else ids,
        checksums=(numbers * 7919 % 2**32).astype(np.uint32),
        squared_norms=(numbers + 0.5).astype(np.float32),
        metadata=metadata or {},
        replaced=np.array(replaced, dtype=np.int64),
        deleted=np.array(deleted, dtype=np.int64),
    )


def stored_ids(stored: StoredRows, id_type: IdType = IdType.INT64) -> list[int | str]:
    return [id_ for blob, rows in stored.ids for id_ in decode_ids(id_type, blob, rows).tolist()]


def assert_same(found: StoredRows, expected: StoredRows) -> None:
    assert found.ids == expected.ids
    assert (found.rows, found.sequence) == (expected.rows, expected.sequence)
    for column in ("squared_norms", "replaced", "deleted"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    positions = np.arange(len(expected.squared_norms))
    np.testing.assert_array_equal(
        found.positions.rows_at(positions), expected.positions.rows_at(positions)
    )


@pytest.fixture
def disk() -> FailingDisk:
    return FailingDisk()


@pytest.fixture
def store(disk: FailingDisk, tmp_path: Path) -> Iterator[RowStore]:
    store = RowStore.create(disk, tmp_path, ENTRY)
    yield store
    store.close()


def reopened(store: RowStore, directory: Path) -> RowStore:
    store.close()
    return RowStore.open(Disk(), directory)


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
    np.testing.assert_array_equal(store.checksums(wanted), wanted * 7919 % 2**32)
    store.close()


# ---- metadata and checksums ---------------------------------------------------------------------


def test_metadata_comes_in_the_order_asked_however_much_it_is(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "METADATA_ROWS", 10)
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
    def refuse(_: RowStore) -> sqlite3.Connection:
        raise AssertionError("a reader was opened")

    monkeypatch.setattr(RowStore, "_connect_reader", refuse)
    store.commit(commit_of(0, 3))
    assert store.metadata(np.array([2, 0])) == [b"", b""]
    store.commit(commit_of(3, 1, metadata={3: b"x"}))
    with pytest.raises(AssertionError, match="a reader was opened"):
        store.metadata(np.array([3]))


def test_metadata_is_found_after_a_restart(store: RowStore, tmp_path: Path) -> None:
    store.commit(commit_of(0, 2, metadata={1: b"one"}))
    assert reopened(store, tmp_path).metadata(np.array([0, 1])) == [b"", b"one"]


@pytest.mark.parametrize("row", [-1, 3, 10**12])
def test_a_row_that_was_never_committed_has_no_checksum(store: RowStore, row: int) -> None:
    store.commit(commit_of(0, 3))
    with pytest.raises(RowStoreCorrupt, match=f"row {row} was never committed"):
        store.checksums(np.array([0, row]))


def test_readers_see_whole_commits_while_others_are_written(store: RowStore) -> None:
    store.commit(commit_of(0, 4, metadata={row: b"m%d" % row for row in range(4)}))
    committed = [4]
    wrong: list[object] = []

    def read() -> None:
        while committed[0] < 400:
            rows = np.arange(committed[0])
            if store.metadata(rows) != [b"m%d" % row for row in rows]:
                wrong.append(rows)
            if not np.array_equal(store.checksums(rows), rows * 7919 % 2**32):
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
    with store._reader() as reader:
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
    store._connection.execute("PRAGMA max_page_count = 1")  # not below what there is
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.commit(commit_of(3, 1, metadata={3: bytes(100_000)}))
    assert_same(store.load(), before)


def test_a_commit_that_does_not_follow_the_last_is_refused(store: RowStore) -> None:
    store.commit(commit_of(0, 3))
    for first_row in (0, 2, 4):
        with pytest.raises(ValueError, match=f"from row {first_row} on cannot follow 3"):
            store.commit(commit_of(first_row, 1))


def test_a_commit_with_columns_of_different_lengths_is_refused(store: RowStore) -> None:
    with pytest.raises(ValueError, match="one checksum and one norm"):
        store.commit(replace(commit_of(0, 3), checksums=np.zeros(2, np.uint32)))
    assert store.load().rows == 0


def test_the_log_is_moved_into_the_database_when_it_has_grown_and_before_a_commit(
    store: RowStore, disk: FailingDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store, "CHECKPOINT_BYTES", 100_000)
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
    for name in ("store.db", "store.db-wal"):
        shutil.copy(tmp_path / name, killed / name)
    RowStore.open(Disk(), killed)
    alone = tmp_path / "alone"  # what the database holds without its log
    alone.mkdir()
    shutil.copy(killed / "store.db", alone / "store.db")
    assert RowStore.open(Disk(), alone).load().rows == 3


KINDS: list[Kind] = ["connect", "commit", "sync_directory", "checkpoint"]


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


# ---- what a rebuild keeps -----------------------------------------------------------------------


def kept_of(rows: Sequence[int]) -> KeptRows:
    """Return what a rebuild keeps of rows that `commit_of` made."""
    commit = commit_of(0, max(rows) + 1)
    chosen = np.array(rows, dtype=np.int64)
    return KeptRows(
        rows=chosen,
        ids=encode_ids(IdType.INT64, commit.ids[chosen]),
        checksums=commit.checksums[chosen],
        squared_norms=commit.squared_norms[chosen],
    )


def rebuild(store: RowStore) -> Rebuilt:
    """Rebuild a store of three commits after the second, the third having come meanwhile."""
    store.commit(commit_of(0, 5, metadata={0: b"zero", 4: b"four"}))
    store.commit(commit_of(5, 4, replaced=[1], deleted=[0, 7], metadata={7: b"7", 8: b"8"}))
    generation = store.next_generation()
    store.keep(generation, kept_of([2, 3]))
    store.commit(commit_of(9, 2, replaced=[8], metadata={10: b"ten"}))
    store.keep(generation, kept_of([4, 5, 6, 8]))
    rebuilt = Rebuilt(generation=generation, sequence=2, rebuilt_until=9, replaced=1, deleted=2)
    store.take_into_use(rebuilt)
    return rebuilt


def are_there(rows: Int64Array) -> BoolArray:
    """Say which rows the row file holds after `rebuild`."""
    return ~np.isin(rows, [0, 1, 7])


def swept(store: RowStore) -> None:
    while store.sweep_due:
        store.sweep(are_there)


@pytest.mark.parametrize("is_swept", [False, True])
def test_what_was_kept_stands_for_the_commits_that_it_condenses(
    store: RowStore, tmp_path: Path, is_swept: bool
) -> None:
    rebuilt = rebuild(store)
    for _ in range(2):
        if is_swept:
            swept(store)
        assert (store.rebuilt, store.row_file) == (rebuilt, "rows-1.f32")
        assert store.sweep_due != is_swept
        stored = store.load()
        held = [2, 3, 4, 5, 6, 8, 9, 10]
        assert stored_ids(stored) == [10 * row for row in held]
        np.testing.assert_array_equal(stored.squared_norms, np.array(held) + np.float32(0.5))
        assert stored.positions.rows_at(np.arange(8)).tolist() == held
        assert (stored.rows, stored.sequence) == (11, 3)
        assert (stored.replaced.tolist(), stored.deleted.tolist()) == ([8], [])
        np.testing.assert_array_equal(
            store.checksums(np.array([10, *held])), np.array([10, *held]) * 7919 % 2**32
        )
        assert store.metadata(np.array([4, 8, 10, 5])) == [b"four", b"8", b"ten", b""]
        store = reopened(store, tmp_path)
    assert store.commit(commit_of(11, 1, deleted=[2])) == 4
    assert store.load().rows == 12
    store.close()


def test_rows_left_out_are_read_until_they_are_swept(store: RowStore) -> None:
    rebuild(store)
    rows = np.array([0, 1, 7])
    np.testing.assert_array_equal(store.checksums(rows), rows * 7919 % 2**32)
    assert store.metadata(rows) == [b"zero", b"", b"7"]
    swept(store)
    assert store.metadata(rows) == [b"", b"", b""]
    for row in rows:
        with pytest.raises(RowStoreCorrupt, match=f"row {row} was never committed"):
            store.checksums(np.array([2, row]))


def test_a_second_rebuild_replaces_the_first(store: RowStore, tmp_path: Path) -> None:
    rebuild(store)
    swept(store)
    generation = store.next_generation()
    store.keep(generation, kept_of([3, 5, 9]))
    store.commit(commit_of(11, 0, deleted=[2, 4, 6, 10]))
    store.take_into_use(
        Rebuilt(generation=generation, sequence=4, rebuilt_until=11, replaced=2, deleted=6)
    )
    for row in (2, 3):  # from the first generation, and from both
        assert store.checksums(np.array([row])).tolist() == [row * 7919]
    swept(store)
    assert store.checksums(np.array([3, 5, 9])).tolist() == [3 * 7919, 5 * 7919, 9 * 7919]
    with pytest.raises(RowStoreCorrupt, match="row 2 was never committed"):
        store.checksums(np.array([2]))
    store = reopened(store, tmp_path)
    stored = store.load()
    assert (stored_ids(stored), stored.rows, stored.sequence) == ([30, 50, 90], 11, 4)
    store.close()


def test_a_rebuild_that_was_not_taken_into_use_is_nothing_but_in_the_way(
    store: RowStore, tmp_path: Path
) -> None:
    store.commit(commit_of(0, 5))
    store.keep(store.next_generation(), kept_of([2, 3]))
    store = reopened(store, tmp_path)
    assert (store.load().rows, store.row_file, store.sweep_due) == (5, "rows-0.f32", True)
    assert store.next_generation() == 2
    swept(store)
    store = reopened(store, tmp_path)
    assert (store.sweep_due, store.next_generation()) == (False, 1)
    store.close()


@pytest.mark.parametrize("commits", [1, 7])
def test_a_sweep_goes_piece_by_piece(
    store: RowStore, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    monkeypatch.setattr(row_store, "SWEPT_COMMITS", 3)
    monkeypatch.setattr(row_store, "SWEPT_ROWS", 20)
    metadata = dict.fromkeys(range(0, 70), b"m")
    for first in range(0, 70, 70 // commits):
        store.commit(commit_of(first, 70 // commits, metadata=metadata if first == 0 else None))
    store.commit(commit_of(70, 0, deleted=range(1, 70)))
    store.keep(1, kept_of([0]))
    rebuilt = Rebuilt(generation=1, sequence=commits + 1, rebuilt_until=70, deleted=69)
    store.take_into_use(rebuilt)
    before = disk.counts["commit"]
    while store.sweep_due:
        store.sweep(lambda rows: rows == 0)
    ends = 3 + 1 + 4  # three looks that find no more commits, generations, metadata; the end
    assert disk.counts["commit"] - before > ends
    found = store._connection.execute("SELECT row FROM metadata").fetchall()
    assert found == [(0,)]
    assert store._connection.execute("SELECT count(*) FROM commits").fetchall() == [(0,)]


@pytest.mark.parametrize(
    "step",
    [
        lambda store: store.keep(2, kept_of([2])),
        lambda store: store.take_into_use(Rebuilt(generation=2)),
        lambda store: store.sweep(are_there),
    ],
)
def test_a_step_of_a_rebuild_that_fails_changes_nothing(
    store: RowStore, disk: FailingDisk, step: Callable[[RowStore], None]
) -> None:
    rebuild(store)
    before = store.load()
    disk.fail("commit")
    with pytest.raises(sqlite3.OperationalError):
        step(store)
    assert (store.rebuilt.generation, store.row_file) == (1, "rows-1.f32")
    assert_same(store.load(), before)


def test_a_store_of_version_1_is_opened_and_brought_up_to_date(tmp_path: Path) -> None:
    stored = sample(tmp_path)
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("DROP TABLE kept")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    store = RowStore.open(Disk(), tmp_path)
    assert_same(store.load(), stored)
    assert (store.index_file, store.rebuilt) == (INDEX_FILE, Rebuilt())
    assert not store.sweep_due
    store.keep(store.next_generation(), kept_of([2]))
    store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    assert connection.execute("PRAGMA user_version").fetchall() == [(2,)]
    connection.close()


# ---- damage -------------------------------------------------------------------------------------


def sample(directory: Path, *, rebuilt: bool = False) -> StoredRows:
    """Write a store of 40 rows in 4 commits, and close it."""
    store = RowStore.create(Disk(), directory, ENTRY)
    for first in range(0, 40, 10):
        store.commit(commit_of(first, 10, deleted=[first], metadata={first: b"m"}))
    if rebuilt:
        store.keep(1, kept_of([row for row in range(20) if row % 10]))
        store.take_into_use(Rebuilt(generation=1, sequence=2, rebuilt_until=20, deleted=2))
        while store.sweep_due:
            store.sweep(lambda rows: rows % 10 > 0)
    store.set_index_file(INDEX_FILE)
    stored = store.load()
    store.close()
    return stored


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM commits WHERE sequence = 4",
        "DELETE FROM commits WHERE sequence = 2",
        "UPDATE commits SET first_row = 41 WHERE sequence = 4",
        "UPDATE commits SET rows = 9 WHERE sequence = 4",
        "UPDATE commits SET squared_norms = ids",
        "UPDATE commits SET deleted = replaced",
        "UPDATE commits SET ids = 'text'",
        "UPDATE ledger SET accepted = 39",
        "UPDATE ledger SET deleted = 5",
        "UPDATE ledger SET replaced = 1",
        "DELETE FROM ledger",
        "UPDATE properties SET value = '2f' WHERE key = 'incarnation'",
        "DELETE FROM properties WHERE key = 'configuration'",
        "DELETE FROM properties WHERE key = 'row_file'",
        "DROP TABLE commits",
        "DROP TABLE properties",
        "PRAGMA user_version = 0",
    ],
)
def test_a_store_that_contradicts_itself_is_corrupt(tmp_path: Path, damage: str) -> None:
    sample(tmp_path)
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(RowStoreCorrupt):
        RowStore.open(Disk(), tmp_path).load()


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM kept WHERE first_row = 2",
        "UPDATE kept SET generation = 3",
        "UPDATE kept SET first_row = 3 WHERE first_row = 4",
        "UPDATE kept SET ids = checksums",
        "UPDATE kept SET row_numbers = ids",
        "DELETE FROM commits WHERE sequence = 3",
        "UPDATE ledger SET replaced = 3",
        "DELETE FROM properties WHERE key = 'rebuilt'",
        "UPDATE properties SET value = '{}' WHERE key = 'rebuilt'",
    ],
)
@pytest.mark.parametrize("is_swept", [False, True])
def test_a_rebuilt_store_that_contradicts_itself_is_corrupt(
    store: RowStore, tmp_path: Path, damage: str, is_swept: bool
) -> None:
    rebuild(store)
    if is_swept:
        swept(store)
    store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(RowStoreCorrupt):
        RowStore.open(Disk(), tmp_path).load()


def test_a_row_that_a_rebuild_left_out_cannot_die_again(store: RowStore) -> None:
    rebuild(store)
    store.commit(commit_of(11, 0, deleted=[7]))
    with pytest.raises(RowStoreCorrupt, match="died twice"):
        store.load()


@pytest.mark.parametrize("deleted", [[0, 0], [3], [-1]])
def test_a_row_that_died_twice_or_never_lived_is_corrupt(
    store: RowStore, deleted: list[int]
) -> None:
    store.commit(commit_of(0, 3, deleted=deleted))
    with pytest.raises(RowStoreCorrupt, match="died twice, or before it existed"):
        store.load()


def test_a_store_that_is_not_there_is_corrupt_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(RowStoreCorrupt, match="missing"):
        RowStore.open(Disk(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("contents", [b"", b"not a database" * 100])
def test_a_file_that_is_no_store_is_corrupt(tmp_path: Path, contents: bytes) -> None:
    (tmp_path / "store.db").write_bytes(contents)
    with pytest.raises(RowStoreCorrupt):
        RowStore.open(Disk(), tmp_path)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    sample(tmp_path)
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute("PRAGMA user_version = 3")
    connection.close()
    with pytest.raises(DataDirectoryTooNew, match="format version 3"):
        RowStore.open(Disk(), tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, StoredRows]:
    directory = tmp_path_factory.mktemp("sound")
    stored = sample(directory, rebuilt=True)
    return (directory / "store.db").read_bytes(), stored


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3))
def test_flipped_bits_are_noticed_or_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    sound: tuple[bytes, StoredRows],
    places: list[float],
) -> None:
    contents, stored = bytearray(sound[0]), sound[1]
    for place in places:
        bit = int(place * len(contents) * 8)
        contents[bit // 8] ^= 1 << bit % 8
    directory = tmp_path_factory.mktemp("flipped")
    (directory / "store.db").write_bytes(contents)
    try:
        store = RowStore.open(Disk(), directory)
    except (RowStoreCorrupt, DataDirectoryTooNew):
        return
    try:
        found = store.load()
    except RowStoreCorrupt:
        return
    finally:
        store.close()
    assert_same(found, stored)
    assert (store.entry, store.index_file) == (ENTRY, INDEX_FILE)
