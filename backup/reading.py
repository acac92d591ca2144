"""The live rows of a backup: read block by block, and compared with what the manifest states.

Writing must not enter here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Final

import numpy as np

from vectorshard.backup.failures import BackupDamaged
from vectorshard.backup.layout import read_block, read_dead_rows
from vectorshard.backup.manifest import CollectionBackup, ShardBackup, StoredBlock
from vectorshard.backup.targets import Target
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.storage.content_hash import sum_bytes, sum_of
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.texts import counted
from vectorshard.shard.types import BoolArray, Int64Array

READ_AHEAD: Final = 2
"""Blocks that are read while another one is used. Larger: more memory, faster from far away."""


def live_rows(target: Target, block: StoredBlock, dead: Tombstones) -> RowBlock:
    """Return the live rows of a block, each of which matches its content hash.

    Raises BackupDamaged, which names the rows that do not.
    """
    rows = read_block(target, block)
    if len(rows) and (np.diff(rows.rows) <= 0).any():
        raise BackupDamaged(f"{target.where}/{block.name}: its rows are not in order")
    rows = chosen(rows, ~dead.are_dead(rows.rows))
    wrong = np.flatnonzero(rows.mismatches())
    if len(wrong):
        ids = ", ".join(repr(id_) for id_ in rows.ids[wrong[:10]].tolist())
        raise BackupDamaged(
            f"{target.where}/{block.name}: content hashes do not match for "
            f"{counted(len(wrong), 'row')}: ids {ids}"
        )
    return rows


def chosen(rows: RowBlock, which: BoolArray) -> RowBlock:
    """Return those rows of a block that `which`, bool (rows,), selects."""
    if which.all():
        return rows
    places = np.flatnonzero(which)
    return at_places(rows, places)


def at_places(rows: RowBlock, places: Int64Array) -> RowBlock:
    """Return the rows of a block at some places, int64."""
    metadata = rows.metadata
    return replace(
        rows,
        rows=rows.rows[places],
        ids=rows.ids[places],
        content_hashes=rows.content_hashes[places],
        vectors=rows.vectors[places],
        metadata=[metadata[place] for place in places.tolist()],
    )


def dead_of(target: Target, shard: ShardBackup) -> Tombstones:
    """Return which rows of a shard's blocks are dead."""
    return Tombstones().with_dead(read_dead_rows(target, shard.dead))


class Tally:
    """Counts the live rows of a shard that were read, and adds up their content hashes."""

    def __init__(self, collection: str, shard: ShardBackup) -> None:
        self._where = f"collection {collection!r}, shard {shard.shard}"
        self._shard = shard
        self.rows = 0
        self.sum = 0

    def add(self, rows: RowBlock) -> None:
        """Count the live rows of a block."""
        self.rows += len(rows)
        self.sum += sum_of(rows.content_hashes)

    def contradictions(self) -> list[str]:
        """Return what differs from the manifest, after all blocks."""
        shard, found = self._shard, []
        expected = shard.live - len(shard.damaged)
        if self.rows != expected:
            found.append(
                f"{self._where}: the blocks hold {self.rows:,} live rows, and the manifest states "
                f"{expected:,}"
            )
        elif not shard.damaged and sum_bytes(self.sum) != shard.sum:
            found.append(
                f"{self._where}: the content sum of the blocks is {sum_bytes(self.sum).hex()}, and "
                f"the manifest states {shard.content_sum}"
            )
        return found


def gaps(collection: str, shard: ShardBackup) -> list[str]:
    """Return where the blocks of a shard overlap, or end beyond its rows."""
    where, last, found = f"collection {collection!r}, shard {shard.shard}", 0, []
    for block in sorted(shard.blocks, key=lambda block: block.first_row):
        if block.first_row < last:
            found.append(f"{where}: {block.name} holds rows below {last:,} again")
        last = max(last, block.next_row)
    if last > shard.rows:
        found.append(f"{where}: a block ends at row {last:,} of {shard.rows:,}")
    return found


def rows_of(target: Target, collection: CollectionBackup) -> Iterator[RowBlock]:
    """Yield all live rows of a collection, verified; its blocks are read ahead.

    Raises BackupDamaged for what is missing or damaged, and at the end of a shard if its blocks
    hold other rows than the manifest states.
    """
    with ThreadPoolExecutor(1, "read-ahead") as threads:
        for shard in collection.shards:
            tally = Tally(collection.name, shard)
            _refuse(gaps(collection.name, shard))
            dead = dead_of(target, shard)
            ahead: deque[Future[RowBlock]] = deque()
            waiting = deque(shard.blocks)
            while waiting or ahead:
                while waiting and len(ahead) <= READ_AHEAD:
                    ahead.append(threads.submit(live_rows, target, waiting.popleft(), dead))
                rows = ahead.popleft().result()
                tally.add(rows)
                yield rows
            _refuse(tally.contradictions())


def _refuse(contradictions: Sequence[str]) -> None:
    if contradictions:
        raise BackupDamaged("; ".join(contradictions))
