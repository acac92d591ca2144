"""Index building: train on the live rows, fill, calibrate, replace the old index in one step.

It runs on the builder thread. The new index is private until it is published, so neither searches
nor writes wait for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_training import distances_of_newest, trained_indexes
from vectorshard.shard.engine.upkeep import rows_added
from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    RULE,
    Calibration,
    CalibrationBasis,
    work,
)
from vectorshard.shard.index.calibration_sample import CalibrationQueries, calibration_rows
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.prices import measured_candidate_price
from vectorshard.shard.index.recall import CALIBRATED_AT_ONCE, measured_calibration
from vectorshard.shard.search.filtered_search import measured_margins
from vectorshard.shard.search.live_recall import (
    RECALL_SHORT,
    WORK_TO_LOWER,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import CollectionConfig, Float32Array, IndexKind, Int32Array

BUILD_PIECE_ROWS: Final = 4_096
"""Rows added to a private index in one call; only memory limits it."""

CHECKED_PIECE_ROWS: Final = 50_000
"""Rows whose vectors are compared with their checksums between two looks at whether to go on."""

CATCHING_UP_ROUNDS: Final = 3
"""How often a private index takes in the rows written meanwhile before it is published anyway. From
then on, writers are slowed until the buffer is small."""

HURRY_GROWTH: Final = 0.1
"""Growth of the rows during k-means and filling that makes a calibration hurry: a load that adds a
tenth in that time will soon outgrow the index."""

HURRIED_QUERIES: Final = 48
"""Rows that measure the recall in a hurry. The reserve for the error of so few is 0.02."""

LARGE_K_QUERIES: Final = 48
"""Rows that measure a large k: each of them has a thousand hits to count."""

PUBLISHED_AT_ONCE: Final = 4
"""Queries of a calibration for each hold of the lock of an index in use, so that none is longer
than a small search."""

_log = structlog.get_logger(__name__)


class WorkAbandoned(Exception):
    """The shard or the collection stops, or work in idle time makes way for more urgent work."""


def go_on_unless(is_stopping: Callable[[], bool], collection: Collection) -> Callable[[], None]:
    """Return a function that raises WorkAbandoned once the shard or the collection stops."""

    def go_on() -> None:
        if is_stopping() or collection.closed:
            raise WorkAbandoned

    return go_on


def build_index(
    collection: Collection,
    clock: Callable[[], float],
    is_stopping: Callable[[], bool] = bool,
    *,
    thorough: bool = False,
) -> None:
    """Train a new index on the live rows, fill it, calibrate it, and publish it.

    Without live rows nothing is trained. Raises WorkAbandoned between two steps if `is_stopping`
    returns True.

    Parameters
    ----------
    clock
        Returns seconds since 1970.
    thorough
        Whether to calibrate fully even though a load will soon outgrow the index.
    """
    go_on = go_on_unless(is_stopping, collection)
    started = clock()
    config = collection.entry.config
    _check_vectors(collection, 0, collection.snapshot.rows, go_on)
    before = collection.snapshot
    live_rows = before.hidden.live_rows(0, before.rows)
    if len(live_rows) == 0:
        return
    for empty in trained_indexes(config, collection.engine.training, before, live_rows):
        ivf = empty.ivf
        go_on()
        snapshot, rows_skipped = _catch_up(collection, ivf, 0, go_on)
        hurry = not thorough and snapshot.rows - before.rows > HURRY_GROWTH * len(live_rows)
        calibration, filter_margins = _first_calibration(collection, ivf, snapshot, go_on, hurry)
        if calibration.point_for(config.target_recall, CALIBRATED_K[0]) is not None:
            break
    # Otherwise the rows written meanwhile make searches slow until they are absorbed.
    snapshot, skipped_since = _catch_up(collection, ivf, snapshot.rows, go_on)
    distances = distances_of_newest(ivf, snapshot, before.rows, snapshot.rows)
    _log_another_kind(config, ivf.kind, len(live_rows))
    now = clock()
    collection.state.publish_index(
        TrainedIndex(
            ivf=ivf,
            generation=collection.maintenance.next_generation(),
            calibration=replace(calibration, basis=replace(calibration.basis, at=now)),
            live_when_trained=len(live_rows),
            rows_trained_on=empty.rows_trained_on,
            trained_at=now,
            training_s=now - started,
            imbalance_when_trained=ivf.list_imbalance,
            distance_when_trained=empty.distance,
            filter_margins=filter_margins,
        ),
        snapshot.rows,
        rows_skipped + skipped_since,
        distances,
    )


def _log_another_kind(config: CollectionConfig, kind: IndexKind, live: int) -> None:
    configured = config.index.kind
    if kind is not configured:
        _log.info(
            "another kind of index serves",
            collection=config.name,
            index_kind=kind.name,
            configured=configured.name,
            live_rows=live,
        )


def _first_calibration(
    collection: Collection,
    ivf: IvfIndex,
    snapshot: Snapshot,
    go_on: Callable[[], None],
    hurry: bool,
) -> tuple[Calibration, tuple[float, ...]]:
    """Return the calibration of an index that holds a snapshot's rows, and its filters' margins.

    In a hurry it is provisional: with few queries, and so with a larger reserve. If that leaves no
    search parameters for the target recall, a full one decides whether the kind of index serves.
    Margins are measured once, so with declared fields there is no hurry.
    """
    config = collection.entry.config
    wanted = collection.engine.training.calibration_queries
    if hurry and not config.filter_fields and wanted > HURRIED_QUERIES:
        hurried = _Calibrated(collection, ivf, snapshot, go_on, HURRIED_QUERIES)
        calibration = hurried.measured(CALIBRATED_K, hurried.candidate_price())
        if calibration.point_for(config.target_recall, CALIBRATED_K[0]) is not None:
            return replace(calibration, basis=replace(calibration.basis, provisional=True)), ()
    full = _Calibrated(collection, ivf, snapshot, go_on, wanted)
    return full.measured(CALIBRATED_K, full.candidate_price()), full.margins()


def _catch_up(
    collection: Collection, ivf: IvfIndex, first: int, go_on: Callable[[], None]
) -> tuple[Snapshot, int]:
    """Add the rows from `first` on to a private index, in a few rounds also the newly written ones.

    Returns the newest snapshot whose rows it all holds, and how many of those rows were dead.
    """
    skipped = 0
    for _ in range(CATCHING_UP_ROUNDS):
        snapshot = collection.snapshot
        _check_vectors(collection, first, snapshot.rows, go_on)
        snapshot = replace(snapshot, damaged=collection.state.damaged_of(snapshot))
        skipped += _absorb(collection, ivf, snapshot, first, go_on)
        first = snapshot.rows
        if collection.snapshot.rows - first <= collection.engine.buffer.absorb_rows:
            break
    return replace(snapshot, damaged=collection.state.damaged_of(snapshot)), skipped


def _check_vectors(
    collection: Collection, first: int, last: int, go_on: Callable[[], None]
) -> None:
    """Note the damaged rows of [first, last): k-means must not see them, nor FAISS hold them."""
    while first < last:
        with collection.state.files_lock.read():
            go_on()
            until = min(first + CHECKED_PIECE_ROWS, last)
            first = collection.state.check_vectors(first, until, "training")


def _absorb(
    collection: Collection,
    ivf: IvfIndex,
    snapshot: Snapshot,
    first: int,
    go_on: Callable[[], None],
) -> int:
    """Add the visible rows from `first` on to a private index; return how many were left out."""
    skipped = 0
    for piece in range(first, snapshot.rows, BUILD_PIECE_ROWS):
        go_on()
        piece_last = min(piece + BUILD_PIECE_ROWS, snapshot.rows)
        rows = snapshot.hidden.live_rows(piece, piece_last)
        vectors = snapshot.vectors_of(rows)
        if not (finite := np.isfinite(vectors).all(axis=1)).all():  # FAISS would drop these rows
            collection.state.found_damaged(snapshot, rows[~finite], "training")
            rows, vectors = rows[finite], vectors[finite]
        ivf.add(rows, vectors)
        skipped += piece_last - piece - len(rows)
    return skipped


class _Calibrated:
    """A calibration of an index on its own rows, and perhaps on live queries.

    Parameters
    ----------
    snapshot
        The index holds its rows below `absorbed_until`, or more.
    queries
        Distinct rows to draw.
    absorbed_until
        None: all rows of the snapshot.
    locked
        A context for each use of the index, if it is in use.
    at_once
        Queries for each use.
    """

    def __init__(
        self,
        collection: Collection,
        ivf: IvfIndex,
        snapshot: Snapshot,
        go_on: Callable[[], None],
        queries: int,
        *,
        absorbed_until: int | None = None,
        locked: Callable[[], AbstractContextManager[object]] = nullcontext,
        at_once: int = CALIBRATED_AT_ONCE,
    ) -> None:
        self._config = collection.entry.config
        self._ivf = ivf
        self._snapshot = snapshot
        training = collection.engine.training
        self._price = training.candidate_price
        last = snapshot.rows if absorbed_until is None else absorbed_until
        self.held = snapshot.between(0, last)

        def lists_of_rows() -> Int32Array:
            with locked():
                return ivf.lists_of_rows(last)

        random = np.random.default_rng(training.seed)
        self.rows = calibration_rows(self.held, lists_of_rows, queries, random)
        self._measured = partial(
            measured_calibration,
            go_on=go_on,
            shards=training.merged_shards,
            locked=locked,
            at_once=at_once,
        )

    def margins(self) -> tuple[float, ...]:
        """Return the margins of filtered searches; none without declared fields."""
        if not self._config.filter_fields:
            return ()
        distinct = self.rows.parts[0]
        return measured_margins(
            self._config.metric,
            self._ivf,
            self.held,
            self.rows.vectors[distinct],
            self.rows.own_rows[distinct],
        )

    def candidate_price(self) -> float:
        """Return what candidates of the index, which is not in use, cost on this machine."""
        if self._price is not None:
            return self._price
        return measured_candidate_price(self._ivf, self.held, self.rows.vectors, time.thread_time)

    def measured(
        self, ks: Sequence[int], candidate_price: float, live: Float32Array | None = None
    ) -> Calibration:
        """Return the calibration for `ks` at a price of candidates; the time in its basis is 0.

        `live` queries, float32 (queries, dim), must reach the targets too.
        """
        sample: CalibrationQueries = self.rows if live is None else self.rows.with_live(live)
        found = self._measured(
            self._config, self._ivf, self.held, sample, ks=ks, candidate_price=candidate_price
        )
        basis = CalibrationBasis(
            rule=RULE,
            rows=self.held.live,
            queries=self.rows.distinct,
            changes=self._snapshot.changes,
            live=live is not None,
        )
        return replace(found, basis=basis)


def _calibrated_in_use(
    collection: Collection,
    index: TrainedIndex,
    go_on: Callable[[], None],
    queries: int,
) -> _Calibrated:
    """Return a calibration of the published index, which stays in use meanwhile."""
    with collection.state.index_at_rest() as snapshot:
        pass
    return _Calibrated(
        collection,
        index.ivf,
        snapshot,
        go_on,
        queries,
        absorbed_until=snapshot.absorbed_until,
        locked=collection.state.index_at_rest,
        at_once=PUBLISHED_AT_ONCE,
    )


def calibrate_published(
    collection: Collection,
    go_on: Callable[[], None],
    clock: Callable[[], float],
    *,
    live: Float32Array | None = None,
    only_if_cheaper: bool = False,
) -> Calibration | None:
    """Calibrate the published index again, and publish that; searches go on with the old one.

    Returns the new calibration, or None if none was published: another index was published
    meanwhile, or the new one is not clearly cheaper.

    Parameters
    ----------
    go_on
        Called between two pieces of the work; raises WorkAbandoned to end it.
    clock
        Returns seconds since 1970.
    live
        Live queries that must reach the targets too, float32 (queries, dim).
    only_if_cheaper
        Publish it only if default searches take less than WORK_TO_LOWER of the work.
    """
    index = collection.snapshot.index
    if index is None:
        return None
    queries = collection.engine.training.calibration_queries
    calibrated = _calibrated_in_use(collection, index, go_on, queries)
    calibration = calibrated.measured(CALIBRATED_K, index.calibration.candidate_price, live)
    if only_if_cheaper:
        before, after = (
            _work(collection, index, each) for each in (index.calibration, calibration)
        )
        if math.isinf(after) or after > WORK_TO_LOWER * before:
            return None
    calibration = replace(calibration, basis=replace(calibration.basis, at=clock()))
    calibration = calibration.keeping_large_k_of(index.calibration)
    return calibration if collection.state.publish_calibration(index, calibration) else None


def _work(collection: Collection, index: TrainedIndex, calibration: Calibration) -> float:
    """Return the work of a default search for 10 hits; infinite if it scores every row."""
    config, ivf = collection.entry.config, index.ivf
    point = calibration.point_for(config.target_recall, CALIBRATED_K[0])
    if point is None:
        return math.inf
    price = calibration.candidate_price
    return work(point.parameters, ivf.rows / ivf.nlist, ivf.code_bytes, config.dim, price)


def measure_large_k(
    collection: Collection, go_on: Callable[[], None], clock: Callable[[], float]
) -> None:
    """Measure the search parameters for a large k that a search asked for, and publish them.

    For the parameters see `calibrate_published`.
    """
    index = collection.snapshot.index
    k = collection.state.large_k.due(index)
    if index is None or k is None:
        return
    started = clock()
    queries = min(LARGE_K_QUERIES, collection.engine.training.calibration_queries)
    measured = _calibrated_in_use(collection, index, go_on, queries).measured(
        (k,), index.calibration.candidate_price
    )
    calibration = index.calibration.with_large_k(k, measured.points)
    if not collection.state.publish_calibration(index, calibration):
        return
    point = calibration.point_for(collection.entry.config.target_recall, k)
    _log.info(
        "calibrated for a large k",
        collection=collection.entry.config.name,
        k=k,
        nprobe=point.parameters.nprobe if point else "all",
        candidates=point.parameters.candidates if point else "all",
        duration_s=round(clock() - started, 3),
    )


def measure_drift(collection: Collection, go_on: Callable[[], None]) -> None:
    """Measure the recall of the newest rows, which differ from those of the training.

    A low one makes a training due: `shard.engine.upkeep`. `go_on` is called between two pieces of
    the work, and raises WorkAbandoned to end it.
    """
    state, config = collection.state, collection.entry.config
    ratio, added = state.drift.ratio, rows_added(collection.snapshot)
    measured = state.live.of_newest(state.index_at_rest, added, go_on)
    if measured is None:
        return
    index, recall = measured
    harmful = recall < config.target_recall - RECALL_SHORT
    state.publish_verdict(index, added, harmful=harmful)
    _log.info(
        "measured the newest rows",
        collection=config.name,
        drift=round(ratio, 2),
        recall=round(recall, 4),
        target_recall=config.target_recall,
        training_follows=harmful,
    )


def measure_live_recall(
    collection: Collection, go_on: Callable[[], None], clock: Callable[[], float]
) -> None:
    """Measure the recall of live searches; calibrate the index on them if it stays off its target.

    For the parameters see `calibrate_published`.
    """
    live, index = collection.state.live, collection.snapshot.index
    if not live.measure(collection.state.index_at_rest, go_on) or index is None:
        return
    before = live.measured_of(index)
    if before is None:  # another index was published meanwhile
        return
    calibration = calibrate_published(
        collection,
        go_on,
        clock,
        live=live.queries(),
        only_if_cheaper=before.high_in_a_row > before.low_in_a_row,
    )
    if calibration is None:
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
