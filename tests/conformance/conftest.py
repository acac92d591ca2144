"""The Shard under test: every test of the suite runs over each backend.

A test with several kinds, such as metrics, runs with each of them over `WITH_EVERY_KIND`.
The other backends, in this process and in others, share its kinds among them: each kind runs over
one of both sorts, and each backend runs the test.

Of two backends that are `ALIKE`, `make test` runs each test over one, and `make test-long` over the
other.
"""

from __future__ import annotations

import time
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.conformance.backends import BACKENDS, IN_ONE_PROCESS, Stage
from tests.conformance.hosts import Hosts, SharedGate, some_hosts
from tests.shard.samples import DEADLINE_S, SMALL_ENGINE
from vectorshard.shard.descriptions import CollectionDescription

Until = Callable[[Callable[[CollectionDescription], bool]], Awaitable[CollectionDescription]]


WITH_EVERY_KIND = ("shard", "router-over-2")
OF_BOTH_SORTS = (
    [name for name in IN_ONE_PROCESS if name not in WITH_EVERY_KIND],
    [name for name in BACKENDS if name not in IN_ONE_PROCESS],
)


ALIKE = (
    ("router-over-5", "router-over-routers"),
    ("router-over-2-processes", "routers-over-4-processes"),
)
"""Routers over more than two shards of their own process, and routers over processes."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the kinds that another backend of the same sort runs; share out those alike."""
    leave_out_kinds(config, items)
    leave_to_the_long_tests(items)


def leave_to_the_long_tests(items: list[pytest.Item]) -> None:
    """Mark each test that runs over both of two backends that are alike, over one of them."""
    over: defaultdict[tuple[str, str], dict[str, pytest.Item]] = defaultdict(dict)
    for item in items:
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            places = dict(item.callspec.indices)  # of the parameters, which may have no repr
            places.pop("stage", None)
            backend = str(item.callspec.params.get("stage", ""))
            over[item.nodeid.split("[")[0], repr(places)][backend] = item
    for of_test, by_backend in over.items():
        for pair in ALIKE:
            if by_backend.keys() >= {*pair}:
                left = pair[zlib.crc32(" ".join(of_test).encode()) % 2]
                by_backend[left].add_marker(pytest.mark.system_long)


def leave_out_kinds(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the kinds that another backend of the same sort runs."""
    kinds_of: defaultdict[str, list[str]] = defaultdict(list)
    shared_out: list[tuple[pytest.Item, int, str]] = []
    for item in items:
        if not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
            continue
        kinds = dict(item.callspec.params)
        backend = kinds.pop("stage", "")
        for sort in OF_BOTH_SORTS:
            if backend in sort:
                kinds_of[item.nodeid.split("[")[0]].append(repr(kinds))
                shared_out.append((item, sort.index(backend), repr(kinds)))
    orders = {test: list(dict.fromkeys(kinds)) for test, kinds in kinds_of.items()}
    gone: list[pytest.Item] = []
    for item, place, kind in shared_out:
        order = orders[item.nodeid.split("[")[0]]
        shared = min(len(order), len(OF_BOTH_SORTS[0]))
        if order.index(kind) % shared != place % shared:
            gone.append(item)
    config.hook.pytest_deselected(items=gone)
    for item in gone:
        items.remove(item)


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
