"""Servers with few open files: connections are bounded, and every collection is served."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from tests.shard.samples import some_vectors
from tests.system.conftest import ServerProcess, Starter, check_does_not_start, log_entries
from vectorshard.client.client import Client
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.types import Metric

pytestmark = pytest.mark.system

HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""The preface of HTTP/2 and empty settings: a connection that then asks for nothing."""


def limited(files: int) -> list[str]:
    """Return the command that starts another with so many open files at most."""
    return ["prlimit", f"--nofile={files}:{files}"]


@contextmanager
def idle_connections(address: str, number: int) -> Iterator[list[socket.socket]]:
    """Lend connections that ask for nothing."""
    host, port = address.split(":")
    with ExitStack() as opened:
        connections = []
        for _ in range(number):
            connection = opened.enter_context(socket.create_connection((host, int(port)), 10))
            connections.append(connection)
            with suppress(OSError):  # closed already: one too many
                connection.sendall(HELLO)
        yield connections


def files_of(server: ServerProcess) -> int:
    """Return how many files a server has open."""
    assert server.process is not None
    return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))


def use(client: Client, name: str, first: int) -> None:
    """Write to a collection and read what was written."""
    vectors = some_vectors(5, seed=first)
    ids = np.arange(first, first + 5)
    client.upsert(name, ids, vectors, metadata=[{"n": int(number)} for number in ids])
    found = client.search(name, vectors, 1, exact=True, metadata=True)
    assert found.ids.tolist() == ids.tolist()
    assert client.get(name, [first]).ids.tolist() == [first]


def use_all(server: ServerProcess, client: Client, collections: int, files: int) -> None:
    """Create so many collections, use each, use each again, and drop some."""
    names = [f"c{number}" for number in range(collections)]
    for name in names:
        client.create_collection(name, dim=8, metric=Metric.L2)
        use(client, name, 0)
        assert files_of(server) <= files
    for name in names:
        use(client, name, 5)
        assert files_of(server) <= files
    for name in names[::10]:
        client.drop_collection(name)
    assert len(client.list_collections()) == collections - len(names[::10])
    assert client.count(names[-1]) == 10


def test_idle_connections_and_collections_share_few_files(start_server: Starter) -> None:
    files = 360
    server = start_server.shard(0, 1, prefix=limited(files))
    with server.client() as client:
        client.list_collections()
        with idle_connections(server.address, 300):
            use_all(server, client, 25, files)
            limits = client.server_info().limits
            (problem,) = client.server_info().problems
    assert limits.connections == (files - 96 - 8) // 2
    assert problem.kind is ProblemKind.LIMIT
    assert f"the limit of open files, {files}," in problem.text
    warned = [entry for entry in log_entries(server) if entry["event"].startswith("limit of the")]
    assert [entry["reason"] for entry in warned] == [problem.text]
    server.stop()
    server.start()
    with server.client() as client:
        assert client.count("c24") == 10
        use(client, "c24", 10)
    server.stop()


def test_too_few_files_for_any_server_are_a_refusal_with_its_code(start_server: Starter) -> None:
    server = start_server.shard(0, 1, prefix=limited(110), start=False)
    check_does_not_start(server, "the limit of open files, 110, suffices", 17)


@pytest.mark.system_long
def test_a_thousand_collections_and_as_many_connections_fit_into_4096_files(
    start_server: Starter,
) -> None:
    files = 4_096
    options = ("--connection-age", "100000")
    server = start_server.shard(0, 1, prefix=limited(files), options=options)
    with server.client() as client:
        client.list_collections()
        with idle_connections(server.address, 1_023):
            use_all(server, client, 1_000, files)
            assert list(client.server_info().problems) == []
    server.stop()
    server.start()
    with server.client() as client, idle_connections(server.address, 1_000):
        for number in range(1, 1_000, 7):
            if number % 10:
                use(client, f"c{number}", 10)
        assert files_of(server) <= files
    server.stop()
