"""What a client does in a forked child, and what it says about ports that are no server of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from vectorshard import Client
from vectorshard.shard.errors import ShardUnavailable, Unsupported

FORKS = """
import os, sys
from vectorshard import Client

client = Client(sys.argv[1], timeout_s=10)
client.server_info()
children = []
for child in range(3):
    if (pid := os.fork()) == 0:
        try:
            for _ in range(20):
                client.server_info()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
        sys.exit(0)
    children.append(pid)
for _ in range(20):
    client.server_info()
print([os.waitpid(pid, 0)[1] for pid in children])
client.server_info()
"""

FORKS_AFTER_ASYNCIO = """
import asyncio, gc, os, sys
from vectorshard import AsyncClient, Client
from vectorshard.errors import ClientUnusable

blocking = Client(sys.argv[1])

async def ask():
    client = AsyncClient(sys.argv[1], timeout_s=10)
    await client.server_info()
    if sys.argv[2] == "closed":
        await client.close()
    else:
        left_open.append(client)

left_open = []
gc.disable()
asyncio.run(ask())  # leaves the closed channel in a cycle of garbage
if (pid := os.fork()) == 0:
    for call in (lambda: asyncio.run(ask()), blocking.server_info):
        try:
            call()
        except ClientUnusable as error:
            print(error, flush=True)
    left_open.clear()
    gc.collect()
    sys.exit(0)
print(os.waitpid(pid, 0)[1])
"""


def said(program: str, *arguments: str) -> str:
    """Return what a program prints. It forks: in a process that has called nothing of grpc."""
    with subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            told, errors = running.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)  # with its children, which may spin for ever
            raise
    assert running.returncode == 0, errors
    return told


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_forked_child_asks_over_a_connection_for_itself(target: str) -> None:
    assert said(FORKS, target) == "[0, 0, 0]\n"


@pytest.mark.parametrize("client", ["closed", "open"])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_after_asyncio_calls_a_forked_child_is_told_instead_of_waiting_for_ever(
    target: str, client: str
) -> None:
    told = said(FORKS_AFTER_ASYNCIO, target, client).splitlines()
    assert told.pop() == "0"
    assert len(told) == 2
    assert all("this process was forked after calls of an AsyncClient" in each for each in told)


@pytest.fixture
def speaker() -> Iterator[tuple[socket.socket, ThreadPoolExecutor]]:
    """Return a socket that listens on a free port, and threads to answer in."""
    with socket.create_server(("127.0.0.1", 0)) as listening, ThreadPoolExecutor(1) as threads:
        yield listening, threads
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    ("greeting", "text"),
    [
        (b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", "does not speak gRPC: .* HTTP"),
        (b"", "closed the connection: it is a TLS port, or its server is stopping"),
    ],
)
def test_a_port_of_another_protocol_is_named_in_our_words(
    speaker: tuple[socket.socket, ThreadPoolExecutor], greeting: bytes, text: str
) -> None:
    listening, threads = speaker

    def answer() -> None:
        try:
            while True:
                connected, _ = listening.accept()
                with connected:
                    connected.recv(1_000)
                    connected.sendall(greeting)
        except OSError:
            return

    threads.submit(answer)
    address = f"127.0.0.1:{listening.getsockname()[1]}"
    with Client(address, timeout_s=10) as client, pytest.raises(ShardUnavailable) as caught:
        client.count("words")
    assert str(caught.value).startswith(f"{address} ")
    assert caught.match(text)


def test_a_port_without_a_listener_and_another_service_are_named_in_our_words() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with Client(address) as client, pytest.raises(ShardUnavailable) as caught:
            client.count("words")
    assert str(caught.value) == f"no server answers at {address}: connection refused"
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(Unsupported, match="another service"):
        client.count("words")
    other.stop(None).wait()
