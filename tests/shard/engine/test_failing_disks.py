"""A failing disk is never lied about, and what has changed on it is noticed."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk, Kind
from tests.shard.engine.contents import (
    DIM,
    ENTRY,
    SEED,
    WHOLE_ROWS,
    Contents,
    Write,
    Writes,
    absorb,
    applied,
    check_contents,
    entry_of,
    now,
    opened,
)
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import Overloaded, RowsDamaged, WritesStopped
from vectorshard.shard.rows.id_column import _place
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    IdType,
    Int64Array,
    Metric,
    SearchRequest,
    ShardState,
    UInt64Array,
)

# ---- disks that fail ----------------------------------------------------------------------------

WRITE_KINDS: tuple[Kind, ...] = ("write", "sync", "commit")


@pytest.mark.parametrize("kind", [*WRITE_KINDS, "extend"])
def test_a_full_disk_refuses_a_write_and_takes_the_next(tmp_path: Path, kind: Kind) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection:
        contents = Contents(Metric.L2)
        if kind != "extend":  # which only the first write of a file needs
            contents = applied(collection, contents, write.upsert(range(30)))
        disk.fail(kind, code=errno.ENOSPC)
        (outcome,) = collection.writes.apply([write.upsert(range(20, 50))])
        assert isinstance(outcome, Overloaded)
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(25, 40)), write.delete([3]))
        check_contents(collection, contents)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        check_contents(collection, contents)


@pytest.mark.parametrize("kind", WRITE_KINDS)
def test_a_disk_that_fails_a_write_takes_none_until_a_restart_and_is_read_on(
    tmp_path: Path, kind: Kind
) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        build_index(collection, now)
        disk.fail(kind, code=errno.EIO)
        groups: list[list[Write]] = [
            [write.upsert(range(20, 50)), write.delete([1])],
            [write.delete([2])],
        ]
        for group in groups:
            for outcome in collection.writes.apply(group):
                assert isinstance(outcome, WritesStopped)
            check_contents(collection, contents)
        writes_tried = dict(disk.counts)
        collection.writes.apply([write.upsert(range(50, 60))])
        assert disk.counts == writes_tried
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(20, 50)))
        check_contents(collection, contents)


@pytest.mark.parametrize("kind", ["write", "sync", "rename", "sync_directory", "commit"])
def test_an_index_file_that_cannot_be_written_costs_no_row(tmp_path: Path, kind: Kind) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    path = tmp_path / "shard-0"
    with opened(disk, path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        build_index(collection, now)
        collection.maintenance.checkpoint()
        contents = applied(collection, contents, write.upsert(range(20, 50)))
        build_index(collection, now)
        disk.fail(kind)
        with pytest.raises((OSError, sqlite3.OperationalError)):
            collection.maintenance.checkpoint()
        check_contents(collection, contents)
        contents = applied(collection, contents, write.delete([4]))
    with opened(Disk(), path, ENTRY) as collection:
        check_contents(collection, contents)
        collection.maintenance.checkpoint()
        assert len(index_files(path)) == 1


def no_memory(*_: object) -> None:
    """Stand in for what needs memory."""
    raise MemoryError("no room")


def placed_at_the_last(table: Int64Array, hashes: UInt64Array, rows: Int64Array) -> None:
    """Enter ids into the table, as `_place` does, and run out of memory then."""
    _place(table, hashes, rows)
    no_memory()


@pytest.mark.parametrize("id_type", list(IdType))
@pytest.mark.parametrize(
    ("step", "failing"),
    [
        ("vectorshard.shard.storage.row_columns.RowColumns._append_columns", no_memory),
        ("vectorshard.shard.storage.row_file.RowFile.view", no_memory),
        ("vectorshard.shard.rows.id_column.IdColumn.append", no_memory),
        ("vectorshard.shard.rows.id_column.IdIndex.put", no_memory),
        ("vectorshard.shard.rows.id_column._empty_table", no_memory),
        ("vectorshard.shard.rows.id_column._place", no_memory),
        ("vectorshard.shard.rows.id_column._place", placed_at_the_last),
    ],
)
def test_a_commit_that_cannot_be_published_stops_writes_and_is_there_after_a_restart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    failing: Callable[..., None],
    id_type: IdType,
) -> None:
    write, entry = Writes(id_type, SEED), entry_of(id_type, Metric.L2)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        large = write.upsert(range(20, 620))  # makes the id index grow
        if failing is placed_at_the_last:  # into the table that stays
            large = write.upsert(range(20, 100))
        with monkeypatch.context() as patched:
            patched.setattr(step, failing)
            (outcome,) = collection.writes.apply([large])
        assert isinstance(outcome, WritesStopped)
        check_contents(collection, contents)
        assert collection.reads.count(large.ids) == 10
        for later in (large, write.upsert([20, 40]), write.delete([3, 40])):
            (outcome,) = collection.writes.apply([later])
            assert isinstance(outcome, WritesStopped)
        check_contents(collection, contents)
    contents = contents.after(large)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(10, 50)), write.delete([3]))
        check_contents(collection, contents)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        check_contents(collection, contents)


# ---- bytes that change --------------------------------------------------------------------------


def collection_directory(path: Path) -> Path:
    """Return the directory of the collection in a data directory."""
    return path / "collections" / "words"


def index_files(path: Path) -> list[Path]:
    """Return the index files in a data directory."""
    return sorted(collection_directory(path).glob("index-*"))


def flip_bit(path: Path, at: int) -> None:
    """Change one bit of a file in its place, where a memory map of it shows the change."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0b100]))


@pytest.mark.parametrize("row", [0, 17, 29])
def test_a_changed_bit_in_a_row_is_named_when_the_row_is_read_and_at_the_start(
    tmp_path: Path, row: int
) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    whole_page = (0, 10_000, WHOLE_ROWS)
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        flip_bit(collection_directory(path) / "rows-0.f32", row * DIM * 4 + 9)
        found = f"id {write.ids([row])[0]!r} "
        with pytest.raises(RowsDamaged, match=found):
            collection.reads.get(write.ids([row]), WHOLE_ROWS)
        with pytest.raises(RowsDamaged, match=found):
            collection.reads.list_rows(*whole_page)
        query = np.zeros((1, DIM), dtype=np.float32)
        request = SearchRequest(collection="words", queries=query, k=30, include=WHOLE_ROWS)
        result = collection.reads.search(request)
        assert result.hits.counts.tolist() == [29]
        (receipt,) = result.receipt.shards
        assert (receipt.rows_visible, receipt.rows_damaged) == (29, 1)
        others = write.ids([number for number in range(30) if number != row])
        rows = collection.reads.get(others, WHOLE_ROWS)
        assert rows.vectors is not None
        for id_, vector in zip(rows.ids.tolist(), rows.vectors, strict=True):
            assert vector.tobytes() == contents.rows[id_][0]
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.snapshot.damaged.tolist() == [row]


def test_a_changed_bit_in_a_dead_row_harms_nobody(tmp_path: Path) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        contents = applied(collection, contents, write.delete([17]))
    flip_bit(collection_directory(path) / "rows-0.f32", 17 * DIM * 4)
    with opened(Disk(), path, ENTRY) as collection:
        check_contents(collection, contents)


def changed(path: Path) -> None:
    """Change a bit in the middle of a file."""
    flip_bit(path, path.stat().st_size // 2)


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [changed, cut, Path.unlink], ids=["changed", "cut", "missing"])
def test_rows_of_a_harmed_index_file_are_buffered_and_trained_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
        build_index(collection, now)
        contents = applied(collection, contents, write.delete([7]), write.upsert([8, 9]))
        collection.maintenance.checkpoint()
    (index_file,) = index_files(path)
    harm(index_file)
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.describe().state is ShardState.BUFFERING
        assert collection.reads.ledger().buffered == len(contents.rows)
        check_contents(collection, contents)
        assert collection.maintenance.training_due
        build_index(collection, now)
        check_contents(collection, contents)
        collection.maintenance.checkpoint()
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.ledger().indexed == len(contents.rows)
        check_contents(collection, contents)
        assert len(index_files(path)) == 1


def test_rows_newer_than_the_index_file_are_buffered(tmp_path: Path) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
        build_index(collection, now)
        collection.maintenance.checkpoint()
        contents = applied(collection, contents, write.upsert(range(90, 130)), write.delete([0]))
        absorb(collection)
        assert collection.reads.ledger().buffered == 0
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.describe().state is ShardState.TRAINED
        assert collection.reads.ledger().buffered == 40
        check_contents(collection, contents)
        absorb(collection)
        assert collection.reads.ledger().buffered == 0
        check_contents(collection, contents)


# ---- updates of the configuration ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, Overloaded), (errno.EIO, WritesStopped)]
)
def test_an_update_that_the_disk_fails_changes_nothing(
    tmp_path: Path, code: int, error: type[Exception]
) -> None:
    disk, path = FailingDisk(), tmp_path / "shard-0"
    with opened(disk, path, ENTRY) as collection:
        disk.fail("commit", code=code)
        with pytest.raises(error):
            collection.writes.update(0.5)
        assert collection.entry == ENTRY
        if error is WritesStopped:
            with pytest.raises(WritesStopped):
                collection.writes.update(0.5)
        else:
            collection.writes.update(0.6)
    updated = replace(ENTRY, config=replace(ENTRY.config, target_recall=0.6))
    with opened(Disk(), path, ENTRY if error is WritesStopped else updated):
        pass  # `opened` compares what is stored
