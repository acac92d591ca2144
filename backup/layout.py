"""Where the objects of a target lie, and how a reader finds and checks them.

`backups/` holds the manifests, `numbers/` what keeps their numbers apart, `blocks/` the rows,
`running/` a lease of each backup that is being made. Which backup to use is in `choice`. Writing
must not enter here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from vectorshard.backup.failures import (
    BackupDamaged,
    BackupNotFound,
    FormatUnknown,
    ObjectNotFound,
)
from vectorshard.backup.manifest import DeadRows, Manifest, StoredBlock
from vectorshard.backup.targets import Target, open_target
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.row_block import BlockDamaged, RowBlock
from vectorshard.shard.types import Int64Array

BACKUPS: Final = "backups/"
NUMBERS: Final = "numbers/"
BLOCKS: Final = "blocks/"
RUNNING: Final = "running/"
MANIFEST: Final = ".json"
_NAME: Final = re.compile(r"(?:(\d{8,})-)?\d{8}T\d{6}Z-[0-9a-f]{8}")
"""Format 1 had no number. Its names are known so that no prune takes their blocks for garbage."""


def backup_name(number: int, begun: datetime, chance: str) -> str:
    """Return the name of a backup. `chance` are 8 random hex digits."""
    return f"{number:08}-{begun.astimezone(UTC):%Y%m%dT%H%M%SZ}-{chance}"


def number_of(name: str) -> int:
    """Return the number in the name of a backup, which orders the backups of a target."""
    found = _NAME.fullmatch(name)
    return int(found[1] or 0) if found else 0


def number_object(number: int) -> str:
    """Return the name of the object that is there once a backup has this number."""
    return f"{NUMBERS}{number:08}"


def newest_number(target: Target) -> int:
    """Return the greatest number that a backup of a target has or has had; 0 if none."""
    taken = (each.name.removeprefix(NUMBERS) for each in target.list(NUMBERS))
    numbers = [int(each) for each in taken if each.isdecimal()]
    return max([*numbers, *map(number_of, backup_names(target))], default=0)


def manifest_object(name: str) -> str:
    """Return the name of the object that is a backup's manifest."""
    return f"{BACKUPS}{name}{MANIFEST}"


def folder_of(incarnation: str, shard: int, directory: str, life: int) -> str:
    """Return the folder of a shard's blocks of a collection."""
    return f"{BLOCKS}{incarnation}/{shard}-{directory}-{life}/"


def backup_names(target: Target) -> list[str]:
    """Return the names of the backups in a target, the newest first."""
    names = [name for name in _manifest_names(target) if _NAME.fullmatch(name)]
    return sorted(names, key=lambda name: (number_of(name), name), reverse=True)


def unknown_names(target: Target) -> list[str]:
    """Return what lies where the manifests are, but is not named as they are."""
    return [name for name in _manifest_names(target) if not _NAME.fullmatch(name)]


def _manifest_names(target: Target) -> Sequence[str]:
    found = (each.name.removeprefix(BACKUPS) for each in target.list(BACKUPS))
    return [name.removesuffix(MANIFEST) for name in found if name.endswith(MANIFEST)]


def read_manifest(target: Target, name: str) -> Manifest:
    """Return the manifest of a backup; raises BackupNotFound, BackupDamaged, FormatUnknown."""
    try:
        stored = target.get(manifest_object(name))
    except ObjectNotFound:
        raise BackupNotFound(f"{target.where} has no backup {name}") from None
    source = f"{target.where}/{manifest_object(name)}"
    manifest = Manifest.decode(stored, source)
    if manifest.number != number_of(name):
        raise BackupDamaged(f"{source} is the manifest of backup number {manifest.number}")
    return manifest


def manifests(
    target: Target,
) -> Iterator[tuple[str, Manifest | BackupDamaged | FormatUnknown]]:
    """Yield the backups of a target, the newest first; the error of one that is unreadable.

    One that is pruned meanwhile is left out.
    """
    for name in backup_names(target):
        try:
            yield name, read_manifest(target, name)
        except BackupNotFound:
            continue
        except (BackupDamaged, FormatUnknown) as error:
            yield name, error


def split_name(where: str) -> tuple[Target, str]:
    """Return the target and the name of the backup of TARGET/NAME; no name for a TARGET."""
    parent, _, last = where.rstrip("/").rpartition("/")
    last = last.removesuffix(MANIFEST)
    if _NAME.fullmatch(last):
        return open_target((parent or ".").removesuffix("/" + BACKUPS.rstrip("/"))), last
    return open_target(where), ""


def read_block(target: Target, block: StoredBlock) -> RowBlock:
    """Return the rows of a block; raises BackupDamaged. Their hashes are not compared yet."""
    stored = _read(target, block.name)
    if len(stored) != block.size_bytes or checksum(stored) != block.crc32c:
        raise BackupDamaged(f"{target.where}/{block.name}: checksum mismatch")
    try:
        rows = RowBlock.decode(stored)
    except BlockDamaged as error:
        raise BackupDamaged(f"{target.where}/{block.name}: {error}") from error
    inside = not len(rows) or (
        block.first_row <= int(rows.rows[0]) and int(rows.rows[-1]) < block.next_row
    )
    if len(rows) != block.rows or not inside:
        raise BackupDamaged(f"{target.where}/{block.name} holds other rows than its manifest says")
    return rows


def read_dead_rows(target: Target, dead: DeadRows) -> Int64Array:
    """Return the dead rows of a shard, ascending; raises BackupDamaged."""
    return dead.rows(_read(target, dead.name) if dead.name else None)


def _read(target: Target, name: str) -> bytes:
    try:
        return target.get(name)
    except ObjectNotFound:
        raise BackupDamaged(f"{target.where}/{name} is missing") from None
