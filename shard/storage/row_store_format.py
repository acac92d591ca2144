"""What the bytes of `store.db` mean: its tables, records and checksums.

docs/formats.md is normative. Pure: no connection to a database enters here.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import numpy as np

from vectorshard.shard.index.calibration import CalibrationBasis
from vectorshard.shard.index.drift import UNKNOWN
from vectorshard.shard.membership import Member, Membership, Sessions, Stage
from vectorshard.shard.rows.id_column import encode_ids
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.json_records import InvalidRecord, from_json, to_json
from vectorshard.shard.storage.store_files import STORE_FILE
from vectorshard.shard.types import (
    CollectionConfig,
    Float32Array,
    IdArray,
    IdType,
    Int64Array,
    UInt32Array,
    UInt64Array,
)

FORMAT_VERSION: Final = 3

FILE_NAME: Final = STORE_FILE

MATCHES_NOTHING: Final = 2**32 - 1
"""What the range_crc32c of vectors is XORed with where one of them is damaged already."""

DAMAGED_RANGES: Final = 20_000
"""Ranges of damaged rows that are recorded. What is beyond them is found again when it is read."""

SESSIONS_LISTED: Final = 100
"""Sessions, the newest ones, that a property repeats."""

LEDGER_TABLE: Final = """
CREATE TABLE ledger (
    accepted INTEGER NOT NULL, replaced INTEGER NOT NULL, deleted INTEGER NOT NULL,
    lost INTEGER NOT NULL, transactions INTEGER NOT NULL, sum BLOB NOT NULL
)"""

SESSIONS_TABLE: Final = """
CREATE TABLE sessions (
    first_sequence INTEGER PRIMARY KEY, session INTEGER NOT NULL, crc32c INTEGER NOT NULL
)"""

KEPT_TABLE: Final = """
CREATE TABLE kept (
    generation INTEGER NOT NULL,
    first_row INTEGER NOT NULL,
    last_row INTEGER NOT NULL,
    crc32c INTEGER NOT NULL,
    row_numbers BLOB NOT NULL,
    content_hashes BLOB NOT NULL,
    squared_norms BLOB NOT NULL,
    ids BLOB NOT NULL,
    range_crc32c INTEGER NOT NULL DEFAULT 0
)"""

KEPT_INDEX: Final = "CREATE UNIQUE INDEX kept_by_row ON kept (generation, first_row)"

SCHEMA: Final = (
    """
CREATE TABLE properties (
    key TEXT PRIMARY KEY, value TEXT NOT NULL, crc32c INTEGER NOT NULL
) WITHOUT ROWID""",
    """
CREATE TABLE commits (
    sequence INTEGER PRIMARY KEY,
    first_row INTEGER NOT NULL,
    rows INTEGER NOT NULL,
    crc32c INTEGER NOT NULL,
    replaced BLOB NOT NULL,
    deleted BLOB NOT NULL,
    content_hashes BLOB NOT NULL,
    squared_norms BLOB NOT NULL,
    ids BLOB NOT NULL,
    range_crc32c INTEGER NOT NULL DEFAULT 0
)""",
    "CREATE UNIQUE INDEX commits_with_rows ON commits (first_row) WHERE rows > 0",
    KEPT_TABLE,
    KEPT_INDEX,
    "CREATE TABLE metadata (row INTEGER PRIMARY KEY, struct BLOB NOT NULL)",
    LEDGER_TABLE,
    SESSIONS_TABLE,
)

Record: TypeAlias = tuple[Any, ...]
"""A row of `commits` or `kept`, as the schema orders it: three numbers, crc32c, its blobs, and
range_crc32c, which is None in formats 1 and 2."""

OPTIONAL_OF_INDEX_FILE: Final = (
    "imbalance_when_trained",
    "filter_margins",
    "calibration_basis",
    "distance_when_trained",
    "candidate_price",
)
"""Fields of IndexFile that the first releases did not write."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What one transaction adds: new rows from `first_row` on, and rows that die.

    `ids` (rows,), `content_hashes` uint64 (rows, 2), `squared_norms` float32 (rows,);
    `range_crc32c` is that of all their vectors; `metadata` by row number, empty or absent where a
    row has none; `replaced` and `deleted`, int64, are the numbers of rows that were live until now,
    and `dead_sum` the sum of their stored content hashes.
    """

    first_row: int
    ids: IdArray
    content_hashes: UInt64Array
    squared_norms: Float32Array
    range_crc32c: int
    metadata: Mapping[int, bytes]
    replaced: Int64Array
    deleted: Int64Array
    dead_sum: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptRows:
    """A piece of what a compaction keeps: rows that lived when it began, ascending, at least one.

    `rows` int64 (rows,) are their numbers, `ids` their ids by `encode_ids`; `content_hashes` uint64
    (rows, 2), `squared_norms` float32 (rows,); `range_crc32c` is that of all their vectors.
    """

    rows: Int64Array
    ids: bytes
    content_hashes: UInt64Array
    squared_norms: Float32Array
    range_crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LastCompaction:
    """The compaction whose row file is in use: of the state after commit `sequence`.

    Of the rows below `rebuilt_until`, `replaced` and `deleted` were dead; it kept all others.
    `generation` is the row file's, 0 before the first compaction.
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
class StoredLedger:
    """The ledger as it is stored; `sum` is that of the content hashes of the live rows.

    Formats 1 and 2 have its first three numbers.
    """

    accepted: int
    replaced: int
    deleted: int
    lost: int = 0
    transactions: int = 0
    sum: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRows:
    """Everything that a start reads from the store.

    `positions` says which rows the row file holds; `ids` are blobs of `encode_ids` with the rows in
    each, `squared_norms` float32 (positions,) and `content_hashes` uint64 (positions, 2), all in
    the order of positions; `replaced` and `deleted`, int64, are the rows that died since the last
    compaction, in that order; `rows` were ever committed; `sequence` is the last commit's, 0 before
    the first. Formats 1 and 2 have `checksums`, uint32 (positions,), instead of content hashes,
    which are 0 then.
    """

    positions: RowMap
    ids: list[tuple[bytes, int]]
    squared_norms: Float32Array
    content_hashes: UInt64Array
    checksums: UInt32Array | None
    replaced: Int64Array
    deleted: Int64Array
    rows: int
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexFile:
    """The index file in use.

    It holds the rows below `absorbed_until` except `rows_skipped`, which were dead when they were
    absorbed. `crc32c` and `file_bytes` are the file's; `live_when_trained` and `rows_trained_on`
    are rows; `trained_at` is in seconds since 1970, `training_s` a duration. Only their owners
    interpret `calibration`, `calibration_basis`, `candidate_price` and `filter_margins`.
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
    distance_when_trained: float = UNKNOWN
    filter_margins: tuple[float, ...] = ()
    calibration_basis: CalibrationBasis = field(default_factory=CalibrationBasis)
    candidate_price: float = 1.0


@dataclass(frozen=True, slots=True)
class _Members:
    members: tuple[Member, ...]


def config_to_json(config: CollectionConfig) -> str:
    """Return `config` as one line of JSON; equal configurations give equal text."""
    return to_json(config, sort_keys=True, separators=(",", ":"))


def damaged_to_json(rows: Int64Array) -> str:
    """Return rows, ascending, as a list of their first DAMAGED_RANGES ranges [first, last]."""
    begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)[:DAMAGED_RANGES]
    ends = np.flatnonzero(np.diff(rows, append=-2) != 1)[:DAMAGED_RANGES]
    return json.dumps(np.stack([rows[begins], rows[ends]], axis=1).tolist())


def damaged_from_json(stored: str) -> Int64Array:
    """Return the rows of `damaged_to_json`, ascending, int64."""
    ranges = [np.arange(first, last + 1) for first, last in json.loads(stored)]
    return np.concatenate([np.zeros(0, np.int64), *ranges])


def sessions_to_json(sessions: Sessions) -> str:
    """Return how many sessions there are, and the newest SESSIONS_LISTED of them."""
    pairs = [*zip(sessions.first_sequences, sessions.sessions, strict=True)]
    return json.dumps({"count": len(pairs), "newest": pairs[-SESSIONS_LISTED:]})


def sessions_from_json(stored: str) -> tuple[int, dict[int, int]]:
    """Return how many sessions `sessions_to_json` was given, and the newest by first sequence."""
    found = json.loads(stored)
    return int(found["count"]), {int(first): int(each) for first, each in found["newest"]}


def membership_properties(membership: Membership) -> dict[str, str]:
    """Return a membership as properties."""
    return {
        "directory": membership.directory,
        "stage": str(int(membership.stage)),
        "members": to_json(_Members(membership.members)),
    }


def membership_of(properties: Mapping[str, str], where: str) -> Membership:
    """Return the membership in properties; InvalidRecord names `where`."""
    if "members" not in properties:
        return Membership()
    try:
        stage = Stage(int(properties["stage"]))
        directory = properties["directory"]
    except (KeyError, ValueError) as error:
        raise InvalidRecord(f"{where}: stage and directory: {error!r}") from None
    members = from_json(_Members, properties["members"], f"{where}members").members
    return Membership(directory=directory, stage=stage, members=members)


def commit_record(sequence: int, commit: Commit, id_type: IdType) -> Record:
    """Return a commit as a row of `commits`."""
    blobs = (
        commit.replaced.astype("<i8", copy=False).tobytes(),
        commit.deleted.astype("<i8", copy=False).tobytes(),
        commit.content_hashes.tobytes(),
        commit.squared_norms.astype("<f4", copy=False).tobytes(),
        encode_ids(id_type, commit.ids),
    )
    return record_of((sequence, commit.first_row, len(commit.ids)), blobs, commit.range_crc32c)


def kept_record(generation: int, kept: KeptRows) -> Record:
    """Return a piece of what a compaction keeps as a row of `kept`."""
    blobs = (
        kept.rows.astype("<i8", copy=False).tobytes(),
        kept.content_hashes.tobytes(),
        kept.squared_norms.astype("<f4", copy=False).tobytes(),
        kept.ids,
    )
    return record_of((generation, int(kept.rows[0]), int(kept.rows[-1])), blobs, kept.range_crc32c)


def record_of(numbers: tuple[int, int, int], blobs: Sequence[bytes], range_crc32c: int) -> Record:
    """Return a row of `commits` or `kept`, with its checksum."""
    return (*numbers, _record_checksum(numbers, blobs, (range_crc32c,)), *blobs, range_crc32c)


def is_sound(record: Record) -> bool:
    """Whether a record matches its checksum. One with a column of another type does not."""
    range_crc32c = () if record[-1] is None else (record[-1],)
    try:
        return bool(_record_checksum(record[:3], record[4:-1], range_crc32c) == record[3])
    except (TypeError, struct.error):
        return False


def blob_bytes(record: Record) -> int:
    """Return the bytes of a record's blobs."""
    return sum(map(len, record[4:-1]))


def property_checksum(key: str, value: str) -> int:
    """Return the checksum of a row of `properties`."""
    return checksum(key.encode(), value.encode())


def session_checksum(first_sequence: int, session: int) -> int:
    """Return the checksum of a row of `sessions`."""
    return checksum(struct.pack("<2q", first_sequence, session))


def _record_checksum(
    numbers: Sequence[int], blobs: Sequence[bytes], range_crc32c: tuple[int, ...]
) -> int:
    head = (*numbers, *map(len, blobs), *range_crc32c)
    return checksum(struct.pack(f"<{len(head)}q", *head), *blobs)
