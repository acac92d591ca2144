"""Two topologies have one fingerprint if and only if they reach the same shards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vectorshard.shard.descriptions import ShardPlacement, Topology
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.types import Role

SHARDS = (
    ShardPlacement(shard=0, slots=((0, 99),)),
    ShardPlacement(shard=1, slots=((100, 199), (300, 4_095))),
)
TOPOLOGY = Topology(
    role=Role.ROUTER, cluster="c1", placement_epoch=1, shards_total=3, shards=SHARDS
)


@pytest.mark.parametrize(
    "other",
    [
        replace(TOPOLOGY, cluster="c2"),
        replace(TOPOLOGY, placement_epoch=2),
        replace(TOPOLOGY, shards_total=4),
        replace(TOPOLOGY, shards=SHARDS[:1]),
        replace(TOPOLOGY, shards=()),
        replace(TOPOLOGY, shards=(SHARDS[0], replace(SHARDS[1], shard=2))),
        replace(TOPOLOGY, shards=(SHARDS[0], replace(SHARDS[1], slots=((100, 199),)))),
        replace(TOPOLOGY, shards=(SHARDS[0], replace(SHARDS[1], slots=((100, 199), (300, 4_094))))),
        replace(
            TOPOLOGY,
            shards=(
                replace(SHARDS[0], slots=SHARDS[1].slots),
                replace(SHARDS[1], slots=((0, 99),)),
            ),
        ),
    ],
)
def test_other_shards_have_another_fingerprint(other: Topology) -> None:
    assert fingerprint_of(other) != fingerprint_of(TOPOLOGY)


def test_the_way_to_the_shards_and_their_order_do_not_matter() -> None:
    fingerprint = fingerprint_of(TOPOLOGY)
    for role in Role:
        assert fingerprint_of(replace(TOPOLOGY, role=role)) == fingerprint
    assert fingerprint_of(replace(TOPOLOGY, shards=SHARDS[::-1])) == fingerprint


def test_a_shard_that_was_started_again_has_another_fingerprint_but_not_for_old_routers() -> None:
    def opened(*sessions: str) -> Topology:
        shards = zip(SHARDS, sessions, strict=True)
        return replace(TOPOLOGY, shards=tuple(replace(shard, session=at) for shard, at in shards))

    openings = [opened(*each) for each in (("", ""), ("a", "b"), ("b", "a"), ("a", ""), ("", "a"))]
    assert len({fingerprint_of(each) for each in openings}) == len(openings)
    without = {fingerprint_of(each, with_sessions=False) for each in openings}
    assert without == {fingerprint_of(TOPOLOGY)}


def test_a_fingerprint_is_the_same_in_every_process_and_fits_a_header() -> None:
    assert fingerprint_of(TOPOLOGY) == "978ca804212c7f61"
