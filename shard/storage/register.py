"""The register of a data directory: which collections it should hold, and which were dropped.

Without it, a collection whose directory is gone and one that never existed look alike.
docs/formats.md describes the file. Thread-safe: its changes come from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.checked_json import read_checked, write_checked
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, record_of

REGISTER_FILE: Final = "register.json"
FORMAT_VERSION: Final = 1


class Registered(Enum):
    """What the register says of a collection."""

    LIVE = "live"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisterEntry:
    """A collection that the directory holds, or a tombstone of one."""

    incarnation: str
    name: str
    state: Registered


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    collections: tuple[RegisterEntry, ...]


class Register:
    """The register of one data directory.

    Each change is durable when it returns. After an OSError the register is as it was, if the disk
    allows; a crash may still show the change.

    Parameters
    ----------
    entries
        What was read; None if there was nothing to read.
    tombstones_kept
        How many tombstones are kept, the newest; None for all.
    write
        Calls what it is given, which writes the file; see `Ballast.spend`.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        entries: Iterable[RegisterEntry] | None = (),
        *,
        tombstones_kept: int | None = None,
        write: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> None:
        self._disk = disk
        self._path = directory / REGISTER_FILE
        self._write = write
        self._tombstones_kept = tombstones_kept
        self.is_whole = entries is not None
        """Whether it was read; else it has to be made from what is there."""
        self._entries = {entry.incarnation: entry for entry in entries or ()}

    @staticmethod
    def read(directory: Path) -> tuple[RegisterEntry, ...] | None:
        """Return the entries in a directory's file; None if it is absent.

        Raises InvalidRecord if it is damaged.
        """
        path = directory / REGISTER_FILE
        fields = read_checked(path, FORMAT_VERSION)
        if fields is None:
            return None
        entries = record_of(_Stored, fields, str(path)).collections
        names = [entry.name for entry in entries if entry.state is Registered.LIVE]
        if len({entry.incarnation for entry in entries}) < len(entries) or len(set(names)) < len(
            names
        ):
            raise InvalidRecord(f"{path}: a collection is listed twice")
        return entries

    @property
    def entries(self) -> tuple[RegisterEntry, ...]:
        """All entries, in the order in which they were made."""
        return tuple(self._entries.values())

    def state_of(self, incarnation: str) -> Registered | None:
        """Return what is registered of an incarnation, or None."""
        entry = self._entries.get(incarnation)
        return entry.state if entry is not None else None

    def live_incarnation(self, name: str) -> str:
        """Return the incarnation that is LIVE under a name; empty without one."""
        live = (each for each in self.entries if each.state is Registered.LIVE)
        return next((each.incarnation for each in live if each.name == name), "")

    @property
    def live(self) -> frozenset[str]:
        """The incarnations that are LIVE."""
        return frozenset(each.incarnation for each in self.entries if each.state is Registered.LIVE)

    def replace(self, entries: Iterable[RegisterEntry]) -> None:
        """Write all entries; nothing else is left."""
        before, self._entries = self._entries, {each.incarnation: each for each in entries}
        try:
            self.store()
        except BaseException:
            self._entries = before
            raise
        self.is_whole = True

    def put(self, incarnation: str, name: str, state: Registered) -> None:
        """Add an entry, or change it."""
        others = [each for each in self.entries if each.incarnation != incarnation]
        entry = RegisterEntry(incarnation=incarnation, name=name, state=state)
        dropped = [each for each in (*others, entry) if each.state is Registered.DROPPED]
        excess = dropped[: max(0, len(dropped) - (self._tombstones_kept or len(dropped)))]
        self.replace(each for each in (*others, entry) if each not in excess)

    def forget(self, incarnations: Iterable[str]) -> None:
        """Remove tombstones; entries that are LIVE stay."""
        gone = {each for each in incarnations if self.state_of(each) is Registered.DROPPED}
        if gone:
            self.replace(each for each in self.entries if each.incarnation not in gone)

    def store(self) -> None:
        """Write the entries as they are: after a failure, the file may hold other ones."""
        self._write(self._write_file)

    def _write_file(self) -> None:
        collections = [
            {**asdict(entry), "state": entry.state.value} for entry in self._entries.values()
        ]
        fields = {"format_version": FORMAT_VERSION, "collections": collections}
        write_checked(self._disk, self._path, fields)
