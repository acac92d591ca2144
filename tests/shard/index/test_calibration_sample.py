"""The rows that measure an index: distinct ones, and others from every list alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.shard.samples import some_vectors
from vectorshard.shard.index.calibration_sample import (
    BALANCED_SHARE,
    CalibrationQueries,
    calibration_rows,
    first_of_each,
)
from vectorshard.shard.index.own_rows import NO_ROW
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Float32Array, Int32Array


def held_of(vectors: Float32Array, tombstones: Tombstones | None = None) -> RowRange:
    norms = np.vecdot(vectors, vectors)
    return RowRange(vectors, norms, tombstones or Tombstones(), 0, len(vectors))


def sample(held: RowRange, lists: Int32Array, queries: int, seed: int = 1) -> CalibrationQueries:
    return calibration_rows(held, lambda: lists, queries, np.random.default_rng(seed))


def test_equal_vectors_are_one() -> None:
    vectors = some_vectors(50, dim=5)
    repeated = np.repeat(vectors, 100, axis=0)
    assert first_of_each(repeated).tolist() == list(range(0, 5_000, 100))


@pytest.mark.parametrize("scale", [1.0, 2.0**20, 0.5])
def test_round_numbers_are_told_apart(scale: float) -> None:
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 6), axis=-1).reshape(-1, 6)
    assert len(first_of_each((scale * grid).astype(np.float32))) == 4**6
    one_hot = np.eye(300, dtype=np.float32)
    assert len(first_of_each(one_hot)) == 300


def test_copies_of_one_vector_are_one_query_of_the_sample() -> None:
    vectors = some_vectors(1_000, dim=8)
    vectors[:900] = vectors[0]
    lists = np.zeros(1_000, np.int32)
    drawn = sample(held_of(vectors), lists, 64)
    assert (drawn.distinct, drawn.balanced) == (64, 48)
    assert (drawn.own_rows < 900).sum() <= 2
    few = sample(held_of(np.repeat(vectors[-3:], 50, axis=0)), lists[:150], 64)
    assert (few.distinct, few.balanced, len(few)) == (3, 3, 6)


def test_dead_rows_are_no_queries_and_each_query_is_the_vector_of_its_row() -> None:
    vectors = some_vectors(500, dim=8)
    held = held_of(vectors, Tombstones().with_dead(np.arange(0, 500, 2)))
    drawn = sample(held, np.zeros(500, np.int32), 100)
    assert (drawn.own_rows % 2 == 1).all()
    np.testing.assert_array_equal(drawn.vectors, vectors[drawn.own_rows])
    assert len(np.unique(drawn.own_rows[drawn.parts[0]])) == 100


def test_every_list_is_as_likely_in_the_balanced_sample() -> None:
    vectors = some_vectors(4_000, dim=4)
    lists = np.where(np.arange(4_000) < 3_600, 0, 1 + np.arange(4_000) % 4).astype(np.int32)
    counts = np.zeros(5)
    for seed in range(30):
        drawn = sample(held_of(vectors), lists, 100, seed)
        _, balanced, _ = drawn.parts
        counts += np.bincount(lists[drawn.own_rows[balanced]], minlength=5)
    share = counts / (30 * int(100 * BALANCED_SHARE))
    assert share == pytest.approx(0.2, abs=0.05)


def test_rows_that_are_in_no_list_are_not_in_the_balanced_sample() -> None:
    lists = np.full(100, -1, np.int32)
    drawn = sample(held_of(some_vectors(100, dim=4)), lists, 10)
    assert (drawn.distinct, drawn.balanced) == (10, 0)


def test_live_queries_are_the_last_part_and_no_rows() -> None:
    held = held_of(some_vectors(100, dim=4))
    live = some_vectors(7, dim=4, seed=2)
    drawn = sample(held, np.zeros(100, np.int32), 16).with_live(live)
    np.testing.assert_array_equal(drawn.vectors[drawn.parts[2]], live)
    assert set(drawn.own_rows[drawn.parts[2]].tolist()) == {NO_ROW}
    assert [part.stop - part.start for part in drawn.parts] == [16, 12, 7]


def test_a_collection_without_live_rows_has_no_queries() -> None:
    held = held_of(some_vectors(20, dim=4), Tombstones().with_dead(np.arange(20)))
    assert len(sample(replace(held, first=0), np.full(20, -1, np.int32), 8)) == 0
