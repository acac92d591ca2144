"""Disks for tests: one that fails and delays, and one that remembers enough to cut the power.

`RecordingDisk` works on a real directory and keeps a list of what was asked of it. Every point in
that list is a moment at which the power may fail; `crash_states` draws some, and each of them
rebuilds a directory as a disk might hold it then:

* a file's writes and lengthenings are certain once the file was synced; until then each is kept,
  dropped or, a write, torn: any of its 512-byte sectors may have reached the disk, in any order;
* a directory's entries (created, renamed, removed) are certain once the directory was synced; until
  then each is kept or dropped;
* a SQLite commit is a write of what changed in its log, then a sync of the log; a checkpoint is
  the same for the database. What changed is found by comparing the files before and after. SQLite
  syncs the header of a log that it restarts before the rest of it, and the directory in which it
  creates a log (wal.c, walWriteFrames; os_unix.c, unixSync); so do these records.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

import numpy as np

from vectorshard.shard.storage.disk import Bytes, Disk, DiskFile

SECTOR_BYTES = 512
"""What a disk writes at once or not at all."""

FULL = 2
"""The least level of PRAGMA synchronous at which SQLite syncs its log with every commit."""

LOG_HEADER_BYTES = 32
"""The header of a SQLite log (sqlite.org/fileformat2.html#walformat)."""

Kind: TypeAlias = Literal[
    "make_directory",
    "open",
    "write",
    "extend",
    "sync",
    "sync_directory",
    "rename",
    "remove",
    "remove_directory",
    "connect",
    "commit",
    "checkpoint",
    "disconnect",
]

_SQLITE_KINDS = {"connect", "commit", "checkpoint", "disconnect"}

_SQLITE_ERRORS = {
    errno.ENOSPC: ("database or disk is full", sqlite3.SQLITE_FULL),
    errno.EMFILE: ("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    errno.ENFILE: ("unable to open database file", sqlite3.SQLITE_CANTOPEN),
    errno.ENOMEM: ("disk I/O error", sqlite3.SQLITE_IOERR_NOMEM),
}
"""What SQLite answers when the system answers it so."""


class FailingDisk(Disk):
    """A real disk on which chosen operations fail or wait.

    `counts` says how often each kind of operation was asked for.
    """

    def __init__(self) -> None:
        self.counts: dict[Kind, int] = {}
        self._failures: dict[tuple[Kind, int], int] = {}
        self._delays: dict[Kind, Callable[[], None]] = {}
        self._counting = threading.Lock()

    def fail(self, kind: Kind, *, after: int = 0, code: int = errno.EIO) -> None:
        """Let one operation of a kind fail, once: the next, or the one `after` so many more.

        It raises OSError with `code`, or the error that SQLite raises for it. A failing write
        leaves half of what it should write, as a full disk does; any other operation that fails
        does nothing.
        """
        self._failures[kind, self.counts.get(kind, 0) + after] = code

    def delay(self, kind: Kind, wait: Callable[[], None] | None) -> None:
        """Call `wait` before every operation of a kind, on its thread; None ends it."""
        if wait is None:
            self._delays.pop(kind, None)
        else:
            self._delays[kind] = wait

    def _failure(self, kind: Kind) -> OSError | sqlite3.OperationalError | None:
        """Count an operation, wait as it should, and return the error that it should end in."""
        with self._counting:
            count = self.counts.get(kind, 0)
            self.counts[kind] = count + 1
            code = self._failures.pop((kind, count), None)
            wait = self._delays.get(kind)
        if wait is not None:
            wait()
        if code is None:
            return None
        if kind not in _SQLITE_KINDS:
            return OSError(code, os.strerror(code))
        text, sqlite_code = _SQLITE_ERRORS.get(code, ("disk I/O error", sqlite3.SQLITE_IOERR))
        error = sqlite3.OperationalError(text)
        error.sqlite_errorcode = sqlite_code
        return error

    def _enter(self, kind: Kind) -> None:
        if error := self._failure(kind):
            raise error

    def make_directory(self, path: Path) -> None:
        self._enter("make_directory")
        super().make_directory(path)

    def open(self, path: Path) -> DiskFile:
        self._enter("open")
        return super().open(path)

    def write(self, file: DiskFile, offset: int, contents: Bytes) -> None:
        if error := self._failure("write"):
            whole = memoryview(contents).cast("B")
            super().write(file, offset, whole[: len(whole) // 2])
            raise error
        super().write(file, offset, contents)

    def extend(self, file: DiskFile, size: int) -> None:
        self._enter("extend")
        super().extend(file, size)

    def sync(self, file: DiskFile) -> None:
        self._enter("sync")
        super().sync(file)

    def sync_directory(self, path: Path) -> None:
        self._enter("sync_directory")
        super().sync_directory(path)

    def rename(self, source: Path, destination: Path) -> None:
        self._enter("rename")
        super().rename(source, destination)

    def remove(self, path: Path) -> None:
        self._enter("remove")
        super().remove(path)

    def remove_directory(self, path: Path) -> None:
        self._enter("remove_directory")
        super().remove_directory(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        self._enter("connect")
        return super().connect(path)

    def commit(self, connection: sqlite3.Connection) -> None:
        self._enter("commit")
        super().commit(connection)

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        self._enter("checkpoint")
        super().checkpoint(connection)

    def disconnect(self, connection: sqlite3.Connection) -> None:
        self._enter("disconnect")
        super().disconnect(connection)


# ---- what is recorded ---------------------------------------------------------------------------
# Files and directories go by numbers, as names change. The root directory is number 0.


@dataclass(frozen=True, slots=True)
class Created:
    """An entry of a directory for a new file or directory."""

    directory: int
    name: str
    node: int
    is_directory: bool


@dataclass(frozen=True, slots=True)
class Renamed:
    """An entry under a new name, in place of what had that name."""

    directory: int
    source: str
    name: str
    node: int


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
class Extended:
    """Zeros at the end of a file, up to `size` bytes."""

    node: int
    size: int


@dataclass(frozen=True, slots=True)
class Synced:
    """All that was written to a file is certain now."""

    node: int


@dataclass(frozen=True, slots=True)
class DirectorySynced:
    """Entries of a directory are certain now: all, or the one that is named."""

    directory: int
    name: str | None = None


@dataclass(frozen=True, slots=True)
class Marked:
    """An event of the test's own."""

    event: object


EntryChange: TypeAlias = Created | Renamed | Removed
Operation: TypeAlias = EntryChange | Written | Extended | Synced | DirectorySynced | Marked


class RecordingDisk(FailingDisk):
    """A real disk that records what happens below `root`, an existing and empty directory.

    May be used by several threads; operations are recorded, and done, one after the other, their
    delays included. It may see a directory closed and opened again. What readers do is not
    recorded. Files that did not come by this disk are left out of crash states.
    """

    def __init__(self, root: Path) -> None:
        super().__init__()
        if any(root.iterdir()):
            raise ValueError(f"{root} is not empty: what is in it would not be recorded")
        self.root = root
        self.operations: list[Operation] = []
        self._one_at_a_time = threading.RLock()
        self._entries: dict[int, dict[str, int]] = {0: {}}  # directory -> name -> node
        self._next_node = 1
        self._open_files: dict[DiskFile, int] = {}
        self._databases: dict[sqlite3.Connection, Path] = {}
        self._images: dict[int, bytes] = {}  # a database's or log's contents, as last recorded

    def mark(self, event: object) -> None:
        """Record an event, such as an acknowledgement of what must be certain from here on."""
        with self._one_at_a_time:
            self.operations.append(Marked(event))

    def crash_states(self, random: Random, states: int) -> Iterator[CrashState]:
        """Draw `states` moments and outcomes of a power cut; every moment about equally often."""
        moments: list[int] = []
        for _ in range(states):
            if not moments:
                moments = list(range(len(self.operations) + 1))
                random.shuffle(moments)
            yield CrashState(tuple(self.operations), moments.pop(), random.getrandbits(32))

    def make_directory(self, path: Path) -> None:
        with self._one_at_a_time:
            super().make_directory(path)
            self._create(path, is_directory=True)

    def open(self, path: Path) -> DiskFile:
        with self._one_at_a_time:
            file = super().open(path)
            node = self._node(path)
            self._open_files[file] = self._create(path) if node is None else node
            return file

    def write(self, file: DiskFile, offset: int, contents: Bytes) -> None:
        with self._one_at_a_time:
            # Recorded first: a write that fails may have done any part of its work.
            self.operations.append(Written(self._open_files[file], offset, bytes(contents)))
            super().write(file, offset, contents)

    def extend(self, file: DiskFile, size: int) -> None:
        with self._one_at_a_time:
            super().extend(file, size)
            self.operations.append(Extended(self._open_files[file], size))

    def sync(self, file: DiskFile) -> None:
        with self._one_at_a_time:
            super().sync(file)
            self.operations.append(Synced(self._open_files[file]))

    def sync_directory(self, path: Path) -> None:
        with self._one_at_a_time:
            super().sync_directory(path)
            node = self._node(path)
            if node is not None:  # else it is outside of the root
                self.operations.append(DirectorySynced(node))

    def rename(self, source: Path, destination: Path) -> None:
        with self._one_at_a_time:
            super().rename(source, destination)
            directory = self._directory(source)
            node = self._entries[directory].pop(source.name)
            self._entries[directory][destination.name] = node
            self.operations.append(Renamed(directory, source.name, destination.name, node))

    def remove(self, path: Path) -> None:
        with self._one_at_a_time:
            super().remove(path)
            self._forget(path)

    def remove_directory(self, path: Path) -> None:
        with self._one_at_a_time:
            super().remove_directory(path)
            self._forget(path)

    def connect(self, path: Path) -> sqlite3.Connection:
        with self._one_at_a_time:
            connection = super().connect(path)
            self._databases[connection] = path
            self._record_database(path)
            return connection

    def commit(self, connection: sqlite3.Connection) -> None:
        with self._one_at_a_time:
            super().commit(connection)
            ((level,),) = connection.execute("PRAGMA synchronous").fetchall()
            self._record_database(self._databases[connection], log_synced=level >= FULL)

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        with self._one_at_a_time:
            super().checkpoint(connection)
            self._record_database(self._databases[connection])

    def disconnect(self, connection: sqlite3.Connection) -> None:
        with self._one_at_a_time:
            super().disconnect(connection)
            self._record_database(self._databases.pop(connection))

    def _node(self, path: Path) -> int | None:
        """Return the number of a recorded path, or None."""
        if not path.is_relative_to(self.root):
            return None
        node: int | None = 0
        for name in path.relative_to(self.root).parts:
            node = self._entries.get(node, {}).get(name) if node is not None else None
        return node

    def _directory(self, path: Path) -> int:
        """Return the number of the directory that holds a path."""
        node = self._node(path.parent)
        if node is None:
            raise ValueError(f"{path.parent} was not made by this disk")
        return node

    def _create(self, path: Path, *, is_directory: bool = False) -> int:
        directory, node = self._directory(path), self._next_node
        self._next_node += 1
        self._entries[directory][path.name] = node
        if is_directory:
            self._entries[node] = {}
        self.operations.append(Created(directory, path.name, node, is_directory))
        return node

    def _forget(self, path: Path) -> None:
        """Record a removal; of SQLite's shared memory, which is never recorded, nothing."""
        if self._node(path) is not None:
            directory = self._directory(path)
            del self._entries[directory][path.name]
            self.operations.append(Removed(directory, path.name))

    def _record_database(self, path: Path, *, log_synced: bool = True) -> None:
        """Record what SQLite did since the last look, in the order in which it does it."""
        log = path.with_name(path.name + "-wal")
        self._record_changes(log, is_log=True, synced=log_synced)
        self._record_changes(path, is_log=False, synced=True)
        if not log.exists():
            self._forget(log)

    def _record_changes(self, path: Path, *, is_log: bool, synced: bool) -> None:
        if not path.exists():
            return
        node = self._node(path)
        if node is None:
            node = self._create(path)
        before, after = self._images.get(node, b""), path.read_bytes()
        if before == after:
            return
        if len(after) < len(before):
            raise ValueError(f"{path} was shortened, which is not among the things recorded")
        if is_log and before[:LOG_HEADER_BYTES] != after[:LOG_HEADER_BYTES]:
            self.operations += [Written(node, 0, after[:LOG_HEADER_BYTES]), Synced(node)]
        self.operations += [Written(node, *change) for change in changed_sectors(before, after)]
        if synced:
            self.operations.append(Synced(node))
        if is_log and synced and not before:
            self.operations.append(DirectorySynced(self._directory(path), path.name))
        self._images[node] = after


def changed_sectors(before: bytes, after: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, contents) of each run of sectors of `after` that differs from `before`."""
    sectors = -(-len(after) // SECTOR_BYTES)
    padded = [
        np.frombuffer(image.ljust(sectors * SECTOR_BYTES, b"\0"), np.uint8).reshape(sectors, -1)
        for image in (before, after)
    ]
    differs = (padded[0] != padded[1]).any(axis=1)
    if len(after) > len(before):
        differs[len(before) // SECTOR_BYTES :] = True  # a zero is a change where nothing was
    edges = np.flatnonzero(np.diff(differs.astype(np.int8), prepend=0, append=0)) * SECTOR_BYTES
    for start, end in edges.reshape(-1, 2).tolist():
        yield start, after[start:end]


# ---- what is rebuilt ----------------------------------------------------------------------------


@dataclass(slots=True)
class _File:
    """A file's certain contents, and what was done to it since its last sync."""

    certain: bytearray = field(default_factory=bytearray)
    since: list[Written | Extended] = field(default_factory=list)


@dataclass(slots=True)
class _Directory:
    """A directory's certain entries, and what was done to it since its last sync."""

    certain: dict[str, int] = field(default_factory=dict)
    since: list[EntryChange] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class CrashState:
    """One outcome of a power cut: after the first `moment` operations, with choices from `seed`."""

    operations: tuple[Operation, ...] = field(repr=False)
    moment: int
    seed: int

    @property
    def marks(self) -> list[object]:
        """The events that were marked before the power went, in their order."""
        done = self.operations[: self.moment]
        return [operation.event for operation in done if isinstance(operation, Marked)]

    def materialise(self, directory: Path) -> None:
        """Rebuild what the disk holds, in an existing and empty directory."""
        random = Random(self.seed)
        fate = random.choice(["keep", "drop", "tear", "mix"])
        nodes = self._replayed()

        def draw() -> str:
            return random.choice(["keep", "drop", "tear"]) if fate == "mix" else fate

        def build(node: int, path: Path) -> None:
            state = nodes[node]
            if isinstance(state, _File):
                contents = state.certain
                for change in state.since:
                    _change_file(contents, change, draw(), random)
                path.write_bytes(contents)
                return
            entries = state.certain
            for entry_change in state.since:
                kept = draw()
                if kept == "keep" or (kept == "tear" and random.random() < 0.5):
                    _change_entries(entries, entry_change)
            path.mkdir(exist_ok=node == 0)
            for name, child in sorted(entries.items()):
                build(child, path / name)

        build(0, directory)

    def _replayed(self) -> dict[int, _File | _Directory]:
        nodes: dict[int, _File | _Directory] = {0: _Directory()}
        for operation in self.operations[: self.moment]:
            match operation:
                case Created(_, _, node, is_directory):
                    nodes[node] = _Directory() if is_directory else _File()
            match operation:
                case Created() | Renamed() | Removed():
                    _directory(nodes, operation.directory).since.append(operation)
                case Written() | Extended():
                    _file(nodes, operation.node).since.append(operation)
                case Synced(node):
                    file = _file(nodes, node)
                    for change in file.since:
                        _change_file(file.certain, change, "keep", None)
                    file.since.clear()
                case DirectorySynced(node, name):
                    _sync_entries(_directory(nodes, node), name)
                case Marked():
                    pass
        return nodes


def _file(nodes: dict[int, _File | _Directory], node: int) -> _File:
    state = nodes[node]
    assert isinstance(state, _File)
    return state


def _directory(nodes: dict[int, _File | _Directory], node: int) -> _Directory:
    state = nodes[node]
    assert isinstance(state, _Directory)
    return state


def _sync_entries(directory: _Directory, name: str | None) -> None:
    changes, directory.since = directory.since, []
    for change in changes:
        if name in (None, change.name):
            _change_entries(directory.certain, change)
        else:
            directory.since.append(change)


def _change_entries(entries: dict[str, int], change: EntryChange) -> None:
    match change:
        case Created():
            entries[change.name] = change.node
        case Renamed():
            for name in [name for name, node in entries.items() if node == change.node]:
                del entries[name]  # one directory never shows under two names
            entries[change.name] = change.node
        case Removed():
            entries.pop(change.name, None)


def _change_file(
    contents: bytearray, change: Written | Extended, fate: str, random: Random | None
) -> None:
    if fate == "tear" and random is not None:
        for piece in _torn(change, random):
            _change_file(contents, piece, "keep", None)
    elif fate == "keep":
        end = change.size if isinstance(change, Extended) else change.offset + len(change.contents)
        contents.extend(bytes(max(0, end - len(contents))))
        if isinstance(change, Written):
            contents[change.offset : end] = change.contents


def _torn(change: Written | Extended, random: Random) -> Iterator[Written | Extended]:
    """Yield what reached the disk: each sector or not, a new length or not."""
    if isinstance(change, Extended):
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
