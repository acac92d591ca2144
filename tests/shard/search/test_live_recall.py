"""The recall of live searches: measured as it is, and brought back when queries are unlike rows."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    corpus_of,
    open_collection,
    poll_until,
    write,
)
from vectorshard.shard.config import BufferConfig, EngineConfig, TrainingConfig
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import (
    WorkAbandoned,
    build_index,
    measure_live_recall,
)
from vectorshard.shard.filters import Equals, Filter
from vectorshard.shard.search.live_recall import (
    LIVE_QUERIES_MIN,
    LIVE_QUERIES_NEW,
    OFFERED_A_REQUEST,
)
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    Effort,
    FieldType,
    FilterField,
    Float32Array,
    IndexKind,
    Metric,
    SearchRequest,
)

DIM, ROWS, TARGET = 16, 2_000, 0.95

ENGINE = EngineConfig(
    buffer=BufferConfig(absorb_rows=50, absorb_piece_rows=20),
    training=TrainingConfig(calibration_queries=40, live_queries=200, checkpoint_min_rows=10_000),
    few_rows_work=0,
)


def clustered(seed: int = 0) -> Corpus:
    random = np.random.default_rng(seed)
    centers = random.standard_normal((40, DIM))[random.integers(40, size=ROWS)]
    vectors = centers + 0.25 * random.standard_normal((ROWS, DIM))
    return Corpus(np.arange(ROWS), vectors.astype(np.float32))


CORPUS = clustered()


def means_of_five(queries: int, seed: int, metric: Metric = Metric.L2) -> Float32Array:
    """Return queries unlike the rows: own-row calibration finds too little for them."""
    random = np.random.default_rng(seed)
    means: Float32Array = CORPUS.vectors[random.integers(ROWS, size=(queries, 5))].mean(axis=1)
    if metric is Metric.COSINE:
        means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means


def trained(
    directory: Path, *, kind: IndexKind = IndexKind.IVF_FLAT, metric: Metric = Metric.L2
) -> Collection:
    config = config_of(dim=DIM, metric=metric, kind=kind, target_recall=TARGET)
    collection = open_collection(directory, config, engine=ENGINE)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)
    return collection


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """A trained collection of which nobody takes care."""
    collection = trained(tmp_path)
    yield collection
    collection.close()


def search(
    collection: Collection,
    queries: Float32Array,
    *,
    effort: Effort = Effort(),  # noqa: B008
    filter_: Filter | None = None,
) -> list[set[int]]:
    """Search for 10 hits, as many callers; return the ids found for each query."""
    ids_of: list[set[int]] = []
    for first in range(0, len(queries), OFFERED_A_REQUEST):
        some = queries[first : first + OFFERED_A_REQUEST]
        found = collection.reads.search(
            SearchRequest(collection="words", queries=some, k=10, effort=effort, filter=filter_)
        )
        ends = np.cumsum(found.hits.counts)[:-1]
        ids_of += [set(ids.tolist()) for ids in np.split(found.hits.ids, ends)]
    return ids_of


def recall(collection: Collection, queries: Float32Array) -> float:
    """Return the recall of searches that state no effort, beside exact ones."""
    best = search(collection, queries, effort=Effort(exact=True))
    there = search(collection, queries)
    return float(np.mean([len(a & b) / len(a) for a, b in zip(there, best, strict=True)]))


def measure(collection: Collection) -> bool:
    """Do what is due; say whether anything was."""
    due = collection.maintenance.live_recall_due
    if due:
        measure_live_recall(collection, lambda: None, lambda: 0.0)
    return due


@pytest.mark.parametrize("kind", list(IndexKind))
def test_live_recall_is_what_live_searches_found(tmp_path: Path, kind: IndexKind) -> None:
    collection = trained(tmp_path, kind=kind)
    queries = means_of_five(150, seed=1)
    search(collection, queries)
    assert measure(collection)
    description = collection.reads.describe()
    assert description.live_queries == 150
    assert description.live_recall == pytest.approx(recall(collection, queries), abs=1e-9)
    assert description.live_recall < TARGET - 0.01
    collection.close()


@pytest.mark.parametrize("kind", [IndexKind.IVF_FLAT, IndexKind.IVF_PQ])
@pytest.mark.parametrize("metric", [Metric.L2, Metric.COSINE])
def test_queries_unlike_the_rows_get_the_recall_they_were_promised(
    tmp_path: Path, kind: IndexKind, metric: Metric
) -> None:
    collection = trained(tmp_path, kind=kind, metric=metric)
    search(collection, means_of_five(LIVE_QUERIES_MIN, 0, metric))
    assert measure(collection)
    assert collection.reads.describe().live_recall < TARGET - 0.01
    search(collection, means_of_five(LIVE_QUERIES_NEW, 1, metric))
    assert measure(collection)
    assert measure(collection)  # of the new calibration, with the same queries
    assert not measure(collection)
    description = collection.reads.describe()
    assert description.live_recall >= TARGET - 0.005
    assert description.measured_recall >= TARGET  # of rows, which are easier
    assert description.generation == 1
    held_out = means_of_five(200, seed=9, metric=metric)
    assert recall(collection, held_out) >= TARGET - 0.03  # as sure as that many queries make it
    collection.close()


def test_one_low_measurement_changes_nothing(collection: Collection) -> None:
    before = collection.snapshot.index
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
    assert measure(collection)
    assert collection.snapshot.index is before
    search(collection, means_of_five(LIVE_QUERIES_NEW - 1, seed=1))
    assert not measure(collection)
    search(collection, means_of_five(1, seed=2))
    assert measure(collection)
    assert collection.snapshot.index is not before


def test_a_measurement_that_is_not_low_is_forgiven_the_low_one_before(tmp_path: Path) -> None:
    engine = replace(ENGINE, training=replace(ENGINE.training, live_queries=100, live_window=100))
    config = config_of(dim=DIM, target_recall=TARGET)
    collection = open_collection(tmp_path, config, engine=engine)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)
    before = collection.snapshot.index
    for queries in (means_of_five(100, 0), CORPUS.vectors[:1_000], means_of_five(600, 1)):
        search(collection, queries)
        assert measure(collection)
    assert collection.reads.describe().live_recall < TARGET - 0.01
    assert collection.snapshot.index is before
    collection.close()


def test_one_request_gives_few_of_its_queries_to_the_sample(collection: Collection) -> None:
    request = SearchRequest(collection="words", queries=means_of_five(1_000, 0), k=10)
    for requests in range(1, 14):
        assert not collection.maintenance.live_recall_due
        collection.reads.search(request)
        assert len(collection.state.live.queries()) == OFFERED_A_REQUEST * requests
    assert collection.maintenance.live_recall_due
    evenly = collection.state.live.queries()[:OFFERED_A_REQUEST]
    np.testing.assert_array_equal(evenly, request.queries[::125])


def test_easier_queries_lower_nprobe_again_but_not_below_what_rows_need(tmp_path: Path) -> None:
    engine = replace(ENGINE, training=replace(ENGINE.training, live_queries=200, live_window=200))
    collection = open_collection(tmp_path, config_of(dim=DIM, target_recall=0.97), engine=engine)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)

    def nprobe() -> int:
        return collection.reads.describe().nprobe

    of_rows = nprobe()
    for seed in range(2):
        search(collection, means_of_five(200, seed))
        measure(collection)
    raised = nprobe()
    assert raised > 1.5 * of_rows
    copies = np.repeat(CORPUS.vectors[:1], 1_600, axis=0)  # a few lists answer them
    search(collection, copies[:800])
    measure(collection)
    assert nprobe() == raised  # one high measurement changes nothing
    search(collection, copies[800:])
    measure(collection)
    lowered = collection.reads.describe()
    assert lowered.nprobe == of_rows
    assert lowered.measured_recall >= 0.97
    collection.close()


def test_nothing_happens_below_a_hundred_queries(collection: Collection) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN - 1, seed=0))
    assert not measure(collection)
    description = collection.reads.describe()
    assert (description.live_recall, description.live_queries) == (0.0, 0)


def test_exact_and_filtered_searches_are_no_part_of_the_sample(tmp_path: Path) -> None:
    fields = (FilterField("lang", FieldType.KEYWORD),)
    config = replace(config_of(dim=DIM), filter_fields=fields)
    collection = open_collection(tmp_path, config, engine=ENGINE)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)
    queries = means_of_five(200, seed=0)
    search(collection, queries, effort=Effort(exact=True))
    search(collection, queries, filter_=Equals("lang", "pl"))
    assert not collection.maintenance.live_recall_due
    search(collection, queries, effort=Effort(nprobe=1))
    search(collection, queries, effort=Effort(target_recall=0.9))
    assert not collection.maintenance.live_recall_due
    search(collection, queries)
    assert collection.maintenance.live_recall_due
    collection.close()


def test_nothing_is_due_before_there_is_an_index(tmp_path: Path) -> None:
    collection = open_collection(tmp_path, config_of(dim=DIM), engine=ENGINE)
    write(collection, CORPUS)
    search(collection, means_of_five(200, seed=0))
    assert not collection.maintenance.live_recall_due
    build_index(collection, lambda: 0.0)
    assert collection.maintenance.live_recall_due
    collection.close()


def test_a_calibration_that_no_setting_reaches_searches_all_rows_and_rests(
    collection: Collection, monkeypatch: pytest.MonkeyPatch
) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
    assert measure(collection)
    monkeypatch.setattr(
        "vectorshard.shard.index.recall.targets_reached",
        lambda recalls, *_, **__: np.zeros(recalls.shape[1]),
    )
    search(collection, means_of_five(LIVE_QUERIES_NEW, seed=1))
    assert measure(collection)
    calibrated = collection.snapshot.index
    assert calibrated is not None
    assert calibrated.calibration.points == ()
    for seed in range(2, 6):
        assert recall(collection, means_of_five(LIVE_QUERIES_NEW, seed)) == 1.0
        measure(collection)
        assert collection.reads.describe().live_recall == 1.0
    assert collection.snapshot.index is calibrated


@pytest.mark.parametrize("absorbed", [False, True])
def test_a_restart_keeps_the_calibration(tmp_path: Path, *, absorbed: bool) -> None:
    collection = trained(tmp_path)
    collection.maintenance.checkpoint()
    for seed, queries in enumerate((LIVE_QUERIES_MIN, LIVE_QUERIES_NEW)):
        search(collection, means_of_five(queries, seed))
        measure(collection)
    if absorbed:  # too few for a checkpoint of their own
        write(collection, Corpus(np.arange(ROWS, ROWS + 50), corpus_of(50, dim=DIM).vectors))
        while collection.maintenance.absorb_piece():
            pass
    assert collection.maintenance.checkpoint_due
    collection.maintenance.checkpoint()
    assert not collection.maintenance.checkpoint_due
    index = collection.snapshot.index
    assert index is not None
    collection.close()
    reopened = Collection.open(Disk(), tmp_path, 0, ENGINE)
    after = reopened.snapshot.index
    assert after is not None
    assert after.calibration == index.calibration
    assert (after.generation, after.ivf.rows) == (1, ROWS + 50 * absorbed)
    assert not reopened.maintenance.checkpoint_due
    reopened.close()


def test_what_is_known_anew_of_a_stored_index_writes_no_file(tmp_path: Path) -> None:
    collection = trained(tmp_path)
    collection.maintenance.checkpoint()
    (stored,) = tmp_path.glob("index-*")
    written_ns = stored.stat().st_mtime_ns
    index = collection.snapshot.index
    assert index is not None
    assert collection.state.publish_calibration(index, replace(index.calibration, points=()))
    collection.maintenance.checkpoint()
    assert not collection.maintenance.checkpoint_due
    assert list(tmp_path.glob("index-*")) == [stored]
    assert stored.stat().st_mtime_ns == written_ns
    collection.close()


def test_a_calibration_of_an_index_that_was_replaced_is_dropped(collection: Collection) -> None:
    old = collection.snapshot.index
    assert old is not None
    build_index(collection, lambda: 0.0)
    new = collection.snapshot.index
    assert not collection.state.publish_calibration(old, old.calibration)
    assert collection.snapshot.index is new


def test_a_measurement_across_two_indexes_is_none(collection: Collection) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
    pieces = itertools.count()

    def go_on() -> None:
        if next(pieces) == 1:
            build_index(collection, lambda: 0.0)

    measure_live_recall(collection, go_on, lambda: 0.0)
    assert next(pieces) == 2  # of seven
    assert collection.reads.describe().live_queries == 0
    assert collection.maintenance.live_recall_due


def test_rows_absorbed_between_two_pieces_spoil_neither_measuring_nor_calibrating(
    collection: Collection,
) -> None:
    queries = [means_of_five(LIVE_QUERIES_MIN, 0), means_of_five(LIVE_QUERIES_NEW, 1)]
    numbers = iter(range(ROWS, 10 * ROWS, 20))
    pieces = itertools.count()

    def absorb() -> None:
        if next(pieces) % 8:
            return
        first = next(numbers)
        write(collection, Corpus(np.arange(first, first + 20), CORPUS.vectors[first % ROWS :][:20]))
        assert collection.maintenance.absorb_piece()

    for some in queries:
        search(collection, some)
        measure_live_recall(collection, absorb, lambda: 0.0)
    assert measure(collection)
    assert collection.reads.describe().live_recall >= TARGET - 0.01


def test_the_index_is_asked_under_its_lock_a_few_queries_at_a_time(collection: Collection) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
    held = 0

    @contextmanager
    def published() -> Iterator[Snapshot]:
        nonlocal held
        with collection.state.index_at_rest() as snapshot:
            held += 1
            yield snapshot

    collection.state.live.measure(published, lambda: None)
    assert held >= LIVE_QUERIES_MIN / 16


def test_searches_and_writes_go_on_between_two_pieces(collection: Collection) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
    extra = iter(range(ROWS, 2 * ROWS))

    def go_on() -> None:
        number = next(extra)
        write(collection, Corpus(np.array([number]), CORPUS.vectors[:1]))
        assert number in search(collection, CORPUS.vectors[:1], effort=Effort(exact=True))[0]
        assert collection.maintenance.absorb_piece()

    measure_live_recall(collection, go_on, lambda: 0.0)
    assert collection.reads.describe().live_queries == LIVE_QUERIES_MIN


def test_a_calibration_on_live_queries_is_logged_with_what_it_changed(
    collection: Collection,
) -> None:
    with capture_logs() as logs:
        for seed, queries in enumerate((LIVE_QUERIES_MIN, LIVE_QUERIES_NEW)):
            search(collection, means_of_five(queries, seed))
            measure(collection)
    (entry,) = logs
    assert entry["event"] == "calibrated on live queries"
    assert entry["live_recall"] < TARGET - 0.01
    assert entry["after_nprobe"] > entry["before_nprobe"]


# ---- the builder's idle time --------------------------------------------------------------------


@contextmanager
def cared_for(
    collection: Collection, stopwatch: Callable[[], float]
) -> Iterator[BackgroundThreads]:
    threads = BackgroundThreads(lambda: 0.0, stopwatch)
    threads.start()
    threads.attach(collection)
    try:
        yield threads
    finally:
        threads.stop()


def test_live_searches_alone_make_the_builder_measure_and_calibrate(
    collection: Collection,
) -> None:
    before = collection.snapshot.index
    with cared_for(collection, lambda: 0.0):
        search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
        poll_until(lambda: collection.reads.describe().live_queries == LIVE_QUERIES_MIN)
        search(collection, means_of_five(LIVE_QUERIES_NEW, seed=1))
        poll_until(lambda: collection.reads.describe().live_recall >= TARGET - 0.005)
    assert collection.snapshot.index is not before


def test_a_training_that_is_asked_for_does_not_wait_for_a_measurement(
    collection: Collection,
) -> None:
    resting = threading.Event()
    readings = iter(range(0, 10**9, 10**6))

    def stopwatch() -> float:
        """Say that every piece took a million seconds, so that the rest after it never ends."""
        resting.set()
        return float(next(readings))

    with cared_for(collection, stopwatch):
        search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))
        assert resting.wait(30)
        assert collection.reads.describe().live_queries == 0
        collection.maintenance.ask_for_training().result(30)
        assert collection.reads.describe().generation == 2


def test_a_measurement_ends_where_it_is_told_to(collection: Collection) -> None:
    search(collection, means_of_five(LIVE_QUERIES_MIN, seed=0))

    def go_on() -> None:
        raise WorkAbandoned

    with pytest.raises(WorkAbandoned):
        measure_live_recall(collection, go_on, lambda: 0.0)
    assert collection.maintenance.live_recall_due


def test_the_sample_is_bounded_and_counted_as_memory(collection: Collection) -> None:
    before = collection.reads.describe().memory_bytes
    for seed in range(5):
        search(collection, means_of_five(200, seed))
    assert collection.reads.describe().memory_bytes - before == 200 * DIM * 4
    assert SMALL_ENGINE.training.live_queries == 256


def test_live_recall_is_measured_against_an_updated_target(tmp_path: Path) -> None:
    collection = trained(tmp_path)
    queries = means_of_five(150, seed=1)
    search(collection, queries)
    assert measure(collection)
    assert not measure(collection)
    before = collection.reads.describe().live_recall
    collection.writes.update(0.8)
    assert measure(collection)
    description = collection.reads.describe()
    assert description.live_recall == pytest.approx(recall(collection, queries), abs=1e-9)
    assert description.live_recall < before
    collection.close()
