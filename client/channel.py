"""Targets, and the options of gRPC channels to a server: those of every channel, and a client's."""

from __future__ import annotations

import re
from typing import Final

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.wire.primitives import str_of
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

CLOSED: Final = "the client is closed"
"""The text of the error of both clients, once they are closed."""

_URL: Final = re.compile(r"(?i)(https?|grpcs?|tcp)://")
_OTHER_SCHEME: Final = re.compile(r"(unix|unix-abstract|vsock|ipv4|ipv6|xds):")
_HOST_AND_PORT: Final = re.compile(r"(?:\[[^]]*\]|[^:\[\]]*):([^:]*)")


def checked_target(target: str) -> str:
    """Return the target; raise InvalidParameter for one that no channel can connect to.

    A name without a port, and the schemes of gRPC other than dns, are gRPC's to read.
    """
    target = str_of(target, "target", InvalidParameter)
    if not target.strip() or _URL.match(target):
        what = f"{target!r} is a URL" if target.strip() else "is empty"
        reason = f"target {what}; expected HOST:PORT, such as 127.0.0.1:7700"
        raise InvalidParameter(reason, field="target")
    address = re.sub(r"dns:(//[^/]*/)?", "", target, count=1) if target[:4] == "dns:" else target
    parts = None if _OTHER_SCHEME.match(address) else _HOST_AND_PORT.fullmatch(address)
    if parts is not None and not (parts[1].isdecimal() and 1 <= int(parts[1]) <= 65_535):
        reason = f"target {target!r} is invalid: port {parts[1]!r} is not in 1..65,535"
        raise InvalidParameter(reason, field="target")
    return target
