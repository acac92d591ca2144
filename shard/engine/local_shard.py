"""A shard in this process: many collections behind the Shard protocol.

The event loop only hands over work. Searches, reads, commits and changes of the set of collections
run in separate threads, so that none of them waits for another kind.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vectorshard.shard.config import PAGE_SIZE_DEFAULT, SLOTS_TOTAL, EngineConfig
from vectorshard.shard.descriptions import (
    CollectionDescription,
    ExplainRequest,
    Explanation,
    ShardDescription,
    ShardPlacement,
    Topology,
)
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.batcher import Batcher
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.commit_plan import DeleteOutcome, UpsertOutcome, WriteOutcome
from vectorshard.shard.engine.group_commit import Write, commit_batcher
from vectorshard.shard.engine.index_builder import WorkAbandoned
from vectorshard.shard.engine.machine import Machine, limited
from vectorshard.shard.engine.reads import recommended_batch_size
from vectorshard.shard.engine.search_batching import SearchBatcher
from vectorshard.shard.engine.set_aside import SetAsides
from vectorshard.shard.engine.validation import admit_vectors, already_exists, check_filter
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    InvalidParameter,
    PlacementMismatch,
    ShardUnavailable,
)
from vectorshard.shard.index.ivf_index import use_cores
from vectorshard.shard.membership import Problem
from vectorshard.shard.protocol import WithoutMembership
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.storage.data_directory import DataDirectory, ShardIdentity, new_cluster
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    Cursor,
    DeleteRequest,
    DeleteResult,
    GetRequest,
    ListRequest,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    Token,
    TrainRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Served:
    """A collection, the queue of its writes, and the queue of its searches."""

    collection: Collection
    writes: Batcher[Write, WriteOutcome]
    searches: SearchBatcher


class LocalShard(WithoutMembership):
    """Collections whose rows live in this process's data directory. Use `open`."""

    def __init__(
        self,
        disk: Disk,
        directory: DataDirectory,
        engine: EngineConfig,
        clock: Callable[[], float],
        when_idle: Callable[[], None] = lambda: None,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._identity = identity = directory.identity
        self._topology = Topology(
            role=Role.SHARD,
            cluster=identity.cluster,
            placement_epoch=identity.placement_epoch,
            shards_total=identity.shards_total,
            shards=(ShardPlacement(shard=identity.shard, slots=identity.slots),),
        )
        # A merged answer has only some of the shard's own hits: see `merged_chances`.
        training = replace(engine.training, merged_shards=identity.shards_total)
        self._engine = engine = replace(engine, training=training)
        self._owned = np.zeros(SLOTS_TOTAL, dtype=np.bool_)
        for first, last in identity.slots:
            self._owned[first : last + 1] = True
        self._machine = Machine(disk, directory.path, engine)
        self._background = BackgroundThreads(clock, when_idle=when_idle)
        self._served: dict[str, _Served] = {}
        self._set_aside = SetAsides(identity.shard)
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Future[Any]] = set()
        prefix = f"shard-{self._identity.shard}"
        self._search_threads = ThreadPoolExecutor(
            engine.search_threads, f"{prefix}-search", use_cores, (engine.search_cores,)
        )
        self._read_threads = ThreadPoolExecutor(2, f"{prefix}-read")
        self._commit_threads = ThreadPoolExecutor(2, f"{prefix}-commit")
        self._change_threads = ThreadPoolExecutor(1, f"{prefix}-change")

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: Path,
        identity: ShardIdentity,
        engine: EngineConfig,
        clock: Callable[[], float] = time.time,
        *,
        new_cluster: Callable[[], str] = new_cluster,
        when_idle: Callable[[], None] = lambda: None,
    ) -> LocalShard:
        """Open a shard's data directory and all collections in it; blocking.

        A collection that fails to open is set aside, and the others are served.
        `new_cluster` names the cluster of a new directory if `identity` does not; `when_idle` is
        called whenever a background thread runs out of work.

        Raises
        ------
        DataDirectoryError
            If the directory is in use, too new, or belongs to another shard.
        """
        directory = DataDirectory.open(disk, path, identity, new_cluster=new_cluster)
        try:
            shard = cls(disk, directory, engine, clock, when_idle)
            for collection_directory in directory.collection_directories():
                shard._set_aside.open_or_set_aside(collection_directory, shard._open)
        except BaseException:
            directory.close()
            raise
        shard._background.start()
        return shard

    def _open(self, directory: Path) -> None:
        shard = self._identity.shard
        self._serve(Collection.open(self._disk, directory, shard, self._engine))

    def _serve(self, collection: Collection) -> None:
        writes = commit_batcher(
            collection.writes.apply,
            collection.state.room_for_rows,
            self._commit_threads,
            self._engine.buffer.slow_writers_wait_s,
        )
        served = _Served(collection, writes, SearchBatcher())
        self._served[collection.entry.config.name] = served
        collection.state.require_room = self._machine.require_room
        self._background.attach(collection)

    # ---- collections ----------------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Return the topology of one leaf shard: its number and its slots."""
        return self._topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection, durably. Once begun, the creation runs to its end."""
        return await self._to_its_end(self._create_collection(config, call))

    async def _create_collection(
        self, config: CollectionConfig, call: Call
    ) -> tuple[CollectionEntry, bool]:
        async with self._changing:
            if (served := self._served.get(config.name)) is not None:
                return self._existing(served.collection.entry, config, call), False
            self._set_aside.check(config.name, NO_LIMIT)
            self._machine.require_place(len(self._served) + len(self._set_aside))
            entry = CollectionEntry(config=config, incarnation=call.incarnation or uuid.uuid4().hex)
            collection = await self._in_thread(self._change_threads, self._create, entry)
            self._serve(collection)
            return entry, True

    @staticmethod
    def _existing(entry: CollectionEntry, config: CollectionConfig, call: Call) -> CollectionEntry:
        if entry.config != config:
            raise already_exists(entry.config, config)
        if call.incarnation and call.incarnation != entry.incarnation:
            raise IncarnationMismatch(f"collection {config.name!r} exists with another incarnation")
        return entry

    def _create(self, entry: CollectionEntry) -> Collection:
        shard, engine = self._identity.shard, self._engine
        with self._directory.creating_collection(entry.config.name) as building:
            Collection.create(self._disk, building, entry)
        return Collection.open(
            self._disk, self._directory.collection_directory(entry.config.name), shard, engine
        )

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection: finish the writes in flight, then remove its files.

        Once begun, the drop runs to its end. If the disk fails, the collection stays as it was.
        """
        await self._to_its_end(self._drop_collection(name, call))

    async def _drop_collection(self, name: str, call: Call) -> None:
        async with self._changing:
            if (aside := self._set_aside.find(name, call)) is not None:
                drop = partial(self._directory.drop_collection, name, aside.incarnation or name)
                await self._in_thread(self._change_threads, drop)
                self._set_aside.forget(name)
                return
            served = self._find(name, call)
            collection = served.collection
            del self._served[name]
            await served.writes.drain()
            self._background.detach(collection)
            try:
                await self._in_thread(
                    self._change_threads,
                    self._directory.drop_collection,
                    name,
                    collection.entry.incarnation,
                )
            except BaseException:
                self._served[name] = served
                self._background.attach(collection)
                raise
            await self._in_thread(self._change_threads, collection.close)

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change a collection's target recall. Once begun, the update runs to its end."""

        async def update() -> CollectionEntry:
            async with self._changing:
                change = self._find(request.collection, call).collection.writes.update
                return await self._in_thread(self._change_threads, change, request.target_recall)

        return await self._to_its_end(update())

    async def _to_its_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Change the collections, even if the caller is cancelled meanwhile.

        A change that stopped halfway would leave a directory that no shard serves.
        """
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections by name."""
        entries = [served.collection.entry for served in self._served.values()]
        return sorted(entries + self._set_aside.entries, key=lambda entry: entry.config.name)

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection on this shard."""
        if (aside := self._set_aside.find(name, call)) is not None:
            return aside.describe()
        collection = self._find(name, call).collection
        description = await self._read(collection, collection.reads.describe)
        return CollectionDescription(
            config=collection.entry.config,
            incarnation=collection.entry.incarnation,
            shards=(description,),
            recommended_batch_size=recommended_batch_size(collection.entry.config.dim),
        )

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows; they are durable and searchable when it returns."""
        served = self._find(request.collection, call)
        self._check_placement(request)
        outcome = await served.writes.submit(request)
        assert isinstance(outcome, UpsertOutcome)
        return UpsertResult(
            accepted=outcome.accepted,
            errors=outcome.errors,
            token=self._token(served.collection, outcome.sequence),
        )

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete rows; the deletion is durable and visible when it returns."""
        served = self._find(request.collection, call)
        outcome = await served.writes.submit(request)
        assert isinstance(outcome, DeleteOutcome)
        return DeleteResult(
            deleted=outcome.deleted, token=self._token(served.collection, outcome.sequence)
        )

    def _token(self, collection: Collection, sequence: int) -> Token:
        sequences = {self._identity.shard: sequence}
        return Token(incarnation=collection.entry.incarnation, sequences=sequences)

    def _check_placement(self, request: UpsertRequest) -> None:
        """Refuse rows of other shards."""
        slots = slots_of(request.ids)
        misplaced = ~self._owned[slots]
        if misplaced.any():
            row = int(misplaced.argmax())
            raise PlacementMismatch(
                f"row {row} belongs to slot {int(slots[row])}, which shard "
                f"{self._identity.shard} does not own; the caller's placement is wrong"
            )

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in their order, or the rows that pass a filter."""
        collection = self._find(request.collection, call).collection
        return await self._read(
            collection, collection.reads.get, request.ids, request.include, request.filter
        )

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        collection = self._find(request.collection, call).collection
        return await self._read(collection, collection.reads.count, request.ids, request.filter)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page of live rows, in the order of their row numbers."""
        collection = self._find(request.collection, call).collection
        first_row = 0
        if request.cursor is not None:
            if request.cursor.incarnation != collection.entry.incarnation:
                raise InvalidParameter("the cursor is from another collection", field="cursor")
            first_row = request.cursor.row
        page, next_row = await self._read(
            collection,
            collection.reads.list_rows,
            first_row,
            request.page_size or PAGE_SIZE_DEFAULT,
            request.include,
            request.filter,
        )
        if next_row is None:
            return page
        cursor = Cursor(
            incarnation=collection.entry.incarnation, shard=self._identity.shard, row=next_row
        )
        return replace(page, cursor=cursor)

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        """Find the k best rows of this shard for each query."""
        served = self._find(request.collection, call)
        collection = served.collection
        _check_in_time(call)
        if request.token is not None:
            self._check_token(collection, request.token)
        check_filter(collection.entry.config, request.filter)
        admitted = replace(
            request, queries=admit_vectors(collection.entry.config, request.queries, "queries")
        )
        return await served.searches.search(admitted, call, partial(self._search, collection))

    async def _search(
        self,
        collection: Collection,
        request: SearchRequest,
        call: Call,
        release: Callable[[], None],
    ) -> SearchResult:
        def search() -> SearchResult:
            _check_in_time(call)  # it may have waited for a thread
            return collection.reads.search(
                request, partial(_check_in_time, call, "during the search")
            )

        return await self._read(collection, search, threads=self._search_threads)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Explain where an id is, how it ranks here, and what a search needs to find it."""
        collection = self._find(request.collection, call).collection
        query = admit_vectors(collection.entry.config, request.query, "query")
        return await self._read(collection, collection.reads.explain, replace(request, query=query))

    def _check_token(self, collection: Collection, token: Token) -> None:
        """Refuse a token that this shard did not issue; it has seen every write that it issued."""
        newest = token.sequences.get(self._identity.shard, 0)
        if token.incarnation != collection.entry.incarnation:
            raise InvalidParameter("the token is from another collection", field="token")
        if newest > collection.snapshot.sequence:
            raise InvalidParameter(
                f"the token names write {newest}, the newest of shard {self._identity.shard} "
                f"is {collection.snapshot.sequence}",
                field="token",
            )

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train a new index on the live rows."""
        served = self._find(request.collection, call)
        collection = served.collection
        trained = collection.maintenance.ask_for_training()
        if request.wait:
            try:
                await asyncio.wrap_future(trained)
            except WorkAbandoned:
                if self._served.get(request.collection) is served:
                    raise ShardUnavailable("the shard stopped before the training ended") from None
                raise CollectionNotFound(
                    f"collection {request.collection!r} was dropped during the training"
                ) from None
        return [await self._read(collection, collection.reads.describe)]

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Return what an operator has to look at."""
        found = self._machine.problems(self._identity.shard) + self._set_aside.problems
        found += [each for served in self._served.values() for each in served.collection.problems]
        return sorted(found, key=lambda problem: (problem.collection, problem.kind.value))

    # ---- common ---------------------------------------------------------------------------------

    def _find(self, name: str, call: Call) -> _Served:
        served = self._served.get(name)
        if served is None:
            self._set_aside.check(name, call)
            raise CollectionNotFound(f"collection {name!r} does not exist")
        if call.incarnation and call.incarnation != served.collection.entry.incarnation:
            raise IncarnationMismatch(f"collection {name!r} was dropped and created again")
        return served

    async def _read(
        self,
        collection: Collection,
        read: Callable[..., T],
        *arguments: object,
        threads: ThreadPoolExecutor | None = None,
    ) -> T:
        """Run a read in a thread; raise CollectionNotFound if the collection was dropped meanwhile.

        Even if the read returned: another collection's files may be in place by now.
        """
        try:
            answer = await self._in_thread(threads or self._read_threads, read, *arguments)
        except Exception as error:
            if not collection.closed:
                collection.state.noticed.check(error)
                raise
        else:
            if not collection.closed:
                return answer
        raise CollectionNotFound(f"collection {collection.entry.config.name!r} was dropped")

    @staticmethod
    def _in_thread(
        threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object
    ) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(threads, limited, function, *arguments)

    async def close(self) -> None:
        """Finish the writes in flight, write the checkpoints that are due, close the files."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        served_all = list(self._served.values())
        for served in served_all:
            await served.writes.drain()
        await asyncio.to_thread(self._close, [served.collection for served in served_all])

    def _close(self, collections: Sequence[Collection]) -> None:
        self._background.stop()
        own = (self._search_threads, self._read_threads, self._commit_threads, self._change_threads)
        for threads in own:
            threads.shutdown()
        with ExitStack() as closing:
            closing.callback(self._directory.close)
            for collection in collections:
                closing.callback(collection.close)
                collection.maintenance.checkpoint_at_close()


def _check_in_time(call: Call, when: str = "before the search began") -> None:
    if call.deadline is not None and time.monotonic() > call.deadline:
        raise DeadlineExceeded(f"the deadline passed {when}")
