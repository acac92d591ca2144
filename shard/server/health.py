"""Whether a server lives and is ready: grpc.health.v1, on its own port and beside it.

The server's own port answers from the event loop, and so tells what a client will meet there. A
port of its own answers from a thread of its own: it answers when the event loop is at its limit,
and when that has stood still it says so, where the other can only be silent. What the thread knows
it is told by a heartbeat, which the event loop writes.

"" is the process; the service's own name says whether calls make sense, which on a router takes a
shard that it knows.
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

from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.protocol import Shard
from vectorshard.shard.server.listening import join_address, split_address

HEALTH_SERVICE: Final[str] = health.SERVICE_NAME

LOOK_S = 1.0
"""How often a service is looked at for those that watch it, and the heart beats."""

SILENT_S: Final = 10.0
"""How long an event loop may be silent: longer than any call of FAISS or a full collection."""

CHECKS_MAX: Final = 100
"""Checks of a port that wait at most."""

_STATUSES: Final = health_pb2.HealthCheckResponse


def _response(serves: bool) -> health_pb2.HealthCheckResponse:
    return _STATUSES(status=_STATUSES.SERVING if serves else _STATUSES.NOT_SERVING)


class Heartbeat:
    """What the event loop last said of itself, for other threads to read.

    Parameters
    ----------
    clock
        Seconds, from any origin.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._beat_at = clock()
        self._is_ready = False
        self._drains = False

    def beat(self, *, is_ready: bool) -> None:
        """Say that the loop runs, and whether calls make sense."""
        self._is_ready = is_ready
        self._beat_at = self._clock()

    def drain(self) -> None:
        """Say that the server stops; nothing changes that."""
        self._drains = True

    @property
    def is_alive(self) -> bool:
        """Whether the loop was heard of lately, and the server does not stop."""
        return not self._drains and self._clock() - self._beat_at < SILENT_S

    @property
    def is_ready(self) -> bool:
        """Whether it also takes calls that make sense."""
        return self.is_alive and self._is_ready


class LoopHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health as the event loop tells it.

    Unlike grpc's own servicer it ends the calls of watchers, for which the drain would wait.

    Parameters
    ----------
    shard
        Says whether there is something to ask.
    service
        The name of the service.
    heartbeat
        Where `beat` writes.
    """

    def __init__(self, shard: Shard, service: str, heartbeat: Heartbeat) -> None:
        self._shard = shard
        self._services = frozenset({"", service})
        self._heartbeat = heartbeat
        self._draining = asyncio.Event()

    def drain(self) -> None:
        """Serve no more."""
        self._heartbeat.drain()
        self._draining.set()

    async def beat(self) -> None:
        """Write the heartbeat, until this is cancelled."""
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
        """Tell a service's status."""
        if request.service not in self._services:
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
                await asyncio.wait_for(self._draining.wait(), LOOK_S)


class ThreadHealth(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # it has no types
    """Health as the heartbeat tells it; `Watch`, which would hold the thread, is UNIMPLEMENTED."""

    def __init__(self, service: str, heartbeat: Heartbeat) -> None:
        self._service = service
        self._heartbeat = heartbeat

    def Check(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> health_pb2.HealthCheckResponse:
        """Tell a service's status."""
        if request.service == self._service:
            return _response(self._heartbeat.is_ready)
        if request.service:
            context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service}")
        return _response(self._heartbeat.is_alive)


class HealthPort:
    """A port of its own, and a thread, that answer health. Must be stopped.

    Parameters
    ----------
    address
        HOST:PORT; port 0 picks one.
    service
        The name of the service.
    heartbeat
        What is told.

    Raises
    ------
    InvalidParameter
        If it cannot listen there.
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
            raise InvalidParameter(
                f"cannot listen on {address}: it is in use, or not of this machine", field="health"
            ) from None
        self.address = join_address(host, port)

    def start(self) -> None:
        """Begin to answer; who has connected before waits until then."""
        self._server.start()

    def stop(self) -> threading.Event:
        """Answer no more; the event is set when the port is closed."""
        return self._server.stop(None)
