"""The seam of the house: what every shard can do, wherever its rows live.

Local shards, remote shards and routers implement it. Callers never ask which one they hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)


class Shard(Protocol):
    """Collections of vectors. Every method raises only errors of shard.errors."""

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say who this is and which leaf shards it reaches."""
        ...

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection, under `call.incarnation` if it is given.

        Returns the entry, and whether it is new. Raises CollectionExists when the name is taken by
        another configuration, IncarnationMismatch when it exists under another incarnation.
        """
        ...

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection with all its rows."""
        ...

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections by name."""
        ...

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection."""
        ...

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows; when it returns they are durable and searchable."""
        ...

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete rows; when it returns they are gone, durably."""
        ...

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in the order asked."""
        ...

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        ...

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page of live rows."""
        ...

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Find the k best rows for each query."""
        ...

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Say where an id is, how it ranks for a query, and what a search must do to find it."""
        ...

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train a new index from the rows that live now."""
        ...

    async def close(self) -> None:
        """Finish what runs, keep what is worth keeping, and let go of everything."""
        ...
