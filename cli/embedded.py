"""`vectorshard serve`: a router and its shards in one process, without sockets between them."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from vectorshard.cli.fleet import EMBEDDED, open_shard
from vectorshard.cli.machine import machine_for
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.sole_shard import SoleShard
from vectorshard.shard.config import EngineConfig, Limits, ScrubConfig, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryError, DataDirectoryForeign
from vectorshard.shard.runtime.faults import record_faults
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.data_directory import (
    IDENTITY_FILE,
    stored_cluster,
    stored_shards_total,
)
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.restore_marker import require_restored
from vectorshard.shard.texts import counted
from vectorshard.shard.types import Role

_log = structlog.get_logger(__name__)


def shards_below(data: Path, wanted: int | None = None) -> int:
    """Return the number of shards that the directories below `data` were made for, 1 for none.

    Raises DataDirectoryForeign if another number is `wanted`, or they contradict each other.
    """
    found = {
        path: total
        for path in sorted(data.glob(EMBEDDED.format("*")))
        if (total := stored_shards_total(path))
    }
    if not found:
        return wanted or 1
    path, total = next(iter(found.items()))
    if len(set(found.values())) > 1:
        listed = ", ".join(f"{path} for {total}" for path, total in found.items())
        raise DataDirectoryForeign(
            f"the directories were made for different numbers of shards: {listed}"
        )
    if wanted not in (None, total):
        raise DataDirectoryForeign(
            f"{path} was made for {counted(total, 'shard')}, not {wanted}: leave out --shards, or "
            f"take a backup and `vectorshard restore --shards {wanted}` it into another directory"
        )
    return total


async def open_embedded(
    data: Path, shards: int | None, engine: EngineConfig, disk: Disk | None = None
) -> Router:
    """Open the shards below `data` and a router over them. See `shards_below` for their number.

    Raises DataDirectoryError or CorruptData if a directory is in use, too new, damaged, or was made
    for another number of shards, or if a restore into it has not ended.
    """
    if (data / IDENTITY_FILE).exists():
        raise DataDirectoryForeign(
            f"{data} is the directory of one shard: give the directory above it, or run "
            "`vectorshard shard` on it"
        )
    require_restored(data)
    shards = shards_below(data, shards)
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
        router = SoleShard if shards == 1 else Router
        return await router.connect(local_shards, Role.EMBEDDED)
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


def prepared(
    data: Path,
    shards: int | None,
    *,
    reserve_mb: int | None = None,
    scrub: ScrubConfig | None = None,
) -> tuple[Limits, Callable[[], Awaitable[Router]]]:
    """Return the limits of a server of the shards below `data`, and what opens them.

    The shards share the machine's cores. `shards` is as in `shards_below`, `reserve_mb` and `scrub`
    as in `machine_for`. Raises what that raises; opening them raises what `open_embedded` does.
    """
    try:
        total = shards_below(data, shards)
    except DataDirectoryError:
        total = shards or 1  # opening it raises this again, where `hold` applies
    engine = EngineConfig(search_cores=max(1, len(os.sched_getaffinity(0)) // total))
    disk, engine = machine_for(engine, data=data, shards=total, reserve_mb=reserve_mb, scrub=scrub)
    return engine.limits, lambda: open_embedded(data, shards, engine, disk)


async def serve(
    *,
    shards: int | None,
    data: Path,
    server: ServerConfig,
    reserve_mb: int | None = None,
    scrub: ScrubConfig | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT. Raises what `prepared` and `run_server` raise."""
    limits, open_shards = prepared(data, shards, reserve_mb=reserve_mb, scrub=scrub)

    async def open_all() -> Router:
        router = await open_shards()
        shards_open = len((await router.topology()).shards)
        _log.info("data directory open", directory=str(data), shards=shards_open)
        record_faults(data)
        return router

    await run_server(open_all, limits, server)
