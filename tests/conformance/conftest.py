"""The Shard under test: every test of the suite runs once over each backend."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from shard.types import CollectionDescription
from tests.conformance.backends import BACKENDS, Stage
from tests.shard.samples import DEADLINE_S, SMALL_ENGINE, TrainingGate

Until = Callable[[Callable[[CollectionDescription], bool]], Awaitable[CollectionDescription]]


@pytest_asyncio.fixture(params=BACKENDS)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    """A Shard on an empty directory."""
    backend = BACKENDS[request.param]
    gate = TrainingGate()
    shard = await backend.open(tmp_path, SMALL_ENGINE, gate)
    stage = Stage(backend, tmp_path, shard, gate)
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
