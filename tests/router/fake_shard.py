"""A child of a router that answers what a test tells it to, and remembers what it was asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.shard.samples import config_of
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    PlacementMismatch,
    VectorShardError,
)
from vectorshard.shard.rows.fingerprint import fingerprint_of
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
    Ledger,
    ListRequest,
    Receipt,
    Role,
    RowError,
    Rows,
    SearchRequest,
    SearchResult,
    ShardDescription,
    ShardPlacement,
    ShardReceipt,
    ShardState,
    Token,
    TopK,
    Topology,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)


@dataclass
class FakeShard:
    """One leaf shard of several. Holds collections, but no rows.

    As a server does, it refuses calls that are meant for other shards. A test that makes it another
    shard, or another cluster's, has an address taken over by somebody else.
    """

    shard: int
    shards_total: int
    entries: dict[str, CollectionEntry] = field(default_factory=dict)
    failure: VectorShardError | None = None
    """What every call but `topology` fails with."""
    drop_failure: VectorShardError | None = None
    """What a drop alone fails with."""
    silence: VectorShardError | None = None
    """What `topology` fails with."""
    cluster: str = "cluster"
    topologies_told: int = 0
    resolutions: int = 0
    hits: Sequence[Sequence[tuple[int, float]]] = ()
    """(id, score) of each query, best first; none for queries beyond."""
    coverage: float = 1.0
    """What its receipt says."""
    explanation: Explanation = field(default_factory=Explanation)
    """What it says of every id, and of every score."""
    row_errors: Sequence[int] = ()
    """Rows of every upsert, by their index, that are refused."""
    calls: list[tuple[str, object, Call]] = field(default_factory=list)
    closed: bool = False

    def with_collection(self, name: str = "words", incarnation: str = "first") -> FakeShard:
        """Have a collection already."""
        self.entries[name] = CollectionEntry(config=config_of(name), incarnation=incarnation)
        return self

    def asked(self, method: str) -> list[object]:
        """Return what a method was asked with."""
        return [request for name, request, _ in self.calls if name == method]

    def _answer(self, method: str, request: object, call: Call) -> None:
        self.calls.append((method, request, call))
        if self.failure is not None:
            raise self.failure
        if call.placement not in ("", fingerprint_of(self._topology())):
            raise PlacementMismatch(f"this is shard {self.shard} of cluster {self.cluster}")

    def _find(self, method: str, name: str, request: object, call: Call) -> CollectionEntry:
        self._answer(method, request, call)
        if name not in self.entries:
            raise CollectionNotFound(f"no collection {name}")
        entry = self.entries[name]
        if call.incarnation not in ("", entry.incarnation):
            raise IncarnationMismatch(f"collection {name} is {entry.incarnation}")
        return entry

    def resolve_again(self) -> None:
        """Take note of it."""
        self.resolutions += 1

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Own the slots of one of `shards_total` shards."""
        self.topologies_told += 1
        if self.silence is not None:
            raise self.silence
        return self._topology()

    def _topology(self) -> Topology:
        slots = slots_of_shard(self.shard, self.shards_total)
        return Topology(
            role=Role.SHARD,
            cluster=self.cluster,
            placement_epoch=1,
            shards_total=self.shards_total,
            shards=(ShardPlacement(shard=self.shard, slots=slots),),
        )

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create it, if it is not there."""
        self._answer("create", config, call)
        if config.name in self.entries:
            return self._find("create again", config.name, config, call), False
        entry = CollectionEntry(config=config, incarnation=call.incarnation)
        self.entries[config.name] = entry
        return entry, True

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop it."""
        self._find("drop", name, name, call)
        if self.drop_failure is not None:
            raise self.drop_failure
        del self.entries[name]

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """List what is there."""
        self._answer("list collections", None, call)
        return list(self.entries.values())

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe it."""
        entry = self._find("describe", name, name, call)
        return CollectionDescription(
            config=entry.config,
            incarnation=entry.incarnation,
            shards=(self._description(),),
            recommended_batch_size=8,
        )

    def _description(self) -> ShardDescription:
        return ShardDescription(
            shard=self.shard,
            state=ShardState.BUFFERING,
            training=False,
            ledger=Ledger(accepted=10 + self.shard, buffered=10 + self.shard),
        )

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Accept all rows but those that are to be refused."""
        entry = self._find("upsert", request.collection, request, call)
        errors = tuple(RowError(row, 6, f"shard {self.shard}") for row in self.row_errors)
        return UpsertResult(
            accepted=len(request.ids) - len(errors), errors=errors, token=self._token(entry)
        )

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Say that all ids were there."""
        entry = self._find("delete", request.collection, request, call)
        assert request.ids is not None
        return DeleteResult(deleted=len(request.ids), token=self._token(entry))

    def _token(self, entry: CollectionEntry) -> Token:
        return Token(incarnation=entry.incarnation, sequences={self.shard: 40 + self.shard})

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Have all ids that are even, in the order asked."""
        self._find("get", request.collection, request, call)
        assert request.ids is not None
        return Rows(ids=request.ids[request.ids % 2 == 0])

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count as many rows as ids, or as the shard's number says."""
        self._find("count", request.collection, request, call)
        return self.shard if request.ids is None else len(request.ids)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Have no rows."""
        self._find("list", request.collection, request, call)
        return Rows(ids=np.zeros(0, dtype=np.int64))

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Answer with the hits."""
        self._find("search", request.collection, request, call)
        hits = [*self.hits, *[[]] * len(request.queries)][: len(request.queries)]
        flat = [hit for of_query in hits for hit in of_query]
        missing_reason = "" if self.coverage else "asleep"
        return SearchResult(
            hits=TopK(
                counts=np.array([len(of_query) for of_query in hits], dtype=np.uint32),
                ids=np.array([id_ for id_, _ in flat], dtype=np.int64),
                scores=np.array([score for _, score in flat], dtype=np.float32),
            ),
            receipt=Receipt(
                shards=(
                    ShardReceipt(
                        shard=self.shard, missing_reason=missing_reason, rows_visible=len(flat)
                    ),
                ),
                coverage=self.coverage,
            ),
        )

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Say what it is told to."""
        self._find("explain", request.collection, request, call)
        return self.explanation

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train nothing."""
        self._find("train", request.collection, request, call)
        return [self._description()]

    async def close(self) -> None:
        """Take note of it."""
        self.closed = True
