"""A range of rows, searched exactly. Pure.

It owns no memory and no file. The training buffer is one such range: the rows from the index's
`absorbed_until` to the last committed row. Before the first training that is every row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from vectorshard.shard.index.exact import Candidates, concatenate, exact_candidates
from vectorshard.shard.index.float32_kernels import shortlist
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Float32Array, Metric

SCORED_ONE_BY_ONE: Final = 4  # queries that are scored one at a time; more share one product

ONE_BY_ONE_WORK: Final = 350_000
"""Rows * (dim + 80) up to which those are: a product has fixed costs of 50 us, and then reads rows
faster (measured with d = 8 to 1,536)."""


@dataclass(frozen=True, slots=True)
class RowRange:
    """The rows first <= row < last of a shard.

    `positions` maps rows to `vectors` (positions, dim) and `squared_norms` (positions,).
    """

    vectors: Float32Array
    squared_norms: Float32Array
    tombstones: Tombstones
    first: int
    last: int
    positions: RowMap = field(default_factory=RowMap)

    @property
    def live(self) -> int:
        """The number of live rows in the range."""
        return self.last - self.first - self.tombstones.count_between(self.first, self.last)

    def candidates(
        self,
        metric: Metric,
        queries: Float32Array,
        k: int,
        go_on: Callable[[], None] = lambda: None,
    ) -> Candidates:
        """Return a superset of the k best live rows for each query, including ties.

        `go_on` is called before each block of rows, and may raise.
        """
        if self.first == self.last:
            return concatenate([])
        live = self.tombstones.live_between(self.first, self.last)
        there = self.positions.hold_between(self.first, self.last)
        if live is not None and there is not None:
            live = live[there]
        begin, end = self.positions.span(self.first, self.last)
        work = (end - begin) * (queries.shape[1] + 80)
        if 0 < len(queries) <= SCORED_ONE_BY_ONE and 0 < work <= ONE_BY_ONE_WORK:
            at = np.arange(begin, end) if live is None else begin + np.flatnonzero(live)
            if not len(at):
                return concatenate([])
            places = np.tile(at, (len(queries), 1))
            placed = shortlist(metric, queries, places, k, self.vectors, self.squared_norms)
        else:
            placed = exact_candidates(
                metric, queries, self.vectors, self.squared_norms, live, begin, end, k, go_on
            )
        return replace(placed, row_of=self.positions.rows_at(placed.row_of))
