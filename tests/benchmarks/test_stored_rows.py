"""Whether a collection holds the rows of a source, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.load.stored_rows import SAMPLE_ROWS, why_other_kind, why_other_rows
from tests.cli.client_in_memory import ClientInMemory
from vectorshard.cli.vector_files import VectorFile
from vectorshard.shard.types import CollectionConfig, Float32Array, IdType, Metric

VECTORS = np.random.default_rng(3).standard_normal((3 * SAMPLE_ROWS, 4), dtype=np.float32)
IDS = np.arange(len(VECTORS))


def source(vectors: Float32Array = VECTORS, metric: Metric | None = None) -> VectorFile:
    """Return a file that is known by its row numbers."""
    return VectorFile(vectors=vectors, ids=None, metric=metric)


def holding(vectors: Float32Array, metric: Metric = Metric.L2) -> Any:
    """Return a client of a server whose collection c holds these rows, by their numbers."""
    client = ClientInMemory()
    client.create_collection("c", dim=4, metric=metric, id_type=IdType.INT64)
    client.upsert("c", IDS[: len(vectors)], vectors)
    return client


def why(client: Any, of: VectorFile) -> str:
    """Ask for the collection of a client."""
    return why_other_rows(client, client.describe("c"), of)


def test_the_same_rows_are_the_same() -> None:
    assert why(holding(VECTORS), source()) == ""


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_unit_vectors_under_cosine_are_the_rows_that_they_were_made_of(scale: float) -> None:
    units = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    vectors = VECTORS * np.float32(scale)
    assert why(holding(units, Metric.COSINE), source(vectors)) == ""
    assert "differs from the data" in why(holding(units), source())


def test_rows_in_another_order_are_others() -> None:
    assert "row 0 of the collection differs" in why(holding(VECTORS[::-1].copy()), source())


def test_other_numbers_of_rows_and_other_ids_are_others() -> None:
    assert why(holding(VECTORS[:-1]), source()) == "the collection holds 767 rows, the data 768"
    named = VectorFile(vectors=VECTORS, ids=IDS + len(IDS), metric=None)
    assert why(holding(VECTORS), named) == "the collection does not hold row 768 of the data"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, ""),
        ({"metric": Metric.COSINE}, "the data has metric l2, the collection cosine"),
        ({"dim": 5}, "the data has dim 4, the collection 5"),
        ({"id_type": IdType.STRING}, "the collection has string ids, the data int64"),
    ],
)
def test_a_collection_of_another_kind_is_told(changes: dict[str, Any], told: str) -> None:
    config = {"dim": 4, "metric": Metric.L2, "id_type": IdType.INT64, **changes}
    assert why_other_kind(CollectionConfig(name="c", **config), source(metric=Metric.L2)) == told
