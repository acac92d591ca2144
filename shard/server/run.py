"""A gRPC server around a Shard: listening, health, reflection, and a graceful stop.

A stop begins with the lame duck: health reports NOT_SERVING, and calls are answered as before until
the callers have left. Then the server drains: it ends the streams, sends GOAWAY, finishes the calls
in progress, and closes the shard, which commits.
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

from vectorshard.shard.config import LISTENING, Limits, ServerConfig
from vectorshard.shard.errors import CannotListen, VectorShardError
from vectorshard.shard.protocol import Shard
from vectorshard.shard.runtime.allocator import keep_few_arenas
from vectorshard.shard.runtime.numpy_threads import use_one_thread
from vectorshard.shard.server.grpc_options import server_options
from vectorshard.shard.server.health import HEALTH_SERVICE, HealthPort, Heartbeat, LoopHealth
from vectorshard.shard.server.held import hold, needs_an_operator
from vectorshard.shard.server.listening import bind, join_address, split_address
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import (
    LedgerCollector,
    ProblemsCollector,
    RpcMetrics,
    serve_metrics,
)
from vectorshard.shard.types import Role
from vectorshard.shard.wire.rpcs import SERVICE_NAME

DRAIN_S = 30.0
"""How long calls in progress may take to finish once the server drains."""

LINGER_S = 0.2
"""How long connections stay open after the streams have ended, so that clients that still write
receive the status; and how long other services' streams, such as reflection's, stay after that."""

QUIET_S = 0.2
"""Time without a call after which the callers are considered to have left."""

SWITCH_INTERVAL_S = 0.0005
"""How long a Python thread makes others wait. Measured: with 5 ms, the p50 of a search is 11 ms."""

_log = structlog.get_logger(__name__)


async def run_server(
    open_shard: Callable[[], Awaitable[Shard]],
    limits: Limits,
    config: ServerConfig,
    collectors: Iterable[Collector] = (),
) -> None:
    """Serve a shard until SIGTERM or SIGINT, then drain, and close it.

    The shard is opened after the addresses are bound: a server that cannot listen touches no rows.
    Prints ``listening on HOST:PORT`` once it can serve. `collectors` add metrics.

    Raises
    ------
    CannotListen
        If it cannot listen on an address.

    And what `open_shard` raises; with `config.hold`, what only an operator can mend is raised when
    the server is stopped, and until then every call fails with it.
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
        try:
            shard = await open_shard()
        except VectorShardError as refusal:
            if config.hold and needs_an_operator(refusal):
                await hold(server, refusal, heartbeat, health_port, _signalled().wait)
            raise
        try:
            if config.metrics is not None:
                _export(registry, shard, (await shard.topology()).role)
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


def _export(registry: CollectorRegistry, shard: Shard, role: Role) -> None:
    loop = asyncio.get_running_loop()
    registry.register(ProblemsCollector(shard, loop))
    if role is not Role.ROUTER:  # whose shards export their rows themselves
        registry.register(LedgerCollector(shard, loop))


def _listen_for_metrics(registry: CollectorRegistry, listen: str) -> None:
    host, port = split_address(listen, "metrics")
    try:
        port = serve_metrics(registry, host, port)
    except OSError as error:
        raise CannotListen(
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
    stopping = _signalled()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    server.add_generic_rpc_handlers((service.handler(),))
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    names = (SERVICE_NAME, HEALTH_SERVICE, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(names, server)
    await server.start()
    # Exclude the objects that exist now from garbage collection: else a full collection visits
    # 66,000 objects of imported modules each time, and stops every call for 17 ms.
    gc.collect()
    gc.freeze()
    print(f"{LISTENING}{address}", flush=True)

    await stopping.wait()
    _log.info("lame duck", timeout_s=lame_duck_s)
    health.drain()
    await callers_left(service, lame_duck_s)
    _log.info("draining", timeout_s=DRAIN_S)
    with suppress(TimeoutError):
        if await asyncio.wait_for(service.drain(), DRAIN_S):
            await asyncio.sleep(LINGER_S)  # closing the connections now would lose their status
    finishing = asyncio.ensure_future(server.stop(DRAIN_S))
    drained = asyncio.ensure_future(service.drained())
    await asyncio.wait({finishing, drained}, return_when=asyncio.FIRST_COMPLETED)
    drained.cancel()
    await server.stop(LINGER_S)
    _log.info("stopped")


def _signalled() -> asyncio.Event:
    """Return what SIGTERM and SIGINT set from now on."""
    stopping = asyncio.Event()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, stopping.set)
    return stopping


async def callers_left(service: VectorService, at_most_s: float) -> None:
    """Return once no call has arrived for QUIET_S, or the time has passed."""
    loop = asyncio.get_running_loop()
    end = loop.time() + at_most_s
    while True:
        wait_s = min(QUIET_S - service.quiet_s(), end - loop.time())
        if wait_s <= 0:
            return
        await asyncio.sleep(wait_s)
