"""Which collection a directory holds, as far as its row store can be read at all.

Before a collection is opened, and when it is set aside: it verifies only what it returns, and
changes no file of theirs. SQLite may create an empty log and its shared memory, which are derived.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from vectorshard.shard.errors import CorruptData
from vectorshard.shard.storage.disk import DISK_ERRORS
from vectorshard.shard.storage.json_records import from_json
from vectorshard.shard.storage.row_store_format import property_checksum
from vectorshard.shard.storage.store_files import STORE_FILE, check_header, check_store_files
from vectorshard.shard.types import CollectionConfig, CollectionEntry

_UNREADABLE = (*DISK_ERRORS, CorruptData, ValueError, TypeError, AttributeError)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionFiles:
    """What a collection's files say of themselves.

    `directory` is the data directory to which they belong; empty if an earlier release wrote them.
    `has_rows`: a row was ever committed.
    """

    entry: CollectionEntry
    directory: str
    has_rows: bool

    @property
    def name(self) -> str:
        """The name of the collection."""
        return self.entry.config.name

    @property
    def incarnation(self) -> str:
        """The incarnation of the collection."""
        return self.entry.incarnation


def stored_collection(directory: Path) -> CollectionFiles | None:
    """Return what is stored in a collection's directory; None if it is unreadable."""
    path = directory / STORE_FILE
    try:
        check_store_files(path)
        return _read(path, "mode=ro")
    except _UNREADABLE:
        return None


def stored_entry(directory: Path) -> CollectionEntry | None:
    """Return the configuration and incarnation in a collection's directory; None if unreadable.

    If its log does not open, the configuration is the one of the last checkpoint.
    """
    stored = stored_collection(directory)
    if stored is None:
        path = directory / STORE_FILE
        try:
            check_header(path)
            stored = _read(path, "immutable=1")  # SQLite opens, changes and removes no other file
        except _UNREADABLE:
            return None
    return stored.entry


def _read(path: Path, options: str) -> CollectionFiles:
    uri = f"{path.absolute().as_uri()}?{options}"
    with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        config, incarnation, data_directory = (
            _property(connection, key) for key in ("configuration", "incarnation", "directory")
        )
        ((accepted,),) = connection.execute("SELECT accepted FROM ledger").fetchall()
    entry = CollectionEntry(
        config=from_json(CollectionConfig, config or "", str(path)),
        incarnation=incarnation or "",
    )
    return CollectionFiles(entry=entry, directory=data_directory or "", has_rows=accepted > 0)


def _property(connection: sqlite3.Connection, key: str) -> str | None:
    """Return a property, None without it; ValueError if it does not match its checksum."""
    select = "SELECT value, crc32c FROM properties WHERE key = ?"
    found = connection.execute(select, (key,)).fetchone()
    if found is None:
        return None
    value, crc32c = found
    if property_checksum(key, value) != crc32c:
        raise ValueError(f"checksum mismatch in property {key}")
    return str(value)
