"""What a shard remembers of other shards: one file, which is derived and may be lost.

docs/formats.md describes the file. What follows from it must not enter here.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog

from vectorshard.shard.membership import SeenDirectory, Statement
from vectorshard.shard.storage.checked_json import read_checked, write_checked
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import InvalidRecord, record_of
from vectorshard.shard.witnesses import Remembered

WITNESS_FILE: Final = "witness.json"
FORMAT_VERSION: Final = 1

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStatement:
    """A statement with its sum as hexadecimal digits."""

    shard: int
    incarnation: str
    life: int
    sequence: int
    session: int
    accepted: int
    live: int
    sum: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredMemory:
    """What is remembered, as it is stored."""

    statements: tuple[StoredStatement, ...]
    seen: tuple[SeenDirectory, ...]


def read_witness(directory: Path) -> Remembered:
    """Return what a data directory's file remembers; nothing if it is absent or damaged."""
    path = directory / WITNESS_FILE
    try:
        fields = read_checked(path, FORMAT_VERSION)
        if fields is None:
            return Remembered()
        stored = record_of(StoredMemory, fields, str(path))
        statements = tuple(
            Statement(**{**asdict(each), "sum": bytes.fromhex(each.sum)})
            for each in stored.statements
        )
    except (InvalidRecord, ValueError, OSError) as error:
        _log.error("witness file ignored", reason=str(error))
        return Remembered()
    return Remembered(statements=statements, seen=stored.seen)


def write_witness(disk: Disk, directory: Path, remembered: Remembered) -> None:
    """Replace a data directory's file, durably."""
    fields = {
        "format_version": FORMAT_VERSION,
        "statements": [{**asdict(each), "sum": each.sum.hex()} for each in remembered.statements],
        "seen": [asdict(each) for each in remembered.seen],
    }
    write_checked(disk, directory / WITNESS_FILE, fields)
