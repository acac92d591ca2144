"""A row store that is damaged, contradicts itself or has another version is noticed."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shard.storage.row_store_samples import (
    ENTRY,
    INDEX_FILE,
    SESSION,
    assert_same,
    commit_of,
    compact,
    sample,
    sweep_all,
)
from vectorshard.shard.errors import DataDirectoryTooNew, RowStoreCorrupt
from vectorshard.shard.membership import Sessions
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import StoredRows


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
        "UPDATE ledger SET lost = 1",
        "UPDATE ledger SET accepted = 39, lost = -1",
        "UPDATE ledger SET transactions = 4",
        "UPDATE ledger SET sum = x'00'",
        "UPDATE ledger SET sum = zeroblob(16)",
        "UPDATE sessions SET session = session + 1",
        "UPDATE sessions SET first_sequence = 2",
        "DROP TABLE sessions",
        "DELETE FROM sessions",
        "CREATE TRIGGER strange AFTER INSERT ON commits BEGIN DELETE FROM metadata; END",
        "CREATE UNIQUE INDEX strange ON commits (rows, sequence)",
        "UPDATE commits SET range_crc32c = 1 WHERE sequence = 3",
        "UPDATE properties SET value = '3' WHERE key = 'stage'",
        "DELETE FROM properties WHERE key = 'stage'",
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
        "UPDATE kept SET ids = content_hashes",
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
    compact(store)
    if is_swept:
        sweep_all(store)
    store.close()
    connection = sqlite3.connect(tmp_path / "store.db")
    connection.execute(damage)
    connection.commit()
    connection.close()
    with pytest.raises(RowStoreCorrupt):
        RowStore.open(Disk(), tmp_path).load()


def test_a_row_that_a_rebuild_left_out_cannot_die_again(store: RowStore) -> None:
    compact(store)
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
    connection.execute("PRAGMA user_version = 4")
    connection.close()
    with pytest.raises(DataDirectoryTooNew, match="format version 4"):
        RowStore.open(Disk(), tmp_path)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StoredRows]:
    directory = tmp_path_factory.mktemp("sound")
    return directory, sample(directory, rebuilt=True)


@settings(max_examples=150, deadline=None)
@given(places=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=3))
def test_flipped_bits_are_noticed_or_do_not_matter(
    tmp_path_factory: pytest.TempPathFactory,
    sound: tuple[Path, StoredRows],
    places: list[float],
) -> None:
    contents, stored = bytearray((sound[0] / "store.db").read_bytes()), sound[1]
    for place in places:
        bit = int(place * len(contents) * 8)
        contents[bit // 8] ^= 1 << bit % 8
    directory = tmp_path_factory.mktemp("flipped")
    (directory / "store.db").write_bytes(contents)
    shutil.copy(sound[0] / "log-end", directory)
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
    assert store.sessions == Sessions(first_sequences=(1,), sessions=(SESSION,))
