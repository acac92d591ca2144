"""`vectorshard serve`: a router and its shards in one process, without sockets between them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vectorshard.cli.fleet import EMBEDDED, open_shard
from vectorshard.cli.machine import machine_for
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import EngineConfig, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryForeign
from vectorshard.shard.runtime.faults import record_faults
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.data_directory import IDENTITY_FILE, stored_cluster
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.restore_marker import require_restored
from vectorshard.shard.types import Role


async def open_embedded(
    data: Path, shards: int, engine: EngineConfig, disk: Disk | None = None
) -> Router:
    """Open the shards below `data` and a router over them.

    Raises DataDirectoryError or CorruptData if a directory is in use, too new, damaged, or was made
    for another number of shards, or if a restore into it has not ended.
    """
    if (data / IDENTITY_FILE).exists():
        raise DataDirectoryForeign(
            f"{data} is the directory of one shard: give the directory above it, or run "
            "`vectorshard shard` on it"
        )
    require_restored(data)
    disk = disk or Disk()
    local_shards: list[LocalShard] = []
    directories = [data / EMBEDDED.format(shard) for shard in range(shards)]
    cluster = _cluster_of(directories)
    try:
        for shard, directory in enumerate(directories):
            local_shard = await open_shard(
                disk, directory, engine, shard=shard, shards_total=shards, cluster=cluster
            )
            local_shards.append(local_shard)
            cluster = (await local_shard.topology()).cluster
        return await Router.connect(local_shards, Role.EMBEDDED)
    except BaseException:
        for local_shard in local_shards:
            await local_shard.close()
        raise


def _cluster_of(directories: Sequence[Path]) -> str:
    """Return the cluster that the directories belong to; empty if all of them are new.

    A shard that lost its directory joins the others again, whichever shard it is. No
    directory is made before that: each later start would find two clusters.
    """
    found = {path: cluster for path in directories if (cluster := stored_cluster(path))}
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{path} to {cluster!r}" for path, cluster in found.items())
        raise DataDirectoryForeign(
            f"the directories belong to different clusters: {listed}; one of them was exchanged: "
            "put the right one back, or move it away, which starts that shard as missing"
        )
    return next(iter(found.values()), "")


async def serve(
    *, shards: int, data: Path, server: ServerConfig, reserve_mb: int | None = None
) -> None:
    """Serve until SIGTERM or SIGINT; the shards share the machine's cores.

    `reserve_mb` is as in `machine_for`. Raises what that, `open_embedded` and `run_server` raise.
    """
    engine = EngineConfig(search_cores=max(1, len(os.sched_getaffinity(0)) // shards))
    disk, engine = machine_for(engine, data=data, shards=shards, reserve_mb=reserve_mb)

    async def open_all() -> Router:
        router = await open_embedded(data, shards, engine, disk)
        record_faults(data)
        return router

    await run_server(open_all, engine.limits, server)
