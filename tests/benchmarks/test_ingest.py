"""When a collection is at rest, so that a run is not disturbed."""

from __future__ import annotations

import pytest

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
