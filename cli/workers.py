"""Several router processes on one port: the parent that starts them, and ends with them.

A router's work is on one event loop, and so on one core. Its state is its children's, so that there
may be as many of it as there are cores; the kernel gives each connection to one of them
(SO_REUSEPORT). They are processes started anew, because grpc does not survive a fork.

The parent serves nothing. It holds the port before anybody listens, so that a server of somebody
else's cannot have it meanwhile; says that it listens once all workers do; passes SIGTERM on; starts
a worker anew that ends by itself, unless that happens too often; and ends when all of them have. A
worker ends when its parent does, whatever ended that.
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

from vectorshard.shard.config import ServerConfig
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.server.listening import hold, join_address, split_address

RESTARTS: Final = 5
RESTARTS_WITHIN_S: Final = 60.0
"""So many workers are started anew in so long; more have a reason that no start mends."""

SAYS: Final = "listening on "
"""What a server prints before its address once it can serve."""

_log = structlog.get_logger(__name__)


class Worker(Protocol):
    """One router process."""

    async def listening(self) -> bool:
        """Return when it says that it serves; False when it ends instead."""
        ...

    async def ended(self) -> int:
        """Return its exit code when it ends."""
        ...

    def stop(self) -> None:
        """Have it drain and end."""
        ...


class StartedWorker:
    """A worker, as a process of its own. What it prints is the parent's to say."""

    def __init__(self, running: asyncio.subprocess.Process) -> None:
        self._running = running

    @classmethod
    async def start(cls, command: Sequence[str]) -> StartedWorker:
        """Start it, in this environment."""
        pipe = asyncio.subprocess.PIPE
        return cls(await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe))

    async def listening(self) -> bool:
        """Return when it says that it serves; False when it ends instead."""
        assert self._running.stdout is not None
        return (await self._running.stdout.readline()).decode().startswith(SAYS)

    async def ended(self) -> int:
        """Return its exit code when it ends."""
        return await self._running.wait()

    def stop(self) -> None:
        """Have it drain and end."""
        if self._running.returncode is None:
            self._running.terminate()


class Workers:
    """Keeps workers running. Use `run` once.

    Parameters
    ----------
    number
        How many.
    start
        Starts the worker of a number, from 0.
    clock
        Seconds.
    """

    def __init__(
        self,
        number: int,
        start: Callable[[int], Awaitable[Worker]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._number = number
        self._start = start
        self._clock = clock
        self._running: dict[int, Worker] = {}
        self._restarts: deque[float] = deque(maxlen=RESTARTS)
        self._stopping = False

    def stop(self) -> None:
        """Have all workers drain and end."""
        self._stopping = True
        for worker in self._running.values():
            worker.stop()

    async def run(self, all_listen: Callable[[], None]) -> int:
        """Return when all workers have ended: 0, or the first exit code that is another.

        `all_listen` is called once, when all of them serve; not when one ends before that, which
        ends the others.
        """
        for number in range(self._number):
            self._running[number] = await self._start(number)
        ready = asyncio.gather(*(worker.listening() for worker in self._running.values()))
        ready.add_done_callback(lambda _: self._begun(ready, all_listen))
        codes = await asyncio.gather(*(self._keep(number, ready) for number in self._running))
        return next((code for code in codes if code), 0)

    def _begun(self, ready: asyncio.Future[list[bool]], all_listen: Callable[[], None]) -> None:
        if not self._stopping and all(ready.result()):
            all_listen()

    async def _keep(self, number: int, ready: asyncio.Future[list[bool]]) -> int:
        """Start a worker anew whenever it ends, until it may not; return its last exit code."""
        while True:
            code = await self._running[number].ended()
            if self._stopping:  # one that was still starting ends by the signal itself
                return 0 if code == -signal.SIGTERM else code
            if not ready.done() or not all(ready.result()):
                _log.error("a worker has not started", worker=number, exit_code=code)
            elif self._may_start():
                _log.warning("a worker is started anew", worker=number, exit_code=code)
                self._running[number] = await self._start(number)
                if self._stopping:
                    self._running[number].stop()
                continue
            else:
                _log.error("workers end again and again", worker=number, exit_code=code)
            self.stop()
            return code or 1

    def _may_start(self) -> bool:
        now, restarts = self._clock(), self._restarts
        if len(restarts) == RESTARTS and now - restarts[0] < RESTARTS_WITHIN_S:
            return False
        restarts.append(now)
        return True


def config_of_worker(server: ServerConfig, number: int, listen: str) -> ServerConfig:
    """Return where a worker serves: all on one port, metrics and health on the number-th after it.

    Raises
    ------
    InvalidParameter
        If there is no such port.
    """

    def nth(address: str | None, field: str) -> str | None:
        if address is None:
            return None
        host, port = split_address(address, field)
        if port == 0:
            return address
        if port + number > 65_535:
            raise InvalidParameter(f"{port} + {number} is no port", field=field)
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
    """Return the command of a worker over the shards at these addresses."""
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
    number: int, *, shards: Sequence[str], partial: bool, server: ServerConfig, log_format: str
) -> int:
    """Serve a router by several processes until SIGTERM or SIGINT, and return the exit code.

    Prints ``listening on HOST:PORT`` once all of them can serve.

    Raises
    ------
    InvalidParameter
        If it cannot listen on an address.
    """
    address, held = await hold(server.listen)
    commands = [
        worker_command(shards, partial, config_of_worker(server, each, address), log_format)
        for each in range(number)
    ]
    workers = Workers(number, lambda each: StartedWorker.start(commands[each]))
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signal_number, workers.stop)
    with ExitStack() as closing:
        for each in held:
            closing.enter_context(each)
        return await workers.run(lambda: print(f"{SAYS}{address}", flush=True))


def end_with(parent: IO[bytes]) -> None:
    """Have this process end by SIGTERM when `parent`, a pipe that nobody writes to, is closed."""

    def wait() -> None:
        parent.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="parent", daemon=True).start()
