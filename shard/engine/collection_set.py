"""The collections of a shard: which it serves, which it set aside, and the changes of that set.

Changes run one at a time, and each to its end, even if its caller leaves. Reads and writes of rows
must not enter here.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog

from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.batcher import Batcher
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.commit_plan import WriteOutcome
from vectorshard.shard.engine.group_commit import Write, commit_batcher
from vectorshard.shard.engine.machine import Machine, limited, naming_disk_failures
from vectorshard.shard.engine.set_aside import SetAside, SetAsides
from vectorshard.shard.engine.validation import already_exists
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    DataDirectoryError,
    IncarnationMismatch,
    InvalidParameter,
    ShardMissing,
    ShardUnavailable,
)
from vectorshard.shard.membership import (
    CollectionState,
    Member,
    Membership,
    SettleRequest,
    Stage,
)
from vectorshard.shard.storage.data_directory import DataDirectory
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.stock import Place, judged, take_stock
from vectorshard.shard.storage.stored_entry import CollectionFiles, stored_collection
from vectorshard.shard.types import (
    Call,
    CollectionConfig,
    CollectionEntry,
    UpdateRequest,
)
from vectorshard.shard.witnesses import settled

_log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Served:
    """A collection, and the queue of its writes."""

    collection: Collection
    writes: Batcher[Write, WriteOutcome]

    @property
    def membership(self) -> Membership:
        """Whose the files of the collection are, and how far its creation has come."""
        return self.collection.state.row_store.membership

    def require_complete(self) -> None:
        """Raise ShardUnavailable if the creation of the collection is not complete."""
        if self.membership.stage is not Stage.COMPLETE:
            name = self.collection.entry.config.name
            raise ShardUnavailable(
                f"collection {name!r} is being created; it takes writes once all shards have it"
            )


def in_thread(
    threads: ThreadPoolExecutor, function: Callable[..., T], *arguments: object
) -> asyncio.Future[T]:
    """Call a function in a thread; return what completes with its result.

    Overloaded if it meets a limit of the machine.
    """
    return asyncio.get_running_loop().run_in_executor(threads, limited, function, *arguments)


def _files_of(collection: Collection) -> CollectionFiles:
    """Return what the files of an open collection say of themselves."""
    snapshot, entry = collection.snapshot, collection.entry
    return CollectionFiles(
        entry=entry,
        directory=collection.state.row_store.membership.directory,
        has_rows=snapshot.rows + snapshot.lost > 0,
    )


class CollectionSet:
    """The collections of one shard, by name. Belongs to the event loop, after `open_all`.

    Parameters
    ----------
    background
        Does the background work of what is served.
    commit_threads
        Run the commits.
    change_thread
        One thread, which runs the changes of the set.
    """

    def __init__(
        self,
        disk: Disk,
        directory: DataDirectory,
        engine: EngineConfig,
        machine: Machine,
        background: BackgroundThreads,
        commit_threads: ThreadPoolExecutor,
        change_thread: ThreadPoolExecutor,
    ) -> None:
        self.directory = directory
        self.served: dict[str, Served] = {}
        self.set_aside = SetAsides(directory.identity.shard)
        self.changing = asyncio.Lock()
        self.change_thread = change_thread
        self._disk = disk
        self._engine = engine
        self._machine = machine
        self._background = background
        self._commit_threads = commit_threads
        self._changes: set[asyncio.Future[Any]] = set()

    @property
    def own_member(self) -> Member:
        """This shard, as its directory is now."""
        directory = self.directory
        return Member(
            shard=directory.identity.shard, directory=directory.directory, life=directory.life
        )

    def find(self, name: str, call: Call) -> Served:
        """Return a collection that is served; raise what keeps it from being served."""
        served = self.served.get(name)
        if served is None:
            self.set_aside.check(name, call)
            raise CollectionNotFound(f"collection {name!r} does not exist")
        if call.incarnation and call.incarnation != served.collection.entry.incarnation:
            raise IncarnationMismatch(f"collection {name!r} was dropped and created again")
        return served

    def find_whole(self, name: str, call: Call) -> Served:
        """Find a collection whose rows may be read or written.

        ShardMissing if a repair gave up commits of it, and no operator has accepted that loss: a
        router says the same, but a sole shard is asked without one.
        """
        served = self.find(name, call)
        if served.collection.state.row_store.gave_up_commits:
            shard = self.directory.identity.shard
            raise ShardMissing(
                f"shard {shard}: a repair gave up commits of collection {name!r}; see what is lost "
                f"with `vectorshard accept-loss --shard-id {shard}`"
            )
        return served

    @property
    def entries(self) -> list[CollectionEntry]:
        """The collections by name, also those that are set aside."""
        entries = [served.collection.entry for served in self.served.values()]
        return sorted(entries + self.set_aside.entries, key=lambda entry: entry.config.name)

    # ---- the start ------------------------------------------------------------------------------

    def open_all(self) -> None:
        """Open all collections of the directory; set aside what fails to open. Blocking."""
        for place in take_stock(self.directory, stored_collection):
            if place.state is CollectionState.LIVE:
                open_ = partial(self._open, place)
                self.set_aside.open_or_set_aside(place.path, open_, place.incarnation)
            else:
                self._put_aside(place)

    def _open(self, place: Place, path: Path) -> None:
        with ExitStack() as opened:
            collection = self._opened(path)
            opened.callback(collection.close)
            if not place.was_read:
                found = judged(self.directory, place.name, _files_of(collection))
                if found is None:
                    return
                if found.state is not CollectionState.LIVE:
                    self._put_aside(found)
                    return
            row_store = collection.state.row_store
            if not row_store.membership.directory:  # an earlier release wrote it
                own = self.directory.directory
                row_store.set_membership(replace(row_store.membership, directory=own))
            self.serve(collection)
            opened.pop_all()

    def _opened(self, path: Path) -> Collection:
        directory = self.directory
        return Collection.open(
            self._disk, path, directory.identity.shard, self._engine, directory.session
        )

    def _put_aside(self, place: Place) -> None:
        self.set_aside.put(
            SetAside(
                shard=self.directory.identity.shard,
                name=place.name,
                state=place.state,
                reason=place.reason,
                cure=f"{place.cure}.",
                incarnation=place.incarnation,
            )
        )

    def serve(self, collection: Collection) -> None:
        """Serve a collection from now on."""
        writes = commit_batcher(
            collection.writes.apply,
            collection.state.room_for_rows,
            self._commit_threads,
            self._engine.buffer.slow_writers_wait_s,
        )
        collection.state.require_room = self._machine.require_room
        collection.state.require_writable = self._machine.require_writable
        collection.state.room.shortage = self._machine.shortage
        name = collection.entry.config.name
        self.served[name] = Served(collection, writes)
        self._background.attach(collection)

    # ---- changes --------------------------------------------------------------------------------

    async def to_its_end(self, change: Coroutine[Any, Any, T]) -> T:
        """Change the collections, even if the caller is cancelled meanwhile.

        A change that stopped halfway would leave a directory that no shard serves.
        """
        task = asyncio.ensure_future(change)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        return await asyncio.shield(task)

    async def drain(self) -> list[Collection]:
        """Finish the changes and the writes in flight; return what is served."""
        await asyncio.gather(*self._changes, return_exceptions=True)
        served_all = list(self.served.values())
        for served in served_all:
            await served.writes.drain()
        return [served.collection for served in served_all]

    def change(self, function: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        """Call what changes the set, on its thread; DiskFailed if the disk fails or is read-only.

        Overloaded if it meets a limit of the machine.
        """
        return asyncio.get_running_loop().run_in_executor(
            self.change_thread, naming_disk_failures, function, *arguments
        )

    async def create(self, config: CollectionConfig, call: Call) -> tuple[CollectionEntry, bool]:
        """Create a collection, durably, or find it."""
        async with self.changing:
            if (served := self.served.get(config.name)) is not None:
                entry = _existing(served.collection.entry, config, call)
                if not call.staged and served.membership.stage is not Stage.COMPLETE:
                    membership = replace(served.membership, stage=Stage.COMPLETE)
                    change = served.collection.writes.set_membership
                    await self.change(change, membership)
                return entry, False
            self.set_aside.check(config.name, Call())
            if self.directory.register.was_dropped(call.incarnation):
                raise IncarnationMismatch(f"collection {config.name!r} was dropped")
            self._machine.require_place(len(self.served) + len(self.set_aside))
            entry = CollectionEntry(config=config, incarnation=call.incarnation or uuid.uuid4().hex)
            membership = Membership(
                directory=self.directory.directory,
                stage=Stage.CREATED if call.staged else Stage.COMPLETE,
            )
            create = partial(self.create_files, entry, membership)
            self.serve(await self.change(create))
            return entry, True

    def create_files(self, entry: CollectionEntry, membership: Membership) -> Collection:
        """Make an empty collection, durably, and open it. Blocking."""
        name = entry.config.name
        try:
            with self.directory.creating_collection(name, entry.incarnation) as building:
                Collection.create(self._disk, building, entry, membership)
        except DataDirectoryError as error:  # something unknown is in the way
            raise ShardMissing(str(error)) from error
        return self._opened(self.directory.collection_directory(name))

    async def drop(self, name: str, call: Call) -> None:
        """Finish a collection's writes, then remove it. After a failure it is as it was."""
        self._machine.require_writable()
        async with self.changing:
            if (aside := self.set_aside.find(name, call)) is not None:
                await self.change(self._drop_set_aside, aside)
                self.set_aside.forget(name)
                return
            served = self.find(name, call)
            collection = served.collection
            del self.served[name]
            await served.writes.drain()
            self._background.detach(collection)
            drop = self.directory.drop_collection
            try:
                await self.change(drop, name, collection.entry.incarnation)
            except BaseException:
                self.served[name] = served
                self._background.attach(collection)
                raise
            await self.change(collection.close)

    def _drop_set_aside(self, aside: SetAside) -> None:
        """Drop what is set aside; keep files that are of another collection. Blocking."""
        files = stored_collection(self.directory.collection_directory(aside.name))
        if files is not None and aside.incarnation not in ("", files.incarnation):
            self.set_damaged_apart(aside.name)
        self.directory.drop_collection(aside.name, aside.incarnation or uuid.uuid4().hex)

    def set_damaged_apart(self, name: str) -> None:
        """Keep what is in a collection's place under another name. Blocking.

        CollectionDamaged if two are kept already.
        """
        try:
            kept = self.directory.set_damaged_apart(name)
        except DataDirectoryError as error:
            raise CollectionDamaged(str(error)) from error
        if kept is not None:
            _log.warning("files of a collection kept", collection=name, path=str(kept))

    async def update(self, request: UpdateRequest, call: Call) -> CollectionEntry:
        """Change a collection's target recall, durably."""
        async with self.changing:
            change = self.find(request.collection, call).collection.writes.update
            return await self.change(change, request.target_recall)

    async def settle(self, request: SettleRequest) -> None:
        """Raise the stage of a collection, durably, and set its members."""
        own = self.own_member
        if request.shard is not None and request.shard != own.shard:
            raise InvalidParameter(f"this is shard {own.shard}, not {request.shard}", field="shard")
        async with self.changing:
            served = self.served.get(request.collection)
            if served is None:
                raise CollectionNotFound(f"collection {request.collection!r} does not exist")
            if request.incarnation != served.collection.entry.incarnation:
                raise IncarnationMismatch(
                    f"collection {request.collection!r} was dropped and created again"
                )
            before = served.membership
            stage, members = settled(before.stage, before.members, self.own_member, request)
            membership = replace(before, stage=stage, members=members)
            if membership != before:
                change = served.collection.writes.set_membership
                await self.change(change, membership)


def _existing(entry: CollectionEntry, config: CollectionConfig, call: Call) -> CollectionEntry:
    if entry.config != config:
        raise already_exists(entry.config, config)
    if call.incarnation and call.incarnation != entry.incarnation:
        raise IncarnationMismatch(f"collection {config.name!r} exists with another incarnation")
    return entry
