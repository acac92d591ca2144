"""Manifests: what a backup consists of. Pure.

A manifest is one JSON object with its own checksum, and is written last: an object of a target that
no manifest names is garbage. docs/formats.md describes it field by field.
"""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import numpy as np

from vectorshard.backup.failures import BackupDamaged, FormatUnknown
from vectorshard.shard.membership import Member, Sessions, Stage
from vectorshard.shard.rows.row_bitmap import decode_rows, encode_rows
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.json_records import (
    InvalidRecord,
    parsed_object,
    record_of,
    to_json,
)
from vectorshard.shard.types import CollectionConfig, Int64Array, Ledger
from vectorshard.shard.witnesses import session_at

FORMAT_VERSION: Final = 2
_CRC32C: Final = "crc32c"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlock:
    """An object that holds the rows of [first_row, next_row) that lived when it was written.

    `rows` of them, in `size_bytes` bytes, whose CRC-32C is `crc32c`.
    """

    name: str
    first_row: int
    next_row: int
    rows: int
    size_bytes: int
    crc32c: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadRows:
    """Row numbers that are dead though blocks may hold them: a bitmap (shard.rows.row_bitmap).

    It is in `bitmap`, base64. A large one is an object instead, called `name`.
    """

    bitmap: str = ""
    name: str = ""
    size_bytes: int = 0
    crc32c: int = 0

    @classmethod
    def inline(cls, bitmap: bytes) -> DeadRows:
        """Return the dead rows of a serialized bitmap."""
        return cls(
            bitmap=b64encode(bitmap).decode(), size_bytes=len(bitmap), crc32c=checksum(bitmap)
        )

    def rows(self, stored: bytes | None = None) -> Int64Array:
        """Return the row numbers, ascending; `stored` is the object, if the bitmap is in one."""
        bitmap = b64decode(self.bitmap) if stored is None else stored
        if checksum(bitmap) != self.crc32c:
            raise BackupDamaged(f"{self.name or 'the dead rows'}: checksum mismatch")
        return decode_rows(bitmap)


NO_DEAD_ROWS: Final = DeadRows.inline(encode_rows(np.zeros(0, dtype=np.int64)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardBackup:
    """One leaf shard's rows of a collection, at one moment: its commit `sequence`.

    `rows` were ever committed by then, and `live` of them live; `content_sum` is the sum of the
    live rows' content hashes, 32 hex digits. `first_sequences` and `sessions`, 16 hex digits each,
    are parallel. `damaged` are live rows that no block holds; only a partial backup has any.
    """

    shard: int
    directory: str
    life: int
    first_sequences: tuple[int, ...]
    sessions: tuple[str, ...]
    sequence: int
    rows: int
    live: int
    ledger: Ledger
    content_sum: str
    blocks: tuple[StoredBlock, ...]
    dead: DeadRows
    damaged: tuple[int, ...] = ()

    @property
    def history(self) -> Sessions:
        """Which session committed which sequence numbers."""
        return Sessions(
            first_sequences=self.first_sequences,
            sessions=tuple(int(each, 16) for each in self.sessions),
        )

    @property
    def session(self) -> int:
        """The session that committed `sequence`; 0 if none did."""
        return session_at(self.history, self.sequence)

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all objects that it needs, by name."""
        found = {block.name: block.size_bytes for block in self.blocks}
        return found | ({self.dead.name: self.dead.size_bytes} if self.dead.name else {})

    @property
    def sum(self) -> bytes:
        """The sum of the content hashes of the live rows, 16 bytes."""
        return bytes.fromhex(self.content_sum)


def session_names(sessions: Sessions) -> tuple[str, ...]:
    """Return sessions as a manifest has them."""
    return tuple(f"{each:016x}" for each in sessions.sessions)


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionBackup:
    """A collection: each of its shards at a separate moment.

    `token`, base64, names the newest write of each shard that the backup holds. `content_sum` and
    `live` are the totals of the shards.
    """

    config: CollectionConfig
    incarnation: str
    stage: Stage
    members: tuple[Member, ...]
    token: str
    content_sum: str
    live: int
    shards: tuple[ShardBackup, ...]

    @property
    def name(self) -> str:
        """The name of the collection."""
        return self.config.name


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A shard of a collection that a partial backup lacks, or lacks rows of, and why."""

    collection: str
    shard: int
    reason: str


class Scope(Enum):
    """Of what a backup was asked: of all collections of the cluster, or of chosen ones."""

    ALL = "all"
    CHOSEN = "chosen"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A backup. `previous` is the backup that it builds on.

    `number` orders the backups of a target: clocks do not. `begun` and `ended` are UTC, ISO 8601,
    by the clock of the machine that made it, and are only told.
    """

    number: int
    scope: Scope
    cluster: str
    shards_total: int
    slots_total: int
    version: str
    begun: str
    ended: str
    previous: str
    collections: tuple[CollectionBackup, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing was left out of what was asked for."""
        return not self.left_out

    @property
    def whole(self) -> bool:
        """Whether all collections of the cluster are in it, completely."""
        return self.complete and self.scope is Scope.ALL

    def has(self, names: Collection[str]) -> bool:
        """Whether all collections of these names are in it."""
        return {each.name for each in self.collections}.issuperset(names)

    @property
    def live(self) -> int:
        """The number of live rows that it holds: without the damaged ones."""
        damaged = sum(len(shard.damaged) for each in self.collections for shard in each.shards)
        return sum(each.live for each in self.collections) - damaged

    @property
    def size_bytes(self) -> int:
        """The bytes of all its blocks, whichever backup wrote them."""
        return sum(block.size_bytes for block in self.blocks())

    def blocks(self) -> Iterator[StoredBlock]:
        """Yield all blocks."""
        for collection in self.collections:
            for shard in collection.shards:
                yield from shard.blocks

    def objects(self) -> Iterator[str]:
        """Yield the names of all objects that it needs."""
        for collection in self.collections:
            for shard in collection.shards:
                yield from (block.name for block in shard.blocks)
                if shard.dead.name:
                    yield shard.dead.name

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all objects that it needs, by name."""
        found: dict[str, int] = {}
        for collection in self.collections:
            for shard in collection.shards:
                found |= shard.sizes()
        return found

    def encode(self) -> bytes:
        """Return the manifest as the object that is stored."""
        fields = {"format_version": FORMAT_VERSION, **json.loads(to_json(self))}
        whole = {_CRC32C: checksum(_canonical(fields)), **fields}
        return json.dumps(whole, separators=(",", ":")).encode() + b"\n"

    @classmethod
    def decode(cls, stored: bytes, source: str) -> Manifest:
        """Return the manifest of an object; raises BackupDamaged, FormatUnknown."""
        try:
            fields = parsed_object(stored, source)
            if fields.pop(_CRC32C, None) != checksum(_canonical(fields)):
                raise BackupDamaged(f"{source}: checksum mismatch")
            version = fields.pop("format_version", None)
            if version != FORMAT_VERSION:
                raise FormatUnknown(
                    f"{source}: format_version is {version!r}, this release reads {FORMAT_VERSION}"
                )
            return record_of(cls, fields, source)
        except InvalidRecord as error:
            raise BackupDamaged(str(error)) from error


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
