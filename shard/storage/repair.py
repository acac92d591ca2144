"""Repairs a data directory that no server uses: looks at all of it, and writes only if asked to.

Nothing is changed without `write`, not even a file of SQLite's next to a database: all that is
opened is a copy. Files that are replaced are kept. docs/operations.md describes what an operator
sees, and docs/formats.md where the kept files are.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from vectorshard.shard.errors import CollectionNotFound, DataDirectoryForeign
from vectorshard.shard.membership import Membership
from vectorshard.shard.storage.data_directory import (
    BUILDING,
    IDENTITY_FILE,
    is_directory,
    may_be_collection,
)
from vectorshard.shard.storage.directory_lock import locked, locked_unchanged
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.register import Registered
from vectorshard.shard.storage.repair_collection import Examined, Expected, examined
from vectorshard.shard.storage.repair_findings import Outcome, Repair
from vectorshard.shard.storage.repair_identity import DirectoryFiles, Given
from vectorshard.shard.storage.repair_write import Own, belong_to_owner_of, finish, write
from vectorshard.shard.storage.row_store_format import FILE_NAME
from vectorshard.shard.storage.session import new_session

_COLLECTIONS: Final = "collections"

PUT_BACK: Final = (
    "Put the collection's directory back; or restore it from a backup; or go on without it with "
    "`vectorshard accept-loss`, through a router"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a repair is to do.

    `collection` limits it to one, `work` is a directory with room for copies of the databases,
    None for the system's directory of temporary files. `drop_damaged` deletes rows that do not
    match their content hashes and that no undone flip restores.
    """

    write: bool = False
    collection: str = ""
    work: Path | None = None
    drop_damaged: bool = False


def repair(disk: Disk, path: Path, wanted: Wanted, given: Given) -> list[Repair]:
    """Look at a data directory, and repair it if `wanted.write`; return what was found.

    The first is of the directory itself, the others of its collections by name.

    Raises
    ------
    DataDirectoryLocked
        If a server uses it.
    DataDirectoryForeign
        If it is no data directory of a shard.
    DataDirectoryTooNew
        If a later format version wrote it.
    DataDirectoryFull
        If the disk has no room for what is written.
    CollectionNotFound
        If the collection is neither there nor registered.
    """
    _require_shard(path)
    with _locked(disk, path, wanted):
        return _Repair(disk, path, wanted, given).run()


def _require_shard(path: Path) -> None:
    if not path.is_dir():
        raise DataDirectoryForeign(f"{path} is not a directory")
    if not (path / IDENTITY_FILE).exists() and not (path / _COLLECTIONS).exists():
        shards = sorted(each.parent for each in path.glob(f"*/{_COLLECTIONS}"))
        if shards:
            raise DataDirectoryForeign(
                f"{path} holds the data directories of several shards: repair each of them, such "
                f"as {shards[0]}"
            )
        raise DataDirectoryForeign(f"{path} is no data directory of a shard")


@contextmanager
def _locked(disk: Disk, path: Path, wanted: Wanted) -> Iterator[None]:
    if wanted.write:
        with closing(locked(disk, path)):
            yield
    else:
        with locked_unchanged(path):
            yield


class _Repair:
    def __init__(self, disk: Disk, path: Path, wanted: Wanted, given: Given) -> None:
        self._disk = disk
        self._path = path
        self._collections = path / _COLLECTIONS
        self._wanted = wanted
        self._given = given
        self._files = DirectoryFiles(path)
        self._ended: list[str] = []

    def run(self) -> list[Repair]:
        files = self._files
        names = self._names()
        if files.is_refused:
            return [files.repair]
        if files.identity is None:
            found = [self._repaired(name, write_it=False) for name in self._known()]
            files.find_identity((membership for _, membership in found), self._given)
            if files.is_refused:
                return [files.repair, *(each for each, _ in found if each.collection in names)]
        writes = self._wanted.write
        if writes:
            self._finish(names)
        repairs = [self._repaired(name, write_it=writes)[0] for name in names]
        if writes and files.repair.findings:
            files.write(self._disk, new_session)
            if files.register is None:
                self._write_register(repairs)
            for path in self._path.iterdir():
                if path.is_file():
                    belong_to_owner_of(self._path, path)
            files.repair.outcome = Outcome.REPAIRED
        return [files.repair, *repairs]

    def _write_register(self, repairs: Sequence[Repair]) -> None:
        """Register all collections that are there, also those that were not looked at."""
        done = {each.collection for each in repairs}
        others = [name for name in self._known() if name not in done]
        every = [*repairs, *(self._repaired(name, write_it=False)[0] for name in others)]
        live = [(each.collection, each.incarnation) for each in every if each.incarnation]
        self._files.write_register(self._disk, live)

    def _names(self) -> list[str]:
        """Return all collections, or the one that is wanted."""
        names = self._known()
        if wanted := self._wanted.collection:
            if wanted not in names and not is_directory(self._collections / wanted):
                raise CollectionNotFound(f"{self._path} has no collection {wanted!r}")
            return [wanted]
        return names

    def _known(self) -> list[str]:
        """Return the collections that are there, or registered, by name."""
        names = set(self._registered())
        if is_directory(self._collections):
            names |= {
                each.name
                for each in self._collections.iterdir()
                if may_be_collection(each.name) and (each / FILE_NAME).exists()
            }
        return sorted(names)

    def _registered(self) -> dict[str, str]:
        """Return the incarnations of the collections that should be there, by name."""
        if self._files.register is None:
            return {}
        return {
            each.name: each.incarnation
            for each in self._files.register.collections
            if each.state is Registered.LIVE
        }

    def _finish(self, names: list[str]) -> None:
        self._ended = [name for name in names if finish(self._disk, self._collections / name)]

    def _repaired(self, name: str, *, write_it: bool) -> tuple[Repair, Membership]:
        """Look at a collection, and repair it if `write_it`; return whose its files are, too."""
        place = self._collections / name
        registered = self._registered().get(name, "")
        if not is_directory(place):
            return self._gone(name, registered), Membership()
        expected = Expected(name=name, incarnation=registered, directory=self._files.own.directory)
        directory = str(self._wanted.work) if self._wanted.work is not None else None
        with (
            TemporaryDirectory(prefix="vectorshard-repair-", dir=directory) as work,
            examined(place, Path(work), expected, drop_damaged=self._wanted.drop_damaged) as found,
        ):
            if name in self._ended:
                found.repair.add(name, "a repair of it was interrupted", "ended")
            if write_it and found.repair.outcome in (Outcome.REPAIRABLE, Outcome.ROWS_DAMAGED):
                write(self._disk, found, self._own())
            return found.repair, _membership_of(found)

    def _gone(self, name: str, incarnation: str) -> Repair:
        result = Repair(collection=name, incarnation=incarnation)
        if (self._collections / (BUILDING + name)).is_dir():
            result.add(name, "a repair of it was interrupted", "ended with --write")
        else:
            result.refuse(name, "its directory is gone", PUT_BACK)
        return result

    def _own(self) -> Own:
        assert self._files.identity is not None
        return Own(
            shard=self._files.identity.shard,
            life=self._files.own.life,
            new_session=new_session,
            new_directory=lambda: uuid.uuid4().hex,
        )


def _membership_of(found: Examined) -> Membership:
    if found.whole is not None:
        return found.whole.store.membership
    return found.salvage.membership if found.salvage is not None else Membership()


__all__ = ["Given", "Wanted", "repair"]
