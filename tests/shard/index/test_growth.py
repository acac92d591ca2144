"""How far a search goes where fewer rows live, or pass a filter, than at the calibration."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vectorshard.shard.index.calibration import SearchParameters
from vectorshard.shard.index.growth import Growth

NLIST = 100
IN_CLUSTERS = Growth(
    SearchParameters(2, 20),
    more_hits=((2.0, SearchParameters(12, 60)), (10.0, SearchParameters(40, 400))),
)
"""Clusters that hold the ten best rows, and not the twenty best."""


def test_all_rows_need_what_was_calibrated() -> None:
    for growth in (IN_CLUSTERS, Growth(SearchParameters(2, 20), 0.5)):
        assert growth.nprobe(NLIST, 1.0) == pytest.approx(2)
        assert growth.candidates(1.0) == 20


@pytest.mark.parametrize(
    ("share", "nprobe"), [(1 / 1.25, 7), (1 / 1.5, 12), (1 / 2, 12), (1 / 6, 40), (1 / 100, 40)]
)
def test_past_half_of_the_way_to_more_hits_their_lists_are_probed(
    share: float, nprobe: int
) -> None:
    assert IN_CLUSTERS.nprobe(NLIST, share) == pytest.approx(nprobe)
    assert IN_CLUSTERS.nprobe(NLIST, np.array([1.0, share])).tolist() == pytest.approx([2, nprobe])


@pytest.mark.parametrize(("share", "candidates"), [(0.8, 32), (0.5, 30), (0.1, 40), (0.01, 20)])
def test_of_the_candidates_for_more_hits_only_a_share_lives(share: float, candidates: int) -> None:
    assert IN_CLUSTERS.candidates(share) == candidates


def test_few_deletes_need_much_more_where_a_cluster_ends_soon() -> None:
    soon = Growth(SearchParameters(2, 20), more_hits=((1.25, SearchParameters(12, 20)),))
    later = Growth(SearchParameters(2, 20), more_hits=((2.0, SearchParameters(4, 30)),))
    for growth, much in ((soon, [0.9]), (later, [])):
        assert [share for share in (0.998, 0.9) if growth.is_much(NLIST, share)] == much
    re_ranked = Growth(SearchParameters(2, 20), more_hits=((1.25, SearchParameters(2, 60)),))
    assert re_ranked.is_much(NLIST, 0.9)


def test_nprobe_grows_by_the_exponent_where_that_is_more() -> None:
    growth = Growth(SearchParameters(10, 20), 1.0, ((2.0, SearchParameters(11, 20)),))
    odds = 2 * 10 / 91
    assert growth.nprobe(NLIST, 0.5) == pytest.approx(101 * odds / (1 + odds))
    assert growth.nprobe(NLIST, 0.8) > 11


def test_fewer_lists_for_more_hits_are_chance() -> None:
    growth = Growth(SearchParameters(9, 90), more_hits=((2.0, SearchParameters(5, 50)),))
    assert growth.nprobe(NLIST, 0.5) == pytest.approx(9)
    assert growth.candidates(0.5) == 90


@given(
    numbers=st.lists(st.integers(1, 100), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=2, max_size=9),
    exponent=st.floats(0, 0.6),
)
def test_fewer_rows_never_need_fewer_lists_and_hardly_more_than_there_are(
    numbers: list[int], shares: list[float], exponent: float
) -> None:
    first, *more = (SearchParameters(number, number) for number in numbers)
    growth = Growth(first, exponent, tuple((2.0**n, each) for n, each in enumerate(more, 1)))
    lists = growth.nprobe(NLIST, -np.sort(-np.array(shares)))
    assert (np.diff(lists) >= -1e-9).all()
    assert (lists <= NLIST + 1).all()
