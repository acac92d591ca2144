"""A server of the tests' own, and a client of either kind that asks it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from tests.client.fake_server import (
    Blocking,
    Connect,
    FakeServer,
)
from vectorshard import Client


@pytest.fixture
def server() -> FakeServer:
    """Return the server that `target` serves."""
    return FakeServer()


@pytest.fixture
def target(server: FakeServer) -> Iterator[str]:
    """Serve on a free port, with grpc's default limit of 4 MiB on requests."""
    running = grpc.server(ThreadPoolExecutor(4), handlers=[server.handler()])
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    yield f"127.0.0.1:{port}"
    server.released.set()
    running.stop(None).wait()


@pytest.fixture(params=["sync", "async"])
def connect(request: pytest.FixtureRequest) -> Iterator[Connect]:
    """Return what connects a client of either kind to a target."""
    clients: list[Any] = []

    def connect(target: str, timeout_s: float = 10.0, retry: str = "none") -> Any:
        kind = Client if request.param == "sync" else Blocking
        client = kind(target, timeout_s=timeout_s, retry=retry)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect: Connect, target: str) -> Any:
    """Return a client of either kind."""
    return connect(target)
