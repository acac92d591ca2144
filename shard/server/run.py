"""A gRPC server around a Shard: listening, health, reflection, and an end that loses nothing.

Told to stop, it first says so, in its health, and answers as before until its callers have left;
then it ends the streams, tells the connections, finishes what runs, and lets the shard commit.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Awaitable, Callable, Iterable
from contextlib import ExitStack, suppress
from importlib.metadata import version

import grpc
import structlog
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from vectorshard.shard.config import CONNECTION_AGE_S, LISTENING, Limits, ServerConfig
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.protocol import Shard
from vectorshard.shard.runtime.allocator import keep_few_arenas
from vectorshard.shard.runtime.numpy_threads import use_one_thread
from vectorshard.shard.server.health import HEALTH_SERVICE, HealthPort, Heartbeat, LoopHealth
from vectorshard.shard.server.listening import bind, join_address, split_address
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import LedgerCollector, RpcMetrics, serve_metrics
from vectorshard.shard.types import Role
from vectorshard.shard.wire.rpcs import SERVICE_NAME

DRAIN_S = 30.0
"""How long calls that run may take to finish once the server is told to stop."""

LINGER_S = 0.2
"""How long connections stay after our streams have ended, so that clients that still write hear
of it; and how long streams that are not ours, such as reflection's, once our calls are done."""

QUIET_S = 0.2
"""How long no call must have arrived for callers to have left."""

READ_AHEAD_BYTES = 4 * 1024 * 1024
"""Bytes of a stream that wait in this process to be read; then the network holds its sender back.
Over a round trip of 50 ms that is 80 MB/s."""

SWITCH_INTERVAL_S = 0.0005
"""How long a Python thread keeps the others waiting; measured, 5 ms makes a search's p50 11 ms."""

_log = structlog.get_logger(__name__)


def server_options(
    limits: Limits, connection_age_s: float = CONNECTION_AGE_S, *, shares_port: bool = False
) -> list[tuple[str, int]]:
    """Return the options of a gRPC server that holds its messages to the limits."""
    return [
        ("grpc.max_receive_message_length", limits.message_bytes),
        ("grpc.max_send_message_length", limits.message_bytes),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.max_concurrent_streams", limits.connection_calls),
        # Routers ask by pings whether a server is there; by default gRPC takes one in 5 minutes.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        # Clients look a name up when a connection ends, and not before. What runs on it goes on for
        # as long as it takes: a bulk load, or another's stream, is not ended for this. grpc varies
        # the age by a tenth, so that not all come back at once.
        ("grpc.max_connection_age_ms", round(connection_age_s * 1_000)),
        # What a connection may send before it is read. By default gRPC lets it grow as far as the
        # network's speed suggests: 50 MB and more of an upload that nobody reads yet.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", READ_AHEAD_BYTES),
        (
            "grpc.so_reuseport",
            int(shares_port),
        ),  # a second server on the port must fail, not share it silently
    ]


async def run_server(
    open_shard: Callable[[], Awaitable[Shard]],
    limits: Limits,
    config: ServerConfig,
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
    use_one_thread()
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    heartbeat = Heartbeat()
    server = grpc.aio.server(
        options=server_options(limits, config.connection_age_s, shares_port=config.shares_port)
    )
    address = await bind(server, config.listen, shares_port=config.shares_port)
    with ExitStack() as closing:
        if config.metrics is not None:
            _listen_for_metrics(registry, config.metrics)
        health_port = None
        if config.health is not None:
            health_port = HealthPort(config.health, SERVICE_NAME, heartbeat)
            closing.callback(health_port.stop)
        shard = await open_shard()
        try:
            role = (await shard.topology()).role
            # Of a router's rows its shards tell.
            if config.metrics is not None and role is not Role.ROUTER:
                registry.register(LedgerCollector(shard, asyncio.get_running_loop()))
            service = VectorService(shard, limits, version("vectorshard"), RpcMetrics(registry))
            health = LoopHealth(shard, SERVICE_NAME, heartbeat)
            beating = asyncio.ensure_future(health.beat())
            if health_port is not None:
                health_port.start()
                _log.info("serving health", address=health_port.address)
            try:
                await _serve(server, service, health, address, config.lame_duck_s)
            finally:
                beating.cancel()
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
    server: grpc.aio.Server,
    service: VectorService,
    health: LoopHealth,
    address: str,
    lame_duck_s: float,
) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopping.set)
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    server.add_generic_rpc_handlers((service.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, HEALTH_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    await server.start()
    # What is there now stays: without it a full collection looks at 66,000 objects of imported
    # modules each time, and stops every call for 17 ms.
    gc.collect()
    gc.freeze()
    print(f"{LISTENING}{address}", flush=True)

    await stopping.wait()
    _log.info("leaving", callers_may_take_s=lame_duck_s)
    health.drain()
    await callers_left(service, lame_duck_s)
    _log.info("draining", calls_may_take_s=DRAIN_S)
    with suppress(TimeoutError):
        if await asyncio.wait_for(service.drain(), DRAIN_S):
            await asyncio.sleep(LINGER_S)  # a connection that goes at once takes their status along
    finishing = asyncio.ensure_future(server.stop(DRAIN_S))
    drained = asyncio.ensure_future(service.drained())
    await asyncio.wait({finishing, drained}, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    await server.stop(LINGER_S)
    _log.info("stopped")


async def callers_left(service: VectorService, at_most_s: float) -> None:
    """Answer as before until no call has arrived for a moment, or the time is over."""
    loop = asyncio.get_running_loop()
    end = loop.time() + at_most_s
    while True:
        wait_s = min(QUIET_S - service.quiet_s(), end - loop.time())
        if wait_s <= 0:
            return
        await asyncio.sleep(wait_s)
