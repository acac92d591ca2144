"""The training buffer: the rows that the index does not hold yet, searched exactly. Pure.

It owns no memory and no file: it is the range of rows from the index's `absorbed_until` to the last
committed one. Before the first training that is every row; nothing is ever cleared.
"""

from __future__ import annotations

from dataclasses import dataclass

from shard.exact import Candidates, concatenate, exact_candidates
from shard.tombstones import Tombstones
from shard.types import Float32Array, Metric


@dataclass(frozen=True, slots=True)
class TrainingBuffer:
    """Rows first <= row < last of a shard's `vectors` (rows, dim) and `squared_norms` (rows,)."""

    vectors: Float32Array
    squared_norms: Float32Array
    tombstones: Tombstones
    first: int
    last: int

    @property
    def live(self) -> int:
        """How many of its rows live."""
        return self.last - self.first - self.tombstones.count_between(self.first, self.last)

    def propose(self, metric: Metric, queries: Float32Array, k: int) -> Candidates:
        """Return a superset of the k best living rows for each query, ties included."""
        if self.first == self.last:
            return concatenate([])
        return exact_candidates(
            metric,
            queries,
            self.vectors,
            self.squared_norms,
            self.tombstones.live_between(self.first, self.last),
            self.first,
            self.last,
            k,
        )
