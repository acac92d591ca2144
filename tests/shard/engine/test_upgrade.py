"""A collection of the last format is brought up to date at its first start, or stays as it was."""

from __future__ import annotations

import errno
import shutil
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.crash_disk import FailingDisk, Kind
from vectorshard.shard.config import BufferConfig, EngineConfig
from vectorshard.shard.engine import state
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import RowFileCorrupt, RowsDamaged, WritesStopped
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes, sum_bytes, sum_of
from vectorshard.shard.storage.disk import DISK_ERRORS, Disk
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.types import DeleteRequest, Include

ARCHIVE = Path(__file__).parents[2] / "fixtures" / "data_directory_0a911ab.tar.gz"
QUIET = EngineConfig(buffer=BufferConfig(absorb_rows=100_000))
DIM = 8


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("archive")
    with tarfile.open(ARCHIVE) as contents:
        contents.extractall(directory, filter="data")
    return directory


@pytest.fixture(params=["closed/words", "killed/words", "killed/points"])
def old(request: pytest.FixtureRequest, archive: Path, tmp_path: Path) -> Path:
    """A collection's directory, as the last release left it."""
    state_, name = request.param.split("/")
    return Path(
        shutil.copytree(archive / state_ / "shard-0" / "collections" / name, tmp_path / name)
    )


def opened(directory: Path, disk: Disk | None = None) -> Collection:
    return Collection.open(disk or Disk(), directory, 0, QUIET)


def told(collection: Collection) -> dict[str, Any]:
    """Return what callers see of a collection."""
    page, _ = collection.reads.list_rows(0, 10_000, Include(vectors=True, metadata=True))
    assert page.vectors is not None
    return {
        "ids": page.ids.tolist(),
        "vectors": page.vectors.tobytes(),
        "metadata": page.metadata,
        "ledger": collection.reads.ledger(),
        "sum": collection.state.row_store.sum,
    }


def version_of(directory: Path) -> int:
    with closing(sqlite3.connect(directory / "store.db")) as connection:
        ((version,),) = connection.execute("PRAGMA user_version").fetchall()
        return int(version)


def test_every_row_gets_its_hash_and_every_record_its_range(old: Path) -> None:
    with closing(opened(old)) as collection:
        snapshot = collection.snapshot
        live = snapshot.tombstones.live_rows(0, snapshot.rows)
        hashes = content_hashes(
            snapshot.ids_of(live),
            collection.state.row_store.metadata(live),
            snapshot.vectors_of(live),
        )
        np.testing.assert_array_equal(snapshot.content_hashes_of(live), hashes)
        assert collection.state.row_store.sum == sum_bytes(sum_of(hashes))
        before, row_file = told(collection), collection.state.row_store.row_file
    assert version_of(old) == 3
    vectors = np.fromfile(old / row_file, dtype=np.uint8)
    at = 0
    with closing(sqlite3.connect(old / "store.db")) as connection:
        kept = "SELECT length(row_numbers) / 8, range_crc32c FROM kept ORDER BY first_row"
        commits = "SELECT rows, range_crc32c FROM commits ORDER BY sequence"
        for select in (kept, commits):
            for rows, range_crc32c in connection.execute(select):
                end = at + rows * DIM * 4
                assert checksum(vectors[at:end]) == range_crc32c
                at = end
    with closing(opened(old)) as collection:  # which verifies all records
        assert told(collection) == before


def test_a_second_start_upgrades_nothing(old: Path) -> None:
    opened(old).close()
    disk = FailingDisk()
    opened(old, disk).close()
    assert disk.counts.get("commit", 0) == disk.counts.get("rename", 0) == 0


KINDS: list[Kind] = [
    "connect",
    "checkpoint",
    "open",
    "write",
    "sync",
    "rename",
    "sync_directory",
    "write_mark",
    "commit",
]


@pytest.fixture
def killed(archive: Path, tmp_path: Path) -> Path:
    """A compacted collection's directory, with a log."""
    source = archive / "killed" / "shard-0" / "collections" / "words"
    return Path(shutil.copytree(source, tmp_path / "killed"))


@pytest.fixture(scope="module")
def expected(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What callers must see of it."""
    source = archive / "killed" / "shard-0" / "collections" / "words"
    twin = Path(shutil.copytree(source, tmp_path_factory.mktemp("twin") / "words"))
    with closing(opened(twin)) as collection:
        return told(collection)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_an_upgrade_that_fails_half_way_is_repeated(
    killed: Path, expected: dict[str, Any], kind: Kind, code: int
) -> None:
    for after in range(20):
        disk = FailingDisk()
        disk.fail(kind, after=after, code=code)
        try:
            opened(killed, disk).close()
        except (*DISK_ERRORS, WritesStopped):
            assert version_of(killed) in {2, 3}
        else:
            break
    else:
        pytest.fail("it failed each time")
    with closing(opened(killed)) as collection:
        assert told(collection) == expected


def test_an_upgrade_that_a_crash_interrupts_leaves_the_last_format(
    killed: Path, tmp_path: Path, expected: dict[str, Any]
) -> None:
    """The process is gone in the middle of the transaction, after each of its statements."""
    crashes: list[Path] = []

    def crash(_: str) -> None:
        crashes.append(Path(shutil.copytree(killed, tmp_path / f"crash-{len(crashes)}")))

    class CrashingDisk(Disk):
        def connect(self, path: Path) -> sqlite3.Connection:
            connection = super().connect(path)
            connection.execute("PRAGMA cache_size = 1")  # pages go to the log before the commit
            connection.set_trace_callback(crash)
            return connection

    opened(killed, CrashingDisk()).close()
    versions = [version_of(directory) for directory in crashes]
    assert versions == sorted(versions)
    assert versions.count(2) > 15
    for directory in crashes:
        with closing(opened(directory)) as collection:
            assert told(collection) == expected


def test_a_row_that_was_damaged_stays_so_and_may_be_deleted(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 5)
    old = Path(
        shutil.copytree(archive / "closed" / "shard-0" / "collections" / "points", tmp_path / "p")
    )
    store = RowStore.open(Disk(), old)
    dead = np.concatenate([store.load().replaced, store.load().deleted]).tolist()
    store.close()
    row = next(row for row in range(100) if row not in dead)
    contents = bytearray((old / "rows-0.f32").read_bytes())
    contents[row * DIM * 4] ^= 1
    (old / "rows-0.f32").write_bytes(contents)
    for _ in range(2):
        with closing(opened(old)) as collection:
            ids = collection.snapshot.ids_of(np.array([row]))
            with pytest.raises(RowsDamaged, match=f"id {ids[0]} "):
                told(collection)
            assert collection.snapshot.damaged.tolist() == [row]
    with closing(opened(old)) as collection:
        collection.writes.apply([DeleteRequest(collection="points", ids=ids)])
        after = told(collection)
    with closing(opened(old)) as collection:
        assert told(collection) == after


def test_newest_rows_that_are_damaged_stop_the_upgrade_and_nothing_changes(old: Path) -> None:
    path = next(old.glob("rows-*"))
    path.write_bytes(bytes(byte ^ 1 for byte in path.read_bytes()))
    before = {each.name: each.read_bytes() for each in old.iterdir() if each.suffix != ".db-shm"}
    with pytest.raises(RowFileCorrupt):
        opened(old)
    after = {each.name: each.read_bytes() for each in old.iterdir() if each.suffix != ".db-shm"}
    assert {"store.db-wal": b"", **after} == {"store.db-wal": b"", **before}


def test_version_1_is_upgraded_too(archive: Path, tmp_path: Path) -> None:
    """It is version 2 without `kept`."""
    old = Path(
        shutil.copytree(archive / "closed" / "shard-0" / "collections" / "points", tmp_path / "p")
    )
    twin = Path(shutil.copytree(old, tmp_path / "twin"))
    with closing(sqlite3.connect(old / "store.db")) as connection:
        connection.execute("DROP TABLE kept")
        connection.execute("PRAGMA user_version = 1")
    with closing(opened(old)) as collection, closing(opened(twin)) as other:
        assert told(collection) == told(other)
    assert version_of(old) == 3
