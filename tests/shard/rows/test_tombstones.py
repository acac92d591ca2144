"""Tombstones are a set of rows: hypothesis holds them against Python's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Int64Array

ROWS = st.integers(0, 200)
BATCHES = st.lists(st.sets(ROWS, max_size=30), max_size=5)


def rows_of(rows: set[int]) -> Int64Array:
    return np.array(sorted(rows), dtype=np.int64)


def buried(batches: list[set[int]]) -> tuple[Tombstones, set[int]]:
    """Bury the rows of each batch that still live."""
    tombstones, dead = Tombstones(), set[int]()
    for batch in batches:
        tombstones = tombstones.with_dead(rows_of(batch - dead))
        dead |= batch
    return tombstones, dead


@given(BATCHES, st.lists(ROWS, max_size=50))
def test_exactly_the_buried_rows_are_dead(batches: list[set[int]], asked: list[int]) -> None:
    tombstones, dead = buried(batches)
    assert tombstones.count == len(dead)
    are_dead = tombstones.are_dead(np.array(asked, dtype=np.int64))
    assert are_dead.tolist() == [row in dead for row in asked]


@given(BATCHES, ROWS, ROWS, st.none() | st.integers(0, 40))
def test_a_range_is_its_living_rows_in_order(
    batches: list[set[int]], one: int, other: int, rows_max: int | None
) -> None:
    tombstones, dead = buried(batches)
    first, last = sorted((one, other))
    living = [row for row in range(first, last) if row not in dead]
    assert tombstones.live_rows(first, last).tolist() == living
    assert tombstones.live_rows(first, last, rows_max).tolist() == living[:rows_max]
    assert tombstones.count_between(first, last) == last - first - len(living)
    live = tombstones.live_between(first, last)
    mask = [row not in dead for row in range(first, last)]
    assert all(mask) if live is None else live.tolist() == mask


@given(BATCHES, st.sets(ROWS, min_size=1, max_size=5))
def test_tombstones_never_change_once_they_are_made(
    batches: list[set[int]], more: set[int]
) -> None:
    before, dead = buried(batches)
    bits = before.bits.copy()
    before.with_dead(rows_of(more - dead))
    np.testing.assert_array_equal(before.bits, bits)
    assert before.count == len(dead)
    assert not len(bits) or not before.bits.flags.writeable


def test_rows_beyond_the_bitmap_live() -> None:
    tombstones = Tombstones().with_dead(rows_of({0, 3}))
    assert len(tombstones.bits) == 1
    assert tombstones.are_dead(rows_of({3, 8, 10**9})).tolist() == [True, False, False]
    assert tombstones.live_rows(10**6, 10**6 + 3).tolist() == [10**6, 10**6 + 1, 10**6 + 2]


def test_the_bit_of_a_row_is_where_faiss_looks_for_it() -> None:
    assert Tombstones().with_dead(rows_of({0, 9, 10})).bits.tolist() == [0b1, 0b110]


def test_nobody_is_dead_at_first() -> None:
    assert Tombstones().count == 0
    assert Tombstones().are_dead(rows_of({0, 1})).tolist() == [False, False]
    assert Tombstones().live_between(0, 5) is None
