"""Who the suite is run over. A new implementation of the Shard protocol is one more entry here.

A backend opens a Shard on a directory with an engine and a clock for its trainings, which is all
that the suite knows of it. Leaf shards in this process take the clock, wherever they are reached
from; the tests that hold a training depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from router.placement import slots_of_shard
from router.router import Router
from shard.config import EngineConfig
from shard.local_shard import LocalShard
from shard.protocol import Shard
from shard.types import (
    CollectionConfig,
    CollectionDescription,
    DeleteRequest,
    Effort,
    GetRequest,
    IdArray,
    Include,
    ListRequest,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
    VectorArray,
    WriteMode,
)
from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    TrainingGate,
    config_of,
    identity_of,
    open_shard,
)


class Backend(Protocol):
    """A way to have a Shard."""

    @property
    def shards_total(self) -> int:
        """Leaf shards in it."""
        ...

    async def open(self, path: Path, engine: EngineConfig, clock: Callable[[], float]) -> Shard:
        """Open it on a directory, which may hold what an earlier one left there."""
        ...


def open_leaf_shards(
    path: Path, shards_total: int, engine: EngineConfig, clock: Callable[[], float]
) -> list[LocalShard]:
    """Open the leaf shards of one cluster, each below `path`."""
    return [
        open_shard(
            path / f"shard-{shard}",
            identity=identity_of(shard, shards_total, slots_of_shard(shard, shards_total)),
            engine=engine,
            clock=clock,
        )
        for shard in range(shards_total)
    ]


@dataclass(frozen=True)
class OneShard:
    """A shard that owns all slots, without a router."""

    shards_total: int = 1

    async def open(self, path: Path, engine: EngineConfig, clock: Callable[[], float]) -> Shard:
        """Open the shard."""
        return open_leaf_shards(path, 1, engine, clock)[0]


@dataclass(frozen=True)
class RouterOverShards:
    """A router over shards of its own process."""

    shards_total: int

    async def open(self, path: Path, engine: EngineConfig, clock: Callable[[], float]) -> Shard:
        """Open the shards and connect a router to them."""
        shards = open_leaf_shards(path, self.shards_total, engine, clock)
        return await Router.connect(shards, Role.EMBEDDED)


@dataclass(frozen=True)
class RouterOverRouters:
    """A router over routers: the leaf shards are dealt out to them in turn."""

    shards_total: int
    routers: int

    async def open(self, path: Path, engine: EngineConfig, clock: Callable[[], float]) -> Shard:
        """Open the shards and connect the tree."""
        shards = open_leaf_shards(path, self.shards_total, engine, clock)
        groups = [shards[first :: self.routers] for first in range(self.routers)]
        return await Router.connect([await Router.connect(group) for group in groups])


BACKENDS: dict[str, Backend] = {
    "shard": OneShard(),
    "router-over-1": RouterOverShards(1),
    "router-over-2": RouterOverShards(2),
    "router-over-5": RouterOverShards(5),
    "router-over-routers": RouterOverRouters(3, 2),
}


@dataclass
class Stage:
    """A Shard under test, and short ways to ask it. `collection` is the one that `create` made."""

    backend: Backend
    path: Path
    shard: Shard
    gate: TrainingGate
    engine: EngineConfig = SMALL_ENGINE
    collection: CollectionConfig = field(default_factory=config_of)

    @property
    def shards_total(self) -> int:
        """Leaf shards."""
        return self.backend.shards_total

    async def reopen(self) -> None:
        """Close the shard and open it again on what it left behind."""
        await self.shard.close()
        self.shard = await self.backend.open(self.path, self.engine, self.gate)

    async def create(self, config: CollectionConfig) -> None:
        """Create the collection that the other calls mean."""
        await self.shard.create_collection(config)
        self.collection = config

    async def upsert(
        self,
        ids: IdArray,
        vectors: VectorArray,
        *,
        metadata: Sequence[bytes] | None = None,
        mode: WriteMode = WriteMode.UPSERT,
    ) -> UpsertResult:
        """Write rows."""
        request = UpsertRequest(
            collection=self.collection.name,
            ids=ids,
            vectors=vectors,
            metadata=metadata,
            mode=mode,
        )
        return await self.shard.upsert(request)

    async def put(self, corpus: Corpus) -> UpsertResult:
        """Write a corpus; every row must be accepted."""
        result = await self.upsert(corpus.ids, corpus.vectors)
        assert (result.accepted, result.errors) == (len(corpus), ())
        return result

    async def delete(self, ids: IdArray) -> int:
        """Delete ids and say how many were there."""
        request = DeleteRequest(collection=self.collection.name, ids=ids)
        return (await self.shard.delete(request)).deleted

    async def get(self, ids: IdArray, *, vectors: bool = True, metadata: bool = True) -> Rows:
        """Get rows."""
        include = Include(vectors=vectors, metadata=metadata)
        request = GetRequest(collection=self.collection.name, ids=ids, include=include)
        return await self.shard.get(request)

    async def list_all(self, page_size: int) -> list[Rows]:
        """List all pages."""
        pages = [await self.list_page(page_size)]
        while pages[-1].cursor is not None:
            pages.append(await self.list_page(page_size, after=pages[-1]))
        return pages

    async def list_page(
        self, page_size: int, *, after: Rows | None = None, include: Include | None = None
    ) -> Rows:
        """List one page."""
        request = ListRequest(
            collection=self.collection.name,
            page_size=page_size,
            cursor=after.cursor if after is not None else None,
            include=include or Include(),
        )
        return await self.shard.list_rows(request)

    async def search(
        self,
        queries: VectorArray,
        k: int = 10,
        *,
        exact: bool = False,
        nprobe: int = 0,
        target_recall: float = 0.0,
        include: Include | None = None,
        score_threshold: float | None = None,
    ) -> SearchResult:
        """Search."""
        request = SearchRequest(
            collection=self.collection.name,
            queries=queries,
            k=k,
            effort=Effort(exact=exact, nprobe=nprobe, target_recall=target_recall),
            include=include or Include(),
            score_threshold=score_threshold,
        )
        return await self.shard.search(request)

    async def describe(self) -> CollectionDescription:
        """Describe the collection; its ledgers must add up, on every leaf shard."""
        description = await self.shard.describe(self.collection.name)
        assert all(shard.ledger.adds_up for shard in description.shards)
        return description

    async def train(self) -> None:
        """Train, and return when it is done."""
        await self.shard.train(TrainRequest(collection=self.collection.name, wait=True))
