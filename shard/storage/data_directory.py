"""A shard's data directory: whose it is, who uses it now, and which collections are in it.

    LOCK                    held with flock(2) while the directory is in use; names the process
    shard.json              the identity and the format version
    collections/<name>/     one directory a collection
    collections/.creating-<name>, .dropped-<incarnation>     leftovers of a crash, removed at open

What a collection's directory holds must not enter here. No collection's name begins with a dot.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vectorshard.shard.errors import (
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryTooNew,
)
from vectorshard.shard.storage.disk import Disk, DiskFile

FORMAT_VERSION = 1

_LOCK = "LOCK"
IDENTITY_FILE = "shard.json"
_COLLECTIONS = "collections"
_CREATING = ".creating-"
_DROPPED = ".dropped-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIdentity:
    """Which shard of which cluster this is, and its slots as ranges with both ends included.

    An empty cluster stands for whichever cluster the directory belongs to.
    """

    cluster: str
    shard: int
    shards_total: int
    slots: tuple[tuple[int, int], ...]
    placement_epoch: int


def new_cluster() -> str:
    """Return a fresh cluster id."""
    return uuid.uuid4().hex


class DataDirectory:
    """A data directory that this process has to itself. Use `open`."""

    def __init__(self, disk: Disk, path: Path, lock: DiskFile, identity: ShardIdentity) -> None:
        self.path = path
        self.identity = identity
        self._disk = disk
        self._lock = lock
        self._collections = path / _COLLECTIONS
        if not self._collections.is_dir():
            disk.make_directory(self._collections)
        disk.sync_directory(path)
        self._remove_leftovers()

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: Path,
        wanted: ShardIdentity,
        *,
        new_cluster: Callable[[], str] = new_cluster,
    ) -> DataDirectory:
        """Lock the directory and check whose it is, creating it if it is absent.

        Parameters
        ----------
        disk
            Where the writes go.
        path
            The directory.
        wanted
            Who this shard is to be. With an empty cluster, it joins the stored one.
        new_cluster
            Names the cluster of a directory that is new, when `wanted` does not.

        Raises
        ------
        DataDirectoryLocked
            If a process uses it; names its pid.
        DataDirectoryForeign
            If it belongs to another shard, cluster or placement; names the field that differs.
        DataDirectoryTooNew
            If a later format version wrote it.
        DataDirectoryError
            If its identity cannot be read.
        """
        _make_durably(disk, path)
        lock = _locked(disk, path)
        try:
            identity = _stored_identity(path)
            if identity is None:
                disk.sync_directory(path.parent)  # the one that made it may have been killed
                identity = replace(wanted, cluster=wanted.cluster or new_cluster())
                _store_identity(disk, path, identity)
            _check_identity(path, identity, wanted)
            return cls(disk, path, lock, identity)
        except BaseException:
            lock.close()
            raise

    def collection_directory(self, name: str) -> Path:
        """Return where the collection of this name is, or would be."""
        return self._collections / name

    def collection_directories(self) -> list[Path]:
        """Return the directories of the collections, by name."""
        return sorted(
            entry
            for entry in self._collections.iterdir()
            if entry.is_dir() and not entry.name.startswith(".")
        )

    @contextmanager
    def creating_collection(self, name: str) -> Iterator[Path]:
        """Lend an empty directory; what the body builds there becomes the collection's directory.

        The body makes its files durable and closes them. When the context ends without an
        exception the collection exists, durably and whole; after an exception or a crash it does
        not. Its path is then `collection_directory(name)`.

        The caller knows that no collection of this name exists: a directory of that name is what an
        attempt left whose last sync failed, and is removed.

        Raises
        ------
        OSError
            If the disk fails.
        """
        building = self._collections / f"{_CREATING}{name}"
        for leftover in (building, self.collection_directory(name)):
            if leftover.exists():
                self._disk.remove_tree(leftover)
        self._disk.make_directory(building)
        yield building
        self._disk.sync_directory(building)
        self._disk.rename(building, self.collection_directory(name))
        self._disk.sync_directory(self._collections)

    def drop_collection(self, name: str, incarnation: str) -> None:
        """Remove a collection's directory. It is gone, durably, before its files are removed.

        After a failure its directory is where it was, if the disk lets it, and the drop may be
        repeated. The collection's files may still be open.

        Raises
        ------
        OSError
            If the disk fails before it is gone.
        """
        dropped = self._collections / f"{_DROPPED}{incarnation}"
        if self.collection_directory(name).exists() or not dropped.exists():
            if dropped.exists():
                self._disk.remove_tree(dropped)
            self._disk.rename(self.collection_directory(name), dropped)
        try:
            self._disk.sync_directory(self._collections)
        except OSError:
            with suppress(OSError):  # else the next open would remove a collection that is served
                self._disk.rename(dropped, self.collection_directory(name))
                self._disk.sync_directory(self._collections)
            raise
        with suppress(OSError):  # the drop is done; the next open removes what is left
            self._disk.remove_tree(dropped)

    def close(self) -> None:
        """Let another process have it."""
        self._lock.close()

    def _remove_leftovers(self) -> None:
        for entry in sorted(self._collections.iterdir()):
            if entry.name.startswith((_CREATING, _DROPPED)):
                self._disk.remove_tree(entry)
        # Even without leftovers: what a killed process renamed last may not be durable yet, and
        # creating a collection that is there changes nothing and acknowledges at once.
        self._disk.sync_directory(self._collections)


def _make_durably(disk: Disk, path: Path) -> None:
    """Make a directory and its missing parents, and their entries durable."""
    if not path.exists():
        _make_durably(disk, path.parent)
        with suppress(FileExistsError):  # shards that start side by side share their parents
            disk.make_directory(path)
        disk.sync_directory(path.parent)


def _locked(disk: Disk, path: Path) -> DiskFile:
    lock = disk.open(path / _LOCK)
    try:
        fcntl.flock(lock.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        disk.write(lock, 0, f"{os.getpid():<20}\n".encode())  # of one length: files only grow
    except BlockingIOError as error:
        pid = os.pread(lock.descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
        lock.close()
        raise DataDirectoryLocked(
            f"{path} is in use by process {pid}: stop it, or choose another directory"
        ) from error
    except BaseException:
        lock.close()
        raise
    return lock


def _stored_identity(path: Path) -> ShardIdentity | None:
    """Read the identity, or return None for a directory that has never been used."""
    file = path / IDENTITY_FILE
    if not file.exists():
        if (path / _COLLECTIONS).exists():
            raise DataDirectoryForeign(
                f"{path} holds collections but no {IDENTITY_FILE}: restore that file from a copy, "
                "or choose another directory"
            )
        return None
    try:
        stored = json.loads(file.read_bytes())
        if stored["format_version"] > FORMAT_VERSION:
            raise DataDirectoryTooNew(
                f"{path} has format version {stored['format_version']}; this release reads up to "
                f"{FORMAT_VERSION}: start it with the release that wrote it, or a later one"
            )
        return _identity_from_parsed(stored)
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirectoryError(
            f"{file} cannot be read ({error!r}): restore it from a copy"
        ) from error


def _identity_from_parsed(stored: Mapping[str, Any]) -> ShardIdentity:
    return ShardIdentity(
        cluster=str(stored["cluster"]),
        shard=int(stored["shard"]),
        shards_total=int(stored["shards_total"]),
        slots=tuple((int(first), int(last)) for first, last in stored["slots"]),
        placement_epoch=int(stored["placement_epoch"]),
    )


def _store_identity(disk: Disk, path: Path, identity: ShardIdentity) -> None:
    stored = {"format_version": FORMAT_VERSION, **asdict(identity)}
    disk.write_new_file(path / IDENTITY_FILE, json.dumps(stored, indent=2).encode() + b"\n")


def _check_identity(path: Path, stored: ShardIdentity, wanted: ShardIdentity) -> None:
    wanted = replace(wanted, cluster=wanted.cluster or stored.cluster)
    wanted_fields = asdict(wanted)
    for name, value in asdict(stored).items():
        if value != wanted_fields[name]:
            raise DataDirectoryForeign(
                f"{path} belongs to {name} {value!r}, not {wanted_fields[name]!r}: "
                f"start it with what it was created with, or choose another directory"
            )
