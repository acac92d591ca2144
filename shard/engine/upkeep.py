"""When an index is trained anew, and when the row file is rebuilt. Pure: rules over a snapshot.

Every rule is paid for: what it asks for undoes the reason for it, and only writes in proportion to
what was done can bring the reason back. So none can ask again and again.
"""

from __future__ import annotations

from typing import Final

from vectorshard.shard.config import RebuildConfig
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex

GROWTH_BEFORE_RETRAINING: Final = 4
"""A new index is trained when the live rows are this many times those of the last training, or the
index holds this many times the rows that live."""

IMBALANCE_BEFORE_RETRAINING: Final = 2.0
"""A new index is trained when the lists are this many times as unbalanced as they were when it was
trained: a search then reads about as many times the rows."""

GROWTH_BEFORE_REBALANCING: Final = 1.5
"""But only once the index has taken in half as many rows as it was trained for: some rows make no
balanced lists however often they are trained, and so a training is paid for by as many writes."""


def first_training_due(snapshot: Snapshot, min_training_size: int) -> bool:
    """Whether there are enough rows for the first index."""
    return snapshot.index is None and snapshot.live >= max(1, min_training_size)


def retraining_due(snapshot: Snapshot, config: RebuildConfig) -> bool:
    """Whether the index has become too small, too dead or too unbalanced for its rows."""
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


def compaction_due(snapshot: Snapshot, config: RebuildConfig, *, asked: bool) -> bool:
    """Whether enough rows of the row file are dead; fewer will do if a training was asked for."""
    there = len(snapshot.vectors)
    share = config.dead_share_when_asked if asked else config.dead_share
    return there - snapshot.live >= max(config.dead_rows_min, share * there)


def _half_dead(snapshot: Snapshot, held: int, config: RebuildConfig) -> bool:
    """Whether as much of what the index holds is dead as makes the row file be rebuilt."""
    buffered = snapshot.rows - snapshot.absorbed_until
    if held - snapshot.live + buffered < config.dead_rows_min:  # the most that can be dead of it
        return False
    dead = held - (snapshot.live - snapshot.buffer.live)
    return dead >= max(config.dead_rows_min, config.dead_share * held)


def _unbalanced(snapshot: Snapshot, held: int, index: TrainedIndex) -> bool:
    """Whether rows that came since the training lie far less evenly than those before."""
    grown = held >= GROWTH_BEFORE_REBALANCING * index.live_when_trained
    limit = IMBALANCE_BEFORE_RETRAINING * index.imbalance_when_trained
    return grown and snapshot.list_imbalance >= limit
