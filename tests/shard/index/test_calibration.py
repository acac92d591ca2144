"""How many lists by each rule, and the cheapest setting for each recall."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    CANDIDATES_MAX,
    NPROBE_STEP,
    RESERVE,
    TARGETS,
    Calibration,
    CalibrationPoint,
    Places,
    SearchParameters,
    calibrate,
    merged_chances,
    nlist_for,
    places_of,
    work,
)
from vectorshard.shard.types import Effort, IndexConfig, IndexKind, NlistRule

POINTS = Calibration(
    tuple(
        CalibrationPoint(
            k=k,
            target_recall=target,
            parameters=SearchParameters(nprobe, 3 * k),
            measured_recall=target,
        )
        for k, factor in zip(CALIBRATED_K, (1, 3), strict=True)
        for target, nprobe in zip(TARGETS, (2 * factor, 4 * factor, 8 * factor, 16), strict=True)
    )
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


# ---- where the true hits stand -------------------------------------------------------------------


def test_places_say_where_true_hits_stand_among_what_is_proposed() -> None:
    ranks = np.array([[4, 0, 9, 1, 2], [0, 0, 0, 2, 2], [0, 1, 1, 1, 1]])
    proposed, hits = np.full(ranks.shape, True), np.array([2, 2, 1])
    weights = np.array([1.0, 0.5])
    places = places_of(ranks, proposed, hits, weights)
    assert places.places.tolist() == [0, 0, 1, 1, 3]
    assert places.weights.tolist() == [1.0, 1.0, 1.0, 1.0, 0.5]
    assert places.total == 1.5 + 1.5 + 1.0
    proposed[0, [1, 2]] = False
    fewer = places_of(ranks[:1], proposed[:1], hits[:1], weights)
    assert (fewer.places.tolist(), fewer.weights.tolist(), fewer.total) == ([1], [0.5], 1.5)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_places_are_those_of_the_first_that_are_good_enough(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    ranks, hits = random.integers(0, 8, (4, 9)), random.integers(0, k + 1, 4)
    proposed = random.random((4, 9)) < 0.7
    expected: list[int] = []
    for row, those, there in zip(ranks, proposed, hits.tolist(), strict=True):
        expected += [place for place, rank in enumerate(row[those]) if rank < there][:there]
    places = places_of(ranks, proposed, hits, np.ones(k))
    assert places.places.tolist() == sorted(expected)
    assert places.total == hits.sum()


def test_of_no_queries_nothing_has_a_place() -> None:
    nothing = np.zeros((0, 3), np.int64)
    places = places_of(nothing, nothing > 0, np.zeros(0, np.int64), np.ones(5))
    assert (len(places.places), places.total) == (0, 0.0)


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

    def places_at(self, nprobe: int) -> Mapping[int, Places]:
        self.asked.append(nprobe)
        there = self.list_of < nprobe
        found = {k: np.sort(self.before[:, :k][there[:, :k]]) for k in CALIBRATED_K}
        return {
            k: Places(places, np.ones(len(places)), float(k * len(there)))
            for k, places in found.items()
        }

    def recall(self, k: int, setting: SearchParameters) -> float:
        places = self.places_at(setting.nprobe)[k]
        return float((places.places < setting.candidates).sum()) / places.total


def some_work(setting: SearchParameters) -> float:
    return 5 * setting.nprobe + setting.candidates


@given(st.integers(0, 2**32 - 1), st.integers(1, 300))
@settings(max_examples=15)
def test_every_setting_reaches_its_target_and_none_that_was_tried_is_cheaper(
    seed: int, nlist: int
) -> None:
    index = Measured(seed, nlist)
    points = calibrate(index.places_at, nlist, some_work, compressed=True).points
    tried = list(index.asked)
    assert [(point.k, point.target_recall) for point in points] == [
        (k, target) for k in CALIBRATED_K for target in TARGETS
    ]
    for point in points:
        wanted = point.target_recall + RESERVE * (1 - point.target_recall)
        assert point.measured_recall >= wanted - 1e-9
        assert index.recall(point.k, point.parameters) == pytest.approx(point.measured_recall)
        for nprobe in tried:
            for candidates in range(point.k, 600, 7):
                cheaper = SearchParameters(nprobe, candidates)
                if some_work(cheaper) < some_work(point.parameters):
                    assert index.recall(point.k, cheaper) < wanted


def test_nprobe_grows_by_a_step_that_a_target_can_afford() -> None:
    index = Measured(1, 1_000)
    calibrate(index.places_at, 1_000, lambda _: 0.0, compressed=True)
    assert index.asked[0] == 1
    assert index.asked[-1] == 1_000
    assert all(
        after <= max(before + 1, round(before * NPROBE_STEP))
        for before, after in pairwise(index.asked)
    )


def test_lists_that_cost_more_than_what_is_known_are_not_tried() -> None:
    index = Measured(1, 1_000)
    index.list_of[:] = 2
    points = calibrate(index.places_at, 1_000, some_work, compressed=True).points
    assert {point.parameters.nprobe for point in points} == {3}
    assert max(index.asked) < 200


def test_an_index_that_knows_who_is_best_needs_no_candidates_beyond_k() -> None:
    index = Measured(1, 50)
    index.before[:] = np.arange(CALIBRATED_K[-1])
    for point in calibrate(index.places_at, 50, some_work, compressed=False).points:
        assert point.parameters.candidates == point.k


def test_a_target_that_no_setting_reaches_has_no_point() -> None:
    index = Measured(1, 20)
    index.before[:, ::10] = CANDIDATES_MAX  # a tenth is beyond all candidates
    reached = {
        (point.k, point.target_recall)
        for point in calibrate(index.places_at, 20, some_work, compressed=True).points
    }
    assert reached == {(k, target) for k in CALIBRATED_K for target in (0.8,)}


def test_an_index_without_other_rows_reaches_everything() -> None:
    nobody = {k: Places(np.zeros(0, np.int64), np.zeros(0), 0.0) for k in CALIBRATED_K}
    points = calibrate(lambda _: nobody, 1, some_work, compressed=True).points
    assert {point.measured_recall for point in points} == {1.0}


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
    assert [nprobes(0.9, k=k) for k in (1, 10, 11, 100, 1_000)] == [[4], [4], [12], [12], [12]]


def test_candidates_grow_with_a_k_beyond_those_that_are_calibrated() -> None:
    settings_of = [POINTS.parameters_for(Effort(), 0.9, k) for k in (100, 150, 1_000)]
    assert settings_of == [
        SearchParameters(12, 300),
        SearchParameters(12, 450),
        SearchParameters(12, 3_000),
    ]


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
        3, CANDIDATES_MAX
    )
