"""AsyncClient and event loops: created anywhere, used in one loop at a time, closed."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading

import numpy as np
import pytest

from tests.client.fake_server import FakeServer
from vectorshard import AsyncClient, Client
from vectorshard.client import calls

AT_MODULE_LEVEL = AsyncClient("127.0.0.1:1")
"""Created while this module is imported, when no loop runs."""

METHODS = [
    name
    for name, each in vars(calls).items()
    if inspect.isfunction(each) and each.__module__ == calls.__name__ and name[0] != "_"
]
"""The functions of the table."""


@pytest.fixture
def outside(target: str, server: FakeServer) -> AsyncClient:
    """Return a client that was created outside a loop, of a server with a few rows."""
    server.rows = {number: (np.eye(3)[number], b"") for number in range(3)}
    return AsyncClient(target, timeout_s=10.0)


def test_a_client_is_created_without_a_loop_and_can_be_closed_unused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    asyncio.run(AT_MODULE_LEVEL.close())


def test_a_client_created_outside_works_in_the_loop_that_uses_it(outside: AsyncClient) -> None:
    async def use() -> tuple[int, int, int]:
        async with outside:
            await outside.wait_until_ready()
            async with outside.search_stream() as stream:
                hits = await stream.search("words", np.eye(3), k=2)
            return (
                await outside.count("words"),
                len(hits),
                len(await outside.search("words", [1.0, 0, 0])),
            )

    assert asyncio.run(use()) == (3, 3, 1)


def test_a_stream_may_be_created_outside_a_loop(outside: AsyncClient) -> None:
    stream = outside.search_stream()

    async def use() -> int:
        async with outside, stream:
            return len(await stream.search("words", np.eye(3)))

    assert asyncio.run(use()) == 3


def test_a_client_connects_again_in_the_next_loop_once_its_own_is_closed(
    outside: AsyncClient,
) -> None:
    for _ in range(3):
        assert asyncio.run(outside.count("words")) == 3
    gc.collect()  # what is left of the earlier channels must not complain
    asyncio.run(outside.close())


def test_a_client_is_refused_to_a_second_loop_while_its_own_is_open(outside: AsyncClient) -> None:
    refused: list[BaseException] = []

    def elsewhere() -> None:
        for use in (outside.count("words"), outside.close()):
            try:
                asyncio.run(use)
            except RuntimeError as error:
                refused.append(error)

    async def use() -> int:
        assert await outside.count("words") == 3
        other = threading.Thread(target=elsewhere)
        other.start()
        await asyncio.to_thread(other.join)
        return await outside.count("words")

    async def whole() -> int:
        try:
            return await use()
        finally:
            await outside.close()

    assert asyncio.run(whole()) == 3, "and it still works in its own"
    assert ["another event loop" in str(error) for error in refused] == [True, True]


def test_a_closed_client_takes_no_calls_and_may_be_closed_again(outside: AsyncClient) -> None:
    async def use() -> None:
        assert await outside.count("words") == 3
        await outside.close()
        await outside.close()
        with pytest.raises(RuntimeError, match="closed"):
            await outside.count("words")
        with pytest.raises(RuntimeError, match="closed"):
            await outside.upsert("words", range(60_000), np.zeros((60_000, 3)))

    asyncio.run(use())
    with pytest.raises(RuntimeError, match="closed"):
        asyncio.run(outside.count("words"))


# ---- the table of calls --------------------------------------------------------------------------


def test_both_clients_have_every_call_of_the_table() -> None:
    assert {*METHODS} >= {"create_collection", "upsert", "delete", "list_rows", "search", "explain"}
    assert all(hasattr(client, name) for client in (Client, AsyncClient) for name in METHODS)
    written = {name for name in vars(Client) if name[0] != "_"}
    assert written - {*METHODS} == {"search_stream", "wait_until_ready", "close", "target"}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_and_the_docstring_of_its_call(name: str) -> None:
    build = getattr(calls, name)
    told = [*inspect.signature(build).parameters.values()]
    for client in (Client, AsyncClient):
        method = getattr(client, name)
        itself, *parameters = inspect.signature(method).parameters.values()
        assert itself.name == "self"
        assert parameters == told
        assert method.__doc__ == build.__doc__
        assert method.__qualname__ == f"{client.__name__}.{name}"
        returned = inspect.signature(method).return_annotation
        assert method.__annotations__["return"] == returned
        assert "UnaryCall" not in returned
        assert [*inspect.signature(getattr(client("127.0.0.1:1"), name)).parameters] == [
            parameter.name for parameter in told
        ]
    assert inspect.iscoroutinefunction(getattr(AsyncClient, name)) is (name != "list_rows")
    assert not inspect.iscoroutinefunction(getattr(Client, name))
