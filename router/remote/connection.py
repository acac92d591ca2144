"""The gRPC channel to a server, which is replaced when it may lead to the wrong place.

The address behind a name may change, and gRPC resolves a name only after a connection has ended. A
server that listens at the old address of another one would therefore keep its callers. After a
failed resolution gRPC waits up to two minutes before the next one, and no option changes that. A
new channel resolves the name immediately. It replaces the old one in two cases: the wrong server
answered, or no server answered and the channel has no connection. The minimum interval is
RENEWAL_S, which leaves the old channel time to reconnect.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import grpc

from vectorshard.client.channel import COMMON_OPTIONS
from vectorshard.shard.wire.rpcs import path_of

KEEPALIVE_S: Final = 3.0
"""Silence of a server before it is pinged, and then until the connection is closed. gRPC sets
TCP_USER_TIMEOUT too: data that is not acknowledged for as long also ends a connection. Together
they bound how long a broken connection delays a new one. After a shorter break, TCP waits no longer
than the break took."""

CHANNEL_OPTIONS: Final = (
    *COMMON_OPTIONS,
    # A shard that moved has a new address in DNS. The default is 30 s between two resolutions.
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # Detects a host that vanished without closing its connections. Without the third option, gRPC
    # ignores a ping that is not answered.
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.http2.max_pings_without_data", 0),
    # A channel must not share the connection of the channel that it replaces.
    ("grpc.use_local_subchannel_pool", 1),
)

RENEWAL_S: Final = 2.0
"""Minimum age of a channel that is replaced."""

DRAIN_S: Final = 30.0
"""How long calls may continue on a channel that was replaced."""

Rpc = grpc.aio.UnaryUnaryMultiCallable[list[bytes], bytes]


def open_channel(target: str) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT. Its first call resolves the name and connects."""
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


def _pop_request(request: list[bytes]) -> bytes:
    """Serialize a request, and drop the reference to its bytes.

    A call of grpc.aio is part of a reference cycle. What it references lives until the garbage
    collector runs, which is after hundreds of megabytes of an upload.
    """
    return request.pop()


class Connection:
    """The current channel to `target`, HOST:PORT, and those it replaced. Must be closed."""

    def __init__(
        self,
        target: str,
        *,
        channel_to: Callable[[str], grpc.aio.Channel] = open_channel,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        self._channel_to = channel_to
        self._clock = clock
        self._draining: dict[grpc.aio.Channel, asyncio.Future[None]] = {}
        self._open()

    def _open(self) -> None:
        self.channel = self._channel_to(self._target)
        self._rpcs: dict[str, Rpc] = {}
        self._opened_at = self._clock()

    def rpc(self, name: str) -> Rpc:
        """Return a unary RPC of the service. It pops its request from a list: `_pop_request`."""
        rpc = self._rpcs.get(name)
        if rpc is None:
            rpc = self._rpcs[name] = self.channel.unary_unary(
                path_of(name), request_serializer=_pop_request
            )
        return rpc

    def note_unanswered(self) -> None:
        """Note that a call got no answer: without a connection, the server may have moved."""
        if self.channel.get_state() is not grpc.ChannelConnectivity.READY:
            self.resolve_again()

    def resolve_again(self) -> None:
        """Replace the channel, unless it is newer than RENEWAL_S: the wrong server answered."""
        if self._clock() - self._opened_at < RENEWAL_S:
            return
        old = self.channel
        self._open()
        self._draining[old] = asyncio.ensure_future(self._drain(old))

    async def _drain(self, channel: grpc.aio.Channel) -> None:
        await channel.close(DRAIN_S)
        del self._draining[channel]

    async def close(self) -> None:
        """Cancel all calls, and close all channels."""
        draining, self._draining = self._draining, {}
        for future in draining.values():
            future.cancel()
        await asyncio.gather(*draining.values(), return_exceptions=True)
        for channel in (self.channel, *draining):
            await channel.close()
