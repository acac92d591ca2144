"""Which collection a directory holds, as far as its row store can be read at all.

For collections that are set aside: it verifies nothing but what it returns, and changes no file of
theirs. SQLite may create an empty log and its shared memory, which are derived.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import DISK_ERRORS
from vectorshard.shard.storage.json_records import from_json
from vectorshard.shard.storage.row_store_format import FILE_NAME
from vectorshard.shard.types import CollectionConfig, CollectionEntry


def stored_entry(directory: Path) -> CollectionEntry | None:
    """Return the configuration and incarnation in a collection's directory; None if unreadable."""
    path = directory / FILE_NAME
    try:
        if not path.exists():
            return None
        uri = path.absolute().as_uri() + "?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
            found = {key: _property(connection, key) for key in ("configuration", "incarnation")}
        config = from_json(CollectionConfig, found["configuration"], str(path))
        return CollectionEntry(config=config, incarnation=found["incarnation"])
    except (*DISK_ERRORS, ValueError, TypeError, AttributeError):
        return None


def _property(connection: sqlite3.Connection, key: str) -> str:
    """Return a property; ValueError if it is missing or does not match its checksum."""
    select = "SELECT value, crc32c FROM properties WHERE key = ?"
    ((value, crc32c),) = connection.execute(select, (key,)).fetchall()
    if checksum(key.encode(), value.encode()) != crc32c:
        raise ValueError(f"checksum mismatch in property {key}")
    return str(value)
