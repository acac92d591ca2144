"""The copies of a shard: leases, limits, what they hold off, and what is in their blocks."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shard.engine.contents import ENTRY, Contents, Writes, applied, opened, sweep
from tests.shard.samples import config_of, corpus_of, open_shard
from vectorshard.shard.copies import CloseCopyRequest, Copy, OpenCopyRequest, ReadCopyRequest
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.copies import (
    BLOCK_BYTES_MAX,
    COPIES_MAX,
    COPY_S_MAX,
    LEASE_S,
    Copies,
    Pinned,
    copied_rows,
    dead_rows,
    pinned_now,
)
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import CollectionNotFound, CopyEnded, Overloaded
from vectorshard.shard.rows.row_bitmap import decode_rows
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import Metric, UpsertRequest

OPEN = OpenCopyRequest(collection="words", shard=0)


class Time:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """Return an empty collection."""
    with opened(Disk(), tmp_path, ENTRY) as collection:
        yield collection


def blocks_of(pinned: Pinned, bytes_max: int) -> list[RowBlock]:
    """Return all blocks of a copy."""
    found, first = [], 0
    while first < pinned.snapshot.rows:
        rows = copied_rows(pinned, first, bytes_max)
        assert rows.next_row > first
        if rows.block:
            found.append(RowBlock.decode(rows.block))
        first = rows.next_row
    return found


def contents_of(blocks: list[RowBlock]) -> dict[Any, tuple[bytes, bytes]]:
    """Return the rows of blocks by id, each of which must be there once."""
    found: dict[Any, tuple[bytes, bytes]] = {}
    for block in blocks:
        for id_, vector, struct in zip(
            block.ids.tolist(), block.vectors, block.metadata, strict=True
        ):
            assert id_ not in found
            found[id_] = vector.tobytes(), struct
    return found


# ---- leases -------------------------------------------------------------------------------------


def test_a_copy_ends_a_minute_after_its_last_call(collection: Collection) -> None:
    clock = Time()
    copies = Copies(clock)
    name = copies.put(pinned_now(collection))
    for read in range(3):
        clock.now += LEASE_S
        copies.use(name, collection)
        copies.used(name, read + 1)
    clock.now += LEASE_S + 0.1
    with pytest.raises(CopyEnded, match="no further row was read from it for 60 s"):
        copies.use(name, collection)
    assert not len(copies)


def test_a_copy_ends_though_the_same_rows_are_read_again_and_again(collection: Collection) -> None:
    clock = Time()
    copies = Copies(clock)
    name = copies.put(pinned_now(collection))
    for _ in range(3):
        copies.use(name, collection)
        copies.used(name, 7)
        clock.now += LEASE_S / 2
    copies.expire()
    assert not len(copies)


def test_a_copy_ends_however_slowly_its_reader_goes_on(collection: Collection) -> None:
    clock = Time()
    copies = Copies(clock)
    name = copies.put(pinned_now(collection))
    reads = 0
    while len(copies):
        reads += 1
        copies.use(name, collection)
        copies.used(name, reads)
        clock.now += LEASE_S
        copies.expire()
    assert reads == pytest.approx(COPY_S_MAX / LEASE_S, abs=2)


def test_a_copy_does_not_end_while_it_is_read(collection: Collection) -> None:
    clock = Time()
    copies = Copies(clock)
    name = copies.put(pinned_now(collection))
    copies.use(name, collection)
    copies.use(name, collection)
    clock.now += 10 * LEASE_S
    copies.expire()
    assert len(copies) == 1
    copies.used(name)
    clock.now += 10 * LEASE_S
    copies.expire()
    assert len(copies) == 1
    copies.used(name, 2)
    clock.now += LEASE_S
    copies.expire()
    assert len(copies) == 1
    clock.now += 0.1
    copies.expire()
    assert not len(copies)


def test_only_a_few_copies_are_open_at_once(collection: Collection) -> None:
    clock = Time()
    copies = Copies(clock)
    names = [copies.put(pinned_now(collection)) for _ in range(COPIES_MAX)]
    with pytest.raises(Overloaded, match="4 copies"):
        copies.put(pinned_now(collection))
    copies.close(names[0])
    copies.close(b"unknown")
    copies.put(pinned_now(collection))
    clock.now += LEASE_S + 0.1
    copies.put(pinned_now(collection))  # the abandoned ones have ended
    assert len(copies) == 1


def test_a_copy_that_is_closed_while_it_is_read_stays_closed(collection: Collection) -> None:
    copies = Copies(Time())
    name = copies.put(pinned_now(collection))
    copies.use(name, collection)
    copies.close(name)
    copies.used(name)
    with pytest.raises(CopyEnded):
        copies.use(name, collection)


# ---- blocks -------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 30), unique=True, min_size=1)),
        max_size=6,
    ),
    compacted=st.booleans(),
    bytes_max=st.integers(1, 3_000),
    below=st.integers(0, 100),
)
def test_the_blocks_hold_the_live_rows_of_the_moment(
    steps: list[tuple[bool, list[int]]], compacted: bool, bytes_max: int, below: int
) -> None:
    writes, contents = Writes(ENTRY.config.id_type, 5), Contents(Metric.L2)
    with (
        tempfile.TemporaryDirectory() as folder,
        opened(Disk(), Path(folder), ENTRY) as collection,
    ):
        for upserts, numbers in steps:
            write = writes.upsert(numbers) if upserts else writes.delete(numbers)
            contents = applied(collection, contents, write)
        if compacted:
            collection.compaction.run(lambda: None)
        pinned = pinned_now(collection)
        applied(collection, contents, writes.upsert(list(range(40))))
        collection.compaction.run(lambda: None)
        sweep(collection)
        blocks = blocks_of(pinned, bytes_max)
        assert contents_of(blocks) == contents.rows
        assert all(len(block.encode()) <= bytes_max + 200 or len(block) == 1 for block in blocks)
        rows = {row for block in blocks for row in block.rows.tolist()}
        dead = set(range(min(below, pinned.snapshot.rows))) - rows
        assert set(decode_rows(dead_rows(pinned.snapshot, below)).tolist()) == dead


def test_a_block_is_bounded_whatever_the_metadata_and_the_caller_want(
    collection: Collection,
) -> None:
    rows = 150
    corpus = corpus_of(rows)
    applied(
        collection,
        Contents(Metric.L2),
        UpsertRequest(
            collection="words",
            ids=np.array([f"{row}" for row in range(rows)], dtype=object),
            vectors=corpus.vectors,
            metadata=[bytes([1 + row % 250]) * 64_000 for row in range(rows)],
        ),
    )
    blocks = blocks_of(pinned_now(collection), 2**31)
    sizes = [len(block.encode()) for block in blocks]
    assert len(blocks) == 2
    assert max(sizes) < BLOCK_BYTES_MAX + 64_000
    assert min(sizes[:-1]) > BLOCK_BYTES_MAX - 64_000 - 4_000
    assert len(contents_of(blocks)) == rows


def test_a_sweep_waits_until_the_copies_that_need_its_rows_have_ended(
    collection: Collection,
) -> None:
    writes, contents = Writes(ENTRY.config.id_type, 5), Contents(Metric.L2)
    contents = applied(collection, contents, writes.upsert(range(30)))
    copies = Copies(Time())
    name = copies.put(pinned_now(collection))
    applied(collection, contents, writes.delete(range(25)))
    collection.compaction.run(lambda: None)
    assert not collection.compaction.sweep_due
    pinned = copies.use(name, collection)
    assert contents_of(blocks_of(pinned, 500)) == contents.rows
    copies.used(name)
    del pinned
    copies.close(name)
    assert collection.compaction.sweep_due


def test_a_damaged_row_is_noted_and_left_out_of_its_block(collection: Collection) -> None:
    writes, contents = Writes(ENTRY.config.id_type, 5), Contents(Metric.L2)
    contents = applied(collection, contents, writes.upsert(range(30)))
    hashes = collection.state.columns._content_hashes
    hashes[[3, 17], 1] ^= np.uint64(1)  # as if the rows differed
    pinned = pinned_now(collection)
    rows = copied_rows(pinned, 0, 10**6)
    assert rows.damaged == (3, 17)
    block = RowBlock.decode(rows.block)
    assert block.rows.tolist() == [row for row in range(30) if row not in (3, 17)]
    assert not block.mismatches().any()
    assert collection.snapshot.damaged.tolist() == [3, 17]


def test_a_row_that_a_compaction_has_copied_whole_is_not_noted(collection: Collection) -> None:
    writes, contents = Writes(ENTRY.config.id_type, 5), Contents(Metric.L2)
    contents = applied(collection, contents, writes.upsert(range(30)))
    pinned = pinned_now(collection)
    applied(collection, contents, writes.delete(range(5)))
    with collection.state.columns.row_file._path.open("r+b") as file:
        collection.compaction.run(lambda: None)  # removes the file; the copy still reads it
        file.write(b"\xff" * len(pinned.snapshot.vectors[:7].tobytes()))
    rows = copied_rows(pinned, 0, 10**6)
    assert rows.damaged == tuple(range(7))
    assert not len(collection.snapshot.damaged)


# ---- a shard ------------------------------------------------------------------------------------


async def shard_with_rows(path: Path) -> LocalShard:
    """Return a shard with a collection of some rows."""
    shard = open_shard(path)
    await shard.create_collection(config_of())
    corpus = corpus_of(50)
    await shard.upsert(UpsertRequest(collection="words", ids=corpus.ids, vectors=corpus.vectors))
    return shard


def reading(copy: Copy) -> ReadCopyRequest:
    """Return what reads a copy from its begin."""
    return ReadCopyRequest(
        collection="words", shard=0, copy=copy.copy, first_row=0, bytes_max=10**6
    )


async def test_the_copies_of_a_collection_end_with_it(tmp_path: Path) -> None:
    shard = await shard_with_rows(tmp_path)
    copy = await shard.open_copy(OPEN)
    await shard.drop_collection("words")
    with pytest.raises(CollectionNotFound):
        await shard.read_copy(reading(copy))
    assert not len(shard._copies)
    await shard.create_collection(config_of())
    with pytest.raises(CopyEnded):
        await shard.read_copy(reading(copy))
    await shard.close()


async def test_a_shard_closes_its_copies_when_it_stops(tmp_path: Path) -> None:
    shard = await shard_with_rows(tmp_path)
    copy = await shard.open_copy(OPEN)
    assert (await shard.read_copy(reading(copy))).next_row == 50
    await shard.close_copy(CloseCopyRequest(collection="words", shard=0, copy=copy.copy))
    assert not len(shard._copies)
    await shard.open_copy(OPEN)
    await shard.close()
    assert not len(shard._copies)


async def test_a_copy_that_nobody_reads_ends_without_another_call(tmp_path: Path) -> None:
    shard = await shard_with_rows(tmp_path)
    clock = Time()
    shard._copies = Copies(clock)
    await shard.open_copy(OPEN)
    shard._expire_copies()
    assert shard._expiry is not None
    assert len(shard._copies) == 1
    clock.now += LEASE_S + 0.1
    shard._expiry.cancel()
    shard._expire_copies()  # what the timer calls
    assert not len(shard._copies)
    assert shard._expiry is None
    await shard.close()
