"""A server inside another program: a shard behind the same service, on one address.

It leaves the program as it is: no handlers of signals, no tuning, no ports of metrics and health.
It runs in the event loop of its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from importlib.metadata import version
from typing import Final

import grpc
from prometheus_client import CollectorRegistry

from vectorshard.shard.config import Limits
from vectorshard.shard.protocol import Shard
from vectorshard.shard.server.grpc_options import server_options
from vectorshard.shard.server.run import LINGER_S
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import RpcMetrics

STREAMS_END_S: Final = 2.0
"""How long a stop waits for open streams to end."""


class LocalServer:
    """A server of a shard, which it owns. Use `start`."""

    def __init__(self, server: grpc.aio.Server, service: VectorService, shard: Shard) -> None:
        self._server = server
        self._service = service
        self._shard = shard

    @classmethod
    async def start(
        cls, open_shard: Callable[[], Awaitable[Shard]], limits: Limits, address: str
    ) -> LocalServer:
        """Open a shard and serve it on an address of gRPC, such as ``unix:/tmp/socket``.

        Raises what `open_shard` raises.
        """
        shard = await open_shard()
        try:
            metrics = RpcMetrics(CollectorRegistry())
            service = VectorService(shard, limits, version("vectorshard"), metrics)
            server = grpc.aio.server(options=server_options(limits))
            server.add_generic_rpc_handlers((service.handler(),))
            server.add_insecure_port(address)
            await server.start()
        except BaseException:
            await shard.close()
            raise
        return cls(server, service, shard)

    async def stop(self) -> None:
        """End the streams, finish the calls in progress, and close the shard, which commits."""
        try:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._service.drain(), STREAMS_END_S)
            await self._server.stop(LINGER_S)
        finally:
            await self._shard.close()
