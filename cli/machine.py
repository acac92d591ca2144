"""What a server that starts may take of its machine: open files, and room on the disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import structlog

from vectorshard.shard.config import EngineConfig, Limits
from vectorshard.shard.errors import LimitsTooLow
from vectorshard.shard.runtime.faults import ended_by_failed_read
from vectorshard.shard.runtime.open_files import FilePlan, plan_files, raise_limit

_log = structlog.get_logger(__name__)


def engine_within(
    engine: EngineConfig, *, data: Path, shards: int, reserve_mb: int | None = None
) -> EngineConfig:
    """Return the configuration of `shards` shards in this process, within what the machine allows.

    The limit of open files is raised as far as it can be. `reserve_mb` is the free space that
    writes leave; None stands for the default, which small disks have less of. If the last process
    below `data` was ended by a failed read, all vectors are read at the start.

    Raises LimitsTooLow if too few files may be open for any server.
    """
    plan = _planned(engine.limits, shards=shards, collections=engine.limits.collections)
    machine = replace(engine.machine, collections_max=plan.collections, limit_too_low=plan.too_low)
    if ended_by_failed_read(data):
        _log.warning("the last process was ended by a failed read; reading all vectors now")
        machine = replace(machine, read_all=True)
    if reserve_mb is not None:
        machine = replace(machine, reserve_bytes=reserve_mb * 1024 * 1024, reserve_share=1.0)
    return replace(
        engine, limits=replace(engine.limits, connections=plan.connections), machine=machine
    )


def router_within(limits: Limits, *, shards: int) -> Limits:
    """Return the limits of a router over `shards` servers, within what the machine allows.

    Raises LimitsTooLow if too few files may be open for any server.
    """
    return replace(limits, connections=_planned(limits, shards=shards, collections=0).connections)


def _planned(limits: Limits, *, shards: int, collections: int) -> FilePlan:
    limit = raise_limit()
    plan = plan_files(limit, shards=shards, connections=limits.connections, collections=collections)
    if not plan.can_serve:
        raise LimitsTooLow(plan.too_low)
    if plan.too_low:
        _log.warning(
            "limit of open files too low",
            limit=limit,
            connections=plan.connections,
            collections=plan.collections,
            text=plan.too_low,
        )
    return plan
