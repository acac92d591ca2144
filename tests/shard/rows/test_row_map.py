"""The row map agrees with a list of the rows that a file holds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.shard.samples import int64s
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones


@st.composite
def kept_rows(draw: st.DrawFn) -> tuple[list[int], int]:
    """Rows that a rebuild kept, ascending, and the row that it stopped before."""
    rebuilt_until = draw(st.integers(0, 400))
    share = draw(st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]))
    seed = draw(st.integers(0, 2**32 - 1))
    kept = np.flatnonzero(np.random.default_rng(seed).random(rebuilt_until) < share)
    return kept.tolist(), rebuilt_until


@given(kept=kept_rows(), appended=st.integers(0, 200))
@example(kept=([], 64), appended=0)
@example(kept=([63], 64), appended=1)
@example(kept=(list(range(64)), 128), appended=3)
@example(kept=([127], 128), appended=0)
@example(kept=([], 0), appended=70)
def test_rows_and_positions_are_each_others_inverse(
    kept: tuple[list[int], int], appended: int
) -> None:
    rows, rebuilt_until = kept
    row_map = RowMap.of_kept(np.array(rows, dtype=np.int64), rebuilt_until)
    held = [*rows, *range(rebuilt_until, rebuilt_until + appended)]
    positions = np.arange(len(held))
    np.testing.assert_array_equal(row_map.of(np.array(held, dtype=np.int64)), positions)
    np.testing.assert_array_equal(row_map.rows_at(positions), held)
    np.testing.assert_array_equal(row_map.rows_at(positions[::-1]), held[::-1])
    assert row_map.rows(len(held)) == rebuilt_until + appended
    assert row_map.kept == len(rows)
    assert row_map.is_identity == (len(rows) == rebuilt_until)


@given(kept=kept_rows(), bounds=st.tuples(st.integers(0, 500), st.integers(0, 500)))
def test_a_range_of_rows_is_a_range_of_positions(
    kept: tuple[list[int], int], bounds: tuple[int, int]
) -> None:
    rows, rebuilt_until = kept
    first, last = sorted(bounds)
    row_map = RowMap.of_kept(np.array(rows, dtype=np.int64), rebuilt_until)
    held = {*rows, *range(rebuilt_until, 600)}
    asked = np.arange(first, last)
    expected = [row in held for row in asked.tolist()]
    assert row_map.hold(asked).tolist() == expected
    mask = row_map.hold_between(first, last)
    assert (mask.tolist() if mask is not None else [True] * len(asked)) == expected
    begin, end = row_map.span(first, last)
    assert begin == sum(row < first for row in held)
    assert end - begin == sum(expected)


@given(kept=kept_rows(), later=st.lists(st.integers(0, 63), unique=True))
def test_what_was_left_out_is_dead_and_nothing_else(
    kept: tuple[list[int], int], later: Sequence[int]
) -> None:
    rows, rebuilt_until = kept
    row_map = RowMap.of_kept(np.array(rows, dtype=np.int64), rebuilt_until)
    more = int64s(*(rebuilt_until + row for row in later))
    dead = [row for row in range(rebuilt_until) if row not in set(rows)]
    found = row_map.tombstones()
    assert found.live_rows(0, rebuilt_until + 64).tolist() == [*rows, *more_rows(rebuilt_until)]
    expected = Tombstones().with_dead(int64s(*dead))
    for tombstones in (found, expected):
        assert tombstones.count == len(dead)
    after, expected_after = found.with_dead(more), expected.with_dead(more)
    asked = np.arange(rebuilt_until + 100)
    np.testing.assert_array_equal(after.are_dead(asked), expected_after.are_dead(asked))
    assert after.count == expected_after.count


def more_rows(rebuilt_until: int) -> range:
    return range(rebuilt_until, rebuilt_until + 64)


def test_a_map_that_was_never_rebuilt_hands_back_what_it_is_asked() -> None:
    rows = np.arange(1_000)
    assert RowMap().of(rows) is rows
    assert RowMap().rows_at(rows) is rows
    assert RowMap().hold_between(0, 1_000) is None
    assert RowMap().tombstones().count == 0


def test_pairs_of_rows_are_looked_up_as_they_are_shaped() -> None:
    row_map = RowMap.of_kept(int64s(1, 5, 9), 10)
    np.testing.assert_array_equal(row_map.of(np.array([[1, 9], [5, 12]])), [[0, 2], [1, 5]])


def test_a_million_rows_take_less_than_a_fifth_of_a_byte_each() -> None:
    rows = 1_000_000
    row_map = RowMap.of_kept(np.arange(0, rows, 2), rows)
    assert row_map.memory_bytes / rows == pytest.approx(0.1875, abs=0.001)
