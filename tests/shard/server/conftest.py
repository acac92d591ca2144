"""The fixtures of the service's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.shard.server.bare import Bare, Stub, bare
from tests.shard.server.served import Served, serving


@pytest_asyncio.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path) as served:
        yield served


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Bare]:
    async with bare(tmp_path_factory.mktemp("shared")) as shared:
        yield shared


@pytest_asyncio.fixture(loop_scope="module")
async def stub(shared: Bare) -> AsyncIterator[Stub]:
    """A stub of a service, whose collections must be as before when the test ends."""
    before = await shared.state()
    yield shared.stub
    assert await shared.state() == before
