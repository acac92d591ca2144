"""Health, as the event loop tells it and as a thread does; a process's is in tests/system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.shard.samples import ALL_SLOTS, DEADLINE_S
from vectorshard.shard.descriptions import ShardPlacement, Topology
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.protocol import Shard
from vectorshard.shard.server import health as shard_health
from vectorshard.shard.server.health import SILENT_S, HealthPort, Heartbeat, LoopHealth
from vectorshard.shard.types import NO_LIMIT, Call, Role
from vectorshard.shard.wire.rpcs import SERVICE_NAME

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class RouterOfNone:
    """A router that knows no shard, until it finds one."""

    def __init__(self) -> None:
        self.shards: tuple[ShardPlacement, ...] = ()

    def find_a_shard(self) -> None:
        """Know one."""
        self.shards = (ShardPlacement(shard=0, slots=ALL_SLOTS),)

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say what is known."""
        return Topology(
            role=Role.ROUTER,
            cluster="cluster",
            placement_epoch=1,
            shards_total=len(self.shards),
            shards=self.shards,
        )


@dataclass
class Watched:
    """A router's health behind a port, and ways to ask for it."""

    router: RouterOfNone
    health: LoopHealth
    heartbeat: Heartbeat
    stub: Any

    async def status(self, service: str) -> int:
        """Check a service."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await self.stub.Check(request, timeout=DEADLINE_S)
        return int(answer.status)

    def watch(self, service: str) -> AsyncIterator[Any]:
        """Watch a service."""
        request = health_pb2.HealthCheckRequest(service=service)
        return cast("AsyncIterator[Any]", aiter(self.stub.Watch(request, timeout=DEADLINE_S)))


@pytest_asyncio.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watched]:
    monkeypatch.setattr(shard_health, "LOOK_S", 0.001)
    router = RouterOfNone()
    heartbeat = Heartbeat()
    health = LoopHealth(cast("Shard", router), SERVICE_NAME, heartbeat)
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Watched(router, health, heartbeat, health_pb2_grpc.HealthStub(channel))
    await server.stop(None)


async def test_a_router_that_knows_no_shard_lives_but_is_not_ready(watched: Watched) -> None:
    assert await watched.status("") == SERVING
    assert await watched.status(SERVICE_NAME) == NOT_SERVING
    watched.router.find_a_shard()
    assert await watched.status(SERVICE_NAME) == SERVING


async def test_who_watches_is_told_each_change_and_the_end(watched: Watched) -> None:
    readiness, liveness = watched.watch(SERVICE_NAME), watched.watch("")
    assert (await anext(readiness)).status == NOT_SERVING
    assert (await anext(liveness)).status == SERVING
    watched.router.find_a_shard()
    assert (await anext(readiness)).status == SERVING
    watched.router.shards = ()
    assert (await anext(readiness)).status == NOT_SERVING
    watched.health.drain()
    assert (await anext(liveness)).status == NOT_SERVING
    for answers in (readiness, liveness):
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(answers), DEADLINE_S)


async def test_a_draining_server_is_neither_alive_nor_ready(watched: Watched) -> None:
    watched.router.find_a_shard()
    watched.health.drain()
    assert await watched.status("") == NOT_SERVING
    assert await watched.status(SERVICE_NAME) == NOT_SERVING


async def test_the_health_of_another_service_is_not_known(watched: Watched) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await watched.status("grpc.health.v1.Health")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await anext(watched.watch("something.else"))).status == SERVICE_UNKNOWN


# ---- the heartbeat, and the thread that tells it ------------------------------------------------


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_the_heart_beats_what_the_loop_knows(watched: Watched) -> None:
    beating = asyncio.ensure_future(watched.health.beat())
    watched.router.find_a_shard()
    async with asyncio.timeout(DEADLINE_S):
        while not watched.heartbeat.is_ready:  # noqa: ASYNC110  # the heart's own time
            await asyncio.sleep(0)
    watched.health.drain()
    assert not watched.heartbeat.is_alive
    beating.cancel()


def test_a_heart_that_is_silent_for_too_long_is_dead_until_it_beats_again() -> None:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    heartbeat.beat(is_ready=True)
    clock.now += SILENT_S - 0.1
    assert heartbeat.is_alive
    assert heartbeat.is_ready
    clock.now += 0.1
    assert not heartbeat.is_alive
    assert not heartbeat.is_ready
    heartbeat.beat(is_ready=False)
    assert heartbeat.is_alive
    assert not heartbeat.is_ready


@dataclass
class Port:
    """A health port, and ways to move its time and to ask it."""

    clock: Clock
    heartbeat: Heartbeat
    address: str
    stub: Any

    def status(self, service: str) -> int:
        """Check a service."""
        request = health_pb2.HealthCheckRequest(service=service)
        return int(self.stub.Check(request, timeout=DEADLINE_S).status)


@pytest.fixture
def port() -> Iterator[Port]:
    clock = Clock()
    heartbeat = Heartbeat(clock)
    health = HealthPort("127.0.0.1:0", SERVICE_NAME, heartbeat)
    health.start()
    with grpc.insecure_channel(health.address) as channel:
        yield Port(clock, heartbeat, health.address, health_pb2_grpc.HealthStub(channel))
    health.stop().wait(DEADLINE_S)


def test_the_port_tells_the_heartbeat(port: Port) -> None:
    assert port.status("") == SERVING
    assert port.status(SERVICE_NAME) == NOT_SERVING
    port.heartbeat.beat(is_ready=True)
    assert port.status(SERVICE_NAME) == SERVING
    port.clock.now += SILENT_S
    assert port.status("") == NOT_SERVING
    assert port.status(SERVICE_NAME) == NOT_SERVING
    port.heartbeat.beat(is_ready=True)
    port.heartbeat.drain()
    assert port.status("") == NOT_SERVING


def test_the_port_knows_no_other_service_and_lets_nobody_watch(port: Port) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        port.status("something.else")
    assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.NOT_FOUND
    with pytest.raises(grpc.RpcError) as caught:
        next(port.stub.Watch(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S))
    assert cast("grpc.Call", caught.value).code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_port_that_is_taken_is_refused(port: Port) -> None:
    with pytest.raises(InvalidParameter, match="cannot listen on"):
        HealthPort(port.address, SERVICE_NAME, Heartbeat())
