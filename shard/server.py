"""A gRPC server around a Shard: listening, health, reflection, and a drain that loses nothing."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from importlib.metadata import version
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from shard.allocator import keep_few_arenas
from shard.config import Limits
from shard.errors import InvalidParameter
from shard.listening import bind, join_address, split_address
from shard.protocol import Shard
from shard.service import SERVICE_NAME, VectorService
from shard.telemetry import LedgerCollector, RpcMetrics, serve_metrics
from shard.types import Role

DRAIN_S = 30.0
"""How long calls that run may take to finish once the server is told to stop."""

LINGER_S = 0.2
"""How long connections stay after our streams have ended, so that clients that still write hear
of it; and how long streams that are not ours, such as reflection's, once our calls are done."""

HEALTH_LOOK_S = 1.0
"""How often a service is looked at for those that watch it."""

_HEALTH_SERVICES = frozenset({"", SERVICE_NAME})

READ_AHEAD_BYTES = 4 * 1024 * 1024
"""Bytes of a stream that wait in this process to be read; then the network holds its sender back.
Over a round trip of 50 ms that is 80 MB/s."""

SWITCH_INTERVAL_S = 0.0005
"""How long a Python thread keeps the others waiting; measured, 5 ms makes a search's p50 11 ms."""

_log = structlog.get_logger(__name__)


def server_options(limits: Limits) -> list[tuple[str, int]]:
    """Return the options of a gRPC server that holds its messages to the limits."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        # Routers ask by pings whether a server is there; by default gRPC takes one in 5 minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        # What a connection may send before it is read. By default gRPC lets it grow as far as the
        # network's speed suggests: 50 MB and more of an upload that nobody reads yet.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
        ("grpc.so_reuseport", 0),  # a second server on the port must fail, not share it silently
    ]


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """grpc.health.v1: "" is the process, and serves until the drain; the service's own name says
    whether calls make sense, which on a router takes a shard that it knows.

    Unlike grpc's own servicer it ends the calls of watchers, for which the drain would wait.
    """

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Serve no more."""
        self._draining.set()

    async def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        statuses = health_pb2.HealthCheckResponse
        if service not in _HEALTH_SERVICES:
            return statuses(status=statuses.SERVICE_UNKNOWN)
        serves = not self._draining.is_set()
        if service:
            serves = serves and bool((await self._shard.topology()).shards)
        return statuses(status=statuses.SERVING if serves else statuses.NOT_SERVING)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Tell a service's status."""
        if request.service not in _HEALTH_SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service}")
        return await self._answer(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Tell a service's status now, and when it changes; after the drain nothing will."""
        told = None
        while True:
            last = self._draining.is_set()  # looked at first: what is told then is the drain
            answer = await self._answer(request.service)
            if answer != told:
                await context.write(answer)
                told = answer
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), HEALTH_LOOK_S)


async def run_server(
    open_shard: Callable[[], Awaitable[Shard]],
    limits: Limits,
    listen: str,
    metrics_listen: str | None = None,
    collectors: Iterable[Collector] = (),
) -> None:
    """Serve a shard until SIGTERM or SIGINT, then drain, and close it.

    It is opened once the addresses are taken: a server that cannot listen touches no rows. Prints
    ``listening on HOST:PORT`` once it can serve. Its metrics are those of `collectors`, too.

    Raises
    ------
    InvalidParameter
        If it cannot listen on an address. What `open_shard` raises.
    """
    keep_few_arenas()
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    server = grpc.aio.server(options=server_options(limits))
    address = await bind(server, listen)
    if metrics_listen is not None:
        _listen_for_metrics(registry, metrics_listen)
    shard = await open_shard()
    try:
        role = (await shard.topology()).role
        if metrics_listen is not None and role is not Role.ROUTER:  # its shards tell of their rows
            registry.register(LedgerCollector(shard, asyncio.get_running_loop()))
        await _serve(server, shard, limits, address, RpcMetrics(registry))
    finally:
        await shard.close()


def _listen_for_metrics(registry: CollectorRegistry, listen: str) -> None:
    host, port = split_address(listen, "metrics")
    try:
        port = serve_metrics(registry, host, port)
    except OSError as error:
        raise InvalidParameter(
            f"cannot listen on {listen}: {error.strerror}", field="metrics"
        ) from None
    _log.info("serving metrics", address=join_address(host, port))


async def _serve(
    server: grpc.aio.Server, shard: Shard, limits: Limits, address: str, metrics: RpcMetrics
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    service = VectorService(shard, limits, version("vectorshard"), metrics)
    server.add_generic_rpc_handlers((service.handler(),))
    health_service = HealthService(shard)
    health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
    names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    await server.start()
    # What is there now stays: without it a full collection looks at 66,000 objects of imported
    # modules each time, and stops every call for 17 ms.
    gc.collect()
    gc.freeze()
    print(f"listening on {address}", flush=True)

    await stopping.wait()
    _log.info("draining", calls_may_take_s=DRAIN_S)
    health_service.drain()
    with suppress(TimeoutError):
        if await asyncio.wait_for(service.drain(), DRAIN_S):
            await asyncio.sleep(LINGER_S)  # a connection that goes at once takes their status along
    finishing = asyncio.ensure_future(server.stop(DRAIN_S))
    drained = asyncio.ensure_future(service.drained())
    await asyncio.wait({finishing, drained}, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    await server.stop(LINGER_S)
    _log.info("stopped")
