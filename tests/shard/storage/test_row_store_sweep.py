"""What a compaction keeps stands for what it condenses, and garbage is swept piece by piece."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk
from tests.shard.storage.row_store_samples import (
    assert_same,
    commit_of,
    compact,
    hashes_of,
    in_row_file,
    kept_of,
    reopened,
    stored_ids,
    sweep_all,
)
from vectorshard.shard.storage import row_store_sweep
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import LastCompaction


@pytest.mark.parametrize("is_swept", [False, True])
def test_what_was_kept_stands_for_the_commits_that_it_condenses(
    store: RowStore, tmp_path: Path, is_swept: bool
) -> None:
    rebuilt = compact(store)
    for _ in range(2):
        if is_swept:
            sweep_all(store)
        assert (store.last_compaction, store.row_file) == (rebuilt, "rows-1.f32")
        assert store.sweep_due != is_swept
        stored = store.load()
        held = [2, 3, 4, 5, 6, 8, 9, 10]
        assert stored_ids(stored) == [10 * row for row in held]
        np.testing.assert_array_equal(stored.squared_norms, np.array(held) + np.float32(0.5))
        assert stored.positions.rows_at(np.arange(8)).tolist() == held
        assert (stored.rows, stored.sequence) == (11, 3)
        assert (stored.replaced.tolist(), stored.deleted.tolist()) == ([8], [])
        np.testing.assert_array_equal(stored.content_hashes, hashes_of(np.array(held)))
        assert store.metadata(np.array([4, 8, 10, 5])) == [b"four", b"8", b"ten", b""]
        store = reopened(store, tmp_path)
    assert store.commit(commit_of(11, 1, deleted=[2])) == 4
    assert store.load().rows == 12
    store.close()


def test_rows_left_out_are_read_until_they_are_swept(store: RowStore) -> None:
    compact(store)
    rows = np.array([0, 1, 7])
    assert store.metadata(rows) == [b"zero", b"", b"7"]
    sweep_all(store)
    assert store.metadata(rows) == [b"", b"", b""]


def test_a_second_rebuild_replaces_the_first(store: RowStore, tmp_path: Path) -> None:
    compact(store)
    sweep_all(store)
    generation = store.next_generation()
    store.keep(generation, kept_of([3, 5, 9]))
    store.commit(commit_of(11, 0, deleted=[2, 4, 6, 10]))
    store.take_into_use(
        LastCompaction(generation=generation, sequence=4, rebuilt_until=11, replaced=2, deleted=6)
    )
    sweep_all(store)
    store = reopened(store, tmp_path)
    stored = store.load()
    np.testing.assert_array_equal(stored.content_hashes, hashes_of(np.array([3, 5, 9])))
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
    sweep_all(store)
    store = reopened(store, tmp_path)
    assert (store.sweep_due, store.next_generation()) == (False, 1)
    store.close()


@pytest.mark.parametrize("commits", [1, 7])
def test_a_sweep_goes_piece_by_piece(
    store: RowStore, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    monkeypatch.setattr(row_store_sweep, "SWEPT_COMMITS", 3)
    monkeypatch.setattr(row_store_sweep, "SWEPT_ROWS", 20)
    metadata = dict.fromkeys(range(0, 70), b"m")
    for first in range(0, 70, 70 // commits):
        store.commit(commit_of(first, 70 // commits, metadata=metadata if first == 0 else None))
    store.commit(commit_of(70, 0, deleted=range(1, 70)))
    store.keep(1, kept_of([0]))
    rebuilt = LastCompaction(generation=1, sequence=commits + 1, rebuilt_until=70, deleted=69)
    store.take_into_use(rebuilt)
    before = disk.counts["commit"]
    while store.sweep_due:
        store.sweep(lambda rows: rows == 0)
    ends = 3 + 1 + 4  # three looks that find no more commits, generations, metadata; the end
    assert disk.counts["commit"] - before > ends
    found = store._database.connection.execute("SELECT row FROM metadata").fetchall()
    assert found == [(0,)]
    assert store._database.connection.execute("SELECT count(*) FROM commits").fetchall() == [(0,)]


def test_a_sweep_without_metadata_removes_every_piece(
    store: RowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_store_sweep, "SWEPT_COMMITS", 3)
    for row in range(8):
        store.commit(commit_of(row, 1))
    for _ in range(2):  # compactions that failed, the second in two pieces
        generation = store.next_generation()
        store.keep(generation, kept_of([1]))
    store.keep(generation, kept_of([2]))
    generation = store.next_generation()
    store.keep(generation, kept_of([6, 7]))
    store.commit(commit_of(8, 0, deleted=range(6)))
    store.take_into_use(
        LastCompaction(generation=generation, sequence=9, rebuilt_until=8, deleted=6)
    )
    left: list[int] = []
    while store.sweep_due:
        store.sweep(lambda rows: rows >= 6)
        assert stored_ids(store.load()) == [60, 70]
        ((commits, kept),) = store._database.connection.execute(
            "SELECT (SELECT count(*) FROM commits), (SELECT count(*) FROM kept)"
        ).fetchall()
        left.append(commits + kept)
    assert left == [10, 7, 4, 3, 2, 1, 1]


def test_each_compaction_is_swept_from_the_first_row_on(store: RowStore) -> None:
    compact(store)
    sweep_all(store)
    store.keep(2, kept_of([2, 3, 5, 6, 8, 9]))
    store.commit(commit_of(11, 0, deleted=[4, 10]))
    store.take_into_use(
        LastCompaction(generation=2, sequence=4, rebuilt_until=11, replaced=2, deleted=4)
    )
    while store.sweep_due:
        store.sweep(lambda rows: np.isin(rows, [2, 3, 5, 6, 9]))
    assert store._database.connection.execute("SELECT row FROM metadata").fetchall() == []


@pytest.mark.parametrize(
    "step",
    [
        lambda store: store.keep(2, kept_of([2])),
        lambda store: store.take_into_use(LastCompaction(generation=2)),
        lambda store: store.sweep(in_row_file),
    ],
)
def test_a_step_of_a_rebuild_that_fails_changes_nothing(
    store: RowStore, disk: FailingDisk, step: Callable[[RowStore], None]
) -> None:
    compact(store)
    before = store.load()
    disk.fail("commit")
    with pytest.raises(sqlite3.OperationalError):
        step(store)
    assert (store.last_compaction.generation, store.row_file) == (1, "rows-1.f32")
    assert_same(store.load(), before)
