"""What is acknowledged outlives a power cut, and a failing disk is never lied about.

A small history is recorded on a `RecordingDisk`; each of its crash states is opened with the real
engine and compared with the acknowledged contents. A failure names the state's moment and seed:
`CrashState(tuple(disk.operations), moment, seed)` is that state again.
"""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import pytest

from tests.crash_disk import CrashState, FailingDisk, Kind, RecordingDisk
from vectorshard.shard.config import BufferConfig, EngineConfig, RebuildConfig, TrainingConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.errors import Overloaded, RowFileCorrupt, WritesStopped
from vectorshard.shard.rows.id_column import _place
from vectorshard.shard.rows.slots import UInt64Array
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
    Int64Array,
    Ledger,
    Metric,
    SearchRequest,
    ShardState,
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
    rebuild=RebuildConfig(dead_rows_min=1, piece_bytes=20 * 4 * DIM, tail_rows=10),
)
WHOLE_ROWS = Include(vectors=True, metadata=True)
EVERY_ROW = (Effort(exact=True), Effort(nprobe=1_000))
"""Two searches that leave no row out: past the index, and through all of it."""

STATES = 250  # of each history
SEED = 20_250
TRAINED_AGAIN_EVERY = 10  # states
REBUILT_AGAIN_EVERY = 4

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
    got = collection.reads.get(page.ids, WHOLE_ROWS)  # checks their checksums
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
            with directory.creating_collection(name) as building:
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
    """Absorb the whole buffer."""
    while collection.maintenance.absorb_piece():
        pass


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


# ---- a recorded history -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Created:
    """The collection's creation was acknowledged."""


@dataclass(frozen=True, slots=True)
class Begun:
    """A group of writes was asked for."""

    group: Sequence[Write]


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The group of writes that was begun last is done."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The group of writes that was begun last is refused, and nothing of it done."""


class History:
    """Does things to a collection on a recording disk and marks what is acknowledged."""

    def __init__(self, disk: RecordingDisk, entry: CollectionEntry) -> None:
        self.disk = disk
        self.entry = entry
        self.write = Writes(entry.config.id_type, SEED)

    def record(self) -> None:
        """Do it all: every kind of write, training, absorbing, failures and restarts."""
        with self.reopened() as collection:
            self.disk.mark(Created())
            self.before_training(collection)
            self.around_training(collection)
            self.refuse(collection, "write", errno.ENOSPC, Overloaded)
            self.refuse(collection, "extend", errno.ENOSPC, Overloaded, rows=400)
            self.refuse(collection, "commit", errno.ENOSPC, Overloaded)
            self.do(collection, self.write.upsert(range(80, 90)))
        with self.reopened() as collection:
            self.do(collection, self.write.upsert(range(85, 100)))
            build_index(collection, now)
            collection.maintenance.checkpoint()
            self.refuse(collection, "sync", errno.EIO, WritesStopped)
        with self.reopened() as collection:
            self.do(collection, self.write.delete(range(0, 100, 9)))
            self.do(collection, self.write.upsert(range(200, 260)))
            absorb(collection)
            self.refuse(collection, "commit", errno.EIO, WritesStopped)
        with self.reopened() as collection:
            self.do(collection, self.write.upsert([3, 5, 300]))
            self.rebuild(collection)
            collection.maintenance.checkpoint()
            self.do(collection, self.write.delete([3, 4, 200]))
            self.rebuild(collection)
        with self.reopened() as collection:
            sweep(collection)  # what the stop left of the second rebuild
            self.do(collection, self.write.upsert([4, 5, 301]))
            self.do(collection, self.write.delete([301, 6]))

    def record_a_rebuild(self) -> None:
        """Write, rebuild while more is written, sweep, and write on."""
        with self.reopened() as collection:
            self.disk.mark(Created())
            self.do(collection, self.write.upsert(range(50)))
            self.do(collection, self.write.upsert(range(10, 30)), self.write.delete(range(40, 50)))
            self.rebuild(collection)
            sweep(collection)
            self.do(collection, self.write.upsert([11, 41]))

    def rebuild(self, collection: Collection) -> None:
        """Rebuild while rows are written, replaced and deleted, and begin to sweep."""
        write = self.write
        writes: list[Write] = [write.upsert([7, 302]), write.delete([302, 8]), write.upsert([8, 9])]
        meanwhile = iter(writes)

        def go_on() -> None:
            if (write := next(meanwhile, None)) is not None:
                self.do(collection, write)

        collection.compaction.run(go_on)
        assert collection.compaction.sweep_due
        collection.compaction.sweep()

    def before_training(self, collection: Collection) -> None:
        write = self.write
        first = write.upsert(range(20))
        self.do(collection, first)
        self.do(collection, write.upsert(range(20, 40), WriteMode.INSERT))
        self.do(collection, first)  # again: adds nothing
        self.do(collection, write.upsert(range(10, 30)))
        self.do(collection, write.upsert(range(25, 45), WriteMode.INSERT))
        self.do(collection, write.delete([0, 1, 2, 30, 1_000, 1_001]))
        self.do(collection, write.upsert([0, 1]))
        together = (write.upsert(range(50, 60)), write.delete([5, 6]), write.upsert(range(50, 55)))
        self.do(collection, *together)

    def around_training(self, collection: Collection) -> None:
        write = self.write
        build_index(collection, now)
        self.do(collection, write.upsert(range(60, 75)))
        collection.maintenance.checkpoint()
        self.do(collection, write.delete([10, 60, 61]))
        absorb(collection)
        self.do(collection, write.upsert([11, 12, 62, 75]))
        collection.maintenance.checkpoint()

    def reopened(self) -> AbstractContextManager[Collection]:
        """Start, as after a restart."""
        return opened(self.disk, self.disk.root / "shard-0", self.entry)

    def do(self, collection: Collection, *group: Write) -> None:
        """Write a group, and mark its acknowledgement."""
        self.disk.mark(Begun(group))
        outcomes = collection.writes.apply(group)
        self.disk.mark(Acknowledged())
        assert not any(isinstance(outcome, Exception) for outcome in outcomes), outcomes

    def refuse(
        self,
        collection: Collection,
        kind: Kind,
        code: int,
        refusal: type[Exception],
        rows: int = 10,
    ) -> None:
        """Let the disk fail a write, and mark its refusal."""
        group = (self.write.upsert(range(500, 500 + rows)), self.write.delete([7, 8]))
        self.disk.fail(kind, code=code)
        self.disk.mark(Begun(group))
        assert [type(outcome) for outcome in collection.writes.apply(group)] == [refusal] * 2
        self.disk.mark(Refused())


def possible_contents(metric: Metric, marks: Sequence[object]) -> list[Contents]:
    """Return what may be there: all that was acknowledged and, of a group, what is done in turn."""
    acknowledged = Contents(metric)
    group: Sequence[Write] = ()
    for mark in marks:
        match mark:
            case Begun():
                group = mark.group
            case Acknowledged():
                for write in group:
                    acknowledged = acknowledged.after(write)
                group = ()
            case Refused():
                group = ()
    possible = [acknowledged]
    for write in group:
        possible.append(possible[-1].after(write))
    return possible


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let files grow, and logs be checkpointed, within a few hundred rows."""
    monkeypatch.setattr("vectorshard.shard.storage.row_file.FIRST_BYTES", 1_024)
    monkeypatch.setattr("vectorshard.shard.storage.row_store.CHECKPOINT_BYTES", 100_000)


ENTRY = entry_of(IdType.STRING, Metric.L2)
KINDS = pytest.mark.parametrize(
    "entry",
    [entry_of(IdType.INT64, Metric.L2), entry_of(IdType.STRING, Metric.COSINE)],
    ids=["INT64-L2", "STRING-COSINE"],
)


@KINDS
@pytest.mark.usefixtures("small_steps")
def test_what_is_acknowledged_outlives_a_power_cut_at_any_moment(
    tmp_path: Path, entry: CollectionEntry
) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    disk = RecordingDisk(recorded)
    History(disk, entry).record()
    check_states(disk.crash_states(Random(SEED), STATES), tmp_path, entry)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.usefixtures("small_steps")
def test_a_power_cut_at_every_moment_of_a_rebuild_leaves_the_old_rows_or_the_new(
    tmp_path: Path, seed: int
) -> None:
    recorded = tmp_path / "recorded"
    recorded.mkdir()
    disk = RecordingDisk(recorded)
    History(disk, ENTRY).record_a_rebuild()
    begun = next(
        moment
        for moment, operation in enumerate(disk.operations)
        if getattr(operation, "name", "") == "rows-1.f32"
    )
    states = disk.crash_states(Random(seed), len(disk.operations) + 1)
    check_states((state for state in states if state.moment >= begun), tmp_path, ENTRY)


def check_states(states: Iterable[CrashState], path: Path, entry: CollectionEntry) -> None:
    """Check what each state leaves, in a directory of its own."""
    for number, state in enumerate(states):
        directory = path / f"state-{number}"
        directory.mkdir()
        try:
            check_state(
                state,
                directory,
                entry,
                train=number % TRAINED_AGAIN_EVERY == 0,
                rebuild=number % REBUILT_AGAIN_EVERY == 0,
            )
        except BaseException as error:
            error.add_note(f"history of seed {SEED}, {state}, kept in {directory}")
            raise
        Disk().remove_tree(directory)


def check_state(
    state: CrashState, directory: Path, entry: CollectionEntry, *, train: bool, rebuild: bool
) -> None:
    """Start on what a power cut left, compare, go on writing, and start once more."""
    state.materialise(directory)
    shard = directory / "shard-0"
    if Created() in state.marks:
        assert (shard / "collections" / "words").is_dir()
    possible = possible_contents(entry.config.metric, state.marks)
    with opened(Disk(), shard, entry) as collection:
        ledger = collection.reads.ledger()
        counts = (ledger.accepted, ledger.replaced, ledger.deleted)
        contents = next(
            (
                contents
                for contents in possible
                if (contents.accepted, contents.replaced, contents.deleted) == counts
            ),
            possible[0],
        )
        check_contents(collection, contents)
        write = Writes(entry.config.id_type, state.seed)
        contents = applied(collection, contents, write.upsert(range(35, 60)))
        contents = applied(collection, contents, write.delete([40, 50]), write.upsert([1]))
        check_contents(collection, contents)
        if train:
            build_index(collection, now)
            collection.maintenance.checkpoint()
            check_contents(collection, contents)
        if rebuild:
            collection.compaction.run(lambda: None)
            sweep(collection)
            check_contents(collection, contents)
    with opened(Disk(), shard, entry) as collection:
        check_contents(collection, contents)
        left = [path.name for path in (shard / "collections" / "words").iterdir()]
        assert sum(name.startswith("rows-") for name in left) == 1
        if train:
            assert collection.reads.ledger().indexed == len(contents.rows)
            assert sum(name.startswith("index-") for name in left) == 1


# ---- disks that fail ----------------------------------------------------------------------------

WRITE_KINDS: tuple[Kind, ...] = ("write", "sync", "commit")


@pytest.mark.parametrize("kind", [*WRITE_KINDS, "extend"])
def test_a_full_disk_refuses_a_write_and_takes_the_next(tmp_path: Path, kind: Kind) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection:
        contents = Contents(Metric.L2)
        if kind != "extend":  # which only the first write of a file needs
            contents = applied(collection, contents, write.upsert(range(30)))
        disk.fail(kind, code=errno.ENOSPC)
        (outcome,) = collection.writes.apply([write.upsert(range(20, 50))])
        assert isinstance(outcome, Overloaded)
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(25, 40)), write.delete([3]))
        check_contents(collection, contents)
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        check_contents(collection, contents)


@pytest.mark.parametrize("kind", WRITE_KINDS)
def test_a_disk_that_fails_a_write_takes_none_until_a_restart_and_is_read_on(
    tmp_path: Path, kind: Kind
) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    with opened(disk, tmp_path / "shard-0", ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        build_index(collection, now)
        disk.fail(kind, code=errno.EIO)
        groups: list[list[Write]] = [
            [write.upsert(range(20, 50)), write.delete([1])],
            [write.delete([2])],
        ]
        for group in groups:
            for outcome in collection.writes.apply(group):
                assert isinstance(outcome, WritesStopped)
            check_contents(collection, contents)
        writes_tried = dict(disk.counts)
        collection.writes.apply([write.upsert(range(50, 60))])
        assert disk.counts == writes_tried
    with opened(Disk(), tmp_path / "shard-0", ENTRY) as collection:
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(20, 50)))
        check_contents(collection, contents)


@pytest.mark.parametrize("kind", ["write", "sync", "rename", "sync_directory", "commit"])
def test_an_index_file_that_cannot_be_written_costs_no_row(tmp_path: Path, kind: Kind) -> None:
    disk, write = FailingDisk(), Writes(IdType.STRING, SEED)
    path = tmp_path / "shard-0"
    with opened(disk, path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        build_index(collection, now)
        collection.maintenance.checkpoint()
        contents = applied(collection, contents, write.upsert(range(20, 50)))
        build_index(collection, now)
        disk.fail(kind)
        with pytest.raises((OSError, sqlite3.OperationalError)):
            collection.maintenance.checkpoint()
        check_contents(collection, contents)
        contents = applied(collection, contents, write.delete([4]))
    with opened(Disk(), path, ENTRY) as collection:
        check_contents(collection, contents)
        collection.maintenance.checkpoint()
        assert len(index_files(path)) == 1


def no_memory(*_: object) -> None:
    """Stand in for what needs memory."""
    raise MemoryError("no room")


def placed_at_the_last(table: Int64Array, hashes: UInt64Array, rows: Int64Array) -> None:
    """Enter ids into the table, as `_place` does, and run out of memory then."""
    _place(table, hashes, rows)
    no_memory()


@pytest.mark.parametrize("id_type", list(IdType))
@pytest.mark.parametrize(
    ("step", "failing"),
    [
        ("vectorshard.shard.storage.row_columns.RowColumns._append_norms", no_memory),
        ("vectorshard.shard.storage.row_file.RowFile.view", no_memory),
        ("vectorshard.shard.rows.id_column.IdColumn.append", no_memory),
        ("vectorshard.shard.rows.id_column.IdIndex.put", no_memory),
        ("vectorshard.shard.rows.id_column._empty_table", no_memory),
        ("vectorshard.shard.rows.id_column._place", no_memory),
        ("vectorshard.shard.rows.id_column._place", placed_at_the_last),
    ],
)
def test_a_commit_that_cannot_be_published_stops_writes_and_is_there_after_a_restart(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    failing: Callable[..., None],
    id_type: IdType,
) -> None:
    write, entry = Writes(id_type, SEED), entry_of(id_type, Metric.L2)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        large = write.upsert(range(20, 620))  # makes the id index grow
        if failing is placed_at_the_last:  # into the table that stays
            large = write.upsert(range(20, 100))
        with monkeypatch.context() as patched:
            patched.setattr(step, failing)
            (outcome,) = collection.writes.apply([large])
        assert isinstance(outcome, WritesStopped)
        check_contents(collection, contents)
        assert collection.reads.count(large.ids) == 10
        for later in (large, write.upsert([20, 40]), write.delete([3, 40])):
            (outcome,) = collection.writes.apply([later])
            assert isinstance(outcome, WritesStopped)
        check_contents(collection, contents)
    contents = contents.after(large)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        check_contents(collection, contents)
        contents = applied(collection, contents, write.upsert(range(10, 50)), write.delete([3]))
        check_contents(collection, contents)
    with opened(Disk(), tmp_path / "shard-0", entry) as collection:
        check_contents(collection, contents)


# ---- bytes that change --------------------------------------------------------------------------


def collection_directory(path: Path) -> Path:
    """Return the directory of the collection in a data directory."""
    return path / "collections" / "words"


def index_files(path: Path) -> list[Path]:
    """Return the index files in a data directory."""
    return sorted(collection_directory(path).glob("index-*"))


def flip_bit(path: Path, at: int) -> None:
    """Change one bit of a file in its place, where a memory map of it shows the change."""
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0b100]))


@pytest.mark.parametrize("row", [0, 17, 29])
def test_a_changed_bit_in_a_row_is_named_when_the_row_is_read_and_at_the_start(
    tmp_path: Path, row: int
) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    whole_page = (0, 10_000, WHOLE_ROWS)
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        flip_bit(collection_directory(path) / "rows-0.f32", row * DIM * 4 + 9)
        found = f"row {row} "
        with pytest.raises(RowFileCorrupt, match=found):
            collection.reads.get(write.ids([row]), WHOLE_ROWS)
        with pytest.raises(RowFileCorrupt, match=found):
            collection.reads.list_rows(*whole_page)
        query = np.zeros((1, DIM), dtype=np.float32)
        request = SearchRequest(collection="words", queries=query, k=30, include=WHOLE_ROWS)
        with pytest.raises(RowFileCorrupt, match=found):
            collection.reads.search(request)
        others = write.ids([number for number in range(30) if number != row])
        rows = collection.reads.get(others, WHOLE_ROWS)
        assert rows.vectors is not None
        for id_, vector in zip(rows.ids.tolist(), rows.vectors, strict=True):
            assert vector.tobytes() == contents.rows[id_][0]
    with (
        pytest.raises(RowFileCorrupt, match=found),
        opened(Disk(), path, ENTRY),
    ):
        pass


def test_a_changed_bit_in_a_dead_row_harms_nobody(tmp_path: Path) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(30)))
        contents = applied(collection, contents, write.delete([17]))
    flip_bit(collection_directory(path) / "rows-0.f32", 17 * DIM * 4)
    with opened(Disk(), path, ENTRY) as collection:
        check_contents(collection, contents)


def changed(path: Path) -> None:
    """Change a bit in the middle of a file."""
    flip_bit(path, path.stat().st_size // 2)


def cut(path: Path) -> None:
    """Leave half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("harm", [changed, cut, Path.unlink], ids=["changed", "cut", "missing"])
def test_rows_of_a_harmed_index_file_are_buffered_and_trained_again(
    tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
        build_index(collection, now)
        contents = applied(collection, contents, write.delete([7]), write.upsert([8, 9]))
        collection.maintenance.checkpoint()
    (index_file,) = index_files(path)
    harm(index_file)
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.describe().state is ShardState.BUFFERING
        assert collection.reads.ledger().buffered == len(contents.rows)
        check_contents(collection, contents)
        assert collection.maintenance.training_due
        build_index(collection, now)
        check_contents(collection, contents)
        collection.maintenance.checkpoint()
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.ledger().indexed == len(contents.rows)
        check_contents(collection, contents)
        assert len(index_files(path)) == 1


def test_rows_newer_than_the_index_file_are_buffered(tmp_path: Path) -> None:
    write, path = Writes(IdType.STRING, SEED), tmp_path / "shard-0"
    with opened(Disk(), path, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
        build_index(collection, now)
        collection.maintenance.checkpoint()
        contents = applied(collection, contents, write.upsert(range(90, 130)), write.delete([0]))
        absorb(collection)
        assert collection.reads.ledger().buffered == 0
    with opened(Disk(), path, ENTRY) as collection:
        assert collection.reads.describe().state is ShardState.TRAINED
        assert collection.reads.ledger().buffered == 40
        check_contents(collection, contents)
        absorb(collection)
        assert collection.reads.ledger().buffered == 0
        check_contents(collection, contents)
