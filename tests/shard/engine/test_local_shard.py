"""A shard and its data directory; what many implementations share is in tests/conformance."""

from __future__ import annotations

import asyncio
import errno
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import pytest_asyncio

from tests.crash_disk import FailingDisk, Kind
from tests.shard.samples import (
    DEADLINE_S,
    SMALL_ENGINE,
    Corpus,
    TrainingGate,
    config_of,
    corpus_of,
    identity_of,
    ids_of,
    int64s,
    open_shard,
    poll_until,
    some_vectors,
)
from vectorshard.shard.config import SLOTS_TOTAL, BufferConfig, Limits
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.engine.reads import recommended_batch_size
from vectorshard.shard.errors import (
    CollectionNotFound,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DiskFailed,
    Overloaded,
    PlacementMismatch,
    RowsDamaged,
    ShardUnavailable,
    WritesStopped,
)
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.storage.disk import Bytes, Disk
from vectorshard.shard.types import (
    DeleteRequest,
    Effort,
    GetRequest,
    IdType,
    Role,
    SearchRequest,
    ShardState,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

T = TypeVar("T")

LOWER_HALF = ((0, SLOTS_TOTAL // 2 - 1),)


@pytest_asyncio.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    """A shard that owns all slots, with an empty collection."""
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    yield shard
    await shard.close()


async def put(shard: LocalShard, corpus: Corpus) -> UpsertResult:
    request = UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors)
    return await shard.upsert(request)


async def found(shard: LocalShard, corpus: Corpus) -> list[int | str]:
    """Return the nearest id to each row of a corpus, by an exact search."""
    request = SearchRequest(
        collection="words", queries=corpus.vectors, k=1, effort=Effort(exact=True)
    )
    ids: list[int | str] = (await shard.search(request)).hits.ids.tolist()
    return ids


def files(path: Path, pattern: str) -> list[Path]:
    """Return the files below a data directory whose names match."""
    return list(path.rglob(pattern))


def the_file(path: Path, pattern: str) -> Path:
    """Return the only such file."""
    (file,) = files(path, pattern)
    return file


async def state_of(shard: LocalShard) -> ShardState:
    return (await shard.describe("words")).shards[0].state


# ---- placement ----------------------------------------------------------------------------------


@pytest.mark.parametrize("id_type", list(IdType))
async def test_rows_of_other_shards_are_refused_and_none_is_written(
    tmp_path: Path, id_type: IdType
) -> None:
    shard = open_shard(tmp_path, identity=identity_of(3, 5, LOWER_HALF))
    await shard.create_collection(config_of(id_type=id_type))
    ids = ids_of(id_type, range(100))
    own = slots_of(ids) < SLOTS_TOTAL // 2
    with pytest.raises(PlacementMismatch, match=f"row {own.argmin()} belongs to slot .* shard 3"):
        await put(shard, Corpus(ids, some_vectors(100)))
    assert (await shard.describe("words")).ledger.accepted == 0
    result = await put(shard, Corpus(ids[own], some_vectors(int(own.sum()))))
    assert result.accepted == own.sum() > 0
    assert result.token.sequences == {3: 1}
    await shard.close()


async def test_a_shard_says_who_it_is(tmp_path: Path) -> None:
    shard = open_shard(tmp_path, identity=identity_of(3, 5, LOWER_HALF))
    topology = await shard.topology()
    assert (topology.role, topology.cluster, topology.placement_epoch) == (Role.SHARD, "cluster", 1)
    assert [(placed.shard, placed.slots) for placed in topology.shards] == [(3, LOWER_HALF)]
    await shard.close()


# ---- the data directory -------------------------------------------------------------------------


async def test_a_directory_in_use_is_refused_and_free_again_after_close(tmp_path: Path) -> None:
    shard = open_shard(tmp_path)
    with pytest.raises(DataDirectoryLocked):
        open_shard(tmp_path)
    await shard.close()
    await open_shard(tmp_path).close()


async def test_another_shards_directory_is_refused_and_left_free(tmp_path: Path) -> None:
    await open_shard(tmp_path).close()
    for stranger in (
        identity_of(1, 2),
        identity_of(cluster="other"),
        identity_of(slots=LOWER_HALF),
    ):
        with pytest.raises(DataDirectoryForeign):
            open_shard(tmp_path, identity=stranger)
    await open_shard(tmp_path).close()


async def test_what_was_written_is_there_after_closing_and_opening(tmp_path: Path) -> None:
    corpus = corpus_of(200)
    for turn in range(4):
        shard = open_shard(tmp_path)
        await shard.create_collection(config_of())
        part = corpus.take(slice(50 * turn, 50 * (turn + 1)))
        assert (await put(shard, part)).token.sequences == {0: turn + 1}
        so_far = corpus.take(slice(0, 50 * (turn + 1)))
        assert await found(shard, so_far) == so_far.ids.tolist()
        await shard.close()


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
async def test_rows_of_a_spoiled_index_file_are_buffered_and_trained_again(
    tmp_path: Path, damage: str
) -> None:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of(min_training_size=100))
    corpus = corpus_of(300)
    await put(shard, corpus)
    await shard.train(TrainRequest(collection="words", wait=True))
    await shard.close()
    index_file = the_file(tmp_path, "index-*.faiss")
    contents = bytearray(index_file.read_bytes())
    if damage == "flipped":
        contents[-500] ^= 1
        index_file.write_bytes(contents)
    elif damage == "cut":
        index_file.write_bytes(contents[: len(contents) // 2])
    else:
        index_file.unlink()
    gate = TrainingGate()
    gate.start.clear()
    shard = open_shard(tmp_path, clock=gate)
    description = (await shard.describe("words")).shards[0]
    assert (description.ledger.buffered, description.ledger.indexed) == (300, 0)
    assert await found(shard, corpus) == corpus.ids.tolist()
    gate.open()
    await shard.train(TrainRequest(collection="words", wait=True))
    assert await state_of(shard) is ShardState.TRAINED
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


# ---- collections --------------------------------------------------------------------------------


async def test_there_is_a_bound_on_collections(tmp_path: Path) -> None:
    engine = replace(SMALL_ENGINE, limits=Limits(collections=2))
    shard = open_shard(tmp_path, engine=engine)
    for name in ("a", "b", "a"):
        await shard.create_collection(config_of(name))
    with pytest.raises(Overloaded, match="2 collections"):
        await shard.create_collection(config_of("c"))
    await shard.drop_collection("a")
    await shard.create_collection(config_of("c"))
    await shard.close()


async def test_two_who_create_a_collection_at_once_get_the_same_one(tmp_path: Path) -> None:
    shard = open_shard(tmp_path)
    created = await asyncio.gather(*(shard.create_collection(config_of()) for _ in range(5)))
    assert len({entry.incarnation for entry, _ in created}) == 1
    assert [new for _, new in created].count(True) == 1
    await shard.close()


class HeldDisk(Disk):
    """Holds the writing of index files until it is let go."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.let_go = threading.Event()

    def write_new_file(self, path: Path, contents: Bytes) -> None:
        if path.suffix == ".faiss":
            self.reached.set()
            assert self.let_go.wait(DEADLINE_S)
        super().write_new_file(path, contents)


async def test_a_collection_dropped_while_its_index_is_written_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    disk = HeldDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    await put(shard, corpus_of(200))
    await shard.train(TrainRequest(collection="words", wait=True))
    assert await asyncio.to_thread(disk.reached.wait, DEADLINE_S)
    dropping = asyncio.ensure_future(shard.drop_collection("words"))
    creating = asyncio.ensure_future(shard.create_collection(config_of()))
    ended, _ = await asyncio.wait({dropping, creating}, timeout=0.3)
    assert not ended  # else the file would land among those of the new collection
    disk.let_go.set()
    await dropping
    await creating
    assert await state_of(shard) is ShardState.BUFFERING
    assert not files(tmp_path, "index-*")
    corpus = corpus_of(100, seed=1)
    await put(shard, corpus)
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


async def test_who_waits_for_the_training_of_a_dropped_collection_is_told(tmp_path: Path) -> None:
    gate = TrainingGate()
    gate.start.clear()
    shard = open_shard(tmp_path, clock=gate)
    await shard.create_collection(config_of())
    await put(shard, corpus_of(200))
    request = TrainRequest(collection="words", wait=True)
    trainings = [asyncio.ensure_future(shard.train(request)) for _ in range(2)]
    while not (await shard.describe("words")).shards[0].training:
        assert not trainings[0].done()
    await shard.drop_collection("words")
    gate.open()
    for training in trainings:
        with pytest.raises(CollectionNotFound):
            await asyncio.wait_for(training, DEADLINE_S)
    await shard.close()


async def test_who_waits_for_a_training_when_the_shard_closes_is_told(tmp_path: Path) -> None:
    gate = TrainingGate()
    gate.start.clear()
    shard = open_shard(tmp_path, clock=gate)
    await shard.create_collection(config_of())
    await put(shard, corpus_of(200))
    training = asyncio.ensure_future(shard.train(TrainRequest(collection="words", wait=True)))
    while not (await shard.describe("words")).shards[0].training:
        assert not training.done()
    closing = asyncio.ensure_future(shard.close())
    await asyncio.to_thread(poll_until, lambda: shard._background._stopping)
    gate.open()
    with pytest.raises(ShardUnavailable):
        await asyncio.wait_for(training, DEADLINE_S)
    await closing


# ---- changes of the set of collections whose callers leave, or that fail -------------------------


class Held:
    """Holds a disk's operations of one kind until they are let go."""

    def __init__(self, disk: FailingDisk, kind: Kind) -> None:
        self._reached = threading.Event()
        self._let_go = threading.Event()
        disk.delay(kind, self._wait)

    def _wait(self) -> None:
        self._reached.set()
        assert self._let_go.wait(DEADLINE_S)

    async def reached(self) -> None:
        """Return when the first one waits."""
        assert await asyncio.to_thread(self._reached.wait, DEADLINE_S)

    def let_go(self) -> None:
        """Hold none any more."""
        self._let_go.set()


async def cancelled(task: asyncio.Future[T]) -> None:
    """Let the caller of a task leave."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


CREATING = pytest.mark.parametrize("kind", ["make_directory", "commit", "rename", "sync_directory"])


@CREATING
async def test_a_creation_whose_caller_leaves_runs_to_its_end(tmp_path: Path, kind: Kind) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    held = Held(disk, kind)
    creating = asyncio.ensure_future(shard.create_collection(config_of()))
    await held.reached()
    await cancelled(creating)
    held.let_go()
    _, new = await shard.create_collection(config_of())
    assert not new
    corpus = corpus_of(30)
    await put(shard, corpus)
    await shard.close()
    shard = open_shard(tmp_path)
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


@CREATING
async def test_closing_waits_for_a_creation_whose_caller_has_left(
    tmp_path: Path, kind: Kind
) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    held = Held(disk, kind)
    creating = asyncio.ensure_future(shard.create_collection(config_of()))
    await held.reached()
    await cancelled(creating)
    closing = asyncio.ensure_future(shard.close())
    await asyncio.sleep(0)
    held.let_go()
    await closing
    assert disk.counts["disconnect"] == disk.counts["connect"]  # it lets go of the files
    shard = open_shard(tmp_path)
    _, new = await shard.create_collection(config_of())
    assert not new
    await shard.close()


@pytest.mark.parametrize("kind", ["commit", "rename", "sync_directory"])
async def test_a_drop_whose_caller_leaves_runs_to_its_end(tmp_path: Path, kind: Kind) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    held = Held(disk, kind)
    writing = asyncio.ensure_future(put(shard, corpus_of(30)))
    if kind == "commit":  # the drop waits for the write
        await held.reached()
    else:
        await writing
    dropping = asyncio.ensure_future(shard.drop_collection("words"))
    await asyncio.sleep(0)
    await held.reached()
    await cancelled(dropping)
    held.let_go()
    assert (await writing).accepted == 30
    with pytest.raises(CollectionNotFound):
        await shard.drop_collection("words")
    await shard.close()
    shard = open_shard(tmp_path)
    assert await shard.list_collections() == []
    _, new = await shard.create_collection(config_of())
    assert new
    await shard.close()


@pytest.mark.parametrize("kind", ["rename", "sync_directory"])
async def test_a_collection_whose_drop_failed_is_served_as_before(
    tmp_path: Path, kind: Kind
) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    corpus = corpus_of(200)
    await put(shard, corpus.take(slice(0, 100)))
    disk.fail(kind)
    with pytest.raises(DiskFailed, match="Input/output error"):
        await shard.drop_collection("words")
    await put(shard, corpus.take(slice(100, 200)))
    training = shard.train(TrainRequest(collection="words", wait=True))
    await asyncio.wait_for(training, DEADLINE_S)
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()
    shard = open_shard(tmp_path)
    assert await state_of(shard) is ShardState.TRAINED
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


@pytest.mark.parametrize("kind", ["rename", "sync_directory"])
async def test_a_drop_that_failed_may_be_repeated_and_the_name_used_anew(
    tmp_path: Path, kind: Kind
) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    await put(shard, corpus_of(100))
    disk.fail(kind)
    with pytest.raises(DiskFailed, match="Input/output error"):
        await shard.drop_collection("words")
    await shard.drop_collection("words")
    assert await shard.list_collections() == []
    await shard.create_collection(config_of(dim=4))
    other = corpus_of(50, dim=4, seed=1)
    await put(shard, other)
    await shard.close()
    shard = open_shard(tmp_path)
    assert (await shard.describe("words")).ledger.accepted == 50
    assert await found(shard, other) == other.ids.tolist()
    await shard.close()


# ---- the disk fails -----------------------------------------------------------------------------


async def test_a_full_disk_refuses_writes_until_there_is_room(tmp_path: Path) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    corpus = corpus_of(60)
    await put(shard, corpus.take(slice(0, 30)))
    disk.fail("write", code=errno.ENOSPC)
    with pytest.raises(Overloaded, match="full"):
        await put(shard, corpus.take(slice(30, 60)))
    assert await found(shard, corpus.take(slice(0, 30))) == corpus.ids[:30].tolist()
    assert (await shard.describe("words")).ledger.accepted == 30
    await put(shard, corpus.take(slice(30, 60)))
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


async def test_a_failed_write_stops_writes_until_a_restart_and_reads_go_on(tmp_path: Path) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(config_of())
    corpus = corpus_of(60)
    kept = corpus.take(slice(0, 30))
    await put(shard, kept)
    disk.fail("write", code=errno.EIO)
    for _ in range(2):
        with pytest.raises(WritesStopped, match="restart"):
            await put(shard, corpus.take(slice(30, 60)))
    assert await found(shard, kept) == kept.ids.tolist()
    await shard.close()
    shard = open_shard(tmp_path)
    assert (await shard.describe("words")).ledger.accepted == 30
    await put(shard, corpus)
    assert await found(shard, corpus) == corpus.ids.tolist()
    await shard.close()


async def test_a_row_that_changed_on_disk_is_not_returned(
    shard: LocalShard, tmp_path: Path
) -> None:
    await put(shard, corpus_of(30))
    row_file = the_file(tmp_path, "rows-*.f32")
    with row_file.open("r+b") as file:
        file.seek(7 * 8 * 4)
        file.write(b"\x00\x00\x00\x00")
    with pytest.raises(RowsDamaged, match=f"id {corpus_of(30).ids[7]} "):
        await shard.get(GetRequest(collection="words", ids=corpus_of(30).ids))
    others = corpus_of(30).take(np.flatnonzero(np.arange(30) != 7)).ids
    assert len((await shard.get(GetRequest(collection="words", ids=others))).ids) == 29


# ---- small things -------------------------------------------------------------------------------


async def test_writes_that_wait_share_a_commit(shard: LocalShard) -> None:
    vectors = some_vectors(50)
    results = await asyncio.gather(
        *(put(shard, Corpus(int64s(row), vectors[row : row + 1])) for row in range(50))
    )
    sequences = [result.token.sequences[0] for result in results]
    assert sequences == sorted(sequences)
    assert max(sequences) < 10
    assert (await shard.describe("words")).ledger.accepted == 50


@pytest.mark.parametrize(
    ("dim", "queries"), [(1, 64), (100, 64), (1_024, 64), (2_048, 32), (8_192, 8)]
)
def test_the_recommended_batch_fits_a_cores_cache(dim: int, queries: int) -> None:
    assert recommended_batch_size(dim) == queries


async def test_writers_that_wait_for_their_absorber_hold_up_no_other_collection(
    tmp_path: Path,
) -> None:
    engine = replace(
        SMALL_ENGINE,
        buffer=BufferConfig(absorb_rows=10**6, slow_writers_rows=30, slow_writers_wait_s=1e6),
    )
    shard = open_shard(tmp_path, engine=engine)
    corpus = corpus_of(200)

    async def write(name: str, rows: slice) -> None:
        part = corpus.take(rows)
        await shard.upsert(UpsertRequest(collection=name, ids=part.ids, vectors=part.vectors))

    slow = ["first", "second", "third"]  # more than there are threads that commit
    for name in (*slow, "other"):
        await shard.create_collection(config_of(name))
        await write(name, slice(0, 60))
    for name in slow:
        await shard.train(TrainRequest(collection=name, wait=True))
        await write(name, slice(60, 100))
    waiting = [asyncio.ensure_future(write(name, slice(100, 200))) for name in slow]
    await asyncio.wait_for(write("other", slice(60, 61)), DEADLINE_S)
    assert not any(task.done() for task in waiting)
    deleting = DeleteRequest(collection="other", ids=corpus.ids[:1])
    await asyncio.wait_for(shard.delete(deleting), DEADLINE_S)
    for name in slow:
        await shard.train(TrainRequest(collection=name, wait=True))
    await asyncio.wait_for(asyncio.gather(*waiting), DEADLINE_S)
    await shard.close()


async def test_writers_wait_for_their_absorber_no_longer_than_they_are_told(
    tmp_path: Path,
) -> None:
    engine = replace(
        SMALL_ENGINE,
        buffer=BufferConfig(absorb_rows=10**6, slow_writers_rows=30, slow_writers_wait_s=0.01),
    )
    shard = open_shard(tmp_path, engine=engine)
    await shard.create_collection(config_of())
    corpus = corpus_of(200)
    await put(shard, corpus.take(slice(0, 60)))
    await shard.train(TrainRequest(collection="words", wait=True))
    for first in range(60, 200, 35):
        await asyncio.wait_for(put(shard, corpus.take(slice(first, first + 35))), DEADLINE_S)
    assert (await shard.describe("words")).ledger.buffered == 140
    await shard.close()
