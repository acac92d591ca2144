"""Several router processes on one port, and their parent.

A router's work is on one event loop, and so on one core. Its state is that of its shards, so there
may be as many routers as there are cores; the kernel distributes connections among them
(SO_REUSEPORT). Each is a fresh process, because grpc does not survive a fork.

The parent serves nothing. It reserves the port before the workers listen, so that no other server
can take it. It reports that it listens once all workers do, and passes SIGTERM on. A worker that
ends unasked is restarted, unless that happens too often. The parent ends when all workers have
ended, and a worker ends when its parent does, whatever ended the parent.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import IO, Final, Protocol

import structlog

from vectorshard.shard.config import LISTENING, ServerConfig
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.server.listening import hold, join_address, split_address

RESTARTS: Final = 5
RESTARTS_WITHIN_S: Final = 60.0
"""At most RESTARTS within this time; more have a cause that no restart removes."""

_log = structlog.get_logger(__name__)


class Worker(Protocol):
    """One router process."""

    async def listening(self) -> bool:
        """Return True once it serves; False if it ends first."""
        ...

    async def ended(self) -> int:
        """Wait until it ends, and return its exit code."""
        ...

    def stop(self) -> None:
        """Tell it to drain and end."""
        ...


class StartedWorker:
    """A worker in a child process. The parent reads its stdout."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running

    @classmethod
    async def start(cls, command: Sequence[str]) -> StartedWorker:
        """Start it, in this environment."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    async def listening(self) -> bool:
        """Return True once it prints that it serves; False if it ends first."""
        assert self._running.stdout is not None
        return (await self._running.stdout.readline()).decode().startswith(LISTENING)

    async def ended(self) -> int:
        """Wait until it ends, and return its exit code."""
        return await self._running.wait()

    def stop(self) -> None:
        """Send it SIGTERM: it drains and ends."""
        if self._running.returncode is None:
            self._running.terminate()


class Workers:
    """Starts `total` workers, and restarts those that end. Call `run` once.

    `start` starts the worker of a number, from 0.
    """

    def __init__(
        self,
        total: int,
        start: Callable[[int], Awaitable[Worker]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._total = total
        self._start = start
        self._clock = clock
        self._running: dict[int, Worker] = {}
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._stopping = False

    def stop(self) -> None:
        """Tell all workers to drain and end."""
        self._stopping = True
        for worker in self._running.values():
            worker.stop()

    async def run(self, all_listen: Callable[[], None]) -> int:
        """Wait until all workers have ended; return 0, or the first exit code that is not 0.

        `all_listen` is called once, when all workers serve. If one ends before that, the others are
        stopped.
        """
        for number in range(self._total):
            self._running[number] = await self._start(number)
        ready = asyncio.gather(*(worker.listening() for worker in self._running.values()))
        ready.add_done_callback(lambda _: self._report(ready, all_listen))
        codes = await asyncio.gather(*(self._keep(number, ready) for number in self._running))
        return next((code for code in codes if code), 0)

    def _report(self, ready: asyncio.Future[list[bool]], all_listen: Callable[[], None]) -> None:
        if not self._stopping and all(ready.result()):
            all_listen()

    async def _keep(self, number: int, ready: asyncio.Future[list[bool]]) -> int:
        """Restart a worker whenever it ends, as often as allowed; return its last exit code."""
        while True:
            code = await self._running[number].ended()
            if self._stopping:  # a worker that was still starting is killed by the signal
                return 0 if code == -signal.SIGTERM else code
            if not ready.done() or not all(ready.result()):
                _log.error("worker did not start", worker=number, exit_code=code)
            elif self._may_restart():
                _log.warning("worker restarted", worker=number, exit_code=code)
                self._running[number] = await self._start(number)
                if self._stopping:
                    self._running[number].stop()
                continue
            else:
                _log.error("workers restarted too often", worker=number, exit_code=code)
            self.stop()
            return code or 1

    def _may_restart(self) -> bool:
        now, restarts = self._clock(), self._restarts
        if len(restarts) == RESTARTS and now - restarts[0] < RESTARTS_WITHIN_S:
            return False
        restarts.append(now)
        return True


def config_of_worker(server: ServerConfig, number: int, listen: str) -> ServerConfig:
    """Return a worker's addresses: `listen`, and metrics and health on the given port + number.

    Raises InvalidParameter if that port is above 65535.
    """

    def nth(address: str | None, field: str) -> str | None:
        if address is None:
            return None
        host, port = split_address(address, field)
        if port == 0:
            return address
        if port + number > 65_535:
            raise InvalidParameter(f"port {port} + worker {number} is above 65535", field=field)
        return join_address(host, port + number)

    return replace(
        server,
        listen=listen,
        metrics=nth(server.metrics, "metrics"),
        health=nth(server.health, "health"),
        shares_port=True,
    )


def worker_command(
    shards: Sequence[str], partial: bool, server: ServerConfig, log_format: str
) -> list[str]:
    """Return the command line of a worker over the shards at these addresses."""
    options = {
        "--listen": server.listen,
        "--metrics": server.metrics,
        "--health": server.health,
        "--lame-duck": server.lame_duck_s,
        "--connection-age": server.connection_age_s,
        "--log-format": log_format,
    }
    return [
        *(sys.executable, "-m", "vectorshard.cli", "router", "--shares-port"),
        *(word for address in shards for word in ("--shard", address)),
        *(["--partial"] if partial else []),
        *(str(word) for option in options.items() if option[1] is not None for word in option),
    ]


async def serve_workers(
    total: int, *, shards: Sequence[str], partial: bool, server: ServerConfig, log_format: str
) -> int:
    """Run a router in several processes until SIGTERM or SIGINT; return the exit code.

    Prints ``listening on HOST:PORT`` once all workers serve. Raises InvalidParameter if a worker
    cannot listen on an address.
    """
    address, held = await hold(server.listen)
    commands = [
        worker_command(shards, partial, config_of_worker(server, each, address), log_format)
        for each in range(total)
    ]
    workers = Workers(total, lambda each: StartedWorker.start(commands[each]))
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, workers.stop)
    with ExitStack() as closing:
        for each in held:
            closing.enter_context(each)
        return await workers.run(lambda: print(f"{LISTENING}{address}", flush=True))


def end_with(parent: IO[bytes]) -> None:
    """Send this process SIGTERM when the pipe `parent` is closed; its other end writes nothing."""

    def wait() -> None:
        parent.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
