"""What exists in a collection: its rows' ids, norms, checksums and metadata, its dead, its files.

A SQLite database, which is also the log: one record of packed columns for each commit, so that a
commit of 1,000 rows is one INSERT and a million rows are loaded from a few thousand blobs. Vectors
must not enter here.

Format version 2; numbers in blobs are little-endian:

    user_version  the format version (a pragma, in the database's header)
    properties    configuration (shard.storage.config_json), incarnation, row_file (the name of the
    one in
                  use), index_file (JSON of IndexFile; absent without one), rebuilt (JSON of
                  Rebuilt; absent before the first), swept (the generation of the last rebuild
                  whose leavings are gone); crc32c over key and value
    commits       sequence = 1, 2, 3 ...; first_row, where the last commit ended, and how many rows;
                  ids (shard.rows.id_column), checksums uint32 (shard.storage.checksum),
                  squared_norms float32;
                  rows that died: replaced int64, deleted int64; crc32c over all of the record
    kept          what a rebuild kept of the commits up to `rebuilt.sequence`, in pieces:
                  generation; first_row and last_row; row_numbers int64, ascending; ids, checksums,
                  squared_norms as above; crc32c over all of the record
    metadata      row -> google.protobuf.Struct, serialized; only for rows that have some
    ledger        one record: accepted, replaced, deleted; changed with each commit

A rebuild puts a new generation into `kept` piece by piece, unseen; then one transaction names it in
`rebuilt`, and the new row file with it. From there on the commits that it condenses, older
generations and the metadata of the rows left out are leavings, which are swept piece by piece once
no reader needs them. Version 1 lacks `kept`; opening it adds the table.

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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from vectorshard.shard.errors import DataDirectoryTooNew, RowStoreCorrupt
from vectorshard.shard.rows.id_column import encode_ids
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.config_json import config_from_json, config_to_json
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    BoolArray,
    CollectionEntry,
    Float32Array,
    IdArray,
    Int64Array,
    UInt32Array,
)

FORMAT_VERSION = 2

FILE_NAME = "store.db"

CHECKPOINT_BYTES = 4 * 1024 * 1024
"""The log is moved into the database after about so much. Larger: fewer pauses of writers, a longer
recovery; SQLite's own default is 1,000 pages, the same."""

METADATA_ROWS = 1_000
"""Rows whose metadata goes through one SQLite step. Python takes the GIL anew for every step, which
beside a busy thread costs 640 rows 57 ms one by one and 4 ms in one step; a step's value is limited
to 1e9 bytes (sqlite.org/limits.html), and metadata is hex there."""

SWEPT_COMMITS = 256
SWEPT_ROWS = 5_000
"""What a sweep takes away in one transaction, or a little more. Larger: fewer syncs, longer pauses
of writers, and of Python for the JSON of so many row numbers."""

_COMMIT_OVERHEAD_BYTES = 16 * 1024  # pages that a commit dirties beside those that it fills

_SCHEMA_OF_KEPT = """
CREATE TABLE kept (
    generation INTEGER NOT NULL,
    first_row INTEGER NOT NULL,
    last_row INTEGER NOT NULL,
    crc32c INTEGER NOT NULL,
    row_numbers BLOB NOT NULL,
    checksums BLOB NOT NULL,
    squared_norms BLOB NOT NULL,
    ids BLOB NOT NULL
);
CREATE UNIQUE INDEX kept_by_row ON kept (generation, first_row);
"""

_SCHEMA = (
    """
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
    + _SCHEMA_OF_KEPT
)

_COMMIT_COLUMNS = (
    "sequence, first_row, rows, crc32c, replaced, deleted, checksums, squared_norms, ids"
)
_KEPT_COLUMNS = (
    "generation, first_row, last_row, crc32c, row_numbers, checksums, squared_norms, ids"
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
class KeptRows:
    """A piece of what a rebuild keeps: rows that lived when it began, ascending, at least one.

    `rows` int64 (rows,) are their numbers, `ids` their ids by `encode_ids`; `checksums` uint32
    (rows,), `squared_norms` float32 (rows,).
    """

    rows: Int64Array
    ids: bytes
    checksums: UInt32Array
    squared_norms: Float32Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebuilt:
    """The rebuild whose row file is in use: of the state after commit `sequence`.

    By then there were rows up to `rebuilt_until`, of which `replaced` and `deleted` were dead; all
    others it kept. `generation` is the row file's, 0 before the first rebuild.
    """

    generation: int = 0
    sequence: int = 0
    rebuilt_until: int = 0
    replaced: int = 0
    deleted: int = 0

    @property
    def row_file(self) -> str:
        """The name of its row file."""
        return f"rows-{self.generation}.f32"

    @property
    def kept(self) -> int:
        """Rows that it kept."""
        return self.rebuilt_until - self.replaced - self.deleted


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """Everything that a start reads at once.

    `positions` says which rows are there; `ids` are blobs of `encode_ids` with the rows in each,
    and `squared_norms` float32 (positions,), both in the order of positions; `replaced` and
    `deleted`, int64, are the rows that died since the last rebuild, in the order of their deaths;
    `rows` were ever committed; `sequence` is the last commit's, 0 before the first.
    """

    positions: RowMap
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
    imbalance_when_trained: float = 1.0
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
        _check_format(path, disk, connection)
        properties = _properties(path, connection)
        self.entry = CollectionEntry(
            config=config_from_json(properties["configuration"]),
            incarnation=properties["incarnation"],
        )
        self.rebuilt = Rebuilt(**json.loads(properties.get("rebuilt", "{}")))
        """The rebuild that the rows in use came from."""
        if properties["row_file"] != self.row_file:
            raise RowStoreCorrupt(f"{path}: {properties['row_file']} is not of {self.rebuilt}")
        # All of the log is synced before anything is served from it: the last commit of a killed
        # process may be readable without being durable, and a repeated write that finds its row
        # there is acknowledged without a commit of its own.
        disk.checkpoint(connection)
        self._unchecked_bytes = 0  # about what the log has grown by since
        self._sequence: int
        self._rows: int
        (self._sequence,) = connection.execute(
            "SELECT max(coalesce(max(sequence), 0), ?) FROM commits", (self.rebuilt.sequence,)
        ).fetchone()
        (self._rows,) = connection.execute("SELECT accepted FROM ledger").fetchone()
        (self._has_metadata,) = connection.execute(
            "SELECT EXISTS (SELECT 1 FROM metadata)"
        ).fetchone()
        generations = connection.execute("SELECT DISTINCT generation FROM kept ORDER BY 1 DESC")
        self._kept_generations = tuple(generation for (generation,) in generations)
        self._newest_generation: int = max(self.rebuilt.generation, *self._kept_generations, 0)
        swept = int(properties.get("swept", "0"))
        self._sweep_due = swept != self.rebuilt.generation or self._has_stray_generations
        self._metadata_swept_until = 0
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
            _put_property(connection, "row_file", Rebuilt().row_file)
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
    def row_file(self) -> str:
        """The name of the row file in use."""
        return self.rebuilt.row_file

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
            positions, ids, norms = self._load_kept()
            records = self._connection.execute(
                f"SELECT {_COMMIT_COLUMNS} FROM commits WHERE sequence > ? ORDER BY sequence",
                (self.rebuilt.sequence,),
            )
            replaced, deleted = bytearray(), bytearray()
            rows, sequence = self.rebuilt.rebuilt_until, self.rebuilt.sequence
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
                positions=positions,
                ids=ids,
                squared_norms=np.frombuffer(norms, dtype="<f4"),
                replaced=np.frombuffer(replaced, dtype="<i8"),
                deleted=np.frombuffer(deleted, dtype="<i8"),
                rows=rows,
                sequence=sequence,
            )
            self._check_ledger(stored)
            return stored

    def _load_kept(self) -> tuple[RowMap, list[tuple[bytes, int]], bytearray]:
        """Return which rows the last rebuild kept, their ids and their squared norms."""
        records = self._connection.execute(
            f"SELECT {_KEPT_COLUMNS} FROM kept WHERE generation = ? ORDER BY first_row",
            (self.rebuilt.generation,),
        )
        ids: list[tuple[bytes, int]] = []
        numbers, norms = bytearray(), bytearray()
        for record in records:
            if _crc32c(*record) != record[3]:
                raise RowStoreCorrupt(f"{self._path}: the rows kept from {record[1]} on are harmed")
            numbers += record[4]
            norms += record[6]
            ids.append((record[7], len(record[4]) // 8))
        rows = np.frombuffer(numbers, dtype="<i8")
        until = self.rebuilt.rebuilt_until
        in_order = (np.diff(rows, prepend=-1, append=until) > 0).all()
        if len(rows) != self.rebuilt.kept or not in_order:
            raise RowStoreCorrupt(
                f"{self._path}: {len(rows)} rows are kept of the {until} before the last rebuild, "
                f"which counted {self.rebuilt.kept}"
            )
        return RowMap.of_kept(rows, until), ids, norms

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
            If a row was never committed, or was dead at the last rebuild.
        """
        checksums = np.empty(len(rows), dtype=np.uint32)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        done = 0
        with _corruption_named(self._path), self._reader() as reader:
            while done < len(rows):
                row = int(ascending[done])
                numbers, stored = self._record_of(reader, row)
                until = int(np.searchsorted(ascending, numbers[-1], side="right"))
                places = np.searchsorted(numbers, ascending[done:until])
                if (missing := np.flatnonzero(numbers[places] != ascending[done:until])).size:
                    until = done + int(missing[0])  # it may be in another record
                checksums[order[done:until]] = stored[places[: until - done]]
                done = until
        return checksums

    def _record_of(self, reader: sqlite3.Connection, row: int) -> tuple[Int64Array, UInt32Array]:
        """Return the numbers, ascending, and the checksums of the rows in the record of a row.

        A row of a commit that was condensed is in the commit's record until that is swept, and in a
        generation of those kept; its checksum is the same wherever it is.
        """
        record = reader.execute(
            "SELECT first_row, checksums FROM commits WHERE rows > 0 AND first_row <= ? "
            "ORDER BY first_row DESC LIMIT 1",
            (row,),
        ).fetchone()
        if record is not None:
            first_row, blob = record
            stored = np.frombuffer(blob, dtype="<u4")
            if row < first_row + len(stored):
                return np.arange(first_row, first_row + len(stored)), stored
        for generation in self._kept_generations:
            record = reader.execute(
                "SELECT row_numbers, checksums FROM kept WHERE generation = ? AND first_row <= ? "
                "ORDER BY first_row DESC LIMIT 1",
                (generation, row),
            ).fetchone()
            if record is not None:
                numbers, stored = (
                    np.frombuffer(blob, dtype=dtype)
                    for blob, dtype in zip(record, ("<i8", "<u4"), strict=True)
                )
                if row <= numbers[-1] and numbers[np.searchsorted(numbers, row)] == row:
                    return numbers, stored
        raise RowStoreCorrupt(f"{self._path}: row {row} was never committed, or is long dead")

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

    # ---- rebuilding -----------------------------------------------------------------------------

    def next_generation(self) -> int:
        """Return the number of a rebuild that begins; no two have the same, though they fail."""
        self._newest_generation += 1
        return self._newest_generation

    def keep(self, generation: int, kept: KeptRows) -> None:
        """Store a piece of a generation that is not in use yet.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails or is full. What is there of the generation is a leaving.
        """
        blobs = (
            kept.rows.astype("<i8", copy=False).tobytes(),
            kept.checksums.astype("<u4", copy=False).tobytes(),
            kept.squared_norms.astype("<f4", copy=False).tobytes(),
            kept.ids,
        )
        first_row, last_row = int(kept.rows[0]), int(kept.rows[-1])
        crc32c = _crc32c(generation, first_row, last_row, 0, *blobs)
        self._sweep_due = True  # unless it is taken into use, it is in the way
        with self._transaction(sum(map(len, blobs))):
            self._connection.execute(
                f"INSERT INTO kept ({_KEPT_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (generation, first_row, last_row, crc32c, *blobs),
            )

    def take_into_use(self, rebuilt: Rebuilt) -> None:
        """Let what was kept stand for the commits that it condenses, and name its row file.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails or is full: everything is as before. After a crash, though, it may
            prove to have happened, so the row file must stay until a restart.
        """
        with self._transaction(0):
            _put_property(self._connection, "rebuilt", json.dumps(asdict(rebuilt)))
            _put_property(self._connection, "row_file", rebuilt.row_file)
        self.rebuilt = rebuilt
        self._kept_generations = (rebuilt.generation, *self._kept_generations)
        self._sweep_due, self._metadata_swept_until = True, 0

    @property
    def sweep_due(self) -> bool:
        """Whether something is left that rebuilds have made useless."""
        return self._sweep_due

    def sweep(self, are_there: Callable[[Int64Array], BoolArray]) -> None:
        """Take away a piece of what rebuilds have left; `sweep_due` says whether that was all.

        Nobody may read rows any more that the last rebuild left out, and none may be under way.

        Parameters
        ----------
        are_there
            Says of rows (rows,) whether the row file holds them.

        Raises
        ------
        OSError, sqlite3.Error
            If the disk fails or is full; nothing was taken away.
        """
        if self._sweep_commits() or self._sweep_generations() or self._sweep_metadata(are_there):
            return
        with self._transaction(0):
            _put_property(self._connection, "swept", str(self.rebuilt.generation))
        self._kept_generations = (self.rebuilt.generation,)
        self._sweep_due = False

    @property
    def _has_stray_generations(self) -> bool:
        return bool(set(self._kept_generations) - {self.rebuilt.generation})

    def _sweep_commits(self) -> bool:
        """Delete the oldest commits of those that are condensed; say whether there were any."""
        with self._transaction(SWEPT_ROWS * 32):
            cursor = self._connection.execute(
                "DELETE FROM commits WHERE sequence IN (SELECT sequence FROM (SELECT sequence, "
                "rows, sum(rows) OVER (ORDER BY sequence) AS total FROM commits "
                "WHERE sequence <= ? ORDER BY sequence LIMIT ?) WHERE total - rows < ?)",
                (self.rebuilt.sequence, SWEPT_COMMITS, SWEPT_ROWS),
            )
            return cursor.rowcount > 0

    def _sweep_generations(self) -> bool:
        """Delete a piece of a generation that is not in use; say whether there was any."""
        with self._transaction(SWEPT_ROWS * 32):
            cursor = self._connection.execute(
                "DELETE FROM kept WHERE rowid IN "
                "(SELECT rowid FROM kept WHERE generation <> ? LIMIT 1)",
                (self.rebuilt.generation,),
            )
            return cursor.rowcount > 0

    def _sweep_metadata(self, are_there: Callable[[Int64Array], BoolArray]) -> bool:
        """Delete metadata of rows that were left out, from where the last call ended."""
        if not self._has_metadata:
            return False
        with self._transaction(0):
            ((packed,),) = self._connection.execute(
                "SELECT json_group_array(row) FROM (SELECT row FROM metadata "
                "WHERE row >= ? AND row < ? ORDER BY row LIMIT ?)",
                (self._metadata_swept_until, self.rebuilt.rebuilt_until, SWEPT_ROWS),
            ).fetchall()
            rows = np.array(json.loads(packed), dtype=np.int64)
            gone = rows[~are_there(rows)]
            self._connection.execute(
                "DELETE FROM metadata WHERE row IN (SELECT value FROM json_each(?))",
                (json.dumps(gone.tolist()),),
            )
        if len(rows):
            self._metadata_swept_until = int(rows[-1]) + 1
        return len(rows) > 0

    # ---- common ---------------------------------------------------------------------------------

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
        counted = (
            stored.rows,
            self.rebuilt.replaced + len(stored.replaced),
            self.rebuilt.deleted + len(stored.deleted),
        )
        if (recorded := ledger.fetchone()) != counted:
            raise RowStoreCorrupt(
                f"{self._path}: the ledger says (accepted, replaced, deleted) = {recorded}, "
                f"the commits add up to {counted}"
            )
        dead = np.unique(np.concatenate([stored.replaced, stored.deleted]))
        if (
            len(dead) != len(stored.replaced) + len(stored.deleted)
            or (len(dead) and not 0 <= dead[0] <= dead[-1] < stored.rows)
            or not stored.positions.hold(dead).all()
        ):
            raise RowStoreCorrupt(f"{self._path}: a row died twice, or before it existed")


def _check_format(path: Path, disk: Disk, connection: sqlite3.Connection) -> None:
    """Refuse what is no row store or too new; bring version 1 up to date, in one transaction."""
    ((version,),) = connection.execute("PRAGMA user_version").fetchall()
    if version > FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}"
        )
    if version == 1:
        connection.executescript("BEGIN IMMEDIATE;" + _SCHEMA_OF_KEPT)
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        disk.commit(connection)
    elif version != FORMAT_VERSION:
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


def _crc32c(first: int, second: int, third: int, _: int, *blobs: bytes) -> int:
    """Return the checksum of a record of `commits` or `kept`, given its columns in their order."""
    lengths = [len(blob) for blob in blobs]
    head = struct.pack(f"<{3 + len(blobs)}q", first, second, third, *lengths)
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
