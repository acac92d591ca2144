"""Open files are divided among connections and collections before they run out."""

from __future__ import annotations

import resource

import pytest

from vectorshard.shard.runtime.open_files import (
    COLLECTION_FILES,
    SERVER_FILES,
    SHARD_FILES,
    plan_files,
    raise_limit,
)

WANTED = {"connections": 1_024, "collections": 1_000}


@pytest.mark.parametrize("shards", [1, 2, 16])
def test_with_enough_files_everything_is_granted(shards: int) -> None:
    for limit in (1_000_000, -1):  # resource.RLIM_INFINITY
        plan = plan_files(limit, shards=shards, **WANTED)
        assert (plan.connections, plan.collections, plan.too_low) == (1_024, 1_000, "")


@pytest.mark.parametrize("limit", [256, 512, 1_024, 2_000, 4_096, 6_000])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_what_is_granted_fits(limit: int, shards: int) -> None:
    plan = plan_files(limit, shards=shards, **WANTED)
    used = SERVER_FILES + shards * SHARD_FILES + plan.connections
    used += shards * plan.collections * COLLECTION_FILES
    assert used <= limit
    assert plan.can_serve
    rest = limit - SERVER_FILES - shards * SHARD_FILES
    assert plan.connections >= min(1_024, rest // 2)
    assert f"the limit of open files, {limit}," in plan.too_low
    assert "ulimit -Hn" in plan.too_low


def test_a_router_gives_all_files_to_connections() -> None:
    plan = plan_files(1_024, shards=2, connections=1_024, collections=0)
    assert plan.connections == 1_024 - SERVER_FILES - 2 * SHARD_FILES
    assert plan.too_low


def test_no_server_starts_with_hardly_any_files() -> None:
    assert not plan_files(SERVER_FILES, shards=1, **WANTED).can_serve


def test_the_limit_is_raised_as_far_as_the_system_allows() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
