"""What many tests need: collections, corpora, a shard on a temporary directory, a clock to hold.

Nothing here asserts; what is true of an answer is said in the tests and in `reference`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vectorshard.shard.config import (
    SLOTS_TOTAL,
    BufferConfig,
    EngineConfig,
    TrainingConfig,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.commit_plan import DeleteOutcome, UpsertOutcome
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.storage.data_directory import ShardIdentity
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    DeleteRequest,
    Float32Array,
    IdArray,
    IdType,
    IndexConfig,
    IndexKind,
    Int64Array,
    Metric,
    UpsertRequest,
)

DEADLINE_S = 30.0
"""How long a test waits for what must happen before it fails."""

NEVER = 1_000_000
"""A min_training_size that no test reaches."""

ALL_SLOTS = ((0, SLOTS_TOTAL - 1),)

SMALL_ENGINE = EngineConfig(
    buffer=BufferConfig(absorb_rows=50, absorb_piece_rows=20),
    training=TrainingConfig(calibration_queries=32, checkpoint_min_rows=1, pq_rows_min=1),
    few_rows_work=0,
)
"""Small enough that a few hundred rows are trained, absorbed, written to disk and searched by the
index."""


class TrainingGate:
    """A clock for trainings that can be held when one starts, and when one is about to publish.

    A builder thread reads its clock twice a training: at its start, and when the new index is
    complete. Each Event lets trainings pass while it is set, as both are at first.
    """

    def __init__(self) -> None:
        self.start = threading.Event()
        self.end = threading.Event()
        self._reads = threading.local()
        self.open()

    def open(self) -> None:
        """Let everything pass."""
        self.start.set()
        self.end.set()

    def __call__(self) -> float:
        """Return seconds since 1970, once the gate is open."""
        reads: int = getattr(self._reads, "count", 0)
        self._reads.count = reads + 1
        gate = self.end if reads % 2 else self.start
        if not gate.wait(DEADLINE_S):
            raise TimeoutError("nobody opened the gate")
        return 1_700_000_000.0 + reads


def poll_until(reached: Callable[[], bool]) -> None:
    """Look again and again until another thread has come to where it is expected."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached():
        assert time.monotonic() < deadline


def config_of(
    name: str = "words",
    *,
    dim: int = 8,
    metric: Metric = Metric.L2,
    id_type: IdType = IdType.INT64,
    kind: IndexKind = IndexKind.IVF_FLAT,
    min_training_size: int = NEVER,
    target_recall: float = 0.95,
) -> CollectionConfig:
    """Return a collection that trains only when it is told to, unless a size is given."""
    return CollectionConfig(
        name=name,
        dim=dim,
        metric=metric,
        id_type=id_type,
        index=IndexConfig(kind=kind, min_training_size=min_training_size),
        target_recall=target_recall,
    )


def int64s(*ids: int) -> Int64Array:
    """Return ids as an int64 array."""
    return np.array(ids, dtype=np.int64)


def strings(*ids: str) -> IdArray:
    """Return ids as an object array."""
    array = np.empty(len(ids), dtype=np.object_)
    array[:] = ids
    return array


def ids_of(id_type: IdType, numbers: Sequence[int]) -> IdArray:
    """Return one id for each number; STRING ids are of one to four bytes a character."""
    if id_type is IdType.INT64:
        return np.array(numbers, dtype=np.int64)
    return strings(*(f"słowo-{number}-日本-🙂" for number in numbers))


def some_vectors(rows: int, dim: int = 8, seed: int = 0) -> Float32Array:
    """Return float32 (rows, dim) of normal components."""
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows as a caller knows them: ids (rows,) and vectors float32 (rows, dim)."""

    ids: IdArray
    vectors: Float32Array

    def __len__(self) -> int:
        """Rows."""
        return len(self.ids)

    def take(self, rows: Sequence[int] | slice | Int64Array) -> Corpus:
        """Return some of the rows."""
        return Corpus(self.ids[rows], self.vectors[rows])


def corpus_of(rows: int, *, dim: int = 8, id_type: IdType = IdType.INT64, seed: int = 0) -> Corpus:
    """Return random rows; their ids are neither dense nor in order, and some are negative."""
    numbers = np.random.default_rng(seed).permutation(rows) * 7_919 - 1_000
    return Corpus(ids_of(id_type, numbers.tolist()), some_vectors(rows, dim, seed))


def identity_of(
    shard: int = 0,
    shards_total: int = 1,
    slots: tuple[tuple[int, int], ...] = ALL_SLOTS,
    cluster: str = "cluster",
) -> ShardIdentity:
    """Return who a shard of a test is."""
    return ShardIdentity(
        cluster=cluster, shard=shard, shards_total=shards_total, slots=slots, placement_epoch=1
    )


def open_shard(
    path: Path,
    *,
    identity: ShardIdentity | None = None,
    engine: EngineConfig = SMALL_ENGINE,
    clock: Callable[[], float] | None = None,
    disk: Disk | None = None,
) -> LocalShard:
    """Open a shard on a directory; by default one that owns all slots."""
    return LocalShard.open(
        disk or Disk(),
        path,
        identity or identity_of(),
        engine,
        clock if clock is not None else TrainingGate(),
    )


def open_collection(
    directory: Path,
    config: CollectionConfig | None = None,
    *,
    engine: EngineConfig = SMALL_ENGINE,
    disk: Disk | None = None,
) -> Collection:
    """Create a collection in an empty directory and open it, without a shard or a thread."""
    entry = CollectionEntry(config=config or config_of(), incarnation="incarnation")
    Collection.create(disk or Disk(), directory, entry)
    return Collection.open(disk or Disk(), directory, 0, engine)


def write(collection: Collection, corpus: Corpus) -> None:
    """Write a corpus into a collection; every row must be accepted."""
    request = UpsertRequest(
        collection=collection.entry.config.name, ids=corpus.ids, vectors=corpus.vectors
    )
    (outcome,) = collection.writes.apply([request])
    assert isinstance(outcome, UpsertOutcome), outcome
    assert outcome.accepted == len(corpus)


def delete(collection: Collection, ids: IdArray) -> None:
    """Delete rows of a collection; all must be there."""
    (outcome,) = collection.writes.apply(
        [DeleteRequest(collection=collection.entry.config.name, ids=ids)]
    )
    assert outcome == DeleteOutcome(deleted=len(ids), sequence=collection.snapshot.sequence)


def open_files(below: Path) -> list[str]:
    """Return the names of the files below a directory that this process has open."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            target = descriptor.readlink()
        except FileNotFoundError:  # that of the listing itself
            continue
        if target.is_relative_to(below):
            found.append(str(target.relative_to(below)))
    return sorted(found)
