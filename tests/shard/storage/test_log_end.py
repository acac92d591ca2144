"""The log mark follows every transaction, and a store that is behind its mark does not open."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crash_disk import FailingDisk
from tests.shard.storage.row_store_samples import (
    ENTRY,
    INDEX_FILE,
    MEMBERSHIP,
    commit_of,
    compact,
    kept_of,
    opened,
    sweep_all,
)
from vectorshard.shard.errors import RowStoreCorrupt, WritesStopped
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.two_slots import SLOT_BYTES, Slot, TwoSlots


def mark_of(directory: Path) -> Slot:
    mark = TwoSlots.read(directory / "log-end")
    assert mark is not None
    return mark


STEPS: list[Callable[[RowStore], object]] = [
    lambda store: store.commit(commit_of(11, 2, deleted=[2])),
    lambda store: store.set_configuration(ENTRY.config),
    lambda store: store.set_membership(MEMBERSHIP),
    lambda store: store.record_loss(7),
    lambda store: store.set_index_file(INDEX_FILE),
    lambda store: store.keep(store.next_generation(), kept_of([2])),
    lambda store: store.sweep(lambda rows: rows > 1),
]


@pytest.mark.parametrize("step", STEPS)
def test_every_transaction_is_marked_before_it_returns(
    store: RowStore, tmp_path: Path, step: Callable[[RowStore], object]
) -> None:
    compact(store)
    before = mark_of(tmp_path)
    step(store)
    after = mark_of(tmp_path)
    assert (after.counter, after.value) == (before.counter + 1, store.load().sequence)
    with store._database.reader() as reader:
        counted = reader.execute("SELECT transactions FROM ledger").fetchall()
    assert counted == [(after.counter,)]


def test_a_transaction_that_fails_is_not_marked(store: RowStore, disk: FailingDisk) -> None:
    store.commit(commit_of(0, 3))
    marks = disk.counts["write_mark"]
    disk.fail("commit", code=errno.ENOSPC)
    with pytest.raises(Exception, match="full"):
        store.commit(commit_of(3, 1))
    assert disk.counts["write_mark"] == marks
    store.commit(commit_of(3, 1))
    assert store.load().sequence == 2


def test_a_store_without_its_last_transactions_is_refused_and_the_mark_named(
    store: RowStore, tmp_path: Path
) -> None:
    store.commit(commit_of(0, 3))
    store.close()
    older = (tmp_path / "store.db").read_bytes()
    store = opened(tmp_path)
    store.commit(commit_of(3, 1))
    store.set_index_file(None)
    store.close()
    newer = (tmp_path / "store.db").read_bytes()
    (tmp_path / "store.db").write_bytes(older)
    with pytest.raises(
        RowStoreCorrupt, match=r"after transaction 1 \(commit 1\), but log-end has 3 \(commit 2\)"
    ):
        RowStore.open(Disk(), tmp_path)
    (tmp_path / "store.db").write_bytes(newer)
    assert opened(tmp_path).load().rows == 4


@pytest.mark.parametrize("damage", ["missing", "both", "empty"])
def test_a_store_without_a_sound_mark_is_refused(
    store: RowStore, tmp_path: Path, damage: str
) -> None:
    store.commit(commit_of(0, 3))
    store.close()
    path = tmp_path / "log-end"
    contents = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "both":
            path.write_bytes(bytes(9) + contents[9:SLOT_BYTES] + bytes(SLOT_BYTES))
        case "empty":
            path.write_bytes(b"")
    with pytest.raises(RowStoreCorrupt, match="log-end, the log mark, is missing or damaged"):
        RowStore.open(Disk(), tmp_path)
    path.write_bytes(contents)
    assert opened(tmp_path).load().rows == 3


def test_a_damaged_slot_leaves_the_other(store: RowStore, tmp_path: Path) -> None:
    for row in range(4):
        store.commit(commit_of(row, 1))
    store.close()
    path = tmp_path / "log-end"
    contents = path.read_bytes()
    for place in (3, SLOT_BYTES + 3):
        damaged = bytearray(contents)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        store = opened(tmp_path)
        assert store.load().rows == 4
        store.close()
        assert mark_of(tmp_path).counter == 4


def test_a_crash_between_commit_and_mark_is_no_damage(store: RowStore, tmp_path: Path) -> None:
    store.commit(commit_of(0, 3))
    mark = (tmp_path / "log-end").read_bytes()
    store.commit(commit_of(3, 1))
    killed = tmp_path / "killed"
    killed.mkdir()
    for name in ("store.db", "store.db-wal"):
        shutil.copy(tmp_path / name, killed / name)
    (killed / "log-end").write_bytes(mark)
    assert opened(killed).load().rows == 4
    assert mark_of(killed) == Slot(2, 2)


# ---- marks that fail ----------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_a_mark_that_fails_stops_writes_though_the_transaction_is_done(
    store: RowStore, disk: FailingDisk, tmp_path: Path, step: Callable[[RowStore], object]
) -> None:
    compact(store)
    before = mark_of(tmp_path).counter
    disk.fail("write_mark")
    with pytest.raises(WritesStopped, match=r"log mark failed .*; the write may have been done"):
        step(store)
    for later in STEPS:
        with pytest.raises(WritesStopped, match=r"log mark failed \([^;]*\)$"):
            later(store)
    store.close()
    store = opened(tmp_path)
    assert mark_of(tmp_path).counter == before + 1
    store.close()


def test_marks_are_synced_only_if_there_is_a_new_one(store: RowStore, disk: FailingDisk) -> None:
    store.log_end.sync()
    before = disk.counts.get("sync_mark", 0)
    store.log_end.sync()
    assert disk.counts.get("sync_mark", 0) == before
    store.commit(commit_of(0, 1))
    store.commit(commit_of(1, 1))
    for _ in range(2):
        store.log_end.sync()
    assert disk.counts["sync_mark"] == before + 1
    store.commit(commit_of(2, 1))
    store.close()
    store.close()
    assert disk.counts["sync_mark"] == before + 2


def test_a_mark_whose_sync_fails_stops_writes(
    store: RowStore, disk: FailingDisk, tmp_path: Path
) -> None:
    store.commit(commit_of(0, 1))
    disk.fail("sync_mark")
    with pytest.raises(OSError, match="Input/output"):
        store.log_end.sync()
    with pytest.raises(WritesStopped, match="a sync of the log mark failed"):
        store.commit(commit_of(1, 1))
    store.close()
    assert opened(tmp_path).load().rows == 1


def test_a_close_that_does_not_sync_its_mark_closes(store: RowStore, disk: FailingDisk) -> None:
    store.commit(commit_of(0, 1))
    disk.fail("sync_mark")
    store.close()


def test_a_start_marks_nothing_that_is_not_durable(
    store: RowStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last commit of a killed process may be readable and not durable."""
    compact(store)
    sweep_all(store)
    store.close()
    steps: list[str] = []

    class Listening(Disk):
        def checkpoint(self, connection: object) -> None:
            steps.append("checkpoint")
            super().checkpoint(connection)  # type: ignore[arg-type]

    monkeypatch.setattr(
        "vectorshard.shard.storage.log_end.LogEnd.catch_up", lambda *_: steps.append("mark")
    )
    opened(tmp_path, Listening())
    assert steps == ["checkpoint", "mark"]
