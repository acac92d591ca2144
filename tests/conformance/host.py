"""Servers in processes of their own, for tests that hold a Shard over gRPC.

A host is a process that serves one shard or one router at a time, as it is told over its stdin: to
start a process for every test would take longer than the tests. It answers over its stdout, turns
the gate of its shard's trainings as the test turns its own, and ends as soon as its stdin does.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import grpc
import uvloop
from prometheus_client import CollectorRegistry

from tests.shard.samples import TrainingGate, identity_of, open_shard
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.router.remote.remote_shard import RemoteShard
from vectorshard.shard.config import EngineConfig, Limits
from vectorshard.shard.protocol import Shard
from vectorshard.shard.runtime.logs import configure_logs
from vectorshard.shard.server.grpc_options import server_options
from vectorshard.shard.server.run import SWITCH_INTERVAL_S
from vectorshard.shard.server.service import VectorService
from vectorshard.shard.server.telemetry import RpcMetrics

# ---- what a host is told ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TurnGate:
    """Let trainings start, and end, or hold them there."""

    start: bool
    end: bool


@dataclass(frozen=True, slots=True)
class ServeShard:
    """Open a shard on a directory and serve it; answered with HOST:PORT."""

    path: Path
    shard: int
    shards_total: int
    engine: EngineConfig
    gate: TurnGate


@dataclass(frozen=True, slots=True)
class ServeRouter:
    """Serve a router over servers; answered with HOST:PORT."""

    targets: Sequence[str]
    partial: bool


@dataclass(frozen=True, slots=True)
class CloseServer:
    """End the server and close what it served."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to what could not be done."""

    story: str


# ---- in the host --------------------------------------------------------------------------------


class _Host:
    """What runs in the process."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._gate = TrainingGate()
        self._shard: Shard | None = None
        self._server: grpc.aio.Server | None = None

    async def obey(self, order: object) -> None:
        """Do as told, and answer."""
        answer: object
        try:
            answer = await self._do(order)
        except Exception:
            answer = Failed(traceback.format_exc())
        pickle.dump(answer, self._answers)
        self._answers.flush()

    async def _do(self, order: object) -> str:
        match order:
            case ServeShard():
                await self._close()
                self._gate = TrainingGate()
                self._turn(order.gate)
                slots = slots_of_shard(order.shard, order.shards_total)
                self._shard = await asyncio.to_thread(
                    open_shard,
                    order.path,
                    identity=identity_of(order.shard, order.shards_total, slots),
                    engine=order.engine,
                    clock=self._gate,
                )
                return await self._serve(self._shard, order.engine.limits)
            case ServeRouter():
                await self._close()
                self._shard = await Router.connect(
                    [RemoteShard(target) for target in order.targets],
                    names=order.targets,
                    partial=order.partial,
                )
                return await self._serve(self._shard, Limits())
            case TurnGate():
                self._turn(order)
            case CloseServer():
                await self._close()
        return ""

    async def _serve(self, shard: Shard, limits: Limits) -> str:
        service = VectorService(shard, limits, "0", RpcMetrics(CollectorRegistry()))
        self._server = grpc.aio.server(options=server_options(limits))
        self._server.add_generic_rpc_handlers((service.handler(),))
        port = self._server.add_insecure_port("127.0.0.1:0")
        await self._server.start()
        return f"127.0.0.1:{port}"

    def _turn(self, turned: TurnGate) -> None:
        for event, is_open in ((self._gate.start, turned.start), (self._gate.end, turned.end)):
            if is_open:
                event.set()
            else:
                event.clear()

    async def _close(self) -> None:
        server, self._server = self._server, None
        shard, self._shard = self._shard, None
        if server is not None:
            await server.stop(None)
        if shard is not None:
            await shard.close()


async def _run(answers: IO[bytes]) -> None:
    """Obey the orders that come, one after the other."""
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[object] = asyncio.Queue()

    def read() -> None:
        while True:
            try:
                order = pickle.load(sys.stdin.buffer)
            except EOFError:
                os._exit(0)  # whoever gave orders is gone, and nothing here outlives the tests
            loop.call_soon_threadsafe(orders.put_nowait, order)

    threading.Thread(target=read, daemon=True).start()
    host = _Host(answers)
    while True:
        await host.obey(await orders.get())


def main() -> None:
    """Be a host until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which ends the hosts
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever is printed must not come between the answers
    configure_logs("console")
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    uvloop.run(_run(answers))
