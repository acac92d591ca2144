"""Whether a backup is whole: every object, every row, and what its manifest states of them.

Offline: it needs the target and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from xxhash import xxh3_128_digest

from vectorshard.backup.failures import BackupDamaged
from vectorshard.backup.layout import BLOCKS, read_dead_rows
from vectorshard.backup.manifest import CollectionBackup, Manifest, ShardBackup
from vectorshard.backup.reading import Tally, gaps, live_rows
from vectorshard.backup.targets import Target
from vectorshard.shard.errors import CorruptData
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.storage.content_hash import sum_bytes, sum_from_bytes
from vectorshard.shard.texts import counted
from vectorshard.shard.types import IdArray


@dataclass(slots=True)
class Verified:
    """What a verification read, and what it found: one text for each contradiction."""

    objects: int = 0
    size_bytes: int = 0
    rows: int = 0
    findings: list[str] = field(default_factory=list)


def verify(
    target: Target, manifest: Manifest, advance: Callable[[int], None] = lambda rows: None
) -> Verified:
    """Read all blocks of a backup, and compare every row and every total.

    `advance` is called with the number of rows that have been read since it was called last.
    Raises TargetError if a read of the target fails.
    """
    found = Verified()
    for collection in manifest.collections:
        ids = _Ids(collection.name)
        for shard in collection.shards:
            _verify_shard(target, collection.name, shard, ids, found, advance)
        found.findings += ids.found_twice() + _totals(collection)
    return found


def verify_quickly(target: Target, manifest: Manifest) -> Verified:
    """Compare only which objects there are, and their sizes, with the manifest. Reads none."""
    found = Verified()
    expected = manifest.sizes()
    for collection in manifest.collections:
        for shard in collection.shards:
            found.findings += gaps(collection.name, shard)
        found.findings += _totals(collection)
    stored = {
        each.name: each.size_bytes
        for incarnation in sorted({each.incarnation for each in manifest.collections})
        for each in target.list(f"{BLOCKS}{incarnation}/")
    }
    for name, size_bytes in expected.items():
        found.objects += 1
        if name not in stored:
            found.findings.append(f"{target.where}/{name} is missing")
        elif stored[name] != size_bytes:
            found.findings.append(
                f"{target.where}/{name} has {stored[name]:,} bytes, and the manifest states "
                f"{size_bytes:,}"
            )
        else:
            found.size_bytes += size_bytes
    return found


def _verify_shard(
    target: Target,
    collection: str,
    shard: ShardBackup,
    ids: _Ids,
    found: Verified,
    advance: Callable[[int], None],
) -> None:
    found.findings += gaps(collection, shard)
    dead, whole = Tombstones(), True
    try:
        dead = Tombstones().with_dead(read_dead_rows(target, shard.dead))
        found.objects += bool(shard.dead.name)
    except CorruptData as error:
        found.findings.append(f"collection {collection!r}, shard {shard.shard}: {error}")
        whole = False
    tally = Tally(collection, shard)
    for block in shard.blocks:
        found.objects += 1
        found.size_bytes += block.size_bytes
        try:
            rows = live_rows(target, block, dead)
        except BackupDamaged as error:
            found.findings.append(str(error))
            whole = False
            continue
        ids.add(rows.ids)
        tally.add(rows)
        advance(len(rows))
    found.rows += tally.rows
    if whole:
        found.findings += tally.contradictions()


def _totals(collection: CollectionBackup) -> list[str]:
    """Return what a manifest states of a collection that its shards contradict."""
    live = sum(shard.live for shard in collection.shards)
    total = sum_bytes(sum(sum_from_bytes(shard.sum) for shard in collection.shards))
    found = []
    if live != collection.live:
        found.append(
            f"collection {collection.name!r}: the shards have {live:,} live rows, and the total is "
            f"{collection.live:,}"
        )
    if total.hex() != collection.content_sum:
        found.append(f"collection {collection.name!r}: the total of the content sums is wrong")
    return found


class _Ids:
    """The ids of the live rows of a collection: 8 bytes each, or 16 for a string."""

    def __init__(self, collection: str) -> None:
        self._collection = collection
        self._seen: list[np.ndarray[tuple[int], np.dtype[np.generic]]] = []

    def add(self, ids: IdArray) -> None:
        """Note the ids of some rows."""
        if ids.dtype == np.object_:
            digests = b"".join([xxh3_128_digest(id_.encode()) for id_ in ids.tolist()])
            self._seen.append(np.frombuffer(digests, dtype="S16"))
        else:
            self._seen.append(ids)

    def found_twice(self) -> list[str]:
        """Return one text if an id has several live rows."""
        if not self._seen:
            return []
        every = np.sort(np.concatenate(self._seen))
        twice = every[1:][every[1:] == every[:-1]]
        if not len(twice):
            return []
        number = len(np.unique(twice))
        some = f", such as {int(twice[0])}" if every.dtype == np.int64 else ""
        return [
            f"collection {self._collection!r}: several live rows of {counted(number, 'id')}{some}"
        ]
