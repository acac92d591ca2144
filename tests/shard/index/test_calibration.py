"""How many lists by each rule, and the cheapest setting for each recall."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    CANDIDATES_MAX_SMALL_K,
    CANDIDATES_STEP,
    NPROBE_STEP,
    RULE,
    TARGETS,
    Calibration,
    CalibrationBasis,
    CalibrationPoint,
    Reach,
    SearchParameters,
    calibrate,
    candidates_tried,
    merged_chances,
    nlist_for,
    targets_reached,
    work,
)
from vectorshard.shard.types import (
    Effort,
    Float64Array,
    IndexConfig,
    IndexKind,
    Int64Array,
    NlistRule,
)

POINTS = Calibration(
    tuple(
        CalibrationPoint(
            k=k,
            target_recall=target,
            parameters=SearchParameters(nprobe, 3 * k),
            measured_recall=target,
        )
        for k, factor in zip(CALIBRATED_K, (1, 2, 2, 3), strict=True)
        for target, nprobe in zip(TARGETS, (2 * factor, 4 * factor, 8 * factor, 16), strict=True)
    ),
    CalibrationBasis(rule=RULE),
)


@pytest.mark.parametrize(
    ("rule", "rows", "nlist"),
    [
        (NlistRule.BY_KIND, 1_000, 25),
        (NlistRule.BY_KIND, 336_479, 580),
        (NlistRule.SQRT_4, 1_000, 25),  # 4 * sqrt(1000) is 126: 39 rows a list allow 25
        (NlistRule.SQRT_4, 10_000, 256),
        (NlistRule.SQRT_4, 336_479, 2_320),
        (NlistRule.SQRT_8, 336_479, 4_640),
        (NlistRule.SQRT_16, 336_479, 8_627),
        (NlistRule.SQRT_16, 1_000_000, 16_000),
        (NlistRule.FIXED, 1_000_000, 100),
        (NlistRule.FIXED, 3_900, 100),
        (NlistRule.FIXED, 3_899, 99),
    ],
)
def test_the_number_of_lists_follows_the_rule_and_leaves_39_rows_a_list(
    rule: NlistRule, rows: int, nlist: int
) -> None:
    assert nlist_for(IndexConfig(nlist_rule=rule, nlist=100), rows) == nlist


@pytest.mark.parametrize("kind", [IndexKind.IVF_FLAT, IndexKind.IVF_SQ8])
def test_the_default_gives_an_index_of_whole_vectors_more_and_shorter_lists(
    kind: IndexKind,
) -> None:
    assert nlist_for(IndexConfig(kind=kind), 336_479) == 2_320


@given(st.sampled_from(NlistRule), st.integers(1, 10**8), st.integers(1, 65_536))
def test_there_is_always_a_list_and_never_less_than_39_rows_for_each_of_several(
    rule: NlistRule, rows: int, fixed: int
) -> None:
    nlist = nlist_for(IndexConfig(nlist_rule=rule, nlist=fixed), rows)
    assert nlist >= 1
    assert nlist == 1 or rows >= 39 * nlist


@pytest.mark.parametrize(
    ("distinct", "nlist"), [(6_000, 77), (3_000, 76), (390, 10), (39, 1), (2, 1)]
)
def test_few_distinct_vectors_get_few_lists(distinct: int, nlist: int) -> None:
    assert nlist_for(IndexConfig(), 6_000, distinct) == nlist
    assert nlist_for(IndexConfig(nlist_rule=NlistRule.FIXED, nlist=77), 6_000, distinct) == nlist


def test_a_sample_of_few_rows_a_list_is_not_taken_for_one_with_few_distinct_rows() -> None:
    assert nlist_for(IndexConfig(), 6_000, 20 * 77, rows_per_list=20) == 77


# ---- chances of merged answers -------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2, 5, 100])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_a_shards_hits_weigh_what_merged_answers_take_of_them(k: int, shards: int) -> None:
    chances = merged_chances(k, shards)
    assert chances.shape == (k,)
    assert (np.diff(chances) <= 1e-12).all()
    assert chances.sum() == pytest.approx(k / shards if shards > 1 else k)
    random = np.random.default_rng(1)
    of_shard = (random.integers(0, shards, (20_000, k)) == 0).sum(axis=1)
    for nth in {1, (k + 1) // 2}:
        share = float((of_shard >= nth).mean())
        assert chances[nth - 1] == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("shards", [2, 16])
def test_a_large_k_has_chances_too(shards: int) -> None:
    chances = merged_chances(10_000, shards)
    assert np.isfinite(chances).all()
    assert chances.sum() == pytest.approx(10_000 / shards)


# ---- targets -------------------------------------------------------------------------------------


def test_a_target_keeps_a_tenth_of_its_misses_in_reserve() -> None:
    same = np.full((1_000, 2), [0.955, 0.91])
    assert targets_reached(same).tolist() == pytest.approx([0.95, 0.90])


def test_a_target_keeps_what_the_sampling_error_may_hide_in_reserve() -> None:
    recalls = np.repeat([[1.0], [0.9]], 50, axis=0)  # mean 0.95, deviation 0.05
    assert targets_reached(recalls).tolist() == pytest.approx([0.95 - 1.64 * 0.05 / 10])
    assert targets_reached(recalls, shards=4).tolist() == pytest.approx([0.85 / 0.9])
    assert targets_reached(recalls, reserve=False, worst=False).tolist() == pytest.approx([0.95])


def test_the_worst_tenth_is_not_left_far_below_the_target() -> None:
    recalls = np.repeat([[1.0], [0.7]], [900, 100], axis=0)  # mean 0.97
    assert targets_reached(recalls).tolist() == pytest.approx([0.9])
    assert targets_reached(recalls, worst=False)[0] == pytest.approx(
        0.97 - 1.64 * 0.09 / 1_000**0.5
    )
    # A merged answer is the mean of shards, so it has fewer of such queries.
    assert targets_reached(recalls, shards=4)[0] == pytest.approx(0.87 / 0.9)


def test_no_queries_limit_no_target() -> None:
    assert targets_reached(np.zeros((0, 3))).tolist() == [1.0, 1.0, 1.0]


@given(st.integers(1, 1_000), st.integers(0, 6_000))
def test_candidates_are_tried_from_k_to_the_most_in_small_steps(k: int, more: int) -> None:
    tried = candidates_tried(k, k + more)
    assert (tried[0], tried[-1]) == (k, k + more)
    assert all(b <= max(a + 1, a * CANDIDATES_STEP) for a, b in pairwise(tried.tolist()))


# ---- calibration ---------------------------------------------------------------------------------


class Measured:
    """An index of `nlist` lists by what it would propose: hit h of query q is in list `list_of`,
    and stands behind `before` others once its list is probed.
    """

    def __init__(self, seed: int, nlist: int) -> None:
        random = np.random.default_rng(seed)
        shape = (16, CALIBRATED_K[-1])
        self.nlist = nlist
        self.list_of = random.integers(0, nlist, shape)
        self.before = random.integers(0, 3 * CALIBRATED_K[-1], shape) + np.arange(shape[1])
        self.asked: list[int] = []

    def recall(self, k: int, nprobe: int, tried: Int64Array) -> Float64Array:
        """Return the recall for each number of candidates tried."""
        there = np.sort(self.before[:, :k][self.list_of[:, :k] < nprobe])
        share: Float64Array = np.searchsorted(there, tried) / (k * len(self.before))
        return share

    def reach_at(self, nprobe: int) -> Mapping[int, Reach]:
        self.asked.append(nprobe)
        reach = {}
        for k in CALIBRATED_K:
            tried = candidates_tried(k, CANDIDATES_MAX_SMALL_K)
            recall = self.recall(k, nprobe, tried)
            reach[k] = Reach(tried, recall - 0.01, recall, recall - 0.001)
        return reach


def some_work(setting: SearchParameters) -> float:
    return 5 * setting.nprobe + setting.candidates


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
@settings(max_examples=10, deadline=None)
def test_every_setting_reaches_its_target_and_none_that_was_tried_is_cheaper(
    seed: int, nlist: int
) -> None:
    index = Measured(seed, nlist)
    calibration = calibrate(index.reach_at, nlist, some_work)
    for k in CALIBRATED_K:
        tried = candidates_tried(k, CANDIDATES_MAX_SMALL_K)
        for target in (0.5, 0.8, 0.93, 0.96, 0.99):
            point = calibration.point_for(target, k)
            assert point is not None
            setting = point.parameters
            (reached,) = index.recall(k, setting.nprobe, np.array([setting.candidates]))
            assert reached == pytest.approx(point.measured_recall)
            assert reached - 0.001 == pytest.approx(point.measured_recall_balanced)
            assert reached - 0.01 >= target - 1e-6
            for nprobe in index.asked:
                enough = index.recall(k, nprobe, tried) - 0.01 >= target + 0.005
                costs = [some_work(SearchParameters(nprobe, n)) for n in tried[enough].tolist()]
                assert min(costs, default=np.inf) >= some_work(setting)


def test_cost_never_falls_as_the_target_grows_and_grows_in_small_steps() -> None:
    index = Measured(1, 1_000)
    calibration = calibrate(index.reach_at, 1_000, some_work)
    for k in CALIBRATED_K:
        curve = [calibration.point_for(target, k) for target in np.arange(0.50, 0.991, 0.01)]
        points = [point for point in curve if point is not None]
        assert len(points) == len(curve)
        for lower, upper in pairwise(points):
            assert some_work(lower.parameters) <= some_work(upper.parameters)
            assert some_work(upper.parameters) <= 1.5 * some_work(lower.parameters)
        assert len({point.parameters for point in points}) >= 12


def test_nprobe_grows_by_a_step_that_a_target_can_afford() -> None:
    index = Measured(1, 1_000)
    calibrate(index.reach_at, 1_000, lambda _: 0.0)
    assert index.asked[0] == 1
    assert index.asked[-1] == 1_000
    assert all(
        after <= max(before + 1, round(before * NPROBE_STEP))
        for before, after in pairwise(index.asked)
    )


def test_lists_that_cost_more_than_what_is_known_are_not_tried() -> None:
    index = Measured(1, 1_000)
    index.list_of[:] = 2
    points = calibrate(index.reach_at, 1_000, some_work).points
    assert {point.parameters.nprobe for point in points} == {3}
    assert max(index.asked) < 200


def test_a_target_that_no_setting_reaches_has_no_point() -> None:
    index = Measured(1, 20)
    index.before[:, ::10] = CANDIDATES_MAX_SMALL_K  # a tenth is beyond all candidates
    calibration = calibrate(index.reach_at, 20, some_work)
    for k in CALIBRATED_K:
        assert calibration.point_for(0.85, k) is not None
        assert calibration.point_for(0.90, k) is None


@given(st.integers(1, 65_536), st.sampled_from([8, 50, 200]), st.sampled_from([2, 100, 768]))
def test_more_lists_and_more_candidates_are_more_work(nprobe: int, code: int, dim: int) -> None:
    def of(setting: SearchParameters) -> float:
        return work(setting, rows_a_list=100.0, code_bytes=code, dim=dim)

    assert (
        of(SearchParameters(nprobe + 1, 50))
        > of(SearchParameters(nprobe, 50))
        < of(SearchParameters(nprobe, 51))
    )


# ---- which setting a search gets -----------------------------------------------------------------


def nprobes(*targets: float, k: int = 10) -> list[int]:
    points = [POINTS.point_for(target, k) for target in targets]
    return [0 if point is None else point.parameters.nprobe for point in points]


def test_a_target_between_two_that_are_calibrated_takes_the_upper() -> None:
    assert nprobes(0.1, 0.8, 0.81, 0.95, 0.99) == [2, 2, 4, 8, 16]
    assert nprobes(float(np.float32(0.95))) == [8]


def test_a_k_between_two_that_are_calibrated_takes_the_upper() -> None:
    assert [nprobes(0.9, k=k) for k in (1, 10, 11, 50, 51, 100)] == [
        [4],
        [4],
        [8],
        [8],
        [12],
        [12],
    ]


def test_a_large_k_takes_all_rows_until_it_is_measured() -> None:
    assert [POINTS.lacks(k) for k in (10, 100, 101, 300, 301, 1_000, 1_001)] == [
        False,
        False,
        True,
        True,
        True,
        True,
        False,
    ]
    assert POINTS.parameters_for(Effort(), 0.9, 101) is None
    point = CalibrationPoint(
        k=300, target_recall=0.95, parameters=SearchParameters(40, 900), measured_recall=0.96
    )
    measured = POINTS.with_large_k(300, [point])
    assert [measured.lacks(k) for k in (101, 300, 301)] == [False, False, True]
    assert measured.parameters_for(Effort(), 0.9, 101) == SearchParameters(40, 900)
    assert measured.parameters_for(Effort(), 0.99, 300) is None
    assert measured.parameters_for(Effort(), 0.9, 100) == POINTS.parameters_for(Effort(), 0.9, 100)
    again = replace(POINTS, points=POINTS.points[:1]).keeping_large_k_of(measured)
    assert again.points == (POINTS.points[0], point)
    assert not again.lacks(300)
    beyond = replace(point, k=375)
    both = POINTS.with_large_k(300, [point, beyond])
    assert both.points_above(100, 0.95) == [point, beyond]
    assert both.with_large_k(300, [point]).points_above(100, 0.95) == [point]
    assert again.keeping_large_k_of(both).points == (POINTS.points[0], point, beyond)
    unreachable = POINTS.with_large_k(1_000, [])
    assert not unreachable.lacks(1_000)
    assert unreachable.parameters_for(Effort(), 0.9, 1_000) is None


def test_a_k_beyond_all_takes_all_rows() -> None:
    assert POINTS.parameters_for(Effort(), 0.9, 1_001) is None
    assert not POINTS.lacks(10_000)


def test_a_calibration_by_older_rules_serves_until_it_is_replaced() -> None:
    old = Calibration(tuple(point for point in POINTS.points if point.k in (10, 100)))
    assert old.outdated
    assert not POINTS.outdated
    assert old.parameters_for(Effort(), 0.9, 11) == SearchParameters(12, 300)
    assert old.parameters_for(Effort(), 0.9, 101) is None


@pytest.mark.parametrize(("k", "candidates"), [(10, 30), (25, 150), (101, 900), (300, 900)])
def test_an_nprobe_gets_the_same_candidates_for_all_k_that_are_calibrated_alike(
    k: int, candidates: int
) -> None:
    # Searches with such k run together, and each must answer as it does alone.
    found = POINTS.parameters_for(Effort(nprobe=3), 0.8, k)
    assert found == SearchParameters(3, candidates)


def test_a_target_above_all_that_are_calibrated_takes_all_rows() -> None:
    assert POINTS.point_for(0.995, 10) is None
    assert POINTS.parameters_for(Effort(target_recall=1.0), 0.8, 10) is None
    assert POINTS.parameters_for(Effort(exact=True), 0.8, 10) is None


def test_a_searchs_own_nprobe_wins_over_its_target_and_that_over_the_collections() -> None:
    assert POINTS.parameters_for(Effort(nprobe=7, target_recall=0.9), 0.8, 10) == SearchParameters(
        7, 30
    )
    assert POINTS.parameters_for(Effort(target_recall=0.95), 0.8, 10) == SearchParameters(8, 30)
    assert POINTS.parameters_for(Effort(), 0.8, 10) == SearchParameters(2, 30)


def test_an_nprobe_of_its_own_comes_with_the_candidates_of_the_highest_recall() -> None:
    uneven = Calibration(
        (
            CalibrationPoint(
                k=10, target_recall=0.8, parameters=SearchParameters(2, 20), measured_recall=0.8
            ),
            CalibrationPoint(
                k=10, target_recall=0.99, parameters=SearchParameters(9, 90), measured_recall=0.99
            ),
        )
    )
    assert uneven.parameters_for(Effort(nprobe=3), 0.8, 10) == SearchParameters(3, 90)
    assert Calibration(()).parameters_for(Effort(nprobe=3), 0.8, 10) == SearchParameters(
        3, CANDIDATES_MAX_SMALL_K
    )
