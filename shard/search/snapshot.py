"""A snapshot: the immutable view of a collection that one search uses. Pure.

A commit, an absorption or a new index replaces the snapshot as a whole. So the new row of an upsert
and the tombstone of the old row become visible together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import Calibration, SearchParameters
from vectorshard.shard.index.drift import UNKNOWN
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.rows.filter_columns import FilterColumns, row_numbers
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import (
    Effort,
    Float32Array,
    IdArray,
    IndexKind,
    Int64Array,
    Ledger,
    UInt64Array,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedIndex:
    """One generation of the index, its calibration and the facts of its training."""

    ivf: IvfIndex
    generation: int
    calibration: Calibration
    live_when_trained: int
    rows_trained_on: int
    trained_at: float
    training_s: float
    imbalance_when_trained: float = 1.0
    distance_when_trained: float = UNKNOWN  # the base of `shard.index.drift`
    filter_margins: tuple[float, ...] = ()  # of filtered_search; empty without declared fields

    @property
    def kind(self) -> IndexKind:
        """The kind of index; it may differ from the configured one: `shard.index.index_kind`."""
        return self.ivf.kind

    @property
    def calibrated_rows(self) -> int:
        """The live rows whose neighbors the calibration searched for; at least 1."""
        return max(1, self.calibration.basis.rows or self.live_when_trained)

    def parameters_for(
        self, effort: Effort, target_recall: float, k: int
    ) -> SearchParameters | None:
        """Return the search parameters; None if the search must score all rows.

        The candidates grow with the index. The rows whose codes are nearer than that of the k-th
        neighbour are a share of all rows. With the candidates of the calibration, an index that has
        grown threefold since then finds half of the neighbours (`tests/promises`).
        """
        found = self.calibration.parameters_for(effort, target_recall, k)
        return None if found is None else self._grown(found)

    def parameters_above(self, k: int, target_recall: float) -> list[tuple[int, SearchParameters]]:
        """Return each larger number of hits that was measured, ascending, and its parameters."""
        points = self.calibration.points_above(k, target_recall)
        return [(point.k, self._grown(point.parameters)) for point in points]

    def _grown(self, found: SearchParameters) -> SearchParameters:
        held = max(1, self.ivf.rows)
        candidates = max(found.candidates, -(-found.candidates * held // self.calibrated_rows))
        return SearchParameters(min(found.nprobe, self.ivf.nlist), min(candidates, held))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The committed rows, their tombstones, and the index with the rows that it holds.

    `vectors`, `squared_norms`, `ids` and `content_hashes` are indexed by position, in one
    generation of the row file.
    Everything else, and every method, uses row numbers.
    """

    sequence: int  # of the newest commit in the snapshot
    vectors: Float32Array  # (positions, dim): a read-only view of the row file
    squared_norms: Float32Array  # (positions,)
    ids: IdColumn  # at least (positions,): later commits append to it
    content_hashes: UInt64Array = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    positions: RowMap = field(default_factory=RowMap)  # maps rows to positions in these four
    tombstones: Tombstones = field(default_factory=Tombstones)
    damaged: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    """Live rows that are known not to match their content hashes, ascending."""
    hidden: Tombstones = field(init=False)
    """The rows that no search sees: the dead and the damaged. Without damaged rows, `tombstones`
    itself."""
    columns: FilterColumns = field(default_factory=lambda: FilterColumns(()))
    """The declared fields, possibly of rows newer than this snapshot too."""
    replaced: int = 0
    deleted: int = 0
    sum: bytes = bytes(16)  # of the content hashes of the live rows
    lost: int = 0  # rows whose loss an operator has accepted
    index: TrainedIndex | None = None
    absorbed_until: int = 0  # the index holds the rows below this that were visible when absorbed
    rows_skipped: int = 0  # rows below `absorbed_until`, dead or damaged, that it does not hold
    list_imbalance: float = 1.0  # FAISS's imbalance factor: 1 if all lists are equally long

    buffer: RowRange = field(init=False)
    """The training buffer: the visible rows that the index does not hold yet."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", self.tombstones.with_dead(self.damaged))
        object.__setattr__(self, "buffer", self.between(self.absorbed_until, self.rows))

    @property
    def rows(self) -> int:
        """The number of rows ever committed, which is the next row's number."""
        return self.positions.rows(len(self.vectors))

    @property
    def live(self) -> int:
        """The number of rows that are not dead."""
        return self.rows - self.tombstones.count

    @property
    def visible(self) -> int:
        """The number of rows that are visible to searches: live, and not known to be damaged."""
        return self.rows - self.hidden.count

    @property
    def changes(self) -> int:
        """The number of rows ever written, and of those ever deleted."""
        return self.rows + self.deleted

    def vectors_of(self, rows: Int64Array) -> Float32Array:
        """Return a copy of the vectors of live rows, float32 (rows, dim)."""
        vectors: Float32Array = self.vectors.take(self.positions.of(rows), axis=0)
        return vectors

    def ids_of(self, rows: Int64Array) -> IdArray:
        """Return the ids of live rows, (rows,)."""
        return self.ids.take(self.positions.of(rows))

    def content_hashes_of(self, rows: Int64Array) -> UInt64Array:
        """Return the stored content hashes of live rows, uint64 (rows, 2)."""
        hashes: UInt64Array = self.content_hashes[self.positions.of(rows)]
        return hashes

    def between(self, first: int, last: int) -> RowRange:
        """Return the visible rows of [first, last)."""
        return RowRange(self.vectors, self.squared_norms, self.hidden, first, last, self.positions)

    def passing(self, filter_: Filter) -> Int64Array:
        """Return the visible rows that pass a validated filter, ascending."""
        rows = row_numbers(self.columns.passing(filter_, self.rows))
        return rows[~self.hidden.are_dead(rows)] if self.hidden.count else rows

    def damaged_passing(self, filter_: Filter) -> Int64Array:
        """Return the damaged rows that pass a validated filter, or may, ascending.

        The columns hold the fields as they were written, unless the row was damaged when they were
        read.
        """
        if not len(self.damaged):
            return self.damaged
        passing = row_numbers(self.columns.passing(filter_, self.rows))
        return np.intersect1d(self.damaged, np.union1d(passing, self.columns.unknown))

    def ledger(self) -> Ledger:
        """Return the ledger, with the number of rows that FAISS reports.

        A damaged row counts as the live row that it is: indexed below `absorbed_until`, whether or
        not the index holds it. Call it while nothing is being added to the index.
        """
        indexed, first = 0, self.absorbed_until
        if self.index is not None:
            dead = self.tombstones.count_between(0, first) - self.rows_skipped
            indexed = self.index.ivf.rows - dead
        return Ledger(
            accepted=self.rows + self.lost,
            buffered=self.rows - first - self.tombstones.count_between(first, self.rows),
            indexed=indexed,
            deleted=self.deleted,
            replaced=self.replaced,
            lost=self.lost,
        )
