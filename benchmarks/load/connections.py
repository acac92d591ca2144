"""The connections of the load generator: one TCP connection each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc

from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.wire.rpcs import message_options, path_of

Rpc = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

SERVICE = path_of("")
OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),  # otherwise channels to one address share a connection
    *message_options(),
)


@asynccontextmanager
async def connected(
    target: str, rpc: str, *, connections: int, timeout_s: float
) -> AsyncIterator[list[Rpc]]:
    """Connect, and yield the RPC over each connection: bytes in, bytes out.

    Raises
    ------
    ShardUnavailable
        If the server does not answer within `timeout_s`.
    """
    async with AsyncExitStack() as stack:
        channels = [
            await stack.enter_async_context(grpc.aio.insecure_channel(target, options=OPTIONS))
            for _ in range(connections)
        ]
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(channel.channel_ready() for channel in channels))
        except TimeoutError:
            raise ShardUnavailable(f"no connection to {target} within {timeout_s:g} s") from None
        yield [channel.unary_unary(SERVICE + rpc) for channel in channels]
