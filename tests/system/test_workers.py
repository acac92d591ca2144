"""A router of several processes on one port: they serve together, come back, and end together."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest

from tests.system.acknowledged import DIM, Acknowledged
from tests.system.conftest import (
    ServerProcess,
    Starter,
    check_does_not_start,
    new_name,
    start_all,
    unary_bytes,
    wait_until,
)
from vectorshard.shard.types import Metric
from vectorshard.v1 import vectorshard_pb2 as v1

pytestmark = pytest.mark.system

TWO = ["--workers", "2"]
NOBODY = ["127.0.0.1:1"]
CONNECTIONS = 16
"""So many that the kernel hardly gives all of them to one of two."""


def workers_of(parent: ServerProcess) -> set[int]:
    """Return the process ids of a parent's workers."""
    assert parent.process is not None
    pid = parent.process.pid
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def sockets_of(pid: int) -> int:
    """Return how many sockets a process has."""
    links = []
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(each.readlink()))
    return sum(link.startswith("socket:") for link in links)


def own_connection(router: ServerProcess) -> grpc.Channel:
    """Return a channel that shares its connection with no other."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    return grpc.insecure_channel(router.address, options=options)


def count_of(channel: grpc.Channel, name: str) -> int:
    """Return how many rows a collection has."""
    payload = v1.CountRequest(collection=name).SerializeToString()
    return v1.CountResponse.FromString(unary_bytes(channel, "Count")(payload)).count


def test_workers_serve_on_one_port_come_back_and_end_together(start_server: Starter) -> None:
    shards = [start_server.shard(shard, start=False) for shard in range(2)]
    start_all(shards)
    router = start_server.router([shard.address for shard in shards], options=TWO)
    workers = workers_of(router)
    assert len(workers) == 2
    rows, name = Acknowledged(), new_name()
    with router.client() as client:
        client.create_collection(name, dim=DIM, metric=Metric.L2)
        rows.upsert(client, name, range(50))
    sockets = {pid: sockets_of(pid) for pid in workers}
    with ExitStack() as closing:
        for _ in range(CONNECTIONS):
            channel = closing.enter_context(own_connection(router))
            assert count_of(channel, name) == 50
        assert all(sockets_of(pid) > before for pid, before in sockets.items()), "each serves some"

    for options in ([], TWO):
        second = start_server.router(NOBODY, listen=router.address, options=options, start=False)
        check_does_not_start(second, f"cannot listen on {router.address}", 10)

    killed = min(workers)
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(workers_of(router) - {killed}) == 2)
    for _ in range(CONNECTIONS):
        with own_connection(router) as channel:
            assert count_of(channel, name) == 50
    workers = workers_of(router)
    router.stop()
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_end_with_a_parent_that_is_killed(start_server: Starter) -> None:
    router = start_server.router(NOBODY, options=TWO)
    workers = workers_of(router)
    router.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


def test_one_that_cannot_start_ends_all_with_its_code_and_one_line(start_server: Starter) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics = f"127.0.0.1:{taken.getsockname()[1] - 1}"
        router = start_server.router(NOBODY, options=[*TWO, "--metrics", metrics], start=False)
        check_does_not_start(router, "cannot listen on 127.0.0.1:", 10)
