"""Brings a row store of an earlier format up to date, in one transaction.

Formats 1 and 2 have a CRC-32C of each row instead of its content hash. All hashes are computed
once, at the first start, so that everything else knows one format only.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.storage.checksum import checksum, row_checksums
from vectorshard.shard.storage.content_hash import content_hashes, sum_bytes
from vectorshard.shard.storage.row_columns import RowColumns
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    KEPT_INDEX,
    KEPT_TABLE,
    LEDGER_TABLE,
    MATCHES_NOTHING,
    SESSIONS_TABLE,
    LastCompaction,
    record_of,
)
from vectorshard.shard.types import Float32Array, Int64Array, UInt32Array, UInt64Array

_ROWS_AT_ONCE: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """What the new format holds in addition: by position, and the sum of the live rows."""

    content_hashes: UInt64Array
    vectors: Float32Array
    sum: int


def fill_content_hashes(
    columns: RowColumns, checksums: UInt32Array, metadata: Callable[[Int64Array], list[bytes]]
) -> None:
    """Compute the content hashes of all rows in the file.

    A row that does not match its checksum gets 0 instead, which matches nothing: it was damaged
    before, and stays so.
    """
    for first in range(0, len(checksums), _ROWS_AT_ONCE):
        positions = np.arange(first, min(first + _ROWS_AT_ONCE, len(checksums)))
        rows = columns.positions.rows_at(positions)
        ids, structs = columns.ids.take(positions), metadata(rows)
        vectors = columns.vectors[positions]
        hashes = content_hashes(ids, structs, vectors)
        damaged = row_checksums(rows, ids, structs, vectors) != checksums[positions]
        hashes = np.where(damaged[:, np.newaxis], np.uint64(0), hashes)
        columns.content_hashes[positions] = hashes


def write_upgrade(
    connection: sqlite3.Connection, version: int, last: LastCompaction, upgrade: Upgrade
) -> None:
    """Change the tables and records, in the open transaction.

    What compactions have left is removed, except for metadata.
    """
    execute = connection.execute
    if version == 1:
        execute(KEPT_TABLE)
        execute(KEPT_INDEX)
    else:
        execute("ALTER TABLE kept RENAME COLUMN checksums TO content_hashes")
        execute("ALTER TABLE kept ADD COLUMN range_crc32c INTEGER NOT NULL DEFAULT 0")
    execute("ALTER TABLE commits RENAME COLUMN checksums TO content_hashes")
    execute("ALTER TABLE commits ADD COLUMN range_crc32c INTEGER NOT NULL DEFAULT 0")
    execute("DELETE FROM kept WHERE generation <> ?", (last.generation,))
    execute("DELETE FROM commits WHERE sequence <= ?", (last.sequence,))
    kept = execute("SELECT rowid, length(row_numbers) / 8 FROM kept ORDER BY first_row").fetchall()
    commits = execute("SELECT sequence, rows FROM commits ORDER BY sequence").fetchall()
    position = _write_records(connection, "kept", 1, kept, upgrade, 0)
    _write_records(connection, "commits", 2, commits, upgrade, position)
    ledger = execute("SELECT accepted, replaced, deleted FROM ledger").fetchone()
    execute("DROP TABLE ledger")
    execute(LEDGER_TABLE)
    execute("INSERT INTO ledger VALUES (?, ?, ?, 0, 0, ?)", (*ledger, sum_bytes(upgrade.sum)))
    execute(SESSIONS_TABLE)
    execute(f"PRAGMA user_version = {FORMAT_VERSION}")


def _write_records(
    connection: sqlite3.Connection,
    table: str,
    place: int,
    keys: list[tuple[int, int]],
    upgrade: Upgrade,
    position: int,
) -> int:
    """Write the hashes of all records of a table; return the position after the last row.

    `place` is that of the hashes among the record's blobs.
    """
    for key, rows in keys:
        (record,) = connection.execute(f"SELECT * FROM {table} WHERE rowid = ?", (key,)).fetchall()
        hashes = upgrade.content_hashes[position : position + rows]
        vectors = upgrade.vectors[position : position + rows]
        range_crc32c = checksum(np.ascontiguousarray(vectors).view(np.uint8))
        if rows and not hashes.any(axis=1).all():
            range_crc32c ^= MATCHES_NOTHING
        blobs = list(record[4:-1])
        blobs[place] = hashes.tobytes()
        written = record_of(record[:3], blobs, range_crc32c)
        connection.execute(
            f"UPDATE {table} SET crc32c = ?, content_hashes = ?, range_crc32c = ? WHERE rowid = ?",
            (written[3], blobs[place], range_crc32c, key),
        )
        position += rows
    return position
