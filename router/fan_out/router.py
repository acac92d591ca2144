"""The router: a shard whose rows live in downstream shards.

It forwards every call to the shards that it concerns, and combines their answers. It has no state
that they do not have: what it remembers of a collection and of the placement travels with every
call as incarnation and fingerprint, and they check both.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence

from vectorshard.router.fan_out import reads, writes
from vectorshard.router.fan_out.catalogue import Catalogue, describe
from vectorshard.router.fan_out.children import Children
from vectorshard.router.fan_out.search import SearchFanOut
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionDescription,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    ExplainRequest,
    Explanation,
    GetRequest,
    ListRequest,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)


def new_incarnation() -> str:
    """Return a name that no collection has had."""
    return uuid.uuid4().hex


class Router:
    """Collections whose rows live in several downstream shards. Use `connect`.

    Parameters
    ----------
    children
        The downstream shards. Their clock is the router's.
    new_incarnation
        Names the incarnation of a new collection.
    """

    def __init__(
        self, children: Children, *, new_incarnation: Callable[[], str] = new_incarnation
    ) -> None:
        self._children = children
        self._catalogue = Catalogue(children, new_incarnation)
        self._searches = SearchFanOut(children.clock)

    @classmethod
    async def connect(
        cls,
        shards: Sequence[Shard],
        role: Role = Role.ROUTER,
        *,
        names: Sequence[str] = (),
        partial: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
        new_incarnation: Callable[[], str] = new_incarnation,
    ) -> Router:
        """Learn which slots the downstream shards own. Some of them may be missing.

        Parameters
        ----------
        shards
            Leaf shards in the order of their numbers, or routers in any order.
        role
            ROUTER, or EMBEDDED when the shards live in this process.
        names
            Each of them in errors and in the log, such as its address; or empty.
        partial
            Whether they may be only a part of the placement, as below another router.
        sleep
            Waits some seconds before a missing shard is asked again.
        clock
            Seconds, as in a call's deadline.
        new_incarnation
            Names the incarnation of a new collection.

        Raises
        ------
        PlacementMismatch
            If a shard that answers contradicts another one, or the placement.
        """
        children = Children(shards, role, names=names, partial=partial, sleep=sleep, clock=clock)
        await children.connect()
        return cls(children, new_incarnation=new_incarnation)

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Return the leaf shards that are reached through this router."""
        return self._children.topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection on every shard, or complete one that only some have.

        The shard with the smallest number decides when two callers create the same name; the
        slower caller gets the collection of the other.

        Raises
        ------
        CollectionExists
            If a collection of that name has another configuration.
        IncarnationMismatch
            If a drop has reached only some shards; it must be repeated first.
        """
        return await self._catalogue.create_collection(config, call)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop the present collection on every shard, first on the one that decides about names.

        A drop that arrives late does not affect a later collection of the same name.
        """
        await self._catalogue.drop_collection(name, call)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections of all shards, by name."""
        return await self._catalogue.list_collections(call)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection over all leaf shards.

        Raises
        ------
        IncarnationMismatch
            If the shards have different collections of that name: two ledgers have no sum.
        """
        return await self._catalogue.ask(name, call, describe, name)

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Validate the whole batch, then write each shard's part.

        Rows of missing shards are errors of the result. If no shard has written its part, the call
        fails. Repeating the same batch is harmless.
        """
        return await self._catalogue.ask(request.collection, call, writes.upsert, request)

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete by ids, or the rows that pass a filter.

        Each shard applies a filter in one step, to the rows that pass when it commits. The shards
        do not commit at the same moment.
        """
        return await self._catalogue.ask(request.collection, call, writes.delete, request)

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train on every shard."""
        return await self._catalogue.ask(request.collection, call, writes.train, request)

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of existing ids in the order of the request, or those of a filter."""
        return await self._catalogue.ask(request.collection, call, reads.get, request)

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        return await self._catalogue.ask(request.collection, call, reads.count, request)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page: one shard after the other, each in its own order."""
        return await self._catalogue.ask(request.collection, call, reads.list_rows, request)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Search on every shard and merge the answers; the receipt says what they cover.

        Raises
        ------
        ShardUnavailable
            If less than `min_coverage` of the slots answered; it names the missing shards.
        DeadlineExceeded
            If the deadline passed on every shard.
        """
        return await self._catalogue.ask(request.collection, call, self._searches.search, request)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Ask the owner of the id, then all other shards how many of their rows rank before it.

        A row that is written at the same time may be counted or not. Without all shards the rank
        would be wrong.

        Raises
        ------
        ShardUnavailable
            If a shard is missing; it is named.
        """
        return await self._catalogue.ask(request.collection, call, reads.explain, request)

    async def close(self) -> None:
        """Close the downstream shards."""
        await self._children.close()
