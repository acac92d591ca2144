"""Every slot has one owner, every id one child."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import int64s, strings
from vectorshard.router.fan_out.placement import Placement, slots_of_shard
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.descriptions import ShardPlacement, Topology
from vectorshard.shard.errors import PlacementMismatch, ShardUnavailable
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import Role


def placed(shard: int, first: int, last: int, of: int = 2) -> Topology:
    """Return what a leaf shard says that owns the slots from `first` to `last`."""
    return replace(
        topology_of(0, of=of), shards=(ShardPlacement(shard=shard, slots=((first, last),)),)
    )


def topology_of(*shards: int, of: int = 4, cluster: str = "cluster", epoch: int = 1) -> Topology:
    """Return what a child says that reaches some of the `of` leaf shards."""
    return Topology(
        role=Role.SHARD if len(shards) == 1 else Role.ROUTER,
        cluster=cluster,
        placement_epoch=epoch,
        shards_total=of,
        shards=tuple(
            ShardPlacement(shard=shard, slots=slots_of_shard(shard, of)) for shard in shards
        ),
    )


@given(st.integers(1, 200))
def test_shards_share_the_slots_evenly_and_without_a_gap(shards_total: int) -> None:
    ranges = [slots_of_shard(shard, shards_total) for shard in range(shards_total)]
    assert all(len(each) == 1 for each in ranges)
    bounds = [each[0] for each in ranges]
    assert bounds[0][0] == 0
    assert bounds[-1][1] == SLOTS_TOTAL - 1
    assert all(before[1] + 1 == after[0] for before, after in pairwise(bounds))
    sizes = [last - first + 1 for first, last in bounds]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=60))
def test_every_id_goes_to_the_child_that_owns_its_slot_and_to_no_other(numbers: list[int]) -> None:
    children = [topology_of(0, 3), topology_of(1), topology_of(2)]
    placement = Placement(children)
    ids = np.array(numbers, dtype=np.int64)
    seen = np.zeros(len(ids), dtype=int)
    for child, indices in placement.split(ids):
        assert len(indices) > 0
        assert (np.diff(indices) > 0).all()
        seen[indices] += 1
        owned = [bounds for shard in children[child].shards for bounds in shard.slots]
        for slot in slots_of(ids[indices]).tolist():
            assert any(first <= slot <= last for first, last in owned)
    assert (seen == 1).all()


def test_children_are_yielded_once_each_in_order() -> None:
    placement = Placement([topology_of(0, of=2), topology_of(1, of=2)])
    assert [child for child, _ in placement.split(np.arange(100))] == [0, 1]
    assert list(placement.split(int64s())) == []
    assert list(placement.split(strings())) == []


def test_leaf_shards_are_known_by_number_through_whichever_child() -> None:
    placement = Placement([topology_of(2, 0), topology_of(3, 1)])
    assert [shard.shard for shard in placement.shards] == [0, 1, 2, 3]
    assert [placement.child_of_shard(shard) for shard in (0, 1, 2, 3, 4)] == [0, 1, 0, 1, None]
    assert placement.slots_of_child.tolist() == [SLOTS_TOTAL // 2] * 2


def test_an_id_of_a_slot_that_nobody_owns_has_no_shard() -> None:
    placement = Placement([topology_of(0, of=2), None])
    with pytest.raises(ShardUnavailable, match=r"no known shard owns slot \d+"):
        list(placement.split(np.arange(100)))


@pytest.mark.parametrize(
    ("children", "words"),
    [
        ([topology_of(0), topology_of(0)], "shard 0 is reached through two downstream shards"),
        ([topology_of(0, of=2), topology_of(1, of=4)], "of 4 shards, downstream shard 0 .* of 2"),
        ([topology_of(0), topology_of(1, cluster="other")], "cluster other"),
        ([topology_of(0), topology_of(1, epoch=2)], "epoch 2"),
        ([topology_of(0), None, topology_of(1, cluster="other"), None], "cluster other"),
        (
            [topology_of(0, 1), topology_of(1, 2)],
            "shard 1 is reached through two downstream shards",
        ),
        ([placed(0, 0, 10), placed(1, 10, 20)], "slots 10 to 20 have two owners"),
        ([placed(0, 0, 10), placed(1, 5, 6)], "slots 5 to 6 have two owners"),
    ],
)
def test_children_that_contradict_each_other_are_refused(
    children: list[Topology], words: str
) -> None:
    with pytest.raises(PlacementMismatch, match=words):
        Placement(children)


@pytest.mark.parametrize("topology", [placed(0, 7, 6), placed(0, 0, SLOTS_TOTAL), placed(2, 0, 6)])
@pytest.mark.parametrize("partial", [False, True])
def test_a_child_that_tells_of_what_cannot_be_is_refused(topology: Topology, partial: bool) -> None:
    with pytest.raises(PlacementMismatch, match=r"(is|are) not (a range with)?in"):
        Placement([topology], partial=partial)


# ---- leaf shards: all, and in order -------------------------------------------------------------

Told = Sequence[Topology | None]


@pytest.mark.parametrize(
    "children",
    [
        [topology_of(1), topology_of(0), topology_of(2), topology_of(3)],
        [topology_of(0), topology_of(2), topology_of(1), topology_of(3)],
        [topology_of(1), None, None, topology_of(0)],
        [None, topology_of(2), topology_of(1), None],
    ],
)
@pytest.mark.parametrize("partial", [False, True])
def test_leaf_shards_in_another_order_than_their_numbers_are_refused(
    children: Told, partial: bool
) -> None:
    with pytest.raises(PlacementMismatch, match="in the order of their numbers"):
        Placement(children, partial=partial)


@pytest.mark.parametrize(
    ("children", "words"),
    [
        ([topology_of(0), topology_of(1), topology_of(2)], "no downstream shard is shard 3 of 4"),
        ([topology_of(0), topology_of(3)], "no downstream shard is shard 1, 2 of 4"),
        ([topology_of(0, of=1), None], "2 downstream shards, but 1 shard in"),
        ([topology_of(0, of=2), topology_of(1, of=2), None], "3 downstream shards, but 2 shards"),
        # Of four children the second is shard 1, and nothing else, whatever the others will say.
        ([None, topology_of(2), None, None], "downstream shard 1 of 4 is shard 2 of 4"),
        ([None, topology_of(0), None, None], "downstream shard 1 of 4 is shard 0 of 4"),
        ([None, None, None, topology_of(2)], "downstream shard 3 of 4 is shard 2 of 4"),
    ],
)
def test_leaf_shards_that_cannot_be_all_are_refused_unless_they_need_not_be(
    children: Told, words: str
) -> None:
    with pytest.raises(PlacementMismatch, match=words):
        Placement(children)


def test_shards_may_stand_beside_routers_in_any_order() -> None:
    placement = Placement([topology_of(3), topology_of(0, 1, 2)])
    assert [placement.child_of_shard(shard) for shard in range(4)] == [1, 1, 1, 0]
    assert Placement([None, topology_of(0)]).missing_shards == [1, 2, 3]


def test_a_part_of_the_placement_is_enough_for_a_router_below_another() -> None:
    placement = Placement([topology_of(1), topology_of(3)], partial=True)
    assert placement.slots_of_child.tolist() == [1_024, 1_024]
    assert placement.slots_total == 2_048, "its answers are held to what it leads to"
    assert placement.missing_shards == [0, 2]
    assert placement.shards_total == 4


@pytest.mark.parametrize(
    "children",
    [
        [None, None, None, None],
        [None, topology_of(1), None, None],
        [topology_of(0), None, topology_of(2), None],
        [None, None, None, topology_of(3)],
        [None, topology_of(2)],  # with a router before it
        [topology_of(0), None],  # with one behind it
        [topology_of(2, 3), topology_of(0, 1)],  # routers stand in any order
        [topology_of(0, 2), topology_of(3)],  # the router will tell of shard 1 too
        [replace(topology_of(), shards=()), topology_of(3)],  # it tells of nothing as yet
    ],
)
def test_children_that_may_still_turn_out_to_be_all_are_accepted(children: Told) -> None:
    Placement(children)


def test_what_no_known_child_leads_to_is_missing_and_counts_all_the_same() -> None:
    placement = Placement([topology_of(0, cluster="c", epoch=5), None, None, None])
    assert (placement.cluster, placement.epoch, placement.shards_total) == ("c", 5, 4)
    assert placement.missing_shards == [1, 2, 3]
    assert placement.slots_total == SLOTS_TOTAL
    assert placement.slots_of_child.tolist() == [1_024, 0, 0, 0]
    assert [placement.shards_of_child(child) for child in (0, 1)] == [[0], []]


def test_as_long_as_nobody_tells_nothing_is_known() -> None:
    placement = Placement([None, None])
    assert (placement.shards_total, placement.shards, placement.missing_shards) == (0, (), [])
    assert list(placement.split(int64s())) == []
    with pytest.raises(ShardUnavailable):
        list(placement.split(int64s(1)))


def test_nothing_is_yielded_when_one_of_many_ids_has_no_owner() -> None:
    placement = Placement([topology_of(0, of=2), None])
    with pytest.raises(ShardUnavailable):
        next(placement.split(np.arange(100)))


def test_shards_are_placed_as_they_say_and_not_as_their_number_would_have_it() -> None:
    placement = Placement([placed(0, 4_000, 4_095), placed(1, 0, 3_999)])
    ids = np.arange(500)
    owner = {id_: child for child, at in placement.split(ids) for id_ in ids[at].tolist()}
    expected = [0 if slot >= 4_000 else 1 for slot in slots_of(ids).tolist()]
    assert [owner[id_] for id_ in ids.tolist()] == expected
