"""Added rows that lie farther from the centroids raise an alarm, and rows like the others none."""

from __future__ import annotations

import numpy as np
import pytest

from tests.shard.samples import some_vectors
from vectorshard.shard.index.drift import (
    ADDED_SHARE_CHECKED,
    DRIFT_ALARM,
    DRIFT_ROWS_MIN,
    RATIO_MAX,
    WINDOW_ROWS,
    Drift,
)
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.types import Float32Array, IndexKind, Metric


def distances(rows: int, mean: float) -> Float32Array:
    """Return the same distance for some rows."""
    return np.full(rows, mean, np.float32)


def drift_of(ratio: float, rows: int = DRIFT_ROWS_MIN) -> Drift:
    """Return the drift after rows of one distance."""
    return Drift(base=2.0).with_distances(distances(rows, 2.0 * ratio))


def test_the_ratio_is_that_of_the_mean_distances() -> None:
    drift = Drift(base=2.0).with_distances(distances(150, 2.0)).with_distances(distances(50, 4.0))
    assert drift.ratio == pytest.approx(1.25)


def test_few_rows_and_an_unknown_base_give_no_ratio() -> None:
    assert drift_of(3.0, DRIFT_ROWS_MIN - 1).ratio == 0.0
    assert Drift().with_distances(distances(1_000, 3.0)).ratio == 0.0
    assert not Drift().with_distances(distances(1_000, 3.0)).alarm(1_000, 10_000)


def test_rows_beside_equal_rows_have_the_largest_ratio() -> None:
    equal = Drift(base=0.0)
    assert equal.with_distances(distances(100, 0.1)).ratio == RATIO_MAX
    assert equal.with_distances(distances(100, 0.0)).ratio == 1.0


def test_the_alarm_needs_the_ratio_and_rows_in_proportion_to_those_trained() -> None:
    assert drift_of(DRIFT_ALARM + 0.01).alarm(added=100, rows_trained=1_000)
    assert not drift_of(DRIFT_ALARM - 0.01).alarm(added=100, rows_trained=1_000)
    assert not drift_of(2.0).alarm(added=99, rows_trained=1_000)
    assert not drift_of(2.0).alarm(added=1_999, rows_trained=100_000)
    assert drift_of(2.0).alarm(added=2_000, rows_trained=100_000)


def test_drift_that_begins_late_is_not_diluted_by_all_rows_before_it() -> None:
    drift = Drift(base=1.0)
    for _ in range(1_000):
        drift = drift.with_distances(distances(32, 1.0))
    assert not drift.alarm(32_000, 320_000)
    for _ in range(2 * WINDOW_ROWS // 32):
        drift = drift.with_distances(distances(32, 2.0))
    assert drift.alarm(33_000, 320_000)


def test_after_a_harmless_alarm_the_next_needs_new_rows_and_growth_or_a_higher_ratio() -> None:
    harmless = drift_of(1.5).found_harmless(added=1_000)
    assert harmless.ratio == 0.0
    again = harmless.with_distances(distances(200, 3.0))  # the same ratio
    assert not again.alarm(1_200, 5_000)
    assert not again.alarm(1_499, 5_000)
    assert again.alarm(1_500, 5_000)
    risen = harmless.with_distances(distances(200, 3.4))
    assert not risen.alarm(1_099, 5_000)
    assert risen.alarm(1_100, 5_000)


def test_many_added_rows_raise_an_alarm_at_any_ratio_and_each_next_one_needs_growth() -> None:
    many = int(ADDED_SHARE_CHECKED * 4_000)
    same = drift_of(1.0)
    assert not same.alarm(many - 1, 4_000)
    assert same.alarm(many, 4_000)
    assert Drift().alarm(many, 4_000)  # nor does it need a base
    harmless = same.found_harmless(added=many)
    assert not harmless.alarm(many * 3 // 2 - 1, 4_000)
    assert harmless.alarm(many * 3 // 2, 4_000)
    assert not same.found_harmful().alarm(4_000, 4_000)


def test_harmful_drift_asks_for_no_further_measurement() -> None:
    harmful = drift_of(3.0).found_harmful()
    assert harmful.harmful
    assert not harmful.with_distances(distances(500, 9.0)).alarm(5_000, 5_000)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", list(IndexKind))
def test_the_distance_to_a_centroid_is_that_of_l2_under_any_metric(
    kind: IndexKind, metric: Metric
) -> None:
    sample = some_vectors(400, 9) + np.float32(1)
    index = IvfIndex.train(kind, metric, sample, 1, seed=1)
    centroid = sample.mean(axis=0)
    if metric is not Metric.L2:  # FAISS keeps unit centroids for inner products
        centroid /= np.linalg.norm(centroid)
    added = some_vectors(50, 9, seed=2)
    expected = np.linalg.norm(added - centroid, axis=1)
    np.testing.assert_allclose(index.centroid_distances(added), expected, rtol=1e-4)
    assert index.centroid_distances(added[:0]).shape == (0,)


def test_rows_of_another_model_have_a_far_higher_ratio_than_rows_of_the_same() -> None:
    random = np.random.default_rng(3)
    centers, others = random.normal(size=(2, 20, 16)) * 3

    def rows_of(model: Float32Array, rows: int) -> Float32Array:
        chosen = model[random.integers(len(model), size=rows)]
        return (chosen + 0.5 * random.normal(size=(rows, 16))).astype(np.float32)

    index = IvfIndex.train(IndexKind.IVF_PQ, Metric.L2, rows_of(centers, 2_000), 40, seed=1)
    base = float(index.centroid_distances(rows_of(centers, 500)).mean())
    same = Drift(base=base).with_distances(index.centroid_distances(rows_of(centers, 300)))
    another = Drift(base=base).with_distances(index.centroid_distances(rows_of(others, 300)))
    assert 0.9 < same.ratio < 1.1
    assert another.ratio > 3
