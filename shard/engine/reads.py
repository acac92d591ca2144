"""The reads of one collection, from any thread. Each takes one snapshot and uses nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Final, TypeAlias

import numpy as np

from vectorshard.shard.descriptions import ExplainRequest, Explanation, ShardDescription
from vectorshard.shard.engine.damaged_rows import ROWS_AT_ONCE, ReadRows, error_for, ids_described
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.engine.validation import check_filter, check_ids
from vectorshard.shard.errors import LimitExceeded, RowsDamaged
from vectorshard.shard.filters import Filter
from vectorshard.shard.index.calibration import CALIBRATED_K, SearchParameters
from vectorshard.shard.index.exact import RankedRows, exact_scores, rank
from vectorshard.shard.search.candidates import GeneratedCandidates, generate_candidates
from vectorshard.shard.search.explanation import looked_up, ranked
from vectorshard.shard.search.filtered_search import RememberedFilters
from vectorshard.shard.search.search_plan import RememberedPlans
from vectorshard.shard.search.snapshot import Snapshot
from vectorshard.shard.types import (
    Effort,
    ExactReason,
    FilterPlan,
    Float32Array,
    IdArray,
    Include,
    Int64Array,
    Ledger,
    Receipt,
    Rows,
    SearchRequest,
    SearchResult,
    ShardReceipt,
    ShardState,
    TopK,
)
from vectorshard.shard.wire.metadata import json_from_metadata

QUERY_BATCH_BYTES: Final = 256 * 1024
QUERY_BATCH_MAX: Final = 64
"""More queries get no cheaper each, and more bytes do not fit a core's cache."""

DAMAGE_FOUND_MAX: Final = 10
"""How often one call may find damaged rows and look again without them."""

_DEFAULT: Final = Effort()


def recommended_batch_size(dim: int) -> int:
    """Return how many queries a Search message should carry for the best throughput."""
    return max(1, min(QUERY_BATCH_MAX, QUERY_BATCH_BYTES // (4 * dim)))


Included: TypeAlias = tuple[Float32Array | None, Sequence[bytes] | None]
"""The vectors and the metadata of rows, each None if it is not included."""


def _rows(ids: IdArray, included: Included, include: Include) -> Rows:
    vectors, metadata = included
    return Rows(ids=ids, vectors=vectors, metadata=metadata, metadata_json=include.metadata_json)


def _reads(include: Include) -> bool:
    """Whether contents of rows are read, and not only which rows there are."""
    return include.vectors or include.metadata


def _damaged_of(snapshot: Snapshot, rows: Int64Array) -> Int64Array:
    """Return those of `rows` that are known to be damaged, ascending."""
    return np.intersect1d(rows, snapshot.damaged) if len(snapshot.damaged) else snapshot.damaged


def _unscored(
    snapshot: Snapshot, request: SearchRequest, best: RankedRows, expected: int
) -> Int64Array:
    """Return rows whose vectors are not finite, as none is stored, and so have no score.

    A hit without a score shows that there are some; so does a query with fewer hits than the
    `expected`, unless the caller chose an nprobe or a threshold.
    """
    if not math.isfinite(np.vdot(best.scores, best.scores)):
        return np.unique(best.rows[~np.isfinite(best.scores)])
    is_full = len(best.rows) >= expected * len(best.counts)
    if is_full or request.effort.nprobe or request.score_threshold is not None:
        return np.zeros(0, np.int64)
    short = int(best.counts.argmin())
    first = int(best.counts[:short].sum())
    found = best.rows[first : first + int(best.counts[short])]
    rows = snapshot.hidden.live_rows(0, snapshot.rows)
    if request.filter is not None:
        rows = snapshot.passing(request.filter)
    rows = np.setdiff1d(rows, found)
    pieces = [rows[first : first + ROWS_AT_ONCE] for first in range(0, len(rows), ROWS_AT_ONCE)]
    finite = [np.isfinite(snapshot.vectors_of(piece)).all(axis=1) for piece in pieces]
    unscored: Int64Array = rows[~np.concatenate([np.zeros(0, np.bool_), *finite])]
    return unscored


def _page(
    snapshot: Snapshot, first_row: int, page_size: int, filter_: Filter | None
) -> tuple[Int64Array, int | None]:
    """Return a page of live rows, damaged ones too, and the first row of the next page, if any."""
    first_row = min(first_row, snapshot.rows)
    if filter_ is None:
        rows = snapshot.tombstones.live_rows(first_row, snapshot.rows, page_size + 1)
    else:
        passing = snapshot.passing(filter_)
        if len(snapshot.damaged):
            passing = np.union1d(passing, snapshot.damaged_passing(filter_))
        first = np.searchsorted(passing, first_row)
        rows = passing[first : first + page_size + 1]
    next_row = int(rows[page_size]) if len(rows) > page_size else None
    return rows[:page_size], next_row


@lru_cache(maxsize=256)
def _receipt_of(
    shard: int,
    rows_visible: int,
    rows_damaged: int,
    rows_exact: int,
    parameters: SearchParameters | None,
    nlist: int,
    generation: int,
    rows_passing: int,
    filter_plan: FilterPlan | None,
    exact_reason: ExactReason | None,
    queries_widened: int,
    queries_exact: int,
    nprobe_mean: float,
) -> Receipt:
    """Return a receipt; most searches repeat one, and building it takes longer than ranking."""
    of_shard = ShardReceipt(
        shard=shard,
        rows_visible=rows_visible,
        rows_damaged=rows_damaged,
        rows_exact=rows_exact,
        nlist=nlist,
        nprobe=0 if parameters is None else parameters.nprobe,
        candidates=0 if parameters is None else parameters.candidates,
        generation=generation,
        rows_passing=rows_passing,
        filter_plan=filter_plan,
        exact_reason=exact_reason,
        queries_widened=queries_widened,
        queries_exact=queries_exact,
        nprobe_mean=round(nprobe_mean, 2),
    )
    return Receipt(shards=(of_shard,), coverage=1.0)


class Reads:
    """Reads one collection on one shard, from any number of threads."""

    def __init__(self, state: CollectionState) -> None:
        self._state = state
        self._filters = RememberedFilters()
        state.on_columns_repaired = self._filters.forget
        self._plans = RememberedPlans(state.engine.few_rows_work)
        self.searches = 0
        """Searches begun, counted without a lock: background work asks only whether any come."""

    def search(
        self,
        request: SearchRequest,
        go_on: Callable[[], None] = lambda: None,
        queries: Float32Array | None = None,
    ) -> SearchResult:
        """Search one batch of queries, which have been validated.

        Candidates of the index are re-ranked by their exact scores together with those of the
        buffer. The snapshot is taken under the index's lock: what the index holds then is exactly
        the rows below the snapshot's `absorbed_until`. `go_on` is called between blocks of an exact
        scan, and may raise. `queries` are those of the request as they are stored; None: they are
        so already.
        """
        self.searches += 1
        state = self._state
        if queries is None:
            queries = np.asarray(request.queries, dtype=np.float32)
        # With an effort, a caller says what it wants; live recall is that of searches without one.
        if request.filter is None and request.effort == _DEFAULT and state.live.offer(queries):
            state.on_change()
        for _ in range(DAMAGE_FOUND_MAX):
            found = self._searched(request, queries, go_on)
            if found is not None:
                return found
        raise self._damaged_everywhere()

    def _searched(
        self, request: SearchRequest, queries: Float32Array, go_on: Callable[[], None]
    ) -> SearchResult | None:
        """Search once; None if rows were found damaged, which the next search leaves out."""
        state, config = self._state, self._state.entry.config
        with state.index_lock.read():
            snapshot = state.snapshot
            generated = generate_candidates(
                snapshot, config, queries, request, self._filters, self._plans
            )
        if generated.lacks_k and state.large_k.ask(snapshot.index, generated.lacks_k):
            state.on_change()
        candidates = generated.with_exact(config.metric, queries, request.k, go_on)
        placed = candidates.at(snapshot.positions)
        scores = exact_scores(config.metric, queries, snapshot.vectors, placed)
        best = rank(
            config.metric,
            candidates,
            scores,
            snapshot.ids_of,
            len(queries),
            request.k,
            request.score_threshold,
        )
        passing = snapshot.visible if request.filter is None else generated.rows_passing
        unscored = _unscored(snapshot, request, best, min(request.k, passing))
        if len(unscored) and len(damaged := state.mismatches(snapshot, unscored)):
            state.found_damaged(snapshot, damaged, "search")
            return None
        included = self._included(snapshot, best.rows, best.ids, request.include)
        if included is None:
            return None
        vectors, metadata = included
        return SearchResult(
            hits=TopK(counts=best.counts, ids=best.ids, scores=best.scores),
            receipt=self._receipt(snapshot, generated, len(queries)),
            vectors=vectors,
            metadata=metadata,
            metadata_json=request.include.metadata_json,
        )

    def _receipt(self, snapshot: Snapshot, generated: GeneratedCandidates, queries: int) -> Receipt:
        parameters = generated.parameters
        index = snapshot.index if parameters is not None else None
        return _receipt_of(
            self._state.shard,
            snapshot.visible,
            len(snapshot.damaged),
            generated.exact_part.live,
            parameters,
            0 if index is None else index.ivf.nlist,
            0 if index is None else index.generation,
            generated.rows_passing,
            generated.filter_plan,
            generated.reason,
            generated.queries_widened,
            queries if index is None else len(generated.exact_queries),
            generated.nprobe_mean,
        )

    def explain(self, request: ExplainRequest) -> Explanation:
        """Explain where an id is, how it ranks for a query, and what a search needs to find it.

        The query has been validated. Raises InvalidRequest for an invalid id or filter.
        """
        state = self._state
        config = state.entry.config
        check_ids(config, request.id, "id")
        check_filter(config, request.filter)
        self._whole_rows(request.id, None, Include(vectors=True))
        with state.index_lock.read():
            with state.publish_lock:
                snapshot, row = state.snapshot, int(state.newest_rows(request.id)[0])
            found = looked_up(config, snapshot, request, row)
            if found.exists:
                query = np.asarray(request.query, np.float32)
                search = SearchRequest(
                    collection=config.name, queries=query, k=CALIBRATED_K[0], filter=request.filter
                )
                generated = generate_candidates(
                    snapshot, config, query, search, self._filters, self._plans
                )
                found = replace(found, exact_reason=generated.reason)
        return replace(ranked(config, snapshot, request, row, found), shard=state.shard)

    def get(self, ids: IdArray | None, include: Include, filter_: Filter | None = None) -> Rows:
        """Return the rows of the ids that exist, in their order, verified as far as included.

        Without ids, the rows that pass a filter, by row number: LimitExceeded if they are more than
        one request may name ids. Raises RowsDamaged for rows that do not match their hashes.
        """
        return self._whole_rows(ids, filter_, include)

    def _whole_rows(self, ids: IdArray | None, filter_: Filter | None, include: Include) -> Rows:
        rows_max = self._state.engine.limits.rows
        for _ in range(DAMAGE_FOUND_MAX):
            snapshot, rows = self._selected(ids, filter_)
            if ids is None and len(rows) > rows_max:
                raise LimitExceeded(
                    f"{len(rows):,} rows pass the filter; Get returns at most {rows_max:,}; "
                    "use List, which returns pages",
                    field="filter",
                )
            if filter_ is not None:
                self._require_sound(snapshot, snapshot.damaged_passing(filter_))
            elif _reads(include):
                self._require_sound(snapshot, _damaged_of(snapshot, rows))
            found = snapshot.ids_of(rows)
            included = self._included(snapshot, rows, found, include)
            if included is not None:
                return _rows(found, included, include)
        raise self._damaged_everywhere()

    def count(self, ids: IdArray | None, filter_: Filter | None = None) -> int:
        """Count the live rows: all, those of `ids`, those that pass a filter, or those of both."""
        if ids is None and filter_ is None:
            return self._state.snapshot.live
        return len(self._selected(ids, filter_)[1])

    def list_rows(
        self,
        first_row: int,
        page_size: int,
        include: Include,
        filter_: Filter | None = None,
        *,
        skip_damaged: bool = False,
    ) -> tuple[Rows, int | None]:
        """Return the first `page_size` live rows from `first_row` on that pass the filter, if any.

        The second value is the first row of the next page, None after the last page. If damaged
        rows are to be skipped, the page has fewer rows and names them. Otherwise RowsDamaged is
        raised if they are to be read, or may pass the filter.
        """
        check_filter(self._state.entry.config, filter_)
        for _ in range(DAMAGE_FOUND_MAX):
            snapshot = self._state.snapshot
            rows, next_row = _page(snapshot, first_row, page_size, filter_)
            damaged = snapshot.damaged[:0]
            if skip_damaged or filter_ is not None or _reads(include):
                damaged = _damaged_of(snapshot, rows)
            if not skip_damaged:
                self._require_sound(snapshot, damaged)
            elif len(damaged):
                rows = np.setdiff1d(rows, damaged)
            found = snapshot.ids_of(rows)
            included = self._included(snapshot, rows, found, include)
            if included is not None:
                page = _rows(found, included, include)
                if len(damaged):
                    page = replace(page, damaged=snapshot.ids_of(damaged))
                return page, next_row
        raise self._damaged_everywhere()

    def ledger(self) -> Ledger:
        """Return where every accepted row is, counting what the index really holds."""
        with self._state.index_at_rest() as snapshot:
            return snapshot.ledger()

    def describe(self) -> ShardDescription:
        """Describe this shard's part of the collection."""
        state = self._state
        with state.index_at_rest() as snapshot:
            training, drift = state.training, state.drift
            ledger = snapshot.ledger()
        memory_bytes = snapshot.tombstones.bits.nbytes + snapshot.columns.memory_bytes
        memory_bytes += state.live.memory_bytes
        disk_bytes = state.row_store.disk_bytes + state.checkpoint.index_bytes
        with state.publish_lock:  # a compaction closes the old columns' file after publishing
            memory_bytes += state.columns.memory_bytes
            disk_bytes += state.columns.row_file.disk_bytes
        description = ShardDescription(
            shard=state.shard,
            state=ShardState.TRAINING if training else ShardState.BUFFERING,
            training=training,
            ledger=ledger,
            writes_stopped=state.stop_reason,
            memory_bytes=memory_bytes,
            disk_bytes=disk_bytes,
            restored_from=state.row_store.restored_from,
            rows_damaged=len(snapshot.damaged),
            damaged_ids=ids_described(snapshot),
            content_sum=snapshot.sum,
        )
        index = snapshot.index
        if index is None:
            return description
        point = index.calibration.point_for(state.entry.config.target_recall, CALIBRATED_K[0])
        measured, basis = state.live.measured_of(index), index.calibration.basis
        return replace(
            description,
            state=ShardState.TRAINED,
            nlist=index.ivf.nlist,
            nprobe=0 if point is None else point.parameters.nprobe,
            candidates=0 if point is None else point.parameters.candidates,
            measured_recall=1.0 if point is None else point.measured_recall,
            measured_recall_balanced=1.0 if point is None else point.measured_recall_balanced,
            calibration_rows=basis.rows,
            calibration_queries=basis.queries,
            calibrated_at=basis.at,
            rows_changed_since=max(0, snapshot.changes - basis.changes) if basis.rule else 0,
            live_recall=0.0 if measured is None else measured.recall,
            live_queries=0 if measured is None else measured.queries,
            generation=index.generation,
            rows_trained_on=index.rows_trained_on,
            index_kind=index.kind,
            drift=drift.ratio,
            list_imbalance=snapshot.list_imbalance,
            last_training_s=index.training_s,
            last_trained_at=index.trained_at,
            memory_bytes=memory_bytes + index.ivf.memory_bytes,
        )

    def _included(
        self, snapshot: Snapshot, rows: Int64Array, ids: IdArray, include: Include
    ) -> Included | None:
        """Return the vectors and the metadata of live rows, as far as and as included, verified.

        `ids` are those of the rows. None if some are damaged, which are noted: look again.
        """
        state = self._state
        if not _reads(include):
            return None, None
        read = ReadRows.of(state.row_store, snapshot, rows, ids)
        if read.wrong.any():
            state.found_damaged(snapshot, rows[read.wrong], "read")
            return None
        metadata = read.metadata if include.metadata else None
        if include.metadata_json:
            metadata = json_from_metadata(read.metadata)
        return read.vectors if include.vectors else None, metadata

    def _require_sound(self, snapshot: Snapshot, damaged: Int64Array) -> None:
        if len(damaged):
            raise error_for(self._state.entry.config.name, snapshot, damaged)

    def _damaged_everywhere(self) -> RowsDamaged:
        """Return the error of a call that kept finding damaged rows."""
        snapshot = self._state.snapshot
        return error_for(self._state.entry.config.name, snapshot, snapshot.damaged)

    def _selected(self, ids: IdArray | None, filter_: Filter | None) -> tuple[Snapshot, Int64Array]:
        """Return a snapshot and its live rows that ids and filter, at least one, select."""
        state = self._state
        check_filter(state.entry.config, filter_)
        if ids is None:
            assert filter_ is not None
            snapshot = state.snapshot
            return snapshot, snapshot.passing(filter_)
        check_ids(state.entry.config, ids)
        with state.publish_lock:
            snapshot, rows = state.snapshot, state.newest_rows(ids)
        rows = rows[rows >= 0]
        rows = rows[~snapshot.tombstones.are_dead(rows)]
        if filter_ is not None:
            rows = rows[np.isin(rows, snapshot.passing(filter_))]
        return snapshot, rows
