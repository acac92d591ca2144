"""The SQLite database of a row store: its connections, transactions and properties.

One connection writes and checkpoints. Readers have separate connections that never checkpoint and
are closed before it: SQLite before 3.51.3 may corrupt a database whose log one connection resets
while another checkpoints (sqlite.org/wal.html#walresetbug). What the records mean must not enter
here.
"""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

from vectorshard.shard.errors import DataDirectoryTooNew, RowStoreCorrupt
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord
from vectorshard.shard.storage.read_failures import (
    failure_behind,
    release,
    try_twice,
)
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    SCHEMA,
    SCHEMA_SINCE_VERSION_2,
)

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""The log is moved into the database after about so much. Larger: fewer pauses of writers, a longer
recovery; SQLite's own default is 1,000 pages, the same."""

METADATA_ROWS = 1_000
"""Rows whose metadata goes through one SQLite step. Python retakes the GIL for every step: next to
a busy thread, 640 rows take 57 ms one by one and 4 ms in one step. A step's value is limited to 1e9
bytes (sqlite.org/limits.html), and metadata is hex there."""

_COMMIT_OVERHEAD_BYTES = 16 * 1024  # pages that a commit dirties in addition to those that it fills

# What SQLite answers when a file is not the database that it should be, in contrast to a disk that
# fails: no such table or column, a malformed page, another kind of file.
_CORRUPT_CODES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class RowDatabase:
    """The database of one row store: its connection that writes, and its readers.

    Failures of the disk are raised as OSError or sqlite3.Error. Made for a file that is absent, it
    creates an empty one, for `initialize`; `check_version` comes first otherwise.
    """

    def __init__(self, disk: Disk, path: Path) -> None:
        self.path = path
        self._disk = disk
        with corruption_named(path):
            self.connection = disk.connect(path)  # used under `writing`, or while opening
        self.writing = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        self._unchecked_bytes = 0  # about what the log has grown by since the last checkpoint

    def initialize(self, properties: Mapping[str, str]) -> None:
        """Create the tables, with the properties and without a row, durably."""
        self.connection.executescript("BEGIN;" + SCHEMA)
        self.connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        for key, value in properties.items():
            self.put_property(key, value)
        self._disk.commit(self.connection)
        self._disk.sync_directory(self.path.parent)

    def check_version(self) -> None:
        """Reject another format; upgrade version 1, in one transaction.

        Raises
        ------
        RowStoreCorrupt
            If it is not a row store.
        DataDirectoryTooNew
            If a later format version wrote it.
        """
        ((version,),) = self.connection.execute("PRAGMA user_version").fetchall()
        if version > FORMAT_VERSION:
            raise DataDirectoryTooNew(
                f"{self.path} has format version {version}; this release reads up to "
                f"{FORMAT_VERSION}"
            )
        if version == 1:
            self.connection.executescript("BEGIN IMMEDIATE;" + SCHEMA_SINCE_VERSION_2)
            self.connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            self._disk.commit(self.connection)
        elif version != FORMAT_VERSION:
            raise RowStoreCorrupt(f"{self.path} is not a row store (format version {version})")

    @property
    def disk_bytes(self) -> int:
        """Bytes of the database and its log."""
        log = self.path.with_name(self.path.name + "-wal")
        return sum(path.stat().st_size for path in (self.path, log) if path.exists())

    def close(self) -> None:
        """Close all connections; no read may be running."""
        while self._readers:
            self._readers.pop().close()
        with self.writing:
            self._disk.disconnect(self.connection)
        release(self.path)

    def checkpoint(self) -> None:
        """Sync the log, and copy it into the database as far as readers allow."""
        self._disk.checkpoint(self.connection)
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
    def transaction(self, size_bytes: int) -> Iterator[sqlite3.Connection]:
        """Commit what the body executes, or roll it back.

        `size_bytes` is about what the body writes. A log that has grown is checkpointed before:
        after the commit, a failed checkpoint would make a durable commit look failed.
        """
        with self.writing:
            if self._unchecked_bytes >= CHECKPOINT_BYTES:
                self.checkpoint()
            self._unchecked_bytes += size_bytes + _COMMIT_OVERHEAD_BYTES
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self._disk.commit(self.connection)
            except BaseException:
                if self.connection.in_transaction:  # SQLite may have rolled back already
                    self.connection.rollback()
                raise

    @contextmanager
    def reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that cannot write; as many exist as were ever needed at a time."""
        with corruption_named(self.path):
            try:
                reader = self._readers.pop()
            except IndexError:
                reader = self._connect_reader()
            try:
                yield reader
            finally:
                self._readers.append(reader)

    def _connect_reader(self) -> sqlite3.Connection:
        uri = self.path.absolute().as_uri() + "?mode=ro"
        reader = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("PRAGMA wal_autocheckpoint = 0")
        return reader

    def properties(self) -> dict[str, str]:
        """Return all properties; RowStoreCorrupt if one does not match its checksum."""
        properties: dict[str, str] = {}
        stored = self.connection.execute("SELECT key, value, crc32c FROM properties")
        for key, value, crc32c in stored:
            if checksum(key.encode(), value.encode()) != crc32c:
                raise RowStoreCorrupt(f"{self.path}: checksum mismatch in property {key}")
            properties[key] = value
        return properties

    def put_property(self, key: str, value: str) -> None:
        """Write a property, in the open transaction."""
        self.connection.execute(
            "INSERT OR REPLACE INTO properties VALUES (?, ?, ?)",
            (key, value, checksum(key.encode(), value.encode())),
        )

    def insert_metadata(self, metadata: list[tuple[int, bytes]]) -> None:
        """Write the metadata of rows, in the open transaction."""
        for first in range(0, len(metadata), METADATA_ROWS):
            piece = metadata[first : first + METADATA_ROWS]
            lengths = [len(packed) for _, packed in piece]
            ends = accumulate(lengths)
            places = [  # substr counts from 1
                (row, end - length + 1, length)
                for (row, _), length, end in zip(piece, lengths, ends, strict=True)
            ]
            self.connection.execute(
                "INSERT INTO metadata SELECT value ->> 0, substr(?, value ->> 1, value ->> 2) "
                "FROM json_each(?)",
                (b"".join(packed for _, packed in piece), json.dumps(places)),
            )

    def metadata(self, rows: list[int]) -> dict[int, bytes]:
        """Return the metadata of those of `rows` that have some."""
        return try_twice(lambda: self._metadata(rows))

    def _metadata(self, rows: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        with self.reader() as reader:
            for first in range(0, len(rows), METADATA_ROWS):
                ((packed,),) = reader.execute(
                    "SELECT json_group_object(row, hex(struct)) FROM metadata "
                    "WHERE row IN (SELECT value FROM json_each(?))",
                    (json.dumps(rows[first : first + METADATA_ROWS]),),
                ).fetchall()
                for row, struct_hex in json.loads(packed).items():
                    found[int(row)] = bytes.fromhex(struct_hex)
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
