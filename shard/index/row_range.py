"""A range of rows, searched exactly. Pure.

It owns no memory and no file. The training buffer is one such range: the rows from the index's
`absorbed_until` to the last committed row. Before the first training that is every row.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from vectorshard.shard.index.exact import Candidates, concatenate, exact_candidates
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Float32Array, Metric


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

    def candidates(self, metric: Metric, queries: Float32Array, k: int) -> Candidates:
        """Return a superset of the k best live rows for each query, including ties."""
        if self.first == self.last:
            return concatenate([])
        live = self.tombstones.live_between(self.first, self.last)
        there = self.positions.hold_between(self.first, self.last)
        if live is not None and there is not None:
            live = live[there]
        begin, end = self.positions.span(self.first, self.last)
        placed = exact_candidates(
            metric, queries, self.vectors, self.squared_norms, live, begin, end, k
        )
        return replace(placed, row_of=self.positions.rows_at(placed.row_of))
