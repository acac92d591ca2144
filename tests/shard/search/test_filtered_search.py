"""How rows that pass a filter are found: when all are scored, how far the index is searched."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pyroaring import BitMap

from vectorshard.shard.filters import Equals, Filter
from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    RULE,
    TARGETS,
    Calibration,
    CalibrationBasis,
    CalibrationPoint,
    SearchParameters,
)
from vectorshard.shard.index.exact import Candidates, exact_candidates, exact_scores, rank
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.row_range import SCORED_ONE_BY_ONE
from vectorshard.shard.rows.filter_columns import FilterColumns
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.row_map import RowMap
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.filtered_search import (
    REMEMBERED_FILTERS,
    PassingRows,
    RememberedFilters,
    filtered_candidates,
    filtered_plan,
    margin_for,
    measured_margins,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import (
    Effort,
    FieldType,
    FilterField,
    Float32Array,
    IdType,
    IndexKind,
    Int64Array,
    Metric,
)

DIM, NLIST, REGIONS = 8, 64, 16
NO_EFFORT = Effort()


def in_regions(rows: int, seed: int) -> tuple[Float32Array, Int64Array]:
    """Return vectors around a few centres, and the centre of each."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((REGIONS, DIM)) * 3
    region = random.integers(REGIONS, size=rows)
    return (centres[region] + random.standard_normal((rows, DIM))).astype(np.float32), region


def squared_norms(vectors: Float32Array) -> Float32Array:
    norms: Float32Array = np.vecdot(vectors, vectors)
    return norms


class Indexed:
    """A snapshot of rows in an index that is calibrated by hand."""

    def __init__(self, rows: int = 4_000, metric: Metric = Metric.L2) -> None:
        self.metric = metric
        self.vectors, self.region = in_regions(rows, 0)
        ivf = IvfIndex.train(IndexKind.IVF_FLAT, metric, self.vectors, NLIST, 7)
        ivf.add(np.arange(rows), self.vectors)
        points = tuple(
            CalibrationPoint(
                k=k,
                target_recall=target,
                parameters=SearchParameters(nprobe, k),
                measured_recall=target,
            )
            for k, nprobe in zip(CALIBRATED_K, (4, 5, 7, 8), strict=True)
            for target in TARGETS
        )
        self.snapshot = Snapshot(
            sequence=1,
            vectors=self.vectors,
            squared_norms=squared_norms(self.vectors),
            ids=IdColumn(IdType.INT64),
            absorbed_until=rows,
        )
        chosen = np.arange(0, rows, 40)
        self.index = TrainedIndex(
            ivf=ivf,
            generation=1,
            calibration=Calibration(points, CalibrationBasis(rule=RULE)),
            live_when_trained=rows,
            rows_trained_on=rows,
            trained_at=0.0,
            training_s=0.0,
            filter_margins=measured_margins(
                metric,
                ivf,
                self.snapshot.between(0, self.snapshot.rows),
                self.vectors[chosen],
                chosen,
            ),
        )

    def passing(self, rows: Int64Array) -> PassingRows:
        return PassingRows.of(self.snapshot, rows)

    def setting(self, rows: int, *, effort: Effort = NO_EFFORT) -> SearchParameters | None:
        """Return how far it is searched when so many rows pass."""
        passing = self.passing(np.arange(rows))
        return filtered_plan(self.index, effort, 0.95, 10, passing, rows, 0).parameters

    def best(self, queries: Float32Array, rows: Int64Array, k: int) -> list[set[int]]:
        """Return the true k best of some rows for each query."""
        found = self.passing(rows).candidates(self.metric, queries, k)
        scores = exact_scores(self.metric, queries, self.vectors, found)
        ranked = rank(self.metric, found, scores, lambda each: each, len(queries), k)
        parts = np.split(ranked.rows, np.cumsum(ranked.counts)[:-1])
        return [set(part.tolist()) for part in parts]

    def recall(
        self, queries: Float32Array, rows: Int64Array, nprobe: int, margin: float | None
    ) -> float:
        """Return the recall@10 of a search of the index for some rows."""
        found, self.lists = filtered_candidates(
            self.snapshot,
            self.index,
            self.metric,
            queries,
            10,
            SearchParameters(nprobe, 10),
            margin,
            self.passing(rows),
        )
        pairs = list(zip(found.query_of.tolist(), found.row_of.tolist(), strict=True))
        assert len(pairs) == len(set(pairs)), "no pair comes twice"
        assert set(found.row_of.tolist()) <= set(rows.tolist())
        of_query = [
            set(found.row_of[found.query_of == each].tolist()) for each in range(len(queries))
        ]
        best = self.best(queries, rows, 10)
        return float(np.mean([len(a & b) / len(b) for a, b in zip(of_query, best, strict=True)]))


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("rows", [0, 1, 9, 2_500])
@pytest.mark.parametrize("asked", [SCORED_ONE_BY_ONE, SCORED_ONE_BY_ONE + 1])
@pytest.mark.parametrize("copied", [False, True])
def test_rows_that_pass_are_all_looked_at(
    metric: Metric, rows: int, asked: int, copied: bool
) -> None:
    vectors = in_regions(3_000, 0)[0]
    if metric is Metric.COSINE:
        vectors /= np.sqrt(squared_norms(vectors))[:, None]
    queries = vectors[:asked] + np.float32(0.1)
    chosen = np.sort(np.random.default_rng(1).choice(3_000, rows, replace=False))
    passing = PassingRows(vectors, squared_norms(vectors), RowMap(), chosen)
    if copied:
        passing = replace(passing, copies=passing.gathered(chosen))
    found = passing.candidates(metric, queries, 10)
    alone = np.zeros(3_000, dtype=np.bool_)
    alone[chosen] = True
    expected = exact_candidates(
        metric, queries, vectors, squared_norms(vectors), alone, 0, 3_000, 10
    )
    for each in (found, expected):
        assert set(each.row_of.tolist()) <= set(chosen.tolist())

    def ranked(candidates: Candidates) -> list[list[int]]:
        scores = exact_scores(metric, queries, vectors, candidates)
        best = rank(metric, candidates, scores, lambda each: each, asked, 10)
        return [best.rows.tolist(), best.counts.tolist()]

    assert ranked(found) == ranked(expected)


def test_rows_are_cut_where_the_index_ends() -> None:
    passing = Indexed(200).passing(np.array([3, 7, 150, 199]))
    assert passing.since(150).rows.tolist() == [150, 199]
    assert passing.since(0).live == 4
    assert passing.since(200).live == 0


def test_few_rows_are_scored_and_many_are_looked_up() -> None:
    indexed = Indexed()
    assert indexed.setting(0) is None
    assert indexed.setting(40) is None
    assert indexed.setting(4_000) is not None
    assert indexed.setting(4_000, effort=Effort(exact=True)) is None


def test_fewer_rows_that_pass_take_more_lists() -> None:
    indexed = Indexed(20_000)
    settings = [indexed.setting(rows) for rows in (20_000, 10_000, 6_000)]
    probed = [setting.nprobe for setting in settings if setting is not None]
    assert len(probed) == 3
    assert 4 < probed[0] < probed[1] < probed[2] <= NLIST


def test_an_nprobe_that_is_asked_for_is_the_nprobe_and_no_more() -> None:
    indexed = Indexed(20_000)
    effort = Effort(nprobe=20)
    setting = indexed.setting(10_000, effort=effort)
    assert setting is not None
    assert setting.nprobe == 20
    assert margin_for(indexed.index, effort, 0.95) is None


def test_a_margin_is_that_of_the_next_higher_target() -> None:
    indexed = Indexed()
    margins = indexed.index.filter_margins
    assert len(margins) == len(TARGETS)
    assert list(margins) == sorted(margins)
    assert margin_for(indexed.index, NO_EFFORT, 0.95) == margins[2]
    assert margin_for(indexed.index, Effort(target_recall=0.91), 0.5) == margins[2]
    assert margin_for(indexed.index, Effort(target_recall=1.0), 0.5) == margins[3]
    unmeasured = replace(indexed.index, filter_margins=())
    assert margin_for(unmeasured, NO_EFFORT, 0.95) is None


@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_rows_that_lie_elsewhere_are_found_by_the_second_step(metric: Metric) -> None:
    indexed = Indexed(metric=metric)
    queries = in_regions(64, 1)[0]
    elsewhere = np.flatnonzero(indexed.region < 4)
    margin = margin_for(indexed.index, NO_EFFORT, 0.95)
    assert margin is not None
    assert indexed.recall(queries, elsewhere, 6, None) < 0.8
    assert indexed.lists.tolist() == [6] * 64
    assert indexed.recall(queries, elsewhere, 6, margin) >= 0.95
    assert 6 < indexed.lists.mean() <= NLIST


def test_a_second_step_that_costs_more_than_scoring_all_that_pass_is_not_made() -> None:
    indexed = Indexed()
    queries = in_regions(64, 1)[0]
    passing = indexed.passing(np.flatnonzero(indexed.region < 4))
    margin = margin_for(indexed.index, NO_EFFORT, 0.95)
    search = indexed.snapshot, indexed.index, indexed.metric, queries, 10
    _, wide = filtered_candidates(*search, SearchParameters(6, 10), margin, passing)
    found, lists = filtered_candidates(*search, SearchParameters(6, 10), margin, passing, 0.0)
    np.testing.assert_array_equal(lists, np.where(wide > 6, -1, 6))
    assert (wide > 6).any()
    assert not set(found.query_of.tolist()) & set(np.flatnonzero(wide > 6).tolist())


def test_fewer_rows_than_hits_are_all_found() -> None:
    indexed = Indexed()
    margin = margin_for(indexed.index, NO_EFFORT, 0.95)
    assert indexed.recall(in_regions(5, 1)[0], np.array([5, 100, 3_999]), 1, margin) == 1.0


def test_a_filter_that_is_asked_again_is_remembered_until_something_is_written() -> None:
    columns = FilterColumns([FilterField("lang", FieldType.KEYWORD)])
    columns.append(dict.fromkeys(range(0, 10, 2), (("en",),)), 10)
    vectors = np.zeros((10, 2), np.float32)
    snapshot = Snapshot(
        sequence=1,
        vectors=vectors,
        squared_norms=squared_norms(vectors),
        ids=IdColumn(IdType.INT64),
        columns=columns,
    )
    remembered, filter_ = RememberedFilters(), Equals("lang", "en")
    first = remembered.passing(snapshot, filter_).rows
    assert first.tolist() == [0, 2, 4, 6, 8]
    assert remembered.passing(replace(snapshot, absorbed_until=5), filter_).rows is first
    dead = Tombstones().with_dead(np.array([2]))
    later = replace(snapshot, sequence=2, tombstones=dead)
    assert remembered.passing(later, filter_).rows.tolist() == [0, 4, 6, 8]
    assert remembered.passing(snapshot, filter_).rows.tolist() == [0, 2, 4, 6, 8]
    for number in range(REMEMBERED_FILTERS):
        assert remembered.passing(snapshot, Equals("lang", str(number))).rows.tolist() == []
    assert remembered.passing(snapshot, filter_).rows is not first


def test_rows_that_were_looked_up_before_a_repair_are_not_remembered() -> None:
    remembered = RememberedFilters()

    class RepairedMeanwhile(FilterColumns):
        def passing(self, filter_: Filter, rows: int) -> BitMap:
            found = super().passing(filter_, rows)
            self.rewrite({2: (("de",),)})
            remembered.forget()
            return found

    columns = RepairedMeanwhile((FilterField("lang", FieldType.KEYWORD),))
    columns.append(dict.fromkeys(range(5), (("en",),)), 5)
    vectors = np.zeros((5, 2), np.float32)
    snapshot = Snapshot(
        sequence=1,
        vectors=vectors,
        squared_norms=squared_norms(vectors),
        ids=IdColumn(IdType.INT64),
        columns=columns,
    )
    assert remembered.passing(snapshot, Equals("lang", "en")).rows.tolist() == [0, 1, 2, 3, 4]
    assert remembered.passing(snapshot, Equals("lang", "en")).rows.tolist() == [0, 1, 3, 4]


def test_of_few_rows_the_vectors_are_remembered_and_of_many_they_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = FilterColumns((FilterField("lang", FieldType.KEYWORD),))
    columns.append({row: (("en" if row < 3 else "de",),) for row in range(10)}, 10)
    vectors = np.arange(20, dtype=np.float32).reshape(10, 2)
    snapshot = Snapshot(
        sequence=1,
        vectors=vectors,
        squared_norms=squared_norms(vectors),
        ids=IdColumn(IdType.INT64),
        columns=columns,
    )
    monkeypatch.setattr("vectorshard.shard.search.filtered_search.REMEMBERED_BYTES_MAX", 3 * 2 * 4)
    remembered = RememberedFilters()
    few = remembered.passing(snapshot, Equals("lang", "en"))
    assert few.copies is not None
    assert few.copies.vectors.tolist() == vectors[:3].tolist()
    assert remembered.passing(snapshot, Equals("lang", "en")).copies is few.copies
    assert few.since(2).copies is None, "they are of all rows"
    assert remembered.passing(snapshot, Equals("lang", "de")).copies is None
