"""A large k is exact at first, then calibrated, and stays so across trainings and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.shard.samples import Corpus, config_of, open_collection, write
from vectorshard.shard.config import EngineConfig, TrainingConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import (
    WorkAbandoned,
    build_index,
    calibrate_published,
    measure_large_k,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Effort, SearchRequest

DIM, ROWS = 8, 3_000
ENGINE = EngineConfig(
    training=TrainingConfig(calibration_queries=24, checkpoint_min_rows=1), few_rows_work=0
)


def clusters_of_fifty() -> Corpus:
    """Return rows in clusters smaller than any large k."""
    random = np.random.default_rng(3)
    centers = 4 * random.standard_normal((ROWS // 50, DIM))
    vectors = np.repeat(centers, 50, axis=0) + 0.3 * random.standard_normal((ROWS, DIM))
    return Corpus(np.arange(ROWS), vectors.astype(np.float32))


CORPUS = clusters_of_fifty()


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """A trained collection without background threads."""
    collection = open_collection(tmp_path, config_of(dim=DIM), engine=ENGINE)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)
    yield collection
    collection.close()


def rows_exact(collection: Collection, k: int, effort: Effort = Effort()) -> int:  # noqa: B008
    """Search for one query; return how many rows were scored without the index."""
    request = SearchRequest(collection="words", queries=CORPUS.vectors[:1], k=k, effort=effort)
    found = collection.reads.search(request)
    assert found.hits.counts.tolist() == [k]
    return found.receipt.shards[0].rows_exact


def measure(collection: Collection) -> None:
    measure_large_k(collection, lambda: None, lambda: 0.0)


def large_k(collection: Collection) -> tuple[int, ...]:
    index = collection.snapshot.index
    assert index is not None
    return index.calibration.basis.large_k


def test_the_first_search_is_exact_and_makes_the_next_use_the_index(
    collection: Collection,
) -> None:
    assert not collection.maintenance.large_k_due
    assert rows_exact(collection, 101) == ROWS
    assert collection.maintenance.large_k_due
    measure(collection)
    assert not collection.maintenance.large_k_due
    assert rows_exact(collection, 101) == rows_exact(collection, 300) == 0
    assert rows_exact(collection, 301) == ROWS


def test_the_recall_of_a_large_k_is_what_was_asked_for(collection: Collection) -> None:
    queries = CORPUS.vectors[np.arange(0, ROWS, 60)]
    request = SearchRequest(collection="words", queries=queries, k=300)
    collection.reads.search(request)
    measure(collection)
    hits = collection.reads.search(request).hits
    rows = np.split(hits.ids, np.cumsum(hits.counts)[:-1])
    distances = ((queries[:, None] - CORPUS.vectors) ** 2).sum(axis=2)
    best = np.argsort(distances, axis=1)[:, :300]
    shares = [len(np.intersect1d(*pair)) / 300 for pair in zip(rows, best, strict=True)]
    assert 0.94 <= np.mean(shares) < 1.0


def test_searches_with_an_effort_of_their_own_or_a_small_k_ask_for_nothing(
    collection: Collection,
) -> None:
    rows_exact(collection, 100)
    rows_exact(collection, 200, Effort(exact=True))
    rows_exact(collection, 200, Effort(nprobe=40))
    rows_exact(collection, 1_001)
    assert not collection.maintenance.large_k_due


def test_a_target_makes_a_search_ask(collection: Collection) -> None:
    assert rows_exact(collection, 200, Effort(target_recall=0.9)) == ROWS
    assert collection.maintenance.large_k_due


def test_only_the_first_of_many_searches_wakes_the_builder(collection: Collection) -> None:
    index = collection.snapshot.index
    asked = [collection.state.large_k.ask(index, k) for k in (101, 300, 200, 301, 1_000, 1_001)]
    assert asked == [True, False, False, True, False, False]
    assert not collection.state.large_k.ask(None, 200)


def test_each_large_k_is_measured_by_itself_the_smallest_first(collection: Collection) -> None:
    rows_exact(collection, 1_000)
    rows_exact(collection, 300)
    measure(collection)
    assert large_k(collection) == (300,)
    measure(collection)
    assert large_k(collection) == (300, 1_000)
    measure(collection)  # nothing is due
    assert large_k(collection) == (300, 1_000)


def test_a_new_index_is_measured_again_without_a_search(collection: Collection) -> None:
    rows_exact(collection, 300)
    measure(collection)
    build_index(collection, lambda: 0.0)
    assert large_k(collection) == ()
    assert collection.maintenance.large_k_due


def test_a_calibration_of_the_same_index_keeps_it(collection: Collection) -> None:
    rows_exact(collection, 300)
    measure(collection)
    assert calibrate_published(collection, lambda: None, lambda: 5.0) is not None
    assert large_k(collection) == (300,)
    assert rows_exact(collection, 300) == 0
    assert collection.reads.describe().calibrated_at == 5.0


def test_a_restart_keeps_it_and_a_training_after_that_measures_it_again(tmp_path: Path) -> None:
    collection = open_collection(tmp_path, config_of(dim=DIM), engine=ENGINE)
    write(collection, CORPUS)
    build_index(collection, lambda: 0.0)
    rows_exact(collection, 300)
    measure(collection)
    collection.maintenance.checkpoint()
    before = collection.snapshot.index
    collection.close()
    reopened = Collection.open(Disk(), tmp_path, 0, ENGINE)
    after = reopened.snapshot.index
    assert before is not None
    assert after is not None
    assert after.calibration == before.calibration
    assert not reopened.maintenance.large_k_due
    assert rows_exact(reopened, 300) == 0
    build_index(reopened, lambda: 0.0)
    assert reopened.maintenance.large_k_due
    reopened.close()


def test_an_abandoned_measurement_is_due_again(collection: Collection) -> None:
    rows_exact(collection, 300)

    def go_on() -> None:
        raise WorkAbandoned

    with pytest.raises(WorkAbandoned):
        measure_large_k(collection, go_on, lambda: 0.0)
    assert collection.maintenance.large_k_due


def test_a_description_counts_what_changed_since_the_calibration(collection: Collection) -> None:
    described = collection.reads.describe()
    assert described.calibration_rows == ROWS
    assert described.calibration_queries == 24
    assert described.rows_changed_since == 0
    write(collection, Corpus(np.arange(10), CORPUS.vectors[10:20]))  # replaces
    assert collection.reads.describe().rows_changed_since == 10
    assert calibrate_published(collection, lambda: None, lambda: 5.0) is not None
    assert collection.reads.describe().rows_changed_since == 0
