"""Row stores for tests: their commits, what a compaction keeps of them, and what they must hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vectorshard.shard.membership import Member, Membership, Stage
from vectorshard.shard.rows.id_column import decode_ids, encode_ids
from vectorshard.shard.storage.content_hash import sum_of
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import (
    Commit,
    IndexFile,
    KeptRows,
    LastCompaction,
    StoredRows,
)
from vectorshard.shard.types import (
    BoolArray,
    CollectionConfig,
    CollectionEntry,
    FieldType,
    FilterField,
    IdArray,
    IdType,
    Int64Array,
    Metric,
    UInt64Array,
)

ENTRY = CollectionEntry(
    config=CollectionConfig(
        name="words",
        dim=100,
        metric=Metric.COSINE,
        id_type=IdType.INT64,
        target_recall=0.9,
        filter_fields=(FilterField("language", FieldType.KEYWORD),),
    ),
    incarnation="1f",
)
MEMBERSHIP = Membership(
    directory="d0",
    stage=Stage.KNOWN,
    members=(
        Member(shard=0, directory="d0", life=1),
        Member(shard=1, directory="d1", life=3),
    ),
)
SESSION = 2**62 + 17
STRING_ENTRY = replace(ENTRY, config=replace(ENTRY.config, id_type=IdType.STRING))
INDEX_FILE = IndexFile(
    name="index-2-900.faiss",
    generation=2,
    absorbed_until=900,
    rows_skipped=3,
    crc32c=2**32 - 1,
    file_bytes=12_345,
    live_when_trained=800,
    rows_trained_on=790,
    trained_at=1_700_000_000.25,
    training_s=0.125,
    calibration=((0.8, 4, 0.83), (0.95, 17, 0.951)),
)


def hashes_of(rows: Int64Array) -> UInt64Array:
    """Return a content hash for each row (rows,) that differs from all others."""
    numbers = rows.astype(np.uint64)
    return np.stack([numbers * np.uint64(7919), ~numbers], axis=1)


def commit_of(
    first_row: int,
    rows: int,
    *,
    ids: IdArray | None = None,
    metadata: dict[int, bytes] | None = None,
    replaced: Sequence[int] = (),
    deleted: Sequence[int] = (),
) -> Commit:
    """Return a commit whose columns tell its rows apart."""
    numbers = np.arange(first_row, first_row + rows)
    return Commit(
        first_row=first_row,
        ids=numbers * 10 if ids is None else ids,
        content_hashes=hashes_of(numbers),
        squared_norms=(numbers + 0.5).astype(np.float32),
        range_crc32c=first_row + rows,
        metadata=metadata or {},
        replaced=np.array(replaced, dtype=np.int64),
        deleted=np.array(deleted, dtype=np.int64),
        dead_sum=sum_of(hashes_of(np.array([*replaced, *deleted], dtype=np.int64))),
    )


def stored_ids(stored: StoredRows, id_type: IdType = IdType.INT64) -> list[int | str]:
    return [id_ for blob, rows in stored.ids for id_ in decode_ids(id_type, blob, rows).tolist()]


def assert_same(found: StoredRows, expected: StoredRows) -> None:
    assert found.ids == expected.ids
    assert (found.rows, found.sequence) == (expected.rows, expected.sequence)
    for column in ("squared_norms", "content_hashes", "replaced", "deleted"):
        np.testing.assert_array_equal(getattr(found, column), getattr(expected, column))
    positions = np.arange(len(expected.squared_norms))
    np.testing.assert_array_equal(
        found.positions.rows_at(positions), expected.positions.rows_at(positions)
    )


def reopened(store: RowStore, directory: Path) -> RowStore:
    store.close()
    return opened(directory)


def opened(directory: Path, disk: Disk | None = None) -> RowStore:
    """Open a store as a start does, once its rows are verified."""
    store = RowStore.open(disk or Disk(), directory)
    try:
        store.load()
        store.start_writing()
    except BaseException:
        store.close()
        raise
    return store


def kept_of(rows: Sequence[int]) -> KeptRows:
    """Return what a compaction keeps of rows that `commit_of` made."""
    commit = commit_of(0, max(rows) + 1)
    chosen = np.array(rows, dtype=np.int64)
    return KeptRows(
        rows=chosen,
        ids=encode_ids(IdType.INT64, commit.ids[chosen]),
        content_hashes=commit.content_hashes[chosen],
        squared_norms=commit.squared_norms[chosen],
        range_crc32c=len(rows),
    )


def compact(store: RowStore) -> LastCompaction:
    """Compact a store of three commits after the second, the third having come meanwhile."""
    store.commit(commit_of(0, 5, metadata={0: b"zero", 4: b"four"}))
    store.commit(commit_of(5, 4, replaced=[1], deleted=[0, 7], metadata={7: b"7", 8: b"8"}))
    generation = store.next_generation()
    store.keep(generation, kept_of([2, 3]))
    store.commit(commit_of(9, 2, replaced=[8], metadata={10: b"ten"}))
    store.keep(generation, kept_of([4, 5, 6, 8]))
    rebuilt = LastCompaction(
        generation=generation, sequence=2, rebuilt_until=9, replaced=1, deleted=2
    )
    store.take_into_use(rebuilt)
    return rebuilt


def in_row_file(rows: Int64Array) -> BoolArray:
    """Say which rows the row file holds after `compact`."""
    return ~np.isin(rows, [0, 1, 7])


def sweep_all(store: RowStore) -> None:
    while store.sweep_due:
        store.sweep(in_row_file)


def sample(directory: Path, *, rebuilt: bool = False) -> StoredRows:
    """Write a store of 40 rows in 4 commits, and close it."""
    RowStore.create(Disk(), directory, ENTRY, MEMBERSHIP).close()
    store = RowStore.open(Disk(), directory)
    store.start_writing(SESSION)
    for first in range(0, 40, 10):
        store.commit(commit_of(first, 10, deleted=[first], metadata={first: b"m"}))
    if rebuilt:
        store.keep(1, kept_of([row for row in range(20) if row % 10]))
        store.take_into_use(LastCompaction(generation=1, sequence=2, rebuilt_until=20, deleted=2))
        while store.sweep_due:
            store.sweep(lambda rows: rows % 10 > 0)
    store.set_index_file(INDEX_FILE)
    stored = store.load()
    store.close()
    return stored
