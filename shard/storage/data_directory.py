"""A shard's data directory: its identity, its lock, and which collections are in it.

docs/formats.md describes the files. What a collection's directory holds must not enter here.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from vectorshard.shard.errors import (
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryTooNew,
)
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.json_records import InvalidRecord, parsed_object, record_of

FORMAT_VERSION = 1

_LOCK = "LOCK"
IDENTITY_FILE = "shard.json"
_COLLECTIONS = "collections"
_CREATING = ".creating-"
_DROPPED = ".dropped-"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIdentity:
    """Which shard of which cluster this is, and its slots as ranges with both ends included.

    An empty cluster stands for the cluster that the directory belongs to.
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
    """A data directory that no other process uses. Use `open`."""

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
        """Lock the directory and check that its identity is `wanted`, creating it if it is absent.

        An empty cluster in `wanted` matches any; `new_cluster` names that of a new directory then.

        Raises
        ------
        DataDirectoryLocked
            If a process uses it; names its pid.
        DataDirectoryForeign
            If it belongs to another shard, cluster or placement; names the field that differs.
        DataDirectoryTooNew
            If a later format version wrote it.
        DataDirectoryError
            If its identity is invalid.
        """
        _make_durably(disk, path)
        lock = _locked(disk, path)
        try:
            identity = _stored_identity(path)
            if identity is None:
                disk.sync_directory(path.parent)  # its creator may have been killed
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
        exception, the collection exists in `collection_directory(name)`, durably and whole. After
        an exception, such as OSError of a failing disk, or a crash it does not exist.

        No collection of this name may exist: a directory of that name was left by an attempt whose
        last sync failed, and is removed.
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

        The collection's files may still be open. After an OSError its directory is where it was, if
        the disk allows, and the drop may be repeated.
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
        """Release the lock."""
        self._lock.close()

    def _remove_leftovers(self) -> None:
        for entry in sorted(self._collections.iterdir()):
            if entry.name.startswith((_CREATING, _DROPPED)):
                self._disk.remove_tree(entry)
        # Even without leftovers: what a killed process renamed last may not be durable yet, and
        # creating a collection that exists changes nothing and acknowledges immediately.
        self._disk.sync_directory(self._collections)


def _make_durably(disk: Disk, path: Path) -> None:
    """Make a directory and its missing parents, and their entries durable."""
    if not path.exists():
        _make_durably(disk, path.parent)
        with suppress(FileExistsError):  # shards that start together share their parents
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
        stored = parsed_object(file.read_bytes(), str(file))
        version = stored.pop("format_version", None)
        if type(version) is not int:
            raise InvalidRecord(f"{file}: format_version: expected int, found {version!r}")
        if version > FORMAT_VERSION:
            raise DataDirectoryTooNew(
                f"{path} has format version {version}; this release reads up to "
                f"{FORMAT_VERSION}: start it with the release that wrote it, or a later one"
            )
        return record_of(ShardIdentity, stored, str(file))
    except InvalidRecord as error:
        raise DataDirectoryError(f"{error}; restore the file from a copy") from error


def _store_identity(disk: Disk, path: Path, identity: ShardIdentity) -> None:
    stored = {"format_version": FORMAT_VERSION, **asdict(identity)}
    disk.write_new_file(path / IDENTITY_FILE, json.dumps(stored, indent=2).encode() + b"\n")


def _check_identity(path: Path, stored: ShardIdentity, wanted: ShardIdentity) -> None:
    wanted_fields = asdict(replace(wanted, cluster=wanted.cluster or stored.cluster))
    for name, value in asdict(stored).items():
        if value != wanted_fields[name]:
            raise DataDirectoryForeign(
                f"{path} has {name} {value!r}, not {wanted_fields[name]!r}: start the shard with "
                "its original settings, or choose another directory"
            )
