"""One shard of a fleet: `vectorshard shard`.

A data directory has the same format here and below the directory of `vectorshard serve`: either
command may continue what the other wrote. Each refuses the other's directory, which would look
empty to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final

from vectorshard.cli.machine import machine_for
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.config import EngineConfig, ScrubConfig, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.engine.machine import naming_start_failures
from vectorshard.shard.errors import DataDirectoryForeign
from vectorshard.shard.runtime.allocator import give_back
from vectorshard.shard.runtime.faults import record_faults
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.data_directory import IDENTITY_FILE, ShardIdentity, new_cluster
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.restore_marker import require_restored

PLACEMENT_EPOCH: Final = 1

CLUSTER_DEFAULT: Final = "default"
"""The cluster of a shard whose directory is new, unless `--cluster` names another."""

EMBEDDED: Final = "shard-{}"
"""The directories of the shards of `vectorshard serve`, by their numbers."""


def identity_of(shard: int, shards_total: int, cluster: str) -> ShardIdentity:
    """Return who one of `shards_total` shards is."""
    return ShardIdentity(
        cluster=cluster,
        shard=shard,
        shards_total=shards_total,
        slots=slots_of_shard(shard, shards_total),
        placement_epoch=PLACEMENT_EPOCH,
    )


async def open_shard(
    disk: Disk,
    directory: Path,
    engine: EngineConfig,
    *,
    shard: int,
    shards_total: int,
    cluster: str = "",
    new_cluster: Callable[[], str] = new_cluster,
) -> LocalShard:
    """Open one of `shards_total` shards; an empty cluster joins the one in its directory.

    `new_cluster` names the cluster of a new directory if `cluster` is empty. Raises
    DataDirectoryError or CorruptData if the data directory is in use, too new, damaged, full, or
    belongs to another shard, and what `naming_start_failures` raises.
    """
    identity = identity_of(shard, shards_total, cluster)
    return await asyncio.to_thread(
        naming_start_failures,
        directory,
        LocalShard.open,
        disk,
        directory,
        identity,
        engine,
        new_cluster=new_cluster,
        when_idle=give_back,
    )


def _require_no_embedded_shards(data: Path) -> None:
    for other in sorted(data.glob(f"{EMBEDDED.format('*')}/{IDENTITY_FILE}")):
        raise DataDirectoryForeign(
            f"{data} contains the directories of several shards: give one of them, such as "
            f"{other.parent}"
        )


async def serve_shard(
    *,
    shard: int,
    shards_total: int,
    data: Path,
    cluster: str | None,
    cores: int,
    server: ServerConfig,
    reserve_mb: int | None = None,
    scrub: ScrubConfig | None = None,
) -> None:
    """Serve one shard until SIGTERM or SIGINT; one search uses at most `cores` cores.

    `cluster` is the cluster that it must belong to; None stands for the one stored in the
    directory, and for CLUSTER_DEFAULT in a new directory. `reserve_mb` and `scrub` are as in
    `machine_for`.

    Raises what that, `open_shard` and `run_server` raise.
    """
    engine = EngineConfig(search_cores=cores)
    disk, engine = machine_for(engine, data=data, shards=1, reserve_mb=reserve_mb, scrub=scrub)

    async def open_this() -> LocalShard:
        _require_no_embedded_shards(data)
        require_restored(data)
        opened = await open_shard(
            disk,
            data,
            engine,
            shard=shard,
            shards_total=shards_total,
            cluster=cluster or "",
            new_cluster=lambda: CLUSTER_DEFAULT,
        )
        record_faults(data)
        return opened

    await run_server(open_this, engine.limits, server)
