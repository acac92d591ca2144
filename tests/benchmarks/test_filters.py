"""The measurement of filters: what its filters keep, and what its table says."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.filters import FILTERS, REGIONS, UNFILTERED, places_by_region, row_of
from benchmarks.timing import Samples
from benchmarks.vectors import clustered
from vectorshard import Hits
from vectorshard.client.filter_text import filter_from_text
from vectorshard.shard.filters import Range
from vectorshard.shard.types import FilterPlan, Receipt, ShardReceipt


def test_every_filter_keeps_the_part_that_its_name_says() -> None:
    places = places_by_region(clustered(2_000, 16))
    assert sorted(places.tolist()) == [row / 2_000 for row in range(2_000)]
    for name, text in FILTERS.items():
        filter_ = filter_from_text(text)
        assert isinstance(filter_, Range)
        assert filter_.lt is not None
        kept = np.count_nonzero(places < filter_.lt) / len(places)
        assert name.endswith(f"{kept:.0%}")


def test_a_region_is_kept_whole_before_the_next_begins() -> None:
    vectors = clustered(2_000, 16)
    first = vectors[places_by_region(vectors) < 10 / REGIONS]
    unit = first / np.linalg.norm(first, axis=1, keepdims=True)
    everything = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert np.linalg.norm(unit.mean(axis=0)) > 2 * np.linalg.norm(everything.mean(axis=0))


@pytest.mark.parametrize(
    ("receipt", "cells"),
    [
        (ShardReceipt(shard=0, nprobe=7), ("all", "-", 7)),
        (
            ShardReceipt(shard=0, rows_passing=9, filter_plan=FilterPlan.EXACT),
            (9, "EXACT", "-"),
        ),
    ],
)
def test_a_row_tells_what_passes_and_the_way_taken(
    receipt: ShardReceipt, cells: tuple[object, ...]
) -> None:
    hits = Hits(
        counts=np.zeros(0, np.uint32),
        ids=np.zeros(0, np.int64),
        scores=np.zeros(0, np.float32),
        receipt=Receipt(shards=(receipt,), coverage=1.0),
    )
    seconds = {f"{name}, {n}": [0.002, 0.002] for name in (UNFILTERED, "x") for n in (1, 64)}
    seconds["x, 1"] = [0.001, 0.001]
    row = row_of("x", 0.97, hits, Samples(seconds))
    assert row[1:4] == cells
    assert row[4:] == pytest.approx((0.97, 1.0, 0.5, 2.0, 1.0, 2))
