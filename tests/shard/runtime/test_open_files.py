"""Open files are divided among connections and stores before they run out."""

from __future__ import annotations

import resource
from dataclasses import replace

import pytest

from vectorshard.shard.runtime.open_files import (
    COLLECTION_MAPS,
    SERVER_FILES,
    SERVER_MAPS,
    SHARD_FILES,
    STORE_FILES,
    FilePlan,
    Wanted,
    map_limit,
    plan_files,
    raise_limit,
)

ONE = Wanted(shards=1, connections=1_024, stores=256, collections=1_000)
ALL = FilePlan(connections=1_024, stores=256, collections=1_000)


@pytest.mark.parametrize("limit", [4_096, 1_000_000, -1])  # resource.RLIM_INFINITY
def test_with_enough_files_everything_is_granted(limit: int) -> None:
    assert plan_files(limit, 65_530, ONE) == ALL
    assert plan_files(limit, None, ONE) == ALL
    if limit != 4_096:
        assert plan_files(limit, 65_530, replace(ONE, shards=16)) == ALL


@pytest.mark.parametrize("limit", [300, 512, 1_024, 2_000, 3_000])
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_what_is_granted_fits(limit: int, shards: int) -> None:
    plan = plan_files(limit, 65_530, replace(ONE, shards=shards))
    rest = limit - SERVER_FILES - shards * SHARD_FILES
    assert plan.connections + plan.stores * STORE_FILES <= rest
    assert plan.can_serve
    assert plan.connections >= min(1_024, rest // 2)
    assert plan.collections == 1_000
    assert f"the limit of open files, {limit}," in plan.too_low
    assert "ulimit -Hn" in plan.too_low


def test_a_router_gives_all_files_to_connections() -> None:
    plan = plan_files(1_024, 65_530, Wanted(shards=2, connections=1_024))
    assert plan.connections == 1_024 - SERVER_FILES - 2 * SHARD_FILES
    assert plan.can_serve
    assert "stores" not in plan.too_low


def test_no_server_starts_with_hardly_any_files() -> None:
    assert not plan_files(SERVER_FILES, 65_530, ONE).can_serve
    assert not plan_files(SERVER_FILES + SHARD_FILES + 20, 65_530, ONE).can_serve


def test_fewer_collections_are_taken_than_there_may_be_maps_of() -> None:
    plan = plan_files(1_000_000, 65_530, replace(ONE, shards=64))
    assert plan.collections == (65_530 - SERVER_MAPS) // (64 * COLLECTION_MAPS)
    assert "vm.max_map_count" in plan.too_low
    assert plan.can_serve


def test_the_limits_are_those_of_this_process() -> None:
    assert (map_limit() or 1) > 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        assert raise_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
