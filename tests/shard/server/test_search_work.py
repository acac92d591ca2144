"""The work of a search: what it scans, and what the next of its kind is expected to scan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vectorshard.shard.filters import Exists
from vectorshard.shard.server.search_work import (
    QUERY_WORK,
    SEARCH_WORK,
    ExpectedWork,
    scan_work,
)
from vectorshard.shard.types import Effort, Receipt, SearchRequest, ShardReceipt

DIM = 100


def searching(queries: int = 1, k: int = 10, **how: object) -> SearchRequest:
    """Return a search of zeros."""
    zeros = np.zeros((queries, DIM), dtype=np.float32)
    return replace(SearchRequest(collection="words", queries=zeros, k=k), **how)  # type: ignore[arg-type]


def receipt(**shard: Any) -> Receipt:
    """Return the receipt of one shard."""
    return Receipt(shards=(replace(ShardReceipt(shard=0), **shard),), coverage=1.0)


PROBED = receipt(rows_visible=300_000, nlist=500, nprobe=40, candidates=180)
EXACT = receipt(rows_visible=300_000, rows_exact=300_000)


def test_a_scan_is_as_much_work_as_it_has_rows_lists_candidates_and_shards() -> None:
    probed = scan_work(PROBED, DIM)
    assert scan_work(EXACT, DIM) == pytest.approx(1_056)
    assert probed == pytest.approx(24_000 * 85 * 2.2e-5 + 21.6)
    assert scan_work(EXACT, 2 * DIM) > 1.5 * scan_work(EXACT, DIM)
    for more in (
        receipt(rows_visible=300_000, nlist=500, nprobe=80, candidates=180),
        receipt(rows_visible=300_000, nlist=500, nprobe=40, candidates=500),
        receipt(rows_visible=310_000, rows_exact=10_000, nlist=500, nprobe=40, candidates=180),
    ):
        assert scan_work(more, DIM) > probed + 10
    both = Receipt(shards=(*PROBED.shards, *PROBED.shards), coverage=1.0)
    assert scan_work(both, DIM) == 2 * probed


@pytest.mark.parametrize(
    ("dim", "nprobe", "candidates", "ratio"),
    [(8, 14, 110, 0.85), (100, 74, 116, 0.86), (768, 43, 40, 0.22)],
)
def test_a_search_of_the_index_is_as_much_work_relative_to_a_scan_as_it_takes_time(
    dim: int, nprobe: int, candidates: int, ratio: float
) -> None:
    # Measured: CPU of the search parameters for .95 and of an exact scan, 10,000 rows, k = 10.
    probed = receipt(rows_visible=10_000, nlist=100, nprobe=nprobe, candidates=candidates)
    exact = receipt(rows_visible=10_000, rows_exact=10_000)
    assert ratio / 1.6 < scan_work(probed, dim) / scan_work(exact, dim) < ratio * 1.6


def test_more_lists_than_there_are_scan_no_row_twice() -> None:
    beyond = receipt(rows_visible=1_000, nlist=10, nprobe=65_536)
    assert scan_work(beyond, DIM) == scan_work(
        receipt(rows_visible=1_000, nlist=10, nprobe=10), DIM
    )


def test_a_shard_that_is_missing_did_nothing() -> None:
    assert scan_work(receipt(), DIM) == 0.0


def test_a_search_is_expected_to_scan_what_the_last_of_its_kind_did_for_each_query() -> None:
    expected = ExpectedWork()
    done = expected.learn(searching(3), PROBED)
    query_work = QUERY_WORK + scan_work(PROBED, DIM)
    assert done == SEARCH_WORK + 3 * query_work
    assert expected.of(searching(1_000)) == SEARCH_WORK + 1_000 * query_work
    expected.learn(searching(), EXACT)
    assert expected.of(searching(3)) == SEARCH_WORK + 3 * (QUERY_WORK + scan_work(EXACT, DIM))


@pytest.mark.parametrize(
    "other",
    [
        searching(collection="others"),
        searching(k=500),
        searching(effort=Effort(exact=True)),
        searching(effort=Effort(nprobe=3)),
        searching(filter=Exists("lang")),
    ],
    ids=["collection", "k", "exact", "nprobe", "filter"],
)
def test_kinds_of_searches_are_kept_apart(other: SearchRequest) -> None:
    expected = ExpectedWork()
    expected.learn(searching(), PROBED)
    before = expected.of(searching())
    expected.learn(other, EXACT)
    assert expected.of(searching()) == before
    assert expected.of(other) > before + 500


def test_an_unknown_kind_is_expected_to_take_what_searches_took_of_late() -> None:
    expected = ExpectedWork()
    assert expected.of(searching(7)) == SEARCH_WORK + 7 * QUERY_WORK
    for _ in range(200):
        expected.learn(searching(), EXACT)
    query_work = QUERY_WORK + scan_work(EXACT, DIM)
    assert expected.of(searching(7, k=500)) == pytest.approx(SEARCH_WORK + 7 * query_work)
    assert expected.typical == pytest.approx(SEARCH_WORK + query_work)


def test_a_client_that_varies_its_searches_takes_no_more_memory() -> None:
    expected = ExpectedWork()
    for nprobe in range(1, 2_000):
        expected.learn(searching(effort=Effort(nprobe=nprobe)), PROBED)
        expected.learn(searching(), PROBED)
    assert len(expected._query_work) <= 256
    expected.learn(searching(effort=Effort(nprobe=1)), EXACT)
    assert expected.of(searching()) == SEARCH_WORK + QUERY_WORK + scan_work(PROBED, DIM)


def test_the_work_of_a_batch_is_that_of_its_queries() -> None:
    shard = replace(PROBED.shards[0], queries_exact=2)
    mixed = scan_work(replace(PROBED, shards=(shard,)), DIM, queries=4)
    exact = ShardReceipt(shard=0, rows_visible=shard.rows_visible, rows_exact=shard.rows_visible)
    of_exact = scan_work(replace(PROBED, shards=(exact,)), DIM)
    assert mixed == pytest.approx((of_exact + scan_work(PROBED, DIM)) / 2)
    wide = replace(PROBED.shards[0], nprobe=100 * shard.nprobe, nprobe_mean=float(shard.nprobe))
    assert scan_work(replace(PROBED, shards=(wide,)), DIM) == scan_work(PROBED, DIM)
