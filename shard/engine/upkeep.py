"""When an index is retrained, and when the row file is compacted. Pure: rules over a snapshot.

No rule can fire again and again: the work that it asks for removes its reason, and only writes in
proportion to that work can restore it.
"""

from __future__ import annotations

from typing import Final

from vectorshard.shard.config import CompactionConfig
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex

GROWTH_BEFORE_RETRAINING: Final = 4
"""A new index is trained when the live rows are this many times those of the last training, or the
index holds this many times the rows that live."""

IMBALANCE_BEFORE_RETRAINING: Final = 2.0
"""A new index is trained when the lists are this many times as unbalanced as they were when it was
trained: a search then reads about as many times the rows."""

GROWTH_BEFORE_REBALANCING: Final = 1.5
"""But only once the index has absorbed half as many rows as it was trained for. Some rows never get
balanced lists, so each further training must be paid for by as many writes."""


def first_training_due(snapshot: Snapshot, min_training_size: int) -> bool:
    """Whether there are enough rows for the first index."""
    return snapshot.index is None and snapshot.live >= max(1, min_training_size)


def retraining_due(snapshot: Snapshot, config: CompactionConfig) -> bool:
    """Whether the index is outgrown, holds too many dead rows, or is too unbalanced."""
    index = snapshot.index
    if index is None or snapshot.live == 0:
        return False
    held = snapshot.absorbed_until - snapshot.rows_skipped
    outgrown = snapshot.live >= GROWTH_BEFORE_RETRAINING * index.live_when_trained
    swollen = held >= GROWTH_BEFORE_RETRAINING * max(snapshot.live, index.live_when_trained)
    return (
        outgrown
        or swollen
        or _half_dead(snapshot, held, config)
        or _unbalanced(snapshot, held, index)
    )


def compaction_due(snapshot: Snapshot, config: CompactionConfig, *, asked: bool) -> bool:
    """Whether enough rows of the row file are dead; fewer suffice if a training was asked for."""
    stored = len(snapshot.vectors)
    share = config.dead_share_when_asked if asked else config.dead_share
    return stored - snapshot.live >= max(config.dead_rows_min, share * stored)


def _half_dead(snapshot: Snapshot, held: int, config: CompactionConfig) -> bool:
    """Whether the dead share of the rows in the index reaches that of a compaction."""
    buffered = snapshot.rows - snapshot.absorbed_until
    if held - snapshot.live + buffered < config.dead_rows_min:  # the most that can be dead of it
        return False
    dead = held - (snapshot.live - snapshot.buffer.live)
    return dead >= max(config.dead_rows_min, config.dead_share * held)


def _unbalanced(snapshot: Snapshot, held: int, index: TrainedIndex) -> bool:
    """Whether the rows since the training are far less evenly spread than those before."""
    grown = held >= GROWTH_BEFORE_REBALANCING * index.live_when_trained
    limit = IMBALANCE_BEFORE_RETRAINING * index.imbalance_when_trained
    return grown and snapshot.list_imbalance >= limit
