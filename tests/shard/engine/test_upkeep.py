"""Trainings and rebuilds are due when there is a reason, and what they do takes the reason away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk
from tests.shard.samples import (
    SMALL_ENGINE,
    Corpus,
    config_of,
    corpus_of,
    delete,
    open_collection,
    poll_until,
    some_vectors,
    write,
)
from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.engine.upkeep import (
    DRIFT_REPLACED_SHARE,
    PATIENCE_S,
    PROVISIONAL_S,
    QUIET_S,
    REST_WHEN_QUIET,
    REST_WHILE_WRITTEN,
    Lull,
    Waited,
    compaction_due,
    drift_training_due,
    first_training_due,
    recalibration_due,
    retraining_due,
)
from vectorshard.shard.index.calibration import RULE, Calibration, CalibrationBasis
from vectorshard.shard.index.drift import Drift
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import IdType, IndexKind, Metric

CONFIG = CompactionConfig(
    dead_rows_min=20, dead_codes_min=20, dead_share=0.5, dead_share_when_asked=0.1
)


def snapshot_of(
    rows: int,
    *,
    dead: range = range(0),
    trained_for: int = 0,
    absorbed_until: int = 0,
    rows_skipped: int = 0,
    imbalance: float = 1.0,
    imbalance_when_trained: float = 1.0,
    positions: RowMap | None = None,
    basis: CalibrationBasis | None = None,
) -> Snapshot:
    """Return a snapshot, with an index if it was trained for any rows."""
    vectors = some_vectors(4)
    index = TrainedIndex(
        ivf=IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, 1, seed=1),
        generation=1,
        calibration=Calibration((), basis or CalibrationBasis()),
        live_when_trained=trained_for,
        rows_trained_on=trained_for,
        trained_at=0.0,
        training_s=0.0,
        imbalance_when_trained=imbalance_when_trained,
    )
    positions = positions or RowMap()
    placed = rows - positions.rows(0)
    return Snapshot(
        sequence=1,
        vectors=np.zeros((placed, 8), dtype=np.float32),
        squared_norms=np.zeros(placed, dtype=np.float32),
        ids=IdColumn(IdType.INT64),
        positions=positions,
        tombstones=Tombstones().with_dead(np.array(dead, dtype=np.int64)),
        index=index if trained_for else None,
        absorbed_until=absorbed_until,
        rows_skipped=rows_skipped,
        list_imbalance=imbalance,
    )


def test_the_first_training_waits_for_its_rows_and_comes_once() -> None:
    assert not first_training_due(snapshot_of(99), 100)
    assert first_training_due(snapshot_of(100), 100)
    assert not first_training_due(snapshot_of(100, dead=range(1)), 100)
    assert not first_training_due(snapshot_of(100, trained_for=1), 100)
    assert not first_training_due(snapshot_of(0), 0)


@pytest.mark.parametrize(("rows", "due"), [(399, False), (400, True)])
def test_an_index_that_was_trained_for_a_quarter_of_the_rows_is_out_of_date(
    rows: int, due: bool
) -> None:
    assert retraining_due(snapshot_of(rows, trained_for=100, absorbed_until=100), CONFIG) == due


@pytest.mark.parametrize(
    ("rows", "dead", "due"),
    [
        (100, range(49), False),
        (100, range(50), True),
        (30, range(19), False),  # more than half, but few
        (30, range(20), True),
        (180, range(80, 160), False),  # half of those absorbed, or more, died in the buffer
        (180, range(30, 160), True),
    ],
)
def test_an_index_half_of_which_is_dead_is_out_of_date(rows: int, dead: range, due: bool) -> None:
    snapshot = snapshot_of(rows, dead=dead, trained_for=100, absorbed_until=min(rows, 100))
    assert retraining_due(snapshot, CONFIG) == due


@pytest.mark.parametrize("rows", [200, 3_000, 9_998])
def test_dead_rows_leave_an_index_of_any_size_at_the_same_share(rows: int) -> None:
    half, default = rows // 2, CompactionConfig()
    for dead, due in ((half - 1, False), (half, True)):
        snapshot = snapshot_of(rows, dead=range(dead), trained_for=rows, absorbed_until=rows)
        assert retraining_due(snapshot, default) == due
    assert not compaction_due(snapshot_of(rows, dead=range(half)), default, asked=False)


def test_rows_that_are_replaced_start_a_training_only_once_as_many_were_written_as_live() -> None:
    for replaced in range(0, 1_000, 50):
        snapshot = snapshot_of(
            1_000 + replaced,
            dead=range(replaced),
            trained_for=1_000,
            absorbed_until=1_000 + replaced,
        )
        assert not retraining_due(snapshot, CompactionConfig())
    replaced_all = snapshot_of(2_000, dead=range(1_000), trained_for=1_000, absorbed_until=2_000)
    assert retraining_due(replaced_all, CompactionConfig())


def waited(
    *, quiet_s: float = 0.0, trained_s: float = 0.0, training_s: float = 1.0, alarmed_s: float = 0.0
) -> Waited:
    """Return times of a collection that is being written to and was trained just now."""
    return Waited(quiet_s=quiet_s, trained_s=trained_s, training_s=training_s, alarmed_s=alarmed_s)


HARMFUL = Drift(base=1.0).found_harmful()


def replacing(replaced: int) -> Snapshot:
    """Return a snapshot of 1,000 rows, of which some were replaced since the training."""
    rows = 1_000 + replaced
    return snapshot_of(rows, dead=range(replaced), trained_for=1_000, absorbed_until=rows)


def test_harmful_drift_starts_a_training_once_a_share_of_the_rows_was_replaced() -> None:
    share = round(DRIFT_REPLACED_SHARE * 1_000)
    assert not drift_training_due(replacing(share - 1), HARMFUL, waited())
    assert drift_training_due(replacing(share), HARMFUL, waited())
    assert not drift_training_due(replacing(share), Drift(base=1.0), waited())
    assert not drift_training_due(snapshot_of(1_000), HARMFUL, waited())


def test_rows_that_are_only_added_start_no_training_for_drift_while_they_are_written() -> None:
    growing = snapshot_of(1_900, trained_for=1_000, absorbed_until=1_900)
    assert not drift_training_due(growing, HARMFUL, waited())
    assert drift_training_due(growing, HARMFUL, waited(quiet_s=QUIET_S, trained_s=100.0))


@pytest.mark.parametrize(
    ("times", "due"),
    [
        (waited(quiet_s=QUIET_S, trained_s=REST_WHEN_QUIET), True),
        (waited(quiet_s=QUIET_S - 0.1, trained_s=REST_WHEN_QUIET), False),
        (waited(quiet_s=QUIET_S, trained_s=REST_WHEN_QUIET, training_s=1.1), False),
        (waited(alarmed_s=PATIENCE_S, trained_s=PATIENCE_S), True),
        (waited(alarmed_s=PATIENCE_S - 1, trained_s=PATIENCE_S), False),
        (waited(alarmed_s=PATIENCE_S, trained_s=PATIENCE_S - 1), False),
        (waited(alarmed_s=900.0, trained_s=REST_WHILE_WRITTEN * 50 - 1, training_s=50.0), False),
        (waited(alarmed_s=900.0, trained_s=REST_WHILE_WRITTEN * 50, training_s=50.0), True),
    ],
)
def test_a_pause_and_a_long_time_start_a_training_that_the_time_since_the_last_one_pays_for(
    times: Waited, due: bool
) -> None:
    assert drift_training_due(replacing(100), HARMFUL, times) == due


FULL = CalibrationBasis(rule=RULE, rows=1_000, queries=256)


@pytest.mark.parametrize(
    ("rows", "dead", "absorbed_until", "quiet_s", "due"),
    [
        (1_500, 0, 1_500, QUIET_S, True),
        (1_500, 0, 1_500, QUIET_S - 1, False),  # the load goes on
        (1_499, 0, 1_499, QUIET_S, False),
        (1_500, 0, 1_499, QUIET_S, False),  # the buffer is scored exactly
        (2_500, 1_000, 2_500, QUIET_S, True),
        (2_500, 1_001, 2_500, QUIET_S, False),  # replaced rows are no growth
    ],
)
def test_an_index_that_has_grown_is_calibrated_again_after_the_load(
    rows: int, dead: int, absorbed_until: int, quiet_s: float, due: bool
) -> None:
    snapshot = snapshot_of(
        rows,
        dead=range(dead),
        trained_for=1_000,
        absorbed_until=absorbed_until,
        basis=FULL,
    )
    assert recalibration_due(snapshot, waited(quiet_s=quiet_s)) == due


def test_a_calibration_of_a_grown_index_with_live_queries_stays() -> None:
    live = replace(FULL, live=True)
    snapshot = snapshot_of(3_000, trained_for=1_000, absorbed_until=3_000, basis=live)
    assert not recalibration_due(snapshot, waited(quiet_s=QUIET_S))


PROVISIONAL = CalibrationBasis(rule=RULE, rows=1_000, queries=64, provisional=True)


@pytest.mark.parametrize(
    ("basis", "times", "due"),
    [
        (FULL, waited(quiet_s=900.0, trained_s=900.0), False),
        (PROVISIONAL, waited(), False),
        (PROVISIONAL, waited(quiet_s=QUIET_S), True),
        (PROVISIONAL, waited(trained_s=PROVISIONAL_S), True),
        (CalibrationBasis(), waited(), True),  # an earlier release's
    ],
)
def test_a_calibration_in_haste_is_replaced_after_a_pause_and_one_by_older_rules_immediately(
    basis: CalibrationBasis, times: Waited, due: bool
) -> None:
    snapshot = snapshot_of(1_000, trained_for=1_000, absorbed_until=1_000, basis=basis)
    assert recalibration_due(snapshot, times) == due


def test_a_lull_lasts_from_the_first_look_after_the_last_commit() -> None:
    lull = Lull()
    assert lull.seconds(7, 100.0) == 0
    assert lull.seconds(7, 103.0) == 3
    assert lull.seconds(8, 104.0) == 0
    assert lull.seconds(8, 109.0) == 5


def test_rows_that_the_index_never_held_do_not_count_as_dead_in_it() -> None:
    snapshot = snapshot_of(
        150, dead=range(50, 150), trained_for=100, absorbed_until=150, rows_skipped=60
    )
    assert not retraining_due(snapshot, CONFIG)  # 40 of the 90 that it holds
    assert not retraining_due(snapshot_of(100, dead=range(100), trained_for=100), CONFIG)


@pytest.mark.parametrize(
    ("absorbed_until", "imbalance", "due"),
    [(149, 9.0, False), (150, 2.39, False), (150, 2.4, True)],
)
def test_an_index_whose_lists_lost_their_balance_is_out_of_date_once_it_has_grown_by_half(
    absorbed_until: int, imbalance: float, due: bool
) -> None:
    snapshot = snapshot_of(
        160,
        trained_for=100,
        absorbed_until=absorbed_until,
        imbalance=imbalance,
        imbalance_when_trained=1.2,
    )
    assert retraining_due(snapshot, CONFIG) == due


@pytest.mark.parametrize(
    ("rows", "dead", "due", "due_when_asked"),
    [
        (100, 49, False, True),
        (100, 50, True, True),
        (30, 19, False, False),
        (30, 20, True, True),
        (300, 29, False, False),
    ],
)
def test_a_row_file_is_rebuilt_for_many_dead_rows_or_fewer_when_asked(
    rows: int, dead: int, due: bool, due_when_asked: bool
) -> None:
    snapshot = snapshot_of(rows, dead=range(dead))
    assert compaction_due(snapshot, CONFIG, asked=False) == due
    assert compaction_due(snapshot, CONFIG, asked=True) == due_when_asked


def test_rows_that_a_rebuild_has_left_out_count_no_more() -> None:
    kept = RowMap.of_kept(np.arange(900, 1_000), 1_000)
    assert not compaction_due(
        snapshot_of(1_000, dead=range(900), positions=kept), CONFIG, asked=True
    )
    later = snapshot_of(1_000, dead=range(950), positions=kept)
    assert compaction_due(later, CONFIG, asked=False)


def test_rows_that_never_lie_evenly_do_not_make_an_index_train_again_and_again(
    tmp_path: Path,
) -> None:
    collection = open_collection(tmp_path, config_of(min_training_size=100))
    spread = some_vectors(200)
    write(collection, Corpus(np.arange(200), spread))
    build_index(collection, lambda: 0.0)
    trainings = 0
    for turn in range(30):  # 50 rows a turn, all in one place: one list takes all of them
        rows = Corpus(np.arange(50) + 1_000 * (turn + 1), np.tile(spread[:1], (50, 1)))
        write(collection, rows)
        absorb(collection)
        before = collection.reads.describe().list_imbalance
        if collection.maintenance.training_due:
            build_index(collection, lambda: 0.0)
            trainings += 1
        assert not collection.maintenance.training_due
        assert collection.reads.describe().list_imbalance >= 1.0
        assert before >= 1.0
    assert 1 <= trainings <= 5  # the rows have grown by half only so often
    collection.close()


def absorb(collection: Collection) -> None:
    """Absorb the whole buffer."""
    while collection.maintenance.absorb_piece():
        pass


def test_an_index_whose_new_rows_lie_elsewhere_is_trained_before_it_is_outgrown(
    tmp_path: Path,
) -> None:
    collection = open_collection(tmp_path, config_of(min_training_size=100))
    write(collection, Corpus(np.arange(400), some_vectors(400)))
    build_index(collection, lambda: 0.0)
    assert not collection.maintenance.training_due
    elsewhere = some_vectors(400, seed=1) + np.float32(30)
    write(collection, Corpus(np.arange(400) + 1_000, elsewhere))
    absorb(collection)
    unbalanced = collection.reads.describe().list_imbalance
    assert collection.maintenance.training_due
    build_index(collection, lambda: 0.0)
    assert collection.reads.describe().list_imbalance < unbalanced / 2
    assert not collection.maintenance.training_due
    collection.close()


def test_a_training_follows_a_compaction_that_failed(tmp_path: Path) -> None:
    engine = replace(SMALL_ENGINE, compaction=CompactionConfig(dead_rows_min=20))
    disk = FailingDisk()
    config = config_of(min_training_size=50)
    collection = open_collection(tmp_path, config, engine=engine, disk=disk)
    corpus = corpus_of(200)
    write(collection, corpus)
    delete(collection, corpus.ids[:100])
    disk.fail("open")  # the compaction's
    threads = BackgroundThreads(lambda: 0.0)
    threads.attach(collection)
    threads.start()
    poll_until(lambda: collection.snapshot.index is not None)
    assert len(collection.snapshot.vectors) == 200
    threads.stop()
    collection.close()
