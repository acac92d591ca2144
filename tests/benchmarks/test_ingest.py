"""What a collection is filled with, and when it is at rest, so that a run is not disturbed."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks.load.ingest import at_rest, fill
from tests.cli.client_in_memory import ClientInMemory
from vectorshard.cli.vector_files import VectorFile
from vectorshard.shard.config import BufferConfig
from vectorshard.shard.descriptions import CollectionDescription, ShardDescription
from vectorshard.shard.errors import CollectionExists, VectorShardError
from vectorshard.shard.types import (
    CollectionConfig,
    IdType,
    IndexConfig,
    Ledger,
    Metric,
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


VECTORS = np.random.default_rng(4).standard_normal((30, 2), dtype=np.float32)


def filled(client: ClientInMemory, metric: Metric | None = None) -> ClientInMemory:
    """Fill the collection c with VECTORS."""
    served: Any = client
    source = VectorFile(vectors=VECTORS, ids=None, metric=metric)
    fill(served, "c", source, Console(file=io.StringIO()))
    return client


def created(metric: Metric) -> ClientInMemory:
    """Return a client of a server with an empty collection c."""
    client = ClientInMemory()
    client.create_collection("c", dim=2, metric=metric, id_type=IdType.INT64)
    return client


def test_a_collection_is_created_for_the_data_and_filled_once() -> None:
    client = filled(ClientInMemory(), Metric.INNER_PRODUCT)
    assert client.collections["c"].metric is Metric.INNER_PRODUCT
    assert sorted(client.rows["c"]) == list(range(30))
    client.refused_rows = (0,)  # whoever wrote again would hear of it
    filled(client, Metric.INNER_PRODUCT)


def test_an_empty_collection_is_filled() -> None:
    assert len(filled(created(Metric.L2)).rows["c"]) == 30


def test_the_rows_of_others_are_not_overwritten() -> None:
    client = created(Metric.L2)
    client.upsert("c", np.array([5]), np.ones((1, 2), np.float32))
    with pytest.raises(CollectionExists, match="holds 1 rows, the data 30"):
        filled(client)
    assert list(client.rows["c"]) == [5]


def test_a_collection_of_another_metric_is_not_filled() -> None:
    client = created(Metric.COSINE)
    with pytest.raises(CollectionExists, match="has metric l2, the collection cosine"):
        filled(client, Metric.L2)
    assert not client.rows["c"]


def test_a_row_that_is_refused_is_an_error() -> None:
    client = created(Metric.L2)
    client.refused_rows = (7,)
    with pytest.raises(VectorShardError, match="row 7: exists"):
        filled(client)
