"""The ledger of a snapshot counts what the index really holds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.shard.samples import int64s, some_vectors
from vectorshard.shard.index.calibration import (
    Calibration,
    CalibrationBasis,
    CalibrationPoint,
    SearchParameters,
)
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import Effort, IdType, IndexKind, Int64Array, Ledger, Metric


def snapshot_of(rows: int, replaced: Int64Array, deleted: Int64Array) -> Snapshot:
    return Snapshot(
        sequence=1,
        vectors=some_vectors(rows),
        squared_norms=np.ones(rows, dtype=np.float32),
        ids=IdColumn(IdType.INT64),
        tombstones=Tombstones().with_dead(np.concatenate([replaced, deleted])),
        replaced=len(replaced),
        deleted=len(deleted),
    )


def index_of(rows: Int64Array) -> TrainedIndex:
    vectors = some_vectors(100)
    ivf = IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, 2, seed=1)
    ivf.add(rows, vectors[rows])
    return TrainedIndex(
        ivf=ivf,
        generation=1,
        calibration=Calibration(()),
        live_when_trained=len(rows),
        rows_trained_on=len(rows),
        trained_at=0.0,
        training_s=0.0,
    )


def test_without_an_index_every_living_row_is_buffered() -> None:
    snapshot = snapshot_of(20, replaced=int64s(1, 2), deleted=int64s(5))
    assert snapshot.ledger() == Ledger(accepted=20, buffered=17, deleted=1, replaced=2)
    assert snapshot.live == snapshot.buffer.live == snapshot.between(0, snapshot.rows).live == 17
    assert snapshot.ledger().adds_up


def test_rows_that_died_in_the_index_are_no_longer_indexed() -> None:
    snapshot = snapshot_of(20, replaced=int64s(1, 2, 15), deleted=int64s(5, 19))
    indexed = replace(snapshot, index=index_of(np.arange(12)), absorbed_until=12)
    assert indexed.ledger() == Ledger(accepted=20, buffered=6, indexed=9, deleted=2, replaced=3)
    assert indexed.ledger().adds_up
    assert (indexed.buffer.first, indexed.buffer.last, indexed.buffer.live) == (12, 20, 6)


def test_rows_that_were_dead_before_their_turn_are_not_counted_twice() -> None:
    snapshot = snapshot_of(20, replaced=int64s(1, 2), deleted=int64s(5))
    held = np.array([row for row in range(12) if row not in {1, 5}])
    indexed = replace(snapshot, index=index_of(held), absorbed_until=12, rows_skipped=2)
    assert indexed.ledger() == Ledger(accepted=20, buffered=8, indexed=9, deleted=1, replaced=2)


def test_a_row_that_the_index_lost_or_holds_twice_breaks_the_ledger() -> None:
    snapshot = snapshot_of(20, replaced=int64s(), deleted=int64s())
    for held in (np.arange(11), np.array([*range(12), 3])):
        wrong = replace(snapshot, index=index_of(held), absorbed_until=12)
        assert not wrong.ledger().adds_up


def test_ledgers_are_summed_entry_by_entry() -> None:
    ledger = Ledger(accepted=15, buffered=1, indexed=2, deleted=4, replaced=8)
    assert ledger.adds_up
    assert ledger.live == 3
    assert ledger + ledger == Ledger(accepted=30, buffered=2, indexed=4, deleted=8, replaced=16)


@pytest.mark.parametrize(
    ("rows", "calibrated", "candidates"),
    [(20, 20, 6), (30, 20, 9), (31, 20, 10), (60, 20, 18), (10, 20, 6), (60, 0, 9), (60, 1, 60)],
)
def test_candidates_grow_with_the_index_since_its_calibration(
    rows: int, calibrated: int, candidates: int
) -> None:
    """A calibration by older rules does not say of how many rows: then those of the training."""
    point = CalibrationPoint(
        k=10, target_recall=0.9, parameters=SearchParameters(2, 6), measured_recall=0.9
    )
    calibration = Calibration((point,), CalibrationBasis(rows=calibrated))
    index = replace(index_of(np.arange(rows)), calibration=calibration, live_when_trained=40)
    found = index.parameters_for(Effort(), 0.9, 10)
    assert found == SearchParameters(2, candidates)
