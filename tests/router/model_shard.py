"""A shard that is a dictionary, and remembers every state that it was ever in.

It obeys the Shard protocol as `LocalShard` does: incarnations, slots, writes that are atomic, that
run to their end once begun, and of which identical content changes nothing. What it does not have
is an index: every search is exact. Its receipts say in `generation` which of its states they speak
of, so that whoever judges an answer knows what it must be.

`ModelShard` is what routers are simulated over, with work that takes time. `FaultyShard` is what
they are tested over: its work takes none, its failures are injected, its calls remembered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Self, TypeVar

import numpy as np

from tests.shard.samples import config_of
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.config import PAGE_SIZE_DEFAULT
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    ShardPlacement,
    Topology,
)
from vectorshard.shard.engine.validation import check_vectors
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    PlacementMismatch,
    ShardUnavailable,
    Unsupported,
    VectorShardError,
)
from vectorshard.shard.protocol import WithoutCopies, WithoutMembership
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    Float32Array,
    GetRequest,
    Int64Array,
    Ledger,
    ListRequest,
    Metric,
    Receipt,
    Role,
    RowError,
    RowErrorCode,
    Rows,
    SearchRequest,
    SearchResult,
    ShardReceipt,
    ShardState,
    Token,
    TopK,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
    WriteMode,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cause:
    """Whose doing something is: a call's by its number, of which this may be a copy."""

    call: int = 0
    copy: bool = False


NOBODY: Final = Cause()

CAUSE: Final[ContextVar[Cause]] = ContextVar("cause", default=NOBODY)
"""Travels with a call's tasks from its caller through router and network into the shards."""


@dataclass(frozen=True, slots=True)
class Held:
    """A collection at a moment: its rows by id, each a vector (dim,), and its ledger."""

    entry: CollectionEntry
    rows: Mapping[int, Float32Array] = field(default_factory=dict)
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True, slots=True)
class State:
    """All collections of a shard, from one change to the next."""

    sequence: int
    since: float
    held: Mapping[str, Held]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What made a state of the one before: the ids that it touched, or a whole collection."""

    at: float
    cause: Cause
    kind: str
    shard: int
    incarnation: str
    ids: tuple[int, ...] = ()


Pace = Callable[[str], float]
"""Returns how many seconds some work takes: a "search", a "read", a "wait", or a "commit"."""


@lru_cache
def topology_of(shard: int, shards_total: int, cluster: str) -> Topology:
    """Return what a leaf shard tells of itself: the same object as long as it is the same."""
    return Topology(
        role=Role.SHARD,
        cluster=cluster,
        placement_epoch=1,
        shards_total=shards_total,
        shards=(ShardPlacement(shard=shard, slots=slots_of_shard(shard, shards_total)),),
    )


class ModelShard(WithoutCopies, WithoutMembership):
    """One leaf shard of several. It outlives its server: what it has committed is durable.

    Parameters
    ----------
    shard, shards_total, cluster
        Who it is.
    pace
        How long it works.
    clock
        Seconds.
    first_sequence
        Where its states are numbered from.
    """

    def __init__(
        self,
        shard: int,
        shards_total: int,
        cluster: str,
        *,
        pace: Pace,
        clock: Callable[[], float],
        first_sequence: int = 0,
    ) -> None:
        self.shard = shard
        self.shards_total = shards_total
        self.cluster = cluster
        self._pace = pace
        self._clock = clock
        self._first_sequence = first_sequence
        self.states = [State(first_sequence, 0.0, {})]
        self.changes: list[Change] = []
        self._commits: dict[asyncio.Task[Any], None] = {}
        self._crashes = 0

    @property
    def _topology(self) -> Topology:
        return topology_of(self.shard, self.shards_total, self.cluster)

    @property
    def _slots(self) -> tuple[int, int]:
        ((first, last),) = self._topology.shards[0].slots
        return first, last

    @property
    def slots(self) -> int:
        """How many it owns."""
        first, last = self._slots
        return last + 1 - first

    # ---- what it has been -----------------------------------------------------------------------

    @property
    def state(self) -> State:
        """What it holds now."""
        return self.states[-1]

    def state_of(self, sequence: int) -> State | None:
        """Return the state of a number; None if there was none."""
        place = sequence - self._first_sequence
        return self.states[place] if 0 <= place < len(self.states) else None

    def states_within(self, began: float, ended: float) -> list[State]:
        """Return the states that it was in at some moment from `began` to `ended`."""
        ends = [state.since for state in self.states[1:]] + [float("inf")]
        return [
            state
            for state, end in zip(self.states, ends, strict=True)
            if state.since <= ended and end >= began
        ]

    def crash(self) -> None:
        """Lose what is not committed."""
        self._crashes += 1
        for commit in self._commits:
            commit.cancel()

    def _change(self, kind: str, name: str, held: Held | None, *ids: int) -> None:
        """Enter the next state, in which `name` is `held`, or is not there."""
        before = self.state.held.get(name)
        known = held or before
        assert known is not None
        all_held = {each: kept for each, kept in self.state.held.items() if each != name}
        if held is not None:
            all_held[name] = held
        now = self._clock()
        self.states.append(State(self.state.sequence + 1, now, all_held))
        self.changes.append(
            Change(
                at=now,
                cause=CAUSE.get(),
                kind=kind,
                shard=self.shard,
                incarnation=known.entry.incarnation,
                ids=ids,
            )
        )

    async def _committed(self, commit: Callable[[], T]) -> T:
        """Commit in a while; once that has begun, only a crash ends it."""
        crashes = self._crashes
        await asyncio.sleep(self._pace("wait"))
        if crashes != self._crashes:
            raise ShardUnavailable("this process is dead")

        async def take_time() -> T:
            await asyncio.sleep(self._pace("commit"))
            return commit()

        task = asyncio.ensure_future(take_time())
        self._commits[task] = None
        task.add_done_callback(self._forget)
        return await asyncio.shield(task)

    def _forget(self, commit: asyncio.Task[Any]) -> None:
        self._commits.pop(commit, None)
        if not commit.cancelled():
            commit.exception()  # its caller may have left

    def _arrive(self, method: str, request: object, call: Call) -> None:
        """Take a call; here, without a word."""

    def _find(self, name: str, call: Call) -> Held:
        held = self.state.held.get(name)
        if held is None:
            raise CollectionNotFound(f"collection {name!r} does not exist")
        if call.incarnation not in ("", held.entry.incarnation):
            raise IncarnationMismatch(f"collection {name} was dropped and created anew")
        return held

    def _still(self, held: Held) -> Held:
        """Return a collection as it is now; it may have been dropped since it was found."""
        now = self.state.held.get(held.entry.config.name)
        if now is None or now.entry.incarnation != held.entry.incarnation:
            raise CollectionNotFound(f"collection {held.entry.config.name} was dropped meanwhile")
        return now

    # ---- collections ----------------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say which slots it owns."""
        return self._topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create it, if it is not there."""
        self._arrive("create", config, call)

        def create() -> tuple[CollectionEntry, bool]:
            if (held := self.state.held.get(config.name)) is not None:
                if held.entry.config != config:
                    raise CollectionExists(f"collection {config.name} exists: {held.entry.config}")
                self._find(config.name, call)
                return held.entry, False
            assert call.incarnation, "a router names the incarnation"
            entry = CollectionEntry(config=config, incarnation=call.incarnation)
            self._change("create", config.name, Held(entry))
            return entry, True

        return await self._committed(create)

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop it, if it is the one that is meant."""
        self._arrive("drop", name, call)

        def drop() -> None:
            self._find(name, call)
            self._change("drop", name, None)

        await self._committed(drop)

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change its target recall."""
        self._arrive("update", request, call)

        def update() -> CollectionEntry:
            held = self._find(request.collection, call)
            config = replace(held.entry.config, target_recall=request.target_recall)
            changed = replace(held, entry=replace(held.entry, config=config))
            self._change("update", request.collection, changed)
            return changed.entry

        return await self._committed(update)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """List what is there."""
        self._arrive("list collections", None, call)
        return [held.entry for _, held in sorted(self.state.held.items())]

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe it."""
        self._arrive("describe", name, call)
        held = self._find(name, call)
        return CollectionDescription(
            config=held.entry.config,
            incarnation=held.entry.incarnation,
            shards=(self._description(held),),
            recommended_batch_size=8,
        )

    def _description(self, held: Held) -> ShardDescription:
        return ShardDescription(
            shard=self.shard, state=ShardState.BUFFERING, training=False, ledger=held.ledger
        )

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write the rows that are new or other than those that are there, in one step."""
        self._arrive("upsert", request, call)
        found = self._find(request.collection, call)
        slots = slots_of(request.ids)
        first, last = self._slots
        if ((slots < first) | (slots > last)).any():
            raise PlacementMismatch(f"shard {self.shard} does not own all of these rows")
        check_vectors(found.entry.config, request.vectors, "vectors")
        return await self._committed(lambda: self._upsert(request, self._still(found)))

    def _upsert(self, request: UpsertRequest, held: Held) -> UpsertResult:
        changed: dict[int, Float32Array] = {}
        errors = []
        replaced = 0
        for row, (id_, vector) in enumerate(
            zip(request.ids.tolist(), request.vectors, strict=True)
        ):
            there = held.rows.get(id_)
            if there is not None and there.tobytes() == vector.tobytes():
                continue
            if there is not None and request.mode is WriteMode.INSERT:
                errors.append(RowError(row, RowErrorCode.ALREADY_EXISTS, "other content"))
                continue
            replaced += there is not None
            changed[id_] = np.array(vector, dtype=np.float32)
        if changed:
            ledger = replace(
                held.ledger,
                accepted=held.ledger.accepted + len(changed),
                buffered=held.ledger.buffered + len(changed) - replaced,
                replaced=held.ledger.replaced + replaced,
            )
            rows = {**held.rows, **changed}
            self._change("upsert", request.collection, Held(held.entry, rows, ledger), *changed)
        return UpsertResult(
            accepted=len(request.ids) - len(errors), errors=tuple(errors), token=self._token(held)
        )

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete the ids that are there, in one step."""
        self._arrive("delete", request, call)
        found = self._find(request.collection, call)
        assert request.ids is not None
        ids = request.ids.tolist()
        return await self._committed(lambda: self._delete(ids, self._still(found)))

    def _delete(self, ids: Sequence[int], held: Held) -> DeleteResult:
        there = [id_ for id_ in ids if id_ in held.rows]
        if there:
            ledger = replace(
                held.ledger,
                buffered=held.ledger.buffered - len(there),
                deleted=held.ledger.deleted + len(there),
            )
            rows = {id_: vector for id_, vector in held.rows.items() if id_ not in there}
            name = held.entry.config.name
            self._change("delete", name, Held(held.entry, rows, ledger), *there)
        return DeleteResult(deleted=len(there), token=self._token(held))

    def _token(self, held: Held) -> Token:
        return Token(
            incarnation=held.entry.incarnation, sequences={self.shard: self.state.sequence}
        )

    # ---- reads ----------------------------------------------------------------------------------

    async def _read(self, work: str, held: Held, read: Callable[[], T]) -> T:
        """Read at once and answer in a while, unless the collection is dropped meanwhile."""
        answer = read()
        await asyncio.sleep(self._pace(work))
        self._still(held)
        return answer

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in the order asked."""
        self._arrive("get", request, call)
        held = self._find(request.collection, call)
        assert request.ids is not None
        found = [id_ for id_ in request.ids.tolist() if id_ in held.rows]
        return await self._read("read", held, lambda: _rows(held, found))

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count all rows, or those of some ids."""
        self._arrive("count", request, call)
        held = self._find(request.collection, call)
        ids = held.rows if request.ids is None else request.ids.tolist()
        return await self._read("read", held, lambda: sum(id_ in held.rows for id_ in ids))

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """List rows by id; the cursor's row is the next one's id."""
        self._arrive("list", request, call)
        held = self._find(request.collection, call)
        first = 0 if request.cursor is None else request.cursor.row
        wanted = request.page_size or PAGE_SIZE_DEFAULT
        ids = sorted(id_ for id_ in held.rows if id_ >= first)
        page = _rows(held, ids[:wanted])
        if len(ids) > wanted:
            cursor = Cursor(incarnation=held.entry.incarnation, shard=self.shard, row=ids[wanted])
            page = replace(page, cursor=cursor)
        return await self._read("read", held, lambda: page)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Score every row."""
        self._arrive("search", request, call)
        held, sequence = self._find(request.collection, call), self.state.sequence
        if call.deadline is not None and self._clock() > call.deadline:
            raise DeadlineExceeded("the deadline passed before the search began")
        check_vectors(held.entry.config, request.queries, "queries")
        return await self._read("search", held, lambda: self._search(request, held, sequence))

    def _search(self, request: SearchRequest, held: Held, sequence: int) -> SearchResult:
        metric = held.entry.config.metric
        best = [ranked(held.rows, query, metric)[: request.k] for query in request.queries]
        receipt = ShardReceipt(
            shard=self.shard,
            rows_visible=len(held.rows),
            rows_exact=len(held.rows),
            generation=sequence,
        )
        hits = top_k(best)
        return SearchResult(
            hits=hits,
            receipt=Receipt(shards=(receipt,), coverage=1.0),
            vectors=_vectors(held, hits.ids.tolist()) if request.include.vectors else None,
        )

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Explain nothing: there is no index."""
        raise Unsupported("a model explains nothing")

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train nothing."""
        self._arrive("train", request, call)
        return [self._description(self._find(request.collection, call))]

    async def close(self) -> None:
        """Have nothing to let go of."""


class Entries(MutableMapping[str, CollectionEntry]):
    """The collections of a shard by name, as a test puts them there and takes them away."""

    def __init__(self, shard: ModelShard) -> None:
        self._shard = shard

    def __getitem__(self, name: str) -> CollectionEntry:
        return self._shard.state.held[name].entry

    def __setitem__(self, name: str, entry: CollectionEntry) -> None:
        self._shard._change("create", name, Held(entry))

    def __delitem__(self, name: str) -> None:
        self._shard._change("drop", name, None)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shard.state.held)

    def __len__(self) -> int:
        return len(self._shard.state.held)


class FaultyShard(ModelShard):
    """A model shard that answers at once, fails as a test tells it to, and remembers its calls.

    As a server does, it refuses calls that are meant for other shards. A test that makes it another
    shard, or another cluster's, has its address taken over by another server. Searches and
    explanations answer what the test says.
    """

    def __init__(
        self,
        shard: int,
        shards_total: int,
        *,
        hits: Sequence[Ranked] = (),
        failure: VectorShardError | None = None,
    ) -> None:
        super().__init__(
            shard,
            shards_total,
            "cluster",
            pace=lambda _: 0.0,
            clock=lambda: 0.0,
            first_sequence=10 * shard,  # so that no two shards have the same
        )
        self.entries = Entries(self)
        self.hits = hits
        """(id, score) of each query, best first; none for queries beyond."""
        self.coverage = 1.0
        """What its receipt says."""
        self.explanation = Explanation()
        """What it says of every id, and of every score."""
        self.failure = failure
        """What every call but `topology` fails with."""
        self.drop_failure: VectorShardError | None = None
        """What a drop alone fails with."""
        self.silence: VectorShardError | None = None
        """What `topology` fails with."""
        self.row_errors: Sequence[int] = ()
        """Rows of every upsert, by their index, that are refused."""
        self.calls: list[tuple[str, object, Call]] = []
        self.topologies_told = 0
        self.resolutions = 0
        self.closed = False

    def with_collection(self, name: str = "words", incarnation: str = "first") -> Self:
        """Have a collection already, with as many rows as the shard's number says."""
        entry = CollectionEntry(config=config_of(name), incarnation=incarnation)
        vector = np.zeros(entry.config.dim, dtype=np.float32)
        rows = {-1 - row: vector for row in range(self.shard)}
        ledger = Ledger(accepted=len(rows), buffered=len(rows))
        self._change("create", name, Held(entry, rows, ledger))
        return self

    def asked(self, method: str) -> list[object]:
        """Return what a method was asked with."""
        return [request for name, request, _ in self.calls if name == method]

    def _arrive(self, method: str, request: object, call: Call) -> None:
        self.calls.append((method, request, call))
        if self.failure is not None:
            raise self.failure
        if call.placement not in ("", fingerprint_of(self._topology)):
            raise PlacementMismatch(f"this is shard {self.shard} of cluster {self.cluster}")

    async def _committed(self, commit: Callable[[], T]) -> T:
        return commit()

    async def _read(self, work: str, held: Held, read: Callable[[], T]) -> T:
        return read()

    def resolve_again(self) -> None:
        """Take note of it."""
        self.resolutions += 1

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say which slots it owns, unless it is silent."""
        self.topologies_told += 1
        if self.silence is not None:
            raise self.silence
        return self._topology

    def _change(self, kind: str, name: str, held: Held | None, *ids: int) -> None:
        if kind == "drop" and self.drop_failure is not None:
            raise self.drop_failure
        super()._change(kind, name, held, *ids)

    def _upsert(self, request: UpsertRequest, held: Held) -> UpsertResult:
        errors = tuple(RowError(row, 6, f"shard {self.shard}") for row in self.row_errors)
        taken = np.delete(np.arange(len(request.ids)), list(self.row_errors))
        part = replace(request, ids=request.ids[taken], vectors=request.vectors[taken])
        return replace(super()._upsert(part, held), errors=errors)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Answer with the hits."""
        self._arrive("search", request, call)
        held = self._find(request.collection, call)
        check_vectors(held.entry.config, request.queries, "queries")
        hits = [*self.hits, *[[]] * len(request.queries)][: len(request.queries)]
        part = ShardReceipt(
            shard=self.shard,
            missing_reason="" if self.coverage else "asleep",
            rows_visible=sum(map(len, hits)),
        )
        return SearchResult(
            hits=top_k(hits), receipt=Receipt(shards=(part,), coverage=self.coverage)
        )

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Say what it is told to."""
        self._arrive("explain", request, call)
        self._find(request.collection, call)
        return self.explanation

    async def close(self) -> None:
        """Take note of it."""
        self.closed = True


Ranked = list[tuple[int, float]]
"""(id, score) of the rows for one query, best first."""


def ranked(rows: Mapping[int, Float32Array], query: Float32Array, metric: Metric) -> Ranked:
    """Rank all rows for a query (dim,); equal scores rank by id.

    Vectors and queries of small integers have scores without any rounding.
    """
    if not rows:
        return []
    vectors = np.stack([*rows.values()]).astype(np.float64)
    exact = query.astype(np.float64)
    if metric is Metric.L2:
        costs = scores = ((vectors - exact) ** 2).sum(axis=1)
    else:
        scores = vectors @ exact
        costs = -scores
    by_rank = sorted(zip(costs.tolist(), rows, scores.tolist(), strict=True))
    return [(id_, score) for _, id_, score in by_rank]


def top_k(best: Iterable[Ranked]) -> TopK:
    """Return hits of several queries as they are answered."""
    best = list(best)
    flat = [hit for of_query in best for hit in of_query]
    return TopK(
        counts=np.array([len(of_query) for of_query in best], dtype=np.uint32),
        ids=np.array([id_ for id_, _ in flat], dtype=np.int64),
        scores=np.array([score for _, score in flat], dtype=np.float32),
    )


def _rows(held: Held, ids: Sequence[int]) -> Rows:
    as_array: Int64Array = np.array(ids, dtype=np.int64)
    return Rows(ids=as_array, vectors=_vectors(held, ids), metadata=[b""] * len(ids))


def _vectors(held: Held, ids: Sequence[int]) -> Float32Array:
    dim = held.entry.config.dim
    return np.array([held.rows[id_] for id_ in ids], dtype=np.float32).reshape(len(ids), dim)
