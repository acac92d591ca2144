"""Writes what a repair decided; the files that were there are kept.

A repaired collection is built in `collections/.repairing-NAME`, which a start ignores. When it is
durable and opens, NAME is renamed to NAME.damaged, and then the new directory to NAME. A crash
between the two renames leaves a collection without a directory, and `finish` ends the repair.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from bisect import bisect_left
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.shard.errors import DataDirectoryError, DataDirectoryFull
from vectorshard.shard.membership import GIVEN_UP, Member, Membership, Sessions, rows_given_up
from vectorshard.shard.rows.id_column import encode_ids
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import sum_bytes, sum_of
from vectorshard.shard.storage.data_directory import BUILDING, KEPT_SUFFIXES
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.json_records import to_json
from vectorshard.shard.storage.log_end import FILE_NAME as MARK_FILE
from vectorshard.shard.storage.repair_collection import Examined, Way
from vectorshard.shard.storage.repair_findings import Outcome
from vectorshard.shard.storage.repair_rows import LiveRows, pieces
from vectorshard.shard.storage.repair_salvage import Salvage
from vectorshard.shard.storage.repair_trial import LOG
from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.storage.row_file import FIRST_BYTES
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import (
    FILE_NAME,
    MATCHES_NOTHING,
    Commit,
    KeptRows,
    LastCompaction,
    kept_record,
    membership_properties,
    property_checksum,
    sessions_to_json,
)
from vectorshard.shard.storage.two_slots import Slot, TwoSlots
from vectorshard.shard.types import Int64Array

_ASIDE: Final = "damaged."
_KEPT_PROPERTIES: Final = ("configuration", "incarnation", "restored_from")


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """The shard and the life of the data directory, and where chance comes from.

    `new_session` returns a random session, `new_directory` a fresh id of a directory.
    """

    shard: int
    life: int
    new_session: Callable[[], int]
    new_directory: Callable[[], str]


def write(disk: Disk, found: Examined, own: Own) -> None:
    """Do what was decided of a collection, durably. Its files of before are kept.

    Raises DataDirectoryFull without enough room, DataDirectoryError if two directories are kept.
    """
    if found.way is Way.NOTHING:
        pass  # damaged rows, which the store has on record
    elif found.way is Way.IN_PLACE:
        _write_in_place(disk, found, own)
    else:
        kept = _place_to_keep(found.path)
        building = found.path.with_name(BUILDING + found.path.name)
        if building.exists():
            disk.remove_tree(building)
        _require_room(disk, found)
        disk.make_directory(building)
        if found.way is Way.STORE:
            _write_store(disk, found, building, own)
        else:
            _write_salvage(disk, found, building, own)
        _drop_or_record(disk, building, found, own)
        _verify(disk, building)
        _belong_as_before(found.path, building)
        _sync_all(disk, building)
        disk.rename(found.path, kept)
        disk.rename(building, found.path)
        disk.sync_directory(found.path.parent)
        found.repair.kept_in = str(kept)
    if found.repair.outcome is Outcome.REPAIRABLE:
        found.repair.outcome = Outcome.REPAIRED


def belong_to_owner_of(model: Path, path: Path, mode: int | None = None) -> None:
    """Give a file the owner and group of another one, and a mode.

    A repair may run as another user than the server, which must open the files afterwards.
    """
    owner, now = model.stat(), path.stat()
    if (owner.st_uid, owner.st_gid) != (now.st_uid, now.st_gid):
        with suppress(PermissionError):  # the user of the server itself may not, and need not
            os.chown(path, owner.st_uid, owner.st_gid)
    if mode is not None:
        path.chmod(mode)


def _belong_as_before(place: Path, building: Path) -> None:
    """Give a new directory and its files the owner and the modes that they had."""
    stored = place / FILE_NAME
    model = stored if stored.exists() else next((p for p in place.iterdir() if p.is_file()), place)
    mode = model.stat().st_mode & 0o666
    for path in building.iterdir():
        belong_to_owner_of(model, path, mode)
    belong_to_owner_of(place, building, place.stat().st_mode & 0o777)


def finish(disk: Disk, place: Path) -> bool:
    """End a repair that was interrupted between its last two steps; return whether one was."""
    building = place.with_name(BUILDING + place.name)
    kept = (place.with_name(place.name + suffix) for suffix in KEPT_SUFFIXES)
    if os.path.lexists(place) or not building.is_dir() or not any(map(os.path.lexists, kept)):
        return False
    disk.rename(building, place)
    disk.sync_directory(place.parent)
    return True


def _place_to_keep(place: Path) -> Path:
    for suffix in KEPT_SUFFIXES:
        kept = place.with_name(place.name + suffix)
        if not os.path.lexists(kept):
            return kept
    raise DataDirectoryError(
        f"{place}: the files of two repairs or losses are kept already; move "
        f"{place.name}{KEPT_SUFFIXES[0]} to another directory and repeat the repair"
    )


def _require_room(disk: Disk, found: Examined) -> None:
    needed = 2 * sum(
        (found.path / name).stat().st_size
        for name in (FILE_NAME, LOG)
        if (found.path / name).exists()
    )
    assert found.config is not None
    needed += found.rows_in_file * found.config.dim * 4
    free, _ = disk.free_bytes(found.path.parent)
    if free < needed:
        raise DataDirectoryFull(
            f"{found.path.parent} has {free / 1e6:,.1f} MB free; the repair of {found.path.name} "
            f"needs {needed / 1e6:,.1f} MB, because it keeps the files that are there"
        )


# ---- in place -----------------------------------------------------------------------------------


def _write_in_place(disk: Disk, found: Examined, own: Own) -> None:
    for name in found.stale_files:
        set_aside(disk, found.path / name)
    if not found.mark_is_sound:
        assert found.whole is not None
        for name in (FILE_NAME, LOG):  # the mark must not be ahead of what is durable
            if (found.path / name).exists():
                _sync(disk, found.path / name)
        if (found.path / MARK_FILE).exists():
            set_aside(disk, found.path / MARK_FILE)
        _write_mark(disk, found.path, found.whole.transactions, found.whole.stored.sequence)
        mode = (found.path / FILE_NAME).stat().st_mode & 0o666
        belong_to_owner_of(found.path / FILE_NAME, found.path / MARK_FILE, mode)
    _drop_or_record(disk, found.path, found, own)
    disk.sync_directory(found.path)


def set_aside(disk: Disk, path: Path) -> None:
    """Rename a file so that a start ignores it, if it is there."""
    if not os.path.lexists(path):
        return
    number = 1
    while os.path.lexists(aside := path.with_name(f"{_ASIDE}{path.name}.{number}")):
        number += 1
    disk.rename(path, aside)


def _write_mark(disk: Disk, directory: Path, transactions: int, sequence: int) -> None:
    TwoSlots.create(disk, directory / MARK_FILE, Slot(transactions, sequence))


def _drop_or_record(disk: Disk, directory: Path, found: Examined, own: Own) -> None:
    """Delete the rows that stay damaged, or record them, so that a start knows all of them."""
    assert found.rows is not None
    rows = np.array([each.row for each in found.repair.still_damaged], dtype=np.int64)
    if found.salvage is not None:
        rows = _new_numbers(found.salvage)[np.isin(found.rows.numbers, rows)]
    with closing(RowStore.open(disk, directory)) as store:
        stored = store.load()
        if not found.repair.rows_dropped and np.array_equal(store.damaged, rows):
            return
        store.start_writing(own.new_session() if found.repair.rows_dropped else 0)
        if not found.repair.rows_dropped:
            store.record_damaged(rows)
            return
        none = np.zeros(0, dtype=np.int64)
        store.commit(
            Commit(
                first_row=stored.rows,
                ids=found.rows.ids[:0],
                content_hashes=stored.content_hashes[:0],
                squared_norms=stored.squared_norms[:0],
                range_crc32c=0,
                metadata={},
                replaced=none,
                deleted=rows,
                dead_sum=sum_of(stored.content_hashes[stored.positions.of(rows)]),
            )
        )
        if len(store.damaged):
            store.record_damaged(none)


# ---- a new directory ----------------------------------------------------------------------------


def _write_store(disk: Disk, found: Examined, building: Path, own: Own) -> None:
    """Write a database that adds up, with what was restored in it, and its other files."""
    whole = found.whole
    assert whole is not None
    assert found.rows is not None
    path = building / FILE_NAME
    shutil.copyfile(whole.path, path)
    log = whole.path.with_name(LOG)
    if log.exists() and log.stat().st_size:
        shutil.copyfile(log, path.with_name(LOG))
    with closing(disk.connect(path)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        for row, struct in found.checked.metadata.items():
            connection.execute("UPDATE metadata SET struct = ? WHERE row = ?", (struct, row))
        if not found.repair.whole:
            membership = _not_whole(whole.store.membership, own, found.repair.rows_lost)
            _put_properties(connection, membership_properties(membership))
        disk.commit(connection)
    _write_mark(disk, building, whole.transactions, whole.stored.sequence)
    positions = found.moved_from
    if positions is None:
        positions = np.arange(found.rows_in_file)
    _copy_vectors(disk, found, building / whole.store.row_file, positions)
    index_file = whole.store.index_file
    for each in sorted(found.path.iterdir()):
        is_index = index_file is not None and each.name == index_file.name
        if (is_index or each.name.startswith("filters-")) and each.name not in found.stale_files:
            shutil.copyfile(each, building / each.name)


def _put_properties(connection: sqlite3.Connection, properties: dict[str, str]) -> None:
    for key, value in properties.items():
        connection.execute(
            "INSERT OR REPLACE INTO properties VALUES (?, ?, ?)",
            (key, value, property_checksum(key, value)),
        )


def _not_whole(membership: Membership, own: Own, rows_lost: int | None) -> Membership:
    """Return a membership of which this directory is no member, in its present life.

    Routers call such a collection MISSING until its loss is accepted, which raises the life, even
    if no other shard remembers what is lost. The name of the directory that it is of instead says
    how many rows the repairs until then gave up, which `accept-loss` shows.
    """
    rows = rows_given_up(membership.members) + (rows_lost or 0)
    strange = f"{GIVEN_UP}{rows}-{own.new_directory()}"
    given_up = Member(shard=own.shard, directory=strange, life=own.life)
    others = [each for each in membership.members if each.shard != own.shard]
    members = sorted((*others, given_up), key=lambda each: each.shard)
    return replace(membership, members=tuple(members))


def _copy_vectors(disk: Disk, found: Examined, path: Path, positions: Int64Array) -> None:
    """Write the vectors at positions to a new row file; zeros where they are gone."""
    vectors, config = found.vectors, found.config
    assert vectors is not None
    assert config is not None
    row_bytes = config.dim * 4
    with closing(disk.open(path)) as file:
        disk.extend(file, max(FIRST_BYTES, len(positions) * row_bytes))
        at_once = max(1, 2**22 // row_bytes)
        for first in range(0, len(positions), at_once):
            rows = vectors.read(positions[first : first + at_once])
            disk.write(file, first * row_bytes, rows.tobytes())
        disk.sync(file)


def _new_numbers(salvage: Salvage) -> Int64Array:
    """Return the numbers of the live rows in the repaired store, ascending.

    They stay what they were if no row is lost. Lost rows have no numbers, so that `accepted` is
    the rows that have, and `lost`.
    """
    if salvage.rows_lost == 0:
        return salvage.rows.numbers
    return np.arange(len(salvage.rows))


def _write_salvage(disk: Disk, found: Examined, building: Path, own: Own) -> None:
    """Write a new database as if the last commit had been followed by a compaction."""
    salvage = found.salvage
    assert salvage is not None
    rows = salvage.rows.renumbered(_new_numbers(salvage))
    last = LastCompaction(
        generation=salvage.generation + 1,
        sequence=salvage.sequence,
        rebuilt_until=salvage.rows_known - salvage.rows_lost,
        replaced=salvage.replaced,
        deleted=salvage.deleted,
    )
    membership, stored = salvage.membership, salvage.properties
    if not found.repair.whole:
        membership = _not_whole(membership, own, found.repair.rows_lost)
    sessions = _sessions(salvage, own)
    properties = {
        **{key: stored[key] for key in _KEPT_PROPERTIES if key in stored},
        "sessions": sessions_to_json(sessions),
        **membership_properties(membership),
        "row_file": last.row_file,
        "rebuilt": to_json(last),
        "swept": str(last.generation),
    }
    database = RowDatabase.create(disk, building / FILE_NAME, properties)
    with closing(database), database.transaction(0) as connection:
        for first_sequence, session in zip(
            sessions.first_sequences, sessions.sessions, strict=True
        ):
            database.insert_session(first_sequence, session)
        _insert_rows(connection, found, rows, last.generation)
        structs = found.metadata(salvage.rows.numbers)
        pairs = zip(rows.numbers.tolist(), salvage.rows.numbers.tolist(), structs, strict=True)
        restored = found.checked.metadata
        database.insert_metadata(
            [(new, restored.get(old, struct)) for new, old, struct in pairs if struct]
        )
        lost = salvage.lost_before + salvage.rows_lost
        connection.execute(
            "UPDATE ledger SET accepted = ?, replaced = ?, deleted = ?, lost = ?, sum = ?",
            (last.rebuilt_until + lost, last.replaced, last.deleted, lost, sum_bytes(rows.sum)),
        )
    _copy_vectors(disk, found, building / last.row_file, rows.positions)


def _sessions(salvage: Salvage, own: Own) -> Sessions:
    """Return which session wrote which commits; a new one from the first lost commit on.

    Tokens that name later commits of the old session are refused: those writes are lost.
    """
    stored = salvage.sessions
    first = salvage.first_lost
    if first is None or salvage.whole:
        return stored
    before = bisect_left(stored.first_sequences, first)
    firsts, sessions = stored.first_sequences[:before], stored.sessions[:before]
    if first <= salvage.sequence:
        firsts, sessions = (*firsts, first), (*sessions, own.new_session())
    return Sessions(first_sequences=firsts, sessions=sessions)


def _insert_rows(
    connection: sqlite3.Connection, found: Examined, rows: LiveRows, generation: int
) -> None:
    vectors, config = found.vectors, found.config
    assert vectors is not None
    assert config is not None
    damaged = {each.row for each in found.repair.still_damaged}
    assert found.rows is not None
    wrong = np.isin(found.rows.numbers, np.array(sorted(damaged), dtype=np.int64))
    first = 0
    for piece in pieces(rows):
        range_crc32c = checksum(vectors.read(piece.positions).view(np.uint8).reshape(-1))
        if wrong[first : first + len(piece)].any():
            range_crc32c ^= MATCHES_NOTHING
        first += len(piece)
        kept = KeptRows(
            rows=piece.numbers,
            ids=encode_ids(config.id_type, piece.ids),
            content_hashes=piece.content_hashes,
            squared_norms=piece.squared_norms,
            range_crc32c=range_crc32c,
        )
        connection.execute(
            "INSERT INTO kept VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", kept_record(generation, kept)
        )


def _verify(disk: Disk, building: Path) -> None:
    """Open what was written as a start does. RowStoreCorrupt: nothing is put in its place."""
    with closing(RowStore.open(disk, building)) as store:
        store.load()


def _sync(disk: Disk, path: Path) -> None:
    with closing(disk.open(path)) as file:
        disk.sync(file)


def _sync_all(disk: Disk, directory: Path) -> None:
    for path in directory.iterdir():
        _sync(disk, path)
    disk.sync_directory(directory)
