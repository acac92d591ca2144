"""IVF_PQ is built where its codes find all rows, and another kind elsewhere."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.shard.samples import config_of
from vectorshard.shard.index.index_kind import PQ_DIM_MIN, kinds_to_try
from vectorshard.shard.types import IndexKind, Metric

FLAT, SQ8, PQ = IndexKind.IVF_FLAT, IndexKind.IVF_SQ8, IndexKind.IVF_PQ


def first(metric: Metric, dim: int, rows: int, kind: IndexKind = PQ) -> IndexKind:
    """Return the kind that is tried first, with 1,000 rows as the least for IVF_PQ."""
    return kinds_to_try(config_of(metric=metric, dim=dim, kind=kind), rows, 1_000)[0]


@pytest.mark.parametrize("metric", list(Metric))
def test_fewer_rows_than_the_minimum_get_whole_vectors_under_any_metric(metric: Metric) -> None:
    assert first(metric, 100, 1) is FLAT
    assert first(metric, 100, 999) is FLAT
    assert first(metric, 100, 1_000) is PQ


def test_inner_products_of_few_dimensions_get_no_codes_and_l2_does() -> None:
    assert PQ_DIM_MIN == 8
    for metric in (Metric.COSINE, Metric.INNER_PRODUCT):
        assert first(metric, 7, 50_000) is FLAT
        assert first(metric, 8, 50_000) is PQ
    assert first(Metric.L2, 1, 50_000) is PQ


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", [FLAT, SQ8])
def test_other_kinds_are_built_as_configured(metric: Metric, kind: IndexKind) -> None:
    assert first(metric, 2, 1, kind) is kind


def test_kinds_follow_each_other_from_small_codes_to_whole_vectors() -> None:
    config = config_of(dim=100, kind=PQ)
    assert kinds_to_try(config, 5_000, 1_000) == (PQ, SQ8, FLAT)
    assert kinds_to_try(config, 500, 1_000) == (FLAT,)
    of_kind = {
        kind: kinds_to_try(replace(config, index=replace(config.index, kind=kind)), 5_000, 1_000)
        for kind in (SQ8, FLAT)
    }
    assert of_kind == {SQ8: (SQ8, FLAT), FLAT: (FLAT,)}
