"""A fleet whose processes are restarted one after the other, while clients that repeat what failed
search and write through both routers: no call fails, and no acknowledged row is lost.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.net.operations import never_seen
from tests.system.acknowledged import DIM, Acknowledged, vectors_of
from tests.system.conftest import ServerProcess, Starter, log_lines, start_all
from vectorshard import Client, Retry
from vectorshard.shard.types import Metric

NAME = "rolling"
SHARDS = 2
SEEN = range(2_000)
"""Rows that are there from the start, and are never written again: searches must find them."""
TIMEOUT_S = 10.0
CALLERS = 2
"""Of each kind: some search, some write."""
ROWS_A_WRITE = 20
PAUSE_S = 0.005
"""Between two calls of a caller: without it, the callers starve the processes that start."""
SETTLED_S = 0.5
"""How long the load goes on between two restarts, and after the last."""


@dataclass(slots=True)
class Load:
    """Callers that search and write until they are told to stop."""

    target: str
    acknowledged: Acknowledged
    ending: threading.Event = field(default_factory=threading.Event)
    failures: list[str] = field(default_factory=list)
    searches: int = 0
    writes: int = 0
    slowest_s: float = 0.0

    def _client(self) -> Client:
        return Client(self.target, timeout_s=TIMEOUT_S, retry=Retry.ALL)

    def _until_the_end(self, act: Callable[[Client, int], None]) -> None:
        with self._client() as client:
            number = 0
            while not self.ending.is_set():
                began = time.monotonic()
                try:
                    act(client, number)
                except Exception as error:
                    self.failures.append(f"{type(error).__name__}: {error}")
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                number += 1
                time.sleep(PAUSE_S)

    def search(self) -> None:
        """Search for rows that are there, again and again."""

        def act(client: Client, number: int) -> None:
            asked = [id_ % len(SEEN) for id_ in range(number, number + 3)]
            hits = client.search(NAME, vectors_of(asked, 1), k=1)
            assert hits.ids.tolist() == asked
            assert hits.receipt.coverage == 1.0
            self.searches += 1

        self._until_the_end(act)

    def write(self, first_id: int) -> None:
        """Write new rows from an id on, and again and again some of them."""

        def act(client: Client, number: int) -> None:
            first = first_id + (number // 2) * ROWS_A_WRITE  # each write is followed by another one
            self.acknowledged.upsert(client, NAME, range(first, first + ROWS_A_WRITE))
            self.writes += 1

        self._until_the_end(act)


def restart(process: ServerProcess) -> str:
    """Stop a process as an operator does, and start it anew where it was.

    Returns what its health turns to when it is told, as docs/operations.md shows it.
    """
    with process.channel() as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        process.terminate()
        status = health_pb2.HealthCheckResponse.ServingStatus.Name(next(watch).status)
    assert process.ended() == 0, process.log_text()
    process.start_again()
    return f"health {status}"


def check_rounds(start_server: Starter, rounds: int) -> None:
    """Restart every process of a fleet, so many rounds, under load."""
    shards = [start_server.shard(number, SHARDS, start=False) for number in range(SHARDS)]
    start_all(shards)
    addresses = [shard.address for shard in shards]
    routers = [start_server.router(addresses) for _ in range(2)]
    acknowledged = Acknowledged(with_metadata=False)
    target = "ipv4:" + ",".join(router.address for router in routers)
    with Client(target) as client:
        client.create_collection(NAME, dim=DIM, metric=Metric.L2)
        acknowledged.upsert(client, NAME, SEEN)
    load = Load(target, acknowledged)
    took: list[float] = []
    seen: set[str] = set()
    with ThreadPoolExecutor(2 * CALLERS) as threads:
        running = [threads.submit(load.search) for _ in range(CALLERS)]
        running += [
            threads.submit(load.write, (1 + number) * 1_000_000) for number in range(CALLERS)
        ]
        try:
            for process in [*shards, *routers] * rounds:
                time.sleep(SETTLED_S)
                began = time.monotonic()
                seen.add(restart(process))
                took.append(time.monotonic() - began)
            time.sleep(SETTLED_S)
        finally:
            load.ending.set()
        for each in running:
            each.result()
    print(
        f"{rounds} rounds: {load.searches} searches and {load.writes} writes, the slowest in "
        f"{load.slowest_s:.2f} s; restarts took {_told(took)} s; {len(load.failures)} failed calls"
    )
    assert not load.failures, load.failures[:5]
    assert load.searches > 50 * rounds
    assert load.writes > 10 * rounds
    with Client(target) as client:
        acknowledged.check(client, NAME)
    for process in (*shards, *routers):
        assert not never_seen("Restarting", seen | log_lines(process))


def _told(seconds: Sequence[float]) -> str:
    return ", ".join(f"{each:.1f}" for each in seconds)


@pytest.mark.system
def test_a_fleet_is_restarted_under_load_and_no_call_fails(start_server: Starter) -> None:
    check_rounds(start_server, 1)


@pytest.mark.system_long
def test_a_fleet_is_restarted_three_times_under_load_and_no_call_fails(
    start_server: Starter,
) -> None:
    check_rounds(start_server, 3)
