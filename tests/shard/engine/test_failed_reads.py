"""A read that fails while a collection is served: what its caller and an operator are told."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests.shard.samples import config_of, corpus_of, int64s, open_shard
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import ReadFailed, RowsDamaged, WritesStopped
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.types import (
    CountRequest,
    DeleteRequest,
    GetRequest,
    Include,
    UpsertRequest,
    WriteMode,
)

ROWS = 20
CORPUS = corpus_of(ROWS)
STRUCT = b"\n\x0c\n\x04name\x12\x04\x1a\x02no"  # {"name": "no"}
WITH_METADATA = GetRequest(
    collection="words", ids=CORPUS.ids[:2], include=Include(vectors=True, metadata=True)
)


def insert(ids: np.ndarray) -> UpsertRequest:
    """Return a write that compares the rows with those that are there."""
    return UpsertRequest(
        collection="words",
        ids=ids,
        vectors=CORPUS.vectors[: len(ids)],
        metadata=[STRUCT] * len(ids),
        mode=WriteMode.INSERT,
    )


@pytest_asyncio.fixture
async def shard(tmp_path: Path) -> AsyncIterator[LocalShard]:
    shard = open_shard(tmp_path)
    await shard.create_collection(config_of())
    await shard.upsert(insert(CORPUS.ids))
    yield shard
    await shard.close()


def files(path: Path, pattern: str) -> Iterator[Path]:
    """Return the files below a directory whose names match."""
    return path.rglob(pattern)


def flip_a_bit(file: Path, at: int) -> None:
    """Change one bit of a byte."""
    contents = bytearray(file.read_bytes())
    contents[at] ^= 1
    file.write_bytes(contents)


def disk_error(*_: object) -> dict[int, bytes]:
    """Fail as SQLite does when the disk fails a read."""
    error = sqlite3.OperationalError("disk I/O error")
    error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
    raise error


async def test_a_read_that_fails_loses_nothing_and_is_shown_until_a_restart(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not await shard.problems()
    with monkeypatch.context() as patched:
        patched.setattr(RowDatabase, "metadata", disk_error)
        for _ in range(2):
            with pytest.raises(ReadFailed, match="'words': the disk failed a read"):
                await shard.get(WITH_METADATA)
        assert await shard.count(CountRequest(collection="words")) == ROWS
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.UNREADABLE, "words")
    assert "nothing is known to be lost" in problem.text
    assert (await shard.get(WITH_METADATA)).ids.tolist() == CORPUS.ids[:2].tolist()


async def test_a_write_whose_comparison_fails_is_not_done_and_the_next_is(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(RowDatabase, "metadata", disk_error)
        with pytest.raises(ReadFailed):
            await shard.upsert(insert(CORPUS.ids[:3]))
        await shard.delete(DeleteRequest(collection="words", ids=CORPUS.ids[5:6]))
    assert (await shard.upsert(insert(int64s(77_777)))).accepted == 1
    assert await shard.count(CountRequest(collection="words")) == ROWS
    assert [problem.kind for problem in await shard.problems()] == [ProblemKind.UNREADABLE]


async def test_damage_that_a_read_finds_is_shown(shard: LocalShard, tmp_path: Path) -> None:
    flip_a_bit(next(files(tmp_path, "rows-*.f32")), at=3)
    with pytest.raises(RowsDamaged):
        await shard.get(WITH_METADATA)
    (problem,) = await shard.problems()
    assert (problem.kind, problem.collection) == (ProblemKind.ROWS_DAMAGED, "words")
    assert f"id {CORPUS.ids[0]} " in problem.text


async def test_a_write_that_sqlite_calls_malformed_is_not_called_a_failed_write(
    shard: LocalShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def malformed(*_: object) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    monkeypatch.setattr(RowDatabase, "insert_metadata", malformed)
    with pytest.raises(WritesStopped, match="damaged, or a read failed"):
        await shard.upsert(insert(int64s(77_777)))
    (described,) = (await shard.describe("words")).shards
    assert "may have been done" in described.writes_stopped
