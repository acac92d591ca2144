"""The first half of building an index: k-means on a sample of the live rows.

What is trained is private and empty. `shard.engine.index_builder` fills it, calibrates it, and
tries the next kind if its codes cannot tell the rows apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from vectorshard.shard.config import TrainingConfig
from vectorshard.shard.index.calibration import CURVE, nlist_for
from vectorshard.shard.index.calibration_sample import first_of_each
from vectorshard.shard.index.drift import (
    BASE_ROWS,
    BASE_ROWS_MIN,
    HELD_OUT_SHARE,
    UNKNOWN,
    WINDOW_ROWS,
    Drift,
)
from vectorshard.shard.index.index_kind import kinds_to_try
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import CollectionConfig, Float32Array, IndexKind, Int64Array


@dataclass(frozen=True, slots=True)
class EmptyIndex:
    """A trained index without rows.

    `rows_trained_on` counts the rows sampled for k-means. If they are all, a tenth of them was held
    out. `distance` is the mean distance to their centroids of rows that k-means did not see:
    UNKNOWN if those are too few.
    """

    ivf: IvfIndex
    rows_trained_on: int
    distance: float


def trained_indexes(
    config: CollectionConfig, training: TrainingConfig, snapshot: Snapshot, live_rows: Int64Array
) -> Iterator[EmptyIndex]:
    """Train an index of each kind that may serve the live rows, at least one, in that order.

    The caller takes the first that reaches the collection's target recall, or the last.
    """
    random = np.random.default_rng(training.seed)
    kind = config.index.kind
    sample = _Sample.draw(config, training, snapshot, live_rows, kind, random)
    distinct = round(sample.distinct_share * len(live_rows))
    kinds = kinds_to_try(config, distinct, training.pq_rows_min)
    if config.target_recall > CURVE[-1]:
        kinds = kinds[:1]  # such a search scores every row, whatever the kind
    for each in kinds:
        if each is not kind:
            sample = _Sample.draw(config, training, snapshot, live_rows, each, random)
        yield sample.train(config, training, each, len(live_rows))


@dataclass(frozen=True, slots=True)
class _Sample:
    """Vectors for k-means, without repetitions, and vectors that it does not see.

    Repeated vectors would become several centroids: all of their rows fall into the list of one,
    and a search that probes the others finds nothing.
    """

    vectors: Float32Array  # (rows, dim)
    held_out: Float32Array  # (rows, dim)
    distinct_share: float
    rows: int  # sampled, with repetitions

    @classmethod
    def draw(
        cls,
        config: CollectionConfig,
        training: TrainingConfig,
        snapshot: Snapshot,
        live_rows: Int64Array,
        kind: IndexKind,
        random: np.random.Generator,
    ) -> _Sample:
        """Draw the sample for a kind of index, whose number of lists determines its size."""
        nlist = nlist_for(replace(config.index, kind=kind), len(live_rows))
        held_out = min(BASE_ROWS, int(HELD_OUT_SHARE * len(live_rows)))
        held_out = held_out if held_out >= BASE_ROWS_MIN else 0
        sampled = min(len(live_rows), nlist * training.points_per_list)
        drawn = min(len(live_rows), sampled + held_out)
        rows = random.choice(live_rows, size=drawn, replace=False)
        vectors = snapshot.vectors_of(np.sort(rows[held_out:]))
        distinct = first_of_each(vectors)
        return cls(
            vectors if len(distinct) == len(vectors) else vectors[distinct],
            snapshot.vectors_of(np.sort(rows[:held_out])),
            len(distinct) / len(vectors),
            sampled,
        )

    def train(
        self, config: CollectionConfig, training: TrainingConfig, kind: IndexKind, live: int
    ) -> EmptyIndex:
        """Train an index of the kind for `live` rows."""
        index = replace(config.index, kind=kind)
        distinct = round(self.distinct_share * self.rows)
        nlist = nlist_for(index, live, distinct, training.points_per_list)
        ivf = IvfIndex.train(kind, config.metric, self.vectors, nlist, training.seed)
        distance = UNKNOWN
        if len(self.held_out):
            distance = float(ivf.centroid_distances(self.held_out).mean(dtype=np.float64))
        return EmptyIndex(ivf, self.rows, distance)


def distances_of_newest(ivf: IvfIndex, snapshot: Snapshot, first: int, last: int) -> Float32Array:
    """Return the distances to their centroids of some live rows of [first, last), (rows,).

    They are spread evenly, and as many as one window of the drift.
    """
    rows = snapshot.hidden.live_rows(first, last)
    rows = rows[:: -(-len(rows) // WINDOW_ROWS) or 1]
    return ivf.centroid_distances(snapshot.vectors_of(rows))


def drift_after_start(snapshot: Snapshot) -> Drift:
    """Return the drift of a recovered snapshot, by the newest rows in its index.

    Its file has no distances but the base. An earlier release did not write that either: then the
    mean over all rows stands in for it.
    """
    index = snapshot.index
    if index is None:
        return Drift()
    rows = snapshot.hidden.live_rows(0, snapshot.absorbed_until)
    base = index.distance_when_trained
    if base == UNKNOWN and len(rows) >= BASE_ROWS_MIN:
        spread = rows[:: -(-len(rows) // BASE_ROWS)]
        distances = _finite(index.ivf.centroid_distances(snapshot.vectors_of(spread)))
        base = float(distances.mean(dtype=np.float64)) if len(distances) else UNKNOWN
    newest = index.ivf.centroid_distances(snapshot.vectors_of(rows[-WINDOW_ROWS:]))
    return Drift(base=base).with_distances(_finite(newest))


def _finite(distances: Float32Array) -> Float32Array:
    """Return them without those of damaged rows that a start does not verify."""
    return distances[np.isfinite(distances)]
