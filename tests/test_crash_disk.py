"""The power may fail at any moment: what was acknowledged is there. And: the harness would tell."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.crash_disk import CrashState, FailingDisk, RecordingDisk, changed_sectors
from vectorshard.shard.errors import VectorShardError
from vectorshard.shard.rows.id_column import decode_ids
from vectorshard.shard.storage import row_database, row_file
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes, sum_of
from vectorshard.shard.storage.data_directory import DataDirectory, ShardIdentity
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import Commit, IndexFile
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    Float32Array,
    IdType,
    Metric,
)

DIM = 37
STATES = 200
IDENTITY = ShardIdentity(
    cluster="blue", shard=0, shards_total=1, slots=((0, 4095),), placement_epoch=1
)
ENTRY = CollectionEntry(
    config=CollectionConfig(name="words", dim=DIM, metric=Metric.L2, id_type=IdType.INT64),
    incarnation="1f",
)


@dataclass(frozen=True)
class Acknowledged:
    """Rows below `rows` are there, with metadata; those of `deleted` are dead."""

    rows: int
    deleted: tuple[int, ...]


def vectors_of(first_row: int, rows: int) -> Float32Array:
    numbers = np.arange(first_row * DIM, (first_row + rows) * DIM, dtype=np.float32)
    return numbers.reshape(rows, DIM) + 0.5


def metadata_of(row: int) -> bytes:
    return b"\0row %d" % row if row % 3 else b""


def commit_of(first_row: int, rows: int, deleted: tuple[int, ...]) -> Commit:
    numbers = np.arange(first_row, first_row + rows)
    metadata = [metadata_of(row) for row in numbers.tolist()]
    vectors = vectors_of(first_row, rows)
    return Commit(
        first_row=first_row,
        ids=numbers * 10,
        content_hashes=content_hashes(numbers * 10, metadata, vectors),
        range_crc32c=checksum(vectors.view(np.uint8)),
        squared_norms=np.ones(rows, dtype=np.float32),
        metadata=dict(zip(numbers.tolist(), metadata, strict=True)),
        replaced=np.zeros(0, dtype=np.int64),
        deleted=np.array(deleted, dtype=np.int64),
        dead_sum=sum(
            sum_of(content_hashes(np.array([row * 10]), [metadata_of(row)], vectors_of(row, 1)))
            for row in deleted
        ),
    )


Write = Callable[[RecordingDisk, RowFile, RowStore, Commit, object], None]


def write(
    disk: RecordingDisk, rows: RowFile, store: RowStore, commit: Commit, event: object
) -> None:
    """Append, commit, acknowledge: the order that everything rests on."""
    rows.append(commit.first_row, vectors_of(commit.first_row, len(commit.ids)))
    store.commit(commit)
    disk.mark(event)


def write_history(disk: RecordingDisk, write: Write = write) -> None:
    """Write a small life: create a collection, write, close, write again, and drop its twin.

    The log is checkpointed and begun anew several times, one commit fails, and an index file is
    replaced.
    """
    directory = DataDirectory.open(disk, disk.root / "shard-0", IDENTITY)
    for name in ("words", "twin"):
        with directory.creating_collection(name, f"incarnation-of-{name}") as building:
            RowStore.create(disk, building, ENTRY).close()
            RowFile.open(disk, building / "rows-0.f32", DIM).close()
        disk.mark(f"created {name}")
    random = Random(5)
    written = 0
    deleted: tuple[int, ...] = ()
    for life in range(2):
        path = directory.collection_directory("words")
        store = RowStore.open(disk, path)
        store.start_writing(session=life + 1)
        rows = RowFile.open(disk, path / "rows-0.f32", DIM)
        for step in range(12):
            new = random.choice([0, 1, 7, 40])
            row = random.randrange(written) if written and step % 2 else None
            dies = () if row is None or row in deleted else (row,)
            if step == 5:
                disk.fail("commit", code=errno.ENOSPC)
                with pytest.raises(sqlite3.OperationalError):
                    write(disk, rows, store, commit_of(written, 9, ()), "never")
            written, deleted = written + new, deleted + dies
            acknowledged = Acknowledged(written, deleted)
            write(disk, rows, store, commit_of(written - new, new, dies), acknowledged)
            if step == 8:
                set_index_file(disk, store, path, life)
        store.close()
        rows.close()
        if life == 0:
            disk.mark("dropping twin")
            directory.drop_collection("twin", "1f")
            disk.mark("dropped twin")
    directory.close()


def set_index_file(disk: RecordingDisk, store: RowStore, path: Path, generation: int) -> None:
    contents = bytes([generation]) * 3_000
    old = store.index_file
    new = IndexFile(
        name=f"index-{generation}-0.faiss",
        generation=generation,
        absorbed_until=0,
        rows_skipped=0,
        crc32c=checksum(contents),
        file_bytes=len(contents),
        live_when_trained=0,
        rows_trained_on=0,
        trained_at=0.0,
        training_s=0.0,
        calibration=(),
    )
    disk.write_new_file(path / new.name, contents)
    store.set_index_file(new)
    disk.mark(new)
    if old is not None:
        disk.remove(path / old.name)


class HurriedDisk(Disk):
    """Syncs nothing: to look at a crash's remains, which are thrown away."""

    def sync(self, file: DiskFile) -> None:
        pass

    def sync_directory(self, path: Path) -> None:
        pass

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.execute("PRAGMA synchronous = OFF")
        return connection


def check(state: CrashState, directory: Path) -> None:
    """Start on what a crash left, and look for everything that was acknowledged."""
    directory.mkdir()
    state.materialise(directory)
    shard = DataDirectory.open(HurriedDisk(), directory / "shard-0", IDENTITY)
    collections = {path.name: path for path in shard.collection_directories()}
    try:
        for name in ("words", "twin"):
            if f"created {name}" in state.marks and f"dropping {name}" not in state.marks:
                assert name in collections
        if "dropped twin" in state.marks:
            assert "twin" not in collections
        for path in collections.values():
            check_collection(path, state.marks if path.name == "words" else [])
    finally:
        shard.close()


def check_collection(path: Path, marks: list[object]) -> None:
    store = RowStore.open(HurriedDisk(), path)
    rows = RowFile.open_existing(HurriedDisk(), path / store.row_file, DIM)
    try:
        stored = store.load()
        store.start_writing()
        rows.require(stored.rows)
        numbers = np.arange(stored.rows)
        ids = [decode_ids(IdType.INT64, blob, count) for blob, count in stored.ids]
        found = content_hashes(
            np.concatenate([np.zeros(0, np.int64), *ids]),
            store.metadata(numbers),
            rows.view(stored.rows),
        )
        np.testing.assert_array_equal(found, stored.content_hashes)
        np.testing.assert_array_equal(rows.view(stored.rows), vectors_of(0, stored.rows))
        assert store.metadata(numbers) == [metadata_of(row) for row in numbers.tolist()]
        for mark in marks:
            if isinstance(mark, Acknowledged):
                assert stored.rows >= mark.rows
                assert set(mark.deleted) <= set(stored.deleted.tolist())
        check_index_file(path, store.index_file, marks)
    finally:
        store.close()
        rows.close()


def check_index_file(path: Path, found: IndexFile | None, marks: list[object]) -> None:
    generations = [mark.generation for mark in marks if isinstance(mark, IndexFile)]
    assert not generations or (found is not None and found.generation >= generations[-1])
    if found is not None:
        assert checksum((path / found.name).read_bytes()) == found.crc32c


def check_states(disk: RecordingDisk, directory: Path, states: int = STATES) -> None:
    for number, state in enumerate(disk.crash_states(Random(11), states)):
        try:
            check(state, directory / str(number))
        except BaseException as error:
            error.add_note(repr(state))
            raise


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files grow, and logs be checkpointed, within a small history."""
    monkeypatch.setattr(row_file, "FIRST_BYTES", 4 * 1024)
    monkeypatch.setattr(row_database, "CHECKPOINT_BYTES", 60 * 1024)


@pytest.fixture
def live(tmp_path: Path) -> Path:
    live = tmp_path / "live"
    live.mkdir()
    return live


def test_every_acknowledged_row_is_there_with_its_checksum_whenever_the_power_fails(
    live: Path, tmp_path: Path
) -> None:
    disk = RecordingDisk(live)
    write_history(disk)
    assert disk.counts["checkpoint"] > 6  # four of them at an open, the others between commits
    check_states(disk, tmp_path)


# ---- the harness tells when the code is wrong ---------------------------------------------------


class WithoutRowSync(RecordingDisk):
    """Leaves out the row file's sync."""

    def sync(self, file: DiskFile) -> None:
        if not file.path.name.startswith("rows"):
            super().sync(file)


class WithoutNewFileSync(RecordingDisk):
    """Leaves out the sync of whole files before they are renamed."""

    def sync(self, file: DiskFile) -> None:
        if not file.path.name.endswith(".new"):
            super().sync(file)


class WithoutDirectorySync(RecordingDisk):
    """Leaves out all syncs of directories."""

    def sync_directory(self, path: Path) -> None:
        pass


class WithoutLogSync(RecordingDisk):
    """Lets SQLite sync its log only at checkpoints."""

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection


@pytest.mark.parametrize(
    "forgetful", [WithoutRowSync, WithoutNewFileSync, WithoutDirectorySync, WithoutLogSync]
)
def test_a_missing_sync_loses_something(
    live: Path, tmp_path: Path, forgetful: type[RecordingDisk]
) -> None:
    disk = forgetful(live)
    write_history(disk)
    with pytest.raises((AssertionError, VectorShardError, OSError)):
        check_states(disk, tmp_path)


def commit_before_append(
    disk: RecordingDisk, rows: RowFile, store: RowStore, commit: Commit, event: object
) -> None:
    store.commit(commit)
    rows.append(commit.first_row, vectors_of(commit.first_row, len(commit.ids)))
    disk.mark(event)


def acknowledge_before_commit(
    disk: RecordingDisk, rows: RowFile, store: RowStore, commit: Commit, event: object
) -> None:
    rows.append(commit.first_row, vectors_of(commit.first_row, len(commit.ids)))
    disk.mark(event)
    store.commit(commit)


@pytest.mark.parametrize("wrong", [commit_before_append, acknowledge_before_commit])
def test_a_wrong_order_loses_something(live: Path, tmp_path: Path, wrong: Write) -> None:
    disk = RecordingDisk(live)
    write_history(disk, wrong)
    with pytest.raises((AssertionError, VectorShardError)):
        check_states(disk, tmp_path)


# ---- the harness itself -------------------------------------------------------------------------


def outcomes(disk: RecordingDisk, tmp_path: Path, moment: int) -> set[bytes | None]:
    """Return what `file` may hold after a crash at a moment, None when it is not there."""
    found: set[bytes | None] = set()
    for seed in range(60):
        directory = tmp_path / f"{moment}-{seed}"
        directory.mkdir()
        CrashState(tuple(disk.operations), moment, seed).materialise(directory)
        file = directory / "file"
        found.add(file.read_bytes() if file.exists() else None)
    return found


def test_an_unsynced_write_is_kept_dropped_or_torn_and_a_synced_one_is_certain(
    live: Path, tmp_path: Path
) -> None:
    disk = RecordingDisk(live)
    file = disk.open(live / "file")
    disk.sync_directory(live)
    disk.write(file, 256, b"a" * 768)
    unsynced = len(disk.operations)
    disk.sync(file)
    whole = bytes(256) + b"a" * 768
    assert outcomes(disk, tmp_path, unsynced - 1) == {b""}
    assert outcomes(disk, tmp_path, unsynced) == {
        b"",
        whole,
        whole[:512],
        bytes(512) + b"a" * 512,
    }
    assert outcomes(disk, tmp_path, unsynced + 1) == {whole}


def test_a_length_is_certain_once_it_is_synced(live: Path, tmp_path: Path) -> None:
    disk = RecordingDisk(live)
    file = disk.open(live / "file")
    disk.sync_directory(live)
    disk.extend(file, 100)
    unsynced = len(disk.operations)
    disk.sync(file)
    assert outcomes(disk, tmp_path, unsynced) == {b"", bytes(100)}
    assert outcomes(disk, tmp_path, unsynced + 1) == {bytes(100)}


def test_entries_are_certain_once_their_directory_is_synced(live: Path, tmp_path: Path) -> None:
    disk = RecordingDisk(live)
    disk.write_new_file(live / "file", b"old")
    certain = len(disk.operations)
    disk.write_new_file(live / "file", b"new")
    renamed = len(disk.operations) - 1
    disk.remove(live / "file")
    removed = len(disk.operations)
    disk.sync_directory(live)
    assert outcomes(disk, tmp_path, certain) == {b"old"}
    assert outcomes(disk, tmp_path, renamed) == {b"old", b"new"}
    assert outcomes(disk, tmp_path, removed) == {b"new", None}
    assert outcomes(disk, tmp_path, removed + 1) == {None}


def test_a_commit_is_certain_once_it_returned_and_until_then_it_is_there_or_not(
    live: Path, tmp_path: Path
) -> None:
    disk = RecordingDisk(live)
    connection = disk.connect(live / "db")
    disk.sync_directory(live)
    for statement in ("CREATE TABLE numbers (number)", "INSERT INTO numbers VALUES (1)"):
        connection.execute("BEGIN")
        connection.execute(statement)
        before = len(disk.operations)
        disk.commit(connection)

    def numbers(moment: int, seed: int) -> int:
        directory = tmp_path / f"{moment}-{seed}"
        directory.mkdir()
        CrashState(tuple(disk.operations), moment, seed).materialise(directory)
        found = Disk().connect(directory / "db")
        ((count,),) = found.execute("SELECT count(*) FROM numbers").fetchall()
        found.close()
        return int(count)

    assert len(disk.operations) - before == 2  # what was written, and the sync
    assert {numbers(before, seed) for seed in range(20)} == {0}
    assert {numbers(before + 1, seed) for seed in range(20)} == {0, 1}
    assert {numbers(before + 2, seed) for seed in range(20)} == {1}


def test_a_state_is_rebuilt_alike_from_its_seed(live: Path, tmp_path: Path) -> None:
    disk = RecordingDisk(live)
    write_history(disk)
    (state,) = disk.crash_states(Random(3), 1)
    trees = []
    for number in range(2):
        directory = tmp_path / str(number)
        directory.mkdir()
        state.materialise(directory)
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        trees.append([(path.relative_to(directory), path.read_bytes()) for path in files])
    assert trees[0] == trees[1]


def test_after_the_last_operation_and_its_syncs_the_state_is_the_directory(
    live: Path, tmp_path: Path
) -> None:
    disk = RecordingDisk(live)
    write_history(disk)
    directory = tmp_path / "rebuilt"
    directory.mkdir()
    for path in [live, *live.rglob("*")]:
        if path.is_dir():
            disk.sync_directory(path)
    CrashState(tuple(disk.operations), len(disk.operations), 0).materialise(directory)
    for path in live.rglob("*"):
        if path.is_file() and path.name != "LOCK":  # which nobody needs after a crash
            assert (directory / path.relative_to(live)).read_bytes() == path.read_bytes()


@given(
    before=st.binary(max_size=3_000),
    after=st.binary(min_size=1, max_size=3_000),
    grown=st.integers(0, 3_000),
)
def test_the_changed_sectors_turn_one_image_into_the_other(
    before: bytes, after: bytes, grown: int
) -> None:
    after = (after + before[len(after) :]).ljust(grown, b"\0")
    rebuilt = bytearray(before)
    for offset, contents in changed_sectors(before, after):
        assert offset % 512 == 0
        rebuilt.extend(bytes(max(0, offset + len(contents) - len(rebuilt))))
        rebuilt[offset : offset + len(contents)] = contents
    assert rebuilt == after


def test_a_failing_write_leaves_half_of_it(tmp_path: Path) -> None:
    disk = FailingDisk()
    file = disk.open(tmp_path / "file")
    disk.fail("write", after=1, code=errno.ENOSPC)
    disk.write(file, 0, b"whole")
    with pytest.raises(OSError, match="No space left"):
        disk.write(file, 5, b"half")
    assert (tmp_path / "file").read_bytes() == b"wholeha"


def test_an_operation_waits_before_it_is_done_until_the_delay_is_taken_away(tmp_path: Path) -> None:
    disk = FailingDisk()
    waits: list[int] = []
    disk.delay("sync", lambda: waits.append(1))
    file = disk.open(tmp_path / "file")
    disk.sync(file)
    disk.sync(file)
    disk.delay("sync", None)
    disk.sync(file)
    assert (len(waits), disk.counts["sync"]) == (2, 3)
