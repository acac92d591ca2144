"""The seam to the disk: every write that the engine makes goes through `Disk`.

Tests put another Disk in its place that records, fails or delays. No knowledge of rows, formats or
file names may enter here. Failures are OSError and sqlite3.Error, as the system raises them.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeAlias

Bytes: TypeAlias = bytes | bytearray | memoryview


class DiskFile:
    """An open file: its `path` when it was opened, and its `descriptor`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self.descriptor = descriptor

    @property
    def size(self) -> int:
        """Length in bytes."""
        return os.fstat(self.descriptor).st_size

    def close(self) -> None:
        """Close the descriptor. Syncs nothing."""
        os.close(self.descriptor)


class Disk:
    """The real disk. What is durable when is said with each method; every one may raise OSError."""

    def make_directory(self, path: Path) -> None:
        """Make a directory whose parent exists. Durable after `sync_directory(path.parent)`."""
        path.mkdir()

    def open(self, path: Path) -> DiskFile:
        """Open a file to read and write, creating it if it is absent.

        The creation is durable after `sync_directory(path.parent)`.
        """
        return DiskFile(path, os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))

    def write(self, file: DiskFile, offset: int, contents: Bytes) -> None:
        """Write all of `contents` at `offset` bytes. Durable after `sync(file)`."""
        rest = memoryview(contents).cast("B")
        while rest:  # pwrite may stop short, and does so at 2 GiB
            written = os.pwrite(file.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written

    def extend(self, file: DiskFile, size: int) -> None:
        """Lengthen a file to `size` bytes, with zeros. Durable after `sync(file)`.

        Raises
        ------
        ValueError
            If it would shorten the file: reading a memory map past the end is a SIGBUS.
        """
        if size < file.size:
            raise ValueError(f"{file.path} has {file.size} bytes and is never cut to {size}")
        os.ftruncate(file.descriptor, size)

    def sync(self, file: DiskFile) -> None:
        """Make the file's contents and length durable.

        fdatasync is enough: it leaves out only what reading does not need, such as times. A changed
        length is flushed with the contents (fdatasync(2)).
        """
        os.fdatasync(file.descriptor)

    def sync_directory(self, path: Path) -> None:
        """Make the entries of a directory durable: what was created, renamed and removed in it."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def rename(self, source: Path, destination: Path) -> None:
        """Rename within one directory, replacing a file. Durable after `sync_directory`.

        Raises
        ------
        ValueError
            If the directories differ: such a rename would need both of them synced.
        """
        if source.parent != destination.parent:
            raise ValueError(f"{source} and {destination} are not in one directory")
        source.rename(destination)

    def remove(self, path: Path) -> None:
        """Remove a file. Durable after `sync_directory(path.parent)`."""
        path.unlink()

    def remove_directory(self, path: Path) -> None:
        """Remove an empty directory. Durable after `sync_directory(path.parent)`."""
        path.rmdir()

    def remove_tree(self, path: Path) -> None:
        """Remove a directory and all that is in it. May stop half-way; repeat it then."""
        for entry in sorted(path.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                self.remove_tree(entry)
            else:
                self.remove(entry)
        self.remove_directory(path)

    def write_new_file(self, path: Path, contents: Bytes) -> None:
        """Write a whole file, durably: afterwards it is all there, before it is all as it was.

        Goes through a temporary file beside it, `<name>.new`.
        """
        temporary = path.with_name(path.name + ".new")
        if temporary.exists():  # of an attempt that was cut short; it may be longer than this one
            self.remove(temporary)
        try:
            with closing(self.open(temporary)) as file:
                self.write(file, 0, contents)
                self.sync(file)
            self.rename(temporary, path)
        except OSError:
            with suppress(OSError):  # a full disk stays full otherwise
                self.remove(temporary)
            raise
        self.sync_directory(path.parent)

    def connect(self, path: Path) -> sqlite3.Connection:
        """Open the connection that writes a SQLite database, creating the file if it is absent.

        The one connection that may checkpoint, and only in `checkpoint` and `disconnect`: SQLite
        ignores failures of automatic checkpoints, so a failed fsync of the database would be
        forgotten, and the log reset over rows that never reached the disk.
        Transactions begin with an explicit BEGIN. May be used from several threads, one at a time.
        """
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA wal_autocheckpoint = 0")
            (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
            if mode != "wal":
                raise sqlite3.OperationalError(f"{path} cannot be kept in WAL mode, but in {mode}")
        except BaseException:
            connection.close()
            raise
        return connection

    def commit(self, connection: sqlite3.Connection) -> None:
        """Commit the open transaction. It is durable when this returns."""
        connection.execute("COMMIT")

    def checkpoint(self, connection: sqlite3.Connection) -> None:
        """Sync the log of a database and move it, as far as readers let it, into the database."""
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def disconnect(self, connection: sqlite3.Connection) -> None:
        """Close the connection that writes. As the last one it checkpoints and removes the log."""
        connection.close()
