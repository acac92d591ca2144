"""What a client may be given as its target, and what a closed client does."""

from __future__ import annotations

import asyncio
import pickle
import re

import pytest

from vectorshard import AsyncClient, Client
from vectorshard.client.channel import checked_target
from vectorshard.shard.errors import InvalidParameter


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("", "target is empty; expected HOST:PORT"),
        ("http://a:7700", "target 'http://a:7700' is a URL; expected HOST:PORT, such as a:7700"),
        ("a:70000", "target 'a:70000' is invalid: port '70000' is not in 1..65,535"),
        ("a:0", "port '0' is not in"),
        ("[::1]:x", "port 'x' is not in"),
        ("dns:///a:70000", "port '70000' is not in"),
        (":7700", "target ':7700' has no host; expected HOST:PORT, such as 127.0.0.1:7700"),
        ("dns:///:7700", "has no host"),
        ("dns:///", "target 'dns:///' has no host; expected HOST:PORT, such as 127.0.0.1:7700"),
        ("a\0", r"target 'a\x00' contains a control character"),
        ("a:1,b:2", "target 'a:1,b:2' has several addresses; expected one HOST:PORT, a DNS name"),
        ("10.0.0.1:1,b", "has several addresses"),
        ("10.0.0.1:1,10.0.0.2:0", "target '10.0.0.2:0' is invalid: port '0' is not in"),
        (" a:1", "target ' a:1' contains white space"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused_at_once(
    kind: type[Client | AsyncClient], target: str, text: str
) -> None:
    with pytest.raises(InvalidParameter, match=re.escape(text)) as raised:
        kind(target)
    assert raised.value.field == "target"


@pytest.mark.parametrize(
    ("target", "read"),
    [
        ("a", "a:7700"),
        ("10.0.0.1", "10.0.0.1:7700"),
        ("::1", "[::1]:7700"),
        ("[::1]", "[::1]:7700"),
        ("dns:a", "dns:a:7700"),
        ("dns:///a.b", "dns:///a.b:7700"),
        ("a:1", "a:1"),
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1, 10.0.0.2:2", "ipv4:10.0.0.1:7700,10.0.0.2:2"),
    ],
)
def test_a_target_without_a_port_or_a_scheme_gets_the_default(target: str, read: str) -> None:
    assert checked_target(target) == read


@pytest.mark.parametrize(
    "target",
    [
        "a:7700",
        "[::1]:7700",
        "dns:a:1",
        "dns:///a:1",
        "dns://8.8.8.8/a:1",
        "unix:/s.sock",
        "unix:/a b/s.sock",
        "ipv4:10.0.0.1:1,10.0.0.2:1",
    ],
)
def test_other_targets_are_left_to_grpc(target: str) -> None:
    assert checked_target(target) == target
    Client(target).close()
    AsyncClient(target)


async def test_a_closed_async_client_is_not_entered_and_replaces_no_error(target: str) -> None:
    async with AsyncClient(target) as client:
        await client.server_info()
    with pytest.raises(RuntimeError, match=r"^the client is closed$"):
        await client.__aenter__()
    with pytest.raises(RuntimeError, match=r"^the client is closed$"):
        await client.server_info()


def test_the_error_of_a_block_outlives_a_client_of_another_loop(target: str) -> None:
    client = AsyncClient(target)
    first = asyncio.new_event_loop()
    first.run_until_complete(client.server_info())

    async def fail_elsewhere() -> None:
        async with client:
            raise KeyError("the caller's own")

    with pytest.raises(KeyError, match="the caller's own"):
        asyncio.run(fail_elsewhere())
    first.run_until_complete(client.close())
    first.close()


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_a_client_is_pickled_by_what_it_connects_to(kind: type[Client | AsyncClient]) -> None:
    client = kind("localhost", timeout_s=3, retry="all")
    copied = pickle.loads(pickle.dumps(client))
    assert type(copied) is kind
    assert copied.target == client.target == "localhost:7700"
    assert (copied._timeout_s, copied._retry) == (client._timeout_s, client._retry)
    assert repr(copied) == f"{kind.__name__}('localhost:7700')"
