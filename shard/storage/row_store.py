"""What exists in a collection: its rows' ids, norms, hashes and metadata, its dead, its files.

A SQLite database, which is also the log: each commit is one record of packed columns, so that a
commit of 1,000 rows is one INSERT and a million rows are loaded from a few thousand blobs.
docs/formats.md describes its tables. Vectors must not enter here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.membership import NO_MEMBERSHIP, Membership, Sessions
from vectorshard.shard.storage.content_hash import SUM_MODULUS, sum_bytes, sum_of
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import from_json, to_json
from vectorshard.shard.storage.log_end import LogEnd, check_log_end
from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    OPTIONAL_OF_INDEX_FILE,
    Commit,
    IndexFile,
    KeptRows,
    LastCompaction,
    StoredRows,
    blob_bytes,
    commit_record,
    config_to_json,
    damaged_from_json,
    damaged_to_json,
    kept_record,
    membership_of,
    membership_properties,
    sessions_to_json,
)
from vectorshard.shard.storage.row_store_load import RowLoader
from vectorshard.shard.storage.row_store_sweep import InRowFile, Sweep
from vectorshard.shard.storage.row_store_upgrade import Upgrade, write_upgrade
from vectorshard.shard.storage.store_files import STORE_FILE
from vectorshard.shard.storage.vector_ranges import VectorRange, vector_ranges
from vectorshard.shard.types import CollectionConfig, CollectionEntry, Int64Array


class RowStore:
    """The row store of one collection. Use `create` or `open`.

    Any thread reads; any thread writes, one at a time. Failures of the disk are raised as OSError
    or sqlite3.Error: the write did not happen for this process, though after a crash it may prove
    to have happened.
    """

    def __init__(self, disk: Disk, database: RowDatabase) -> None:
        self._disk = disk
        self._database = database
        self._path = database.path
        with database.reader() as reader:
            select = reader.execute
            loader = RowLoader(reader, self._path, database.version, LastCompaction())
            self._read_properties(loader.properties())
            last = self.last_compaction
            newest = loader.newest_sequence()
            ledger = loader.ledger()
            self.sessions = loader.sessions()
            """Which session wrote which commits."""
            (self._has_metadata,) = select("SELECT EXISTS (SELECT 1 FROM metadata)").fetchone()
            generations: list[int] = []
            if database.version > 1:
                select_generations = select("SELECT DISTINCT generation FROM kept")
                generations = [generation for (generation,) in select_generations]
        database.sequence = max(newest, last.sequence)
        database.transactions = ledger.transactions
        self._rows = ledger.accepted - ledger.lost
        self._sum = ledger.sum
        self.lost = ledger.lost
        """Rows whose loss an operator has accepted."""
        self._newest_generation: int = max(last.generation, *generations, 0)
        strays = set(generations) - {last.generation}
        self._sweep = Sweep(database, due=bool(strays) or self._swept != last.generation)
        self._session = 0  # recorded with the next commit; 0 if it is recorded, or there is none

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
        self.restored_from = properties.get("restored_from", "")
        """The backup that a restore made it from; empty for a collection that was created."""
        self.damaged = damaged_from_json(properties.get("damaged", "[]"))
        """Rows that were found damaged, ascending, int64: some may be dead by now."""
        self.membership = membership_of(properties, where)
        """Whose the files are."""
        self.gave_up_commits = self.membership.gave_up_commits
        """Whether a repair gave up commits, and the loss is not accepted."""
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
        restored_from: str = "",
    ) -> RowStore:
        """Create an empty store in an existing directory, durably, and open it.

        After a failure, what remains in the directory is useless.
        """
        properties = {
            "configuration": config_to_json(entry.config),
            "incarnation": entry.incarnation,
            "row_file": LastCompaction().row_file,
            **membership_properties(membership),
        }
        if restored_from:
            properties["restored_from"] = restored_from
        database = RowDatabase.create(disk, directory / STORE_FILE, properties)
        with database.closed_on_failure():
            return cls(disk, database)

    @classmethod
    def open(cls, disk: Disk, directory: Path) -> RowStore:
        """Look at the store of a collection's directory; it can be read, and nothing is changed.

        After all that there is to verify, `start_writing` follows.

        Raises
        ------
        RowStoreCorrupt
            If it is missing, not a row store, or damaged, or if its log is.
        DataDirectoryTooNew
            If a later format version wrote it.
        """
        database = RowDatabase.look(disk, directory / STORE_FILE)
        with database.closed_on_failure():
            store = cls(disk, database)
            if store.is_up_to_date:
                check_log_end(directory, database.transactions, database.sequence)
            return store

    @property
    def is_up_to_date(self) -> bool:
        """Whether it is of this format version; otherwise `start_writing` needs an upgrade."""
        return self._database.version == FORMAT_VERSION

    @property
    def version(self) -> int:
        """The format version of its files."""
        return self._database.version

    def start_writing(self, session: int = 0, upgrade: Upgrade | None = None) -> None:
        """Open the store to be written, in a session of its data directory, or 0.

        Afterwards, what a killed process wrote last is durable.
        """
        database = self._database
        database.connect()
        # All of the log is synced before anything is served from it: the last commit of a killed
        # process may be readable without being durable, and a repeated write that finds its row
        # there is acknowledged without a new commit. The log mark must not be ahead of it either.
        database.checkpoint(may_be_full=True)
        if upgrade is not None:
            # Before the new format is there, so that a mark that is missing means damage.
            LogEnd.create(self._disk, self._path.parent)
        database.mark_from_now_on()
        if upgrade is not None:
            with database.transaction(upgrade.content_hashes.nbytes) as connection:
                write_upgrade(connection, database.version, self.last_compaction, upgrade)
            database.version = FORMAT_VERSION
            self._sum = upgrade.sum
        self._disk.sync_directory(self._path.parent)
        self._session = session

    @property
    def log_end(self) -> LogEnd:
        """The log mark."""
        return self._database.log_end

    @property
    def sum(self) -> bytes:
        """The sum of the content hashes of the live rows, 16 bytes."""
        return sum_bytes(self._sum)

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

    @contextmanager
    def loader(self, *, forget_cached: bool = False) -> Iterator[RowLoader]:
        """Lend a loader, to read single records; it sees commits that end meanwhile.

        `forget_cached`: what it reads comes from the disk, as far as the system allows.
        """
        database = self._database
        with database.reader() as reader:
            if forget_cached:
                self._disk.forget_cached(self._path)
                reader.execute("PRAGMA shrink_memory")  # SQLite's own cache
            yield RowLoader(reader, self._path, database.version, self.last_compaction)

    def load(self) -> StoredRows:
        """Read all that was committed, and check that it adds up.

        Raises RowStoreCorrupt if a record does not match its checksum, a commit is missing, a row
        died twice, or the ledger differs from the sum of the commits.
        """
        database = self._database
        with database.writing, database.reader() as reader:
            loader = RowLoader(reader, self._path, database.version, self.last_compaction)
            return loader.load()

    # ---- writing --------------------------------------------------------------------------------

    def commit(self, commit: Commit) -> int:
        """Make a commit durable. Returns its sequence number.

        Raises ValueError if it does not continue where the last commit ended, or its columns differ
        in length.
        """
        rows = len(commit.ids)
        if commit.first_row != self._rows:
            raise ValueError(f"first_row is {commit.first_row}, but the next row is {self._rows}")
        if {len(commit.content_hashes), len(commit.squared_norms)} != {rows}:
            raise ValueError("content_hashes and squared_norms must have one entry for each id")
        metadata = [(row, packed) for row, packed in commit.metadata.items() if packed]
        sequence = self._database.sequence + 1
        record = commit_record(sequence, commit, self.entry.config.id_type)
        size_bytes = blob_bytes(record) + sum(len(packed) for _, packed in metadata)
        total = self._sum + sum_of(commit.content_hashes) - commit.dead_sum
        with self._database.transaction(size_bytes, sequence=sequence) as connection:
            connection.execute("INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", record)
            self._database.insert_metadata(metadata)
            connection.execute(
                "UPDATE ledger SET accepted = accepted + ?, replaced = replaced + ?, "
                "deleted = deleted + ?, transactions = transactions + 1, sum = ?",
                (rows, len(commit.replaced), len(commit.deleted), sum_bytes(total)),
            )
            if self._session:
                sessions = Sessions(
                    first_sequences=(*self.sessions.first_sequences, sequence),
                    sessions=(*self.sessions.sessions, self._session),
                )
                self._database.insert_session(sequence, self._session)
                self._database.put_property("sessions", sessions_to_json(sessions))
        if self._session:
            self.sessions, self._session = sessions, 0
        self._sum = total % SUM_MODULUS
        self._rows += rows
        self._has_metadata = self._has_metadata or bool(metadata)
        return sequence

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
        self.gave_up_commits = membership.gave_up_commits

    def record_loss(self, lost: int) -> None:
        """Record durably that so many rows in all are lost, whatever was recorded before.

        `accepted` is what was committed here, and `lost`.
        """
        with self._database.transaction(0) as connection:
            connection.execute(
                "UPDATE ledger SET accepted = accepted - lost + ?, lost = ?", (lost, lost)
            )
        self.lost = lost

    def record_damaged(self, rows: Int64Array) -> None:
        """Record durably which rows, ascending, are damaged, in place of those before."""
        with self._database.transaction(0):
            self._database.put_property("damaged", damaged_to_json(rows))
        self.damaged = rows

    def mark_again(self) -> None:
        """Write a new log mark, after a transaction that changes nothing else."""
        with self._database.transaction(0):
            pass

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

    def vector_ranges(self, first: int, last: int) -> list[VectorRange]:
        """Return the ranges of rows that have a row in [first, last), ascending."""
        with self._database.reader() as reader:
            return vector_ranges(reader, self.last_compaction, first, last)

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
            connection.execute("INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", record)

    def take_into_use(self, compaction: LastCompaction) -> None:
        """Let what was kept stand for the commits that it condenses, and name its row file.

        After a failure, everything is as before. After a crash, though, it may prove to have
        happened, so the row file must stay until a restart.
        """
        with self._database.transaction(0):
            self._database.put_property("rebuilt", to_json(compaction))
            self._database.put_property("row_file", compaction.row_file)
        self.last_compaction = compaction
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
