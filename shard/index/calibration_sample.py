"""The rows that a calibration uses as queries. Pure: randomness is a parameter.

The first part is a sample of the distinct rows: a vector that was written a thousand times counts
once, or the measured recall would be that of its copies. In the second part each inverted list is
equally likely. It notices what the first misses: that a dense crowd of near duplicates is found and
the other rows are not. One sample is never enough, so the worse of the two decides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.index.own_rows import NO_ROW
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.types import Float32Array, Int32Array, Int64Array, VectorArray

POOL_ROWS_MAX: Final = 32_768
POOL_COMPONENTS_MAX: Final = 8_388_608
"""Rows, and components of them, among which distinct ones are looked for: a few tens of
milliseconds of work."""

POOL_A_QUERY: Final = 4
"""But at least this many rows for each query wanted."""

BALANCED_SHARE: Final = 0.75
"""Size of the balanced sample, relative to that of distinct rows. Half of it makes the worst tenth
mostly chance: at .95 on 336,479 words, eight draws took 110 to 193 us of work; with this, 110 to
142."""

_HASHED_ROWS: Final = 4_096  # hashed at once
_MULTIPLIER: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, odd


@dataclass(frozen=True, slots=True)
class CalibrationQueries:
    """The queries of a calibration, in three parts: distinct rows, balanced rows, live queries.

    `vectors` float32 (queries, dim). `own_rows` int64 (queries,): the row of each query, excluded
    from its result with its copies; NO_ROW for none. The first `distinct` and the next `balanced`
    queries are rows.
    """

    vectors: Float32Array
    own_rows: Int64Array
    distinct: int
    balanced: int = 0

    @classmethod
    def of_rows(cls, held: RowRange, rows: Int64Array, balanced: int = 0) -> CalibrationQueries:
        """Return live rows as queries; the last `balanced` are the balanced sample."""
        vectors = np.asarray(held.vectors).take(held.positions.of(rows), axis=0)
        return cls(vectors, rows, len(rows) - balanced, balanced)

    @classmethod
    def of_live(cls, vectors: Float32Array) -> CalibrationQueries:
        """Return live queries alone, float32 (queries, dim)."""
        return cls(vectors, np.full(len(vectors), NO_ROW), 0)

    def with_live(self, vectors: Float32Array) -> CalibrationQueries:
        """Return these queries and live ones, float32 (queries, dim)."""
        return CalibrationQueries(
            np.concatenate([self.vectors, vectors]),
            np.concatenate([self.own_rows, np.full(len(vectors), NO_ROW)]),
            self.distinct,
            self.balanced,
        )

    def __len__(self) -> int:
        """The number of queries."""
        return len(self.vectors)

    @property
    def parts(self) -> tuple[slice, slice, slice]:
        """The queries of each part."""
        rows = self.distinct + self.balanced
        return slice(0, self.distinct), slice(self.distinct, rows), slice(rows, len(self))


def first_of_each(vectors: VectorArray) -> Int64Array:
    """Return the place of one row of each distinct content, ascending. int64 (distinct,).

    Rows are compared by a hash of 64 bits of their bytes, float32 (rows, dim).
    """
    words = np.ascontiguousarray(vectors, np.float32).view(np.uint32)
    powers = np.cumprod(np.full(words.shape[1], _MULTIPLIER, np.uint64))
    hashes = np.empty(len(words), np.uint64)
    for first in range(0, len(words), _HASHED_ROWS):
        piece = slice(first, first + _HASHED_ROWS)
        hashes[piece] = words[piece].astype(np.uint64) @ powers
    return np.sort(np.unique(hashes, return_index=True)[1])


def calibration_rows(
    held: RowRange,
    lists_of_rows: Callable[[], Int32Array],
    queries: int,
    random: np.random.Generator,
) -> CalibrationQueries:
    """Draw the queries of a calibration from the live rows of `held`.

    Parameters
    ----------
    lists_of_rows
        Returns the list of each row below `held.last`, int32 (rows,), -1 for rows in none.
    queries
        Distinct rows wanted; the balanced sample has BALANCED_SHARE of that in addition.
    """
    live = held.tombstones.live_rows(held.first, held.last)
    dim = held.vectors.shape[1]
    most = max(POOL_A_QUERY * queries, min(POOL_ROWS_MAX, POOL_COMPONENTS_MAX // dim))
    if len(live) > most:
        live = np.sort(random.choice(live, size=most, replace=False))
    vectors = np.asarray(held.vectors).take(held.positions.of(live), axis=0)
    pool = live[first_of_each(vectors)]
    distinct = random.choice(pool, size=min(queries, len(pool)), replace=False)
    lists = lists_of_rows()[pool]
    pool, lists = pool[lists >= 0], lists[lists >= 0]
    # The smallest of exponential variables with these means: a draw by weight, without replacement.
    in_list = np.bincount(lists)[lists] if len(lists) else np.zeros(0)
    keys = random.exponential(size=len(pool)) * in_list
    wanted = min(int(queries * BALANCED_SHARE), len(pool))
    balanced = pool[np.argsort(keys, kind="stable")[:wanted]]
    rows = np.concatenate([np.sort(distinct), np.sort(balanced)])
    return CalibrationQueries.of_rows(held, rows, len(balanced))
