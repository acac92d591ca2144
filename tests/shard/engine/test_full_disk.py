"""A shard on a disk that is really full: it starts, serves reads, and a drop makes room."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.crash_disk import FailingDisk, Kind
from tests.shard.samples import (
    NEVER,
    SMALL_ENGINE,
    config_of,
    corpus_of,
    int64s,
    open_collection,
    open_shard,
    poll_until,
    some_vectors,
    write,
)
from tests.tiny_disk import fill, needs_mount, tiny_disk
from vectorshard.shard.config import CompactionConfig, EngineConfig, MachineConfig
from vectorshard.shard.engine import background
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import Overloaded
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.room import PutOff
from vectorshard.shard.types import (
    DeleteRequest,
    Effort,
    GetRequest,
    Include,
    SearchRequest,
    UpsertRequest,
)

ROWS = 200

NO_RESERVE: EngineConfig = replace(SMALL_ENGINE, machine=MachineConfig(reserve_bytes=0))


def upsert(name: str, first: int = 0, rows: int = ROWS) -> UpsertRequest:
    """Return rows with metadata to write."""
    metadata = [b"\x0a\x07\x0a\x01n\x12\x02\x08\x00"] * rows
    ids = np.arange(first, first + rows)
    return UpsertRequest(collection=name, ids=ids, vectors=some_vectors(rows), metadata=metadata)


async def check_reads(shard: LocalShard, name: str, rows: int = ROWS) -> None:
    """Assert that all reads of a collection work."""
    search = SearchRequest(
        collection=name,
        queries=some_vectors(ROWS)[:2],
        k=1,
        effort=Effort(exact=True),
        include=Include(metadata=True),
    )
    assert (await shard.search(search)).hits.ids.ravel().tolist() == [0, 1]
    got = await shard.get(
        GetRequest(collection=name, ids=int64s(7, 8), include=Include(metadata=True, vectors=True))
    )
    assert got.ids.tolist() == [7, 8]
    assert (await shard.describe(name)).shards[0].ledger.accepted == rows


@needs_mount
async def test_a_full_disk_is_started_on_and_read_and_a_drop_makes_room(tmp_path: Path) -> None:
    with tiny_disk(tmp_path / "disk", 24 * 1024 * 1024) as mount:
        directory = mount / "shard"
        shard = open_shard(directory, engine=NO_RESERVE)
        for name in ("kept", "dropped"):
            await shard.create_collection(config_of(name, min_training_size=NEVER))
            await shard.upsert(upsert(name))
        await shard.close()
        fill(mount)

        shard = open_shard(directory, engine=NO_RESERVE)
        for name in ("kept", "dropped"):
            await check_reads(shard, name)
        with pytest.raises(Overloaded, match="the disk is full"):
            await shard.upsert(upsert("kept", first=ROWS))
        with pytest.raises(Overloaded, match="the disk is full"):
            await shard.create_collection(config_of("new"))
        await check_reads(shard, "kept")
        await shard.drop_collection("dropped")
        await shard.upsert(upsert("kept", first=ROWS))
        await check_reads(shard, "kept", 2 * ROWS)
        await shard.close()

        shard = open_shard(directory, engine=NO_RESERVE)
        assert [entry.config.name for entry in await shard.list_collections()] == ["kept"]
        await check_reads(shard, "kept", 2 * ROWS)
        await shard.close()


@needs_mount
async def test_the_reserve_refuses_upserts_and_creations_before_the_disk_is_full(
    tmp_path: Path,
) -> None:
    with tiny_disk(tmp_path / "disk", 24 * 1024 * 1024) as mount:
        reserve = MachineConfig(reserve_bytes=12 * 1024 * 1024, reserve_share=1.0)
        engine = replace(SMALL_ENGINE, machine=reserve)
        shard = open_shard(mount / "shard", engine=engine)
        await shard.create_collection(config_of("kept", min_training_size=NEVER))
        await shard.upsert(upsert("kept"))
        assert list(await shard.problems()) == []
        await shard.close()
        (mount / "filler").write_bytes(bytes(13 * 1024 * 1024))

        shard = open_shard(mount / "shard", engine=engine)
        for change in (
            shard.upsert(upsert("kept", first=ROWS)),
            shard.create_collection(config_of("new")),
        ):
            with pytest.raises(Overloaded, match="the server keeps 12 MB"):
                await change
        (problem,) = await shard.problems()
        assert problem.kind is ProblemKind.DISK_FULL
        deleted = await shard.delete(DeleteRequest(collection="kept", ids=int64s(3)))
        assert deleted.deleted == 1
        (mount / "filler").unlink()
        await shard.close()
        shard = open_shard(mount / "shard", engine=engine)
        await shard.upsert(upsert("kept", first=ROWS))
        await shard.close()


@needs_mount
async def test_work_in_the_background_leaves_deletes_their_room_and_goes_on_once_there_is_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "LOOK_S", 0.05)
    monkeypatch.setattr(background, "IDLE_S", 0.05)
    reserve = MachineConfig(reserve_bytes=8 * 1024 * 1024, reserve_share=1.0)
    compaction = CompactionConfig(dead_rows_min=100, dead_share=0.1)
    engine = replace(SMALL_ENGINE, machine=reserve, compaction=compaction)
    with tiny_disk(tmp_path / "disk", 24 * 1024 * 1024) as mount, capture_logs() as logged:
        shard = open_shard(mount / "shard", engine=engine)
        await shard.create_collection(config_of("kept", dim=256, min_training_size=NEVER))
        vectors = np.ones((4_000, 256), dtype=np.float32)
        rows = UpsertRequest(collection="kept", ids=np.arange(4_000), vectors=vectors)
        await shard.upsert(rows)
        filler = mount / "filler"
        free, _ = Disk().free_bytes(mount)
        filler.write_bytes(bytes(free - 6 * 1024 * 1024))
        for first in range(0, 1_000, 250):
            ids = np.arange(first, first + 250)
            assert (await shard.delete(DeleteRequest(collection="kept", ids=ids))).deleted == 250
        directory = mount / "shard" / "collections" / "kept"
        poll_until(lambda: bool(put_off(logged)))
        assert (directory / "rows-0.f32").exists()
        assert Disk().free_bytes(mount)[0] > 4 * 1024 * 1024
        filler.unlink()
        poll_until(lambda: not (directory / "rows-0.f32").exists())
        await shard.close()
    assert [entry["log_level"] for entry in put_off(logged)] == ["warning", "info"]
    assert not [entry for entry in logged if "failed" in entry["event"]]


def put_off(logged: Sequence[Mapping[str, object]]) -> list[Mapping[str, object]]:
    """Return what was logged of compactions that were put off, and done later."""
    return [entry for entry in logged if entry.get("work") == "compaction"]


@pytest.mark.parametrize("kind", ["write", "commit"])
def test_an_index_file_that_has_no_room_is_removed_at_once_and_written_later(
    tmp_path: Path, kind: Kind
) -> None:
    disk = FailingDisk()
    collection = open_collection(tmp_path, disk=disk)
    write(collection, corpus_of(200))
    build_index(collection, lambda: 0.0)
    disk.fail(kind, code=errno.ENOSPC)
    with capture_logs() as logged, pytest.raises(PutOff):
        collection.maintenance.checkpoint()
    assert [entry["event"] for entry in logged] == ["background work put off"]
    assert not list(tmp_path.glob("index-*"))
    assert not collection.maintenance.checkpoint_due
    collection.maintenance.checkpoint_at_close()
    assert not list(tmp_path.glob("index-*"))
    collection.state.room._clock = lambda: math.inf
    assert collection.maintenance.checkpoint_due
    collection.maintenance.checkpoint()
    assert len(list(tmp_path.glob("index-*"))) == 1
    collection.close()
