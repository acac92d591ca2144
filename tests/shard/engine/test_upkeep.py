"""Trainings and rebuilds are due when there is a reason, and what they do takes the reason away."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.shard.samples import Corpus, config_of, open_collection, some_vectors, write
from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.engine.upkeep import compaction_due, first_training_due, retraining_due
from vectorshard.shard.index.calibration import Calibration
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import IdType, IndexKind, Metric

CONFIG = CompactionConfig(dead_rows_min=20, dead_share=0.5, dead_share_when_asked=0.1)


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
) -> Snapshot:
    """Return a snapshot, with an index if it was trained for any rows."""
    vectors = some_vectors(4)
    index = TrainedIndex(
        ivf=IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, 1, seed=1),
        generation=1,
        calibration=Calibration(()),
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
