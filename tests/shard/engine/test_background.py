"""The background work: what a build leaves behind, and what becomes of one that fails."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk
from tests.shard.samples import (
    DEADLINE_S,
    SMALL_ENGINE,
    Corpus,
    TrainingGate,
    config_of,
    corpus_of,
    delete,
    open_collection,
    poll_until,
    some_vectors,
    write,
)
from vectorshard.shard.config import BufferConfig, CompactionConfig, EngineConfig, TrainingConfig
from vectorshard.shard.engine import background
from vectorshard.shard.engine.background import (
    REST_A_PIECE,
    SEARCHES_COME_S,
    BackgroundThreads,
    Pace,
)
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.compaction import Compaction
from vectorshard.shard.engine.index_builder import WorkAbandoned, build_index
from vectorshard.shard.engine.maintenance import Maintenance
from vectorshard.shard.engine.upkeep import GROWTH_BEFORE_RETRAINING
from vectorshard.shard.errors import CollectionNotFound
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    Effort,
    Float32Array,
    IndexKind,
    Int64Array,
    Metric,
    SearchRequest,
    ShardState,
    UInt8Array,
)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """A collection of which nobody takes care."""
    collection = open_collection(tmp_path, config_of(min_training_size=50))
    yield collection
    collection.close()


class Care:
    """Background threads with a gate for their clock, and a wait for what becomes of a
    collection."""

    def __init__(self) -> None:
        self.gate = TrainingGate()
        self.threads = BackgroundThreads(self.clock)
        self.failure: Exception | None = None
        self.failures = 0
        self._changed = threading.Condition()

    def clock(self) -> float:
        if self.failure is not None:
            self.failures += 1
            raise self.failure
        return self.gate()

    def take(self, collection: Collection) -> None:
        """Attach a collection; every change of it wakes who waits here as well."""
        self.threads.attach(collection)
        wake_threads = collection.state.on_change

        def on_change() -> None:
            with self._changed:
                self._changed.notify_all()
            wake_threads()

        collection.state.on_change = on_change

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait until a change brings the collection to where it should be."""
        with self._changed:
            while not reached():
                assert self._changed.wait(DEADLINE_S) or reached()


@pytest.fixture
def care() -> Iterator[Care]:
    care = Care()
    care.threads.start()
    yield care
    care.gate.open()
    care.threads.stop()


def assert_exact(collection: Collection, corpus: Corpus, *, exact: bool = False) -> None:
    """Assert that each row of a corpus is its own nearest hit, and that the ledger adds up."""
    found = collection.reads.search(
        SearchRequest(
            collection="words",
            queries=corpus.vectors,
            k=1,
            effort=Effort(exact=True) if exact else Effort(nprobe=10_000),
        )
    )
    assert found.hits.ids.tolist() == corpus.ids.tolist()
    assert collection.reads.ledger().adds_up


# ---- building -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(IndexKind))
@pytest.mark.parametrize("metric", list(Metric))
def test_a_build_leaves_every_living_row_in_the_index(
    tmp_path: Path, metric: Metric, kind: IndexKind
) -> None:
    collection = open_collection(tmp_path, config_of(metric=metric, kind=kind))
    corpus = corpus_of(500)
    write(collection, corpus)
    delete(collection, corpus.ids[:100])
    times = iter([1_000.0, 1_002.5])
    build_index(collection, lambda: next(times))
    description = collection.reads.describe()
    assert (description.state, description.generation) == (ShardState.TRAINED, 1)
    assert (description.last_trained_at, description.last_training_s) == (1_002.5, 2.5)
    assert (description.nlist, description.rows_trained_on) == (10, 400)
    assert (description.ledger.indexed, description.ledger.buffered) == (400, 0)
    assert description.ledger.adds_up
    assert description.measured_recall >= 0.95
    collection.close()


def test_a_build_without_living_rows_leaves_everything_as_it_was(collection: Collection) -> None:
    build_index(collection, lambda: 0.0)
    assert collection.snapshot.index is None
    corpus = corpus_of(20)
    write(collection, corpus)
    delete(collection, corpus.ids)
    build_index(collection, lambda: 0.0)
    assert collection.snapshot.index is None


def test_rows_that_arrive_or_die_while_an_index_is_built_are_neither_lost_nor_doubled(
    collection: Collection,
) -> None:
    corpus = corpus_of(600)
    write(collection, corpus.take(slice(0, 300)))
    arriving = iter(range(300, 600, 30))

    def meanwhile() -> bool:
        """Between two steps of the build thirty rows arrive and ten die."""
        if (first := next(arriving, None)) is not None:
            write(collection, corpus.take(slice(first, first + 30)))
            delete(collection, corpus.ids[first - 300 : first - 290])
        return False

    build_index(collection, lambda: 0.0, meanwhile)
    while next(arriving, None) is not None:
        pass
    written = collection.snapshot.rows
    live = [row for row in range(written) if not (row < written - 300 and row % 30 < 10)]
    assert_exact(collection, corpus.take(live))
    assert_exact(collection, corpus.take(live), exact=True)
    assert collection.reads.ledger().live == len(live)


def test_a_build_survives_the_death_of_all_its_rows(collection: Collection) -> None:
    corpus = corpus_of(100)
    write(collection, corpus)

    asked = count(1)

    def meanwhile() -> bool:
        if next(asked) == 2:  # after k-means
            delete(collection, corpus.ids)
        return False

    build_index(collection, lambda: 0.0, meanwhile)
    assert collection.reads.ledger().live == 0
    write(collection, corpus)
    assert_exact(collection, corpus)


def test_a_build_that_nobody_needs_any_more_is_abandoned(collection: Collection) -> None:
    write(collection, corpus_of(100))
    with pytest.raises(WorkAbandoned):
        build_index(collection, lambda: 0.0, lambda: True)
    assert collection.snapshot.index is None


def test_the_same_rows_give_the_same_index(tmp_path: Path) -> None:
    serialized: list[UInt8Array] = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        collection = open_collection(tmp_path / name)
        write(collection, corpus_of(300))
        build_index(collection, lambda: 0.0)
        index = collection.snapshot.index
        assert index is not None
        serialized.append(index.ivf.to_bytes())
        collection.close()
    np.testing.assert_array_equal(serialized[0], serialized[1])


def test_few_points_a_list_are_sampled_from_many_rows(tmp_path: Path) -> None:
    engine = EngineConfig(
        buffer=SMALL_ENGINE.buffer,
        training=TrainingConfig(points_per_list=20, calibration_queries=8),
        few_rows_work=0,
    )
    collection = open_collection(tmp_path, engine=engine)
    write(collection, corpus_of(4_000))
    build_index(collection, lambda: 0.0)
    description = collection.reads.describe()
    assert description.rows_trained_on == 20 * description.nlist < 4_000
    assert description.ledger.indexed == 4_000
    collection.close()


# ---- the background threads ---------------------------------------------------------------------


def test_training_starts_by_itself_at_the_minimum_and_not_before(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    corpus = corpus_of(50)
    write(collection, corpus.take(slice(0, 49)))
    assert not collection.maintenance.training_due
    assert collection.reads.describe().state is ShardState.BUFFERING
    write(collection, corpus.take(slice(49, 50)))
    care.until(lambda: collection.reads.describe().state is ShardState.TRAINED)
    assert_exact(collection, corpus)


def test_rows_that_were_there_before_the_trainer_are_trained_too(
    collection: Collection, care: Care
) -> None:
    write(collection, corpus_of(60))
    care.take(collection)
    care.until(lambda: collection.reads.describe().state is ShardState.TRAINED)


def test_an_index_is_replaced_when_the_rows_are_four_times_as_many(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    corpus = corpus_of(240)
    write(collection, corpus.take(slice(0, 60)))
    care.until(lambda: collection.reads.describe().generation == 1)
    write(collection, corpus.take(slice(60, 239)))
    assert not collection.maintenance.training_due
    assert GROWTH_BEFORE_RETRAINING == 4
    write(collection, corpus.take(slice(239, 240)))
    care.until(lambda: collection.reads.describe().generation == 2)
    assert collection.reads.describe().nlist == 6
    assert_exact(collection, corpus)


def test_the_buffer_is_absorbed_and_an_old_index_keeps_growing_while_a_new_one_is_built(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    corpus = corpus_of(400)
    write(collection, corpus.take(slice(0, 150)))
    care.until(lambda: collection.reads.describe().generation == 1)
    care.gate.end.clear()
    retraining = collection.maintenance.ask_for_training()
    write(collection, corpus.take(slice(150, 400)))
    while collection.reads.ledger().buffered:
        assert not retraining.done()
        assert_exact(collection, corpus.take(slice(0, 400, 40)))
    assert (collection.reads.describe().generation, collection.reads.ledger().indexed) == (1, 400)
    care.gate.open()
    retraining.result(DEADLINE_S)
    assert collection.reads.describe().generation == 2
    assert_exact(collection, corpus)


def test_rows_that_die_in_the_buffer_are_not_absorbed_and_rows_that_die_later_are_hidden(
    collection: Collection,
) -> None:
    corpus = corpus_of(200)
    write(collection, corpus.take(slice(0, 100)))
    build_index(collection, lambda: 0.0)
    write(collection, corpus.take(slice(100, 200)))
    delete(collection, corpus.ids[90:130])
    while collection.maintenance.absorb_piece():
        assert collection.reads.ledger().adds_up
    index = collection.snapshot.index
    assert index is not None
    assert index.ivf.rows == 100 + 70
    ledger = collection.reads.ledger()
    assert (ledger.indexed, ledger.buffered, ledger.deleted) == (160, 0, 40)
    delete(collection, corpus.ids[150:160])
    assert collection.reads.ledger().indexed == 150
    live = np.flatnonzero(
        (np.arange(200) < 90) | ((np.arange(200) >= 130) & (np.arange(200) // 10 != 15))
    )
    assert_exact(collection, corpus.take(live))


def test_who_asks_while_a_training_runs_waits_for_the_next_one(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    care.gate.end.clear()
    write(collection, corpus_of(60))
    first = collection.maintenance.ask_for_training()
    poll_until(lambda: collection.reads.describe().training)
    later = collection.maintenance.ask_for_training()
    care.gate.open()
    later.result(DEADLINE_S)
    first.result(DEADLINE_S)
    assert collection.reads.describe().generation >= 2


def test_a_failing_build_is_reported_to_who_waits_and_the_state_leaves_training(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    corpus = corpus_of(40)
    write(collection, corpus)
    care.failure = MemoryError("no room for centroids")
    with pytest.raises(MemoryError, match="no room for centroids"):
        collection.maintenance.ask_for_training().result(DEADLINE_S)
    description = collection.reads.describe()
    assert (description.state, description.training) == (ShardState.BUFFERING, False)
    assert_exact(collection, corpus)
    care.failure = None
    collection.maintenance.ask_for_training().result(DEADLINE_S)
    assert collection.reads.describe().state is ShardState.TRAINED
    assert_exact(collection, corpus)


def test_a_failing_retraining_leaves_the_old_index_in_its_place(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    corpus = corpus_of(100)
    write(collection, corpus)
    care.until(lambda: collection.reads.describe().generation == 1)
    care.failure = MemoryError("no room")
    with pytest.raises(MemoryError):
        collection.maintenance.ask_for_training().result(DEADLINE_S)
    description = collection.reads.describe()
    assert (description.state, description.training) == (ShardState.TRAINED, False)
    assert description.generation == 1
    assert_exact(collection, corpus)


def test_a_build_that_failed_is_tried_again_after_growth_and_not_before(
    collection: Collection, care: Care
) -> None:
    care.take(collection)
    care.failure = MemoryError("no room for centroids")
    corpus = corpus_of(111)
    write(collection, corpus.take(slice(0, 100)))
    poll_until(lambda: care.failures == 1 and not collection.reads.describe().training)
    for row in range(100, 110):
        assert not collection.maintenance.training_due
        write(collection, corpus.take([row]))
    assert not collection.maintenance.training_due
    assert care.failures == 1
    write(collection, corpus.take([110]))
    poll_until(lambda: care.failures == 2 and not collection.reads.describe().training)
    assert not collection.maintenance.training_due
    care.failure = None
    collection.maintenance.ask_for_training().result(DEADLINE_S)
    assert_exact(collection, corpus)


def test_an_index_is_replaced_when_most_of_what_it_holds_is_dead(collection: Collection) -> None:
    generations = set()
    for turn in range(20):
        corpus = Corpus(np.arange(100), some_vectors(100, seed=turn))
        write(collection, corpus)
        while collection.maintenance.absorb_piece():
            pass
        if collection.maintenance.training_due:
            build_index(collection, lambda: 0.0)
        index = collection.snapshot.index
        assert index is not None
        generations.add(index.generation)
        assert index.ivf.rows < 200
        assert not collection.maintenance.training_due
        assert_exact(collection, corpus)
    assert len(generations) == 20  # all rows were replaced each time


def test_an_index_whose_rows_died_wants_no_training_once_none_lives(
    collection: Collection,
) -> None:
    for turn in range(GROWTH_BEFORE_RETRAINING):
        write(collection, Corpus(np.arange(100), some_vectors(100, seed=turn)))
        if turn == 0:
            build_index(collection, lambda: 0.0)
        while collection.maintenance.absorb_piece():
            pass
    assert collection.maintenance.training_due
    delete(collection, np.arange(100))
    assert not collection.maintenance.training_due


def test_dead_rows_are_taken_out_by_themselves_and_a_training_asked_for_takes_out_fewer(
    tmp_path: Path, care: Care
) -> None:
    compaction = CompactionConfig(dead_rows_min=20, dead_codes_min=20)
    engine = replace(SMALL_ENGINE, compaction=compaction)
    collection = open_collection(tmp_path, config_of(min_training_size=50), engine=engine)
    care.take(collection)
    corpus = corpus_of(200)
    write(collection, corpus)
    delete(collection, corpus.ids[:99])
    collection.maintenance.ask_for_training().result(DEADLINE_S)
    poll_until(lambda: len(collection.snapshot.vectors) == 101)
    delete(collection, corpus.ids[99:150])
    poll_until(lambda: len(collection.snapshot.vectors) == 50)
    poll_until(
        lambda: not collection.compaction.sweep_due and not collection.maintenance.training_due
    )
    index = collection.snapshot.index
    assert index is not None
    assert index.ivf.rows == 50
    assert_exact(collection, corpus.take(slice(150, 200)))
    care.threads.detach(collection)
    collection.close()


@pytest.mark.parametrize("always", [(Maintenance,), (Maintenance, Compaction)])
def test_dead_rows_leave_the_files_before_a_training_and_neither_keeps_the_other_waiting(
    tmp_path: Path, care: Care, monkeypatch: pytest.MonkeyPatch, always: tuple[type, ...]
) -> None:
    monkeypatch.setattr(Maintenance, "training_due", True)
    if Compaction in always:
        monkeypatch.setattr(Compaction, "due", True)
    engine = replace(SMALL_ENGINE, compaction=CompactionConfig(dead_rows_min=20))
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    collection, other = (
        open_collection(tmp_path / name, config_of(min_training_size=50), engine=engine)
        for name in ("one", "other")
    )
    corpus = corpus_of(200)
    write(collection, corpus)
    delete(collection, corpus.ids[:150])
    done = []
    for _ in range(4):
        care.threads.build_step(collection)
        care.threads.build_step(other)
        index = collection.snapshot.index
        done.append((index.generation if index else 0, len(collection.snapshot.vectors)))
    # The third step is another compaction, or a piece of the sweep.
    assert done == [(0, 50), (1, 50), (1, 50), (2, 50)]
    collection.close()
    other.close()


def test_a_measurement_that_fails_does_not_keep_others_from_being_done(
    tmp_path: Path, care: Care, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = open_collection(tmp_path, config_of(min_training_size=50), engine=SMALL_ENGINE)
    write(collection, corpus_of(200))
    build_index(collection, lambda: 0.0)
    measured = []

    def fail(*_: object) -> None:
        raise RuntimeError("on purpose")

    monkeypatch.setattr(type(collection.state.large_k), "due", lambda *_: 300)
    monkeypatch.setattr(type(collection.state.live), "due", lambda *_: True)
    monkeypatch.setattr(background, "measure_large_k", fail)
    monkeypatch.setattr(background, "measure_live_recall", lambda *_: measured.append(True))
    with pytest.raises(RuntimeError, match="on purpose"):
        care.threads.build_step(collection)
    assert care.threads.build_step(collection)
    assert measured
    collection.close()


def test_a_rebuild_that_fails_is_tried_again_after_more_deaths_and_not_before(
    tmp_path: Path, care: Care
) -> None:
    engine = replace(SMALL_ENGINE, compaction=CompactionConfig(dead_rows_min=20))
    disk = FailingDisk()
    collection = open_collection(tmp_path, engine=engine, disk=disk)
    corpus = corpus_of(200)
    write(collection, corpus)
    delete(collection, corpus.ids[:100])
    files_opened = disk.counts["open"]
    disk.fail("open")  # which nobody but a rebuild asks for: no index is trained
    care.take(collection)
    poll_until(lambda: disk.counts["open"] > files_opened)
    delete(collection, corpus.ids[100:110])
    assert not collection.compaction.due
    assert len(collection.snapshot.vectors) == 200
    delete(collection, corpus.ids[110:111])
    poll_until(lambda: len(collection.snapshot.vectors) == 89)
    assert_exact(collection, corpus.take(slice(111, 200)))
    care.threads.detach(collection)
    collection.close()


def test_a_collection_that_is_never_done_does_not_keep_another_from_being_absorbed(
    tmp_path: Path, care: Care
) -> None:
    class NeverDone(Maintenance):
        """Always has something to absorb."""

        @property
        def absorbing_due(self) -> bool:
            return True

        def absorb_piece(self) -> bool:
            return True

    for name in ("first", "words"):
        (tmp_path / name).mkdir()
    open_collection(tmp_path / "first").close()
    first = Collection.open(Disk(), tmp_path / "first", 0, SMALL_ENGINE)
    first.maintenance = NeverDone(first.state)
    other = open_collection(tmp_path / "words", config_of(min_training_size=50))
    care.take(first)
    care.take(other)
    corpus = corpus_of(150)
    write(other, corpus.take(slice(0, 60)))
    care.until(lambda: other.reads.describe().state is ShardState.TRAINED)
    write(other, corpus.take(slice(60, 150)))
    poll_until(lambda: other.reads.ledger().indexed == 150)
    assert_exact(other, corpus)
    for collection in (first, other):
        care.threads.detach(collection)
        collection.close()


def test_one_collections_failure_is_no_other_ones(tmp_path: Path, care: Care) -> None:
    class SpoiledDisk(Disk):
        """Writes no index files."""

        def write_new_file(self, path: Path, contents: bytes | bytearray | memoryview) -> None:
            if path.name.startswith("index-"):
                raise OSError(5, "the disk is spoiled")
            super().write_new_file(path, contents)

    collections = []
    for name, disk in (("spoiled", SpoiledDisk()), ("sound", Disk())):
        (tmp_path / name).mkdir()
        collection = open_collection(
            tmp_path / name, config_of(name, min_training_size=50), disk=disk
        )
        care.take(collection)
        collections.append(collection)
    corpus = corpus_of(300)
    for collection in collections:
        write(collection, corpus.take(slice(0, 60)))
        collection.maintenance.ask_for_training().result(DEADLINE_S)
        write(collection, corpus.take(slice(60, 300)))
    spoiled, sound = collections
    poll_until(lambda: bool(list((tmp_path / "sound").glob("index-*.faiss"))))
    assert not list((tmp_path / "spoiled").glob("index-*"))
    for collection in (spoiled, sound):
        assert_exact(collection, corpus)
        care.threads.detach(collection)
        collection.close()


def test_a_detached_collection_is_left_alone(collection: Collection, care: Care) -> None:
    care.take(collection)
    care.threads.detach(collection)
    write(collection, corpus_of(60))
    assert collection.maintenance.training_due
    assert collection.reads.describe().state is ShardState.BUFFERING


def test_a_trainer_without_work_keeps_no_collection_alive(tmp_path: Path, care: Care) -> None:
    def trained_and_detached() -> weakref.ref[Collection]:
        collection = open_collection(tmp_path, config_of(min_training_size=50))
        care.take(collection)
        write(collection, corpus_of(60))
        care.until(lambda: collection.reads.describe().state is ShardState.TRAINED)
        care.threads.detach(collection)
        collection.close()
        return weakref.ref(collection)

    detached = trained_and_detached()
    poll_until(lambda: detached() is None)


def test_there_is_room_for_rows_once_the_buffer_is_absorbed_to_its_bound(tmp_path: Path) -> None:
    engine = EngineConfig(
        buffer=BufferConfig(absorb_rows=10, absorb_piece_rows=10, slow_writers_rows=30),
        training=SMALL_ENGINE.training,
        few_rows_work=0,
    )
    collection = open_collection(tmp_path, engine=engine)
    corpus = corpus_of(150)
    write(collection, corpus.take(slice(0, 100)))
    assert collection.state.room_for_rows().done(), (
        "before the first training the buffer is all rows"
    )
    build_index(collection, lambda: 0.0)
    write(collection, corpus.take(slice(100, 130)))
    assert collection.state.room_for_rows().done()
    write(collection, corpus.take(slice(130, 150)))
    waiting, given_up = collection.state.room_for_rows(), collection.state.room_for_rows()
    given_up.cancel()
    assert collection.maintenance.absorb_piece()
    assert not waiting.done()
    assert collection.maintenance.absorb_piece()
    assert waiting.done()
    write(collection, corpus.take(slice(0, 100)))
    assert_exact(collection, corpus)
    collection.close()


def test_closing_tells_who_still_waits_for_a_training(tmp_path: Path) -> None:
    collection = open_collection(tmp_path)
    waiting = collection.maintenance.ask_for_training()
    given_up = collection.maintenance.ask_for_training()
    given_up.cancel()
    collection.close()
    assert isinstance(waiting.exception(DEADLINE_S), CollectionNotFound)


def test_absorbing_rests_while_searches_come_and_not_otherwise() -> None:
    pace = Pace(10.0, searches=5)
    assert pace.rest_s(10.25, 5) == 0.0
    assert pace.rest_s(10.5, 6) == 0.25 * REST_A_PIECE
    pace.rested(11.0)
    assert pace.rest_s(11.0 + SEARCHES_COME_S, 7) == pytest.approx(SEARCHES_COME_S * REST_A_PIECE)
    pace.rested(12.0)
    assert pace.rest_s(12.25, 7) == 0.0, "the last search was long ago"


def test_a_thread_without_work_says_so_once_until_it_has_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vectorshard.shard.engine.background.IDLE_S", 0.0)
    idle: list[str] = []
    threads = BackgroundThreads(
        lambda: 0.0, when_idle=lambda: idle.append(threading.current_thread().name)
    )
    collection = open_collection(tmp_path, config_of(min_training_size=50))
    threads.start()
    try:
        poll_until(lambda: sorted(set(idle)) == ["absorber", "builder"])
        threads.attach(collection)
        poll_until(lambda: len(idle) == 4)
        assert sorted(idle) == ["absorber", "absorber", "builder", "builder"]
    finally:
        threads.stop()
        collection.close()


def test_a_piece_gathered_for_an_index_that_was_replaced_meanwhile_goes_into_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = EngineConfig(
        buffer=BufferConfig(absorb_rows=10, absorb_piece_rows=10),
        training=SMALL_ENGINE.training,
        few_rows_work=0,
    )
    collection = open_collection(tmp_path, engine=engine)
    corpus = corpus_of(130)
    write(collection, corpus.take(slice(0, 100)))
    build_index(collection, lambda: 0.0)
    write(collection, corpus.take(slice(100, 130)))
    gather = Snapshot.vectors_of

    def gather_and_publish_another(snapshot: Snapshot, rows: Int64Array) -> Float32Array:
        monkeypatch.setattr(Snapshot, "vectors_of", gather)
        build_index(collection, lambda: 0.0)
        return gather(snapshot, rows)

    monkeypatch.setattr(Snapshot, "vectors_of", gather_and_publish_another)
    assert collection.maintenance.absorb_piece()
    assert collection.snapshot.absorbed_until == 130, "the new index holds all of them"
    assert collection.snapshot.index is not None
    assert collection.snapshot.index.ivf.rows == 130
    assert_exact(collection, corpus)
    collection.close()
