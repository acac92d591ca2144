"""Reads all that a row store holds, of this format or an earlier one, and checks that it adds up.

Whether the log of the database is whole is checked elsewhere: `log_end`. Nothing is written here.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.membership import Sessions
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.content_hash import (
    HASH_BYTES,
    SUM_MODULUS,
    from_bytes,
    sum_from_bytes,
    sum_of,
)
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    LastCompaction,
    Record,
    StoredLedger,
    StoredRows,
    is_sound,
    property_checksum,
    session_checksum,
    sessions_from_json,
)
from vectorshard.shard.storage.row_store_schema import differing
from vectorshard.shard.types import Int64Array

_COMMITS: Final = (
    "SELECT sequence, first_row, rows, crc32c, replaced, deleted, {} FROM commits "
    "WHERE sequence > ? ORDER BY sequence"
)
_KEPT: Final = (
    "SELECT generation, first_row, last_row, crc32c, row_numbers, {} FROM kept "
    "WHERE generation = ? ORDER BY first_row"
)
_NEW: Final = "content_hashes, squared_norms, ids, range_crc32c"
_OLD: Final = "checksums, squared_norms, ids, NULL"


class RowLoader:
    """Reads one store through a connection that sees no other's commits meanwhile."""

    def __init__(
        self, reader: sqlite3.Connection, path: Path, version: int, last: LastCompaction
    ) -> None:
        self._select = reader.execute
        self._path = path
        self._version = version
        self._last = last
        self._hashes: list[bytes] = []  # in formats 1 and 2 checksums
        self._norms: list[bytes] = []
        self._ids: list[tuple[bytes, int]] = []

    @property
    def _columns(self) -> str:
        return _NEW if self._version == FORMAT_VERSION else _OLD

    def load(self) -> StoredRows:
        """Read everything. Raises RowStoreCorrupt if it does not add up."""
        if self._version == FORMAT_VERSION and (wrong := differing(self._select)):
            raise RowStoreCorrupt(
                f"{self._path}: the schema is damaged: {', '.join(wrong)} are not as they were "
                "created"
            )
        positions = self._load_kept()
        replaced, deleted = bytearray(), bytearray()
        rows, sequence = self._last.rebuilt_until, self._last.sequence
        for record in self._select(_COMMITS.format(self._columns), (sequence,)):
            if record[:2] != (sequence + 1, rows) or not is_sound(record):
                raise RowStoreCorrupt(
                    f"{self._path}: commit {sequence + 1}, from row {rows} on, is missing or "
                    "damaged"
                )
            sequence, _, commit_rows, _, commit_replaced, commit_deleted, *columns, _ = record
            rows += commit_rows
            replaced += commit_replaced
            deleted += commit_deleted
            if commit_rows:
                self._add(columns, commit_rows)
        is_old = self._version != FORMAT_VERSION
        hashes, norms = bytearray().join(self._hashes), bytearray().join(self._norms)
        rows_in_file = len(norms) // 4
        stored = StoredRows(
            positions=positions,
            ids=self._ids,
            squared_norms=np.frombuffer(norms, dtype="<f4"),
            content_hashes=from_bytes(bytearray(HASH_BYTES * rows_in_file) if is_old else hashes),
            checksums=np.frombuffer(hashes, dtype="<u4") if is_old else None,
            replaced=np.frombuffer(replaced, dtype="<i8"),
            deleted=np.frombuffer(deleted, dtype="<i8"),
            rows=rows,
            sequence=sequence,
        )
        self._check_ledger(stored)
        return stored

    def _add(self, columns: list[bytes], rows: int) -> None:
        self._hashes.append(columns[0])
        self._norms.append(columns[1])
        self._ids.append((columns[2], rows))

    def _load_kept(self) -> RowMap:
        """Read what the last compaction kept; return which rows that are."""
        numbers = bytearray()
        if self._version > 1:
            for record in self._select(_KEPT.format(self._columns), (self._last.generation,)):
                if not is_sound(record):
                    raise RowStoreCorrupt(
                        f"{self._path}: checksum mismatch in the kept rows from {record[1]} on"
                    )
                numbers += record[4]
                self._add(list(record[5:8]), len(record[4]) // 8)
        rows = np.frombuffer(numbers, dtype="<i8")
        until = self._last.rebuilt_until
        in_order = (np.diff(rows, prepend=-1, append=until) > 0).all()
        if len(rows) != self._last.kept or not in_order:
            raise RowStoreCorrupt(
                f"{self._path}: {len(rows)} kept rows found below row {until}, but the last "
                f"compaction kept {self._last.kept}"
            )
        return RowMap.of_kept(rows, until)

    def _check_ledger(self, stored: StoredRows) -> None:
        ledger = self.ledger()
        recorded = (ledger.accepted, ledger.replaced, ledger.deleted)
        counted = (
            stored.rows + ledger.lost,
            self._last.replaced + len(stored.replaced),
            self._last.deleted + len(stored.deleted),
        )
        if recorded != counted or ledger.lost < 0:
            raise RowStoreCorrupt(
                f"{self._path}: the ledger has (accepted, replaced, deleted) = {recorded}, "
                f"the commits add up to {counted}"
            )
        died = np.concatenate([stored.replaced, stored.deleted])
        dead = np.unique(died)
        if (
            len(dead) != len(died)
            or (len(dead) and not 0 <= dead[0] <= dead[-1] < stored.rows)
            or not stored.positions.hold(dead).all()
        ):
            raise RowStoreCorrupt(f"{self._path}: a row died twice, or before it existed")
        if stored.checksums is None and live_sum(stored, dead) != ledger.sum:
            raise RowStoreCorrupt(
                f"{self._path}: the content hashes of the live rows do not add up to the ledger's"
            )

    def kept_from(self, row: int) -> list[Record]:
        """Read the record of the last compaction that begins at a row or the first one after it."""
        query = _KEPT.format(self._columns).replace("ORDER", "AND first_row >= ? ORDER")
        return self._select(f"{query} LIMIT 1", (self._last.generation, row)).fetchall()

    def commits_after(self, sequence: int, until: int, at_most: int) -> list[Record]:
        """Read the commits of (sequence, until], of which there may be many: `at_most` of them."""
        query = _COMMITS.format(self._columns).replace("ORDER", "AND sequence <= ? ORDER")
        return self._select(f"{query} LIMIT ?", (sequence, until, at_most)).fetchall()

    def newest_sequence(self) -> int:
        """Read the sequence number of the newest commit; 0 without any."""
        ((newest,),) = self._select("SELECT coalesce(max(sequence), 0) FROM commits").fetchall()
        return max(int(newest), self._last.sequence)

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """See the store as it is now until the context ends."""
        self._select("BEGIN")
        try:
            yield
        finally:
            self._select("ROLLBACK")

    def integrity(self) -> str:
        """Return what is wrong with the pages, used or free, and indexes; empty if nothing is."""
        found = [str(text) for (text,) in self._select("PRAGMA integrity_check").fetchall()]
        if found == ["ok"]:
            return ""
        lines = [line for text in found for line in text.splitlines() if not line.startswith("***")]
        return "; ".join(lines[:3])

    def stored_version(self) -> int:
        """Read the format version, which may have changed since the store was opened."""
        ((version,),) = self._select("PRAGMA user_version").fetchall()
        return int(version)

    def ledger(self) -> StoredLedger:
        """Read the ledger."""
        (record,) = self._select("SELECT * FROM ledger").fetchall()
        names = StoredLedger.__dataclass_fields__
        return StoredLedger(
            **{
                name: sum_from_bytes(value) if name == "sum" else int(value)
                for name, value in zip(names, record, strict=self._version == FORMAT_VERSION)
            }
        )

    def sessions(self) -> Sessions:
        """Read the sessions; RowStoreCorrupt if one does not match its checksum, or is missing."""
        if self._version != FORMAT_VERSION:
            return Sessions()
        recorded = self.properties().get("sessions")  # first: a commit may add to both meanwhile
        stored = self._select("SELECT * FROM sessions ORDER BY first_sequence").fetchall()
        for first_sequence, session, crc32c in stored:
            if session_checksum(first_sequence, session) != crc32c:
                raise RowStoreCorrupt(
                    f"{self._path}: checksum mismatch in the session from {first_sequence} on"
                )
        if recorded is not None:
            self._check_sessions(recorded, {first: session for first, session, _ in stored})
        return Sessions(
            first_sequences=tuple(row[0] for row in stored),
            sessions=tuple(row[1] for row in stored),
        )

    def _check_sessions(self, recorded: str, stored: dict[int, int]) -> None:
        """Compare the sessions with the property that repeats them.

        Later ones may be there: an earlier release of this format version writes no property.
        """
        count, newest = sessions_from_json(recorded)
        until = max(newest, default=0)
        found = sum(first <= until for first in stored)
        if found != count or not newest.items() <= stored.items():
            raise RowStoreCorrupt(
                f"{self._path}: {found} of {count} sessions up to commit {until} are stored, or "
                "other ones than were recorded"
            )

    def properties(self) -> dict[str, str]:
        """Read the properties; RowStoreCorrupt if one does not match its checksum."""
        properties: dict[str, str] = {}
        for key, value, crc32c in self._select("SELECT key, value, crc32c FROM properties"):
            if property_checksum(key, value) != crc32c:
                raise RowStoreCorrupt(f"{self._path}: checksum mismatch in property {key}")
            properties[key] = value
        return properties


def live_sum(stored: StoredRows, dead: Int64Array) -> int:
    """Return the sum of the content hashes of the stored rows without those of `dead`."""
    hashes = stored.content_hashes
    return (sum_of(hashes) - sum_of(hashes[stored.positions.of(dead)])) % SUM_MODULUS
