"""Whatever the rows are, a training ends well, and the kind of index that serves finds them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    open_collection,
    some_vectors,
    write,
)
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.engine.index_training import distances_of_newest
from vectorshard.shard.engine.maintenance import Measuring
from vectorshard.shard.index.calibration import RULE
from vectorshard.shard.index.drift import DRIFT_ALARM, UNKNOWN
from vectorshard.shard.types import (
    CollectionConfig,
    Effort,
    Float32Array,
    IndexKind,
    Metric,
    SearchRequest,
)

ENGINE = replace(
    SMALL_ENGINE, training=replace(SMALL_ENGINE.training, calibration_queries=64, pq_rows_min=1_000)
)
FLAT, SQ8, PQ = IndexKind.IVF_FLAT, IndexKind.IVF_SQ8, IndexKind.IVF_PQ


def trained(
    directory: Path,
    vectors: Float32Array,
    metric: Metric = Metric.L2,
    *,
    kind: IndexKind = PQ,
    target_recall: float = 0.95,
    engine: EngineConfig = ENGINE,
) -> Collection:
    """Return a collection of these rows with an index; cosine's get unit length."""
    if metric is Metric.COSINE:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    dim = vectors.shape[1]
    config = config_of(dim=dim, metric=metric, kind=kind, target_recall=target_recall)
    collection = open_collection(directory, config, engine=engine)
    write(collection, Corpus(np.arange(len(vectors)), vectors.astype(np.float32)))
    build_index(collection, lambda: 0.0)
    return collection


def serving(collection: Collection) -> IndexKind:
    """Return the kind that serves, as DescribeCollection reports it."""
    kind = collection.reads.describe().index_kind
    assert kind is not None
    return kind


def repeated(vectors: Float32Array, rows: int) -> Float32Array:
    """Return `rows` rows, each a copy of one of these."""
    return vectors[np.random.default_rng(1).integers(len(vectors), size=rows)]


ROWS: dict[str, Callable[[], Float32Array]] = {
    "one row": lambda: some_vectors(1, 16),
    "three rows": lambda: some_vectors(3, 16),
    "ten rows of one dimension": lambda: some_vectors(10, 1),
    "equal rows": lambda: repeated(some_vectors(1, 16), 1_200),
    "two vectors": lambda: repeated(some_vectors(2, 16), 1_200),
    "128 vectors": lambda: repeated(some_vectors(128, 16), 1_200),
    "one-hot": lambda: repeated(np.eye(40, dtype=np.float32), 1_200),
    "two of four dimensions": lambda: np.eye(4, dtype=np.float32)[[0, 1] * 600],
    "seven dimensions": lambda: some_vectors(1_200, 7),
    "most rows equal": lambda: np.concatenate(
        [np.tile(some_vectors(1, 16, seed=5), (1_100, 1)), some_vectors(100, 16)]
    ),
}


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("rows", list(ROWS))
def test_rows_of_any_kind_train_an_index_that_reaches_the_target(
    rows: str, metric: Metric, tmp_path: Path
) -> None:
    vectors = ROWS[rows]()
    collection = trained(tmp_path, vectors, metric)
    described = collection.reads.describe()
    assert described.generation == 1
    assert described.nprobe >= 1
    assert described.measured_recall >= 0.95
    queries = collection.snapshot.vectors[:50]
    k = min(5, len(vectors))
    found, best = (
        collection.reads.search(
            SearchRequest(collection="words", queries=queries, k=k, effort=effort)
        ).hits
        for effort in (Effort(), Effort(exact=True))
    )
    assert found.counts.tolist() == best.counts.tolist()
    assert (found.scores == best.scores).mean() >= 0.9
    collection.close()


def test_the_kind_that_serves_survives_a_restart(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(300, 16))
    assert serving(collection) is FLAT
    collection.maintenance.checkpoint()
    drift = collection.state.drift
    collection.close()
    again = Collection.open(collection.state.disk, tmp_path, 0, ENGINE)
    assert again.snapshot.index is not None
    assert again.snapshot.index.generation == 1
    assert serving(again) is FLAT
    assert again.state.drift.base == drift.base > 0
    again.close()


def near_duplicates() -> Float32Array:
    """Return rows of which most lie within 1e-4 of one place: no code tells them apart."""
    crowd = some_vectors(1, 16, seed=8) + np.float32(1e-4) * some_vectors(3_400, 16, seed=9)
    return np.concatenate([crowd, some_vectors(200, 16)])


def test_near_duplicates_are_served_by_whole_vectors(tmp_path: Path) -> None:
    collection = trained(tmp_path, near_duplicates())
    assert serving(collection) is FLAT
    assert collection.entry.config.index.kind is PQ
    described = collection.reads.describe()
    assert described.nprobe > 0
    assert described.measured_recall >= 0.95
    collection.close()


def test_ordinary_rows_are_served_by_the_configured_kind(tmp_path: Path) -> None:
    for kind in IndexKind:
        (tmp_path / kind.name).mkdir()
        collection = trained(tmp_path / kind.name, some_vectors(1_200, 16), kind=kind)
        assert serving(collection) is kind
        collection.close()


def test_a_target_that_no_index_reaches_trains_only_the_configured_kind(tmp_path: Path) -> None:
    collection = trained(tmp_path, near_duplicates(), target_recall=0.999)
    assert serving(collection) is PQ
    assert collection.reads.describe().nprobe == 0  # every row is scored
    collection.close()


def test_the_base_of_the_drift_comes_from_rows_that_k_means_did_not_see(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(1_200, 16))
    index = collection.snapshot.index
    assert index is not None
    assert index.rows_trained_on == 1_200
    seen = index.ivf.centroid_distances(collection.snapshot.vectors[:])
    unseen = index.ivf.centroid_distances(some_vectors(2_000, 16, seed=7))
    assert index.distance_when_trained == pytest.approx(unseen.mean(), rel=0.04)
    assert seen.mean() < 0.98 * unseen.mean()
    collection.close()


def test_few_rows_have_no_base_and_only_their_number_raises_an_alarm(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(100, 16))
    assert collection.snapshot.index is not None
    assert collection.snapshot.index.distance_when_trained == UNKNOWN
    for first, due in ((1_000, False), (2_000, True)):
        elsewhere = some_vectors(90, 16) + np.float32(50)
        write(collection, Corpus(np.arange(first, first + 90), elsewhere))
        while collection.maintenance.absorb_piece():
            pass
        assert collection.reads.describe().drift == 0.0
        assert collection.maintenance.drift_measurement_due is due
    collection.close()


def test_drift_is_measured_only_after_an_outdated_calibration_was_replaced(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(600, 16))
    write(collection, Corpus(np.arange(1_000, 1_200), some_vectors(200, 16, seed=5)))
    while collection.maintenance.absorb_piece():
        pass
    assert collection.maintenance.drift_measurement_due
    index = collection.snapshot.index
    assert index is not None
    basis = replace(index.calibration.basis, rule=RULE - 1)
    collection.state.publish_calibration(index, replace(index.calibration, basis=basis))
    assert collection.maintenance.recalibration_due
    assert not collection.maintenance.drift_measurement_due
    collection.maintenance.give_up(Measuring.CALIBRATION)
    assert collection.maintenance.drift_measurement_due
    collection.close()


def test_an_index_whose_file_has_no_base_takes_the_mean_over_its_rows(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(600, 16))
    collection.maintenance.checkpoint()
    stored = collection.state.row_store.index_file
    assert stored is not None
    earlier = replace(stored, distance_when_trained=UNKNOWN)
    collection.state.row_store.set_index_file(earlier)
    collection.close()
    again = Collection.open(collection.state.disk, tmp_path, 0, ENGINE)
    assert again.reads.describe().drift == pytest.approx(1.0, abs=0.03)
    elsewhere = some_vectors(400, 16) + np.float32(9)
    write(again, Corpus(np.arange(1_000, 1_400), elsewhere))
    while again.maintenance.absorb_piece():
        pass
    assert again.reads.describe().drift > DRIFT_ALARM
    again.close()


def test_the_newest_rows_are_measured_without_the_dead(tmp_path: Path) -> None:
    collection = trained(tmp_path, some_vectors(600, 16))
    write(collection, Corpus(np.arange(100, 200), some_vectors(100, 16, seed=4)))
    write(collection, Corpus(np.arange(100, 160), some_vectors(60, 16, seed=6)))
    index = collection.snapshot.index
    assert index is not None
    found = distances_of_newest(index.ivf, collection.snapshot, 600, 760)
    alive = np.concatenate([some_vectors(100, 16, seed=4)[60:], some_vectors(60, 16, seed=6)])
    np.testing.assert_allclose(found, index.ivf.centroid_distances(alive), rtol=1e-5)
    assert len(distances_of_newest(index.ivf, collection.snapshot, 760, 760)) == 0
    collection.close()


def test_a_calibration_is_provisional_while_a_load_goes_on_and_full_after_it(
    tmp_path: Path,
) -> None:
    vectors = some_vectors(1_200, 16)
    config: CollectionConfig = config_of(dim=16, kind=PQ)
    collection = open_collection(tmp_path, config, engine=ENGINE)
    write(collection, Corpus(np.arange(900), vectors[:900]))

    asked = count(1)

    def loading() -> bool:
        """Write more rows when the builder asks after k-means whether to go on."""
        if next(asked) == 2:
            write(collection, Corpus(np.arange(900, 1_200), vectors[900:]))
        return False

    build_index(collection, lambda: 0.0, loading)
    index = collection.snapshot.index
    assert index is not None
    basis = index.calibration.basis
    assert (basis.provisional, basis.queries) == (True, 48)
    assert collection.reads.describe().nprobe > 0
    build_index(collection, lambda: 0.0)
    assert collection.snapshot.index is not None
    basis = collection.snapshot.index.calibration.basis
    assert (basis.provisional, basis.queries) == (False, 64)
    collection.close()
