"""Where a server listens: on all addresses that a name resolves to, or not at all.

gRPC accepts one of the addresses that a name resolves to. Two servers that listen on localhost
would both start, one on 127.0.0.1 and one on ::1, and share the clients.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import grpc

from vectorshard.shard.errors import CannotListen, InvalidParameter

_NOT_OF_THIS_MACHINE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


def split_address(address: str, field: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises InvalidParameter if the address has another form."""
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdecimal() or int(port) > 65_535:
        raise InvalidParameter(f"{address!r} is not HOST:PORT", field=field)
    return host.strip("[]") or "0.0.0.0", int(port)


def join_address(host: str, port: int) -> str:
    """Return HOST:PORT, with an IPv6 host in brackets: the inverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def bind(server: grpc.aio.Server, listen: str, *, shares_port: bool = False) -> str:
    """Bind a server that has not started to every address of this machine that `listen` names.

    Returns HOST:PORT, with the port that was picked for 0. From here on no other process gets the
    port; connections wait for the server to start. A server that shares its port, as grpc's option
    also states, does not check whether other servers have it. Raises CannotListen if an address is
    in use, or no address is of this machine.
    """

    def take(family: int, address: str, port: int) -> int:
        if not shares_port:
            _require_free(family, address, port)
        return server.add_insecure_port(join_address(address, port))

    return await _taken(listen, take)


async def hold(listen: str) -> tuple[str, list[socket.socket]]:
    """Reserve every address that `listen` names, for servers that share the port; do not listen.

    Returns HOST:PORT as `bind` does, and the sockets, which must be closed in the end. Meanwhile
    the port is in use for servers that do not share it, and a port that was picked stays picked.

    Raises what `bind` raises.
    """
    held: list[socket.socket] = []

    def take(family: int, address: str, port: int) -> int:
        _require_free(family, address, port)
        each = socket.socket(family, socket.SOCK_STREAM)
        held.append(each)
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            each.bind((address, port))
        except OSError:  # free, but connections of its last owner are in TIME_WAIT
            # As long as no socket listens, other processes that set this too could bind to it.
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            each.bind((address, port))
        return int(each.getsockname()[1])

    try:
        return await _taken(listen, take), held
    except InvalidParameter:
        for each in held:
            each.close()
        raise


async def _taken(listen: str, take: Callable[[int, str, int], int]) -> str:
    """Call `take` with family, address and port of each address; return HOST:PORT."""
    host, port = split_address(listen, "listen")
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise _refusal(listen, error.strerror or str(error)) from None
    bound = False
    foreign = host
    for family, address in dict.fromkeys((family, str(to[0])) for family, *_, to in found):
        try:
            port = take(family, address, port)
        except OSError as error:
            if error.errno not in _NOT_OF_THIS_MACHINE:
                raise _refusal(listen, error.strerror or str(error)) from None
            foreign = address
        except RuntimeError:  # another process was faster
            raise _refusal(listen, f"{address} is in use") from None
        else:
            bound = True
    if not bound:
        raise _refusal(listen, f"{foreign} is not an address of this machine")
    return join_address(host, port)


def _require_free(family: int, address: str, port: int) -> None:
    """Raise the OSError of binding to the address, which gRPC does not report."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does
        probe.bind((address, port))


def _refusal(listen: str, reason: str) -> CannotListen:
    return CannotListen(f"cannot listen on {listen}: {reason}", field="listen")
