"""A remote shard without a network: its breaker, probes and retries are real."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NoReturn, cast

import grpc

from vectorshard.client.link import LinkBusy
from vectorshard.router.remote.connection import Connection
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.membership import Problem
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import Call
from vectorshard.shard.wire.rpcs import RequestT, ResultT, Rpc


class NoChannel:
    """What a connection needs of a channel on which nothing is sent."""

    async def close(self, grace: float | None = None) -> None:
        """Close nothing."""


class OfflineShard(RemoteShard):
    """A remote shard that asks another shard where it would send a request and read the answer.

    Its waits are the longest that chance allows; its time is the event loop's.
    """

    def __init__(self, shard: Shard) -> None:
        connection = Connection("far:1", channel_to=lambda _: cast("grpc.aio.Channel", NoChannel()))
        clock = asyncio.get_running_loop().time
        super().__init__("far:1", connection=connection, clock=clock, chance=lambda: 1.0)
        self._shard = shard

    async def _send(self, rpc: Rpc[RequestT, ResultT], request: RequestT, call: Call) -> ResultT:
        return await rpc.ask(self._shard, request, call)

    def send_search(self, *_: object) -> NoReturn:
        """Have no link."""
        raise LinkBusy

    async def _server_info(self, call: Call) -> tuple[Topology, Sequence[Problem]]:
        return await self._shard.topology(call=call), await self._shard.problems(call=call)

    async def close(self) -> None:
        """Close the other shard, too."""
        await super().close()
        await self._shard.close()
