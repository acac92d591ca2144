"""The open copies of a shard's collections: pinned snapshots, each with a lease.

A pinned snapshot keeps its row file mapped and its ids alive, so compactions put off the sweep of
the rows that it may still need (shard.engine.compaction). A copy whose reader is gone ends with its
lease. Belongs to the event loop; only `opened` and `rows_of` run in a thread.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.copies import CopiedRows
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.errors import CopyEnded, Overloaded
from vectorshard.shard.rows.row_bitmap import encode_rows
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.memory_map import require_readable
from vectorshard.shard.storage.row_block import RowBlock
from vectorshard.shard.types import Int64Array, Ledger

LEASE_S: Final = 60.0
"""How long a copy stays open after the last call that came further than all before. Longer:
abandoned copies keep more disk space."""

COPY_S_MAX: Final = 6 * 3_600.0
"""How long a copy stays open in all. At 50 MB/s that is a terabyte."""

COPIES_MAX: Final = 4
"""Open copies of one shard. Each may keep the row file that a compaction replaces."""

BLOCK_BYTES_MAX: Final = 8 * 1024 * 1024
"""The most bytes of one block, whatever the caller asks for. A single row may be larger."""

PIECE_ROWS: Final = 256
"""Rows read at a time: with the largest metadata they are 16 MB."""

_ROWS_LOOKED_AT: Final = 65_536


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a copy holds: a snapshot of a collection, and the ledger at its moment."""

    collection: Collection
    snapshot: Snapshot
    ledger: Ledger


class Copies:
    """The copies that are open, by name. `clock` is in seconds; `new_name` returns random bytes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        new_name: Callable[[], bytes] = lambda: secrets.token_bytes(16),
    ) -> None:
        self._clock = clock
        self._new_name = new_name
        self._open: dict[bytes, Pinned] = {}
        self._until: dict[bytes, float] = {}
        self._last: dict[bytes, tuple[float, int]] = {}  # the end of it, the next row so far
        self._in_use: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self._open)

    def require_room(self) -> None:
        """Raise Overloaded if as many copies as allowed are open."""
        self.expire()
        if len(self._open) >= COPIES_MAX:
            raise Overloaded(
                f"{len(self._open)} copies of this shard are open, which is the limit; each ends "
                f"{LEASE_S:.0f} s after its reader stops going on"
            )

    def put(self, pinned: Pinned) -> bytes:
        """Keep what is pinned; return the name of the copy."""
        self.require_room()
        name = self._new_name()
        self._open[name] = pinned
        self._until[name] = self._clock() + LEASE_S
        self._last[name] = self._clock() + COPY_S_MAX, 0
        return name

    def use(self, name: bytes, collection: Collection) -> Pinned:
        """Return what a copy of a collection has pinned, until `used`; CopyEnded if it is gone."""
        self.expire()
        pinned = self._open.get(name)
        if pinned is None or pinned.collection is not collection:
            raise CopyEnded(
                f"no such copy of collection {collection.entry.config.name!r} is open: it was "
                f"closed, no further row was read from it for {LEASE_S:.0f} s, or the shard was "
                "started again"
            )
        self._in_use[name] = self._in_use.get(name, 0) + 1
        return pinned

    def used(self, name: bytes, next_row: int = 0) -> None:
        """Begin the lease again after a read, if it came further than all before.

        Reading the same rows again and again keeps no copy from the readers of others.
        """
        self._in_use[name] -= 1
        if not self._in_use[name]:
            del self._in_use[name]
        if name in self._until:
            end, furthest = self._last[name]
            if next_row > furthest:
                self._until[name] = min(self._clock() + LEASE_S, end)
                self._last[name] = end, next_row

    def close(self, name: bytes) -> None:
        """Let go of a copy; one that is unknown changes nothing."""
        self._open.pop(name, None)
        self._until.pop(name, None)
        self._last.pop(name, None)

    def expire(self) -> None:
        """Close the copies whose lease is over, or whose collection is closed."""
        now = self._clock()
        for name, pinned in list(self._open.items()):
            over = now > self._until[name] and name not in self._in_use
            if over or pinned.collection.closed:
                self.close(name)

    def close_all(self) -> None:
        """Close all of them; the shard stops."""
        self._open.clear()
        self._until.clear()
        self._last.clear()


def pinned_now(collection: Collection) -> Pinned:
    """Return a collection's present snapshot and ledger, in a thread."""
    with collection.state.index_at_rest() as snapshot:
        return Pinned(collection, snapshot, snapshot.ledger())


def dead_rows(snapshot: Snapshot, below: int) -> bytes:
    """Return the dead rows below a row number as a serialized bitmap, in a thread."""
    bits = snapshot.tombstones.bits
    dead = np.flatnonzero(np.unpackbits(bits[: (below + 7) // 8], bitorder="little"))
    return encode_rows(dead[dead < min(below, snapshot.rows)])


def copied_rows(pinned: Pinned, first_row: int, bytes_max: int) -> CopiedRows:
    """Return a block of about `bytes_max` bytes of live rows from `first_row` on, in a thread.

    Each row is verified by its content hash; those that do not match are noted and left out.
    """
    snapshot, state = pinned.snapshot, pinned.collection.state
    fixed_bytes = 4 * snapshot.vectors.shape[1] + 40
    bytes_max = min(max(bytes_max, fixed_bytes), BLOCK_BYTES_MAX)
    rows = _live_rows(snapshot, first_row, bytes_max // fixed_bytes + 1)
    metadata: list[bytes] = []
    room = bytes_max
    for first in range(0, len(rows), PIECE_ROWS):
        for struct in state.row_store.metadata(rows[first : first + PIECE_ROWS]):
            room -= fixed_bytes + len(struct)
            if room < 0 and metadata:
                break
            metadata.append(struct)
        if room < 0:
            break
    next_row = int(rows[len(metadata)]) if len(metadata) < len(rows) else snapshot.rows
    rows = rows[: len(metadata)]
    if not len(rows):
        return CopiedRows(block=b"", next_row=snapshot.rows)
    block, damaged = _verified(_block_of(pinned, rows, metadata))
    if len(damaged):
        state.found_damaged(snapshot, damaged, "copy")
    return CopiedRows(
        block=block.encode() if len(block) else b"",
        next_row=next_row,
        damaged=tuple(damaged.tolist()),
    )


def _live_rows(snapshot: Snapshot, first: int, rows_max: int) -> Int64Array:
    """Return the next live rows, at most `rows_max`, without looking at all that follow."""
    found: list[Int64Array] = []
    wanted = rows_max
    while wanted > 0 and first < snapshot.rows:
        last = min(first + _ROWS_LOOKED_AT, snapshot.rows)
        rows = snapshot.tombstones.live_rows(first, last, wanted)
        found.append(rows)
        wanted -= len(rows)
        first = last
    return np.concatenate(found) if found else np.zeros(0, dtype=np.int64)


def _block_of(pinned: Pinned, rows: Int64Array, metadata: Sequence[bytes]) -> RowBlock:
    snapshot = pinned.snapshot
    positions = snapshot.positions.of(rows)
    require_readable(snapshot.vectors[int(positions[0]) : int(positions[-1]) + 1])
    return RowBlock(
        id_type=pinned.collection.entry.config.id_type,
        rows=rows,
        ids=snapshot.ids.take(positions),
        content_hashes=snapshot.content_hashes[positions],
        vectors=snapshot.vectors.take(positions, axis=0),
        metadata=metadata,
    )


def _verified(block: RowBlock) -> tuple[RowBlock, Int64Array]:
    """Return the rows that match their content hashes, and the numbers of those that do not."""
    wrong = block.mismatches()
    if not wrong.any():
        return block, block.rows[:0]
    kept = np.flatnonzero(~wrong)
    sound = RowBlock(
        id_type=block.id_type,
        rows=block.rows[kept],
        ids=block.ids[kept],
        content_hashes=block.content_hashes[kept],
        vectors=block.vectors[kept],
        metadata=[block.metadata[row] for row in kept.tolist()],
    )
    return sound, block.rows[wrong]
