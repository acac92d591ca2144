"""The records of a damaged row store that match their checksums, whatever became of its trees.

A record that differs from its checksum by one flipped bit is restored. Whether the records add up
must not enter here.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from vectorshard.shard.errors import RowStoreCorrupt
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, from_json
from vectorshard.shard.storage.repair_bits import record_without_flip, without_flip
from vectorshard.shard.storage.repair_log import LogPages
from vectorshard.shard.storage.repair_pages import Pages, index_records, table_records
from vectorshard.shard.storage.row_store_format import (
    FORMAT_VERSION,
    Record,
    StoredLedger,
    is_sound,
    session_checksum,
)
from vectorshard.shard.types import CollectionConfig, CollectionEntry

_PAGE_BYTES: Final = 4096
_HEAD_BYTES: Final = 100
_VERSION_AT: Final = 60
_VERSION_MOST: Final = 1_000  # no release will ever write more
_CONSTANTS: Final = {0: b"SQLite format 3\x00", 18: b"\x02\x02\x00\x40\x20\x20"}
"""Of the header of each store (sqlite.org/fileformat2.html, 1.3), but for the size of a page."""

_COMMIT_COLUMNS: Final = 10
_KEPT_COLUMNS: Final = 9
_LEDGER_COLUMNS: Final = 6


class StorePages:
    """The pages of a store: those of its log, and under them those of the database."""

    def __init__(self, database: bytes | mmap.mmap, log: LogPages | None = None) -> None:
        self.page_bytes = page_bytes_of(database[:_HEAD_BYTES])
        self._database = database
        self._log = log or LogPages()
        self._pages = max(-(-len(database) // self.page_bytes), *self._log.pages, 0)
        self.undone: list[str] = []
        """Notes of damage in the header that was undone."""
        self._first = self._with_sound_header()

    def __len__(self) -> int:
        """Pages."""
        return self._pages

    def page(self, number: int) -> bytes:
        """Return a page by its number, from 1; shorter at the end of a file that was cut."""
        return self._first if number == 1 else self._stored(number)

    def _stored(self, number: int) -> bytes:
        if (page := self._log.pages.get(number)) is not None:
            return page
        return self._database[(number - 1) * self.page_bytes : number * self.page_bytes]

    def _with_sound_header(self) -> bytes:
        first = bytearray(self._stored(1)) if self._pages else bytearray()
        if len(first) < _HEAD_BYTES:
            return bytes(first)
        size = 1 if self.page_bytes == 2**16 else self.page_bytes
        constants = {**_CONSTANTS, 16: struct.pack(">H", size)}
        for at, expected in sorted(constants.items()):
            if first[at : at + len(expected)] != expected:
                first[at : at + len(expected)] = expected
                self.undone.append(f"the header was damaged, at byte {at}")
        (version,) = struct.unpack_from(">I", first, _VERSION_AT)
        if version > _VERSION_MOST or (version < FORMAT_VERSION and b"content_hashes" in first):
            struct.pack_into(">I", first, _VERSION_AT, FORMAT_VERSION)
            self.undone.append("the format version in the header was damaged")
        return bytes(first)

    @property
    def version(self) -> int:
        """The format version; 0 if there is no header."""
        if len(self._first) < _HEAD_BYTES:
            return 0
        (version,) = struct.unpack_from(">I", self._first, _VERSION_AT)
        return int(version)

    def write(self, disk: Disk, path: Path) -> None:
        """Write the pages to a new file, which is a database without a log."""
        opened = disk.open(path)
        try:
            at_once = max(1, 2**20 // self.page_bytes)
            for first in range(1, self._pages + 1, at_once):
                numbers = range(first, min(first + at_once, self._pages + 1))
                pages = (self.page(number).ljust(self.page_bytes, b"\0") for number in numbers)
                disk.write(opened, (first - 1) * self.page_bytes, b"".join(pages))
        finally:
            opened.close()


def page_bytes_of(head: bytes) -> int:
    """Return the size of a page by the header of a database; the usual one if it is damaged."""
    if len(head) >= 18:
        (size,) = struct.unpack_from(">H", head, 16)
        size = 2**16 if size == 1 else size
        if size >= 512 and size.bit_count() == 1:
            return int(size)
    return _PAGE_BYTES


def contents_of(path: Path) -> bytes | mmap.mmap:
    """Return the contents of a copy without reading them; empty if it is empty or absent."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        if not os.fstat(descriptor).st_size:
            return b""
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
    finally:
        os.close(descriptor)


# ---- records ------------------------------------------------------------------------------------


@dataclass(slots=True)
class Records:
    """Sound records: properties by key, commits by sequence number, kept rows by generation and
    first row, metadata by row number, which only content hashes verify, sessions by first sequence
    number, and the ledger, which only the rest can confirm. `unsound` are commits that do not match
    their checksums, though their rows may match theirs; `undone` are notes."""

    properties: dict[str, str] = field(default_factory=dict)
    commits: dict[int, Record] = field(default_factory=dict)
    unsound: dict[int, Record] = field(default_factory=dict)
    kept: dict[tuple[int, int], Record] = field(default_factory=dict)
    metadata: dict[int, bytes] = field(default_factory=dict)
    sessions: dict[int, int] = field(default_factory=dict)
    ledger: StoredLedger | None = None
    undone: list[str] = field(default_factory=list)

    def entry(self, where: str) -> CollectionEntry:
        """Return the collection that they are of; RowStoreCorrupt if they do not say it."""
        if missing := {"configuration", "incarnation"} - self.properties.keys():
            raise RowStoreCorrupt(f"{where}: {' and '.join(sorted(missing))} unreadable")
        try:
            config = from_json(CollectionConfig, self.properties["configuration"], where)
        except InvalidRecord as error:
            raise RowStoreCorrupt(str(error)) from error
        return CollectionEntry(config=config, incarnation=self.properties["incarnation"])


def records_of(pages: Pages) -> Records:
    """Return all records that can be read and are sound."""
    records = Records()
    for row_id, columns in table_records(pages):
        if len(columns) == 2 and columns[0] is None and isinstance(columns[1], bytes):
            records.metadata[row_id] = columns[1]
        elif len(columns) == _COMMIT_COLUMNS and columns[0] is None:
            record = (row_id, *columns[1:])
            if (sound := _sound(record, records)) is not None:
                records.commits[sound[0]] = sound
            else:
                records.unsound[row_id] = record
        elif len(columns) == _KEPT_COLUMNS:
            if (sound := _sound(columns, records)) is not None:
                records.kept[sound[0], sound[1]] = sound
        elif len(columns) == _LEDGER_COLUMNS:
            records.ledger = _ledger(columns) or records.ledger
        elif len(columns) == 3 and columns[0] is None:
            _add_session(records, row_id, columns[1], columns[2])
    for columns in index_records(pages):
        if len(columns) == 3 and isinstance(columns[0], str) and isinstance(columns[1], str):
            _add_property(records, *columns)
    return records


def contradict(records: Records, older: Records) -> bool:
    """Whether records are of another store than older ones: sound commits never change."""
    both = records.commits.keys() & older.commits.keys()
    incarnations = {each.properties.get("incarnation") for each in (records, older)} - {None}
    return len(incarnations) > 1 or any(
        records.commits[each] != older.commits[each] for each in both
    )


def with_older(records: Records, older: Records) -> Records:
    """Return records with those of older images of the pages, where they lack some."""
    return Records(
        properties={**older.properties, **records.properties},
        commits={**older.commits, **records.commits},
        unsound={**older.unsound, **records.unsound},
        kept={**older.kept, **records.kept},
        metadata={**older.metadata, **records.metadata},
        sessions={**older.sessions, **records.sessions},
        ledger=records.ledger,
        undone=records.undone,
    )


def _sound(record: Record, records: Records) -> Record | None:
    if is_sound(record):
        return record
    restored = record_without_flip(record)
    if restored is not None:
        kind = "commit" if len(record) == _COMMIT_COLUMNS else "kept rows of generation"
        records.undone.append(f"a flipped bit in {kind} {restored[0]}")
    return restored


def _ledger(columns: tuple[Any, ...]) -> StoredLedger | None:
    *numbers, total = columns
    if not all(isinstance(each, int) for each in numbers) or not isinstance(total, bytes):
        return None
    if len(total) != 16:
        return None
    accepted, replaced, deleted, lost, transactions = numbers
    return StoredLedger(
        accepted=accepted,
        replaced=replaced,
        deleted=deleted,
        lost=lost,
        transactions=transactions,
        sum=int.from_bytes(total, "big"),
    )


def _add_session(records: Records, first_sequence: int, session: Any, crc32c: Any) -> None:
    if not isinstance(session, int) or not isinstance(crc32c, int):
        return
    if session_checksum(first_sequence, session) != crc32c:
        sound = without_flip(struct.pack("<2q", first_sequence, session), crc32c)
        if sound is None:
            return
        first_sequence, session = struct.unpack("<2q", sound)
        records.undone.append(f"a flipped bit in the session from {first_sequence} on")
    records.sessions[first_sequence] = session


def _add_property(records: Records, key: str, value: str, crc32c: Any) -> None:
    stored = [each.encode(errors="surrogateescape") for each in (key, value)]
    if not isinstance(crc32c, int):
        return
    if checksum(*stored) != crc32c:
        sound = without_flip(b"".join(stored), crc32c)
        if sound is None:
            return
        stored = [sound[: len(stored[0])], sound[len(stored[0]) :]]
        records.undone.append(f"a flipped bit in property {stored[0].decode(errors='replace')}")
    try:
        records.properties[stored[0].decode()] = stored[1].decode()
    except UnicodeDecodeError:
        return
