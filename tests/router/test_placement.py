"""Every slot has one owner, every id one child."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.placement import Placement, slots_of_shard
from shard.config import SLOTS_TOTAL
from shard.errors import PlacementMismatch, ShardUnavailable
from shard.slots import slots_of
from shard.types import Role, ShardPlacement, Topology
from tests.shard.samples import int64s, strings


def topology_of(*shards: int, of: int = 4, cluster: str = "cluster", epoch: int = 1) -> Topology:
    """Return what a child says that reaches some of the `of` leaf shards."""
    return Topology(
        role=Role.SHARD,
        cluster=cluster,
        placement_epoch=epoch,
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
    children = [topology_of(2), topology_of(0, 3), topology_of(1)]
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
    placement = Placement([topology_of(0, of=2)])
    with pytest.raises(ShardUnavailable, match=r"no shard is known that owns slot \d+"):
        list(placement.split(np.arange(100)))


@pytest.mark.parametrize(
    ("children", "words"),
    [
        ([topology_of(0), topology_of(0)], "shard 0 is reached through two children"),
        ([topology_of(0, of=2), topology_of(1, of=4)], "have two owners"),
        ([topology_of(0), topology_of(1, cluster="other")], "cluster other"),
        ([topology_of(0), topology_of(1, epoch=2)], "epoch 2"),
    ],
)
def test_children_that_contradict_each_other_are_refused(
    children: list[Topology], words: str
) -> None:
    with pytest.raises(PlacementMismatch, match=words):
        Placement(children)
