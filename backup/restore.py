"""Restoring: data directories built from a backup, offline, for any number of shards.

What is built is a new fleet: a cluster, directories, incarnations and sessions that none had, so
that tokens, cursors and what routers or shards remember of the old fleet are void. All of these
follow from the name of the cluster and the backup, so that each machine of a fleet can build its
shard's directory alone, and they fit together.

A shard that rejoins its old fleet keeps the cluster and the incarnations. Its directory is new, so
the others call it missing until an operator accepts the loss of what was written since the backup.

A directory with the marker of a restore is not served. It is written first and removed last.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.backup.building import Destination, building
from vectorshard.backup.failures import BackupDamaged, BackupIncomplete
from vectorshard.backup.manifest import CollectionBackup, Manifest
from vectorshard.backup.reading import at_places, rows_of
from vectorshard.backup.targets import Target
from vectorshard.shard.config import SLOTS_TOTAL, EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.membership import Member, Membership, Stage
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.storage.content_hash import sum_bytes, sum_from_bytes, sum_of
from vectorshard.shard.storage.data_directory import (
    DataDirectory,
    ShardIdentity,
    may_be_collection,
    new_directory,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import CollectionConfig, CollectionEntry

COMMIT_ROWS: Final = 10_000
COMMIT_BYTES: Final = 32 * 1024 * 1024
"""Rows, or bytes of vectors, that one commit restores. Larger: fewer syncs, more memory."""

LIFE: Final = 1
"""Of a directory that was never lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup in a target, under its name."""

    target: Target
    name: str
    manifest: Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlace:
    """Where the directory of a shard is built, and who that shard is."""

    path: Path
    identity: ShardIdentity


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A collection of a backup, and the name under which it is restored."""

    backup: CollectionBackup
    name: str

    @property
    def config(self) -> CollectionConfig:
        """The configuration of the restored collection."""
        return replace(self.backup.config, name=self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """A restored collection: its rows on each shard that was built, and the sums of the hashes.

    `sum_read` is that of all live rows of the backup, and `sum_built` that of the rows in the
    directories. They are equal unless some shards of the fleet were not built here.
    """

    wanted: Wanted
    rows: Mapping[int, int]
    sum_read: bytes
    sum_built: bytes


def wanted_of(manifest: Manifest, asked: Sequence[str]) -> list[Wanted]:
    """Return the collections to restore, of the texts NAME and NAME=OTHER; all if there are none.

    Raises InvalidParameter for a name that the backup lacks, or that is given twice.
    """
    stored = {each.name: each for each in manifest.collections}
    pairs = [tuple(each.partition("=")[::2]) for each in asked] or [(name, "") for name in stored]
    for name, _ in pairs:
        if name not in stored:
            listed = ", ".join(sorted(stored)) or "none"
            raise InvalidParameter(
                f"the backup has no collection {name!r}; it has: {listed}", field="collection"
            )
    found = [Wanted(backup=stored[name], name=other or name) for name, other in pairs]
    names = [each.name for each in found]
    for name in names:
        if not may_be_collection(name):
            raise InvalidParameter(
                f"{name!r} is not a name of a collection: 1 to 64 of a-z, 0-9, _ and -, beginning "
                "with a letter or digit",
                field="collection",
            )
        if names.count(name) > 1:
            raise InvalidParameter(f"two collections would be called {name!r}", field="collection")
    return found


def part_of_shard(wanted: Sequence[Wanted], shard: int) -> list[Wanted]:
    """Return the part of each collection that one shard had."""
    found = []
    for each in wanted:
        shards = tuple(part for part in each.backup.shards if part.shard == shard)
        part = replace(each.backup, shards=shards, live=sum(part.live for part in shards))
        found.append(replace(each, backup=part))
    return found


def absences(manifest: Manifest, wanted: Sequence[Wanted], *, everything: bool) -> list[str]:
    """Return what a partial backup lacks of the wanted collections, one line for each."""
    names = {each.backup.name for each in wanted}
    return [
        f"collection {each.collection!r}, shard {each.shard}: {each.reason}"
        for each in manifest.left_out
        if everything or each.collection in names
    ]


@dataclass(slots=True)
class _Part:
    """A shard's part of a collection while it is built, and the rows that wait for a commit."""

    collection: Collection
    waiting: list[RowBlock] = field(default_factory=list)
    rows: int = 0
    size_bytes: int = 0

    def add(self, rows: RowBlock) -> None:
        """Restore some rows, in this commit or a later one."""
        if not len(rows):
            return
        self.waiting.append(rows)
        self.rows += len(rows)
        self.size_bytes += rows.vectors.nbytes
        if self.rows >= COMMIT_ROWS or self.size_bytes >= COMMIT_BYTES:
            self.commit()

    def commit(self) -> None:
        """Commit what waits."""
        if self.waiting:
            self.collection.writes.restore(
                np.concatenate([each.ids for each in self.waiting]),
                np.concatenate([each.vectors for each in self.waiting]),
                [struct for each in self.waiting for struct in each.metadata],
            )
        self.waiting, self.rows, self.size_bytes = [], 0, 0


class Restore:
    """Builds the directories of some shards, or of all, from one backup.

    Parameters
    ----------
    backup
        What is read.
    places
        The shards to build: all of a fleet, or those of this machine. They are of one new cluster.
    disk, engine
        Write the directories.
    rejoin
        Whether the only place is a shard of the fleet that was backed up, which goes on.
    """

    def __init__(
        self,
        backup: Backup,
        places: Sequence[ShardPlace],
        disk: Disk | None = None,
        engine: EngineConfig | None = None,
        *,
        rejoin: bool = False,
    ) -> None:
        self._backup = backup
        self._places = places
        self._rejoin = rejoin
        self._disk = disk or Disk()
        self._engine = engine or EngineConfig()
        identity = places[0].identity
        self._seed = f"{identity.cluster}/{backup.name}/{identity.shards_total}"
        self._members = tuple(
            Member(shard=shard, directory=self._drawn(f"directory/{shard}"), life=LIFE)
            for shard in range(identity.shards_total)
        )
        self._owners = np.full(SLOTS_TOTAL, -1, dtype=np.int64)
        for number, place in enumerate(places):
            for first, last in place.identity.slots:
                self._owners[first : last + 1] = number

    def _drawn(self, what: str) -> str:
        """Return 32 hexadecimal digits that no other restore has for anything."""
        return hashlib.blake2b(f"{self._seed}/{what}".encode(), digest_size=16).hexdigest()

    def run(
        self,
        data: Path,
        wanted: Sequence[Wanted],
        note: str = "",
        advance: Callable[[int], None] = lambda rows: None,
    ) -> list[Restored]:
        """Build the directories below `data`, or `data` itself; return what they hold.

        Parameters
        ----------
        data
            What a server would be given: empty, or left by a restore that did not end.
        wanted
            The collections to restore.
        note
            What the descriptions say after the name of the backup, such as what it lacks.
        advance
            Called with the number of rows that have been read since it was called last.

        Raises
        ------
        DirectoryNotEmpty
            If something else is in `data`; names it.
        BackupDamaged
            If the backup does not match its manifest. The directory is not served then.
        """
        destination = Destination(disk=self._disk, data=data, backup=self._backup.name)
        with building(destination), ExitStack() as opened:
            directories = [
                opened.enter_context(closing(self._directory(place))) for place in self._places
            ]
            return [self._restored(each, directories, note, advance) for each in wanted]

    def _directory(self, place: ShardPlace) -> DataDirectory:
        own = new_directory() if self._rejoin else self._members[place.identity.shard].directory
        return DataDirectory.open(self._disk, place.path, place.identity, new_directory=lambda: own)

    def _restored(
        self,
        wanted: Wanted,
        directories: Sequence[DataDirectory],
        note: str,
        advance: Callable[[int], None],
    ) -> Restored:
        """Restore one collection: it appears in its directories once all its rows are there."""
        entry = self._entry_of(wanted)
        total, given = 0, 0
        with ExitStack() as made:
            paths = [
                made.enter_context(each.creating_collection(wanted.name, entry.incarnation))
                for each in directories
            ]
            with self._opened(wanted, entry, note, directories, paths) as parts:
                for rows in rows_of(self._backup.target, wanted.backup):
                    owners = self._owners[slots_of(rows.ids)]
                    for number, part in enumerate(parts):
                        own = at_places(rows, np.flatnonzero(owners == number))
                        given += sum_of(own.content_hashes)
                        part.add(own)
                    total += sum_of(rows.content_hashes)
                    advance(len(rows))
                for part in parts:
                    part.commit()
                snapshots = [part.collection.snapshot for part in parts]
                built = sum(sum_from_bytes(each.sum) for each in snapshots)
                for part in parts:
                    part.collection.maintenance.checkpoint_at_close()
        places = zip(self._places, snapshots, strict=True)
        found = Restored(
            wanted=wanted,
            rows={place.identity.shard: each.live for place, each in places},
            sum_read=sum_bytes(total),
            sum_built=sum_bytes(built),
        )
        all_are_here = self._rejoin or len(self._places) == len(self._members)
        expected = found.sum_read if all_are_here else sum_bytes(given)
        if expected != found.sum_built:
            raise BackupDamaged(
                f"collection {wanted.name!r}: the restored rows have the content sum "
                f"{found.sum_built.hex()}, and those of the backup {expected.hex()}"
            )
        return found

    def _entry_of(self, wanted: Wanted) -> CollectionEntry:
        incarnation = wanted.backup.incarnation
        if not self._rejoin:
            incarnation = self._drawn(f"collection/{wanted.name}")
        return CollectionEntry(config=wanted.config, incarnation=incarnation)

    @contextmanager
    def _opened(
        self,
        wanted: Wanted,
        entry: CollectionEntry,
        note: str,
        directories: Sequence[DataDirectory],
        paths: Sequence[Path],
    ) -> Iterator[list[_Part]]:
        stage, members = Stage.COMPLETE, self._members
        if self._rejoin:
            stage, members = wanted.backup.stage, wanted.backup.members
        with ExitStack() as opened:
            parts = []
            for directory, path in zip(directories, paths, strict=True):
                membership = Membership(directory=directory.directory, stage=stage, members=members)
                source = f"{self._backup.name}{note}"
                Collection.create(self._disk, path, entry, membership, source)
                collection = Collection.open(
                    self._disk, path, directory.identity.shard, self._engine, directory.session
                )
                opened.callback(collection.close)
                parts.append(_Part(collection))
            yield parts


def require_whole(backup: Backup, absent: Sequence[str]) -> None:
    """Raise BackupIncomplete if anything that is wanted is absent."""
    if absent:
        raise BackupIncomplete(
            f"backup {backup.name} is partial, and lacks {'; '.join(absent)}. "
            "--partial restores what it has"
        )
