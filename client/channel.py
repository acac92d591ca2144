"""Targets, and the options of gRPC channels to a server: those of every channel, and a client's."""

from __future__ import annotations

import gc
import os
import re
import threading
from typing import Final
from weakref import WeakSet

from vectorshard.shard.errors import ClientUnusable, InvalidParameter
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


def client_options() -> tuple[tuple[str, object], ...]:
    """Return the options of a client's channel in this process.

    Channels of equal targets and options share connections, and a forked child must not use its
    parent's: gRPC ignores the last option, but compares it.
    """
    return (*CLIENT_OPTIONS, ("vectorshard.pid", os.getpid()))


CLOSED: Final = "the client is closed"
"""The text of the error of both clients, once they are closed."""

DEFAULT_PORT: Final = 7700
"""The port of a target that names none."""

_URL: Final = re.compile(r"(?i)(https?|grpcs?|tcp)://")
_OTHER_SCHEME: Final = re.compile(r"(unix|unix-abstract|vsock|ipv4|ipv6|xds):")
_HOST_AND_PORT: Final = re.compile(r"(?:\[[^]]*\]|[^:\[\]]*):([^:]*)")
_HOST: Final = re.compile(r"\[[^]]*\]|[^:\[\]/,]+")
_IPV6: Final = re.compile(r"[0-9a-fA-F:.]*:[0-9a-fA-F:.]*:[0-9a-fA-F:.]*")

_IPV4: Final = re.compile(r"\d{1,3}(?:\.\d{1,3}){3}(?::[^:]*)?")

_asyncio_in: Final[set[int]] = set()
"""The pids of this process, and of those that it was forked from, that opened an asyncio channel.
"""

_asyncio_channels: Final[WeakSet[object]] = WeakSet()
_held: Final[dict[int, tuple[object, ...]]] = {}
"""The asyncio channels that were open when a thread of this process, or of its parent, forked."""


def checked_target(target: str) -> str:
    """Return the target; raise InvalidParameter for one that no channel can connect to.

    A host without a port gets DEFAULT_PORT. The schemes of gRPC other than dns are gRPC's to read.
    """
    target = str_of(target, "target", InvalidParameter)
    if not target.strip() or _URL.match(target):
        what = f"{target!r} is a URL" if target.strip() else "is empty"
        address = _URL.sub("", target).partition("/")[0] or "127.0.0.1:7700"
        reason = f"target {what}; expected HOST:PORT, such as {address}"
        raise InvalidParameter(reason, field="target")
    address = re.sub(r"dns:(//[^/]*/)?", "", target, count=1) if target[:4] == "dns:" else target
    if _OTHER_SCHEME.match(address):
        return target
    if "," in address:
        return _several(target, [each.strip() for each in address.split(",")])
    if re.search(r"\s", address):
        raise InvalidParameter(f"target {target!r} contains white space", field="target")
    if not address.isprintable():
        raise InvalidParameter(f"target {target!r} contains a control character", field="target")
    if _HOST.fullmatch(address):
        return f"{target}:{DEFAULT_PORT}"
    if _IPV6.fullmatch(address):
        return f"{target.removesuffix(address)}[{address}]:{DEFAULT_PORT}"
    if not address or address.startswith(":"):
        example = f"127.0.0.1{address or f':{DEFAULT_PORT}'}"
        reason = f"target {target!r} has no host; expected HOST:PORT, such as {example}"
        raise InvalidParameter(reason, field="target")
    parts = _HOST_AND_PORT.fullmatch(address)
    if parts is not None and not (parts[1].isdecimal() and 1 <= int(parts[1]) <= 65_535):
        reason = f"target {target!r} is invalid: port {parts[1]!r} is not in 1..65,535"
        raise InvalidParameter(reason, field="target")
    return target


def _several(target: str, addresses: list[str]) -> str:
    """Return the target of several IPv4 addresses; gRPC has none for several names."""
    if not all(_IPV4.fullmatch(address) for address in addresses):
        reason = (
            f"target {target!r} has several addresses; expected one HOST:PORT, a DNS name with "
            "several addresses, or IPv4 addresses, such as 10.0.0.1:7700,10.0.0.2:7700"
        )
        raise InvalidParameter(reason, field="target")
    return "ipv4:" + ",".join(checked_target(address) for address in addresses)


def note_asyncio() -> None:
    """Remember that this process opens an asyncio channel."""
    _asyncio_in.add(os.getpid())


def keep_in_children(channel: object) -> None:
    """Keep an asyncio channel in the children that are forked while it is open.

    A child that frees it waits for ever for a thread that no child has, or crashes (grpcio 1.83).
    """
    _asyncio_channels.add(channel)


def _hold() -> None:
    if os.getpid() in _asyncio_in:
        gc.collect()  # closed channels are in cycles, and a child may collect those at any moment
        _held[threading.get_ident()] = tuple(_asyncio_channels)


def _release() -> None:
    if os.getpid() in _asyncio_in:
        _held.pop(threading.get_ident(), None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_hold, after_in_parent=_release)


def check_forked() -> None:
    """Raise ClientUnusable if no channel works in this process.

    A fork leaves the thread behind that drives asyncio channels: in the child, they wait for ever,
    and other channels crash. A fork after calls of a blocking client is harmless.
    """
    if _asyncio_in - {os.getpid()}:
        raise ClientUnusable(
            "this process was forked after calls of an AsyncClient or open_local; gRPC does not "
            "survive that: make the first such call after the fork, or start processes with spawn"
        )
