"""Looks at one damaged collection, in copies of its files, and decides what would repair it.

The collection's own files are only read. What is decided here is done by `repair_write`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.shard.errors import CorruptData
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.filter_file import Origin, is_sound_columns_file
from vectorshard.shard.storage.log_end import FILE_NAME as MARK_FILE
from vectorshard.shard.storage.repair_bits import slots_without_flips
from vectorshard.shard.storage.repair_findings import METADATA, Outcome, Repair
from vectorshard.shard.storage.repair_records import contents_of
from vectorshard.shard.storage.repair_rows import (
    Checked,
    LiveRows,
    ReadMetadata,
    StoredVectors,
    checked,
    located,
)
from vectorshard.shard.storage.repair_salvage import Salvage, last_compaction_of, salvaged
from vectorshard.shard.storage.repair_trial import LOG, StoreTrial, WholeStore, live_rows_of
from vectorshard.shard.storage.row_store_format import (
    FILE_NAME,
    FORMAT_VERSION,
    IndexFile,
    damaged_from_json,
)
from vectorshard.shard.storage.store_files import obstacle_in
from vectorshard.shard.storage.two_slots import Slot, stored_records
from vectorshard.shard.types import CollectionConfig, Int64Array

FROM_A_BACKUP: Final = (
    "Restore the collection from a backup; or go on without it with `vectorshard accept-loss`, "
    "through a router"
)
MOVE_BACK: Final = (
    "Nothing was changed. Move these files back to where they belong, and put the right ones in "
    "their place"
)
START_ONCE: Final = (
    "Start a server of this release on the directory once: it brings the files up to date. If it "
    "refuses them, restore the collection from a backup"
)
_MISMATCHES_MIN: Final = 3


class Way(Enum):
    """How a collection is repaired."""

    NOTHING = "nothing"
    IN_PLACE = "in place"  # the log mark, derived files, and rows to drop
    STORE = "store"  # its database as it was restored, in a new directory
    SALVAGE = "salvage"  # a new database of the sound records, in a new directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the files in a place should be of; empty where it is unknown."""

    name: str
    incarnation: str
    directory: str


@dataclass(slots=True, kw_only=True)
class Examined:
    """A collection that was looked at: what was found, and what a repair needs of it.

    Of `whole` and `salvage` one is there, unless the repair is refused. `rows_in_file` are the
    positions that the row file must have, `stale_files` derived files that are damaged.
    """

    repair: Repair
    path: Path
    way: Way = Way.NOTHING
    mark: Slot | None = None
    mark_is_sound: bool = True
    whole: WholeStore | None = None
    salvage: Salvage | None = None
    config: CollectionConfig | None = None
    rows: LiveRows | None = None
    rows_in_file: int = 0
    vectors: StoredVectors | None = None
    moved_from: Int64Array | None = None
    """Where each position of the row file is in another one, that `vectors` reads instead."""
    metadata: ReadMetadata = lambda rows: [b""] * len(rows)
    checked: Checked = field(default_factory=lambda: Checked(damaged=[], metadata={}))
    stale_files: list[str] = field(default_factory=list)


@contextmanager
def examined(
    path: Path, work: Path, expected: Expected, *, drop_damaged: bool = False
) -> Iterator[Examined]:
    """Look at the collection in a directory; `work` is an empty directory for copies.

    Raises OSError or sqlite3.Error if a disk fails.
    """
    found = Examined(repair=Repair(collection=expected.name), path=path)
    with ExitStack() as opened:
        _examine(found, work, expected, opened)
        if found.repair.outcome is not Outcome.REFUSED:
            _decide(found, drop_damaged=drop_damaged)
        yield found


def _examine(found: Examined, work: Path, expected: Expected, opened: ExitStack) -> None:
    repair = found.repair
    if obstacle := obstacle_in(found.path):
        repair.refuse(str(found.path), obstacle, "Remove what is in the way")
        return
    _read_mark(found)
    trial = StoreTrial(found.path, work, repair, found.mark, opened)
    trial.run()
    if trial.version not in (0, FORMAT_VERSION):
        newer = "Repair it with the release that wrote it, or a later one"
        cure = newer if trial.version > FORMAT_VERSION else START_ONCE
        repair.refuse(FILE_NAME, f"it has format version {trial.version}", cure)
        return
    try:
        if trial.whole is not None:
            _use_whole(found, trial.whole, expected, opened)
        else:
            _use_records(found, trial, expected, opened)
    except CorruptData as error:
        repair.refuse(FILE_NAME, trial.plain(str(error)), FROM_A_BACKUP)
    if repair.outcome is Outcome.REFUSED:
        return
    _look_for_vectors(found, opened)
    _compare_rows(found)
    _look_at_derived_files(found)


def _read_mark(found: Examined) -> None:
    stored = stored_records(found.path / MARK_FILE)
    slots, found.mark_is_sound = slots_without_flips(stored)
    found.mark = max(slots, key=lambda slot: slot.counter, default=None)
    if found.mark is None:
        text = (
            "it is missing, or both of its records are damaged: if the end of the log is gone "
            "as well, only other shards can notice that"
        )
        found.repair.add(MARK_FILE, text, "written for the transactions that are there")
    elif not found.mark_is_sound:
        found.repair.add(MARK_FILE, "a record in it is damaged", "written again")


def _check_origin(
    found: Examined, expected: Expected, name: str, incarnation: str, directory: str
) -> None:
    """Refuse files of another collection, or of another data directory."""
    if name != expected.name:
        wrong = f"its files are of collection {name!r}"
    elif directory and expected.directory and directory != expected.directory:
        wrong = "its files belong to another data directory"
    elif expected.incarnation and incarnation != expected.incarnation:
        wrong = "its files are of another incarnation of the collection"
    else:
        found.repair.incarnation = incarnation
        return
    found.repair.refuse(FILE_NAME, wrong, MOVE_BACK)


def _use_whole(found: Examined, whole: WholeStore, expected: Expected, opened: ExitStack) -> None:
    """Go on with a store that adds up."""
    store, stored, repair, mark = whole.store, whole.stored, found.repair, found.mark
    found.whole, found.config = whole, store.entry.config
    repair.rows_total, repair.gave_up = stored.rows, store.gave_up_commits
    _check_origin(
        found,
        expected,
        store.entry.config.name,
        store.entry.incarnation,
        store.membership.directory,
    )
    if mark is not None and not whole.reaches(mark):
        repair.commits_lost = tuple(range(stored.sequence + 1, mark.value + 1))
        if repair.commits_lost:
            repair.rows_lost, repair.rows_back, repair.whole = None, None, False
        text = (
            f"it ends after transaction {whole.transactions} (commit {stored.sequence}), but "
            f"{MARK_FILE} has {mark.counter} (commit {mark.value}): the log was cut, or the files "
            "are of different times"
        )
        repair.add(LOG, text, "what is missing is given up")
    found.vectors = StoredVectors(found.path / store.row_file, store.entry.config.dim)
    opened.callback(found.vectors.close)
    found.rows = live_rows_of(stored, store.entry.config.id_type)
    found.rows_in_file = len(stored.squared_norms)
    found.metadata = store.metadata


def _use_records(found: Examined, trial: StoreTrial, expected: Expected, opened: ExitStack) -> None:
    """Go on with sound records; CorruptData if they do not say what collection they are of."""
    records, repair = trial.records, found.repair
    where = str(found.path / FILE_NAME)
    config = records.entry(where).config
    last = last_compaction_of(records, where)
    found.vectors = vectors = StoredVectors(found.path / last.row_file, config.dim)
    opened.callback(vectors.close)
    mark = found.mark.value if found.mark is not None else None
    found.salvage = salvage = salvaged(
        records, vectors, last, mark, where, mark_is_sound=found.mark_is_sound
    )
    found.config, found.rows = config, salvage.rows
    incarnation, directory = salvage.entry.incarnation, salvage.membership.directory
    _check_origin(found, expected, config.name, incarnation, directory)
    found.rows_in_file = int(salvage.rows.positions.max(initial=-1)) + 1
    repair.rows_total = salvage.rows_known
    if not salvage.whole:
        repair.whole = False
        repair.commits_lost, repair.rows_back = salvage.commits_lost, salvage.rows_back
        repair.rows_lost = salvage.rows_lost if salvage.end_is_known else None
        _tell_end(repair, salvage)

    def metadata(rows: Int64Array) -> Sequence[bytes]:
        return [records.metadata.get(row, b"") for row in rows.tolist()]

    found.metadata = metadata


def _tell_end(repair: Repair, salvage: Salvage) -> None:
    """Say that commits of unknown numbers are gone, or may be."""
    if not salvage.end_is_known:
        text = f"nothing tells whether commits after {salvage.sequence} are gone"
    elif salvage.has_more and not salvage.commits_lost:
        text = f"commits are gone, by its ledger; the newest sound one is {salvage.sequence}"
    else:
        return
    repair.add(FILE_NAME, text, "what is missing is given up")


# ---- rows and derived files ---------------------------------------------------------------------


def _look_for_vectors(found: Examined, opened: ExitStack) -> None:
    """Look for the vectors in another row file, if theirs is missing.

    A log that lost the end of a compaction names the row file of before, which is removed.
    """
    rows, vectors, config = found.rows, found.vectors, found.config
    assert rows is not None
    assert vectors is not None
    assert config is not None
    others = sorted(found.path.glob("rows-*.f32"), key=lambda path: path.stat().st_mtime_ns)
    if not vectors.is_absent or not others:
        return
    other = StoredVectors(others[-1], config.dim)
    opened.callback(other.close)
    there = located(rows, other, found.metadata)
    count = int((there < other.rows).sum())
    found.repair.add(
        vectors.path.name,
        f"it is missing; {count:,} of {len(rows):,} rows are in {other.path.name}",
        "made again of them",
    )
    found.moved_from = np.full(found.rows_in_file, other.rows, dtype=np.int64)
    found.moved_from[rows.positions] = there
    found.vectors, found.rows = other, rows.moved(there)


def _compare_rows(found: Examined) -> None:
    """Compare all live rows with their content hashes."""
    rows, vectors, repair = found.rows, found.vectors, found.repair
    assert rows is not None
    assert vectors is not None
    name = vectors.path.name
    if vectors.is_absent:
        repair.add(name, "it is missing", "made again, of the right length")
    elif found.moved_from is None and vectors.rows < found.rows_in_file:
        text = f"it ends after row {vectors.rows:,} of {found.rows_in_file:,}"
        repair.add(name, text, "made again, of the right length")
    found.checked = checked(rows, vectors, found.metadata)
    _tell_metadata_from_vectors(found)
    repair.damaged_rows = found.checked.damaged
    in_file = int((rows.positions < vectors.rows).sum())
    known = set(_recorded(found).tolist())
    wrong = sum(
        each.found.startswith("it does not") and each.row not in known
        for each in repair.still_damaged
    )
    if wrong >= _MISMATCHES_MIN and 2 * wrong > in_file:
        text = (
            f"{wrong:,} of {in_file:,} rows do not match their content hashes: it is the file of "
            "another collection, of another shard or of another day, or all of it is damaged"
        )
        repair.refuse(name, text, f"{MOVE_BACK}; or restore the collection from a backup")


def _tell_metadata_from_vectors(found: Examined) -> None:
    """Say of damaged rows that their metadata is, where the checksum of many vectors is right."""
    damaged, whole, vectors = found.checked.damaged, found.whole, found.vectors
    if not damaged or whole is None or found.moved_from is not None:
        return
    assert vectors is not None
    sound: set[int] = set()
    for each in whole.store.vector_ranges(damaged[0].row, damaged[-1].row + 1):
        begin, end = whole.stored.positions.span(each.first, each.last)
        if end <= vectors.rows:
            read = vectors.read(np.arange(begin, end)).view(np.uint8).reshape(-1)
            if checksum(read) == each.crc32c:
                sound.update(range(each.first, each.last))
    found.checked.damaged[:] = [
        replace(each, found=METADATA) if each.row in sound and not each.restored else each
        for each in damaged
    ]


def _look_at_derived_files(found: Examined) -> None:
    """Note index and filter files that a start would ignore."""
    index_file = _index_file(found)
    for path in sorted(found.path.iterdir()):
        if path.name.startswith("filters-"):
            assert found.config is not None
            sound = is_sound_columns_file(path, found.config, _origin(found))
        elif index_file is not None and path.name == index_file.name:
            sound = checksum(bytes(contents_of(path))) == index_file.crc32c
        else:
            continue
        if not sound:
            found.stale_files.append(path.name)
            found.repair.add(path.name, "it is damaged", "set aside; the server makes it again")


def _origin(found: Examined) -> Origin:
    if found.whole is not None:
        return Origin.of(found.whole.store)
    assert found.salvage is not None
    return Origin(found.salvage.entry.incarnation, found.salvage.sessions)


def _index_file(found: Examined) -> IndexFile | None:
    return found.whole.store.index_file if found.whole is not None else None


def _decide(found: Examined, *, drop_damaged: bool) -> None:
    """Choose the way of a repair, and count the rows that it drops."""
    repair, vectors, whole = found.repair, found.vectors, found.whole
    assert vectors is not None
    if drop_damaged:
        repair.rows_dropped = len(repair.still_damaged)
    restored = len(repair.still_damaged) < len(repair.damaged_rows)
    if repair.damaged_rows and repair.outcome is Outcome.SOUND:
        improves = restored or repair.rows_dropped
        repair.outcome = Outcome.REPAIRABLE if improves else Outcome.ROWS_DAMAGED
    if found.salvage is not None:
        found.way = Way.SALVAGE
    elif (
        whole is None
        or not whole.as_is
        or not repair.whole
        or restored
        or found.moved_from is not None
        or vectors.rows < found.rows_in_file
    ):
        found.way = Way.STORE
    elif not found.mark_is_sound or found.stale_files or _has_unrecorded_rows(found):
        found.way = Way.IN_PLACE


def _recorded(found: Examined) -> Int64Array:
    """Return the rows that the store has on record as damaged."""
    if found.whole is not None:
        return found.whole.store.damaged
    assert found.salvage is not None
    return damaged_from_json(found.salvage.properties.get("damaged", "[]"))


def _has_unrecorded_rows(found: Examined) -> bool:
    """Whether rows are to be dropped, or the store does not have the damaged rows on record."""
    damaged = [each.row for each in found.repair.still_damaged]
    return bool(found.repair.rows_dropped) or _recorded(found).tolist() != damaged
