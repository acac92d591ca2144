"""What recall live searches have, and when their index is calibrated on them anew. Pure.

An index is calibrated on its own rows; queries unlike them find less. So a sample of the live ones
is asked again, beside an exact search, with the setting that a search takes which states none. What
is measured is what `shard.index.recall` measures: the rows that the index holds, for 10 hits. Rows
of the
buffer are scored in every search, so answers have at least this recall.

The index in use is asked, a few queries at a time: its lock is held for a piece of the work only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.config import TrainingConfig
from vectorshard.shard.index.calibration import CALIBRATED_K, Calibration
from vectorshard.shard.index.recall import NO_ROW, found_of, measured_calibration
from vectorshard.shard.search.live_sample import LiveSample
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import CollectionConfig, Effort, Float32Array

LIVE_QUERIES_MIN: Final = 100
"""Queries below which a recall says nothing: at .95 it is off by .02 in one of three cases."""

LIVE_QUERIES_NEW: Final = 64
"""Queries that must be new in the sample before it is measured again."""

RECALL_SHORT: Final = 0.01
"""How far under its target a recall may stay."""

LOW_BEFORE_CALIBRATING: Final = 2
"""Measurements in a row that must be low, so that one unlucky sample changes nothing. All but the
first are paid for by LIVE_QUERIES_NEW, and so calibrations cannot follow each other without end."""

ASKED_AT_ONCE: Final = 16
"""Queries for which the index's lock is held at a time: no longer than a small search holds it."""

CALIBRATED_AT_ONCE: Final = 4
"""The same for a calibration, which lets the index propose far more."""

Published = Callable[[], AbstractContextManager[Snapshot]]
"""Gives what is published, and keeps its index from being added to until it is left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLive:
    """The recall of live queries under one calibration.

    `taken` is what the sample had taken by then, `low_in_a_row` how many measurements up to this
    one found too little.
    """

    calibration: Calibration
    recall: float
    queries: int
    taken: int
    low_in_a_row: int


class LiveRecall:
    """The live queries of one collection on one shard, and what they last found.

    Any number of threads offer queries; one measures.
    """

    def __init__(self, config: CollectionConfig, training: TrainingConfig) -> None:
        self._config = config
        self._shards = training.merged_shards
        self._sample = LiveSample(
            training.live_queries,
            training.live_window,
            config.dim,
            np.random.default_rng(training.seed),
        )
        self._measured: MeasuredLive | None = None

    @property
    def memory_bytes(self) -> int:
        """Memory of the sample."""
        return self._sample.memory_bytes

    def offer(self, queries: Float32Array) -> bool:
        """Offer the queries of a search, float32 (queries, dim), as the collection keeps vectors.

        Says whether they made a measurement due, if there is an index.
        """
        return self._sample.offer(queries) and self._enough_are_new

    def measured_of(self, index: TrainedIndex) -> MeasuredLive | None:
        """Return what was last measured of an index as it is calibrated now; None before that."""
        measured = self._measured
        if measured is None or measured.calibration is not index.calibration:
            return None
        return measured

    def due(self, index: TrainedIndex | None) -> bool:
        """Whether there is something to measure that is not known."""
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
        """Measure the sample; say whether its recall stays too low for the target.

        If another index or calibration is published meanwhile, nothing is known.

        Parameters
        ----------
        go_on
            Raises what ends the measurement, if it should end. Called before each piece.
        """
        taken, queries = self._sample.taken, self._sample.queries()
        with published() as snapshot:
            index = snapshot.index
        if index is None:
            return False
        target = self._config.target_recall
        setting = index.setting_for(Effort(), target, CALIBRATED_K[0])
        found, there = 0.0, 0.0
        for first in range(0, len(queries), ASKED_AT_ONCE):
            if setting is None:  # such a search scores every row
                break
            go_on()
            piece = queries[first : first + ASKED_AT_ONCE]
            with published() as snapshot:
                if snapshot.index is not index:
                    return False
                proposed = index.ivf.nearest(
                    piece, setting.candidates, setting.nprobe, snapshot.tombstones
                )
            held = snapshot.between(0, snapshot.absorbed_until)
            hits = found_of(
                self._config.metric, held, piece, proposed, CALIBRATED_K[0], self._shards
            )
            found, there = found + hits[0], there + hits[1]
        recall = found / there if there else 1.0
        before = self.measured_of(index)
        low_before = 0 if before is None else before.low_in_a_row
        low_in_a_row = low_before + 1 if recall < target - RECALL_SHORT else 0
        self._measured = MeasuredLive(
            calibration=index.calibration,
            recall=recall,
            queries=len(queries),
            taken=taken,
            low_in_a_row=low_in_a_row,
        )
        return low_in_a_row >= LOW_BEFORE_CALIBRATING

    def calibrated(
        self, index: TrainedIndex, published: Published, go_on: Callable[[], None]
    ) -> Calibration:
        """Return the settings with which the sample reaches each target in a published index."""
        queries = self._sample.queries()
        with published() as snapshot:
            held = snapshot.between(0, snapshot.absorbed_until)
        return measured_calibration(
            self._config,
            index.ivf,
            held,
            queries,
            np.full(len(queries), NO_ROW),
            go_on,
            shards=self._shards,
            asking=published,
            at_once=CALIBRATED_AT_ONCE,
        )
