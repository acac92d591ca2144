"""One process: a router over shards of its own, without a socket between them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from vectorshard.cli.fleet import identity_of
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import EngineConfig, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryForeign
from vectorshard.shard.runtime.allocator import give_back
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.data_directory import IDENTITY_FILE
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Role


def shard_directory(data: Path, shard: int) -> Path:
    """Return where an embedded shard keeps its rows."""
    return data / f"shard-{shard}"


async def open_embedded(
    data: Path, shards: int, engine: EngineConfig, disk: Disk | None = None
) -> Router:
    """Open the shards below `data` and a router over them.

    Raises
    ------
    DataDirectoryError
        If a directory is in use, too new, or was made for another number of shards.
    """
    disk = disk or Disk()
    if (data / IDENTITY_FILE).exists():
        raise DataDirectoryForeign(
            f"{data} is the directory of one shard: choose the one that it is in, or run "
            "`vectorshard shard` on it"
        )
    local_shards: list[LocalShard] = []
    cluster = ""
    try:
        for shard in range(shards):
            local_shard = await asyncio.to_thread(
                LocalShard.open,
                disk,
                shard_directory(data, shard),
                identity_of(shard, shards, cluster),
                engine,
                when_idle=give_back,
            )
            local_shards.append(local_shard)
            cluster = (await local_shard.topology()).cluster
        return await Router.connect(local_shards, Role.EMBEDDED)
    except BaseException:
        for local_shard in local_shards:
            await local_shard.close()
        raise


def engine_for(shards: int, cores: int) -> EngineConfig:
    """Share the machine's cores among the shards of one process."""
    return EngineConfig(search_cores=max(1, cores // shards))


async def serve(*, shards: int, data: Path, server: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT; every acknowledged write is durable at any moment of it.

    Raises
    ------
    DataDirectoryError, CorruptData
        If the data directory cannot be opened.
    InvalidParameter
        If it cannot listen on an address.
    """
    engine = engine_for(shards, len(os.sched_getaffinity(0)))

    async def open_all() -> Router:
        return await open_embedded(data, shards, engine)

    await run_server(open_all, engine.limits, server)
