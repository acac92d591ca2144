"""Liveness and readiness of a server: grpc.health.v1, on the server's port and on a separate one.

On the server's port, the event loop answers, so the answer shows what a client will meet there. On
the separate port, a dedicated thread answers. It answers even when the event loop is overloaded,
and reports a loop that is stuck, of which the server's port reports nothing. The thread reads a
heartbeat that the event loop writes.

The service "" is the process. The service's own name reports readiness; a router is ready once it
knows a shard.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, Final

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from vectorshard.shard.errors import CannotListen
from vectorshard.shard.protocol import Shard
from vectorshard.shard.server.listening import join_address, split_address

HEALTH_SERVICE: Final[str] = health.SERVICE_NAME

LOOK_S = 1.0
"""The interval of heartbeats, and of checks for watchers."""

SILENT_S: Final = 10.0
"""How long an event loop may be silent: longer than any FAISS call or full garbage collection."""

CHECKS_MAX: Final = 100
"""The largest number of checks in progress on the separate port."""

_STATUSES: Final = health_pb2.HealthCheckResponse


def _response(serves: bool) -> health_pb2.HealthCheckResponse:
    return _STATUSES(status=_STATUSES.SERVING if serves else _STATUSES.NOT_SERVING)


class Heartbeat:
    """The last state that the event loop wrote, for other threads. `clock` is in seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at = clock()
        self._is_ready = False
        self._drains = False

    def beat(self, *, is_ready: bool) -> None:
        """Record that the loop runs, and whether the server is ready."""
        self._is_ready = is_ready
        self._beat_at = self._clock()

    def drain(self) -> None:
        """Record that the server stops, permanently."""
        self._drains = True

    @property
    def is_alive(self) -> bool:
        """Whether the last heartbeat is recent, and the server does not stop."""
        return not self._drains and self._clock() - self._beat_at < SILENT_S

    @property
    def is_ready(self) -> bool:
        """Whether the server is alive and ready."""
        return self.is_alive and self._is_ready


class LoopHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health, answered by the event loop.

    Unlike grpc's own servicer it ends the calls of watchers, for which the drain would wait. The
    server is ready if the topology of `shard` has a shard; `beat` writes the heartbeat.
    """

    def __init__(self, shard: Shard, service: str, heartbeat: Heartbeat) -> None:
        self._shard = shard
        self._services = frozenset({"", service})
        self._heartbeat = heartbeat
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Report NOT_SERVING from now on."""
        self._heartbeat.drain()
        self._draining.set()

    async def beat(self) -> None:
        """Write the heartbeat until cancelled."""
        while True:
            self._heartbeat.beat(is_ready=await self._is_ready())
            await asyncio.sleep(LOOK_S)

    async def _is_ready(self) -> bool:
        return bool((await self._shard.topology()).shards)

    async def _answer(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return _STATUSES(status=_STATUSES.SERVICE_UNKNOWN)
        serves = not self._draining.is_set()
        return _response(serves and (not service or await self._is_ready()))

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return await self._answer(request.service)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """Send the status of a service now and whenever it changes, until the server drains."""
        sent = None
        while True:
            last = self._draining.is_set()  # read first, so that the last answer is of the drain
            answer = await self._answer(request.service)
            if answer != sent:
                await context.write(answer)
                sent = answer
            if last:
                return
            with suppress(TimeoutError):
                await asyncio.wait_for(self._draining.wait(), LOOK_S)


class ThreadHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health from the heartbeat. `Watch` is UNIMPLEMENTED, because it would occupy the thread."""

    def __init__(self, service: str, heartbeat: Heartbeat) -> None:
        self._service = service
        self._heartbeat = heartbeat

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Return the status of a service."""
        if request.service == self._service:
            return _response(self._heartbeat.is_ready)
        if request.service:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service}")
        return _response(self._heartbeat.is_alive)


class HealthPort:
    """A separate port and thread that answer health, from the heartbeat. Must be stopped.

    The address is HOST:PORT; port 0 picks one. Raises CannotListen if it cannot listen there.
    """

    def __init__(self, address: str, service: str, heartbeat: Heartbeat) -> None:
        self._server = grpc.server(
            ThreadPoolExecutor(1, "health"),
            options=[("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=CHECKS_MAX,
        )
        health_pb2_grpc.add_HealthServicer_to_server(ThreadHealth(service, heartbeat), self._server)
        host, _ = split_address(address, "health")
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            raise CannotListen(
                f"cannot listen on {address}: the address is in use, or not of this machine",
                field="health",
            ) from None
        self.address = join_address(host, port)

    def start(self) -> None:
        """Begin to answer; earlier connections wait until then."""
        self._server.start()

    def stop(self) -> threading.Event:
        """Stop answering; the event is set when the port is closed."""
        return self._server.stop(None)
