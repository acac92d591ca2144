"""A router over two shards in this process, a target, and what a backup in it holds."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tests.shard.samples import SMALL_ENGINE, config_of, identity_of, open_shard
from vectorshard.backup.layout import read_block, read_dead_rows, read_manifest
from vectorshard.backup.manifest import Manifest, ShardBackup
from vectorshard.backup.run import Backup, Made, Surroundings, Wanted
from vectorshard.backup.targets import DirectoryTarget, Target
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.protocol import Shard
from vectorshard.shard.storage.content_hash import sum_bytes, sum_of
from vectorshard.shard.types import (
    CollectionConfig,
    DeleteRequest,
    Role,
    UpsertRequest,
)

Rows = dict[int, tuple[bytes, bytes]]
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)


class Silent:
    """A report that is kept."""

    def __init__(self) -> None:
        self.rows = 0
        self.opens = 0

    def expected(self, collection: str, shard: int, rows: int) -> None:
        """Do nothing."""

    def opened(self, collection: str, shard: int, rows: int) -> None:
        """Count."""
        self.opens += 1

    def copied(self, collection: str, shard: int, rows: int, size_bytes: int) -> None:
        """Count."""
        self.rows += rows


async def no_rest(_seconds: float) -> None:
    """Rest for no time, but let others run."""
    await asyncio.sleep(0)


@dataclass
class Fleet:
    """Shards in this process, the router over them, and a target."""

    path: Path
    shards_total: int = 2
    engine: EngineConfig = SMALL_ENGINE
    shards: list[LocalShard] = field(default_factory=list)
    backups: itertools.count[int] = field(default_factory=itertools.count)
    rows: Rows = field(default_factory=dict)
    server: Any = None

    @property
    def target(self) -> DirectoryTarget:
        """The target."""
        return DirectoryTarget(self.path / "target", create=True, paced=False)

    async def open(self) -> Fleet:
        """Open the shards, and a router over them."""
        self.shards = [
            open_shard(
                self.path / f"shard-{shard}",
                identity=identity_of(
                    shard, self.shards_total, slots_of_shard(shard, self.shards_total)
                ),
                engine=self.engine,
            )
            for shard in range(self.shards_total)
        ]
        self.server = await Router.connect(self.shards, Role.EMBEDDED)
        return self

    async def reopen(self) -> None:
        """Close the shards and open them again."""
        await self.server.close()
        await self.open()

    async def create(self, config: CollectionConfig | None = None) -> None:
        """Create a collection."""
        await self.server.create_collection(config or config_of())

    async def put(self, numbers: Sequence[int], seed: int = 0, collection: str = "words") -> None:
        """Write rows, every third with metadata."""
        vectors = np.random.default_rng(seed).standard_normal((len(numbers), 8))
        metadata = [b"" if number % 3 else b"\n\x00" for number in numbers]
        request = UpsertRequest(
            collection=collection,
            ids=np.array(numbers, dtype=np.int64),
            vectors=vectors.astype(np.float32),
            metadata=metadata,
        )
        await self.server.upsert(request)
        if collection == "words":
            for number, vector, struct in zip(numbers, request.vectors, metadata, strict=True):
                self.rows[number] = vector.tobytes(), struct

    async def delete(self, numbers: Sequence[int]) -> None:
        """Delete rows."""
        ids = np.array(numbers, dtype=np.int64)
        await self.server.delete(DeleteRequest(collection="words", ids=ids))
        for number in numbers:
            self.rows.pop(number, None)

    def compact(self) -> None:
        """Compact the row files of all shards, and sweep."""
        for shard in self.shards:
            collection = shard._collections.served["words"].collection
            collection.compaction.run(lambda: None)
            while collection.compaction.sweep_due:
                collection.compaction.sweep()

    async def back_up(
        self, target: Target | None = None, *, server: Shard | None = None, **wanted: Any
    ) -> Made:
        """Make a backup, each a day after the one before."""
        day = BEGUN + timedelta(days=next(self.backups))
        seconds = itertools.count()
        around = Surroundings(now=lambda: day + timedelta(seconds=next(seconds)), sleep=no_rest)
        making = Backup(
            server or self.server,
            target or self.target,
            Wanted(**wanted),
            version="test",
            report=Silent(),
            surroundings=around,
        )
        return await making.run()


def rows_in(target: Target, manifest: Manifest, collection: str = "words") -> Rows:
    """Return the live rows in a backup by id, each of which must be there once."""
    found: Rows = {}
    [of_name] = [each for each in manifest.collections if each.name == collection]
    for shard in of_name.shards:
        before = len(found)
        found |= _rows_of(target, shard)
        assert len(found) == before + shard.live - len(shard.damaged)
    assert len(found) == of_name.live - sum(len(shard.damaged) for shard in of_name.shards)
    return found


def _rows_of(target: Target, shard: ShardBackup) -> Rows:
    dead = read_dead_rows(target, shard.dead)
    found: Rows = {}
    total, next_row = 0, 0
    for stored in shard.blocks:
        assert stored.first_row >= next_row
        next_row = stored.next_row
        block = read_block(target, stored)
        assert not block.mismatches().any()
        live = np.flatnonzero(~np.isin(block.rows, dead))
        total += sum_of(block.content_hashes[live])
        for place in live.tolist():
            assert int(block.ids[place]) not in found
            found[int(block.ids[place])] = block.vectors[place].tobytes(), block.metadata[place]
    assert next_row <= shard.rows
    if not shard.damaged:
        assert sum_bytes(total) == shard.sum
    return found


def manifest_of(target: Target, made: Made) -> Manifest:
    """Return the manifest of a backup as it is stored; it must be the one that was reported."""
    stored = read_manifest(target, made.name)
    assert stored == made.manifest
    return stored
