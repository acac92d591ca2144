"""Damaged rows: live rows whose stored bytes do not match their content hashes.

The snapshot holds them; `CollectionState.note_damaged` adds to them. They are hidden from searches,
and stay in the ledger until an upsert or a delete of their ids heals them. Rows are verified as a
whole: one hash covers the id, the vector and the metadata. Where vectors alone are read in bulk,
`vector_checks` finds the ranges in which a row may be damaged. What is published must not enter
here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.errors import RowFileCorrupt, RowsDamaged
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import content_hashes
from vectorshard.shard.storage.memory_map import require_readable
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.texts import counted
from vectorshard.shard.types import BoolArray, Float32Array, IdArray, Int64Array

ROWS_AT_ONCE: Final = 5_000
"""Rows verified at once: bounds the memory of their copies."""

NEIGHBOURS: Final = 32
"""Rows before and after a damaged one in the file that are verified too."""

LOOKED_AT_MAX: Final = 50_000
"""Rows that one finding verifies in addition, or a few more: a second or less."""

IDS_NAMED: Final = 10
"""Damaged ids that an error or a problem names."""

IDS_DESCRIBED: Final = 100
"""Damaged ids that a description names, and rows of one finding that are logged one by one."""

WRONG_FILE_SHARE: Final = 0.5
"""Of the newest rows: where so many of them are damaged, or several and all from one row on, the
row file is not what it should be, and to serve it would be to write to it. Other damaged rows are
noted instead."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ReadRows:
    """The contents of live rows, and which of them do not match their content hashes.

    `vectors` float32 (rows, dim), `metadata` one Struct for each, `wrong` bool (rows,).
    """

    vectors: Float32Array
    metadata: Sequence[bytes]
    wrong: BoolArray

    @classmethod
    def of(
        cls, row_store: RowStore, snapshot: Snapshot, rows: Int64Array, ids: IdArray
    ) -> ReadRows:
        """Read and verify rows, in any order; `ids` are theirs."""
        at = snapshot.positions.of(rows)
        vectors, metadata = snapshot.vectors.take(at, axis=0), row_store.metadata(rows)
        found = content_hashes(ids, metadata, vectors)
        differ = found != snapshot.content_hashes.take(at, axis=0)
        return cls(vectors, metadata, differ[:, 0] | differ[:, 1])


def mismatches(row_store: RowStore, snapshot: Snapshot, rows: Int64Array) -> Int64Array:
    """Return those of `rows`, live and in any order, that do not match their content hashes."""
    pieces = [rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE)]
    found = [piece[_wrong(row_store, snapshot, piece)] for piece in pieces]
    return np.concatenate([np.zeros(0, np.int64), *found])


def _wrong(row_store: RowStore, snapshot: Snapshot, rows: Int64Array) -> BoolArray:
    return ReadRows.of(row_store, snapshot, rows, snapshot.ids_of(rows)).wrong


def suspects(
    row_store: RowStore, snapshot: Snapshot, first: int, last: int
) -> tuple[Int64Array, int]:
    """Return the visible rows of [first, last) whose vectors may be damaged, perhaps some more.

    They lie in ranges that do not match their checksums. The second value is the end of the last
    range that was compared, at least `last`. Raises OSError if the disk fails a read.
    """
    found, until = [np.zeros(0, np.int64)], first
    for each in row_store.vector_ranges(first, last):
        if each.first > until:  # none, unless a compaction has ended meanwhile
            found.append(snapshot.hidden.live_rows(until, each.first))
        begin, end = snapshot.positions.span(each.first, each.last)
        vectors = snapshot.vectors[begin:end]
        require_readable(vectors)
        if checksum(vectors.view(np.uint8)) != each.crc32c:
            found.append(snapshot.hidden.live_rows(each.first, each.last))
        until = max(until, each.last)
    if until < last:
        found.append(snapshot.hidden.live_rows(until, last))
    return np.concatenate(found), max(until, last)


def around(row_store: RowStore, snapshot: Snapshot, rows: Int64Array) -> Int64Array:
    """Return damaged rows, and those damaged around them in the file, ascending.

    What damages one row often damages its whole page or block, and each search would meet a few.
    Rows near every damaged one are verified until none is found, or LOOKED_AT_MAX were looked at.
    """
    found = np.unique(rows)
    new, looked_at = snapshot.positions.of(found), np.zeros(len(snapshot.vectors), np.bool_)
    while len(new) and np.count_nonzero(looked_at) < LOOKED_AT_MAX:
        near = np.unique(new[:, None] + np.arange(-NEIGHBOURS, NEIGHBOURS + 1))
        near = near[(near >= 0) & (near < len(looked_at))]
        near = near[~looked_at[near]][:LOOKED_AT_MAX]
        looked_at[near] = True
        live = snapshot.positions.rows_at(near)
        live = live[~snapshot.hidden.are_dead(live)]
        if not len(live):
            break
        at = snapshot.positions.of(live)
        require_readable(snapshot.vectors[int(at[0]) : int(at[-1]) + 1])
        wrong = np.setdiff1d(mismatches(row_store, snapshot, live), found)
        found, new = np.union1d(found, wrong), snapshot.positions.of(wrong)
    return found


def damaged_at_start(
    row_store: RowStore, snapshot: Snapshot, newest: Int64Array, *, upgrades: bool = False
) -> tuple[Int64Array, Int64Array]:
    """Return the damaged rows of those that a start verifies, and those that were damaged once and
    are sound, both ascending.

    These are the `newest` live rows, whose vectors are known to be readable; the rows that were
    damaged before, which may have been repaired; and those that an upgrade found damaged, perhaps
    this one, if the start `upgrades`: their hash is 0, which matches nothing.

    Raises RowFileCorrupt if they look like those of another file: see WRONG_FILE_SHARE.
    """
    recorded = row_store.damaged[row_store.damaged < snapshot.rows]
    unhashed = snapshot.positions.rows_at(np.flatnonzero(~snapshot.content_hashes.any(axis=1)))
    before = np.union1d(recorded, unhashed)
    before = before[~snapshot.tombstones.are_dead(before)]
    if len(before):
        begin, end = snapshot.positions.span(int(before[0]), int(before[-1]) + 1)
        require_readable(snapshot.vectors[begin:end])
    known = recorded if upgrades else before
    new = mismatches(row_store, snapshot, np.setdiff1d(newest, known))
    vectors = new
    if len(new) > 1 and not upgrades:  # where the vectors are sound, the metadata is gone instead
        may_be, _ = suspects(row_store, snapshot, int(new[0]), int(new[-1]) + 1)
        vectors = np.intersect1d(new, may_be)
    if len(vectors) > 1 and (
        len(vectors) >= WRONG_FILE_SHARE * len(newest)
        or np.array_equal(vectors, newest[-len(vectors) :])
    ):
        raise RowFileCorrupt(
            f"collection {row_store.entry.config.name!r}: row {int(vectors[0])} does not match its "
            f"content hash, nor do {counted(len(vectors) - 1, 'other')} of the newest "
            f"{len(newest):,} rows: the row file may be that of another collection, or of another "
            "day"
        )
    old = mismatches(row_store, snapshot, before)
    return np.union1d(old, new), np.setdiff1d(before, old)


def log_damaged(collection: str, shard: int, ids: IdArray, rows: Int64Array, by: str) -> None:
    """Log rows that were found damaged, by their ids. `by` says what found them."""
    named = zip(rows[:IDS_DESCRIBED].tolist(), ids[:IDS_DESCRIBED].tolist(), strict=True)
    for row, id_ in named:
        _log.error("row damaged", collection=collection, shard=shard, id=id_, row=row, by=by)
    if len(rows) > IDS_DESCRIBED:
        _log.error("rows damaged", collection=collection, shard=shard, rows=len(rows), by=by)


def error_for(collection: str, snapshot: Snapshot, rows: Int64Array) -> RowsDamaged:
    """Return the error of a call that reads damaged rows, at least one."""
    return RowsDamaged(
        f"collection {collection!r}: the stored bytes of {_named(snapshot, np.unique(rows))} do "
        "not match their content hashes; upsert or delete these ids to heal them"
    )


def problem_text(collection: str, snapshot: Snapshot) -> str:
    """Return what an operator must know of a snapshot's damaged rows, of which there are some."""
    return (
        f"collection {collection!r}: the stored bytes of {_named(snapshot, snapshot.damaged)} do "
        "not match their content hashes. Searches leave these rows out; all other rows are served. "
        "Upsert or delete these ids to heal them, and check the disk."
    )


def ids_described(snapshot: Snapshot) -> tuple[int, ...] | tuple[str, ...]:
    """Return the ids that a description names."""
    return tuple(snapshot.ids_of(snapshot.damaged[:IDS_DESCRIBED]).tolist())


def _named(snapshot: Snapshot, rows: Int64Array) -> str:
    named = ", ".join(map(repr, snapshot.ids_of(rows[:IDS_NAMED]).tolist()))
    others = f" and {counted(len(rows) - IDS_NAMED, 'other')}" if len(rows) > IDS_NAMED else ""
    return f"{'ids' if len(rows) > 1 else 'id'} {named}{others}"
