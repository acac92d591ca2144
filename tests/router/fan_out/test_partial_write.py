"""Batches that only some children have written, over shards that keep rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from tests.router.offline_shard import OfflineShard
from tests.shard.samples import config_of, corpus_of, identity_of, open_shard
from vectorshard.router.fan_out.partial_write import TEXT_CHARS, Written, joined, reached_some
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    InternalError,
    Overloaded,
    PlacementMismatch,
    ShardUnavailable,
    VectorShardError,
    WritesStopped,
    mark_unanswered,
)
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    GetRequest,
    RowErrorCode,
    Token,
    UpsertRequest,
    UpsertResult,
    WriteMode,
)

CORPUS = corpus_of(60)
OF_SHARD = slots_of(CORPUS.ids) * 2 // SLOTS_TOTAL
BATCH = UpsertRequest(collection="words", ids=CORPUS.ids, vectors=CORPUS.vectors)


@pytest_asyncio.fixture
async def shards(tmp_path: Path) -> AsyncIterator[list[LocalShard]]:
    """Two shards that have the collection."""
    opened = [
        open_shard(tmp_path / str(shard), identity=identity_of(shard, 2, slots_of_shard(shard, 2)))
        for shard in range(2)
    ]
    for shard in opened:
        await shard.create_collection(config_of(), call=Call(incarnation="first"))
    yield opened
    for shard in opened:
        await shard.close()


@pytest.mark.parametrize("mode", WriteMode)
async def test_a_write_whose_acknowledgement_was_lost_is_repeated_without_a_trace(
    shards: list[LocalShard], monkeypatch: pytest.MonkeyPatch, mode: WriteMode
) -> None:
    upsert = shards[1].upsert
    written: list[int] = []

    async def lose(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        written.append((await upsert(request, call=call)).accepted)
        raise mark_unanswered(ShardUnavailable("connection reset"))

    router = await Router.connect([OfflineShard(shard) for shard in shards])
    batch = replace(BATCH, mode=mode)
    with monkeypatch.context() as patched:
        patched.setattr(shards[1], "upsert", lose)
        first = await router.upsert(batch)
    assert written == [np.count_nonzero(OF_SHARD == 1)], "it was asked once, and did it"
    assert [error.row for error in first.errors] == np.flatnonzero(OF_SHARD == 1).tolist()
    assert {error.code for error in first.errors} == {14}
    before = (await router.describe("words")).ledger
    again = await router.upsert(batch)
    assert (again.accepted, again.errors) == (60, ())
    assert (await router.describe("words")).ledger == before
    assert before.accepted == before.live == 60


async def test_rows_of_the_others_are_there_at_once(
    shards: list[LocalShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        raise mark_unanswered(ShardUnavailable("connection refused"))

    monkeypatch.setattr(shards[1], "upsert", fail)
    router = await Router.connect(shards)
    result = await router.upsert(BATCH)
    found = await router.get(GetRequest(collection="words", ids=CORPUS.ids))
    assert found.ids.tolist() == CORPUS.ids[OF_SHARD == 0].tolist()
    assert result.accepted == len(found.ids)
    assert set(result.token.sequences) == {0}


DONE = UpsertResult(accepted=1, errors=(), token=Token(incarnation="x"))
NO_ROWS = np.zeros(0, dtype=np.int64)


def written(*outcomes: UpsertResult | BaseException) -> list[Written]:
    return [Written(NO_ROWS, lambda: [0], outcome) for outcome in outcomes]


@pytest.mark.parametrize("kind", [ShardUnavailable, DeadlineExceeded, Overloaded])
def test_who_is_missing_for_a_moment_fails_its_own_rows_alone(kind: type[VectorShardError]) -> None:
    assert reached_some(written(DONE, kind("gone")))
    assert not reached_some(written(kind("gone"), kind("gone")))


@pytest.mark.parametrize(
    "kind",
    [
        CollectionNotFound,
        IncarnationMismatch,
        InternalError,
        PlacementMismatch,
        RuntimeError,
        WritesStopped,
    ],
)
def test_every_other_failure_is_the_whole_batchs(kind: type[Exception]) -> None:
    assert not reached_some(written(DONE, ShardUnavailable("gone"), kind("no")))


def test_a_long_text_is_cut_at_a_word_but_for_the_first_row_of_a_part() -> None:
    failed = Written(
        indices=np.array([1, 2]),
        shards=lambda: [0],
        outcome=CollectionDamaged("shard 0: it " + "is set aside " * 50),
    )
    written = Written(
        indices=np.array([0]),
        shards=lambda: [1],
        outcome=UpsertResult(accepted=1, errors=(), token=Token(incarnation="a")),
    )
    first, second = joined([failed, written]).errors
    assert first.message == f"shard 0: CollectionDamaged: it {'is set aside ' * 50}".rstrip()
    assert second.message.endswith("is set …")
    assert len(second.message) <= TEXT_CHARS
    assert {first.code, second.code} == {RowErrorCode.DATA_LOSS}
