"""One collection on one shard, by thread: `reads`, `writes`, `maintenance`, `compaction`.

Reads take one immutable snapshot and nothing else. Writes come from one thread at a time. Whatever
is published is durable; whatever is not published does not exist. The four parts share
`state.CollectionState`, which documents the order of the locks.

Threads: any number use `reads`; one at a time calls `writes.apply`; the absorber absorbs and writes
checkpoints; the builder trains indexes and compacts the row file; the scrub verifies all of it.
"""

from __future__ import annotations

from pathlib import Path

from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.compaction import Compaction
from vectorshard.shard.engine.maintenance import Maintenance
from vectorshard.shard.engine.reads import Reads
from vectorshard.shard.engine.scrub import Scrub
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.engine.writes import Writes
from vectorshard.shard.errors import CollectionNotFound
from vectorshard.shard.membership import NO_MEMBERSHIP, Membership, Problem
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_file import RowFile
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.types import CollectionEntry


class Collection:
    """One collection on one shard. Use `create` and `open`."""

    def __init__(self, state: CollectionState) -> None:
        self.state = state
        self.engine = state.engine
        self.reads = Reads(state)
        self.maintenance = maintenance = Maintenance(state)
        self.compaction = compaction = Compaction(state)
        self.scrub = Scrub(state, maintenance)
        self.writes = Writes(
            state,
            lambda: (
                maintenance.training_due
                or maintenance.absorbing_due
                or compaction.due
                or state.checkpoint.columns_due(state.snapshot)
            ),
        )

    @classmethod
    def create(
        cls,
        disk: Disk,
        directory: Path,
        entry: CollectionEntry,
        membership: Membership = NO_MEMBERSHIP,
        restored_from: str = "",
    ) -> None:
        """Create an empty collection's files in an existing, empty directory.

        `restored_from` names the backup whose rows follow.
        """
        row_store = RowStore.create(disk, directory, entry, membership, restored_from)
        row_store.close()
        RowFile.open(disk, directory / row_store.row_file, entry.config.dim).close()

    @classmethod
    def open(
        cls, disk: Disk, directory: Path, shard: int, engine: EngineConfig, session: int = 0
    ) -> Collection:
        """Open a collection and recover what was committed.

        `session` is the session of the data directory, or 0.

        Raises
        ------
        RowFileCorrupt
            If the row file lacks committed rows, or the newest do not match their hashes.
        RowStoreCorrupt
            If the row store contradicts itself.
        """
        return cls(CollectionState(disk, directory, shard, engine, session))

    @property
    def entry(self) -> CollectionEntry:
        """The collection's configuration and incarnation."""
        return self.state.entry

    @property
    def snapshot(self) -> Snapshot:
        """What is published now."""
        return self.state.snapshot

    @property
    def problems(self) -> list[Problem]:
        """What an operator has to look at."""
        return self.state.problems

    @property
    def closed(self) -> bool:
        """Whether `close` has begun."""
        return self.state.closed

    def close(self) -> None:
        """Close the files. Everything acknowledged is durable already."""
        state = self.state
        state.closed = True
        self.maintenance.fail_asked(
            CollectionNotFound(f"collection {self.entry.config.name!r} was closed")
        )
        self.compaction.forget_readers()
        with state.files_lock.write():
            state.row_store.close()
            state.columns.close()
