"""Copies of rows, through any number of routers: the blocks hold what the copy says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.conformance.backends import Stage
from tests.shard.samples import config_of, corpus_of, some_vectors
from vectorshard.shard.copies import (
    CloseCopyRequest,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.errors import (
    CollectionNotFound,
    CopyEnded,
    InvalidParameter,
    PlacementMismatch,
)
from vectorshard.shard.rows.row_bitmap import decode_rows
from vectorshard.shard.storage.content_hash import sum_bytes, sum_of
from vectorshard.shard.storage.row_block import RowBlock


async def read(stage: Stage, shard: int, copy: Copy, bytes_max: int = 1_000) -> list[RowBlock]:
    """Return all blocks of a copy."""
    blocks, request = (
        [],
        ReadCopyRequest(
            collection="words", shard=shard, copy=copy.copy, first_row=0, bytes_max=bytes_max
        ),
    )
    while request.first_row < copy.rows:
        rows = await stage.shard.read_copy(request)
        assert rows.next_row > request.first_row
        assert not rows.damaged
        if rows.block:
            block = RowBlock.decode(rows.block)
            assert request.first_row <= block.rows[0] <= block.rows[-1] < rows.next_row
            assert not block.mismatches().any()
            blocks.append(block)
        request = replace(request, first_row=rows.next_row)
    return blocks


async def test_the_blocks_of_all_shards_hold_every_live_row_once(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(200)
    await stage.upsert(
        corpus.ids, corpus.vectors, metadata=[b"" if row % 3 else b"\n\x00" for row in range(200)]
    )
    await stage.put(corpus.take(slice(0, 20)))  # without metadata: some are replaced
    await stage.delete(corpus.ids[100:150])
    found: dict[int, bytes] = {}
    live = 0
    for shard in range(stage.shards_total):
        copy = await stage.shard.open_copy(
            OpenCopyRequest(collection="words", shard=shard, dead_below=1_000)
        )
        blocks = await read(stage, shard, copy)
        assert len(blocks) > 1
        hashes = np.concatenate([block.content_hashes for block in blocks])
        assert sum_bytes(sum_of(hashes)) == copy.content_sum
        assert sum(map(len, blocks)) == copy.live == copy.ledger.live
        rows = np.concatenate([block.rows for block in blocks])
        dead = decode_rows(copy.dead)
        np.testing.assert_array_equal(np.union1d(rows, dead), np.arange(copy.rows))
        live += copy.live
        for block in blocks:
            found |= dict(
                zip(block.ids.tolist(), [row.tobytes() for row in block.vectors], strict=True)
            )
        await stage.shard.close_copy(
            CloseCopyRequest(collection="words", shard=shard, copy=copy.copy)
        )
        with pytest.raises(CopyEnded):
            await read(stage, shard, copy)
    assert live == len(found) == 150
    for row in (*range(100), *range(150, 200)):
        assert found[int(corpus.ids[row])] == corpus.vectors[row].tobytes()


async def test_a_copy_is_of_its_moment_through_writes_trainings_and_deletes(stage: Stage) -> None:
    await stage.create(config_of())
    corpus = corpus_of(300)
    await stage.put(corpus)
    copy = await stage.shard.open_copy(OpenCopyRequest(collection="words", shard=0))
    before = await read(stage, 0, copy, 10**6)
    await stage.upsert(corpus.ids, some_vectors(300, 8, seed=9))
    await stage.delete(corpus.ids[:200])
    await stage.train()
    after = await read(stage, 0, copy, 10**6)
    assert [block.encode() for block in after] == [block.encode() for block in before]


async def test_a_copy_of_what_does_not_exist_is_refused(stage: Stage) -> None:
    with pytest.raises(CollectionNotFound):
        await stage.shard.open_copy(OpenCopyRequest(collection="words", shard=0))
    await stage.create(config_of())
    with pytest.raises((InvalidParameter, PlacementMismatch)):
        await stage.shard.open_copy(OpenCopyRequest(collection="words", shard=stage.shards_total))
    copy = await stage.shard.open_copy(OpenCopyRequest(collection="words", shard=0))
    assert (copy.rows, copy.live, copy.sequence) == (0, 0, 0)
    await stage.reopen()
    with pytest.raises(CopyEnded):
        await stage.shard.read_copy(
            ReadCopyRequest(collection="words", shard=0, copy=copy.copy, first_row=0, bytes_max=1)
        )
    await stage.shard.drop_collection("words")
    with pytest.raises(CollectionNotFound):
        await stage.shard.read_copy(
            ReadCopyRequest(collection="words", shard=0, copy=copy.copy, first_row=0, bytes_max=1)
        )
