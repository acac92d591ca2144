"""An index's recall, measured beside an exact search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from tests.shard.samples import config_of, some_vectors
from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    CURVE,
    Calibration,
    merged_chances,
    work,
)
from vectorshard.shard.index.calibration_sample import CalibrationQueries
from vectorshard.shard.index.exact import exact_scores, rank
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.recall import Truth, measured_calibration
from vectorshard.shard.index.row_range import RowRange
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import (
    Effort,
    Float32Array,
    Float64Array,
    IndexKind,
    Int64Array,
    Metric,
)


def held_by_an_index(
    vectors: Float32Array, kind: IndexKind, metric: Metric, tombstones: Tombstones
) -> tuple[IvfIndex, RowRange]:
    ivf = IvfIndex.train(kind, metric, vectors, 16, seed=1)
    ivf.add(np.arange(len(vectors)), vectors)
    norms = np.einsum("ij,ij->i", vectors, vectors)
    return ivf, RowRange(vectors, norms, tombstones, 0, len(vectors))


def measured(
    kind: IndexKind, metric: Metric, ivf: IvfIndex, held: RowRange, queries: Int64Array
) -> Calibration:
    """Calibrate on rows of the index."""
    config = config_of(dim=held.vectors.shape[1], metric=metric, kind=kind)
    sample = CalibrationQueries.of_rows(held, queries)
    return measured_calibration(config, ivf, held, sample, lambda: None)


@pytest.mark.parametrize("kind", list(IndexKind))
@pytest.mark.parametrize("metric", [Metric.L2, Metric.INNER_PRODUCT])
def test_the_recall_of_a_setting_is_what_a_search_with_it_has(
    kind: IndexKind, metric: Metric
) -> None:
    vectors = some_vectors(2_000, dim=16)
    tombstones = Tombstones().with_dead(np.arange(0, 2_000, 7))
    ivf, held = held_by_an_index(vectors, kind, metric, tombstones)
    queries = tombstones.live_rows(0, 2_000)[::20]
    calibration = measured(kind, metric, ivf, held, queries)
    assert {point.target_recall for point in calibration.points} <= set(CURVE)
    points = [calibration.point_for(target, k) for k in CALIBRATED_K for target in (0.8, 0.95)]
    assert points.count(None) <= 2  # codes of dim 16 may not reach .95
    for point in filter(None, points):
        found = ivf.proposed(
            vectors[queries], point.k + 1, point.parameters, tombstones, vectors, held.squared_norms
        ).candidates
        truth = held.candidates(metric, vectors[queries], point.k + 1)
        shares = []
        for query, own in enumerate(queries.tolist()):
            best = set(truth.row_of[truth.query_of == query].tolist()) - {own}
            ranked = sorted(best, key=lambda row: _cost(metric, vectors, own, row))[: point.k]
            there = set(found.row_of[found.query_of == query].tolist())
            shares.append(len(there & set(ranked)) / len(ranked))
        assert np.mean(shares) == pytest.approx(point.measured_recall, abs=0.02)


def _cost(metric: Metric, vectors: Float32Array, query: int, row: int) -> float:
    product = float(vectors[query].astype(np.float64) @ vectors[row])
    if metric is Metric.INNER_PRODUCT:
        return -product
    return float(vectors[row].astype(np.float64) @ vectors[row]) - 2 * product


@pytest.mark.parametrize("kind", list(IndexKind))
def test_rows_that_are_alike_stand_for_each_other(kind: IndexKind) -> None:
    vectors = np.repeat(some_vectors(40, dim=8), 50, axis=0)
    ivf, held = held_by_an_index(vectors, kind, Metric.L2, Tombstones())
    calibration = measured(kind, Metric.L2, ivf, held, np.arange(0, 2_000, 25))
    point = calibration.point_for(0.99, 10)
    assert point is not None
    assert point.parameters.nprobe == 1
    assert point.measured_recall == 1.0


def test_queries_that_are_no_rows_are_measured_as_they_are() -> None:
    vectors, queries = some_vectors(1_000, dim=16), some_vectors(50, dim=16, seed=1)
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_PQ, Metric.L2, Tombstones())
    live = CalibrationQueries.of_live(queries)
    config = config_of(dim=16, kind=IndexKind.IVF_PQ)
    calibration = measured_calibration(config, ivf, held, live, lambda: None)
    setting = calibration.parameters_for(Effort(), 0.9, 10)
    assert setting is not None
    found = ivf.proposed(
        queries, 10, setting, held.tombstones, vectors, held.squared_norms
    ).candidates
    truth = held.candidates(Metric.L2, queries, 10)
    best = rank(
        Metric.L2, truth, exact_scores(Metric.L2, queries, vectors, truth), np.asarray, 50, 10
    )
    pairs = set(zip(found.query_of.tolist(), found.row_of.tolist(), strict=True))
    query_of = np.repeat(np.arange(50), best.counts)
    there = [pair in pairs for pair in zip(query_of.tolist(), best.rows.tolist(), strict=True)]
    assert np.mean(there) >= 0.9


def test_rows_that_the_index_took_in_since_are_passed_over() -> None:
    vectors, queries = some_vectors(2_000, dim=16), some_vectors(20, dim=16, seed=1)
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_FLAT, Metric.L2, Tombstones())
    newer = np.concatenate([vectors, np.repeat(queries, 10, axis=0)])  # nearer than all others
    held = replace(held, vectors=newer, squared_norms=np.vecdot(newer, newer))
    live, config = CalibrationQueries.of_live(queries), config_of(dim=16)

    def nprobes() -> list[int]:
        calibration = measured_calibration(config, ivf, held, live, lambda: None)
        return [point.parameters.nprobe for point in calibration.points if point.k == 10]

    before = nprobes()
    ivf.add(np.arange(2_000, len(newer)), newer[2_000:])
    assert nprobes() == before
    assert before[0] > 1


def test_the_index_is_asked_within_what_guards_it_a_few_queries_at_a_time() -> None:
    vectors = some_vectors(500, dim=16)
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_FLAT, Metric.L2, Tombstones())
    rounds, asked = 0, 0

    def go_on() -> None:
        nonlocal rounds
        rounds += 1

    @contextmanager
    def locked() -> Iterator[None]:
        nonlocal asked
        asked += 1
        yield

    sample = CalibrationQueries.of_rows(held, np.arange(10))
    config = config_of(dim=16)
    measured_calibration(config, ivf, held, sample, go_on, locked=locked, at_once=4)
    assert asked == 1 + rounds  # once for what each list holds
    assert rounds >= 3


def test_an_index_of_no_living_rows_can_be_measured() -> None:
    vectors = some_vectors(20, dim=8)
    tombstones = Tombstones().with_dead(np.arange(20))
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_PQ, Metric.L2, tombstones)
    calibration = measured(IndexKind.IVF_PQ, Metric.L2, ivf, held, np.zeros(0, dtype=np.int64))
    assert {point.measured_recall for point in calibration.points} == {1.0}


@pytest.mark.parametrize("kind", list(IndexKind))
def test_one_look_at_many_lists_tells_what_searches_of_fewer_find(
    kind: IndexKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors, queries = some_vectors(1_500, dim=16), some_vectors(30, dim=16, seed=1)
    ivf, held = held_by_an_index(vectors, kind, Metric.L2, Tombstones())
    live, config = CalibrationQueries.of_live(queries), config_of(dim=16, kind=kind)

    def calibration() -> Calibration:
        return measured_calibration(config, ivf, held, live, lambda: None)

    costs = partial(work, rows_a_list=ivf.rows / ivf.nlist, code_bytes=ivf.code_bytes, dim=16)
    in_few_looks = calibration()
    monkeypatch.setattr("vectorshard.shard.index.recall.NPROBES_A_LOOK", 1)
    monkeypatch.setattr("vectorshard.shard.index.recall.NPROBE_FIRST_LOOK", 1)
    assert len({point.parameters.nprobe for point in in_few_looks.points}) > 2
    in_many_looks = calibration()
    for k in CALIBRATED_K:
        for target in (0.7, 0.8, 0.9):
            point, searched = (each.point_for(target, k) for each in (in_few_looks, in_many_looks))
            assert point is not None
            assert searched is not None
            # Codes that tie may come in another order, and two settings may cost the same.
            assert costs(point.parameters) == pytest.approx(costs(searched.parameters), rel=0.1)
            assert point.measured_recall == pytest.approx(searched.measured_recall, abs=0.02)


def test_a_shard_of_several_looks_only_for_what_merged_answers_take() -> None:
    vectors, queries = some_vectors(3_000, dim=16), some_vectors(80, dim=16, seed=1)
    shards = 4
    of_shard = [np.ascontiguousarray(vectors[shard::shards]) for shard in range(shards)]
    indexes = [
        held_by_an_index(each, IndexKind.IVF_PQ, Metric.L2, Tombstones()) for each in of_shard
    ]
    live, config = CalibrationQueries.of_live(queries), config_of(dim=16, kind=IndexKind.IVF_PQ)
    found: list[list[tuple[float, int]]] = [[] for _ in queries]
    for shard, (ivf, held) in enumerate(indexes):
        alone, merged = (
            measured_calibration(config, ivf, held, live, lambda: None, shards=of).parameters_for(
                Effort(), 0.9, 10
            )
            for of in (1, shards)
        )
        assert alone is not None
        assert merged is not None
        cost = partial(work, rows_a_list=held.last / 16, code_bytes=ivf.code_bytes, dim=16)
        assert cost(merged) < 0.8 * cost(alone)
        hits = ivf.proposed(
            queries, 10, merged, held.tombstones, held.vectors, held.squared_norms
        ).candidates
        scores = exact_scores(Metric.L2, queries, held.vectors, hits)
        for query, row, score in zip(hits.query_of, hits.row_of, scores, strict=True):
            found[query].append((float(score), int(row) * shards + shard))
    distances = ((queries[:, None] - vectors) ** 2).sum(axis=2)
    truth = np.argsort(distances, axis=1)[:, :10]
    shares = [
        len({row for _, row in sorted(hits)[:10]} & set(best.tolist())) / 10
        for hits, best in zip(found, truth, strict=True)
    ]
    assert 0.89 <= np.mean(shares) <= 0.95


# ---- ties, samples and shards --------------------------------------------------------------------


def test_each_of_several_tied_hits_counts_as_the_next() -> None:
    limits = np.array([[1.0, 1.0, 2.0, 3.0]], np.float32)
    truth = Truth(limits, np.array([4]), shards=2)
    costs = np.array([[3.0, 1.0, 9.0, 1.0, 2.0]], np.float32)
    lists = np.array([[0, 0, 0, 1, 2]], np.int32)
    found = truth.found(truth.ranks(costs), lists)
    weights = merged_chances(4, 2)
    tried = {4: np.array([1, 2, 4, 5])}
    of_all = found.recalls(3, tried)[4][0] * weights.sum()
    assert of_all.tolist() == pytest.approx(
        [weights[3], weights[[3, 0]].sum(), weights[[3, 0, 1]].sum(), weights.sum()]
    )
    of_one = found.recalls(1, tried)[4][0] * weights.sum()
    assert of_one.tolist() == pytest.approx([weights[3], *[weights[[3, 0]].sum()] * 3])


def recalls_with(truth: Truth, costs: Float32Array, k: int, tried: list[int]) -> Float64Array:
    """Return the recalls of searches that find rows of these costs, (queries, candidates)."""
    found = truth.found(truth.ranks(costs), np.zeros(costs.shape, np.int32))
    return found.recalls(1, {k: np.array(tried)})[k]


def test_what_a_shard_lacks_of_a_crowd_of_ties_others_have_in_excess() -> None:
    costs = np.array([[1.0] + 6 * [2.0], np.arange(7.0)], np.float32)  # no crowd in the second
    truth = Truth(costs, np.array([7, 7]), shards=8)
    missed = np.array([3 * [2.0] + [9.0], [0.0, 2.0, 3.0, 9.0]], np.float32)
    recalls = recalls_with(truth, missed, 7, [1, 3, 4])
    chances = merged_chances(7, 8)
    # The seventh hit is before the crowd if the other shards have six that are as good as the first
    # here; and is then the first here, or worse: if they have seven.
    first_is_last = (7 / 8) ** 6 - (7 / 8) ** 7
    in_crowd = (1 - (7 / 8) ** 6) * chances.sum()
    expected_of_first = in_crowd / (first_is_last + in_crowd)
    assert recalls[0, 1:].tolist() == pytest.approx(2 * [expected_of_first])
    assert recalls[0, 0] < recalls[0, 1]
    expected = np.cumsum(chances[[0, 2, 3]])[[0, 2, 2]] / chances.sum()
    assert recalls[1].tolist() == pytest.approx(expected.tolist())
    both = recalls_with(truth, costs, 7, [7])
    assert both.tolist() == pytest.approx(np.ones((2, 1)))
    # Crowds that no hit is of change nothing.
    few = Truth(costs[:, :1], np.array([1, 1]), shards=8)
    assert recalls_with(few, missed, 1, [3]).tolist() == pytest.approx(np.array([[0.0], [1.0]]))


def test_a_shard_alone_replaces_what_it_missed_by_ties_of_the_last_hit() -> None:
    costs = np.array([[1.0] + 6 * [2.0]], np.float32)
    truth = Truth(costs, np.array([7]), shards=1)
    found = np.array([6 * [2.0]], np.float32)
    assert recalls_with(truth, found, 4, [3, 4, 6]).tolist() == [[0.75, 1.0, 1.0]]
    assert recalls_with(truth, found, 1, [1, 6]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shards", [1, 2, 8])
@pytest.mark.parametrize("share", [0.8, 0.95])
def test_the_recall_of_merged_answers_among_ties_is_told(shards: int, share: float) -> None:
    """Each of so many shards finds this share of the scores that its rows have."""
    random = np.random.default_rng(3)
    k, queries, rows = 10, 200, 300
    costs = np.sort(random.binomial(32, 0.15, size=(shards, queries, rows)).astype(np.float32))
    score_found = random.random((shards, queries, 33)) < share
    found = np.take_along_axis(score_found, costs.astype(np.int64), axis=2)
    told = [
        recalls_with(
            Truth(each[:, :100], np.full(queries, 100), shards),
            np.where(there, each, np.inf).astype(np.float32),
            k,
            [rows],
        ).mean()
        for each, there in zip(costs, found, strict=True)
    ]
    last = np.sort(np.concatenate(costs, axis=1))[:, k - 1, None]
    good = np.concatenate(found, axis=1) & (np.concatenate(costs, axis=1) <= last)
    merged = np.minimum(good.sum(axis=1), k).mean() / k
    assert merged - 0.9 * (1 - share) <= np.mean(told) <= merged + 0.01


def test_more_rows_that_tie_than_hits_count_as_the_hits() -> None:
    limits = np.array([[1.0, 1.0]], np.float32)
    truth = Truth(limits, np.array([2]), shards=1)
    costs = np.ones((1, 5), np.float32)
    found = truth.found(truth.ranks(costs), np.zeros((1, 5), np.int32))
    recalls = found.recalls(1, {1: np.array([1, 5]), 2: np.array([2, 5])})
    assert recalls[1].tolist() == [[1.0, 1.0]]
    assert recalls[2].tolist() == [[1.0, 1.0]]


def test_a_query_without_hits_finds_all_of_them() -> None:
    nothing = np.full((1, 2), np.inf, np.float32)
    truth = Truth(nothing, np.array([0]), shards=1)
    costs = np.full((1, 3), np.inf, np.float32)
    found = truth.found(truth.ranks(costs), np.zeros((1, 3), np.int32))
    assert found.recalls(1, {2: np.array([2, 3])})[2].tolist() == [[1.0, 1.0]]


def test_the_worse_of_two_samples_decides() -> None:
    crowd = 0.05 * some_vectors(1_500, dim=16)
    vectors = np.concatenate([crowd, 3 + some_vectors(500, dim=16, seed=1)])
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_FLAT, Metric.L2, Tombstones())
    config = config_of(dim=16)
    samples = [np.arange(begin, begin + 500, 10) for begin in (0, 1_500)]

    def calibrated(rows: Int64Array, balanced: int) -> tuple[int, float, float]:
        sample = CalibrationQueries.of_rows(held, rows, balanced)
        calibration = measured_calibration(config, ivf, held, sample, lambda: None)
        point = calibration.point_for(0.9, 10)
        assert point is not None
        return point.parameters.nprobe, point.measured_recall, point.measured_recall_balanced

    easy, hard = sorted(samples, key=lambda rows: calibrated(rows, 0)[0])
    alone = [calibrated(rows, 0)[0] for rows in (easy, hard)]
    nprobe, of_distinct, of_balanced = calibrated(np.concatenate([easy, hard]), len(hard))
    assert alone[0] + 1 < alone[1]
    assert nprobe >= alone[1] - 1  # without standard errors in reserve
    assert of_distinct > of_balanced >= 0.9
    live = CalibrationQueries.of_rows(held, easy).with_live(vectors[hard] + np.float32(0.01))
    raised = measured_calibration(config, ivf, held, live, lambda: None).point_for(0.9, 10)
    assert raised is not None
    assert raised.parameters.nprobe >= alone[1] - 1


@pytest.mark.parametrize("shards", [2, 8])
def test_copies_of_one_vector_do_not_weigh_a_query_by_the_number_of_shards(shards: int) -> None:
    vectors = some_vectors(1_000, dim=16)
    vectors[::3] = vectors[0]
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_FLAT, Metric.L2, Tombstones())
    rows = np.concatenate([[0], np.arange(1, 300, 3)])
    queries = CalibrationQueries.of_rows(held, rows)
    config = config_of(dim=16)
    copies = measured_calibration(config, ivf, held, queries, lambda: None, shards=shards)
    others = measured_calibration(
        config,
        ivf,
        held,
        CalibrationQueries.of_rows(held, rows[1:]),
        lambda: None,
        shards=shards,
    )
    with_copies, without_copies = (each.point_for(0.9, 10) for each in (copies, others))
    assert with_copies is not None
    assert without_copies is not None
    assert with_copies.parameters == without_copies.parameters


def test_a_large_k_is_measured_alone_and_what_it_takes_after_deletes() -> None:
    vectors = some_vectors(1_200, dim=8)
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_FLAT, Metric.L2, Tombstones())
    sample = CalibrationQueries.of_rows(held, np.arange(0, 1_200, 60))
    config = config_of(dim=8)
    found = measured_calibration(config, ivf, held, sample, lambda: None, ks=(300,))
    assert {point.k for point in found.points} == {300, 375}
    point = found.point_for(0.95, 300)
    assert point is not None
    assert point.parameters.candidates == 300
    assert 4 < point.parameters.nprobe <= 16


@pytest.mark.parametrize("copies", [3, 20])
@pytest.mark.parametrize("kind", list(IndexKind))
def test_where_all_rows_have_copies_the_recall_is_that_of_queries_that_have_none(
    kind: IndexKind, copies: int
) -> None:
    contents = np.repeat(some_vectors(600 // copies, dim=8), copies, axis=0)
    ivf, held = held_by_an_index(contents, kind, Metric.L2, Tombstones())
    calibration = measured(kind, Metric.L2, ivf, held, np.arange(0, 600, copies))
    point = calibration.point_for(0.9, 10)
    assert point is not None
    parameters, queries = point.parameters, some_vectors(500, dim=8, seed=2)
    found = ivf.nearest(queries, parameters.candidates, parameters.nprobe, Tombstones())
    distances = ((queries[:, None] - contents) ** 2).sum(axis=2)
    furthest = np.sort(distances, axis=1)[:, 9:10]
    hits = (np.take_along_axis(distances, found, axis=1) <= furthest) & (found >= 0)
    recall = np.minimum(hits.sum(axis=1) / 10, 1).mean()
    assert recall == pytest.approx(point.measured_recall, abs=0.07)


def test_as_many_candidates_as_a_neighborhood_has_rows_are_re_ranked() -> None:
    random = np.random.default_rng(3)
    centers = 20 * random.normal(size=(100, 8))
    vectors = (np.repeat(centers, 12, axis=0) + random.normal(size=(1_200, 8))).astype(np.float32)
    ivf, held = held_by_an_index(vectors, IndexKind.IVF_PQ, Metric.L2, Tombstones())
    calibration = measured(IndexKind.IVF_PQ, Metric.L2, ivf, held, np.arange(0, 1_200, 6))
    point = calibration.point_for(0.95, 10)
    assert point is not None
    assert point.parameters.candidates >= 12
