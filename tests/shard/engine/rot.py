"""Rot for tests: what a bit of memory, or of a disk, may become while a collection is served.

Each function of `IN_MEMORY` and `ON_DISK` damages one thing of a collection of `scrubbed`.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import faiss
import numpy as np

from tests.shard.filter_samples import FIELDS
from tests.shard.samples import config_of, ids_of, open_collection, some_vectors
from vectorshard.shard.config import BufferConfig, CompactionConfig, EngineConfig, TrainingConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    DeleteRequest,
    IdType,
    IndexKind,
    UpsertRequest,
)
from vectorshard.shard.wire.metadata import metadata_from_mapping

ROWS: Final = 300
DIM: Final = 8
ENGINE: Final = EngineConfig(
    buffer=BufferConfig(absorb_rows=20, absorb_piece_rows=20),
    training=TrainingConfig(calibration_queries=8, checkpoint_min_rows=1, pq_rows_min=1),
    compaction=CompactionConfig(dead_rows_min=1, dead_codes_min=1_000_000),
    few_rows_work=0,
)

Rot = Callable[[Collection], None]


def metadata_of(number: int) -> bytes:
    """Return the metadata of a row; every tenth has none."""
    if number % 10 == 0:
        return b""
    return metadata_from_mapping(
        {
            "lang": ["en", "de"] if number % 7 == 0 else "en" if number % 2 else "日本",
            "year": 1_990 + number % 5,
            "rating": number / 8,
            "public": number % 3 == 0,
            "text": f"row {number}",
        }
    )


def upsert(collection: Collection, numbers: range, seed: int = 0) -> None:
    """Write rows by number."""
    config = collection.entry.config
    (outcome,) = collection.writes.apply(
        [
            UpsertRequest(
                collection=config.name,
                ids=ids_of(config.id_type, list(numbers)),
                vectors=some_vectors(len(numbers), DIM, seed),
                metadata=[metadata_of(number + seed) for number in numbers],
            )
        ]
    )
    assert not isinstance(outcome, Exception), outcome


def remove(collection: Collection, numbers: range) -> None:
    """Delete rows by number."""
    config = collection.entry.config
    ids = ids_of(config.id_type, list(numbers))
    (outcome,) = collection.writes.apply([DeleteRequest(collection=config.name, ids=ids)])
    assert not isinstance(outcome, Exception), outcome


def absorb(collection: Collection) -> None:
    """Absorb the whole buffer."""
    while collection.maintenance.absorb_piece():
        pass


def scrubbed(
    path: Path,
    *,
    id_type: IdType = IdType.INT64,
    kind: IndexKind = IndexKind.IVF_PQ,
    disk: Disk | None = None,
) -> Collection:
    """Return a collection with everything that a scrub looks at.

    Kept rows of a compaction, later commits, replaced and deleted rows, an index, its file, filter
    columns and their file, and a few buffered rows.
    """
    shutil.copytree(_template(id_type, kind).name, path, dirs_exist_ok=True)
    return Collection.open(disk or Disk(), path, 0, ENGINE)


@cache
def _template(id_type: IdType, kind: IndexKind) -> TemporaryDirectory[str]:
    """Return the directory of such a collection."""
    config = replace(config_of(id_type=id_type, kind=kind, dim=DIM), filter_fields=FIELDS)
    directory = TemporaryDirectory(prefix="scrubbed-")
    collection = open_collection(Path(directory.name), config, engine=ENGINE)
    upsert(collection, range(200))
    remove(collection, range(10, 30))
    collection.compaction.run(lambda: None)
    while collection.compaction.sweep_due:
        collection.compaction.sweep()
    upsert(collection, range(150, 250), seed=1)
    build_index(collection, lambda: 1.0)
    upsert(collection, range(250, ROWS))
    absorb(collection)
    remove(collection, range(60, 70))
    upsert(collection, range(ROWS, ROWS + 15))
    collection.maintenance.checkpoint()
    collection.close()
    return directory


# ---- memory -------------------------------------------------------------------------------------


def norm(collection: Collection) -> None:
    """Change the squared norm of a row."""
    collection.state.columns._squared_norms[5] *= 2


def content_hash(collection: Collection) -> None:
    """Change a bit of a content hash."""
    collection.state.columns._content_hashes[7, 1] ^= np.uint64(1 << 40)


def id_not_found(collection: Collection) -> None:
    """Take the entry of an id away."""
    index = collection.state.columns._id_index
    places, _ = index._find(
        ids := collection.state.columns.ids.take(np.array([30])), index._hash_ids(ids)
    )
    index._table[places] = -1


def id_of_another(collection: Collection) -> None:
    """Let an entry point to the row of another id."""
    index = collection.state.columns._id_index
    free = np.flatnonzero(index._table == -1)
    index._table[free[len(free) // 2]] = 3


def id_out_of_range(collection: Collection) -> None:
    """Let an entry be no position."""
    index = collection.state.columns._id_index
    taken = np.flatnonzero(index._table != -1)
    index._table[taken[17]] = 1 << 40


def _column(collection: Collection, name: str) -> Any:
    return collection.state.filter_columns._columns[name]


def keyword_lost(collection: Collection) -> None:
    """Take a row from a keyword."""
    rows = _column(collection, "lang").by_keyword["en"]
    live = [row for row in rows if not collection.snapshot.tombstones.are_dead(np.array([row]))[0]]
    rows.discard(live[3])


def keyword_added(collection: Collection) -> None:
    """Give a row a keyword that it has not."""
    columns = _column(collection, "lang").by_keyword
    live = collection.snapshot.tombstones.live_rows(0, collection.snapshot.rows).tolist()
    columns["de"].add(
        next(row for row in live if row not in columns["de"] and row in columns["en"])
    )


def number_changed(collection: Collection) -> None:
    """Change the number of a row."""
    live = collection.snapshot.tombstones.live_rows(0, collection.snapshot.rows).tolist()
    column = _column(collection, "year")
    column.numbers[next(row for row in live if row in column.present)] = 1_234.0


def truth_changed(collection: Collection) -> None:
    """Change the bool of a row."""
    column = _column(collection, "public")
    live = collection.snapshot.tombstones.live_rows(0, collection.snapshot.rows).tolist()
    column.true.add(next(row for row in live if row not in column.true))


def _list(collection: Collection) -> tuple[Any, int, int]:
    """Return FAISS's lists, one that is not short, and its length."""
    assert collection.snapshot.index is not None
    index = collection.snapshot.index.ivf.faiss_index
    lists = faiss.downcast_InvertedLists(index.invlists)
    number = max(range(index.nlist), key=lists.list_size)
    return lists, number, lists.list_size(number)


def code_changed(collection: Collection) -> None:
    """Change a byte of each code of a list."""
    lists, number, rows = _list(collection)
    codes = faiss.rev_swig_ptr(lists.get_codes(number), rows)
    codes ^= 0x3C


def row_twice(collection: Collection) -> None:
    """Let a row of the index be there twice, and another not at all."""
    lists, number, rows = _list(collection)
    held = faiss.rev_swig_ptr(lists.get_ids(number), rows)
    held[1] = held[0]


def row_missing(collection: Collection) -> None:
    """Let the index hold a row that was dead before its training, in place of one that lives."""
    lists, number, rows = _list(collection)
    held = faiss.rev_swig_ptr(lists.get_ids(number), rows)
    live = ~collection.snapshot.tombstones.are_dead(held)
    held[np.flatnonzero(live)[0]] = 15


def row_unknown(collection: Collection) -> None:
    """Let the index hold a row that does not exist."""
    lists, number, rows = _list(collection)
    faiss.rev_swig_ptr(lists.get_ids(number), rows)[-1] = 1 << 50


def sum_changed(collection: Collection) -> None:
    """Let the sum of the content hashes be another."""
    state = collection.state
    state.snapshot = replace(state.snapshot, sum=bytes(16))


def tombstone_lost(collection: Collection) -> None:
    """Let a row live again."""
    state = collection.state
    bits = state.snapshot.tombstones.bits.copy()
    bits[160 // 8] ^= 1 << (160 % 8)  # row 160 was replaced
    tombstones = replace(state.snapshot.tombstones, bits=bits)
    state.snapshot = replace(state.snapshot, tombstones=tombstones)


REPAIRED_IN_MEMORY: Final[Mapping[Rot, str]] = {
    norm: "norms or content hashes in memory differed",
    content_hash: "norms or content hashes in memory differed",
    id_not_found: "the id index did not find 1 row,",
    id_of_another: "the id index held 1 wrong entry;",
    id_out_of_range: "the id index",
    keyword_lost: "the filter columns of 1 row,",
    keyword_added: "the filter columns of",
    number_changed: "the filter columns of 1 row,",
    truth_changed: "the filter columns of 1 row,",
}
"""What rots in memory and is right after a pass, and what the finding says."""

INDEX_ROT: Final[Mapping[Rot, str]] = {
    code_changed: "held wrong codes",
    row_twice: "held 1 row more than once",
    row_missing: "lacked 1 row ",
    row_unknown: "held 1 row that should not be in it",
}
"""What rots in the index, which is trained again then."""

# ---- disk ---------------------------------------------------------------------------------------


def flip(file: Path, at: int) -> None:
    """Change one bit of a file in place."""
    with file.open("r+b") as opened:
        opened.seek(at)
        (before,) = opened.read(1)
        opened.seek(at)
        opened.write(bytes([before ^ 4]))


def _change(collection: Collection, statement: str) -> None:
    """Change the database behind the server's back, as a decayed page would."""
    with closing(sqlite3.connect(collection.state.directory / "store.db")) as database, database:
        assert database.execute(statement).rowcount > 0


def commit_changed(collection: Collection) -> None:
    """Change the norms in the record of the newest commit with rows."""
    _change(
        collection,
        "UPDATE commits SET squared_norms = zeroblob(length(squared_norms)) WHERE sequence = "
        "(SELECT max(sequence) FROM commits WHERE rows > 0)",
    )


def kept_changed(collection: Collection) -> None:
    """Change the ids in a record of kept rows."""
    _change(collection, "UPDATE kept SET ids = zeroblob(length(ids))")


def commit_lost(collection: Collection) -> None:
    """Remove a commit."""
    _change(
        collection,
        "DELETE FROM commits WHERE sequence = (SELECT max(sequence) - 1 FROM commits)",
    )


def property_changed(collection: Collection) -> None:
    """Change a property."""
    _change(collection, "UPDATE properties SET value = 'x' WHERE key = 'incarnation'")


def ledger_changed(collection: Collection) -> None:
    """Change the ledger."""
    _change(collection, "UPDATE ledger SET deleted = deleted + 1")


def sessions_lost(collection: Collection) -> None:
    """Remove the records of the sessions."""
    _change(collection, "DELETE FROM sessions")


def version_changed(collection: Collection) -> None:
    """Change the format version in the header."""
    with closing(sqlite3.connect(collection.state.directory / "store.db")) as database:
        database.execute("PRAGMA user_version = 7")


RECORD_ROT: Final[Mapping[Rot, str]] = {
    version_changed: "its format version is 7, not 3",
    commit_changed: "the record of commit",
    kept_changed: "the record of the kept rows",
    commit_lost: "is missing",
    property_changed: "checksum mismatch in property incarnation",
    ledger_changed: "the ledger differs",
}
"""What rots in the records, which is a problem for an operator."""


def index_file(collection: Collection) -> None:
    """Change a bit of the index file."""
    (file,) = collection.state.directory.glob("index-*")
    flip(file, file.stat().st_size // 2)


def index_file_removed(collection: Collection) -> None:
    """Remove the index file."""
    (file,) = collection.state.directory.glob("index-*")
    file.unlink()


def filter_file(collection: Collection) -> None:
    """Change a bit of the filter file."""
    (file,) = collection.state.directory.glob("filters-*")
    flip(file, file.stat().st_size - 3)


def log_mark(collection: Collection) -> None:
    """Change both slots of the log mark."""
    flip(collection.state.directory / "log-end", 10)
    flip(collection.state.directory / "log-end", 4_096 + 10)


FILE_ROT: Final[Mapping[Rot, str]] = {
    index_file: "was damaged; it is written again",
    index_file_removed: "was damaged; it is written again",
    filter_file: "was damaged; it is written again",
    log_mark: "log-end was damaged",
}
"""What rots in derived files, which are written again."""


def vector(collection: Collection) -> None:
    """Change a bit of the vector of a live row, in the row file and so in its map."""
    columns = collection.state.columns
    flip(columns.row_file._path, 4 * DIM * 4 + 2)


def metadata(collection: Collection) -> None:
    """Change the metadata of a live row."""
    row = int(collection.state.columns.positions.rows_at(np.array([4]))[0])
    text = metadata_from_mapping({"lang": "en", "text": "another"}).hex()
    _change(collection, f"UPDATE metadata SET struct = x'{text}' WHERE row = {row}")


def metadata_lost(collection: Collection) -> None:
    """Remove the metadata of a live row."""
    row = int(collection.state.columns.positions.rows_at(np.array([4]))[0])
    _change(collection, f"DELETE FROM metadata WHERE row = {row}")


ROW_ROT: Final = (vector, metadata, metadata_lost)
"""What rots of the row at position 4, which is damaged then."""
