"""The vocabulary of descriptions: what a shard reports about itself, a collection or a row.

As in `shard.types`, these are dataclasses and numpy arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vectorshard.shard.filters import Filter
from vectorshard.shard.texts import (
    Grid,
    Readable,
    collection_grids,
    explanation_grid,
    shards_grid,
    topology_grid,
)
from vectorshard.shard.types import (
    CollectionConfig,
    ExactReason,
    IdArray,
    IndexKind,
    Ledger,
    Role,
    ShardState,
    VectorArray,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scrub:
    """What the scrub of a shard's rows of a collection has done since the shard started.

    `progress` is that of the present pass, `findings` are the newest texts, the newest first.
    """

    passes: int = 0
    progress: float = 0.0
    last_pass_at: float = 0.0  # in seconds since 1970; 0 before the end of the first
    last_pass_read_disk: bool = False
    rows: int = 0
    findings: tuple[str, ...] = ()
    findings_total: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardDescription(Readable):
    """One leaf shard's part of a collection. Durations in seconds, times in seconds since 1970."""

    shard: int
    state: ShardState
    training: bool
    ledger: Ledger
    nlist: int = 0
    nprobe: int = 0
    candidates: int = 0
    measured_recall: float = 1.0
    live_recall: float = 0.0
    live_queries: int = 0
    generation: int = 0
    rows_trained_on: int = 0
    list_imbalance: float = 0.0
    last_training_s: float = 0.0
    last_trained_at: float = 0.0
    memory_bytes: int = 0
    disk_bytes: int = 0
    measured_recall_balanced: float = 1.0
    calibration_rows: int = 0
    calibration_queries: int = 0
    calibrated_at: float = 0.0
    rows_changed_since: int = 0
    index_kind: IndexKind | None = None  # that serves; None without an index
    drift: float = 0.0
    missing_reason: str = ""  # why its rows are not served; empty if they are
    writes_stopped: str = ""  # why it takes no writes; empty if it does
    kept_files: str = ""  # that were replaced when their loss was accepted; empty without any
    rows_damaged: int = 0
    damaged_ids: tuple[int, ...] | tuple[str, ...] = ()  # the first 100 of them
    scrub: Scrub | None = None  # None from earlier releases
    content_sum: bytes = b""  # 16 bytes; empty from earlier releases
    restored_from: str = ""

    def _grids(self) -> Sequence[Grid]:
        return [shards_grid(f"shard {self.shard}", [self])]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionDescription(Readable):
    """A collection and its leaf shards, by number."""

    config: CollectionConfig
    incarnation: str
    shards: tuple[ShardDescription, ...]
    recommended_batch_size: int

    @property
    def ledger(self) -> Ledger:
        """The sum of the shards' ledgers."""
        return sum((shard.ledger for shard in self.shards), Ledger())

    def _grids(self) -> Sequence[Grid]:
        return collection_grids(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Explain why a query (1, dim) finds, or does not find, an id (1,).

    With the `score` of an id that another shard holds, only the rank of such a hit among the rows
    of this shard is answered.
    """

    collection: str
    query: VectorArray
    id: IdArray
    filter: Filter | None = None
    score: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation(Readable):
    """Where a row is, and what a search needs in order to score it.

    Unknown or meaningless fields are 0: all but `shard` for a row that does not exist, and the
    fields about the index for a buffered row.
    """

    exists: bool = False
    shard: int = 0  # the leaf shard that holds the row, or would hold it
    buffered: bool = False  # in the training buffer, which every search scores
    list: int = 0  # the inverted list that holds the row
    centroid_rank: int = 0  # of that list's centroid for the query, from 1
    nprobe_needed: int = 0
    """The smallest nprobe whose search for 10 hits scores the row. 0 if it is buffered, or if no
    nprobe suffices because `candidates_needed` exceeds `candidates`."""
    exact_rank: int = 0  # among all rows, from 1; equal scores rank by id
    score: float = 0.0
    hidden_by_filter: bool = False  # all other fields ignore the filter
    deleted: bool = False  # the id's newest row is dead; unknown after a restart or compaction
    candidates_needed: int = 0
    """The candidates that a search of `centroid_rank` lists must take so that the row's code is
    among them; 0 for IVF_FLAT, which scores every row of a list. One more than the rows of the
    index if no number suffices."""
    candidates: int = 0  # that a search by nprobe for 10 hits takes; 0 for IVF_FLAT
    exact_reason: ExactReason | None = None
    """Why the default search for 10 hits scores all rows that pass; None if the index answers."""

    def _grids(self) -> Sequence[Grid]:
        return [explanation_grid(self)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlacement:
    """A leaf shard and its slots, as inclusive ranges.

    `session` identifies one opening of its data directory; empty in earlier releases.
    """

    shard: int
    slots: tuple[tuple[int, int], ...]
    session: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology(Readable):
    """The role of a server, its cluster, and the leaf shards that it reaches."""

    role: Role
    cluster: str
    placement_epoch: int
    shards_total: int  # leaf shards of the placement, reached or not; 0 while unknown
    shards: tuple[ShardPlacement, ...]

    def _grids(self) -> Sequence[Grid]:
        return [topology_grid(self, "server")]
