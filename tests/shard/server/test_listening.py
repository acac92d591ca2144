"""Where a server listens: all that a name means, or nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import pytest

from vectorshard.shard.config import Limits
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.server.grpc_options import server_options
from vectorshard.shard.server.listening import bind, hold, join_address, split_address


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:7700", "127.0.0.1", 7700),
        ("localhost:0", "localhost", 0),
        ("[::1]:65535", "::1", 65_535),
        (":7700", "0.0.0.0", 7700),
    ],
)
def test_an_address_is_split_at_its_last_colon(address: str, host: str, port: int) -> None:
    assert split_address(address, "listen") == (host, port)


@pytest.mark.parametrize(
    "address", ["", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:-1", "127.0.0.1:65536"]
)
def test_what_is_no_address_is_refused_by_its_field(address: str) -> None:
    with pytest.raises(InvalidParameter, match="HOST:PORT") as caught:
        split_address(address, "listen")
    assert caught.value.field == "listen"


@pytest.mark.parametrize("address", ["127.0.0.1:7700", "localhost:1", "[::1]:38537"])
def test_an_address_is_told_as_it_is_given(address: str) -> None:
    assert join_address(*split_address(address, "listen")) == address


def new_server() -> grpc.aio.Server:
    """Return a server as they are served: it shares no port."""
    return grpc.aio.server(options=server_options(Limits()))


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let every name mean these addresses."""

    def found(host: str, port: int, **_: Any) -> Sequence[Any]:
        return [
            (socket.AF_INET6 if ":" in each else socket.AF_INET, 0, 0, "", (each, port))
            for each in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", lambda host, port, *_, **__: found(host, port))


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of 127.0.0.1 that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


async def test_a_port_is_picked_and_told() -> None:
    server = new_server()
    host, port = split_address(await bind(server, "127.0.0.1:0"), "listen")
    assert host == "127.0.0.1"
    with socket.create_connection((host, port)):
        pass
    await server.stop(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", ""])
async def test_a_taken_port_is_refused_under_each_of_its_names(taken: int, host: str) -> None:
    with pytest.raises(InvalidParameter, match=f"cannot listen on {host}:{taken}.*in use"):
        await bind(new_server(), f"{host}:{taken}")


@pytest.mark.parametrize("addresses", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
async def test_a_name_of_several_addresses_is_refused_when_one_is_taken(
    monkeypatch: pytest.MonkeyPatch, taken: int, addresses: Sequence[str]
) -> None:
    resolve_to(monkeypatch, *addresses)
    with pytest.raises(InvalidParameter, match="in use"):
        await bind(new_server(), f"name:{taken}")


async def test_a_name_is_listened_on_at_all_of_its_addresses_on_one_port(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pid = os.getpid()
    addresses = [f"127.{1 + pid // 256 % 254}.{pid % 256}.{last}" for last in (1, 2)]
    resolve_to(monkeypatch, *addresses, addresses[0])  # no other process listens on these
    server = new_server()
    _, port = split_address(await bind(server, "name:0"), "listen")
    monkeypatch.undo()
    for address in addresses:
        with socket.create_connection((address, port)):
            pass
    await server.stop(None)


async def test_addresses_of_other_machines_are_passed_over_but_not_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolve_to(monkeypatch, "192.0.2.1", "127.0.0.1")
    await bind(new_server(), "name:0")
    resolve_to(monkeypatch, "192.0.2.1")
    with pytest.raises(InvalidParameter, match="is not an address of this machine"):
        await bind(new_server(), "name:0")


async def test_a_name_that_means_nothing_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="cannot listen on"):
        await bind(new_server(), "no such name.invalid:0")


# ---- a port that several processes share --------------------------------------------------------


async def test_a_held_port_is_refused_to_others_and_given_to_those_who_share_it() -> None:
    address, held = await hold("127.0.0.1:0")
    with pytest.raises(InvalidParameter, match="in use"):
        await bind(new_server(), address)
    with pytest.raises(InvalidParameter, match="in use"):
        await hold(address)
    sharing = [
        grpc.aio.server(options=server_options(Limits(), shares_port=True)) for _ in range(2)
    ]
    for server in sharing:
        assert await bind(server, address, shares_port=True) == address
    for each in held:
        each.close()
    with pytest.raises(InvalidParameter, match="in use"):
        await bind(new_server(), address)
    for server in sharing:
        await server.stop(None)


async def test_what_cannot_be_held_as_a_whole_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The port is picked where it is free, and only then taken at the other address.

    So nothing depends on other processes: one that has it at the other address takes it as well.
    """
    bound: list[socket.socket] = []
    taken: list[socket.socket] = []

    class Watched(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            if address[0] == "127.0.0.1":
                bound.append(self)
                with suppress(OSError):
                    taken.append(socket.create_server(("127.0.0.2", self.getsockname()[1])))

    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    with monkeypatch.context() as patch:
        patch.setattr(socket, "socket", Watched)
        with pytest.raises(InvalidParameter, match="in use"):
            await hold("name:0")
    probe, held = bound
    assert (probe.fileno(), held.fileno()) == (-1, -1), "still bound"
    for each in taken:
        each.close()
