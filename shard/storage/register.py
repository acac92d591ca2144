"""The register of a data directory: which collections it should hold, and which were dropped.

Without it, a collection whose directory is gone and one that never existed look alike. A tombstone
is reported until all shards have dropped the collection; then its incarnation is kept in a list,
because an old disk may bring the collection back long afterwards (`recall`).

docs/formats.md describes the file. Thread-safe: its changes come from one thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.checked_json import read_checked, write_checked
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, record_of

REGISTER_FILE: Final = "register.json"
FORMAT_VERSION: Final = 1
FORGOTTEN_KEPT: Final = 1_000
"""Incarnations of finished drops, the newest: 36 bytes each in the file."""


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
class RegisterContent:
    """What a register's file holds.

    `forgotten` are incarnations whose drop is finished. `unread` are directories that could not be
    read when the register was made from what was there.
    """

    collections: tuple[RegisterEntry, ...] = ()
    forgotten: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


class Register:
    """The register of one data directory.

    Each change is durable when it returns. After an OSError the register is as it was, if the disk
    allows; a crash may still show the change.

    Parameters
    ----------
    content
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
        content: RegisterContent | None = RegisterContent(),
        *,
        tombstones_kept: int | None = None,
        write: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> None:
        self._disk = disk
        self._path = directory / REGISTER_FILE
        self._write = write
        self._tombstones_kept = tombstones_kept
        self.is_whole = content is not None
        """Whether it was read; else it has to be made from what is there."""
        content = content or RegisterContent()
        self._entries = {entry.incarnation: entry for entry in content.collections}
        self._live = _live_of(content.collections)
        self._forgotten = dict.fromkeys(content.forgotten)
        self._unread = frozenset(content.unread)

    @staticmethod
    def read(directory: Path) -> RegisterContent | None:
        """Return what a directory's file holds; None if it is absent.

        Raises InvalidRecord if it is damaged.
        """
        path = directory / REGISTER_FILE
        fields = read_checked(path, FORMAT_VERSION)
        if fields is None:
            return None
        content = record_of(RegisterContent, fields, str(path), optional=("forgotten", "unread"))
        entries = content.collections
        names = [entry.name for entry in entries if entry.state is Registered.LIVE]
        if len({entry.incarnation for entry in entries}) < len(entries) or len(set(names)) < len(
            names
        ):
            raise InvalidRecord(f"{path}: a collection is listed twice")
        return content

    @property
    def entries(self) -> tuple[RegisterEntry, ...]:
        """All entries, in the order in which they were made."""
        return tuple(self._entries.values())

    def state_of(self, incarnation: str) -> Registered | None:
        """Return what is registered of an incarnation, or None."""
        entry = self._entries.get(incarnation)
        return entry.state if entry is not None else None

    def is_forgotten(self, incarnation: str) -> bool:
        """Whether the drop of an incarnation has reached all shards, not too long ago."""
        return incarnation in self._forgotten

    def was_dropped(self, incarnation: str) -> bool:
        """Whether a drop of an incarnation has begun, or is forgotten."""
        return self.is_forgotten(incarnation) or self.state_of(incarnation) is Registered.DROPPED

    def live_incarnation(self, name: str) -> str:
        """Return the incarnation that is LIVE under a name; empty without one."""
        return self._live.get(name, "")

    def is_unread(self, name: str) -> bool:
        """Whether a directory could not be read when the register was made, and is not in it."""
        return name in self._unread

    @property
    def live(self) -> frozenset[str]:
        """The incarnations that are LIVE."""
        return frozenset(self._live.values())

    def replace(
        self,
        entries: Iterable[RegisterEntry],
        forgotten: Iterable[str] | None = None,
        unread: Iterable[str] | None = None,
    ) -> None:
        """Write all entries.

        Nothing else is left, but what is forgotten or unread unless that is given.
        """
        before = self._entries, self._live, self._forgotten, self._unread
        self._entries = {each.incarnation: each for each in entries}
        self._live = _live_of(self._entries.values())
        if forgotten is not None:
            self._forgotten = dict.fromkeys(list(forgotten)[-FORGOTTEN_KEPT:])
        self._unread = frozenset(self._unread if unread is None else unread) - self._live.keys()
        try:
            self.store()
        except BaseException:
            self._entries, self._live, self._forgotten, self._unread = before
            raise
        self.is_whole = True

    def put(self, incarnation: str, name: str, state: Registered) -> None:
        """Add an entry, or change it."""
        others = [each for each in self.entries if each.incarnation != incarnation]
        entry = RegisterEntry(incarnation=incarnation, name=name, state=state)
        dropped = [each for each in (*others, entry) if each.state is Registered.DROPPED]
        excess = dropped[: max(0, len(dropped) - (self._tombstones_kept or len(dropped)))]
        left = [each for each in (*others, entry) if each not in excess]
        self.replace(left, unread=self._unread - {name})

    def forget(self, incarnations: Iterable[str]) -> None:
        """Report tombstones no longer, and only keep that they were; entries that are LIVE stay."""
        gone = [each for each in incarnations if self.state_of(each) is Registered.DROPPED]
        if gone:
            left = [each for each in self.entries if each.incarnation not in set(gone)]
            self.replace(left, (*self._forgotten, *gone))

    def recall(self, names: Mapping[str, str]) -> None:
        """Make tombstones again of those incarnations, with their names, that are forgotten."""
        back = [
            RegisterEntry(incarnation=incarnation, name=name, state=Registered.DROPPED)
            for incarnation, name in names.items()
            if incarnation in self._forgotten
        ]
        if back:
            left = [each for each in self._forgotten if each not in names]
            self.replace((*self.entries, *back), left)

    def store(self) -> None:
        """Write the entries as they are: after a failure, the file may hold other ones."""
        self._write(self._write_file)

    def _write_file(self) -> None:
        collections = [
            {**asdict(entry), "state": entry.state.value} for entry in self._entries.values()
        ]
        fields = {
            "format_version": FORMAT_VERSION,
            "collections": collections,
            "forgotten": list(self._forgotten),
        }
        if self._unread:
            fields["unread"] = sorted(self._unread)
        write_checked(self._disk, self._path, fields)


def _live_of(entries: Iterable[RegisterEntry]) -> dict[str, str]:
    """Return the incarnations that are LIVE, by their names."""
    return {each.name: each.incarnation for each in entries if each.state is Registered.LIVE}
