"""What a collection must hold after some writes, and a check of every way to read it.

`Contents` is the expected state, `opened` a collection in a data directory, `Writes` makes writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

import numpy as np

from vectorshard.shard.config import BufferConfig, CompactionConfig, EngineConfig, TrainingConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.storage.data_directory import DataDirectory, ShardIdentity
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    DeleteRequest,
    Effort,
    Float32Array,
    IdArray,
    IdType,
    Include,
    IndexConfig,
    Ledger,
    Metric,
    SearchRequest,
    UpsertRequest,
    VectorArray,
    WriteMode,
)

DIM = 8
IDENTITY = ShardIdentity(
    cluster="test", shard=0, shards_total=1, slots=((0, 4_095),), placement_epoch=1
)
ENGINE = EngineConfig(
    buffer=BufferConfig(absorb_rows=20, absorb_piece_rows=7),
    training=TrainingConfig(calibration_queries=8, checkpoint_min_rows=10),
    compaction=CompactionConfig(
        dead_rows_min=1, dead_codes_min=1, piece_bytes=20 * 4 * DIM, tail_rows=10
    ),
    few_rows_work=0,
)
WHOLE_ROWS = Include(vectors=True, metadata=True)
EVERY_ROW = (Effort(exact=True), Effort(nprobe=1_000))
"""Two searches that leave no row out: past the index, and through all of it."""

SEED = 20_250

Id = int | str
Write = UpsertRequest | DeleteRequest


# ---- what must be there -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Contents:
    """The live rows, id -> (vector's bytes, metadata), and what the ledger counts of the others."""

    metric: Metric
    rows: Mapping[Id, tuple[bytes, bytes]] = field(default_factory=dict)
    accepted: int = 0
    replaced: int = 0
    deleted: int = 0

    def after(self, write: Write) -> Contents:
        """Return the contents once a write is done, wholly."""
        rows = dict(self.rows)
        if isinstance(write, DeleteRequest):
            assert write.ids is not None
            there = [id_ for id_ in write.ids.tolist() if id_ in rows]
            for id_ in there:
                del rows[id_]
            return replace(self, rows=rows, deleted=self.deleted + len(there))
        accepted, replaced = self.accepted, self.replaced
        vectors = kept(self.metric, write.vectors)
        for index, id_ in enumerate(write.ids.tolist()):
            content = (vectors[index].tobytes(), write.metadata[index] if write.metadata else b"")
            if rows.get(id_) == content or (id_ in rows and write.mode is WriteMode.INSERT):
                continue
            replaced += id_ in rows
            accepted += 1
            rows[id_] = content
        return replace(self, rows=rows, accepted=accepted, replaced=replaced)


def kept(metric: Metric, vectors: VectorArray) -> Float32Array:
    """Return vectors as a collection keeps them: of norm 1 under COSINE."""
    exact = vectors.astype(np.float64)
    if metric is Metric.COSINE:
        exact /= np.sqrt((exact**2).sum(axis=1, keepdims=True))
    return exact.astype(np.float32)


def check_contents(collection: Collection, contents: Contents) -> None:
    """Compare all that a collection says with what it must say."""
    page, next_row = collection.reads.list_rows(0, 10_000, WHOLE_ROWS)
    assert next_row is None
    assert page.vectors is not None
    assert page.metadata is not None
    found = {
        id_: (vector.tobytes(), metadata)
        for id_, vector, metadata in zip(
            page.ids.tolist(), page.vectors, page.metadata, strict=True
        )
    }
    assert found == contents.rows
    assert len(page.ids) == len(contents.rows) == collection.reads.count(None)
    got = collection.reads.get(page.ids, WHOLE_ROWS)  # verifies their content hashes
    assert got.ids.tolist() == page.ids.tolist()
    assert collection.reads.count(page.ids) == len(page.ids)
    check_ledger(collection, contents)
    check_searches(collection, page.ids, page.vectors)


def check_ledger(collection: Collection, contents: Contents) -> None:
    """Compare the ledger, counted anew by the index, with the contents."""
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert ledger == Ledger(
        accepted=contents.accepted,
        buffered=ledger.buffered,
        indexed=ledger.indexed,
        deleted=contents.deleted,
        replaced=contents.replaced,
    )


def check_searches(collection: Collection, ids: IdArray, vectors: Float32Array) -> None:
    """Check that each live row is its own nearest hit, and that only live rows are found."""
    perfect = 0.0 if collection.entry.config.metric is Metric.L2 else 1.0
    somewhere = np.ones((1, DIM), dtype=np.float32)
    for effort in EVERY_ROW:
        request = SearchRequest(collection="words", queries=vectors, k=1, effort=effort)
        found = collection.reads.search(request)
        assert found.hits.ids.tolist() == ids.tolist()
        np.testing.assert_allclose(found.hits.scores, perfect, atol=1e-6)
        assert found.receipt.shards[0].rows_visible == len(ids)
        all_hits = collection.reads.search(replace(request, queries=somewhere, k=1_000)).hits.ids
        assert sorted(all_hits.tolist()) == sorted(ids.tolist())


# ---- a collection in a data directory -----------------------------------------------------------


def entry_of(id_type: IdType, metric: Metric) -> CollectionEntry:
    """Return a collection whose index is trained when the test says so."""
    config = CollectionConfig(
        name="words",
        dim=DIM,
        metric=metric,
        id_type=id_type,
        index=IndexConfig(min_training_size=10),
    )
    return CollectionEntry(config=config, incarnation="first")


@contextmanager
def opened(disk: Disk, path: Path, entry: CollectionEntry) -> Iterator[Collection]:
    """Open the data directory and the collection in it, creating what is absent."""
    with closing(DataDirectory.open(disk, path, IDENTITY)) as directory:
        name = entry.config.name
        if not directory.collection_directories():
            with directory.creating_collection(name, entry.incarnation) as building:
                Collection.create(disk, building, entry)
        collection = Collection.open(disk, directory.collection_directory(name), 0, ENGINE)
        with closing(collection):
            assert collection.entry == entry
            yield collection


class Writes:
    """Makes writes of one collection: the same ones from the same seed.

    Parameters
    ----------
    id_type
        The collection's.
    seed
        Of the vectors.
    """

    def __init__(self, id_type: IdType, seed: int) -> None:
        self._id_type = id_type
        self._random = np.random.default_rng(seed)
        self._count = count()

    def ids(self, numbers: Sequence[int]) -> IdArray:
        """Return the ids of some numbers."""
        if self._id_type is IdType.INT64:
            return np.array(numbers, dtype=np.int64)
        return np.array([f"wört-{number}" for number in numbers], dtype=object)

    def upsert(self, numbers: Sequence[int], mode: WriteMode = WriteMode.UPSERT) -> UpsertRequest:
        """Return rows of new vectors, every third with metadata."""
        vectors = self._random.standard_normal((len(numbers), DIM)).astype(np.float32)
        tag = next(self._count)
        return UpsertRequest(
            collection="words",
            ids=self.ids(numbers),
            vectors=vectors,
            metadata=[b"" if number % 3 else b"%d-%d" % (tag, number) for number in numbers],
            mode=mode,
        )

    def delete(self, numbers: Sequence[int]) -> DeleteRequest:
        """Return a delete."""
        return DeleteRequest(collection="words", ids=self.ids(numbers))


def now() -> float:
    """Return a time, always the same."""
    return 1_700_000_000.0


def absorb(collection: Collection) -> None:
    """Absorb the whole buffer; the index must hold its rows."""
    while collection.maintenance.absorb_piece():
        assert collection.reads.ledger().adds_up
    assert collection.reads.ledger().buffered == 0


def sweep(collection: Collection) -> None:
    """Take away all that rebuilds have left."""
    while collection.compaction.sweep_due:
        collection.compaction.sweep()


def applied(collection: Collection, contents: Contents, *group: Write) -> Contents:
    """Write a group that must succeed; return the contents after it."""
    for outcome in collection.writes.apply(group):
        assert not isinstance(outcome, Exception), outcome
    for each in group:
        contents = contents.after(each)
    return contents


ENTRY = entry_of(IdType.STRING, Metric.L2)
