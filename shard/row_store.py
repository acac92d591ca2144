"""What exists in a collection: its rows' ids, norms, checksums and metadata, its dead, its files.

A SQLite database, which is also the log: one record of packed columns for each commit, so that a
commit of 1,000 rows is one INSERT and a million rows are loaded from a few thousand blobs. Vectors
must not enter here.

Format version 1; numbers in blobs are little-endian:

    user_version  the format version (a pragma, in the database's header)
    properties    configuration (shard.config_json), incarnation, row_file (the name of the one in
                  use), index_file (JSON of IndexFile; absent without one); crc32c over both
    commits       sequence = 1, 2, 3 ...; first_row, where the last commit ended, and how many rows;
                  ids (shard.id_column), checksums uint32 (shard.checksum), squared_norms float32;
                  rows that died: replaced int64, deleted int64; crc32c over all of the record
    metadata      row -> google.protobuf.Struct, serialized; only for rows that have some
    ledger        one record: accepted, replaced, deleted; changed with each commit

One connection writes and checkpoints. Readers have connections of their own that never checkpoint
and are closed before it: SQLite before 3.51.3 may corrupt a database whose log is reset by one
connection while another checkpoints (sqlite.org/wal.html#walresetbug).
"""

from __future__ import annotations

import json
import sqlite3
import struct
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from shard.checksum import checksum
from shard.config_json import config_from_json, config_to_json
from shard.disk import Disk
from shard.errors import DataDirectoryTooNew, RowStoreCorrupt
from shard.id_column import encode_ids
from shard.types import CollectionEntry, Float32Array, IdArray, Int64Array, UInt32Array

FORMAT_VERSION = 1

FILE_NAME = "store.db"

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""The log is moved into the database after about so much. Larger: fewer pauses of writers, a longer
recovery; SQLite's own default is 1,000 pages, the same."""

METADATA_ROWS = 1_000
"""Rows whose metadata goes through one SQLite step. Python takes the GIL anew for every step, which
beside a busy thread costs 640 rows 57 ms one by one and 4 ms in one step; a step's value is limited
to 1e9 bytes (sqlite.org/limits.html), and metadata is hex there."""

_COMMIT_OVERHEAD_BYTES = 16 * 1024  # pages that a commit dirties beside those that it fills

_SCHEMA = """
CREATE TABLE properties (
    key TEXT PRIMARY KEY, value TEXT NOT NULL, crc32c INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE commits (
    sequence INTEGER PRIMARY KEY,
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    crc32c INTEGER NOT NULL,
    replaced BLOB NOT NULL,
    deleted BLOB NOT NULL,
    checksums BLOB NOT NULL,
    squared_norms BLOB NOT NULL,
    ids BLOB NOT NULL
);
CREATE UNIQUE INDEX commits_with_rows ON commits (first_row) WHERE rows > 0;
CREATE TABLE metadata (row INTEGER PRIMARY KEY, struct BLOB NOT NULL);
CREATE TABLE ledger (
    accepted INTEGER NOT NULL, replaced INTEGER NOT NULL, deleted INTEGER NOT NULL
);
INSERT INTO ledger VALUES (0, 0, 0);
"""

_COMMIT_COLUMNS = (
    "sequence, first_row, rows, crc32c, replaced, deleted, checksums, squared_norms, ids"
)

# What SQLite answers when a file is not the database that it should be, in contrast to a disk that
# fails: no such table or column, a malformed page, another kind of file.
_CORRUPT_CODES = {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What one transaction adds: new rows from `first_row` on, and rows that die.

    `ids` (rows,), `checksums` uint32 (rows,), `squared_norms` float32 (rows,); `metadata` by row
    number, empty or absent where a row has none; `replaced` and `deleted`, int64, are the numbers
    of rows that were live until now.
    """

    first_row: int
    ids: IdArray
    checksums: UInt32Array
    squared_norms: Float32Array
    metadata: Mapping[int, bytes]
    replaced: Int64Array
    deleted: Int64Array


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """Everything that a start reads at once.

    `ids` are blobs of `encode_ids` with the rows in each, in the order of rows; `squared_norms`
    float32 (rows,); `replaced` and `deleted`, int64, are the dead rows in the order of their
    deaths; `sequence` is the last commit's, 0 before the first.
    """

    ids: list[tuple[bytes, int]]
    squared_norms: Float32Array
    replaced: Int64Array
    deleted: Int64Array
    rows: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """The index file in use, beside the store.

    It holds the rows below `absorbed_until`, but for `rows_skipped` that were dead when their turn
    came. `crc32c` and `file_bytes` are the file's; `live_when_trained` and `rows_trained_on` are
    rows; `trained_at` is in seconds since 1970, `training_s` a duration. `calibration` and
    `filter_margins` hold numbers that only their owners understand.
    """

    name: str
    generation: int
    absorbed_until: int
    rows_skipped: int
    crc32c: int
    file_bytes: int
    live_when_trained: int
    rows_trained_on: int
    trained_at: float
    training_s: float
    calibration: tuple[tuple[float, ...], ...]
    filter_margins: tuple[float, ...] = ()


class RowStore:
    """The row store of one collection. Use `create` or `open`.

    Reads from any thread; writes from any thread too, one after the other. Failures of the disk
    are raised as OSError or sqlite3.Error: the write did not happen for this process, though after
    a crash it may prove to have happened.
    """

    def __init__(self, disk: Disk, path: Path, connection: sqlite3.Connection) -> None:
        self._disk = disk
        self._path = path
        self._connection = connection
        self._writing = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        _check_format(path, connection)
        properties = _properties(path, connection)
        self.entry = CollectionEntry(
            config=config_from_json(properties["configuration"]),
            incarnation=properties["incarnation"],
        )
        self.row_file = properties["row_file"]
        """Name of the row file in use."""
        # All of the log is synced before anything is served from it: the last commit of a killed
        # process may be readable without being durable, and a repeated write that finds its row
        # there is acknowledged without a commit of its own.
        disk.checkpoint(connection)
        self._unchecked_bytes = 0  # about what the log has grown by since
        self._sequence: int
        self._rows: int
        (self._sequence,) = connection.execute(
            "SELECT coalesce(max(sequence), 0) FROM commits"
        ).fetchone()
        (self._rows,) = connection.execute("SELECT accepted FROM ledger").fetchone()
        (self._has_metadata,) = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM metadata)"
        ).fetchone()
        index_file = properties.get("index_file")
        self._index_file = None if index_file is None else _index_file_from_json(index_file)

    @classmethod
    def create(cls, disk: Disk, directory: Path, entry: CollectionEntry) -> RowStore:
        """Create an empty store in an existing directory, durably, and open it.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails. What is left in the directory is of no use.
        """
        connection = disk.connect(directory / FILE_NAME)
        try:
            connection.executescript("BEGIN;" + _SCHEMA)
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            _put_property(connection, "configuration", config_to_json(entry.config))
            _put_property(connection, "incarnation", entry.incarnation)
            _put_property(connection, "row_file", "rows-0.f32")
            disk.commit(connection)
            disk.sync_directory(directory)
            return cls(disk, directory / FILE_NAME, connection)
        except BaseException:
            disk.disconnect(connection)
            raise

    @classmethod
    def open(cls, disk: Disk, directory: Path) -> RowStore:
        """Open the store of a collection's directory.

        Raises
        ------
        RowStoreCorrupt
            If it is not there, not a row store, or damaged.
        DataDirectoryTooNew
            If a later format version wrote it.
        """
        path = directory / FILE_NAME
        if not path.exists():
            raise RowStoreCorrupt(f"{path} is missing")
        with _corruption_named(path):
            connection = disk.connect(path)
            try:
                return cls(disk, path, connection)
            except BaseException:
                disk.disconnect(connection)
                raise

    @property
    def index_file(self) -> IndexFile | None:
        """The index file in use, or None."""
        return self._index_file

    @property
    def disk_bytes(self) -> int:
        """Bytes of the database and its log."""
        log = self._path.with_name(FILE_NAME + "-wal")
        return sum(path.stat().st_size for path in (self._path, log) if path.exists())

    def load(self) -> StoredRows:
        """Read all that was committed, and check that it adds up.

        Raises
        ------
        RowStoreCorrupt
            If a record does not match its checksum, a commit is missing, a row died twice, or the
            ledger counts something else.
        """
        with self._writing, _corruption_named(self._path):
            records = self._connection.execute(
                f"SELECT {_COMMIT_COLUMNS} FROM commits ORDER BY sequence"
            )
            ids: list[tuple[bytes, int]] = []
            norms, replaced, deleted = bytearray(), bytearray(), bytearray()
            rows = sequence = 0
            for record in records:
                if record[:2] != (sequence + 1, rows) or _crc32c(*record) != record[3]:
                    raise RowStoreCorrupt(
                        f"{self._path}: no sound commit {sequence + 1} from row {rows} on"
                    )
                sequence, _, commit_rows, _, commit_replaced, commit_deleted, _, *blobs = record
                rows += commit_rows
                replaced += commit_replaced
                deleted += commit_deleted
                if commit_rows:
                    norms += blobs[0]
                    ids.append((blobs[1], commit_rows))
            stored = StoredRows(
                ids=ids,
                squared_norms=np.frombuffer(norms, dtype="<f4"),
                replaced=np.frombuffer(replaced, dtype="<i8"),
                deleted=np.frombuffer(deleted, dtype="<i8"),
                rows=rows,
                sequence=sequence,
            )
            self._check_ledger(stored)
            return stored

    def commit(self, commit: Commit) -> int:
        """Make a commit durable. Returns its sequence number.

        Raises
        ------
        ValueError
            If it does not continue where the last commit ended, or its columns differ in length.
        OSError, sqlite3.Error
            If the disk fails or is full; nothing was committed. Reads go on.
        """
        rows = len(commit.ids)
        if commit.first_row != self._rows:
            raise ValueError(f"a commit from row {commit.first_row} on cannot follow {self._rows}")
        if {len(commit.checksums), len(commit.squared_norms)} != {rows}:
            raise ValueError("a commit needs one checksum and one norm for each id")
        metadata = [(row, packed) for row, packed in commit.metadata.items() if packed]
        sequence = self._sequence + 1
        blobs = (
            commit.replaced.astype("<i8", copy=False).tobytes(),
            commit.deleted.astype("<i8", copy=False).tobytes(),
            commit.checksums.astype("<u4", copy=False).tobytes(),
            commit.squared_norms.astype("<f4", copy=False).tobytes(),
            encode_ids(self.entry.config.id_type, commit.ids),
        )
        record = (
            sequence,
            commit.first_row,
            rows,
            _crc32c(sequence, commit.first_row, rows, 0, *blobs),
            *blobs,
        )
        with self._transaction(sum(map(len, blobs)) + sum(len(packed) for _, packed in metadata)):
            self._connection.execute(
                f"INSERT INTO commits ({_COMMIT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                record,
            )
            self._insert_metadata(metadata)
            self._connection.execute(
                "UPDATE ledger SET accepted = accepted + ?, replaced = replaced + ?, "
                "deleted = deleted + ?",
                (rows, len(commit.replaced), len(commit.deleted)),
            )
        self._sequence = sequence
        self._rows += rows
        self._has_metadata = self._has_metadata or bool(metadata)
        return sequence

    def metadata(self, rows: Int64Array) -> list[bytes]:
        """Return the metadata of rows (rows,), in their order; empty where a row has none."""
        if not self._has_metadata:
            return [b""] * len(rows)
        wanted: list[int] = rows.tolist()
        found: dict[int, bytes] = {}
        with _corruption_named(self._path), self._reader() as reader:
            for first in range(0, len(wanted), METADATA_ROWS):
                ((packed,),) = reader.execute(
                    "SELECT json_group_object(row, hex(struct)) FROM metadata "
                    "WHERE row IN (SELECT value FROM json_each(?))",
                    (json.dumps(wanted[first : first + METADATA_ROWS]),),
                ).fetchall()
                for row, struct_hex in json.loads(packed).items():
                    found[int(row)] = bytes.fromhex(struct_hex)
        return [found.get(row, b"") for row in wanted]

    def checksums(self, rows: Int64Array) -> UInt32Array:
        """Return the checksums of committed rows (rows,), in their order.

        Raises
        ------
        RowStoreCorrupt
            If a row was never committed.
        """
        checksums = np.empty(len(rows), dtype=np.uint32)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        done = 0
        with _corruption_named(self._path), self._reader() as reader:
            while done < len(rows):
                row = int(ascending[done])
                record = reader.execute(
                    "SELECT first_row, checksums FROM commits WHERE rows > 0 AND first_row <= ? "
                    "ORDER BY first_row DESC LIMIT 1",
                    (row,),
                ).fetchone()
                first_row, blob = record or (row, b"")
                stored = np.frombuffer(blob, dtype="<u4")
                until = int(np.searchsorted(ascending, first_row + len(stored)))
                if until <= done:
                    raise RowStoreCorrupt(f"{self._path}: row {row} was never committed")
                checksums[order[done:until]] = stored[ascending[done:until] - first_row]
                done = until
        return checksums

    def set_index_file(self, index_file: IndexFile | None) -> None:
        """Name the index file in use, durably; None when there is none any more.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails or is full; the one before stays in use.
        """
        with self._transaction(0):
            if index_file is None:
                self._connection.execute("DELETE FROM properties WHERE key = 'index_file'")
            else:
                _put_property(self._connection, "index_file", json.dumps(asdict(index_file)))
        self._index_file = index_file

    def close(self) -> None:
        """Close all connections; no read may be running."""
        while self._readers:
            self._readers.pop().close()
        with self._writing:
            self._disk.disconnect(self._connection)

    def _insert_metadata(self, metadata: list[tuple[int, bytes]]) -> None:
        for first in range(0, len(metadata), METADATA_ROWS):
            piece = metadata[first : first + METADATA_ROWS]
            lengths = [len(packed) for _, packed in piece]
            ends = accumulate(lengths)
            places = [  # substr counts from 1
                (row, end - length + 1, length)
                for (row, _), length, end in zip(piece, lengths, ends, strict=True)
            ]
            self._connection.execute(
                "INSERT INTO metadata SELECT value ->> 0, substr(?, value ->> 1, value ->> 2) "
                "FROM json_each(?)",
                (b"".join(packed for _, packed in piece), json.dumps(places)),
            )

    @contextmanager
    def _transaction(self, size_bytes: int) -> Iterator[None]:
        """Commit what the body executes, or roll it back.

        A log that has grown is checkpointed before: were it done after the commit, its failure
        would make a durable commit look failed.
        """
        with self._writing:
            if self._unchecked_bytes >= CHECKPOINT_BYTES:
                self._disk.checkpoint(self._connection)
                self._unchecked_bytes = 0
            self._unchecked_bytes += size_bytes + _COMMIT_OVERHEAD_BYTES
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._disk.commit(self._connection)
            except BaseException:
                if self._connection.in_transaction:  # SQLite may have rolled back by itself
                    self._connection.rollback()
                raise

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that cannot write; as many exist as were ever needed at once."""
        try:
            reader = self._readers.pop()
        except IndexError:
            reader = self._connect_reader()
        try:
            yield reader
        finally:
            self._readers.append(reader)

    def _connect_reader(self) -> sqlite3.Connection:
        uri = self._path.absolute().as_uri() + "?mode=ro"
        reader = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        reader.execute("PRAGMA query_only = ON")
        reader.execute("PRAGMA wal_autocheckpoint = 0")
        return reader

    def _check_ledger(self, stored: StoredRows) -> None:
        ledger = self._connection.execute("SELECT accepted, replaced, deleted FROM ledger")
        counted = (stored.rows, len(stored.replaced), len(stored.deleted))
        if (recorded := ledger.fetchone()) != counted:
            raise RowStoreCorrupt(
                f"{self._path}: the ledger says (accepted, replaced, deleted) = {recorded}, "
                f"the commits add up to {counted}"
            )
        dead = np.unique(np.concatenate([stored.replaced, stored.deleted]))
        if len(dead) != sum(counted[1:]) or (
            len(dead) and not 0 <= dead[0] <= dead[-1] < stored.rows
        ):
            raise RowStoreCorrupt(f"{self._path}: a row died twice, or before it existed")


def _check_format(path: Path, connection: sqlite3.Connection) -> None:
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version > FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}"
        )
    if version != FORMAT_VERSION:
        raise RowStoreCorrupt(f"{path} is not a row store")


def _properties(path: Path, connection: sqlite3.Connection) -> dict[str, str]:
    properties: dict[str, str] = {}
    for key, value, crc32c in connection.execute("SELECT key, value, crc32c FROM properties"):
        if checksum(key.encode(), value.encode()) != crc32c:
            raise RowStoreCorrupt(f"{path}: the property {key} does not match its checksum")
        properties[key] = value
    if missing := {"configuration", "incarnation", "row_file"} - properties.keys():
        raise RowStoreCorrupt(f"{path} lacks {', '.join(sorted(missing))}")
    return properties


def _put_property(connection: sqlite3.Connection, key: str, value: str) -> None:
    connection.execute(
        "INSERT OR REPLACE INTO properties VALUES (?, ?, ?)",
        (key, value, checksum(key.encode(), value.encode())),
    )


def _index_file_from_json(text: str) -> IndexFile:
    stored = json.loads(text)
    stored["calibration"] = tuple(tuple(point) for point in stored["calibration"])
    stored["filter_margins"] = tuple(stored.get("filter_margins", ()))
    return IndexFile(**stored)


def _crc32c(sequence: int, first_row: int, rows: int, _: int, *blobs: bytes) -> int:
    """Return the checksum of a record of `commits`, given its columns in their order."""
    head = struct.pack("<8q", sequence, first_row, rows, *map(len, blobs))
    return checksum(head, *blobs)


@contextmanager
def _corruption_named(path: Path) -> Iterator[None]:
    """Turn what a damaged database leads to into RowStoreCorrupt."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        if getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _CORRUPT_CODES:
            raise RowStoreCorrupt(f"{path}: {error}") from error
        raise
    except (TypeError, ValueError, AttributeError, struct.error) as error:
        raise RowStoreCorrupt(f"{path}: a column holds something else: {error!r}") from error
