"""How many lists by each rule, and the smallest nprobe for each recall."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard.calibration import (
    TARGETS,
    Calibration,
    CalibrationPoint,
    calibrate,
    nlist_for,
    recall,
)
from shard.types import Effort, IndexConfig, NlistRule

POINTS = Calibration(
    tuple(
        CalibrationPoint(target, nprobe, target)
        for target, nprobe in zip(TARGETS, (2, 4, 8, 16), strict=True)
    )
)


@pytest.mark.parametrize(
    ("rule", "rows", "nlist"),
    [
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


@given(st.sampled_from(NlistRule), st.integers(1, 10**8), st.integers(1, 65_536))
def test_there_is_always_a_list_and_never_less_than_39_rows_for_each_of_several(
    rule: NlistRule, rows: int, fixed: int
) -> None:
    nlist = nlist_for(IndexConfig(nlist_rule=rule, nlist=fixed), rows)
    assert nlist >= 1
    assert nlist == 1 or rows >= 39 * nlist


@st.composite
def recall_curves(draw: st.DrawFn) -> list[float]:
    """Draw the recall at nprobe = 1, 2 ... nlist: it never falls."""
    return sorted(draw(st.lists(st.floats(0, 1), min_size=1, max_size=300)))


@given(recall_curves())
def test_the_smallest_nprobe_that_reaches_each_target_is_found(curve: list[float]) -> None:
    nlist = len(curve)
    asked = []

    def recall_at(nprobe: int) -> float:
        assert 1 <= nprobe <= nlist
        asked.append(nprobe)
        return curve[nprobe - 1]

    points = calibrate(recall_at, nlist).points
    assert [point.target_recall for point in points] == list(TARGETS)
    for point in points:
        reaching = [
            nprobe for nprobe in range(1, nlist) if curve[nprobe - 1] >= point.target_recall
        ]
        assert point.nprobe == min(reaching, default=nlist)
        assert point.measured_recall == curve[point.nprobe - 1]
    assert len(asked) == len(set(asked)) <= (len(TARGETS) + 1) * (math.log2(nlist) + 1) + 1


def test_a_target_between_two_that_are_calibrated_takes_the_upper() -> None:
    nprobes = [POINTS.point_for(target, 100).nprobe for target in (0.1, 0.8, 0.81, 0.95, 0.99)]
    assert nprobes == [2, 2, 4, 8, 16]
    assert POINTS.point_for(float(np.float32(0.95)), 100).nprobe == 8


def test_a_target_above_all_that_are_calibrated_probes_every_list() -> None:
    assert POINTS.point_for(0.995, 100) == CalibrationPoint(0.995, 100, 1.0)
    assert POINTS.nprobe_for(Effort(target_recall=1.0), 0.8, 100) == 100


def test_a_searchs_own_nprobe_wins_over_its_target_and_that_over_the_collections() -> None:
    assert POINTS.nprobe_for(Effort(nprobe=7, target_recall=0.99), 0.8, 100) == 7
    assert POINTS.nprobe_for(Effort(nprobe=700), 0.8, 100) == 100
    assert POINTS.nprobe_for(Effort(target_recall=0.95), 0.8, 100) == 8
    assert POINTS.nprobe_for(Effort(), 0.8, 100) == 2


def test_recall_is_the_mean_share_of_the_true_rows_that_were_found() -> None:
    truth = [np.array([1, 2, 3, 4]), np.array([5, 6]), np.array([], dtype=np.int64)]
    found = [np.array([4, 9, 1]), np.array([6, 5]), np.array([1])]
    assert recall(found, truth) == pytest.approx((0.5 + 1.0) / 2)
    assert recall([], []) == 1.0
    assert recall([np.array([3])], [np.array([], dtype=np.int64)]) == 1.0
