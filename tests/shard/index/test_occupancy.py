"""How full lists are as rows come and die, and how many of them a query probes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.shard.samples import some_vectors
from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.index.growth import Growth
from vectorshard.shard.index.ivf_index import IvfIndex
from vectorshard.shard.index.occupancy import Occupancy, Wanted, widths
from vectorshard.shard.rows.tombstones import Tombstones
from vectorshard.shard.types import IndexKind, Int64Array, Metric

NLIST = 8


def occupancy(held: list[int], living: list[int]) -> Occupancy:
    return Occupancy(np.array(held), np.array(living))


def wanted(
    *, nprobe: int = 2, at_least: int = 0, calibrated: int = 10_000, exponent: float = 0.0
) -> Wanted:
    growth = Growth(SearchParameters(nprobe, 10), exponent)
    return Wanted(at_least=at_least, calibrated=calibrated, growth=growth)


def in_order(lists: int = 4) -> Int64Array:
    """Return one query, nearest to the first list."""
    return np.arange(lists)[None]


def truth(ivf: IvfIndex, tombstones: Tombstones, rows: int) -> Int64Array:
    lists = ivf.lists_of_rows(rows)
    there = np.flatnonzero(lists >= 0)
    return np.bincount(lists[there[~tombstones.are_dead(there)]], minlength=NLIST)


def test_living_rows_are_counted_as_rows_come_and_die() -> None:
    vectors, random = some_vectors(600), np.random.default_rng(3)
    ivf = IvfIndex.train(IndexKind.IVF_FLAT, Metric.L2, vectors, NLIST, seed=1)
    ivf.add(np.arange(300), vectors[:300])
    tombstones, rows = Tombstones(), 300
    assert ivf.occupancy(tombstones).held.sum() == 300
    assert ivf.is_even(tombstones)
    alive = random.permutation(600)
    for step in range(1, 7):
        # Some of the dead are not in the index yet: the shard adds them only if it missed that.
        tombstones = tombstones.with_dead(alive[:70])
        alive = alive[70:]
        np.testing.assert_array_equal(
            ivf.occupancy(tombstones).living, truth(ivf, tombstones, rows)
        )
        ivf.add(np.arange(rows, rows + 50), vectors[rows : rows + 50])
        rows += 50
        found = ivf.occupancy(tombstones)
        np.testing.assert_array_equal(found.living, truth(ivf, tombstones, rows))
        assert found.held.sum() == rows == 300 + 50 * step
    reopened = IvfIndex.from_bytes(8, ivf.to_bytes().tobytes())
    np.testing.assert_array_equal(reopened.occupancy(tombstones).living, found.living)
    assert not reopened.is_even(tombstones)


def test_a_tenth_of_dead_rows_and_an_empty_list_make_lists_uneven() -> None:
    assert occupancy([100, 50], [100, 50]).is_even
    assert occupancy([100, 50], [90, 45]).is_even
    assert not occupancy([100, 50], [100, 44]).is_even
    assert not occupancy([100, 0], [100, 0]).is_even


def test_full_lists_are_as_many_as_calibrated() -> None:
    full = occupancy([100] * 4, [100] * 4)
    found = widths(full, in_order(), wanted())
    assert found.lists.tolist() == [2]
    assert not found.widened.any()


@pytest.mark.parametrize(("exponent", "lists"), [(0.0, 2), (0.3, 3), (1.0, 4)])
def test_random_deletes_widen_by_the_growth_of_nprobe(exponent: float, lists: int) -> None:
    halved = occupancy([100] * 8, [50] * 8)
    asked = wanted(exponent=exponent, calibrated=800)
    assert widths(halved, in_order(8), asked).lists.tolist() == [lists]


def test_where_most_lists_are_probed_the_lists_count_and_not_only_their_rows() -> None:
    thinned = occupancy([1_000] * 16 + [5] * 4, [400] * 16 + [2] * 4)
    asked = wanted(nprobe=16, exponent=0.4)
    assert widths(thinned, in_order(20), asked).lists.tolist() == [17]
    untouched = occupancy([1_000] * 16 + [900] * 4, [1_000] * 16 + [300] * 4)
    assert widths(untouched, in_order(20), asked).lists.tolist() == [16]


def test_a_query_in_a_hole_probes_until_it_has_ten_times_its_rows() -> None:
    hole = occupancy([101] * 24, [0, 0] + [101] * 22)
    found = widths(hole, in_order(24), wanted())
    assert found.in_hole.all()
    assert found.lists.tolist() == [21]  # 10 * 202 * 22 / 24 = 1,852 are wanted, 2 lists are empty


@pytest.mark.parametrize(
    ("rows", "left", "in_hole"),
    [
        (10_000, 3_900, True),
        (10_000, 4_200, True),
        (10_000, 4_400, False),
        (100, 36, True),
        (100, 39, False),
    ],
)
def test_long_lists_show_a_shallower_hole_than_short_ones_whose_rows_die_unevenly_by_chance(
    rows: int, left: int, in_hole: bool
) -> None:
    others = [rows] * 1_000, [rows // 2] * 1_000
    lists = occupancy([rows, *others[0]], [left, *others[1]])
    found = widths(lists, np.arange(100)[None], wanted(nprobe=1, calibrated=1_001 * rows))
    assert found.in_hole.tolist() == [in_hole]


def test_lists_that_were_always_empty_are_not_counted() -> None:
    twins = occupancy([0, 0, 100, 100, 100], [0, 0, 100, 100, 100])
    found = widths(twins, in_order(5), wanted(calibrated=300))
    assert found.lists.tolist() == [4]
    assert not found.widened.any()


def test_a_query_has_at_least_so_many_rows_and_never_more_than_there_are() -> None:
    small = occupancy([10] * 8, [10] * 8)
    assert widths(small, in_order(8), wanted(at_least=45)).lists.tolist() == [5]
    assert widths(small, in_order(8), wanted(at_least=1_000)).lists.tolist() == [8]
    assert widths(small, in_order(4), wanted(at_least=45)).lists.tolist() == [-1]


def test_rows_that_replaced_others_elsewhere_do_not_widen() -> None:
    # All rows were replaced once: as many live as at the training, in other lists.
    moved = occupancy([100, 100, 100, 100], [0, 0, 100, 100])
    order = np.array([[2, 3, 0, 1]])
    found = widths(moved, order, wanted(calibrated=200))
    assert found.lists.tolist() == [2]
    assert not found.widened.any()


@pytest.mark.parametrize("nprobe", [1, 6, 20])
def test_a_query_alone_has_the_width_that_it_has_among_others(nprobe: int) -> None:
    random = np.random.default_rng(nprobe)
    seen = set()
    for share in (0.3, 0.7, 0.95):
        held = random.integers(1, 200, size=40)
        living = random.binomial(held, share)
        living[random.random(40) < 0.1] //= 4
        lists = Occupancy(held, living)
        asked = wanted(nprobe=nprobe, at_least=20, calibrated=4_000, exponent=0.4)
        for ranked in (24, 40):
            order = np.array([random.permutation(40)[:ranked] for _ in range(100)])
            together = widths(lists, order, asked)
            for query in range(100):
                alone = widths(lists, order[query : query + 1], asked)
                assert alone.lists[0] == together.lists[query]
                assert alone.widened[0] == together.widened[query]
                assert alone.in_hole[0] == together.in_hole[query]
                seen.add((bool(alone.widened[0]), bool(alone.in_hole[0]), alone.lists[0] < 0))
    assert len(seen) > 2
