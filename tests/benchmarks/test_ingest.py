"""When a collection is at rest, so that a run is not disturbed; and searches beside a load."""

from __future__ import annotations

import pytest

from benchmarks.growing import Run
from benchmarks.ingest import LOADING, QUIET, rows_of_searches
from benchmarks.load.ingest import at_rest
from shard.config import BufferConfig
from shard.types import (
    CollectionConfig,
    CollectionDescription,
    IdType,
    IndexConfig,
    Ledger,
    Metric,
    ShardDescription,
    ShardState,
)

FEW = IndexConfig().min_training_size
KEPT = BufferConfig().absorb_rows


@pytest.mark.parametrize(
    ("state", "training", "buffered", "expected"),
    [
        (ShardState.BUFFERING, False, 0, True),
        (ShardState.BUFFERING, False, FEW - 1, True),
        (ShardState.BUFFERING, False, FEW, False),
        (ShardState.TRAINING, True, FEW, False),
        (ShardState.TRAINED, False, KEPT - 1, True),
        (ShardState.TRAINED, False, KEPT, False),
        (ShardState.TRAINED, True, 0, False),
    ],
)
def test_a_shard_is_at_rest_when_it_is_trained_and_absorbed_or_never_will_be(
    state: ShardState, training: bool, buffered: int, expected: bool
) -> None:
    restful = ShardDescription(
        shard=0, state=ShardState.TRAINED, training=False, ledger=Ledger(accepted=9, indexed=9)
    )
    asked = ShardDescription(
        shard=1,
        state=state,
        training=training,
        ledger=Ledger(accepted=buffered, buffered=buffered),
    )
    description = CollectionDescription(
        config=CollectionConfig(name="c", dim=2, metric=Metric.L2, id_type=IdType.INT64),
        incarnation="",
        shards=(restful, asked),
        recommended_batch_size=1,
    )
    assert at_rest(description) is expected


def run(p99_ms: float) -> Run:
    """Return the searches of a phase."""
    return Run(calls=100, took_s=1.0, p50_ms=1.0, p99_ms=p99_ms)


def test_searches_beside_a_load_are_held_against_the_quiet_ones_of_their_round() -> None:
    quiet = [run(2.0), run(4.0), run(10.0)]
    _, loading = rows_of_searches({QUIET: quiet, LOADING: [run(4.0), run(8.0), run(50.0)]})
    assert (loading[1], loading[-1]) == ("<= 3, met", 2.0)
    _, loading = rows_of_searches({QUIET: quiet, LOADING: [run(8.0), run(16.0), run(10.0)]})
    assert (loading[1], loading[-1]) == ("<= 3, missed", 4.0)
