"""Downstream shards of the routers under test."""

from __future__ import annotations

import pytest

from tests.router.model_shard import FaultyShard

HITS = [[(3, 0.5), (1, 2.0)], [(30, 0.0), (10, 1.0)], [(200, 0.25), (100, 9.0)]]


@pytest.fixture
def children() -> list[FaultyShard]:
    """Three shards that have the collection and a few hits each."""
    return [FaultyShard(shard, 3, hits=[HITS[shard]]).with_collection() for shard in range(3)]
