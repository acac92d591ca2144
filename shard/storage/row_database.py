"""The SQLite database of a row store: its connections and transactions.

A start first looks, with a connection that cannot write, and holds its view until everything is
verified: the last connection that writes checkpoints and removes the log when it is closed, and a
damaged log is evidence. From then on, one connection writes and checkpoints. Readers have separate
connections that never checkpoint and are closed before it: SQLite before 3.51.3 may corrupt a
database whose log one connection resets while another checkpoints
(sqlite.org/wal.html#walresetbug). What the records mean must not enter here.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, TypeAlias

from vectorshard.shard.errors import DataDirectoryTooNew, RowStoreCorrupt, WritesStopped
from vectorshard.shard.storage.content_hash import sum_bytes
from vectorshard.shard.storage.disk import DISK_ERRORS, Disk, is_disk_full
from vectorshard.shard.storage.json_records import InvalidRecord
from vectorshard.shard.storage.log_end import LogEnd
from vectorshard.shard.storage.read_failures import failure_behind, release, try_twice
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    SCHEMA,
    property_checksum,
    session_checksum,
)
from vectorshard.shard.storage.store_files import HeldFiles, check_store_files

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""The log is moved into the database after about so much. Larger: fewer pauses of writers, a longer
recovery; SQLite's own default is 1,000 pages, the same."""

METADATA_ROWS = 1_000
"""Rows whose metadata is read in one SQLite step. Python retakes the GIL for every step: next to a
busy thread, 640 rows take 57 ms one by one and 4 ms in one step. A step's value is limited to 1e9
bytes (sqlite.org/limits.html)."""

_INSERTS: Final = [f"INSERT INTO metadata VALUES {', '.join(['(?, ?)'] * 2**n)}" for n in range(10)]
"""Inserts of 1, 2, 4 ... 512 rows, each in one step: so few statements stay prepared."""

_SELECT: Final = """
SELECT group_concat(row), group_concat(length(packed)), CAST(group_concat(packed, '') AS BLOB)
FROM (
    SELECT row, coalesce(CAST(struct AS BLOB), x'') AS packed
    FROM json_each(?) CROSS JOIN metadata ON row = value
)"""
"""The rows of a list that are there, the lengths of their metadata, and the metadata of all."""

_COMMIT_OVERHEAD_BYTES = 16 * 1024  # pages that a commit dirties in addition to those that it fills

# What SQLite answers when a file is not the database that it should be, in contrast to a disk that
# fails: no such table or column, a malformed page, another kind of file.
_CORRUPT_CODES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


Stamp: TypeAlias = tuple[int, ...]
"""What tells a file from another, or from itself after a change."""


def stamp_of(path: Path) -> Stamp | None:
    """Return the stamp of a database without a log; None if it has one, or does not exist."""
    with suppress(FileNotFoundError):
        if path.with_name(path.name + "-wal").stat().st_size:
            return None
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class RowDatabase:
    """The database of one row store: its connection that writes, and its readers.

    Failures of the disk are raised as OSError or sqlite3.Error. Use `create`, or `look` and then
    `connect`. While nothing uses it, its files may be closed; the next use opens them again.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self.path = path
        self.version = FORMAT_VERSION
        """The format version of what `look` found."""
        self.transactions = 0
        """Transactions ever committed."""
        self.sequence = 0
        """The sequence number of the last commit."""
        self._disk = disk
        self._connection: sqlite3.Connection | None = None  # used under `writing`, or while opening
        self._log_end: LogEnd | None = None
        self._held: HeldFiles | None = None  # once it is open to be written
        self.writing = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        self._lending = threading.Lock()  # taken last
        self._lent = 0  # readers in use
        self._is_open = True
        self._is_closed = False  # forever
        self._stamp: Stamp | None = None  # of the file, when its connections were closed
        self._unchecked_bytes = 0  # about what the log has grown by since the last checkpoint

    @classmethod
    def create(cls, disk: Disk, path: Path, properties: Mapping[str, str]) -> RowDatabase:
        """Create a database with the properties and without a row, durably, and connect to it.

        The file must be absent.
        """
        database = cls(disk, path)
        with database.closed_on_failure():
            database._connection = connection = disk.connect(path)
            connection.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO ledger VALUES (0, 0, 0, 0, 0, ?)", (sum_bytes(0),))
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for key, value in properties.items():
                database.put_property(key, value)
            LogEnd.create(disk, path.parent)
            disk.commit(connection)
            disk.sync_directory(path.parent)
            database._log_end = LogEnd.open(disk, path.parent)
            database._held = HeldFiles(path.parent)
        disk.open_stores.used(database)
        return database

    @classmethod
    def look(cls, disk: Disk, path: Path) -> RowDatabase:
        """Read a database, of this format or an earlier one; nothing can write to it.

        Until `connect`, all readers see what the database holds now.

        Raises
        ------
        RowStoreCorrupt
            If it is missing, or not a row store.
        DataDirectoryTooNew
            If a later format version wrote it.
        """
        check_store_files(path)
        database = cls(disk, path)
        with database.closed_on_failure():
            looker = disk.connect_reader(path)
            database._readers.append(looker)
            looker.execute("BEGIN")
            ((version,),) = looker.execute("PRAGMA user_version").fetchall()
            if version > FORMAT_VERSION:
                raise DataDirectoryTooNew(
                    f"{path} has format version {version}; this release reads up to "
                    f"{FORMAT_VERSION}"
                )
            if version < 1:
                raise RowStoreCorrupt(f"{path} is not a row store (format version {version})")
            database.version = version
        return database

    def connect(self) -> None:
        """Open the connection that writes, after `look` and all that there is to verify."""
        with corruption_named(self.path):
            self._connection = self._disk.connect(self.path)
            for reader in self._readers:
                reader.rollback()
        self._disk.open_stores.used(self)

    def mark_from_now_on(self) -> None:
        """Write a log mark with every transaction from now on; the mark's file exists."""
        self._log_end = log_end = LogEnd.open(self._disk, self.path.parent)
        log_end.catch_up(self.transactions, self.sequence)
        self._held = HeldFiles(self.path.parent)

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection that writes; used under `writing`, or while opening."""
        if self._connection is None:
            raise RuntimeError(f"{self.path} was opened to be read")
        return self._connection

    @property
    def log_end(self) -> LogEnd:
        """The log mark."""
        if self._log_end is None:
            raise RuntimeError(f"{self.path} was opened to be read")
        return self._log_end

    @property
    def disk_bytes(self) -> int:
        """Bytes of the database and its log."""
        log = self.path.with_name(self.path.name + "-wal")
        return sum(path.stat().st_size for path in (self.path, log) if path.exists())

    def close(self) -> None:
        """Close all connections; no read may be running."""
        self._disk.open_stores.forget(self)
        with self.writing:
            self._is_closed = True
            if self._is_open:
                self._is_open = False
                self._disconnect()
            if self._log_end is not None:
                self._log_end.close()

    def _disconnect(self) -> None:
        """Close the readers, then the connection that writes, which removes the log."""
        self._close_readers()
        if self._connection is not None:
            self._disk.disconnect(self._connection)
            self._connection = None
        release(self.path)

    def _close_readers(self) -> None:
        while self._readers:
            self._readers.pop().close()

    def try_to_close_files(self) -> bool:
        """Close the files until the next use, unless they are in use; return whether they are.

        The log is copied into the database first. If the disk fails, the files stay open, and the
        next transaction meets the failure. A full disk keeps the log, which is synced.
        """
        if not self.writing.acquire(blocking=False):
            return False
        try:
            with self._lending:
                if self._lent or not self._is_open:
                    return not self._is_open
                self._is_open = False
            try:
                self._close_readers()
                self._checkpoint(may_be_full=True)
                self.log_end.rest()
            except DISK_ERRORS:
                self._is_open = True
                return False
            self._disconnect()
            self._stamp = stamp_of(self.path)
            return True
        finally:
            self.writing.release()

    def _open_again(self) -> None:
        """Open the files if they are closed; `writing` is held.

        Raises RowStoreCorrupt, and changes nothing, if they are not the files that were closed.
        """
        if self._is_open:
            return
        if self._is_closed:
            raise RuntimeError(f"{self.path} is closed")
        with corruption_named(self.path):
            check_store_files(self.path)
            if self._stamp is None or stamp_of(self.path) != self._stamp:
                self._check_transactions()
            self.log_end.reopen()
            self._connection = self._disk.connect(self.path)
            self._held = HeldFiles(self.path.parent)
        self._is_open = True

    def _check_transactions(self) -> None:
        """Look at the database, and compare its transactions with those that were committed."""
        with closing(self._disk.connect_reader(self.path)) as looker:
            (found,) = looker.execute("SELECT transactions FROM ledger").fetchone()
        if found != self.transactions:
            raise RowStoreCorrupt(
                f"{self.path} has {found} transactions, not {self.transactions}: its files were "
                "replaced or damaged while the server ran"
            )

    def checkpoint(self, *, may_be_full: bool = False) -> None:
        """Sync the log, and copy it into the database as far as readers allow.

        If `may_be_full`, a full disk is no failure: the log is synced, and nothing is copied.
        """
        with self.writing:
            self._open_again()
            self._checkpoint(may_be_full=may_be_full)

    def _checkpoint(self, *, may_be_full: bool = False) -> None:
        try:
            self._disk.checkpoint(self.connection)
        except DISK_ERRORS as error:
            if not (may_be_full and is_disk_full(error)):
                raise
        else:
            self._unchecked_bytes = 0

    @contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """Close the database if the body, which opens it, fails."""
        try:
            with corruption_named(self.path):
                yield
        except BaseException:
            self.close()
            raise

    @contextmanager
    def transaction(
        self, size_bytes: int, *, sequence: int | None = None
    ) -> Iterator[sqlite3.Connection]:
        """Commit what the body executes, or roll it back; then write the log mark.

        `size_bytes` is about what the body writes. A log that has grown is checkpointed before:
        after the commit, a failed checkpoint would make a durable commit look failed. The body of
        a commit, which has a `sequence` number, raises `transactions` in the ledger itself.

        Raises
        ------
        WritesStopped
            If a write of the log mark fails. The transaction may have been committed. Also if a
            file was removed, replaced or shortened: nothing was done then.
        """
        with self.writing:
            self.log_end.check()
            self._open_again()
            assert self._held is not None
            if harm := self._held.harm():
                raise WritesStopped(harm)
            self._disk.open_stores.used(self)
            if self._unchecked_bytes >= CHECKPOINT_BYTES:
                self._checkpoint()
            self._unchecked_bytes += size_bytes + _COMMIT_OVERHEAD_BYTES
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                if sequence is None:
                    self.connection.execute("UPDATE ledger SET transactions = transactions + 1")
                self._disk.commit(self.connection)
                self._held.committed()
            except BaseException:
                if self.connection.in_transaction:  # SQLite may have rolled back already
                    self.connection.rollback()
                raise
            self.transactions += 1
            if sequence is not None:
                self.sequence = sequence
            self.log_end.write(self.transactions, self.sequence)

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that cannot write; as many exist as were ever needed at a time."""
        with corruption_named(self.path), self._files_in_use():
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._disk.connect_reader(self.path)
            try:
                yield reader
            finally:
                self._readers.append(reader)

    @contextmanager
    def _files_in_use(self) -> Iterator[None]:
        """Keep the files open, after opening them again if they are closed."""
        while not self._lend():
            with self.writing:
                self._open_again()
        if self._connection is not None:  # otherwise a start looks at them
            self._disk.open_stores.used(self)
        try:
            yield
        finally:
            with self._lending:
                self._lent -= 1

    def _lend(self) -> bool:
        with self._lending:
            self._lent += self._is_open
            return self._is_open

    def put_property(self, key: str, value: str) -> None:
        """Write a property, in the open transaction."""
        self.connection.execute(
            "INSERT OR REPLACE INTO properties VALUES (?, ?, ?)",
            (key, value, property_checksum(key, value)),
        )

    def insert_session(self, first_sequence: int, session: int) -> None:
        """Write which session the commits from this one on are of, in the open transaction."""
        self.connection.execute(
            "INSERT INTO sessions VALUES (?, ?, ?)",
            (first_sequence, session, session_checksum(first_sequence, session)),
        )

    def insert_metadata(self, metadata: list[tuple[int, bytes]]) -> None:
        """Write the metadata of rows, in the open transaction."""
        values = [value for pair in metadata for value in pair]
        first, size = 0, len(_INSERTS) - 1
        while first < len(metadata):
            while first + 2**size > len(metadata):
                size -= 1
            last = first + 2**size
            self.connection.execute(_INSERTS[size], values[2 * first : 2 * last])
            first = last

    def metadata(self, rows: list[int]) -> dict[int, bytes]:
        """Return the metadata of those of `rows` that have some."""
        return try_twice(lambda: self._metadata(rows))

    def _metadata(self, rows: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        rows = sorted(set(rows))  # rows of one page follow each other
        with self.reader() as reader:
            for first in range(0, len(rows), METADATA_ROWS):
                ((numbers, lengths, structs),) = reader.execute(
                    _SELECT, (json.dumps(rows[first : first + METADATA_ROWS]),)
                ).fetchall()
                if numbers is None:
                    continue
                ends = list(accumulate(json.loads(f"[{lengths}]")))
                pieces = [structs[begin:end] for begin, end in pairwise((0, *ends))]
                found.update(zip(json.loads(f"[{numbers}]"), pieces, strict=True))
        return found


@contextmanager
def corruption_named(path: Path) -> Iterator[None]:
    """Turn what a damaged database leads to into RowStoreCorrupt; ReadFailed if a read failed."""
    try:
        yield
    except InvalidRecord as error:
        raise RowStoreCorrupt(str(error)) from error
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _CORRUPT_CODES:
            if (failure := failure_behind(path, error)) is not None:
                raise failure from error
            raise RowStoreCorrupt(f"{path}: {error}") from error
        raise
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise RowStoreCorrupt(f"{path}: a value has the wrong type: {error!r}") from error
