"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shard import server as shard_server
from shard.config import Limits
from shard.protocol import Shard
from shard.server import HealthService
from shard.service import SERVICE_NAME
from shard.types import NO_LIMIT, Call, Role, ShardPlacement, Topology
from tests.shard.samples import ALL_SLOTS, DEADLINE_S

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


def test_a_connection_sends_a_fixed_number_of_bytes_before_they_are_read_however_fast_it_is() -> (
    None
):
    options = dict(shard_server.server_options(Limits()))
    assert options["grpc.http2.bdp_probe"] == 0
    assert options["grpc.http2.lookahead_bytes"] == shard_server.READ_AHEAD_BYTES <= 4 * 2**20


# ---- health -------------------------------------------------------------------------------------


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
    health: HealthService
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
    monkeypatch.setattr(shard_server, "HEALTH_LOOK_S", 0.001)
    router = RouterOfNone()
    health = HealthService(cast("Shard", router))
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Watched(router, health, health_pb2_grpc.HealthStub(channel))
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
