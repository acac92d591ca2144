"""A shard's data directory: its identity, its lock, and which collections are in it.

docs/formats.md describes the files. What a collection's directory holds must not enter here.
"""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

from vectorshard.shard.errors import (
    DataDirectoryError,
    DataDirectoryForeign,
    DataDirectoryTooNew,
)
from vectorshard.shard.storage.ballast import Ballast
from vectorshard.shard.storage.checked_json import CRC32C, checksum_of
from vectorshard.shard.storage.directory_lock import locked, unlock
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.json_records import InvalidRecord, parsed_object, record_of
from vectorshard.shard.storage.register import Register, Registered
from vectorshard.shard.storage.session import begin_session, new_session
from vectorshard.shard.storage.store_files import STORE_FILE, read_file

FORMAT_VERSION: Final = 2
VERSION_WITHOUT_ID: Final = 1
"""What earlier releases wrote: no `directory`, no `life`, no register and no session file."""

IDENTITY_BYTES_MAX: Final = 64 * 1024  # it has about 300
IDENTITY_FILE: Final = "shard.json"
_COLLECTIONS = "collections"
_CREATING = ".creating-"
_DROPPED = ".dropped-"
_COLLECTION_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")

TOMBSTONES_KEPT: Final = 64
"""In the register of a shard that is alone; in a fleet, routers say when they may go."""

BUILDING: Final = ".repairing-"
"""How a directory begins, before the name of its collection, that a repair has not finished."""

KEPT_SUFFIXES: Final = (".damaged", ".damaged-2")
"""Of directories that hold former files of a collection; no collection has such a name."""

_log = structlog.get_logger(__name__)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectoryId:
    """Which directory this is: drawn when it is made, and never copied on purpose.

    `life` is raised whenever an operator accepts that the directory has lost something. Both are
    unknown in a directory of an earlier release: `directory` is empty.
    """

    directory: str = ""
    life: int = 1


def new_directory() -> str:
    """Return a fresh directory id."""
    return uuid.uuid4().hex


class DataDirectory:
    """A data directory that no other process uses. Use `open`.

    Parameters
    ----------
    version
        The format version of the identity on the disk.
    opens, session
        Which opening of the directory this is.
    """

    def __init__(
        self,
        disk: Disk,
        path: Path,
        lock: DiskFile,
        identity: ShardIdentity,
        own: DirectoryId,
        version: int,
        opens: int,
        session: int,
    ) -> None:
        self.path = path
        self.identity = identity
        self.opens = opens
        self.session = session
        self._own = own
        self._version = version
        self._disk = disk
        self._ballast = Ballast(disk, path)
        self._lock = lock
        self._collections = path / _COLLECTIONS
        self._leftovers: set[str] = set()
        if not self._collections.is_dir():
            _refuse_dangling_link(self._collections)
            disk.make_directory(self._collections)
        disk.sync_directory(path)
        self._remove_leftovers()
        self.register = self._read_register()
        """Which collections should be here, and which were dropped."""
        self._ballast.fill()

    @classmethod
    def open(
        cls,
        disk: Disk,
        path: Path,
        wanted: ShardIdentity,
        *,
        new_cluster: Callable[[], str] = new_cluster,
        new_directory: Callable[[], str] = new_directory,
        new_session: Callable[[], int] = new_session,
    ) -> DataDirectory:
        """Lock the directory and check that its identity is `wanted`, creating it if it is absent.

        An empty cluster in `wanted` matches any; `new_cluster` names that of a new directory then.
        Call `stock.take_stock` before collections are served.

        Raises
        ------
        DataDirectoryLocked
            If a process uses it; names its pid.
        DataDirectoryForeign
            If it belongs to another shard, cluster or placement; names the field that differs.
        DataDirectoryTooNew
            If a later format version wrote it.
        DataDirectoryError
            If its identity is invalid, or it is a link to a directory that is absent.
        """
        _refuse_dangling_link(path)
        _make_durably(disk, path)
        lock = locked(disk, path)
        try:
            stored = stored_identity(path)
            session, ballast = new_session(), Ballast(disk, path)
            if stored is None:
                disk.sync_directory(path.parent)  # its creator may have been killed
                identity = replace(wanted, cluster=wanted.cluster or new_cluster())
                own, version = DirectoryId(directory=new_directory()), FORMAT_VERSION
                opens = begin_session(disk, path, session, expected=False)
                Register(disk, path).store()
                store_identity(disk, path, identity, own)
            else:
                identity, own, version = stored
                _check_identity(path, identity, wanted)
                if not own.directory:
                    own = replace(own, directory=new_directory())
                expected = version == FORMAT_VERSION
                begin = partial(begin_session, disk, path, session, expected=expected)
                opens = ballast.spend(begin)
            return cls(disk, path, lock, identity, own, version, opens, session)
        except BaseException:
            lock.close()
            raise

    @property
    def directory(self) -> str:
        """The id of this directory."""
        return self._own.directory

    @property
    def life(self) -> int:
        """The life of this directory, from 1."""
        return self._own.life

    def raise_life(self, life: int) -> None:
        """Begin a later life, durably; one that has begun changes nothing."""
        if life > self._own.life or self._version != FORMAT_VERSION:
            own = replace(self._own, life=max(life, self._own.life))
            store = partial(store_identity, self._disk, self.path, self.identity, own)
            self._ballast.spend(store)
            self._own, self._version = own, FORMAT_VERSION

    # ---- collections ----------------------------------------------------------------------------

    def collection_directory(self, name: str) -> Path:
        """Return where the collection of this name is, or would be."""
        return self._collections / name

    def collection_directories(self) -> list[Path]:
        """Return the directories that may be collections, by name."""
        return sorted(
            entry
            for entry in self._collections.iterdir()
            if may_be_collection(entry.name) and is_directory(entry)
        )

    @contextmanager
    def creating_collection(self, name: str, incarnation: str) -> Iterator[Path]:
        """Lend an empty directory; what the body builds there becomes the collection's directory.

        The body makes its files durable and closes them. When the context ends without an
        exception, the collection exists in `collection_directory(name)`, durably and whole. After
        an exception, such as OSError of a failing disk, or a crash it does not exist, or it is
        adopted at the next start.

        No collection of this name may exist. What an attempt of this process left is removed.
        DataDirectoryError if anything else is in the way.
        """
        building = self._collections / f"{_CREATING}{name}"
        if os.path.lexists(building):
            remove_directory_or_link(self._disk, building)
        place = self.collection_directory(name)
        if os.path.lexists(place):
            if name not in self._leftovers:
                raise DataDirectoryError(
                    f"{place} is in the way, and holds no collection that is served: move it to "
                    "another directory and restart the shard"
                )
            self.register.store()  # the file may still name what is removed
            remove_directory_or_link(self._disk, place)
        self._disk.make_directory(building)
        yield building
        self._disk.sync_directory(building)
        self._leftovers.add(name)
        self._disk.rename(building, place)
        self._disk.sync_directory(self._collections)
        self.register.put(incarnation, name, Registered.LIVE)
        self._leftovers.discard(name)

    def drop_collection(self, name: str, incarnation: str) -> None:
        """Remove a collection's directory. It is gone, durably, before its files are removed.

        The collection's files may still be open. After an OSError it is not dropped, if the disk
        allows, and the drop may be repeated. Files that are left are removed at the next open.
        """
        if self.register.state_of(incarnation) is not Registered.DROPPED:
            try:
                self.register.put(incarnation, name, Registered.DROPPED)
            except OSError:
                with suppress(OSError):  # else the next open drops a collection that is served
                    self.register.store()
                raise
        self._leftovers.add(name)
        with suppress(OSError):
            self._finish_drop(name, incarnation)
        self._ballast.fill()

    def _finish_drop(self, name: str, incarnation: str) -> None:
        dropped = self._collections / f"{_DROPPED}{incarnation}"
        place = self.collection_directory(name)
        if os.path.lexists(place):
            if os.path.lexists(dropped):
                remove_directory_or_link(self._disk, dropped)
            self._disk.rename(place, dropped)
            self._disk.sync_directory(self._collections)
        self._leftovers.discard(name)
        if os.path.lexists(dropped):
            remove_directory_or_link(self._disk, dropped)

    def has_files_of_collection(self, name: str) -> bool:
        """Whether the directory of this name holds what only a collection's does."""
        try:
            return (self.collection_directory(name) / STORE_FILE).exists()
        except OSError:
            return False

    def strays(self) -> list[Path]:
        """Return what in `collections/` is neither a collection nor kept, by name."""
        return sorted(
            entry
            for entry in self._collections.iterdir()
            if not (may_be_collection(entry.name) and is_directory(entry))
            and name_of_kept(entry.name) is None
        )

    def set_damaged_apart(self, name: str) -> Path | None:
        """Rename what is in a collection's place, to be kept; return its new place.

        None if nothing is there. Raises DataDirectoryError if two are kept already.
        """
        place = self.collection_directory(name)
        if not os.path.lexists(place):
            return None
        for suffix in KEPT_SUFFIXES:
            kept = place.with_name(name + suffix)
            if not os.path.lexists(kept):
                self._disk.rename(place, kept)
                self._disk.sync_directory(self._collections)
                return kept
        raise DataDirectoryError(
            f"{place} is in the way: {name}{KEPT_SUFFIXES[0]} and {name}{KEPT_SUFFIXES[1]} are "
            "there already; move one of them to another directory and repeat the call"
        )

    def kept_directories(self, collection: str = "") -> list[Path]:
        """Return what was set apart of a collection, or of all, and is kept; by name."""
        if collection:
            kept = (self._collections / f"{collection}{suffix}" for suffix in KEPT_SUFFIXES)
            return [path for path in kept if os.path.lexists(path)]
        return sorted(
            entry for entry in self._collections.iterdir() if name_of_kept(entry.name) is not None
        )

    def close(self) -> None:
        """Release the lock."""
        unlock(self._lock)

    # ---- what a start finds ---------------------------------------------------------------------

    def _remove_leftovers(self) -> None:
        for entry in sorted(self._collections.iterdir()):
            if entry.name.startswith((_CREATING, _DROPPED)):
                try:
                    remove_directory_or_link(self._disk, entry)
                except OSError as error:
                    _log.warning("leftover not removed", path=str(entry), reason=str(error))
        # Even without leftovers: what a killed process renamed last may not be durable yet, and
        # creating a collection that exists changes nothing and acknowledges immediately.
        self._disk.sync_directory(self._collections)

    def _read_register(self) -> Register:
        content = None
        if self._version == FORMAT_VERSION:
            try:
                content = Register.read(self.path)
                if content is None:
                    _log.error("register missing", directory=str(self.path))
            except InvalidRecord as error:
                _log.error("register damaged", reason=str(error))
        kept = TOMBSTONES_KEPT if self.identity.shards_total == 1 else None
        return Register(
            self._disk, self.path, content, tombstones_kept=kept, write=self._ballast.spend
        )


def may_be_collection(name: str) -> bool:
    """Whether a directory of this name may be a collection's, and not a stray one."""
    return _COLLECTION_NAME.fullmatch(name) is not None


def name_of_kept(name: str) -> str | None:
    """Return the collection of which a directory keeps former files, or None."""
    return next(
        (
            stem
            for suffix in KEPT_SUFFIXES
            if name.endswith(suffix) and may_be_collection(stem := name.removesuffix(suffix))
        ),
        None,
    )


def is_directory(path: Path) -> bool:
    """Whether a path is a directory, or a link to one, as far as the system tells."""
    try:
        return path.is_dir()
    except OSError:
        return False


def remove_directory_or_link(disk: Disk, path: Path) -> None:
    """Remove a directory with its contents, or a link to one with what it points to.

    The directory that a link points to stays if its removal fails, such as a mount point.
    """
    if path.is_symlink():
        if is_directory(path):
            with suppress(OSError):
                disk.remove_tree(path.resolve())
        disk.remove(path)
    elif path.is_dir():
        disk.remove_tree(path)
    else:
        disk.remove(path)


def _refuse_dangling_link(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataDirectoryError(
            f"{path} is a link to {path.readlink()}, which is absent: mount that disk, or "
            "correct the link"
        )


def _make_durably(disk: Disk, path: Path) -> None:
    """Make a directory and its missing parents, and their entries durable."""
    if not path.exists():
        _make_durably(disk, path.parent)
        with suppress(FileExistsError):  # shards that start together share their parents
            disk.make_directory(path)
        disk.sync_directory(path.parent)


def stored_identity(path: Path) -> tuple[ShardIdentity, DirectoryId, int] | None:
    """Read the identity and the format version, or return None for a directory never used.

    Raises DataDirectoryError if it is invalid, DataDirectoryForeign if it is gone.
    """
    file = path / IDENTITY_FILE
    if not file.exists():
        if (path / _COLLECTIONS).exists():
            raise DataDirectoryForeign(
                f"{path} holds collections but no {IDENTITY_FILE}: restore that file from a copy, "
                "see `vectorshard repair`, or choose another directory"
            )
        return None
    try:
        return identity_in(read_file(file, IDENTITY_BYTES_MAX), file)
    except InvalidRecord as error:
        cure = "restore the file from a copy, or see `vectorshard repair`"
        raise DataDirectoryError(f"{error}; {cure}") from error


def identity_in(contents: bytes, file: Path) -> tuple[ShardIdentity, DirectoryId, int]:
    """Return what the contents of an identity's file say; InvalidRecord if they are damaged.

    Raises DataDirectoryTooNew for a later format version.
    """
    stored = parsed_object(contents, str(file))
    is_sound = CRC32C not in stored or stored.pop(CRC32C) == checksum_of(stored)
    version = stored.pop("format_version", None)
    if type(version) is not int:
        raise InvalidRecord(f"{file}: format_version: expected int, found {version!r}")
    if version > FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"{file.parent} has format version {version}; this release reads up to "
            f"{FORMAT_VERSION}: start it with the release that wrote it, or a later one"
        )
    if not is_sound:
        raise InvalidRecord(f"{file}: checksum mismatch")
    own = DirectoryId()
    if version > VERSION_WITHOUT_ID:
        names = [field.name for field in fields(DirectoryId)]
        of_directory = {name: stored.pop(name) for name in names if name in stored}
        own = record_of(DirectoryId, of_directory, str(file))
    return record_of(ShardIdentity, stored, str(file)), own, version


def stored_cluster(path: Path) -> str:
    """Return the cluster of a data directory; empty if it has never been used.

    Raises DataDirectoryError if its identity is invalid.
    """
    stored = stored_identity(path)
    return stored[0].cluster if stored is not None else ""


def stored_shards_total(path: Path) -> int:
    """Return the number of shards of a data directory's placement; 0 if it has never been used.

    Raises DataDirectoryError if its identity is invalid.
    """
    stored = stored_identity(path)
    return stored[0].shards_total if stored is not None else 0


def store_identity(disk: Disk, path: Path, identity: ShardIdentity, own: DirectoryId) -> None:
    """Write the identity, durably."""
    stored = {"format_version": FORMAT_VERSION, **asdict(identity), **asdict(own)}
    stored[CRC32C] = checksum_of(stored)
    disk.write_new_file(path / IDENTITY_FILE, json.dumps(stored, indent=2).encode() + b"\n")


def _check_identity(path: Path, stored: ShardIdentity, wanted: ShardIdentity) -> None:
    wanted_fields = asdict(replace(wanted, cluster=wanted.cluster or stored.cluster))
    for name, value in asdict(stored).items():
        if value != wanted_fields[name]:
            raise DataDirectoryForeign(
                f"{path} has {name} {value!r}, not {wanted_fields[name]!r}: start the shard with "
                "its original settings, or choose another directory"
            )
