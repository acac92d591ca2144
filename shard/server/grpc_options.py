"""The options of the gRPC server, as named sets: what its core does before a call reaches Python.

The core's own defences answer with CANCELLED and REFUSED_STREAM, which do not say when to try
again. So they are the last line: admission control (shard.server.admission_control) answers as long
as Python accepts calls as fast as they arrive. docs/overload.md has measurements and the price.
"""

from __future__ import annotations

from typing import Final

from vectorshard.shard.config import CONNECTION_AGE_S, Limits
from vectorshard.shard.wire.rpcs import message_options

HANDSHAKE_S: Final = 5.0
"""How long a connection that sends nothing keeps its place among `Limits.connections`."""

IDLE_S: Final = 300.0
"""How long a connection without a call keeps its place. Clients connect again with their next call;
routers are never so long without one."""

READ_AHEAD_BYTES: Final = 64 * 1024
"""Bytes of a stream that wait in this process until its handler reads them; beyond it the network
holds the sender back. A message that is being read is received whole, whatever this is."""

WAITING_CALLS: Final = 1_000
"""Calls that wait in the core to be accepted; it cancels further ones. Python accepts some thousand
a second, so a call in this queue has time left. A longer queue fills with calls that have none:
after an overload the server would work for seconds on calls whose callers have left."""

Options = list[tuple[str, int]]


def server_options(
    limits: Limits, connection_age_s: float = CONNECTION_AGE_S, *, shares_port: bool = False
) -> Options:
    """Return the options of a gRPC server with these limits."""
    return [
        *message_options(limits.message_bytes),
        # A compressed message of a few kilobytes would take all the memory of its limit.
        ("grpc.compression_enabled_algorithms_bitset", 1),
        # By default a second server on the port would share it silently. It must fail instead.
        ("grpc.so_reuseport", int(shares_port)),
        *_connections(limits, connection_age_s),
        *_overload(limits),
        *_flow_control(),
    ]


def _connections(limits: Limits, connection_age_s: float) -> Options:
    """How many connections there are, and how long each keeps its place."""
    return [
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(HANDSHAKE_S * 1_000)),
        ("grpc.max_connection_idle_ms", round(IDLE_S * 1_000)),
        # Clients resolve a name again only when a connection ends. Calls on an old connection run
        # to their end, so this ends no bulk load and no stream. grpc varies the age by a tenth, so
        # that clients do not all reconnect at the same time.
        ("grpc.max_connection_age_ms", round(connection_age_s * 1_000)),
        # Routers ping a server to detect its failure; by default gRPC allows a ping in 5 minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        # Clients behind a load balancer keep idle connections open by pings; by default gRPC ends
        # such a connection with GOAWAY after the third.
        ("grpc.keepalive_permit_without_calls", 1),
    ]


def _overload(limits: Limits) -> Options:
    """Too many calls: the client keeps the excess, then the service refuses, then the core."""
    return [
        ("grpc.max_concurrent_streams", limits.connection_calls),
        # By default the core cancels calls at random between these two, 1,000 and 3,000.
        ("grpc.server.max_pending_requests", WAITING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", WAITING_CALLS),
        # This defence against rapid resets counts streams that have ended for an honest client, but
        # not for the server yet. It would refuse most calls of a client that always has as many
        # calls as it may.
        ("grpc.http.overload_protection", 0),
    ]


def _flow_control() -> Options:
    """Bytes that a connection may send before they are read.

    By default gRPC lets them grow with the speed of the network: to 50 MB and more of an upsert
    stream that waits.
    """
    return [
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
    ]
