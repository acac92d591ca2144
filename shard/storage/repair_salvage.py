"""What can be made of the sound records of a damaged store: its live rows, and what is lost.

Records that are missing leave gaps: numbers of commits, and numbers of rows. The rows in a gap are
lost, unless a later commit says that they died. Rows that a lost commit replaced or deleted are
back, except where a newer row of the same id is there. The ledger, if it was not damaged, proves
that nothing is missing, or says how much. Without it and without a log mark, nothing tells whether
the newest commits are gone. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.errors import CorruptData, RowStoreCorrupt
from vectorshard.shard.index.exact import stored_squared_norms
from vectorshard.shard.membership import Membership, Sessions
from vectorshard.shard.rows.id_column import decode_ids
from vectorshard.shard.storage.content_hash import content_hashes, from_bytes
from vectorshard.shard.storage.json_records import InvalidRecord, from_json
from vectorshard.shard.storage.repair_records import Records
from vectorshard.shard.storage.repair_rows import LiveRows, StoredVectors
from vectorshard.shard.storage.row_store_format import (
    LastCompaction,
    Record,
    StoredLedger,
    membership_of,
    sessions_from_json,
)
from vectorshard.shard.types import CollectionEntry, IdArray, IdType, Int64Array

_COMPARED_ROWS: Final = 3
"""Rows of a piece that are compared to find where it is in the row file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvage:
    """What is left of a store, and what is missing.

    `replaced` and `deleted` are numbers of rows; `rows_known` is how many were ever committed, as
    far as is known; `commits_lost` are the numbers of commits, `first_lost` the smallest of them,
    or None; `rows_back` is None if it is unknown. `lost_before` is what the ledger had as lost.
    `end_is_known` is false if commits after `sequence` may be gone, and nothing says how many;
    `has_more`: the ledger says that some are gone, whose numbers are unknown without a log mark.
    """

    entry: CollectionEntry
    membership: Membership
    sessions: Sessions
    properties: dict[str, str]
    generation: int
    sequence: int
    rows: LiveRows
    replaced: int
    deleted: int
    superseded: int
    rows_known: int
    commits_lost: tuple[int, ...]
    kept_lost: int
    rows_back: int | None
    lost_before: int
    end_is_known: bool
    has_more: bool
    whole: bool

    @property
    def rows_lost(self) -> int:
        """Rows of which nothing is left, and of which no commit says that they died."""
        return self.rows_known - len(self.rows) - self.replaced - self.deleted

    @property
    def first_lost(self) -> int | None:
        """The first commit after which other shards must not take this one for whole."""
        if self.kept_lost:
            return 1
        return min(self.commits_lost, default=None if self.whole else self.sequence + 1)


def last_compaction_of(records: Records, where: str) -> LastCompaction:
    """Return the last compaction; RowStoreCorrupt if it is unknown which one that was."""
    stored = records.properties.get("rebuilt")
    if stored is not None:
        try:
            return from_json(LastCompaction, stored, where)
        except InvalidRecord as error:
            raise RowStoreCorrupt(str(error)) from error
    if records.properties.get("row_file", "rows-0.f32") != "rows-0.f32" or (
        "row_file" not in records.properties and records.kept
    ):
        raise RowStoreCorrupt(f"{where}: the record of its last compaction is unreadable")
    return LastCompaction()


def salvaged(
    records: Records,
    vectors: StoredVectors,
    last: LastCompaction,
    mark: int | None,
    where: str,
    *,
    mark_is_sound: bool,
) -> Salvage:
    """Return what can be made of sound records.

    `vectors` are those of the row file, `mark` the number of the last commit by the log mark, None
    if that is unknown; unless it is sound, there may be later ones. RowStoreCorrupt if the records
    do not say what collection they are of.
    """
    entry = records.entry(where)
    commits = _in_a_row(records.commits, last)
    held, kept_lost = _held(records, commits, last, vectors, entry.config.id_type)
    replaced = _deaths(commits.values(), 4)
    deleted = np.setdiff1d(_deaths(commits.values(), 5), replaced)
    live = held.take(~np.isin(held.numbers, np.concatenate([replaced, deleted])))
    newest = _newest(live.ids)
    superseded = len(live) - len(newest)
    live = live.take(newest)
    sequence = max([last.sequence, *commits])
    numbers = range(last.sequence + 1, max(sequence, mark or 0) + 1)
    lost = tuple(sorted({*numbers} - commits.keys()))
    rows_known = _rows_known(commits, last, held)
    ledger = _believed(records.ledger, rows_known, vectors.rows + last.rebuilt_until - last.kept)
    replaced_all = last.replaced + len(replaced) + superseded
    deleted_all = last.deleted + len(deleted)
    deaths = replaced_all + deleted_all
    proof = _proof(records.ledger, (rows_known, replaced_all, deleted_all), live.sum)
    is_proven = ledger is not None and proof == (True, True) and rows_known == len(live) + deaths
    has_more = not mark_is_sound and not any(proof) and _has_more(ledger, rows_known, deaths)
    end_is_known = mark_is_sound or has_more or any(proof)
    if ledger is not None and (lost or has_more):
        rows_known = ledger.accepted - ledger.lost
    may_be_back = (lost or has_more or not end_is_known) and not is_proven
    nothing_missing = not (lost or kept_lost or superseded or has_more) and end_is_known
    return Salvage(
        entry=entry,
        membership=_membership(records, where),
        sessions=_sessions(records),
        properties=records.properties,
        generation=last.generation,
        sequence=sequence,
        rows=live,
        replaced=replaced_all,
        deleted=deleted_all,
        superseded=superseded,
        rows_known=rows_known,
        commits_lost=() if is_proven else lost,
        kept_lost=0 if is_proven else kept_lost,
        rows_back=_rows_back(ledger, deaths) if may_be_back else 0,
        lost_before=0 if ledger is None else ledger.lost,
        end_is_known=end_is_known,
        has_more=has_more,
        whole=is_proven or nothing_missing,
    )


def _in_a_row(commits: dict[int, Record], last: LastCompaction) -> dict[int, Record]:
    """Return the commits in use, in their order, without those whose rows contradict others."""
    used: dict[int, Record] = {}
    end = last.rebuilt_until
    for sequence in sorted(each for each in commits if each > last.sequence):
        record = commits[sequence]
        if record[1] >= end:
            used[sequence] = record
            end = record[1] + record[2]
    return used


def _rows_known(commits: dict[int, Record], last: LastCompaction, held: LiveRows) -> int:
    """Return how many rows were ever committed, as far as the records tell."""
    ends: list[int] = [record[1] + record[2] for record in commits.values()]
    return max([last.rebuilt_until, *ends, int(held.numbers.max(initial=-1)) + 1])


def _deaths(commits: Iterable[Record], column: int) -> Int64Array:
    """Return the rows that died in commits, ascending, by one of their columns."""
    found = [np.frombuffer(record[column], dtype="<i8") for record in commits]
    return np.unique(np.concatenate([np.zeros(0, np.int64), *found]))


def _newest(ids: IdArray) -> Int64Array:
    """Return the places of the last of each id, ascending."""
    _, places = np.unique(ids[::-1], return_index=True)
    return np.sort(len(ids) - 1 - places)


def _believed(ledger: StoredLedger | None, rows_known: int, rows_most: int) -> StoredLedger | None:
    """Return the ledger, which has no checksum, if it may be right; else None."""
    if ledger is None or min(ledger.lost, ledger.replaced, ledger.deleted) < 0:
        return None
    rows = ledger.accepted - ledger.lost
    may_be = rows_known <= rows <= rows_most and ledger.replaced + ledger.deleted <= rows
    return ledger if may_be else None


def _proof(
    ledger: StoredLedger | None, counted: tuple[int, int, int], total: int
) -> tuple[bool, bool]:
    """Return whether a ledger's numbers, and its sum, are those of the rows that are there.

    It has no checksum. Damage to one of them leaves the other.
    """
    if ledger is None:
        return False, False
    numbers = ledger.accepted - ledger.lost, ledger.replaced, ledger.deleted
    return numbers == counted, ledger.sum == total


def _has_more(ledger: StoredLedger | None, rows: int, deaths: int) -> bool:
    """Whether a ledger has more rows, or more that died, than the records that are there."""
    if ledger is None:
        return False
    return (ledger.accepted - ledger.lost, ledger.replaced + ledger.deleted) > (rows, deaths)


def _rows_back(ledger: StoredLedger | None, deaths: int) -> int | None:
    """Return how many rows died that the records have as live; None if that is unknown."""
    return None if ledger is None else max(0, ledger.replaced + ledger.deleted - deaths)


# ---- the rows of the records --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows of one record, whose first is at `position`."""

    numbers: Int64Array
    ids: IdArray
    hashes: bytes
    norms: bytes
    position: int


def _held(
    records: Records,
    commits: dict[int, Record],
    last: LastCompaction,
    vectors: StoredVectors,
    id_type: IdType,
) -> tuple[LiveRows, int]:
    """Return all rows that records describe, dead ones too, and how many kept rows are missing."""
    kept = sorted(
        (
            record
            for (generation, _), record in records.kept.items()
            if generation == last.generation
        ),
        key=lambda record: int(record[1]),
    )
    pieces = []
    missing = last.kept - sum(len(record[4]) // 8 for record in kept)
    position = 0
    skipped = 0
    for _, _, _, _, numbers, hashes, norms, ids, _ in kept:
        rows = np.frombuffer(numbers, dtype="<i8")
        piece = _Piece(rows, decode_ids(id_type, ids, len(rows)), hashes, norms, position)
        if missing > skipped:
            skipped = _skipped(piece, vectors, records, skipped, missing)
        pieces.append(_Piece(rows, piece.ids, hashes, norms, position + skipped))
        position += len(rows)
    for _, first, rows_, _, _, _, hashes, norms, ids, _ in commits.values():
        rows = np.arange(first, first + rows_, dtype=np.int64)
        at = last.kept + first - last.rebuilt_until
        pieces.append(_Piece(rows, decode_ids(id_type, ids, rows_), hashes, norms, at))
    held = _joined(pieces, id_type)
    verified = [
        _verified_rows(record, records, commits, last, vectors, id_type)
        for sequence, record in records.unsound.items()
        if sequence > last.sequence and sequence not in commits
    ]
    return _merged([held, *(rows for rows in verified if rows is not None)]), missing


def _verified_rows(
    record: Record,
    records: Records,
    commits: dict[int, Record],
    last: LastCompaction,
    vectors: StoredVectors,
    id_type: IdType,
) -> LiveRows | None:
    """Return the rows of an unsound commit that match their content hashes.

    Where it belongs follows from the commits around it.
    """
    sequence, first, count, _, _, _, hashes, _, ids, _ = record
    before = [each for each in commits.values() if each[0] < sequence]
    after = [each[1] for each in commits.values() if each[0] > sequence]
    begin = max([last.rebuilt_until, *(each[1] + each[2] for each in before)])
    try:
        if first < begin or count < 1 or first + count > min(after, default=first + count):
            return None
        piece = _Piece(
            np.arange(first, first + count),
            decode_ids(id_type, ids, count),
            hashes,
            bytes(4 * count),
            last.kept + first - last.rebuilt_until,
        )
        rows = _joined([piece], id_type)
    except (CorruptData, TypeError, ValueError):
        return None
    if len(rows.content_hashes) != count or rows.positions[-1] >= vectors.rows:
        return None
    found = vectors.read(rows.positions)
    structs = [records.metadata.get(row, b"") for row in rows.numbers.tolist()]
    same = (content_hashes(rows.ids, structs, found) == rows.content_hashes).all(axis=1)
    return rows.with_norms(stored_squared_norms(found)).take(same)


def _merged(parts: list[LiveRows]) -> LiveRows:
    """Return rows of several records by ascending number."""
    if len(parts) == 1:
        return parts[0]
    merged = LiveRows(
        numbers=np.concatenate([each.numbers for each in parts]),
        positions=np.concatenate([each.positions for each in parts]),
        ids=np.concatenate([each.ids for each in parts]),
        content_hashes=np.concatenate([each.content_hashes for each in parts]),
        squared_norms=np.concatenate([each.squared_norms for each in parts]),
    )
    return merged.take(np.argsort(merged.numbers, kind="stable"))


def _joined(pieces: list[_Piece], id_type: IdType) -> LiveRows:
    kind = np.int64 if id_type is IdType.INT64 else np.object_
    positions = [each.position + np.arange(len(each.numbers)) for each in pieces]
    none = np.zeros(0, dtype=np.int64)
    return LiveRows(
        numbers=np.concatenate([none, *(each.numbers for each in pieces)]),
        positions=np.concatenate([none, *positions]),
        ids=np.concatenate([np.zeros(0, dtype=kind), *(each.ids for each in pieces)]),
        content_hashes=from_bytes(bytearray().join([each.hashes for each in pieces])),
        squared_norms=np.frombuffer(bytearray().join([each.norms for each in pieces]), "<f4"),
    )


def _skipped(piece: _Piece, vectors: StoredVectors, records: Records, least: int, most: int) -> int:
    """Return how many missing rows are before a piece: its first rows must match their hashes."""
    stored = from_bytes(piece.hashes[: 16 * _COMPARED_ROWS])
    structs = [records.metadata.get(row, b"") for row in piece.numbers[: len(stored)].tolist()]
    for skipped in range(least, most + 1):
        positions = piece.position + skipped + np.arange(len(stored))
        found = content_hashes(piece.ids[: len(stored)], structs, vectors.read(positions))
        if (found == stored).all(axis=1).any():
            return skipped
    return least


def _membership(records: Records, where: str) -> Membership:
    try:
        return membership_of(records.properties, where)
    except InvalidRecord:
        return Membership(directory=records.properties.get("directory", ""))


def _sessions(records: Records) -> Sessions:
    found = records.sessions
    if (recorded := records.properties.get("sessions")) is not None:
        found = {**sessions_from_json(recorded)[1], **found}
    firsts = sorted(found)
    return Sessions(first_sequences=tuple(firsts), sessions=tuple(found[each] for each in firsts))
