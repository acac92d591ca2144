"""The Shard under test: every test of the suite runs once over each backend."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.backends import BACKENDS, Stage
from tests.conformance.hosts import Hosts, SharedGate, some_hosts
from tests.shard.samples import DEADLINE_S, SMALL_ENGINE
from vectorshard.shard.types import CollectionDescription

Until = Callable[[Callable[[CollectionDescription], bool]], Awaitable[CollectionDescription]]


@pytest.fixture(scope="session")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    """Processes that serve, for as long as the session lasts."""
    with some_hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield hosts


@pytest_asyncio.fixture(params=BACKENDS)
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, hosts: Hosts
) -> AsyncIterator[Stage]:
    """A Shard on an empty directory."""
    backend = BACKENDS[request.param]
    gate = SharedGate()
    shard = await backend.open(tmp_path, SMALL_ENGINE, gate, hosts)
    stage = Stage(backend, tmp_path, shard, gate, hosts)
    try:
        yield stage
    finally:
        gate.open()
        await stage.shard.close()


@pytest.fixture
def until(stage: Stage) -> Until:
    """Ask for descriptions until one is as it should become; fail when it never does."""

    async def wait(reached: Callable[[CollectionDescription], bool]) -> CollectionDescription:
        deadline = time.monotonic() + DEADLINE_S
        while not reached(description := await stage.describe()):
            assert time.monotonic() < deadline, f"never reached: {description}"
        return description

    return wait
