"""What one search sees: an immutable view of a collection on a shard. Pure.

A snapshot is replaced as a whole, by a commit, by absorbing or by a new index, so that an upsert's
new row and the tombstone of the old one become visible together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import Calibration, Setting
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.row_range import TrainingBuffer
from vectorshard.shard.rows.filter_columns import FilterColumns, row_numbers
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import Effort, Float32Array, IdArray, Int64Array, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedIndex:
    """One generation of the index, and how it came to be."""

    ivf: IvfIndex
    generation: int
    calibration: Calibration
    live_when_trained: int
    rows_trained_on: int
    trained_at: float
    training_s: float
    imbalance_when_trained: float = 1.0
    filter_margins: tuple[float, ...] = ()
    """See shard.search.filtered_search; empty where no field is declared."""

    def setting_for(self, effort: Effort, target_recall: float, k: int) -> Setting | None:
        """Return how far a search looks in it; None when the search must score all rows."""
        setting = self.calibration.setting_for(effort, target_recall, k)
        if setting is None:
            return None
        held = max(1, self.ivf.rows)
        return Setting(min(setting.nprobe, self.ivf.nlist), min(setting.candidates, held))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Committed rows, who of them is dead, and which of them the index holds.

    `vectors`, `squared_norms` and `ids` go by position, and belong to one generation of the row
    file; everything else speaks of rows by their numbers, and so do the methods.
    """

    sequence: int
    """The newest commit in it."""
    vectors: Float32Array
    """(positions, dim): a read-only view of the row file."""
    squared_norms: Float32Array
    """(positions,)"""
    ids: IdColumn
    """At least (positions,): a later commit appends to it."""
    positions: RowMap = field(default_factory=RowMap)
    """Where each row lies in those three."""
    tombstones: Tombstones = field(default_factory=Tombstones)
    columns: FilterColumns = field(default_factory=lambda: FilterColumns(()))
    """The declared fields; of more rows than this snapshot's, perhaps."""
    replaced: int = 0
    deleted: int = 0
    index: TrainedIndex | None = None
    absorbed_until: int = 0
    """The index holds the rows below this that lived when they were absorbed."""
    rows_skipped: int = 0
    """Rows below `absorbed_until` that were dead by then, so the index does not hold them."""

    list_imbalance: float = 1.0
    """How unevenly the index's lists are filled: FAISS's factor, 1 is even."""

    @property
    def rows(self) -> int:
        """Rows ever committed; the next row's number."""
        return self.positions.rows(len(self.vectors))

    @property
    def live(self) -> int:
        """Rows that searches see."""
        return self.rows - self.tombstones.count

    def vectors_of(self, rows: Int64Array) -> Float32Array:
        """Return a copy of the vectors of rows that live, float32 (rows, dim)."""
        vectors: Float32Array = self.vectors.take(self.positions.of(rows), axis=0)
        return vectors

    def ids_of(self, rows: Int64Array) -> IdArray:
        """Return the ids of rows that live, (rows,)."""
        return self.ids.take(self.positions.of(rows))

    @property
    def buffer(self) -> TrainingBuffer:
        """The rows that the index does not hold."""
        return self.between(self.absorbed_until, self.rows)

    @property
    def everything(self) -> TrainingBuffer:
        """All rows, for an exact search."""
        return self.between(0, self.rows)

    def between(self, first: int, last: int) -> TrainingBuffer:
        """Return the rows of [first, last)."""
        return TrainingBuffer(
            self.vectors, self.squared_norms, self.tombstones, first, last, self.positions
        )

    def passing(self, filter_: Filter) -> Int64Array:
        """Return the live rows that pass a filter that was admitted, ascending."""
        rows = row_numbers(self.columns.passing(filter_, self.rows))
        return rows[~self.tombstones.are_dead(rows)] if self.tombstones.count else rows

    def ledger(self) -> Ledger:
        """Say where every accepted row is, counting what the index really holds.

        Call it while the index is not being added to.
        """
        indexed = 0
        if self.index is not None:
            dead = self.tombstones.count_between(0, self.absorbed_until) - self.rows_skipped
            indexed = self.index.ivf.rows - dead
        return Ledger(
            accepted=self.rows,
            buffered=self.buffer.live,
            indexed=indexed,
            deleted=self.deleted,
            replaced=self.replaced,
        )
