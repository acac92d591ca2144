"""Options of gRPC channels to a server of vectorshard: those of every channel, and a client's."""

from __future__ import annotations

from typing import Final

from vectorshard.shard.wire.rpcs import message_options

COMMON_OPTIONS: Final = (
    *message_options(),
    # A server that restarts is found within a second. The default is 1 s, growing to 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

CLIENT_OPTIONS: Final = (
    *COMMON_OPTIONS,
    # Calls use all addresses in turn. By default all calls go to the first address.
    ("grpc.service_config", '{"loadBalancingConfig": [{"round_robin": {}}]}'),
)
