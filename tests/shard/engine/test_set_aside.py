"""A collection that cannot be opened is set aside: its shard serves the others, and says why."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.crash_disk import FailingDisk
from tests.shard.samples import SMALL_ENGINE, config_of, corpus_of, int64s, open_shard
from vectorshard.shard.config import Limits
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.engine import state
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    CollectionUnreadable,
    IncarnationMismatch,
    Overloaded,
)
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.types import (
    Call,
    CountRequest,
    DeleteRequest,
    Float32Array,
    GetRequest,
    ListRequest,
    SearchRequest,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
)

NAMES = ("alpha", "beta", "gamma")
HARMED = "beta"
ROWS = 40
CORPUS = corpus_of(ROWS)


async def closed_shard(path: Path, names: Sequence[str] = NAMES) -> None:
    """Leave a data directory with collections of the same rows."""
    shard = open_shard(path)
    for name in names:
        await shard.create_collection(replace(config_of(), name=name))
        await shard.upsert(upsert_of(name))
    await shard.close()


def upsert_of(name: str) -> UpsertRequest:
    return UpsertRequest(collection=name, ids=CORPUS.ids, vectors=CORPUS.vectors)


def directory_of(path: Path, name: str = HARMED) -> Path:
    return path / "collections" / name


def flip_bits(file: Path) -> None:
    """Change every byte."""
    file.write_bytes(bytes(byte ^ 4 for byte in file.read_bytes()))


def contents_of(directory: Path) -> dict[str, bytes]:
    """Return the files of a directory, without the shared memory and empty log of SQLite."""
    return {
        file.name: file.read_bytes()
        for file in directory.iterdir()
        if not file.name.endswith("-shm") and file.stat().st_size
    }


async def count(shard: LocalShard, name: str) -> int:
    return await shard.count(CountRequest(collection=name))


CALLS: dict[str, Callable[[LocalShard, str], Awaitable[object]]] = {
    "search": lambda shard, name: shard.search(
        SearchRequest(collection=name, queries=CORPUS.vectors[:1], k=1)
    ),
    "get": lambda shard, name: shard.get(GetRequest(collection=name, ids=int64s(1))),
    "count": count,
    "list": lambda shard, name: shard.list_rows(ListRequest(collection=name)),
    "upsert": lambda shard, name: shard.upsert(upsert_of(name)),
    "delete": lambda shard, name: shard.delete(DeleteRequest(collection=name, ids=int64s(1))),
    "update": lambda shard, name: shard.update_collection(
        UpdateRequest(collection=name, target_recall=0.9)
    ),
    "train": lambda shard, name: shard.train(TrainRequest(collection=name)),
    "explain": lambda shard, name: shard.explain(
        ExplainRequest(collection=name, query=CORPUS.vectors[:1], id=int64s(1))
    ),
    "create": lambda shard, name: shard.create_collection(replace(config_of(), name=name)),
}


async def test_one_damaged_collection_of_three_is_set_aside_and_the_others_serve(
    tmp_path: Path,
) -> None:
    await closed_shard(tmp_path)
    (row_file,) = directory_of(tmp_path).glob("rows-*.f32")
    flip_bits(row_file)
    before = contents_of(directory_of(tmp_path))
    with capture_logs() as logs:
        shard = open_shard(tmp_path)
    (told,) = [log for log in logs if log["event"] == "collection set aside"]
    assert (told["collection"], told["shard"], told["state"]) == (HARMED, 0, "damaged")
    for name in NAMES:
        if name != HARMED:
            assert await count(shard, name) == ROWS
            await shard.upsert(upsert_of(name))
    for call in CALLS.values():
        with pytest.raises(CollectionDamaged) as raised:
            await call(shard, HARMED)
        text = str(raised.value)
        assert f"collection '{HARMED}' of shard 0 is set aside" in text
        assert "does not match its content hash" in text
        assert "describe" in text
        assert "restart" in text
        assert "create" not in text
        assert "drop" not in text
        assert str(tmp_path) not in text
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.DAMAGED, HARMED)
    assert problem.text == text
    (described,) = (await shard.describe(HARMED)).shards
    assert described.missing_reason == text
    assert [entry.config.name for entry in await shard.list_collections()] == [*NAMES]
    await shard.close()
    assert contents_of(directory_of(tmp_path)) == before

    flip_bits(row_file)
    shard = open_shard(tmp_path)
    assert await count(shard, HARMED) == ROWS
    assert not await shard.problems()
    assert not (await shard.describe(HARMED)).shards[0].missing_reason
    await shard.close()


async def test_a_collection_whose_configuration_is_unreadable_is_not_listed_and_may_be_dropped(
    tmp_path: Path,
) -> None:
    await closed_shard(tmp_path)
    (directory_of(tmp_path) / "store.db").write_bytes(b"not a database" * 100)
    shard = open_shard(tmp_path)
    with pytest.raises(CollectionDamaged, match=r"store\.db"):
        await shard.describe(HARMED)
    assert [entry.config.name for entry in await shard.list_collections()] == ["alpha", "gamma"]
    await shard.drop_collection(HARMED)
    with pytest.raises(CollectionNotFound):
        await shard.describe(HARMED)
    assert not await shard.problems()
    assert not directory_of(tmp_path).exists()
    _, is_new = await shard.create_collection(replace(config_of(), name=HARMED))
    assert is_new
    await shard.upsert(upsert_of(HARMED))
    await shard.close()


async def test_only_an_explicit_drop_of_this_incarnation_removes_a_set_aside_collection(
    tmp_path: Path,
) -> None:
    await closed_shard(tmp_path)
    (row_file,) = directory_of(tmp_path).glob("rows-*.f32")
    row_file.unlink()
    shard = open_shard(tmp_path)
    for call in (shard.drop_collection, shard.describe):
        with pytest.raises(IncarnationMismatch):
            await call(HARMED, call=Call(incarnation="another"))
    entry = (await shard.list_collections())[1]
    await shard.drop_collection(HARMED, call=Call(incarnation=entry.incarnation))
    assert not directory_of(tmp_path).exists()
    await shard.close()


async def test_a_set_aside_collection_counts_towards_the_bound(tmp_path: Path) -> None:
    await closed_shard(tmp_path, ("alpha", HARMED))
    shutil.rmtree(directory_of(tmp_path))
    directory_of(tmp_path).mkdir()
    shard = open_shard(tmp_path, engine=replace(SMALL_ENGINE, limits=Limits(collections=2)))
    assert [problem.kind for problem in await shard.problems()] == [ProblemKind.DAMAGED]
    with pytest.raises(Overloaded, match="2 collections"):
        await shard.create_collection(replace(config_of(), name="gamma"))
    await shard.close()


class UnreadableFiles(Disk):
    """A disk that fails to open the files of one collection."""

    def __init__(self, code: int) -> None:
        self.code = code

    def open(self, path: Path) -> DiskFile:
        if HARMED in path.parts:
            raise OSError(self.code, os.strerror(self.code))
        return super().open(path)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (errno.EIO, "the disk failed"),
        (errno.EACCES, "may not be opened"),
        (errno.EMFILE, "too many open files"),
        (errno.ENFILE, "too many open files"),
        (errno.ENOMEM, "too little memory"),
        (errno.ENOSPC, "the disk is full"),
    ],
)
async def test_what_cannot_be_read_is_not_called_damaged_and_is_served_after_a_restart(
    tmp_path: Path, code: int, said: str
) -> None:
    await closed_shard(tmp_path)
    shard = open_shard(tmp_path, disk=UnreadableFiles(code))
    for call in CALLS.values():
        with pytest.raises(CollectionUnreadable) as raised:
            await call(shard, HARMED)
        text = str(raised.value)
        assert said in text
        assert "nothing is known to be lost" in text
        assert "restart" in text
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.UNREADABLE, HARMED)
    assert (await shard.describe(HARMED)).shards[0].missing_reason == text
    for name in ("alpha", "gamma"):
        assert await count(shard, name) == ROWS
    await shard.close()
    shard = open_shard(tmp_path)
    assert [await count(shard, name) for name in NAMES] == [ROWS] * 3
    await shard.close()


async def test_a_store_of_a_newer_format_waits_for_a_later_release(tmp_path: Path) -> None:
    await closed_shard(tmp_path)
    with closing(sqlite3.connect(directory_of(tmp_path) / "store.db")) as connection:
        connection.execute("PRAGMA user_version = 99")
    shard = open_shard(tmp_path)
    with pytest.raises(CollectionUnreadable, match=r"version 99.*later release"):
        await count(shard, HARMED)
    assert (await shard.describe(HARMED)).shards[0].missing_reason
    assert np.array_equal([await count(shard, name) for name in ("alpha", "gamma")], [ROWS] * 2)
    await shard.close()


async def test_writes_stopped_show_in_describe_and_among_the_problems(tmp_path: Path) -> None:
    disk = FailingDisk()
    shard = open_shard(tmp_path, disk=disk)
    await shard.create_collection(replace(config_of(), name=HARMED))
    assert not (await shard.describe(HARMED)).shards[0].writes_stopped
    disk.fail("sync")
    with pytest.raises(Exception, match="may have been done"):
        await shard.upsert(upsert_of(HARMED))
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.WRITES_STOPPED, HARMED)
    assert (await shard.describe(HARMED)).shards[0].writes_stopped == problem.text
    await shard.close()


@pytest.mark.parametrize("read_all", [False, True])
async def test_vectors_that_the_disk_fails_to_read_are_noticed_before_they_end_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_all: bool
) -> None:
    await closed_shard(tmp_path)
    monkeypatch.setattr(state, "ROWS_VERIFIED_AT_START", 10)
    read: list[int] = []

    def failing(vectors: Float32Array) -> None:
        read.append(len(vectors))
        if len(read) == 1 + NAMES.index(HARMED):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(state, "require_readable", failing)
    machine = replace(SMALL_ENGINE.machine, read_all=read_all)
    shard = open_shard(tmp_path, engine=replace(SMALL_ENGINE, machine=machine))
    assert read == [ROWS if read_all else 10] * len(NAMES)
    with pytest.raises(CollectionUnreadable, match="Input/output error"):
        await count(shard, HARMED)
    assert [await count(shard, name) for name in ("alpha", "gamma")] == [ROWS] * 2
    await shard.close()
