"""What a disk may hold after a power cut: operations, the image that they leave, and draws of it.

Every point in a list of operations is a moment at which the power may fail. `CrashState` is one
outcome of that, and rebuilds a directory as the disk might hold it then:

* a file's writes and lengths are certain once the file was synced; until then each is kept, dropped
  or, a write, torn: any of its 512-byte sectors may have reached the disk, in any order;
* a directory's entries (created, linked, renamed, removed) are certain once the directory was
  synced; until then each is kept or dropped. A rename from one directory into another happens
  wholly or not at all, and is certain once either of them was synced;
* what a failed sync should have made certain stays uncertain, even if a later sync succeeds: a
  kernel marks what it could not write as clean;
* a file that was mapped to be written, such as SQLite's shared memory, holds anything.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from random import Random
from typing import TypeAlias

SECTOR_BYTES = 512
"""What a disk writes at once or not at all."""

# ---- what is done -------------------------------------------------------------------------------
# Files and directories go by numbers, as names change. The root directory is number 0.


@dataclass(frozen=True, slots=True)
class Created:
    """An entry of a directory for a new file or directory, or for a symbolic link to `target`."""

    directory: int
    name: str
    node: int
    is_directory: bool
    target: str | None = None


@dataclass(frozen=True, slots=True)
class Linked:
    """One more entry for a file."""

    directory: int
    name: str
    node: int


@dataclass(frozen=True, slots=True)
class Renamed:
    """An entry under a new name, in place of what had that name.

    The new name is in the directory `into`, or in the same one.
    """

    directory: int
    source: str
    name: str
    node: int
    into: int | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """An entry less."""

    directory: int
    name: str


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes at an offset of a file."""

    node: int
    offset: int
    contents: bytes


@dataclass(frozen=True, slots=True)
class Resized:
    """A new length of a file: zeros at its end, or less of it."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """From now on the file is written through memory, unseen."""

    node: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was written to a file is certain now."""

    node: int


@dataclass(frozen=True, slots=True)
class SyncFailed:
    """A sync of a file failed: what was not certain before never is."""

    node: int


@dataclass(frozen=True, slots=True)
class DirectorySynced:
    """Entries of a directory are certain now: all, or the one that is named."""

    directory: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class AllSynced:
    """Everything is certain now."""


@dataclass(frozen=True, slots=True)
class Marked:
    """An event of the test's own."""

    event: object


EntryChange: TypeAlias = Created | Linked | Renamed | Removed
FileChange: TypeAlias = Written | Resized
Operation: TypeAlias = (
    EntryChange | FileChange | Mapped | Synced | SyncFailed | DirectorySynced | AllSynced | Marked
)

# ---- what is there ------------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    """A file's certain contents, and what was done to it since its last sync."""

    certain: bytearray = field(default_factory=bytearray)
    since: list[FileChange] = field(default_factory=list)
    synced: list[bool | None] = field(default_factory=list)
    """Of each of `since`: whether a sync succeeded or failed first; None before there was one."""
    mapped: bool = False

    def sync(self, succeeded: bool) -> None:
        """Note a sync of all that had none."""
        self.synced += [None] * (len(self.since) - len(self.synced))
        self.synced = [succeeded if first is None else first for first in self.synced]
        if all(self.synced):
            self.settle()

    def settle(self) -> None:
        """Make everything certain."""
        for change in self.since:
            _change_file(self.certain, change)
        self.since.clear()
        self.synced.clear()


@dataclass(slots=True)
class _Directory:
    """A directory's certain entries, and what was done to it since its last sync."""

    certain: dict[str, int] = field(default_factory=dict)
    since: list[EntryChange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Link:
    """A symbolic link, which never changes."""

    target: str


class Image:
    """What a disk certainly holds after some operations, and what it may hold beside it."""

    def __init__(self, operations: Iterable[Operation] = ()) -> None:
        self._nodes: dict[int, _File | _Directory | _Link] = {0: _Directory()}
        for operation in operations:
            self.apply(operation)

    def apply(self, operation: Operation) -> None:
        """Do one operation more."""
        match operation:
            case Created(_, _, node, is_directory, target):
                new = _Directory() if is_directory else _File() if target is None else _Link(target)
                self._nodes[node] = new
        match operation:
            case Created() | Linked() | Removed():
                self._directory(operation.directory).since.append(operation)
            case Renamed(directory, _, _, _, into):
                for number in {directory, directory if into is None else into}:
                    self._directory(number).since.append(operation)
            case Written() | Resized():
                self._file(operation.node).since.append(operation)
            case Mapped(node):
                self._file(node).mapped = True
            case Synced(node):
                self._file(node).sync(succeeded=True)
            case SyncFailed(node):
                self._file(node).sync(succeeded=False)
            case DirectorySynced(node, name):
                self._sync_entries(node, name)
            case AllSynced():
                for number, node_ in self._nodes.items():
                    if isinstance(node_, _File):
                        node_.settle()
                    elif isinstance(node_, _Directory):
                        self._sync_entries(number, None)

    def materialise(self, directory: Path, seed: int, root: int = 0) -> None:
        """Rebuild what a power cut leaves of `root`, in an existing and empty directory.

        The same seed leaves the same; without unsynced changes every seed does.
        """
        _Draw(self._nodes, Random(seed)).build(root, directory)

    def _file(self, number: int) -> _File:
        node = self._nodes[number]
        assert isinstance(node, _File)
        return node

    def _directory(self, number: int) -> _Directory:
        node = self._nodes[number]
        assert isinstance(node, _Directory)
        return node

    def _sync_entries(self, number: int, name: str | None) -> None:
        directory = self._directory(number)
        changes, directory.since = directory.since, []
        for change in changes:
            if name not in (None, change.name):
                directory.since.append(change)
                continue
            _change_entries(directory.certain, change, number)
            if isinstance(change, Renamed) and change.into not in (None, change.directory):
                assert change.into is not None
                self._sync_until(
                    change, change.into if number == change.directory else change.directory
                )

    def _sync_until(self, move: Renamed, number: int) -> None:
        """Make a rename certain in its other directory, and what was done there before it."""
        directory = self._directory(number)
        if move in directory.since:
            end = directory.since.index(move) + 1
            for change in directory.since[:end]:
                _change_entries(directory.certain, change, number)
            del directory.since[:end]


def _change_entries(entries: dict[str, int], change: EntryChange, directory: int) -> None:
    """Do a change to the entries of a directory, which a rename between two may concern in part."""
    match change:
        case Created() | Linked():
            entries[change.name] = change.node
        case Renamed():
            if directory == change.directory:
                one = entries.get(change.source) == change.node  # else a rename before was dropped
                names = [name for name, node in entries.items() if node == change.node]
                for name in [change.source] if one else names:
                    del entries[name]  # one directory never shows under two names
            if directory == (change.directory if change.into is None else change.into):
                entries[change.name] = change.node
        case Removed():
            entries.pop(change.name, None)


def _change_file(contents: bytearray, change: FileChange) -> None:
    if isinstance(change, Resized):
        del contents[change.size :]
        contents.extend(bytes(change.size - len(contents)))
    else:
        end = change.offset + len(change.contents)
        contents.extend(bytes(max(0, end - len(contents))))
        contents[change.offset : end] = change.contents


# ---- what is left of it -------------------------------------------------------------------------


class _Draw:
    """One outcome of a power cut: what becomes of each change that was not synced."""

    def __init__(self, nodes: dict[int, _File | _Directory | _Link], random: Random) -> None:
        self._nodes = nodes
        self._random = random
        self._fate = random.choice(["keep", "drop", "tear", "mix"])
        self._built: dict[int, Path] = {}  # files by their number, for their other names
        self._moves: dict[Renamed, bool] = {}

    def build(self, number: int, path: Path) -> None:
        """Build a node and all below it."""
        node = self._nodes[number]
        if isinstance(node, _Directory):
            path.mkdir(exist_ok=not self._built)
            self._built[number] = path
            for name, child in sorted(self._entries(number, node).items()):
                if child in self._built and not isinstance(self._nodes[child], _Directory):
                    os.link(self._built[child], path / name)
                elif child not in self._built:
                    self.build(child, path / name)
            return
        self._built[number] = path
        if isinstance(node, _Link):
            path.symlink_to(node.target)
        else:
            path.write_bytes(self._contents(node))

    def _fate_of_one(self) -> str:
        if self._fate == "mix":
            return self._random.choice(["keep", "drop", "tear"])
        return self._fate

    def _is_kept(self) -> bool:
        fate = self._fate_of_one()
        return fate == "keep" or (fate == "tear" and self._random.random() < 0.5)

    def _entries(self, number: int, directory: _Directory) -> dict[str, int]:
        entries = dict(directory.certain)
        for change in directory.since:
            if isinstance(change, Renamed) and change.into not in (None, change.directory):
                if change not in self._moves:
                    self._moves[change] = self._is_kept()
                kept = self._moves[change]
            else:
                kept = self._is_kept()
            if kept:
                _change_entries(entries, change, number)
        return entries

    def _contents(self, file: _File) -> bytearray | bytes:
        contents = bytearray(file.certain)
        for change, synced in zip_longest(file.since, file.synced):
            fate = "keep" if synced else self._fate_of_one()
            if fate == "keep":
                _change_file(contents, change)
            elif fate == "tear":
                for piece in _torn(change, self._random):
                    _change_file(contents, piece)
        if file.mapped and self._random.random() < 0.5:
            return self._random.randbytes(len(contents))
        return contents


def _torn(change: FileChange, random: Random) -> Iterator[FileChange]:
    """Yield what reached the disk: each sector or not, a new length or not."""
    if isinstance(change, Resized):
        if random.random() < 0.5:
            yield change
        return
    end = change.offset + len(change.contents)
    start = change.offset
    while start < end:
        stop = min(end, (start // SECTOR_BYTES + 1) * SECTOR_BYTES)
        if random.random() < 0.5:
            yield Written(
                change.node, start, change.contents[start - change.offset : stop - change.offset]
            )
        start = stop


@dataclass(frozen=True, slots=True)
class CrashState:
    """One outcome of a power cut: after the first `moment` operations, with choices from `seed`."""

    operations: Sequence[Operation] = field(repr=False)
    moment: int
    seed: int

    @property
    def marks(self) -> list[object]:
        """The events that were marked before the power went, in their order."""
        done = self.operations[: self.moment]
        return [operation.event for operation in done if isinstance(operation, Marked)]

    def materialise(self, directory: Path) -> None:
        """Rebuild what the disk holds, in an existing and empty directory."""
        Image(self.operations[: self.moment]).materialise(directory, self.seed)
