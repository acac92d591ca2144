"""Who the suite is run over. A new implementation of the Shard protocol is one more entry here.

A backend opens a Shard on a directory with an engine and a gate for its trainings, which is all
that the suite knows of it. The leaf shards take the gate as their clock, in this process and in
others; the tests that hold a training depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from tests.conformance.host import ServeRouter, ServeShard
from tests.conformance.hosts import HostedShard, Hosts, SharedGate, tell_all
from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    identity_of,
    open_shard,
)
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.sole_shard import SoleShard
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.descriptions import CollectionDescription, ExplainRequest, Explanation
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.filters import Filter
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    CollectionConfig,
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


class Backend(Protocol):
    """A way to have a Shard."""

    @property
    def shards_total(self) -> int:
        """Leaf shards in it."""
        ...

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
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

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
        """Open the shard."""
        return open_leaf_shards(path, 1, engine, gate)[0]


@dataclass(frozen=True)
class ShardBelowRouter:
    """A shard that owns all slots, with a router for what concerns collections."""

    shards_total: int = 1

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
        """Open the shard and connect the router to it."""
        return await SoleShard.connect(open_leaf_shards(path, 1, engine, gate), Role.EMBEDDED)


@dataclass(frozen=True)
class RouterOverShards:
    """A router over shards of its own process."""

    shards_total: int

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
        """Open the shards and connect a router to them."""
        shards = open_leaf_shards(path, self.shards_total, engine, gate)
        return await Router.connect(shards, Role.EMBEDDED)


@dataclass(frozen=True)
class RouterOverRouters:
    """A router over routers: the leaf shards are dealt out to them in turn."""

    shards_total: int
    routers: int

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
        """Open the shards and connect the tree."""
        shards = open_leaf_shards(path, self.shards_total, engine, gate)
        groups = [shards[first :: self.routers] for first in range(self.routers)]
        return await Router.connect([await Router.connect(group, partial=True) for group in groups])


@dataclass(frozen=True)
class OverProcesses:
    """Shards in a process each, asked over gRPC: the only one of them, or the uppermost router.

    `routers` says how many there are in each tier, from the shards up; each tier's servers are
    dealt out in turn to those of the next.
    """

    shards_total: int
    routers: Sequence[int] = ()

    async def open(self, path: Path, engine: EngineConfig, gate: SharedGate, hosts: Hosts) -> Shard:
        """Have the hosts open the shards, and the routers over them."""
        free = iter(hosts.first(self.shards_total + sum(self.routers)))
        tiers = [list(islice(free, self.shards_total))]
        gate.hosts = tiers[0]
        shards = [
            ServeShard(path / f"shard-{shard}", shard, self.shards_total, engine, gate.state())
            for shard in range(self.shards_total)
        ]
        targets = tell_all(tiers[0], shards)
        for routers in self.routers:
            tiers.insert(0, list(islice(free, routers)))
            groups = [targets[first::routers] for first in range(routers)]
            targets = tell_all(tiers[0], [ServeRouter(each, routers > 1) for each in groups])
        (target,) = targets
        return HostedShard(target, tiers)


BACKENDS: dict[str, Backend] = {
    "shard": OneShard(),
    "sole-shard": ShardBelowRouter(),
    "router-over-2": RouterOverShards(2),
    "router-over-5": RouterOverShards(5),
    "router-over-routers": RouterOverRouters(3, 2),
    "remote-shard": OverProcesses(1),
    "router-over-2-processes": OverProcesses(2, routers=(1,)),
    "routers-over-4-processes": OverProcesses(4, routers=(2, 1)),
}

IN_ONE_PROCESS = [
    name for name, backend in BACKENDS.items() if not isinstance(backend, OverProcesses)
]
"""For a test that nothing holds between processes; it says why."""


@dataclass
class Stage:
    """A Shard under test, and short ways to ask it. `collection` is the one that `create` made."""

    backend: Backend
    path: Path
    shard: Shard
    gate: SharedGate
    hosts: Hosts
    engine: EngineConfig = SMALL_ENGINE
    collection: CollectionConfig = field(default_factory=config_of)

    @property
    def shards_total(self) -> int:
        """Leaf shards."""
        return self.backend.shards_total

    async def reopen(self) -> None:
        """Close the shard and open it again on what it left behind."""
        await self.shard.close()
        self.shard = await self.backend.open(self.path, self.engine, self.gate, self.hosts)

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

    async def delete_where(self, filter_: Filter) -> int:
        """Delete what passes a filter and say how many rows that were."""
        request = DeleteRequest(collection=self.collection.name, filter=filter_)
        return (await self.shard.delete(request)).deleted

    async def get(self, ids: IdArray, *, vectors: bool = True, metadata: bool = True) -> Rows:
        """Get rows."""
        include = Include(vectors=vectors, metadata=metadata)
        request = GetRequest(collection=self.collection.name, ids=ids, include=include)
        return await self.shard.get(request)

    async def list_all(self, page_size: int, *, filter_: Filter | None = None) -> list[Rows]:
        """List all pages."""
        pages = [await self.list_page(page_size, filter_=filter_)]
        while pages[-1].cursor is not None:
            pages.append(await self.list_page(page_size, after=pages[-1], filter_=filter_))
        return pages

    async def list_page(
        self,
        page_size: int,
        *,
        after: Rows | None = None,
        filter_: Filter | None = None,
        include: Include | None = None,
        skip_damaged: bool = False,
    ) -> Rows:
        """List one page."""
        request = ListRequest(
            collection=self.collection.name,
            page_size=page_size,
            cursor=after.cursor if after is not None else None,
            filter=filter_,
            include=include or Include(),
            skip_damaged=skip_damaged,
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
        filter_: Filter | None = None,
    ) -> SearchResult:
        """Search."""
        request = SearchRequest(
            collection=self.collection.name,
            queries=queries,
            k=k,
            effort=Effort(exact=exact, nprobe=nprobe, target_recall=target_recall),
            include=include or Include(),
            score_threshold=score_threshold,
            filter=filter_,
        )
        return await self.shard.search(request)

    async def explain(
        self, query: VectorArray, id_: IdArray, *, filter_: Filter | None = None
    ) -> Explanation:
        """Explain a query (1, dim) and an id (1,)."""
        request = ExplainRequest(
            collection=self.collection.name, query=query, id=id_, filter=filter_
        )
        return await self.shard.explain(request)

    async def describe(self) -> CollectionDescription:
        """Describe the collection; its ledgers must add up, on every leaf shard."""
        description = await self.shard.describe(self.collection.name)
        assert all(shard.ledger.adds_up for shard in description.shards)
        return description

    async def train(self) -> None:
        """Train, and return when it is done."""
        await self.shard.train(TrainRequest(collection=self.collection.name, wait=True))
