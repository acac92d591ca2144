"""Exact or by the index: a choice that is near the cheaper of both, whatever comes together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vectorshard.shard.index.calibration import (
    CALIBRATED_K,
    RULE,
    TARGETS,
    Calibration,
    CalibrationBasis,
    CalibrationPoint,
    SearchParameters,
)
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.occupancy import Wanted, lists_ranked_first, widths
from vectorshard.shard.rows.id_column import IdColumn
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.search.search_plan import (
    GROWTH_MAX,
    RememberedPlans,
    Scan,
    growth_of,
    plan_of,
    probes_of,
)
from vectorshard.shard.search.snapshot import Snapshot, TrainedIndex
from vectorshard.shard.types import Effort, ExactReason, IdType, IndexKind, Metric

FEW = 350_000.0
NO_EFFORT = Effort()


def trained(
    rows: int, dim: int, nprobe: int, *, wider: int = 1, candidates: int = 2
) -> TrainedIndex:
    """Return an index of random rows, calibrated by hand: so many candidates for each hit, and
    `wider` times nprobe for the last k.
    """
    vectors = np.random.default_rng(0).standard_normal((rows, dim)).astype(np.float32)
    ivf = IvfIndex.train(IndexKind.IVF_PQ, Metric.L2, vectors[:1_000], 20, 7)
    ivf.add(np.arange(rows), vectors)
    points = tuple(
        CalibrationPoint(
            k=k,
            target_recall=target,
            parameters=SearchParameters(
                nprobe * (wider if k == CALIBRATED_K[-1] else 1), candidates * k
            ),
            measured_recall=target,
        )
        for k in CALIBRATED_K
        for target in TARGETS[:-1]
    )
    return TrainedIndex(
        ivf=ivf,
        generation=1,
        calibration=Calibration(points),
        live_when_trained=rows,
        rows_trained_on=rows,
        trained_at=0.0,
        training_s=0.0,
    )


def reason_of(
    index: TrainedIndex | None,
    rows: int,
    dim: int,
    k: int = 10,
    effort: Effort = NO_EFFORT,
    few: float = FEW,
) -> ExactReason | None:
    scan = Scan(living=rows, rows=rows, dim=dim)
    return plan_of(index, effort, 0.95, k, scan, few).reason


def test_every_reason_to_score_all_rows_has_its_name() -> None:
    index = trained(20_000, 32, 1)
    assert reason_of(index, 20_000, 32) is None
    assert reason_of(None, 20_000, 32) is ExactReason.NO_INDEX
    assert reason_of(index, 20_000, 32, effort=Effort(exact=True)) is ExactReason.REQUESTED
    assert reason_of(index, 3_000, 32) is ExactReason.FEW_ROWS
    assert reason_of(index, 3_200, 32) is None
    hard = trained(20_000, 32, 20, candidates=40)
    assert reason_of(hard, 4_000, 32) is ExactReason.CHEAPER
    assert reason_of(hard, 4_000, 32, few=0) is None
    assert reason_of(index, 3_000, 32, few=0) is None
    too_high = Effort(target_recall=0.99)
    assert reason_of(index, 20_000, 32, effort=too_high) is ExactReason.NO_PARAMETERS
    assert reason_of(index, 20_000, 32, k=5_000) is not None


def test_an_nprobe_is_never_answered_by_a_scan() -> None:
    index = trained(20_000, 32, 1)
    scan = Scan(living=100, rows=100, dim=32)
    plan = plan_of(index, Effort(nprobe=3), 0.95, 10, scan, FEW)
    assert plan.parameters is not None
    assert plan.parameters.nprobe == 3
    assert not plan.widens


@pytest.mark.parametrize(("nprobe", "reason"), [(1, None), (20, ExactReason.CHEAPER)])
def test_hard_data_are_scanned_where_easy_data_are_looked_up(
    nprobe: int, reason: ExactReason | None
) -> None:
    index = trained(6_000, 100, nprobe, candidates=2 * nprobe)
    assert reason_of(index, 6_000, 100) is reason


def test_k_counts_as_the_calibrated_k() -> None:
    index = trained(20_000, 32, 2)
    scan = Scan(living=20_000, rows=20_000, dim=32)
    for k in (7, CALIBRATED_K[0]):
        assert plan_of(index, NO_EFFORT, 0.95, k, scan, FEW).k == CALIBRATED_K[0]


def test_few_living_rows_among_many_dead_are_gathered() -> None:
    vectors = np.zeros((900, 4), np.float32)
    snapshot = Snapshot(
        sequence=1,
        vectors=vectors,
        squared_norms=np.zeros(900, np.float32),
        ids=IdColumn(IdType.INT64),
    )
    assert Scan.of(snapshot) == Scan(living=900, rows=900, dim=4)
    most_dead = replace(snapshot, tombstones=Tombstones().with_dead(np.arange(700)))
    assert Scan.of(most_dead) == Scan(living=200, rows=200, dim=4, scattered=True)
    assert Scan.of(most_dead).cost(10) > Scan(living=200, rows=200, dim=4).cost(10)


def exponent_of(index: TrainedIndex, effort: Effort = NO_EFFORT) -> float:
    return growth_of(index, effort, 0.95, CALIBRATED_K[0], SearchParameters(2, 20)).exponent


def test_growth_is_measured_between_the_first_and_the_last_calibrated_k() -> None:
    ratio = CALIBRATED_K[-1] / CALIBRATED_K[0]
    assert exponent_of(trained(2_000, 8, 2)) == 0
    odds = (4 / 17) / (2 / 19)  # of 20 lists
    found = exponent_of(trained(2_000, 8, 2, wider=2))
    assert found == pytest.approx(np.log(odds) / np.log(ratio))
    assert exponent_of(trained(2_000, 8, 2, wider=9)) == GROWTH_MAX
    assert exponent_of(trained(2_000, 8, 2), Effort(target_recall=1.0)) == GROWTH_MAX


def test_growth_knows_what_more_hits_need() -> None:
    index = trained(2_000, 8, 2, wider=3, candidates=4)
    found = growth_of(index, NO_EFFORT, 0.95, 20, SearchParameters(2, 80))
    assert found.more_hits == ((2.5, SearchParameters(2, 200)), (5.0, SearchParameters(6, 400)))
    assert growth_of(index, NO_EFFORT, 0.95, 100, SearchParameters(6, 400)).more_hits == ()


@pytest.mark.parametrize(
    ("k", "share", "lacks"),
    [
        (10, 0.11, 0),
        (10, 0.09, 112),
        (50, 0.5, 0),
        (100, 0.81, 0),
        (100, 0.79, 127),
        (50, 0.4, 125),
    ],
)
def test_many_hits_among_few_living_rows_need_a_calibration_for_more(
    k: int, share: float, lacks: int
) -> None:
    index = trained(60_000, 32, 1)
    index = replace(
        index, calibration=replace(index.calibration, basis=CalibrationBasis(rule=RULE))
    )
    rows = int(60_000 * share)
    scan = Scan(living=rows, rows=60_000, dim=32)
    plan = plan_of(index, NO_EFFORT, 0.95, k, scan, FEW, share)
    assert plan.lacks_k == lacks
    assert plan.reason is (ExactReason.UNCALIBRATED if lacks else None)


def test_few_deletes_widen_a_search_where_a_little_more_than_k_hits_need_many_lists() -> None:
    index = trained(60_000, 32, 1)
    point = CalibrationPoint(
        k=125, target_recall=0.95, parameters=SearchParameters(9, 250), measured_recall=0.95
    )
    points = (*index.calibration.points, point)
    index = replace(index, calibration=Calibration(points, CalibrationBasis(rule=RULE)))
    for k, share, grows in ((100, 1.0, False), (100, 0.92, True), (50, 0.92, False)):
        scan = Scan(living=int(60_000 * share), rows=60_000, dim=32)
        assert plan_of(index, NO_EFFORT, 0.95, k, scan, FEW, share).grows is grows


def test_a_plan_is_remembered_until_something_is_written() -> None:
    index = trained(6_000, 100, 1)
    snapshot = Snapshot(
        sequence=1,
        vectors=np.zeros((6_000, 100), np.float32),
        squared_norms=np.zeros(6_000, np.float32),
        ids=IdColumn(IdType.INT64),
        index=index,
        absorbed_until=6_000,
    )
    plans = RememberedPlans(FEW)
    first = plans.of(snapshot, NO_EFFORT, 0.95, 10)
    assert plans.of(snapshot, NO_EFFORT, 0.95, 10) is first
    assert plans.of(snapshot, Effort(exact=True), 0.95, 10).reason is ExactReason.REQUESTED
    assert plans.of(snapshot, NO_EFFORT, 0.9, 10) is not first
    dead = replace(snapshot, sequence=2, tombstones=Tombstones().with_dead(np.arange(5_900)))
    assert first.reason is None
    assert plans.of(dead, NO_EFFORT, 0.95, 10).reason is ExactReason.FEW_ROWS
    recalibrated = replace(index, calibration=Calibration(()))
    after = plans.of(replace(snapshot, index=recalibrated), NO_EFFORT, 0.95, 10)
    assert after.reason is ExactReason.NO_PARAMETERS


def test_each_query_probes_what_it_would_if_all_lists_were_ranked() -> None:
    """At first only as many are as most queries need; the rest for those that lack some."""
    index = trained(3_000, 8, 2, wider=2)
    ivf = index.ivf
    queries = np.random.default_rng(1).standard_normal((40, 8)).astype(np.float32)
    gone = ivf.nearest_lists(queries[:1], 6).lists[0]
    lists, random = ivf.lists_of_rows(3_000), np.random.default_rng(2)
    dead = np.isin(lists, gone) | (random.random(3_000) < 0.5)
    tombstones = Tombstones().with_dead(np.flatnonzero(dead))
    scan = Scan(living=1_000_000, rows=1_000_000, dim=8)  # never the cheaper
    plan = plan_of(index, NO_EFFORT, 0.95, 10, scan, FEW)
    assert plan.growth is not None
    assert plan.growth.exponent > 0
    chosen = probes_of(index, plan, queries, tombstones)

    occupancy = ivf.occupancy(tombstones)
    wanted = Wanted(at_least=20, calibrated=3_000, growth=plan.growth)
    ranked = ivf.nearest_lists(queries, ivf.nlist).lists
    expected = widths(occupancy, ranked, wanted)
    assert expected.in_hole.any()
    assert not expected.in_hole.all()
    assert expected.lists.max() > lists_ranked_first(occupancy, wanted)
    np.testing.assert_array_equal(chosen.in_hole, expected.in_hole)
    np.testing.assert_array_equal(chosen.widened, expected.widened)
    assert not chosen.exact.any()
    for query, count in enumerate(expected.lists):
        probed = ranked[query, :count]
        probed = probed[occupancy.living[probed] > 0]
        found = chosen.probes.lists[query]
        assert found[found >= 0].tolist() == probed.tolist()
        assert chosen.lists[query] == len(probed)
