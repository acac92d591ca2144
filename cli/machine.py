"""What a server that starts may take of its machine: open files, and room on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import structlog

from vectorshard.shard.config import EngineConfig, Limits, ScrubConfig
from vectorshard.shard.errors import LimitsTooLow
from vectorshard.shard.runtime.faults import ended_by_failed_read
from vectorshard.shard.runtime.open_files import (
    FilePlan,
    Wanted,
    map_limit,
    plan_files,
    raise_limit,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.open_stores import OPEN_STORES, OpenStores

_log = structlog.get_logger(__name__)


def machine_for(
    engine: EngineConfig,
    *,
    data: Path,
    shards: int,
    reserve_mb: int | None = None,
    scrub: ScrubConfig | None = None,
) -> tuple[Disk, EngineConfig]:
    """Return the disk and the configuration of `shards` shards in this process.

    Both are within what the machine allows; the limit of open files is raised as far as it can be.
    The shards divide what `scrub`, or else its default, may take of a core and of the disk.
    `reserve_mb` is the free space that writes leave; None stands for the default, which small disks
    have less of. If a failed read ended the last process below `data`, all vectors are read at the
    start.

    Raises LimitsTooLow if too few files may be open for any server.
    """
    limits = engine.limits
    wanted = Wanted(
        shards=shards,
        connections=limits.connections,
        stores=OPEN_STORES,
        collections=limits.collections,
    )
    plan = _planned(wanted)
    machine = replace(engine.machine, collections_max=plan.collections, limit_too_low=plan.too_low)
    if ended_by_failed_read(data):
        _log.warning("reading all vectors", reason="a failed read ended the last process")
        machine = replace(machine, read_all=True)
    if reserve_mb is not None:
        machine = replace(machine, reserve_bytes=reserve_mb * 1024 * 1024, reserve_share=1.0)
    disk = Disk()
    disk.open_stores = OpenStores(plan.stores)
    disk.open_row_files = OpenStores(plan.stores)
    limits = replace(limits, connections=plan.connections)
    scrub = scrub or engine.scrub
    scrub = replace(
        scrub,
        core_share=scrub.core_share / shards,
        bytes_per_s=scrub.bytes_per_s / shards,
        rows_per_s=scrub.rows_per_s / shards,
    )
    return disk, replace(engine, limits=limits, machine=machine, scrub=scrub)


def router_within(limits: Limits, *, shards: int) -> Limits:
    """Return the limits of a router over `shards` servers, within what the machine allows.

    Raises LimitsTooLow if too few files may be open for any server.
    """
    plan = _planned(Wanted(shards=shards, connections=limits.connections))
    return replace(limits, connections=plan.connections)


def _planned(wanted: Wanted) -> FilePlan:
    limit = raise_limit()
    plan = plan_files(limit, map_limit(), wanted)
    if not plan.can_serve:
        raise LimitsTooLow(plan.too_low)
    if plan.too_low:
        _log.warning(
            "limit of the machine too low",
            open_files=limit,
            connections=plan.connections,
            stores=plan.stores,
            collections=plan.collections,
            reason=plan.too_low,
        )
    return plan
