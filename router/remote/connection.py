"""The way to a server: a channel of grpc, opened anew when it may lead to the wrong place.

A name's address may change, and grpc looks a name up only when a connection has ended. So whoever
listens at an address that was another's keeps whom it got; and when a look-up fails, grpc waits for
up to two minutes before the next, which no option changes. Another channel looks up at once. It is
opened when somebody else than was meant has answered, or when nobody has and the channel has no
connection; and not more often than every RENEWAL_S, which leaves the old one time to find its way.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

import grpc

from vectorshard.shard.config import Limits
from vectorshard.shard.wire.rpcs import path_of

KEEPALIVE_S: Final = 3.0
"""How long a server may be silent before it is asked for a sign of life, and then until it is given
up. What is sent and not acknowledged for as long ends a connection too (TCP_USER_TIMEOUT, which
grpc sets). The two together bound how long a broken connection stands in the way of a good one;
after a shorter break TCP itself waits no longer than the break took."""

CHANNEL_OPTIONS: Final = (
    ("grpc.max_send_message_length", Limits().message_bytes),
    ("grpc.max_receive_message_length", Limits().message_bytes),
    # A shard that restarts is found again in a second; gRPC's defaults are 1 s, growing to 120 s,
    # and 30 s between two looks at DNS, where a shard that moved has a new address.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    # A host that is gone without a word. Without the third option, grpc does nothing when a ping
    # stays unanswered.
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_S * 1_000)),
    ("grpc.http2.max_pings_without_data", 0),
    # A channel must not share the connection of the one that it replaces.
    ("grpc.use_local_subchannel_pool", 1),
)

RENEWAL_S: Final = 2.0
"""How old a channel is, at least, when another one takes its place."""

RETIREMENT_S: Final = 30.0
"""How long calls may go on over a channel that has been replaced."""

Rpc = grpc.aio.UnaryUnaryMultiCallable[list[bytes], bytes]


def open_channel(target: str) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT. It looks the name up, and connects, with its first call."""
    return grpc.aio.insecure_channel(target, options=CHANNEL_OPTIONS)


def _taken(request: list[bytes]) -> bytes:
    """Return the bytes of a request, and leave none behind.

    A call of grpc.aio is part of a cycle of references: what it keeps stays until the collector
    comes, which is after hundreds of megabytes of an upload.
    """
    return request.pop()


class Connection:
    """The channel to a server. Must be closed.

    Parameters
    ----------
    target
        HOST:PORT; a name is resolved by DNS.
    channel_to
        Opens a channel to a target.
    clock
        Seconds.
    """

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
        self._retiring: dict[grpc.aio.Channel, asyncio.Future[None]] = {}
        self._open()

    def _open(self) -> None:
        self.channel = self._channel_to(self._target)
        self._rpcs: dict[str, Rpc] = {}
        self._opened_at = self._clock()

    def rpc(self, name: str) -> Rpc:
        """Return a unary RPC of the service. It takes its request out of a list, see `_taken`."""
        rpc = self._rpcs.get(name)
        if rpc is None:
            rpc = self._rpcs[name] = self.channel.unary_unary(
                path_of(name), request_serializer=_taken
            )
        return rpc

    def nobody_answered(self) -> None:
        """Note that a call has found no connection: its end may be elsewhere by now."""
        if self.channel.get_state() is not grpc.ChannelConnectivity.READY:
            self._renew()

    def somebody_else_answered(self) -> None:
        """Note that the one at the other end is not who was meant."""
        self._renew()

    def _renew(self) -> None:
        if self._clock() - self._opened_at < RENEWAL_S:
            return
        old = self.channel
        self._open()
        self._retiring[old] = asyncio.ensure_future(self._retire(old))

    async def _retire(self, channel: grpc.aio.Channel) -> None:
        await channel.close(RETIREMENT_S)
        del self._retiring[channel]

    async def close(self) -> None:
        """End all calls, and let go of the server."""
        retiring, self._retiring = self._retiring, {}
        for future in retiring.values():
            future.cancel()
        await asyncio.gather(*retiring.values(), return_exceptions=True)
        for channel in (self.channel, *retiring):
            await channel.close()
