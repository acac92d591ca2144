"""Index building: train on the live rows, fill, calibrate, replace the old index in one step.

It runs on the builder thread. The new index is private until it is published, so neither searches
nor writes wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.index.calibration import CALIBRATED_K, Calibration, nlist_for
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.recall import measured_calibration
from vectorshard.shard.search.filtered_search import measured_margins
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex

BUILD_PIECE_ROWS: Final = 4_096
"""Rows added to a private index in one call; only memory limits it."""

CATCHING_UP_ROUNDS: Final = 3
"""How often a private index takes in the rows written meanwhile before it is published anyway. From
then on, writers are slowed until the buffer is small."""

_log = structlog.get_logger(__name__)


class WorkAbandoned(Exception):
    """The shard or the collection stops, or work that only uses idle time makes way for other."""


def go_on_unless(is_stopping: Callable[[], bool], collection: Collection) -> Callable[[], None]:
    """Return a function that raises WorkAbandoned once the shard or the collection stops."""

    def go_on() -> None:
        if is_stopping() or collection.closed:
            raise WorkAbandoned

    return go_on


def build_index(
    collection: Collection, clock: Callable[[], float], is_stopping: Callable[[], bool] = bool
) -> None:
    """Train a new index on the live rows, fill it, calibrate it, and publish it.

    `clock` returns seconds since 1970. Without live rows nothing is trained. Raises WorkAbandoned
    between two steps if `is_stopping` returns True.
    """
    go_on = go_on_unless(is_stopping, collection)
    started = clock()
    config, training = collection.entry.config, collection.engine.training
    snapshot = collection.snapshot
    live_rows = snapshot.tombstones.live_rows(0, snapshot.rows)
    if len(live_rows) == 0:
        return
    random = np.random.default_rng(training.seed)
    nlist = nlist_for(config.index, len(live_rows))
    wanted = min(len(live_rows), nlist * training.points_per_list)
    sample_rows = np.sort(random.choice(live_rows, size=wanted, replace=False))
    ivf = IvfIndex.train(
        config.index.kind, config.metric, snapshot.vectors_of(sample_rows), nlist, training.seed
    )
    go_on()
    snapshot, rows_skipped = _catch_up(collection, ivf, 0, go_on)
    calibration, filter_margins = _calibrate(
        collection, ivf, snapshot, snapshot.rows, random, go_on
    )
    # Otherwise the rows written meanwhile make searches slow until they are absorbed.
    snapshot, skipped_since = _catch_up(collection, ivf, snapshot.rows, go_on)
    now = clock()
    collection.state.publish_index(
        TrainedIndex(
            ivf=ivf,
            generation=collection.maintenance.next_generation(),
            calibration=calibration,
            live_when_trained=len(live_rows),
            rows_trained_on=len(sample_rows),
            trained_at=now,
            training_s=now - started,
            imbalance_when_trained=ivf.list_imbalance,
            filter_margins=filter_margins,
        ),
        snapshot.rows,
        rows_skipped + skipped_since,
    )


def _catch_up(
    collection: Collection, ivf: IvfIndex, first: int, go_on: Callable[[], None]
) -> tuple[Snapshot, int]:
    """Add the rows from `first` on to a private index, in a few rounds also the newly written ones.

    Returns the newest snapshot whose rows it all holds, and how many of those rows were dead.
    """
    skipped = 0
    for _ in range(CATCHING_UP_ROUNDS):
        snapshot = collection.snapshot
        skipped += _absorb(ivf, snapshot, first, snapshot.rows, go_on)
        first = snapshot.rows
        if collection.snapshot.rows - first <= collection.engine.buffer.absorb_rows:
            break
    return snapshot, skipped


def _absorb(
    ivf: IvfIndex, snapshot: Snapshot, first: int, last: int, go_on: Callable[[], None]
) -> int:
    """Add the live rows of [first, last) to a private index; return how many were dead."""
    skipped = 0
    for piece in range(first, last, BUILD_PIECE_ROWS):
        go_on()
        piece_last = min(piece + BUILD_PIECE_ROWS, last)
        rows = snapshot.tombstones.live_rows(piece, piece_last)
        ivf.add(rows, snapshot.vectors_of(rows))
        skipped += piece_last - piece - len(rows)
    return skipped


def _calibrate(
    collection: Collection,
    ivf: IvfIndex,
    snapshot: Snapshot,
    absorbed_until: int,
    random: np.random.Generator,
    go_on: Callable[[], None],
) -> tuple[Calibration, tuple[float, ...]]:
    """Measure the recall of an index on a sample of the rows it holds, each left out of its answer.

    Returns the calibration, and the margins of filtered searches if fields are declared.
    """
    live_rows = snapshot.tombstones.live_rows(0, absorbed_until)
    size = min(len(live_rows), collection.engine.training.calibration_queries)
    query_rows = np.sort(random.choice(live_rows, size=size, replace=False))
    queries = snapshot.vectors_of(query_rows)
    held = snapshot.between(0, absorbed_until)
    config = collection.entry.config
    margins: tuple[float, ...] = ()
    if config.filter_fields:
        margins = measured_margins(config.metric, ivf, held, queries, query_rows)
    calibration = measured_calibration(
        config,
        ivf,
        held,
        queries,
        query_rows,
        go_on,
        shards=collection.engine.training.merged_shards,
    )
    return calibration, margins


def measure_live_recall(collection: Collection, go_on: Callable[[], None]) -> None:
    """Measure the recall of live searches; calibrate the index on them if it stays too low.

    `go_on` is called between two pieces of the work, and raises WorkAbandoned to end it.
    """
    live, index = collection.state.live, collection.snapshot.index
    if not live.measure(collection.state.index_at_rest, go_on) or index is None:
        return
    before = live.measured_of(index)
    if before is None:  # another index was published meanwhile
        return
    calibration = live.calibrated(index, collection.state.index_at_rest, go_on)
    if not collection.state.publish_calibration(index, calibration):
        return
    target_recall = collection.entry.config.target_recall
    settings = {
        name: each.point_for(target_recall, CALIBRATED_K[0])
        for name, each in (("before", index.calibration), ("after", calibration))
    }
    _log.info(
        "calibrated on live queries",
        collection=collection.entry.config.name,
        live_recall=round(before.recall, 4),
        live_queries=before.queries,
        target_recall=target_recall,
        **{
            f"{name}_{field}": getattr(point.parameters, field) if point else "all"
            for name, point in settings.items()
            for field in ("nprobe", "candidates")
        },
    )
