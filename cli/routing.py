"""The router of a fleet: `vectorshard router`, in one process.

A router needs no FAISS: nothing that loads it is imported here.
"""

from __future__ import annotations

from collections.abc import Sequence

from vectorshard.cli.machine import router_within
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.metrics import RemoteShardCollector
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.config import Limits, ServerConfig
from vectorshard.shard.server.listening import split_address
from vectorshard.shard.server.run import run_server


async def serve_router(*, shards: Sequence[str], partial: bool, server: ServerConfig) -> None:
    """Serve a router over the servers at the addresses `shards` until SIGTERM or SIGINT.

    They are shards in the order of their numbers, or routers. With `partial` they may cover only a
    part of the placement. The router starts while some are unavailable, and connects to them later.

    Raises what `run_server` raises, LimitsTooLow, and PlacementMismatch if the servers contradict
    each other.
    """
    for target in shards:
        split_address(target, "shard")

    limits = router_within(Limits(), shards=len(shards))
    collector = RemoteShardCollector()

    async def connect() -> Router:
        collector.shards = remote = [RemoteShard(target) for target in shards]
        return await Router.connect(remote, names=shards, partial=partial)

    await run_server(connect, limits, server, [collector])
