"""Rows that are replaced by other ones keep their recall, and similar ones cost few trainings."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.shard.engine.upkeep_by_hand import UpkeepByHand
from tests.shard.samples import SMALL_ENGINE, Corpus, config_of, delete, open_collection, write
from vectorshard.shard.config import BufferConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.types import Effort, Float32Array, IndexKind, Metric, SearchRequest

ROWS = 2_000
DIM = 16
TARGET = 0.95
QUERIES = 200

ENGINE = replace(
    SMALL_ENGINE,
    buffer=BufferConfig(absorb_rows=100, absorb_piece_rows=100),
    training=replace(SMALL_ENGINE.training, calibration_queries=256),
)


@pytest.fixture
def collection(tmp_path: Path) -> Iterator[Collection]:
    """A collection that trains from 1,000 rows on."""
    config = config_of(
        dim=DIM,
        metric=Metric.L2,
        kind=IndexKind.IVF_PQ,
        min_training_size=1_000,
        target_recall=TARGET,
    )
    collection = open_collection(tmp_path, config, engine=ENGINE)
    yield collection
    collection.close()


class Model:
    """An embedding model: clusters around places of its own."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._centers = self._random.normal(size=(40, DIM)) * 2

    def vectors(self, rows: int) -> Float32Array:
        """Return float32 (rows, DIM), new ones in each call."""
        chosen = self._centers[self._random.integers(len(self._centers), size=rows)]
        return (chosen + self._random.normal(size=(rows, DIM))).astype(np.float32)


def found(collection: Collection, queries: Float32Array, effort: Effort) -> Float32Array:
    """Return the scores of the ten best rows of each query, best first."""
    request = SearchRequest(collection="words", queries=queries, k=10, effort=effort)
    return collection.reads.search(request).hits.scores.reshape(len(queries), 10)


def recall(collection: Collection, queries: Float32Array) -> float:
    """Return the share of the ten best scores that a default search finds."""
    limits = found(collection, queries, Effort(exact=True))[:, -1:]
    return float((found(collection, queries, Effort()) <= limits).mean())


def replace_rows(collection: Collection, first: int, vectors: Float32Array) -> None:
    """Upsert the ids from `first` on, in batches, modulo ROWS."""
    for begin in range(0, len(vectors), 100):
        piece = vectors[begin : begin + 100]
        ids = (np.arange(len(piece)) + first + begin) % ROWS
        write(collection, Corpus(ids, piece))


def test_rows_of_another_model_reach_the_target_within_a_minute_of_the_last_write(
    collection: Collection,
) -> None:
    upkeep, old, new = UpkeepByHand(collection), Model(1), Model(2)
    write(collection, Corpus(np.arange(ROWS), old.vectors(ROWS)))
    upkeep.run()
    upkeep.wait(20)
    for first in range(0, ROWS // 2, 100):
        replace_rows(collection, first, new.vectors(100))
        upkeep.run()
    upkeep.wait(60)
    assert recall(collection, new.vectors(QUERIES)) >= TARGET - 0.02
    assert recall(collection, old.vectors(QUERIES)) >= TARGET - 0.02
    for first in range(ROWS // 2, ROWS, 100):
        replace_rows(collection, first, new.vectors(100))
        upkeep.run()
    upkeep.wait(60)
    assert recall(collection, new.vectors(QUERIES)) >= TARGET - 0.02
    assert collection.snapshot.index is not None
    assert collection.snapshot.index.generation <= 8


def test_few_rows_of_another_model_are_found_after_a_pause(collection: Collection) -> None:
    upkeep, old, new = UpkeepByHand(collection), Model(1), Model(2)
    write(collection, Corpus(np.arange(ROWS), old.vectors(ROWS)))
    upkeep.run()
    replace_rows(collection, 0, new.vectors(300))
    upkeep.run()
    assert generation(collection) == 1
    assert recall(collection, new.vectors(QUERIES)) < TARGET - 0.05
    upkeep.wait(60)
    assert generation(collection) == 2
    assert recall(collection, new.vectors(QUERIES)) >= TARGET - 0.10
    upkeep.wait(600)
    assert generation(collection) == 2


def generation(collection: Collection) -> int:
    """Return the number of trainings so far."""
    index = collection.snapshot.index
    return 0 if index is None else index.generation


def test_rows_of_the_same_model_start_no_training_before_all_are_replaced(
    collection: Collection,
) -> None:
    upkeep, model = UpkeepByHand(collection), Model(1)
    write(collection, Corpus(np.arange(ROWS), model.vectors(ROWS)))
    upkeep.run()
    for turn in range(1, 4):
        replace_rows(collection, 0, model.vectors(ROWS - 100))
        upkeep.run()
        upkeep.wait(60)
        assert generation(collection) <= 1 + turn
    assert recall(collection, model.vectors(QUERIES)) >= TARGET - 0.02


def test_a_window_that_moves_keeps_its_recall_within_a_tenth_and_reaches_the_target_in_a_pause(
    collection: Collection,
) -> None:
    upkeep, random = UpkeepByHand(collection), np.random.default_rng(5)
    step_rows = ROWS // 10

    def rows_at(step: float, rows: int) -> Float32Array:
        place = np.zeros(DIM)
        place[0] = step
        return (random.normal(size=(rows, DIM)) + place).astype(np.float32)

    for step in range(10):
        ids = np.arange(step * step_rows, (step + 1) * step_rows)
        write(collection, Corpus(ids, rows_at(step, step_rows)))
    upkeep.run()
    upkeep.wait(60)
    for step in range(10, 16):
        first = step * step_rows
        for begin in range(0, step_rows, 50):  # a tenth of the rows in a minute
            ids = np.arange(first + begin, first + begin + 50)
            write(collection, Corpus(ids, rows_at(step, 50)))
            delete(collection, ids - ROWS)
            upkeep.wait(15)
        living = np.concatenate([rows_at(step - back, QUERIES // 10) for back in range(10)])
        assert recall(collection, living) >= TARGET - 0.10
        assert recall(collection, rows_at(step, QUERIES)) >= TARGET - 0.10
    upkeep.wait(60)
    living = np.concatenate([rows_at(15 - back, QUERIES // 10) for back in range(10)])
    assert recall(collection, living) >= TARGET - 0.02
    assert recall(collection, rows_at(15, QUERIES)) >= TARGET - 0.02
