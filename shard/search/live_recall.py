"""Measure the recall of live queries, and recalibrate the index on them if it is low. Pure.

An index is calibrated on its own rows; queries unlike them have another recall. So a sample of the
live queries is searched again with the default search parameters and compared with an exact search.
If they find too little, the index is calibrated on the rows and on them; so it is if they find far
more than they need, under a calibration that other live queries have raised. The worst of the
samples decides, so live queries never lower the recall of queries like the rows.

As in `shard.index.recall`, this measures the rows in the index, for 10 hits. Every search scores
the training buffer exactly, so its recall is at least the measured one.

The index stays in use: its lock is held for a few queries at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from vectorshard.shard.config import TrainingConfig
from vectorshard.shard.index.calibration import CALIBRATED_K, Calibration
from vectorshard.shard.index.own_rows import NO_ROW
from vectorshard.shard.index.recall import recalls_of, truth_of
from vectorshard.shard.search.live_sample import LiveSample
from vectorshard.shard.search.search_plan import Scan, plan_of, proposals_of
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import (
    CollectionConfig,
    Effort,
    Float32Array,
    Float64Array,
    Int64Array,
)

LIVE_QUERIES_MIN: Final = 100  # of fewer, a recall of .95 is off by .02 in one case of three
LIVE_QUERIES_NEW: Final = 64  # new queries in the sample before it is measured again
RECALL_SHORT: Final = 0.01  # how far a recall may fall below its target

LOW_BEFORE_CALIBRATING: Final = 2
"""Consecutive low measurements before a recalibration, so that one unlucky sample has no effect.
Each but the first needs LIVE_QUERIES_NEW, which bounds the rate of calibrations."""

RECALL_HIGH: Final = 0.5
"""The part of a target's permitted misses that a recall well above it leaves unused."""

LIVE_QUERIES_TO_LOWER: Final = 200
"""Queries in the sample before its high recall may lower nprobe, and new ones before the next try:
a wrong step down costs recall, a missed one only time."""

WORK_TO_LOWER: Final = 0.8
"""The most work of a lower calibration, relative to the one in use."""

OFFERED_A_REQUEST: Final = 8
"""Queries of one request that the sample may take, evenly spaced: one caller's batch of a thousand
is not a thousand callers."""

ASKED_AT_ONCE: Final = 16  # queries per hold of the index's lock: as long as a small search

NEWEST_QUERIES: Final = 256  # of the rows added last, whose recall is measured after an alarm
NEWEST_SHARE: Final = 0.1  # of the rows of the training: the window from which these are taken

Published = Callable[[], AbstractContextManager[Snapshot]]
"""A context that gives the published snapshot and blocks additions to its index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLive:
    """The recall of live queries under one calibration.

    `taken` counts the queries that the sample had taken by then, `low_in_a_row` the consecutive low
    measurements up to this one, `high_in_a_row` those that were well above the target.
    """

    calibration: Calibration
    recall: float
    queries: int
    taken: int
    low_in_a_row: int
    high_in_a_row: int = 0


class LiveRecall:
    """The sample of live queries of one collection on one shard, and its last measured recall.

    Any number of threads may offer queries; one measures.
    """

    def __init__(
        self, config: CollectionConfig, training: TrainingConfig, few_rows_work: float
    ) -> None:
        self._config = config
        self._few_rows_work = few_rows_work
        self._shards = training.merged_shards
        self._sample = LiveSample(
            training.live_queries,
            training.live_window,
            config.dim,
            np.random.default_rng(training.seed),
        )
        self._measured: MeasuredLive | None = None
        self._lowered_at = 0
        """Queries taken into the sample before the last try to lower nprobe."""

    def follow(self, config: CollectionConfig) -> None:
        """Measure against the target recall of `config` from now on; the sample stays."""
        self._config = config
        self._measured = None

    @property
    def memory_bytes(self) -> int:
        """Memory of the sample."""
        return self._sample.memory_bytes

    def offer(self, queries: Float32Array) -> bool:
        """Offer the queries of a search, float32 (queries, dim), in the form that is stored.

        Returns whether a measurement is now due, provided that there is an index.
        """
        if len(queries) > OFFERED_A_REQUEST:
            queries = queries[:: -(-len(queries) // OFFERED_A_REQUEST)]
        return self._sample.offer(queries) and self._enough_are_new

    def measured_of(self, index: TrainedIndex) -> MeasuredLive | None:
        """Return the last measurement under an index's current calibration, if there was one."""
        measured = self._measured
        if measured is None or measured.calibration is not index.calibration:
            return None
        return measured

    def due(self, index: TrainedIndex | None) -> bool:
        """Whether a measurement is due."""
        if index is None or len(self._sample) < LIVE_QUERIES_MIN:
            return False
        return self.measured_of(index) is None or self._enough_are_new

    @property
    def _enough_are_new(self) -> bool:
        measured, taken = self._measured, self._sample.taken
        if measured is None:
            return taken >= LIVE_QUERIES_MIN
        return taken - measured.taken >= LIVE_QUERIES_NEW

    def measure(self, published: Published, go_on: Callable[[], None]) -> bool:
        """Measure the sample; return whether to recalibrate: its recall is too low or too high.

        If another index or calibration is published meanwhile, the measurement is dropped.

        Parameters
        ----------
        go_on
            Called before each piece. It may raise to end the measurement.
        """
        taken, queries = self._sample.taken, self._sample.queries()
        with published() as snapshot:
            index = snapshot.index
        if index is None:
            return False
        recalls = self._recalls(index, published, queries, None, go_on)
        if recalls is None:
            return False
        return self._measured_now(index, float(recalls.mean()), len(queries), taken)

    def of_newest(
        self, published: Published, added: int, go_on: Callable[[], None]
    ) -> tuple[TrainedIndex, float] | None:
        """Measure the newest rows in the index. No row counts as a hit of itself.

        Returns the index and the mean recall for 10 hits; None if another index or calibration was
        published meanwhile.

        Parameters
        ----------
        added
            Rows that the index has taken in since its training, of which the newest are asked for.
        go_on
            Called before each piece. It may raise to end the measurement.
        """
        with published() as snapshot:
            index = snapshot.index
        if index is None:
            return None
        newest = max(NEWEST_QUERIES, int(NEWEST_SHARE * index.live_when_trained))
        rows = snapshot.hidden.live_rows(0, snapshot.absorbed_until)[-min(added, newest) :]
        rows = rows[:: -(-len(rows) // NEWEST_QUERIES) or 1]
        recalls = self._recalls(index, published, snapshot.vectors_of(rows), rows, go_on)
        return None if recalls is None else (index, float(recalls.mean()))

    def _recalls(
        self,
        index: TrainedIndex,
        published: Published,
        queries: Float32Array,
        own_rows: Int64Array | None,
        go_on: Callable[[], None],
    ) -> Float64Array | None:
        """Return the recall of each query for 10 hits, searched as without an effort.

        float64 (queries,); 1 where such a search scores every row; None if another index or
        calibration was published meanwhile. `own_rows` are int64 (queries,), if they are rows.
        """
        config, k = self._config, CALIBRATED_K[0]
        with published() as snapshot:
            scan = Scan.of(snapshot)
        plan = plan_of(index, Effort(), config.target_recall, k, scan, self._few_rows_work)
        if plan.parameters is None or not len(queries):
            return np.ones(max(1, len(queries)))
        if own_rows is None:
            own_rows = np.full(len(queries), NO_ROW)
        recalls = []
        for first in range(0, len(queries), ASKED_AT_ONCE):
            go_on()
            piece = queries[first : first + ASKED_AT_ONCE]
            with published() as snapshot:
                held = snapshot.between(0, snapshot.absorbed_until)
            these = own_rows[first : first + ASKED_AT_ONCE]
            truth = truth_of(config.metric, held, piece, these, self._shards, k)
            own = truth.own.most - truth.own.more_candidates(index.ivf.kind)
            candidates = plan.parameters.candidates + own
            more = replace(plan, parameters=replace(plan.parameters, candidates=candidates))
            with published() as snapshot:
                if snapshot.index is not index:
                    return None
                rows, exact = proposals_of(index, more, piece, snapshot.hidden)
            found = recalls_of(config.metric, held, piece, rows, truth)
            recalls.append(np.where(exact, 1.0, found))
        return np.concatenate(recalls)

    def _measured_now(self, index: TrainedIndex, recall: float, queries: int, taken: int) -> bool:
        """Note a measurement; return whether to recalibrate."""
        target = self._config.target_recall
        before = self.measured_of(index)
        low_before, high_before = (
            (0, 0) if before is None else (before.low_in_a_row, before.high_in_a_row)
        )
        low_in_a_row = low_before + 1 if recall < target - RECALL_SHORT else 0
        is_high = (
            index.calibration.basis.live
            and queries >= LIVE_QUERIES_TO_LOWER
            and taken - self._lowered_at >= LIVE_QUERIES_TO_LOWER
            and recall >= target + RECALL_HIGH * (1 - target)
        )
        high_in_a_row = high_before + 1 if is_high else 0
        self._measured = MeasuredLive(
            calibration=index.calibration,
            recall=recall,
            queries=queries,
            taken=taken,
            low_in_a_row=low_in_a_row,
            high_in_a_row=high_in_a_row,
        )
        if high_in_a_row >= LOW_BEFORE_CALIBRATING:
            self._lowered_at = taken
        return max(low_in_a_row, high_in_a_row) >= LOW_BEFORE_CALIBRATING

    def queries(self) -> Float32Array:
        """Return a copy of the sample, float32 (queries, dim)."""
        return self._sample.queries()
