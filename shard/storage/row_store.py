"""What exists in a collection: its rows' ids, norms, checksums and metadata, its dead, its files.

A SQLite database, which is also the log: each commit is one record of packed columns, so that a
commit of 1,000 rows is one INSERT and a million rows are loaded from a few thousand blobs.
docs/formats.md describes its tables. Vectors must not enter here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.membership import NO_MEMBERSHIP, Membership, Sessions
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import from_json, to_json
from vectorshard.shard.storage.row_database import RowDatabase, corruption_named
from vectorshard.shard.storage.row_store_format import (
    FILE_NAME,
    OPTIONAL_OF_INDEX_FILE,
    Commit,
    IndexFile,
    KeptRows,
    LastCompaction,
    StoredRows,
    blob_bytes,
    commit_record,
    config_to_json,
    is_sound,
    kept_record,
    membership_of,
    membership_properties,
)
from vectorshard.shard.storage.row_store_sweep import InRowFile, Sweep
from vectorshard.shard.types import CollectionConfig, CollectionEntry, Int64Array, UInt32Array


class RowStore:
    """The row store of one collection. Use `create` or `open`.

    Any thread reads; any thread writes, one at a time. Failures of the disk are raised as OSError
    or sqlite3.Error: the write did not happen for this process, though after a crash it may prove
    to have happened.
    """

    def __init__(self, database: RowDatabase) -> None:
        self._database = database
        self._path = database.path
        self._read_properties(database.properties())
        # All of the log is synced before anything is served from it: the last commit of a killed
        # process may be readable without being durable, and a repeated write that finds its row
        # there is acknowledged without a new commit.
        database.checkpoint()
        select = database.connection.execute
        last = self.last_compaction
        (newest,) = select("SELECT coalesce(max(sequence), 0) FROM commits").fetchone()
        self._sequence: int = max(newest, last.sequence)
        self._rows: int
        (self._rows,) = select("SELECT accepted FROM ledger").fetchone()
        (self._has_metadata,) = select("SELECT EXISTS (SELECT 1 FROM metadata)").fetchone()
        generations = select("SELECT DISTINCT generation FROM kept ORDER BY 1 DESC")
        self._kept_generations = tuple(generation for (generation,) in generations)
        self._newest_generation: int = max(last.generation, *self._kept_generations, 0)
        strays = set(self._kept_generations) - {last.generation}
        self._sweep = Sweep(database, due=bool(strays) or self._swept != last.generation)

    def _read_properties(self, properties: Mapping[str, str]) -> None:
        if missing := {"configuration", "incarnation", "row_file"} - properties.keys():
            raise RowStoreCorrupt(f"{self._path}: missing {', '.join(sorted(missing))}")
        where = f"{self._path}: "
        config = from_json(CollectionConfig, properties["configuration"], where + "configuration")
        self.entry = CollectionEntry(config=config, incarnation=properties["incarnation"])
        self.last_compaction = LastCompaction()
        """The compaction that the rows in use came from."""
        if (rebuilt := properties.get("rebuilt")) is not None:
            self.last_compaction = from_json(LastCompaction, rebuilt, where + "rebuilt")
        if properties["row_file"] != self.row_file:
            raise RowStoreCorrupt(
                f"{where}row_file is {properties['row_file']}, but the last compaction wrote "
                f"{self.row_file}"
            )
        self._swept = int(properties.get("swept", "0"))
        self.membership = membership_of(properties, where)
        """Whose the files are."""
        self.sessions = Sessions()
        """Which session wrote which commits."""
        self.sum = bytes(16)
        """The sum of the content hashes of the live rows."""
        self.lost = 0
        """Rows whose loss an operator has accepted."""
        self.index_file: IndexFile | None = None
        """The index file in use, or None."""
        if (index_file := properties.get("index_file")) is not None:
            self.index_file = from_json(
                IndexFile, index_file, where + "index_file", OPTIONAL_OF_INDEX_FILE
            )

    @classmethod
    def create(
        cls,
        disk: Disk,
        directory: Path,
        entry: CollectionEntry,
        membership: Membership = NO_MEMBERSHIP,
    ) -> RowStore:
        """Create an empty store in an existing directory, durably, and open it.

        After a failure, what remains in the directory is useless.
        """
        database = RowDatabase(disk, directory / FILE_NAME)
        properties = {
            "configuration": config_to_json(entry.config),
            "incarnation": entry.incarnation,
            "row_file": LastCompaction().row_file,
            **membership_properties(membership),
        }
        with database.closed_on_failure():
            database.initialize(properties)
            return cls(database)

    @classmethod
    def open(cls, disk: Disk, directory: Path) -> RowStore:
        """Open the store of a collection's directory.

        Raises
        ------
        RowStoreCorrupt
            If it is missing, not a row store, or damaged.
        DataDirectoryTooNew
            If a later format version wrote it.
        """
        path = directory / FILE_NAME
        if not path.exists():
            raise RowStoreCorrupt(f"{path} is missing")
        database = RowDatabase(disk, path)
        with database.closed_on_failure():
            database.check_version()
            return cls(database)

    @property
    def row_file(self) -> str:
        """The name of the row file in use."""
        return self.last_compaction.row_file

    @property
    def disk_bytes(self) -> int:
        """Bytes of the database and its log."""
        return self._database.disk_bytes

    def close(self) -> None:
        """Close all connections; no read may be running."""
        self._database.close()

    # ---- loading --------------------------------------------------------------------------------

    def load(self) -> StoredRows:
        """Read all that was committed, and check that it adds up.

        Raises RowStoreCorrupt if a record does not match its checksum, a commit is missing, a row
        died twice, or the ledger differs from the sum of the commits.
        """
        with self._database.writing, corruption_named(self._path):
            positions, ids, norms = self._load_kept()
            records = self._database.connection.execute(
                "SELECT * FROM commits WHERE sequence > ? ORDER BY sequence",
                (self.last_compaction.sequence,),
            )
            replaced, deleted = bytearray(), bytearray()
            rows, sequence = self.last_compaction.rebuilt_until, self.last_compaction.sequence
            for record in records:
                if record[:2] != (sequence + 1, rows) or not is_sound(record):
                    raise RowStoreCorrupt(
                        f"{self._path}: commit {sequence + 1}, from row {rows} on, is missing or "
                        "damaged"
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
        """Return which rows the last compaction kept, their ids and their squared norms."""
        records = self._database.connection.execute(
            "SELECT * FROM kept WHERE generation = ? ORDER BY first_row",
            (self.last_compaction.generation,),
        )
        ids: list[tuple[bytes, int]] = []
        numbers, norms = bytearray(), bytearray()
        for record in records:
            if not is_sound(record):
                raise RowStoreCorrupt(
                    f"{self._path}: checksum mismatch in the kept rows from {record[1]} on"
                )
            numbers += record[4]
            norms += record[6]
            ids.append((record[7], len(record[4]) // 8))
        rows = np.frombuffer(numbers, dtype="<i8")
        until = self.last_compaction.rebuilt_until
        in_order = (np.diff(rows, prepend=-1, append=until) > 0).all()
        if len(rows) != self.last_compaction.kept or not in_order:
            raise RowStoreCorrupt(
                f"{self._path}: {len(rows)} kept rows found below row {until}, but the last "
                f"compaction kept {self.last_compaction.kept}"
            )
        return RowMap.of_kept(rows, until), ids, norms

    def _check_ledger(self, stored: StoredRows) -> None:
        ledger = self._database.connection.execute("SELECT accepted, replaced, deleted FROM ledger")
        counted = (
            stored.rows,
            self.last_compaction.replaced + len(stored.replaced),
            self.last_compaction.deleted + len(stored.deleted),
        )
        if (recorded := ledger.fetchone()) != counted:
            raise RowStoreCorrupt(
                f"{self._path}: the ledger has (accepted, replaced, deleted) = {recorded}, "
                f"the commits add up to {counted}"
            )
        dead = np.unique(np.concatenate([stored.replaced, stored.deleted]))
        if (
            len(dead) != len(stored.replaced) + len(stored.deleted)
            or (len(dead) and not 0 <= dead[0] <= dead[-1] < stored.rows)
            or not stored.positions.hold(dead).all()
        ):
            raise RowStoreCorrupt(f"{self._path}: a row died twice, or before it existed")

    # ---- writing --------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> int:
        """Make a commit durable. Returns its sequence number.

        Raises ValueError if it does not continue where the last commit ended, or its columns differ
        in length.
        """
        rows = len(commit.ids)
        if commit.first_row != self._rows:
            raise ValueError(f"first_row is {commit.first_row}, but the next row is {self._rows}")
        if {len(commit.checksums), len(commit.squared_norms)} != {rows}:
            raise ValueError("checksums and squared_norms must have one entry for each id")
        metadata = [(row, packed) for row, packed in commit.metadata.items() if packed]
        record = commit_record(self._sequence + 1, commit, self.entry.config.id_type)
        size_bytes = blob_bytes(record) + sum(len(packed) for _, packed in metadata)
        with self._database.transaction(size_bytes) as connection:
            connection.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", record)
            self._database.insert_metadata(metadata)
            connection.execute(
                "UPDATE ledger SET accepted = accepted + ?, replaced = replaced + ?, "
                "deleted = deleted + ?",
                (rows, len(commit.replaced), len(commit.deleted)),
            )
        self._sequence += 1
        self._rows += rows
        self._has_metadata = self._has_metadata or bool(metadata)
        return self._sequence

    def set_configuration(self, config: CollectionConfig) -> CollectionEntry:
        """Replace the configuration by one that fits the stored rows, durably; return the entry.

        After a failure, the one before stays in use.
        """
        with self._database.transaction(0):
            self._database.put_property("configuration", config_to_json(config))
        self.entry = replace(self.entry, config=config)
        return self.entry

    def set_membership(self, membership: Membership) -> None:
        """Replace the membership, durably. After a failure, the one before stays in use."""
        with self._database.transaction(0):
            for key, value in membership_properties(membership).items():
                self._database.put_property(key, value)
        self.membership = membership

    def record_loss(self, lost: int) -> None:
        """Record durably that so many rows in all are lost, whatever was recorded before.

        `accepted` is what was committed here, and `lost`.
        """
        raise NotImplementedError

    def set_index_file(self, index_file: IndexFile | None) -> None:
        """Record the index file in use, durably; None for no file.

        After a failure, the one before stays in use.
        """
        with self._database.transaction(0) as connection:
            if index_file is None:
                connection.execute("DELETE FROM properties WHERE key = 'index_file'")
            else:
                self._database.put_property("index_file", to_json(index_file))
        self.index_file = index_file

    # ---- reading --------------------------------------------------------------------------------

    def metadata(self, rows: Int64Array) -> list[bytes]:
        """Return the metadata of rows (rows,), in their order; empty where a row has none."""
        if not self._has_metadata:
            return [b""] * len(rows)
        wanted: list[int] = rows.tolist()
        found = self._database.metadata(wanted)
        return [found.get(row, b"") for row in wanted]

    def checksums(self, rows: Int64Array) -> UInt32Array:
        """Return the checksums of committed rows (rows,), in their order.

        Raises RowStoreCorrupt if a row was never committed, or was dead at the last compaction.
        """
        checksums = np.empty(len(rows), dtype=np.uint32)
        order = np.argsort(rows, kind="stable")
        ascending = rows[order]
        done = 0
        with self._database.reader() as reader:
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

        A row of a condensed commit is in the commit's record until that is swept, and in a
        generation of those kept; its checksum is the same in both.
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
        raise RowStoreCorrupt(
            f"{self._path}: row {row} was never committed, or a compaction removed it"
        )

    # ---- compaction -----------------------------------------------------------------------------

    def next_generation(self) -> int:
        """Return the number of a compaction that begins. It is unique, even if one fails."""
        self._newest_generation += 1
        return self._newest_generation

    def keep(self, generation: int, kept: KeptRows) -> None:
        """Store a piece of a generation that is not in use yet. After a failure, it is garbage."""
        record = kept_record(generation, kept)
        self._sweep.due = True  # it is garbage unless it comes into use
        with self._database.transaction(blob_bytes(record)) as connection:
            connection.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?)", record)

    def take_into_use(self, compaction: LastCompaction) -> None:
        """Let what was kept stand for the commits that it condenses, and name its row file.

        After a failure, everything is as before. After a crash, though, it may prove to have
        happened, so the row file must stay until a restart.
        """
        with self._database.transaction(0):
            self._database.put_property("rebuilt", to_json(compaction))
            self._database.put_property("row_file", compaction.row_file)
        self.last_compaction = compaction
        self._kept_generations = (compaction.generation, *self._kept_generations)
        self._sweep.restart()

    @property
    def sweep_due(self) -> bool:
        """Whether compactions have left garbage."""
        return self._sweep.due

    def sweep(self, in_row_file: InRowFile) -> None:
        """Remove a piece of the garbage of compactions; `sweep_due` says whether that was all.

        No reader may need the rows that the last compaction left out, and no compaction may run.
        After a failure, nothing was removed.
        """
        last = self.last_compaction
        self._sweep.remove_piece(last, in_row_file if self._has_metadata else None)
        if not self._sweep.due:
            self._kept_generations = (last.generation,)
