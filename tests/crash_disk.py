"""Disks for tests: one that fails and delays, and one that remembers enough to cut the power.

`RecordingDisk` works on a real directory and keeps a list of what was asked of it. Every point in
that list is a moment at which the power may fail; `crash_states` draws some, and the module of that
name rebuilds what a disk might hold then. A SQLite commit is a write of what changed in its log,
then a sync of the log; a checkpoint is the same for the database. What changed is found by
comparing the files before and after. SQLite syncs the header of a log that it restarts before the
rest of it, and the directory in which it creates a log (wal.c, walWriteFrames; os_unix.c,
unixSync); so do these records. `tests/crash_recorder` records what SQLite really does.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias

import numpy as np

from tests.crash_states import (
    SECTOR_BYTES,
    Created,
    DirectorySynced,
    Marked,
    Operation,
    Removed,
    Renamed,
    Resized,
    Synced,
    Written,
)
from tests.crash_states import CrashState as CrashState
from vectorshard.shard.storage.disk import Bytes, Disk, DiskFile

FULL = 2
"""The least level of PRAGMA synchronous at which SQLite syncs its log with every commit."""

LOG_HEADER_BYTES = 32
"""The header of a SQLite log (sqlite.org/fileformat2.html#walformat)."""

LOG_MARK = "log-end"

Kind: TypeAlias = Literal[
    "make_directory",
    "open",
    "write",
    "write_mark",  # of a log mark
    "sync_mark",
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
        if error := self._failure("write_mark" if file.path.name == LOG_MARK else "write"):
            whole = memoryview(contents).cast("B")
            super().write(file, offset, whole[: len(whole) // 2])
            raise error
        super().write(file, offset, contents)

    def extend(self, file: DiskFile, size: int) -> None:
        self._enter("extend")
        super().extend(file, size)

    def sync(self, file: DiskFile) -> None:
        self._enter("sync_mark" if file.path.name == LOG_MARK else "sync")
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
            self.operations.append(Resized(self._open_files[file], size))

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
