"""A rebuild takes the dead rows away, and nobody notices anything else of it."""

from __future__ import annotations

import errno
import math
import shutil
import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk, Kind
from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    corpus_of,
    delete,
    ids_of,
    open_collection,
    poll_until,
    some_vectors,
    write,
)
from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import WorkAbandoned, build_index
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.errors import RowsDamaged, WritesStopped
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.room import PutOff
from vectorshard.shard.types import (
    DeleteRequest,
    Effort,
    IdArray,
    IdType,
    Include,
    IndexKind,
    SearchRequest,
    UpsertRequest,
)

ENGINE = replace(
    SMALL_ENGINE,
    compaction=CompactionConfig(dead_rows_min=100, piece_bytes=40 * 4 * 8, tail_rows=5),
)
"""40 rows a piece."""

WHOLE_ROWS = Include(vectors=True, metadata=True)
BOTH = pytest.mark.parametrize("id_type", list(IdType))


def opened(directory: Path, id_type: IdType = IdType.INT64, disk: Disk | None = None) -> Collection:
    config = config_of(id_type=id_type, min_training_size=50)
    return open_collection(directory, config, engine=ENGINE, disk=disk)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """A collection that no test closes."""
    collection = opened(tmp_path)
    yield collection
    collection.close()


def keep_going() -> None:
    """Let a rebuild go on."""


def swept(collection: Collection) -> None:
    """Take away all that rebuilds have left."""
    while collection.compaction.sweep_due:
        collection.compaction.sweep()


def rebuilt(collection: Collection, go_on: Callable[[], None] = keep_going) -> None:
    """Rebuild, and take away all that it leaves."""
    collection.compaction.run(go_on)
    swept(collection)


def reopened(collection: Collection, directory: Path) -> Collection:
    collection.close()
    return Collection.open(Disk(), directory, 0, ENGINE)


def metadata_of(id_: object) -> bytes:
    return f"of {id_}".encode()


def write_with_metadata(collection: Collection, corpus: Corpus) -> None:
    metadata = [metadata_of(id_) for id_ in corpus.ids.tolist()]
    request = UpsertRequest(
        collection="words", ids=corpus.ids, vectors=corpus.vectors, metadata=metadata
    )
    (outcome,) = collection.writes.apply([request])
    assert not isinstance(outcome, Exception)


def assert_holds(collection: Collection, corpus: Corpus, *, metadata: bool = False) -> None:
    """Assert that a collection holds the rows of a corpus and nothing else, on every path."""
    assert collection.reads.count(None) == len(corpus)
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert ledger.live == len(corpus)
    got = collection.reads.get(corpus.ids, WHOLE_ROWS)
    assert got.ids.tolist() == corpus.ids.tolist()
    assert got.vectors is not None
    assert got.metadata is not None
    assert got.vectors.tobytes() == corpus.vectors.tobytes()
    if metadata:
        assert list(got.metadata) == [metadata_of(id_) for id_ in corpus.ids.tolist()]
    page, next_row = collection.reads.list_rows(0, 100_000, WHOLE_ROWS)
    assert next_row is None
    assert sorted(page.ids.tolist()) == sorted(corpus.ids.tolist())
    for effort in (Effort(exact=True), Effort(nprobe=1_000)):
        request = SearchRequest(collection="words", queries=corpus.vectors, k=1, effort=effort)
        assert collection.reads.search(request).hits.ids.tolist() == corpus.ids.tolist()


def churned(collection: Collection, id_type: IdType = IdType.INT64) -> tuple[Corpus, Corpus]:
    """Write 600 rows, replace 250 and delete 200; return the rows that live and those deleted."""
    first = corpus_of(600, id_type=id_type)
    write_with_metadata(collection, first)
    replaced = Corpus(first.ids[:250], some_vectors(250, seed=9))
    write_with_metadata(collection, replaced)
    delete(collection, first.ids[400:])
    live = Corpus(first.ids[:400], np.concatenate([replaced.vectors, first.vectors[250:400]]))
    return live, first.take(slice(400, 600))


# ---- what it leaves -----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("kind", [None, *IndexKind])
def test_rows_ids_metadata_and_ledger_are_as_before_and_after_a_restart(
    tmp_path: Path, id_type: IdType, kind: IndexKind | None
) -> None:
    config = config_of(id_type=id_type, kind=kind or IndexKind.IVF_FLAT)
    collection = open_collection(tmp_path, config, engine=ENGINE)
    live, gone = churned(collection, id_type)
    if kind is not None:
        build_index(collection, lambda: 0.0)
        collection.maintenance.checkpoint()
        delete(collection, live.ids[:50])
        live = live.take(slice(50, 400))
    before = collection.reads.ledger()
    assert len(collection.snapshot.vectors) == 850
    rebuilt(collection)
    assert len(collection.snapshot.vectors) == len(live)
    for _ in range(2):
        assert collection.reads.ledger() == before
        assert_holds(collection, live, metadata=True)
        assert collection.reads.count(gone.ids) == 0
        assert len(collection.reads.get(gone.ids, WHOLE_ROWS).ids) == 0
        collection = reopened(collection, tmp_path)
    more = Corpus(ids_of(id_type, range(-5_000, -4_700)), some_vectors(300, seed=3))
    write(collection, more)
    write_with_metadata(collection, gone)
    live = Corpus(
        np.concatenate([live.ids, more.ids, gone.ids]),
        np.concatenate([live.vectors, more.vectors, gone.vectors]),
    )
    for _ in range(2):
        assert_holds(collection, live)
        collection = reopened(collection, tmp_path)
    collection.close()


@BOTH
def test_memory_and_disk_shrink_with_the_rows(tmp_path: Path, id_type: IdType) -> None:
    dim = 256
    config = config_of(dim=dim, id_type=id_type)
    collection = open_collection(tmp_path, config)
    corpus = corpus_of(8_000, dim=dim, id_type=id_type)
    write(collection, corpus)
    delete(collection, corpus.ids[1_000:])
    before = collection.reads.describe()
    rebuilt(collection)
    after = collection.reads.describe()
    row_file_bytes = 4 * dim * 7_000
    assert before.disk_bytes - after.disk_bytes > 0.9 * row_file_bytes
    assert after.memory_bytes < before.memory_bytes / 2
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-1.f32"]
    collection = reopened(collection, tmp_path)
    assert collection.reads.describe().memory_bytes < before.memory_bytes / 2
    assert_holds(collection, corpus.take(slice(0, 1_000)))
    collection.close()


def test_the_store_forgets_what_died(tmp_path: Path, collection: Collection) -> None:
    churned(collection)
    rebuilt(collection)
    assert not collection.compaction.sweep_due
    connection = sqlite3.connect(tmp_path / "store.db")
    (commits,) = connection.execute("SELECT count(*) FROM commits").fetchone()
    (with_metadata,) = connection.execute("SELECT count(*) FROM metadata").fetchone()
    generations = connection.execute("SELECT DISTINCT generation FROM kept").fetchall()
    connection.close()
    assert (commits, with_metadata, generations) == (0, 400, [(1,)])


def test_row_numbers_stay_and_are_not_used_again(collection: Collection) -> None:
    corpus = corpus_of(200)
    write(collection, corpus)
    delete(collection, corpus.ids[150:])
    delete(collection, corpus.ids[:20])
    rebuilt(collection)
    snapshot = collection.snapshot
    rows = snapshot.tombstones.live_rows(0, snapshot.rows)
    assert rows.tolist() == list(range(20, 150))
    assert snapshot.ids_of(rows).tolist() == corpus.ids[20:150].tolist()
    write(collection, corpus.take([0]))
    assert collection.snapshot.rows == 201
    page, _ = collection.reads.list_rows(200, 10, Include())
    assert page.ids.tolist() == [corpus.ids[0]]


def test_a_collection_may_be_rebuilt_to_nothing_and_filled_again(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    corpus = corpus_of(130)
    write(collection, corpus)
    build_index(collection, lambda: 0.0)
    delete(collection, corpus.ids)
    rebuilt(collection)
    assert len(collection.snapshot.vectors) == 0
    for turn in range(3):
        assert_holds(collection, Corpus(corpus.ids[:0], corpus.vectors[:0]))
        write(collection, corpus)
        assert_holds(collection, corpus)
        collection = reopened(collection, tmp_path)
        assert_holds(collection, corpus)
        delete(collection, corpus.ids)
        if turn:
            rebuilt(collection)
    collection.close()


def test_rebuilds_follow_each_other(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    corpus = corpus_of(300)
    write_with_metadata(collection, corpus)
    for turn in range(6):
        part = slice(turn * 40, turn * 40 + 60)
        vectors = corpus.vectors.copy()
        vectors[part] = some_vectors(60, seed=turn + 1)
        corpus = Corpus(corpus.ids, vectors)
        write_with_metadata(collection, corpus.take(part))
        rebuilt(collection)
        if turn % 2:
            collection = reopened(collection, tmp_path)
        assert_holds(collection, corpus, metadata=True)
        assert len(collection.snapshot.vectors) == 300
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-6.f32"]
    collection.close()


# ---- what goes on meanwhile ---------------------------------------------------------------------


@BOTH
def test_what_is_written_replaced_and_deleted_meanwhile_is_as_if_there_were_no_rebuild(
    tmp_path: Path, id_type: IdType
) -> None:
    collection = opened(tmp_path, id_type)
    live, gone = churned(collection, id_type)
    more = Corpus(ids_of(id_type, range(-5_000, -4_800)), some_vectors(200, seed=5))
    held = dict(zip(live.ids.tolist(), live.vectors, strict=True))

    def upsert(corpus: Corpus) -> None:
        write(collection, corpus)
        held.update(zip(corpus.ids.tolist(), corpus.vectors, strict=True))

    def remove(corpus: Corpus) -> None:
        delete(collection, corpus.ids)
        for id_ in corpus.ids.tolist():
            del held[id_]

    steps: Iterator[Callable[[], None]] = iter(
        [
            lambda: upsert(more.take(slice(0, 100))),
            lambda: remove(live.take(slice(0, 60))),
            lambda: upsert(gone.take(slice(0, 30))),
            lambda: remove(more.take(slice(50, 100))),
            lambda: upsert(Corpus(more.ids[:30], some_vectors(30, seed=6))),
            lambda: remove(gone.take(slice(0, 10))),
            lambda: upsert(more.take(slice(40, 60))),
        ]
    )

    def go_on() -> None:
        step = next(steps, None)
        if step is not None:
            step()
        assert collection.reads.ledger().live == len(held)

    rebuilt(collection, go_on)
    assert next(steps, None) is None
    ids: IdArray = np.array(list(held), dtype=live.ids.dtype)  # type: ignore[assignment]
    expected = Corpus(ids, np.stack(list(held.values())))
    for _ in range(2):
        assert_holds(collection, expected)
        collection = reopened(collection, tmp_path)
    collection.close()


def test_a_listing_that_straddles_rebuilds_returns_each_row_that_lives_throughout_once(
    collection: Collection,
) -> None:
    live, _ = churned(collection)
    listed: list[int] = []
    next_row: int | None = 0
    doomed = iter([live.ids[first : first + 10] for first in range(0, 100, 10)])
    while next_row is not None:
        page, next_row = collection.reads.list_rows(next_row, 45, WHOLE_ROWS)
        listed += page.ids.tolist()
        if (ids := next(doomed, None)) is not None:
            delete(collection, ids)
            rebuilt(collection)
    assert len(listed) == len(set(listed))
    assert set(live.ids[100:].tolist()) <= set(listed) <= set(live.ids.tolist())


def test_who_holds_a_snapshot_from_before_reads_on_in_the_old_file(
    tmp_path: Path, collection: Collection
) -> None:
    live, _ = churned(collection)
    build_index(collection, lambda: 0.0)
    old = collection.snapshot
    rows = old.tombstones.live_rows(0, old.rows)
    delete(collection, live.ids[:200])
    collection.compaction.run(keep_going)
    assert not (tmp_path / "rows-0.f32").exists()
    assert (
        not collection.compaction.sweep_due
    )  # the old rows' checksums and metadata are read still
    write(collection, Corpus(live.ids[:200], some_vectors(200, seed=8)))
    assert sorted(old.ids_of(rows).tolist()) == sorted(live.ids.tolist())
    assert not len(collection.state.mismatches(old, rows))
    metadata = collection.state.row_store.metadata(rows)
    assert metadata == [metadata_of(id_) for id_ in old.ids_of(rows).tolist()]
    found = old.between(0, old.rows).candidates(collection.entry.config.metric, live.vectors, 1)
    assert set(rows.tolist()) == set(found.row_of.tolist())
    del old
    assert collection.compaction.sweep_due
    swept(collection)


@contextmanager
def running(*steps: Callable[[int], None]) -> Iterator[None]:
    """Run each step over and over in its own thread, until the context ends; no step may fail."""
    done = threading.Event()
    failures: list[BaseException] = []

    def run(step: Callable[[int], None]) -> None:
        try:
            for turn in count():
                if done.is_set():
                    return
                step(turn)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def search_for(collection: Collection, steady: Corpus, turn: int) -> None:
    """Search for twenty rows in every way."""
    for effort in (Effort(exact=True), Effort(nprobe=1_000)):
        part = steady.take(slice(turn * 20 % 200, turn * 20 % 200 + 20))
        request = SearchRequest(
            collection="words", queries=part.vectors, k=1, effort=effort, include=WHOLE_ROWS
        )
        found = collection.reads.search(request)
        assert found.hits.ids.tolist() == part.ids.tolist()
        assert found.metadata == [metadata_of(id_) for id_ in part.ids.tolist()]


def read_all(collection: Collection, steady: Corpus, _: int) -> None:
    """Get the rows, and list each of them once."""
    got = collection.reads.get(steady.ids, WHOLE_ROWS)
    assert got.vectors is not None
    assert got.vectors.tobytes() == steady.vectors.tobytes()
    listed: list[int] = []
    next_row: int | None = 0
    while next_row is not None:
        page, next_row = collection.reads.list_rows(next_row, 60, WHOLE_ROWS)
        listed += page.ids.tolist()
    counts = Counter(listed)
    assert {counts[id_] for id_ in steady.ids.tolist()} == {1}
    assert collection.reads.ledger().adds_up
    assert collection.reads.describe().disk_bytes > 0


def test_reads_and_writes_go_on_in_other_threads(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    steady = corpus_of(200)
    write_with_metadata(collection, steady)
    build_index(collection, lambda: 0.0)

    def churn(turn: int) -> None:
        ids = np.arange(50_000, 50_080)
        write(collection, Corpus(ids, some_vectors(80, seed=turn + 1)))
        if turn % 3 == 0:
            delete(collection, ids[::2])

    def absorb(_: int) -> None:
        collection.maintenance.absorb_piece()

    steps = [partial(step, collection, steady) for step in (search_for, read_all)]
    with running(churn, absorb, *steps):
        for turn in range(12):
            rebuilt(collection)
            if turn % 5 == 4:
                build_index(collection, lambda: 0.0)
    assert collection.reads.ledger().adds_up
    collection.close()


# ---- when it is due -----------------------------------------------------------------------------


def test_a_rebuild_is_due_when_half_of_the_rows_are_dead_and_they_are_many(
    collection: Collection,
) -> None:
    corpus = corpus_of(150)
    write(collection, corpus)
    delete(collection, corpus.ids[:99])
    assert not collection.compaction.due  # too few
    delete(collection, corpus.ids[99:100])
    assert collection.compaction.due
    rebuilt(collection)
    assert not collection.compaction.due
    more = corpus_of(500, seed=1)
    write(collection, Corpus(more.ids + 1_000_000_000, more.vectors))
    delete(collection, more.ids[:274] + 1_000_000_000)
    assert not collection.compaction.due  # 274 of 550
    delete(collection, more.ids[274:275] + 1_000_000_000)
    assert collection.compaction.due


def test_a_tenth_is_enough_when_a_training_was_asked_for(collection: Collection) -> None:
    corpus = corpus_of(1_000)
    write(collection, corpus)
    delete(collection, corpus.ids[:99])
    collection.compaction.ask()
    assert not collection.compaction.due
    delete(collection, corpus.ids[99:100])
    collection.compaction.ask()
    assert collection.compaction.due
    rebuilt(collection)
    assert not collection.compaction.due


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("open", 0),
        ("sync_directory", 0),
        ("extend", 0),
        ("write", 0),
        ("write", 9),
        ("sync", 3),
        ("commit", 0),
        ("commit", 9),
        ("commit", 10),
        ("remove", 0),
    ],
)
def test_a_disk_that_fails_a_rebuild_leaves_everything_as_it_was(
    tmp_path: Path, kind: Kind, after: int, code: int
) -> None:
    disk = FailingDisk()
    collection = opened(tmp_path, disk=disk)
    live, _ = churned(collection)
    assert collection.compaction.due
    disk.fail(kind, after=after, code=code)
    if kind == "remove":  # of the old file, when all is done
        collection.compaction.run(keep_going)
    else:
        full = code == errno.ENOSPC
        with pytest.raises(PutOff if full else (OSError, sqlite3.OperationalError)):
            collection.compaction.run(keep_going)
    assert not collection.compaction.due  # nor is it tried again at once
    collection.state.room._clock = lambda: math.inf
    assert_holds(collection, live, metadata=True)
    swept(collection)
    delete(collection, live.ids[:300])
    live = live.take(slice(300, 400))
    assert_holds(collection, live, metadata=True)
    assert collection.compaction.due
    assert_restarts_with(tmp_path, live)
    rebuilt(collection)
    assert len(collection.snapshot.vectors) == len(live)
    for _ in range(2):
        assert_holds(collection, live, metadata=True)
        collection = reopened(collection, tmp_path)
    assert len(list(tmp_path.glob("rows-*"))) == 1
    collection.close()


def assert_restarts_with(directory: Path, corpus: Corpus) -> None:
    """Assert what a process that is killed now would leave."""
    killed = directory / "killed"
    killed.mkdir()
    for path in directory.iterdir():
        if path.is_file():
            shutil.copy(path, killed)
    collection = Collection.open(Disk(), killed, 0, ENGINE)
    assert_holds(collection, corpus, metadata=True)
    collection.close()


def test_a_rebuild_that_cannot_be_published_stops_writes_and_is_there_after_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = opened(tmp_path)
    live, _ = churned(collection)

    def no_memory(*_: object) -> None:
        raise MemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(CollectionState, "publish_columns", no_memory)
        with pytest.raises(WritesStopped):
            collection.compaction.run(keep_going)
    assert_holds(collection, live, metadata=True)
    (outcome,) = collection.writes.apply([DeleteRequest(collection="words", ids=live.ids)])
    assert isinstance(outcome, WritesStopped)
    collection = reopened(collection, tmp_path)
    assert len(collection.snapshot.vectors) == len(live)
    assert_holds(collection, live, metadata=True)
    collection.close()


def test_a_rebuild_whose_commit_failed_may_prove_to_have_happened(tmp_path: Path) -> None:
    class LyingDisk(FailingDisk):
        """Says of a commit that it failed when the disk has it already."""

        lies = False

        def commit(self, connection: sqlite3.Connection) -> None:
            super().commit(connection)
            ((named,),) = connection.execute(
                "SELECT count(*) FROM properties WHERE value = 'rows-1.f32'"
            ).fetchall()
            if self.lies and named:
                raise sqlite3.OperationalError("disk I/O error")

    disk = LyingDisk()
    collection = opened(tmp_path, disk=disk)
    live, _ = churned(collection)
    disk.lies = True
    with pytest.raises(sqlite3.OperationalError):
        collection.compaction.run(keep_going)
    assert_holds(collection, live, metadata=True)
    assert_restarts_with(tmp_path, live)
    collection.close()


def test_a_sweep_that_fails_is_not_tried_again_before_the_next_rebuild_or_start(
    tmp_path: Path,
) -> None:
    disk = FailingDisk()
    collection = opened(tmp_path, disk=disk)
    live, _ = churned(collection)
    collection.compaction.run(keep_going)
    disk.fail("commit")
    with pytest.raises(sqlite3.OperationalError):
        collection.compaction.sweep()
    assert not collection.compaction.sweep_due
    assert_holds(collection, live, metadata=True)
    collection = reopened(collection, tmp_path)
    assert collection.compaction.sweep_due
    swept(collection)
    assert_holds(collection, live, metadata=True)
    collection.close()


def test_a_rebuild_and_a_sweep_wait_for_room_and_leave_no_file_behind(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    live, _ = churned(collection)
    room, sizes = collection.state.room, list[int]()

    def no_room(size: int) -> str:
        sizes.append(size)
        return "no room"

    collection.compaction.ask()
    for work in (partial(collection.compaction.run, keep_going), collection.compaction.sweep):
        room.shortage = no_room
        with pytest.raises(PutOff):
            work()
        assert not collection.compaction.due
        assert not collection.compaction.sweep_due
        assert len(list(tmp_path.glob("rows-*"))) == 1
        room.shortage = lambda _: ""
        if collection.compaction.due:
            collection.compaction.run(keep_going)
            assert collection.compaction.sweep_due
    assert sizes[0] > 4 * live.vectors.size
    assert collection.compaction.sweep_due
    swept(collection)
    assert_holds(collection, live, metadata=True)
    collection.close()


def test_a_rebuild_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, collection: Collection
) -> None:
    live, _ = churned(collection)
    calls = 0

    def stop_later() -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise WorkAbandoned

    with pytest.raises(WorkAbandoned):
        collection.compaction.run(stop_later)
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-0.f32"]
    assert_holds(collection, live, metadata=True)


def test_a_rebuild_that_a_close_overtakes_touches_nothing_any_more(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    live, _ = churned(collection)
    closer = threading.Thread(target=collection.close)

    def go_on() -> None:
        """Let the close wait for the step that runs, and begin no other."""
        if collection.closed:
            raise WorkAbandoned
        if not closer.ident:
            closer.start()
            poll_until(lambda: collection.closed)

    with pytest.raises(WorkAbandoned):
        collection.compaction.run(go_on)
    closer.join()
    assert (tmp_path / "rows-1.f32").exists()
    collection = Collection.open(Disk(), tmp_path, 0, ENGINE)
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-0.f32"]
    assert_holds(collection, live, metadata=True)
    collection.close()


def test_a_changed_bit_is_noticed_in_a_rebuilt_file_too(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    live, _ = churned(collection)
    rebuilt(collection)
    with (tmp_path / "rows-1.f32").open("r+b") as file:
        file.seek(100 * 8 * 4)
        (byte,) = file.read(1)
        file.seek(100 * 8 * 4)
        file.write(bytes([byte ^ 1]))
    rows = collection.snapshot.positions.rows_at(np.array([100]))
    (id_,) = collection.snapshot.ids_of(rows).tolist()
    with pytest.raises(RowsDamaged, match=f"id {id_} "):
        collection.reads.get(live.ids, WHOLE_ROWS)
    collection = reopened(collection, tmp_path)
    assert collection.snapshot.damaged.tolist() == rows.tolist()
    collection.close()


def test_files_of_a_rebuild_that_a_crash_cut_short_are_removed(tmp_path: Path) -> None:
    collection = opened(tmp_path)
    corpus = corpus_of(100)
    write(collection, corpus)
    (tmp_path / "rows-7.f32").write_bytes(b"rest")
    collection = reopened(collection, tmp_path)
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-0.f32"]
    assert_holds(collection, corpus)
    collection.close()
