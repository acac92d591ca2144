"""Workers that a test ends as it likes: who is started anew, and when that is over."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.cli.workers import (
    RESTARTS,
    RESTARTS_WITHIN_S,
    Workers,
    config_of_worker,
    worker_command,
)
from vectorshard.shard.config import ServerConfig
from vectorshard.shard.errors import InvalidParameter


@dataclass(eq=False)
class FakeWorker:
    """Serves when it is told to; ends when it is told to, or stopped."""

    serves: asyncio.Future[bool] = field(default_factory=asyncio.Future)
    code: asyncio.Future[int] = field(default_factory=asyncio.Future)
    code_when_stopped: int = 0

    async def listening(self) -> bool:
        """Return when it serves; False when it ends first."""
        either: list[asyncio.Future[Any]] = [self.serves, self.code]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        return self.serves.done()

    async def ended(self) -> int:
        """Return its exit code."""
        return await asyncio.shield(self.code)

    def stop(self) -> None:
        """End it."""
        if not self.code.done():
            self.code.set_result(self.code_when_stopped)


class Running:
    """Two workers, and all those that have taken their places."""

    def __init__(self) -> None:
        self.started: list[FakeWorker] = []
        self.numbers: list[int] = []
        self.times_told = 0
        self.now = 0.0
        self.workers = Workers(2, self._start, clock=lambda: self.now)
        self.code = asyncio.ensure_future(self.workers.run(self._told))

    async def _start(self, number: int) -> FakeWorker:
        self.numbers.append(number)
        self.started.append(FakeWorker())
        return self.started[-1]

    def _told(self) -> None:
        self.times_told += 1

    async def settled(self) -> None:
        """Return when nothing more happens by itself."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def serving(self) -> Running:
        """Return when both serve."""
        await self.settled()
        for worker in self.started:
            worker.serves.set_result(True)
        await self.settled()
        return self

    async def ends(self, worker: int, code: int = -9) -> None:
        """Have one that was started end by itself."""
        self.started[worker].code.set_result(code)
        await self.settled()

    async def ended(self) -> int:
        """Return the exit code of all."""
        return await asyncio.wait_for(self.code, DEADLINE_S)


async def test_they_are_said_to_listen_once_and_only_when_all_do() -> None:
    running = Running()
    await running.settled()
    running.started[0].serves.set_result(True)
    await running.settled()
    assert running.times_told == 0
    running.started[1].serves.set_result(True)
    await running.settled()
    assert running.times_told == 1
    running.workers.stop()
    assert await running.ended() == 0


async def test_one_that_cannot_start_ends_all_with_its_code() -> None:
    running = Running()
    await running.settled()
    running.started[0].serves.set_result(True)
    await running.ends(1, code=3)
    assert await running.ended() == 3
    assert running.times_told == 0
    assert len(running.started) == 2


async def test_one_that_ends_by_itself_is_started_anew_in_its_place() -> None:
    running = await Running().serving()
    await running.ends(1)
    assert running.numbers == [0, 1, 1]
    assert running.times_told == 1
    running.workers.stop()
    assert await running.ended() == 0, "the one that was killed is forgotten"


async def test_one_that_ends_while_all_are_stopped_is_not_started_anew() -> None:
    running = await Running().serving()
    running.started[0].code_when_stopped = 7
    running.workers.stop()
    assert await running.ended() == 7
    assert len(running.started) == 2


async def test_one_that_is_stopped_while_it_starts_has_not_failed() -> None:
    running = Running()
    await running.settled()
    for worker in running.started:
        worker.code_when_stopped = -signal.SIGTERM
    running.workers.stop()
    assert await running.ended() == 0
    assert running.times_told == 0


async def test_workers_that_end_again_and_again_end_all() -> None:
    running = await Running().serving()
    for _ in range(RESTARTS):
        await running.ends(-1)
    assert not running.code.done()
    await running.ends(-1, code=0)
    assert await running.ended() == 1, "it has failed, whatever the worker says"
    assert len(running.started) == 2 + RESTARTS


async def test_workers_that_seldom_end_are_started_anew_for_ever() -> None:
    running = await Running().serving()
    for _ in range(3 * RESTARTS):
        running.now += RESTARTS_WITHIN_S / RESTARTS
        await running.ends(-1)
    assert not running.code.done()
    running.workers.stop()
    assert await running.ended() == 0


# ---- where they serve ---------------------------------------------------------------------------


def test_each_worker_has_metrics_and_health_at_a_port_of_its_own() -> None:
    server = ServerConfig(listen="localhost:0", metrics="[::1]:9000", health="127.0.0.1:0")
    assert config_of_worker(server, 2, "localhost:7700") == ServerConfig(
        listen="localhost:7700", metrics="[::1]:9002", health="127.0.0.1:0", shares_port=True
    )


def test_a_port_beyond_the_last_is_refused() -> None:
    server = ServerConfig(listen="localhost:0", metrics="127.0.0.1:65535")
    with pytest.raises(InvalidParameter, match="65535 \\+ worker 1"):
        config_of_worker(server, 1, "localhost:7700")


def test_a_worker_is_told_what_its_parent_was() -> None:
    server = ServerConfig(listen="h:1", shares_port=True, health="h:2", lame_duck_s=0.5)
    command = worker_command(["a:1", "b:2"], True, server, "json")
    text = " ".join(command)
    assert "router --shares-port --shard a:1 --shard b:2 --partial --listen h:1" in text
    assert "--health h:2 --lame-duck 0.5" in text
    assert text.endswith("--log-format json")
    assert "--metrics" not in text
