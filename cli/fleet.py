"""One server of a fleet: `vectorshard shard`, or `vectorshard router` in one process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vectorshard.cli.directories import CLUSTER_DEFAULT, open_shard, require_no_embedded_shards
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.guarded_shard import GuardedShard
from vectorshard.router.remote.metrics import GuardCollector
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.config import EngineConfig, Limits, ServerConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.server.listening import split_address
from vectorshard.shard.server.run import run_server
from vectorshard.shard.storage.disk import Disk


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
        Its number, from 0, and how many there are. They determine its slots permanently.
    data
        Its data directory.
    cluster
        The cluster it must belong to; None for the one stored in the directory, and
        CLUSTER_DEFAULT in a new directory.
    cores
        Cores that one search may use.
    server
        Where to serve.

    Raises
    ------
    DataDirectoryError, CorruptData
        If the data directory cannot be opened as this shard's.
    InvalidParameter
        If the server cannot listen on an address.
    """
    engine = EngineConfig(search_cores=cores)

    async def open_this() -> LocalShard:
        require_no_embedded_shards(data)
        return await open_shard(
            Disk(),
            data,
            engine,
            shard=shard,
            shards_total=shards_total,
            cluster=cluster or "",
            new_cluster=lambda: CLUSTER_DEFAULT,
        )

    await run_server(open_this, engine.limits, server)


async def serve_router(*, shards: Sequence[str], partial: bool, server: ServerConfig) -> None:
    """Serve a router over the servers at the addresses `shards` until SIGTERM or SIGINT.

    It starts while some of them are unavailable, and connects to them when they start.

    Parameters
    ----------
    shards
        HOST:PORT of each: shards in the order of their numbers, or routers.
    partial
        Whether they may cover only a part of the placement, as below another router.
    server
        Where to serve.

    Raises
    ------
    PlacementMismatch
        If the servers contradict each other, or their common placement.
    InvalidParameter
        If the server cannot listen on an address.
    """
    for target in shards:
        split_address(target, "shard")

    collector = GuardCollector()

    async def connect() -> Router:
        guarded = [GuardedShard(RemoteShard(target), target) for target in shards]
        collector.shards = guarded
        return await Router.connect(guarded, names=shards, partial=partial)

    await run_server(connect, Limits(), server, [collector])
