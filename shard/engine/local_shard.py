"""A shard in this process: many collections behind the Shard protocol.

The event loop only hands over work. Searches, reads, commits and changes of the set of collections
run in separate threads, so that none of them waits for another kind.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

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
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.collection_set import CollectionSet, in_thread
from vectorshard.shard.engine.commit_plan import DeleteOutcome, UpsertOutcome
from vectorshard.shard.engine.copies import Copies
from vectorshard.shard.engine.copy_calls import CopyCalls
from vectorshard.shard.engine.index_builder import WorkAbandoned
from vectorshard.shard.engine.machine import Machine
from vectorshard.shard.engine.membership import ShardMembership
from vectorshard.shard.engine.reads import recommended_batch_size
from vectorshard.shard.engine.search_thread import SearchThread
from vectorshard.shard.engine.validation import admit_vectors, check_filter
from vectorshard.shard.errors import (
    CollectionNotFound,
    InvalidParameter,
    PlacementMismatch,
    ShardUnavailable,
    WritesLost,
)
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    ExchangeRequest,
    Problem,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.rows.slots import slots_by_hash, xxh3_64
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
    UInt64Array,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)
from vectorshard.shard.witnesses import session_at

T = TypeVar("T")


class LocalShard(CopyCalls):
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
            shards=(
                ShardPlacement(
                    shard=identity.shard,
                    slots=identity.slots,
                    session=f"{directory.directory}-{directory.opens}-{directory.session:x}",
                ),
            ),
        )
        # A merged answer has only some of the shard's own hits: see `merged_chances`.
        training = replace(engine.training, merged_shards=identity.shards_total)
        self._engine = engine = replace(engine, training=training)
        self._owned = np.zeros(SLOTS_TOTAL, dtype=np.bool_)
        for first, last in identity.slots:
            self._owned[first : last + 1] = True
        self._machine = Machine(disk, directory.path, engine)
        self._background = BackgroundThreads(clock, when_idle=when_idle)
        prefix = f"shard-{self._identity.shard}"
        self._searches = SearchThread(f"{prefix}-search", engine.search_cores)
        self._read_threads = ThreadPoolExecutor(2, f"{prefix}-read")
        self._commit_threads = ThreadPoolExecutor(2, f"{prefix}-commit")
        self._change_thread = ThreadPoolExecutor(1, f"{prefix}-change")
        self._witness_thread = ThreadPoolExecutor(1, f"{prefix}-witness")
        self._collections = CollectionSet(
            disk,
            directory,
            engine,
            self._machine,
            self._background,
            self._commit_threads,
            self._change_thread,
        )
        self._membership = ShardMembership(disk, self._collections, self._witness_thread)
        self._copies = Copies()

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
            shard._collections.open_all()
        except BaseException:
            directory.close()
            raise
        shard._background.start()
        return shard

    # ---- collections ----------------------------------------------------------------------------

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Return the topology of one leaf shard: its number and its slots."""
        return self._topology

    async def create_collection(
        self, config: CollectionConfig, *, call: Call = NO_LIMIT
    ) -> tuple[CollectionEntry, bool]:
        """Create a collection, durably. Once begun, the creation runs to its end."""
        return await self._collections.to_its_end(self._collections.create(config, call))

    async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
        """Drop a collection: finish the writes in flight, then remove its files.

        Once begun, the drop runs to its end. If the disk fails, the collection stays as it was.
        """
        await self._collections.to_its_end(self._collections.drop(name, call))
        self._copies.expire()

    async def update_collection(
        self, request: UpdateRequest, *, call: Call = NO_LIMIT
    ) -> CollectionEntry:
        """Change a collection's target recall. Once begun, the update runs to its end."""
        return await self._collections.to_its_end(self._collections.update(request, call))

    async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
        """Return the collections by name."""
        return self._collections.entries

    async def describe(self, name: str, *, call: Call = NO_LIMIT) -> CollectionDescription:
        """Describe a collection on this shard."""
        if (aside := self._collections.set_aside.find(name, call)) is not None:
            return aside.describe()
        collection = self._collections.find(name, call).collection
        description = await self._read(collection, collection.reads.describe)
        kept = await in_thread(self._witness_thread, self._membership.kept_files, name)
        return CollectionDescription(
            config=collection.entry.config,
            incarnation=collection.entry.incarnation,
            shards=(
                replace(
                    description,
                    kept_files="; ".join(each.text for each in kept),
                    scrub=collection.scrub.description,
                ),
            ),
            recommended_batch_size=recommended_batch_size(collection.entry.config.dim),
        )

    # ---- writes ---------------------------------------------------------------------------------

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        """Write rows; they are durable and searchable when it returns."""
        served = self._collections.find_whole(request.collection, call)
        id_hashes = self._check_placement(request)
        served.require_complete()
        outcome = await served.writes.submit(replace(request, id_hashes=id_hashes))
        assert isinstance(outcome, UpsertOutcome)
        return UpsertResult(
            accepted=outcome.accepted,
            errors=outcome.errors,
            token=self._token(served.collection, outcome.sequence),
        )

    async def delete(self, request: DeleteRequest, *, call: Call = NO_LIMIT) -> DeleteResult:
        """Delete rows; the deletion is durable and visible when it returns."""
        served = self._collections.find_whole(request.collection, call)
        served.require_complete()
        outcome = await served.writes.submit(request)
        assert isinstance(outcome, DeleteOutcome)
        return DeleteResult(
            deleted=outcome.deleted, token=self._token(served.collection, outcome.sequence)
        )

    def _token(self, collection: Collection, sequence: int) -> Token:
        shard, sessions = self._identity.shard, collection.state.row_store.sessions
        return Token(
            incarnation=collection.entry.incarnation,
            sequences={shard: sequence},
            sessions={shard: session_at(sessions, sequence)},
        )

    def _check_placement(self, request: UpsertRequest) -> UInt64Array:
        """Refuse rows of other shards; return the hashes of the ids."""
        id_hashes = xxh3_64(request.ids)
        slots = slots_by_hash(id_hashes)
        misplaced = ~self._owned[slots]
        if misplaced.any():
            row = int(misplaced.argmax())
            raise PlacementMismatch(
                f"row {row} belongs to slot {int(slots[row])}, which shard "
                f"{self._identity.shard} does not own; the caller's placement is wrong"
            )
        return id_hashes

    # ---- reads ----------------------------------------------------------------------------------

    async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return the rows of the ids that exist, in their order, or the rows that pass a filter."""
        collection = self._collections.find_whole(request.collection, call).collection
        return await self._read(
            collection, collection.reads.get, request.ids, request.include, request.filter
        )

    async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
        """Count live rows."""
        collection = self._collections.find_whole(request.collection, call).collection
        return await self._read(collection, collection.reads.count, request.ids, request.filter)

    async def list_rows(self, request: ListRequest, *, call: Call = NO_LIMIT) -> Rows:
        """Return a page of live rows, in the order of their row numbers."""
        collection = self._collections.find_whole(request.collection, call).collection
        first_row = 0
        if request.cursor is not None:
            if request.cursor.incarnation != collection.entry.incarnation:
                raise InvalidParameter("the cursor is from another collection", field="cursor")
            first_row = request.cursor.row
        page, next_row = await self._read(
            collection,
            partial(collection.reads.list_rows, skip_damaged=request.skip_damaged),
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
        collection = self._collections.find_whole(request.collection, call).collection
        if request.token is not None:
            self._check_token(collection, request.token)
        check_filter(collection.entry.config, request.filter)
        return await self._searches.search(collection, request, call)

    async def explain(self, request: ExplainRequest, *, call: Call = NO_LIMIT) -> Explanation:
        """Explain where an id is, how it ranks here, and what a search needs to find it."""
        collection = self._collections.find_whole(request.collection, call).collection
        query = admit_vectors(collection.entry.config, request.query, "query")
        return await self._read(collection, collection.reads.explain, replace(request, query=query))

    def _check_token(self, collection: Collection, token: Token) -> None:
        """Refuse a token that names writes which this shard has not, or has from another session.

        It has seen every write that it acknowledged; one that it has not is lost with its disk.
        """
        shard, newest = self._identity.shard, collection.snapshot.sequence
        named = token.sequences.get(shard, 0)
        if token.incarnation != collection.entry.incarnation:
            raise InvalidParameter("the token is from another collection", field="token")
        session = token.sessions.get(shard)
        if session is None and named > newest:
            raise InvalidParameter(
                f"the token names write {named}, the newest of shard {shard} is {newest}",
                field="token",
            )
        sessions = collection.state.row_store.sessions
        if session is not None and (named > newest or session_at(sessions, named) != session):
            raise WritesLost(
                f"the token names write {named} of shard {shard}, which has lost that write: its "
                f"newest is {newest}, and its disk was lost or is an older copy"
            )

    async def train(
        self, request: TrainRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardDescription]:
        """Train a new index on the live rows."""
        served = self._collections.find(request.collection, call)
        collection = served.collection
        trained = collection.maintenance.ask_for_training()
        if request.wait:
            try:
                await asyncio.wrap_future(trained)
            except WorkAbandoned:
                if self._collections.served.get(request.collection) is served:
                    raise ShardUnavailable("the shard stopped before the training ended") from None
                raise CollectionNotFound(
                    f"collection {request.collection!r} was dropped during the training"
                ) from None
        return [await self._read(collection, collection.reads.describe)]

    # ---- membership -----------------------------------------------------------------------------

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Return what an operator has to look at."""
        served = self._collections.served.values()
        found = self._machine.problems(self._identity.shard) + self._collections.set_aside.problems
        found += [problem for each in served for problem in each.collection.problems]
        found += await in_thread(self._witness_thread, self._membership.kept_files)
        return sorted(found, key=lambda problem: (problem.collection, problem.kind.value))

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        """Take in the reports of other shards, durably, and return this shard's own."""
        report = await self._membership.exchange(request)
        return (replace(report, problems=tuple(await self.problems(call=call))),)

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        """Raise the stage of a collection, durably, and set its members."""
        await self._collections.to_its_end(self._collections.settle(request))

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        """Show losses, or record them durably; each of its steps may be repeated."""
        return await self._collections.to_its_end(self._membership.accept_loss(request))

    # ---- common ---------------------------------------------------------------------------------

    async def _read(self, collection: Collection, read: Callable[..., T], *arguments: object) -> T:
        """Run a read in a thread; raise CollectionNotFound if the collection was dropped meanwhile.

        Even if the read returned: another collection's files may be in place by now.
        """
        try:
            answer = await in_thread(self._read_threads, read, *arguments)
        except Exception as error:
            if not collection.closed:
                collection.state.noticed.check(error)
                raise
        else:
            if not collection.closed:
                return answer
        raise CollectionNotFound(f"collection {collection.entry.config.name!r} was dropped")

    async def close(self) -> None:
        """Finish the writes in flight, write the checkpoints that are due, close the files."""
        self._close_copies()
        await asyncio.to_thread(self._close, await self._collections.drain())

    def _close(self, collections: Sequence[Collection]) -> None:
        self._background.stop()
        self._searches.close()
        for threads in (
            self._read_threads,
            self._commit_threads,
            self._change_thread,
            self._witness_thread,
        ):
            threads.shutdown()
        with ExitStack() as closing:
            closing.callback(self._directory.close)
            for collection in collections:
                closing.callback(collection.close)
                collection.maintenance.checkpoint_at_close()
