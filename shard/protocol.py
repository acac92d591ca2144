"""The `Shard` protocol: the operations of every shard, local or remote.

LocalShard, RemoteShard and Router implement it. Callers never ask which of them they use.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

from vectorshard.shard.copies import (
    CloseCopyRequest,
    CopiedRows,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    Topology,
)
from vectorshard.shard.errors import Unsupported
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    ExchangeRequest,
    Problem,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    ListRequest,
    Rows,
    SearchRequest,
    SearchResult,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)


class Shard(Protocol):
    """Collections of vectors. The methods raise only errors of shard.errors."""

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Return the role of this shard and the leaf shards that it reaches."""
        ...

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection, with the incarnation `call.incarnation` if it is given.

        Returns the entry, and whether it is new. Raises CollectionExists if the name is in use with
        another configuration, IncarnationMismatch if it exists with another incarnation.
        """
        ...

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection and all its rows."""
        ...

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change a collection's target recall, durably, and return its entry.

        Repeating an update that failed on some shards completes it.
        """
        ...

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections, sorted by name."""
        ...

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection."""
        ...

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows. They are durable and searchable when it returns."""
        ...

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete rows. The deletion is durable and visible when it returns."""
        ...

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the existing rows among the requested ids, in the order of the request."""
        ...

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        ...

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page of live rows."""
        ...

    def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> Awaitable[SearchResult]:
        """Return the k best rows for each query."""
        ...

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Explain where an id is, how it ranks for a query, and what finds it."""
        ...

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train a new index on the rows that are live now."""
        ...

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Return what an operator has to look at."""
        ...

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        """Take in the reports of other shards, and return those of the leaf shards behind this one.

        Leaf shards that do not answer have no report. Raises Unsupported in earlier releases.
        """
        ...

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        """Raise the stage of a collection, durably, and set its members.

        A stage below the present one changes nothing. Raises CollectionNotFound or
        IncarnationMismatch if a shard that is meant has no such collection.
        """
        ...

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        """Return what a shard has lost, and record it as accepted if the request says so.

        A router works out the losses; a leaf shard records those that it is given. Repeating it is
        safe: if nothing is missing, it returns no losses, and changes nothing.
        """
        ...

    async def open_copy(self, request: OpenCopyRequest, *, call: Call = NO_LIMIT) -> Copy:
        """Pin what a leaf shard has of a collection, to be copied.

        Raises Overloaded if too many copies are open there, Unsupported in earlier releases, and
        what a strict call raises if the shard is missing.
        """
        ...

    async def read_copy(self, request: ReadCopyRequest, *, call: Call = NO_LIMIT) -> CopiedRows:
        """Return some of the rows of a copy; CopyEnded if it is no longer open."""
        ...

    async def close_copy(self, request: CloseCopyRequest, *, call: Call = NO_LIMIT) -> None:
        """Let go of a copy; one that is unknown changes nothing."""
        ...

    async def close(self) -> None:
        """Finish running work, write checkpoints, and release all resources."""
        ...


class WithoutMembership:
    """The part of a shard that keeps no membership, like one of an earlier release."""

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Return none."""
        return ()

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        """Refuse."""
        raise Unsupported("this shard makes no reports")

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        """Refuse."""
        raise Unsupported("this shard knows no stages of a collection")

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        """Refuse."""
        raise Unsupported("this shard notices no losses")


class WithoutCopies:
    """The part of a shard that makes no copies, like one of an earlier release."""

    async def open_copy(self, request: OpenCopyRequest, *, call: Call = NO_LIMIT) -> Copy:
        """Refuse."""
        raise Unsupported("this shard makes no copies")

    async def read_copy(self, request: ReadCopyRequest, *, call: Call = NO_LIMIT) -> CopiedRows:
        """Refuse."""
        raise Unsupported("this shard makes no copies")

    async def close_copy(self, request: CloseCopyRequest, *, call: Call = NO_LIMIT) -> None:
        """Refuse."""
        raise Unsupported("this shard makes no copies")
