"""One server of a fleet: a shard by itself, or a router over shards that live elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.metrics import RemoteShardCollector
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.config import EngineConfig, Limits, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryForeign
from vectorshard.shard.runtime.allocator import give_back
from vectorshard.shard.server.listening import split_address
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.data_directory import IDENTITY_FILE, ShardIdentity
from vectorshard.shard.storage.disk import Disk

PLACEMENT_EPOCH = 1

CLUSTER_DEFAULT = "default"
"""The cluster of a shard whose directory is new, unless it is told another."""


def identity_of(shard: int, shards_total: int, cluster: str) -> ShardIdentity:
    """Return who one of `shards_total` shards is; an empty cluster joins its directory's."""
    return ShardIdentity(
        cluster=cluster,
        shard=shard,
        shards_total=shards_total,
        slots=slots_of_shard(shard, shards_total),
        placement_epoch=PLACEMENT_EPOCH,
    )


def _require_no_shards_within(data: Path) -> None:
    for other in sorted(data.glob(f"shard-*/{IDENTITY_FILE}")):
        raise DataDirectoryForeign(
            f"{data} holds several shards' directories: choose one of them, such as {other.parent}"
        )


async def serve_shard(
    *,
    shard: int,
    shards_total: int,
    data: Path,
    cluster: str | None,
    cores: int,
    server: ServerConfig,
) -> None:
    """Serve one shard until SIGTERM or SIGINT.

    Parameters
    ----------
    shard, shards_total
        Its number, from 0, and how many there are. They settle its slots for good.
    data
        Its own data directory.
    cluster
        The cluster it must belong to; None for the one that the directory knows.
    cores
        Cores that one search may use.
    server
        Where to serve.

    Raises
    ------
    DataDirectoryError, CorruptData
        If the data directory cannot be opened as this shard's.
    InvalidParameter
        If it cannot listen on an address.
    """
    engine = EngineConfig(search_cores=cores)

    async def open_shard() -> LocalShard:
        _require_no_shards_within(data)
        identity = identity_of(shard, shards_total, cluster or "")
        return await asyncio.to_thread(
            LocalShard.open,
            Disk(),
            data,
            identity,
            engine,
            new_cluster=lambda: CLUSTER_DEFAULT,
            when_idle=give_back,
        )

    await run_server(open_shard, engine.limits, server)


async def serve_router(*, shards: Sequence[str], partial: bool, server: ServerConfig) -> None:
    """Serve a router over servers at the addresses `shards` until SIGTERM or SIGINT.

    It starts while some of them are missing, and finds them when they come.

    Parameters
    ----------
    shards
        HOST:PORT of each child: shards in the order of their numbers, or routers.
    partial
        Whether the children may be a part of the placement only, as below another router.
    server
        Where to serve.

    Raises
    ------
    PlacementMismatch
        If the children contradict each other, or the placement that they belong to.
    InvalidParameter
        If it cannot listen on an address.
    """
    for target in shards:
        split_address(target, "shard")

    collector = RemoteShardCollector()

    async def connect() -> Router:
        collector.shards = remote = [RemoteShard(target) for target in shards]
        return await Router.connect(remote, names=shards, partial=partial)

    await run_server(connect, Limits(), server, [collector])
