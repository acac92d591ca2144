"""What gRPC's core refuses without the service: clients take it for an overload, and repeat it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.client.fake_server import Connect, FakeServer
from tests.http2 import ACK, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame
from tests.shard.samples import DEADLINE_S
from vectorshard import Client
from vectorshard.shard.errors import Overloaded, ShardUnavailable

CANCEL, REFUSED_STREAM = 8, 7


class Resetting:
    """A server that ends each stream with an error of HTTP/2, from its own thread."""

    def __init__(self, code: int) -> None:
        self._code = code
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.target = f"127.0.0.1:{self._listening.getsockname()[1]}"
        self.calls = 0
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as received:
            connection.sendall(frame(SETTINGS))
            received.read(len(PREFACE))
            while head := received.read(9):
                received.read(int.from_bytes(head[:3], "big"))
                if head[3] == SETTINGS and not head[4] & ACK:
                    connection.sendall(frame(SETTINGS, ACK))
                elif head[3] == HEADERS:
                    self.calls += 1
                    stream = int.from_bytes(head[5:], "big")
                    connection.sendall(frame(RST_STREAM, 0, stream, self._code.to_bytes(4, "big")))

    def close(self) -> None:
        """Accept no more connections."""
        self._listening.close()


@pytest.fixture(params=[CANCEL, REFUSED_STREAM], ids=["CANCEL", "REFUSED_STREAM"])
def resetting(request: pytest.FixtureRequest) -> Iterator[Resetting]:
    """Lend a server that resets every call."""
    server = Resetting(request.param)
    yield server
    server.close()


def test_a_reset_by_the_server_is_an_overload(connect: Connect, resetting: Resetting) -> None:
    with pytest.raises(Overloaded, match=r"the server (cancelled|refused) the call"):
        connect(resetting.target).count("words")


def test_a_client_that_repeats_reads_repeats_it_with_pauses(
    connect: Connect, resetting: Resetting
) -> None:
    client = connect(resetting.target, timeout_s=0.5, retry="reads")
    with pytest.raises(Overloaded):
        client.count("words")
    assert 4 <= resetting.calls <= 40


def test_a_call_that_ends_with_its_client_is_no_overload(server: FakeServer, target: str) -> None:
    server.silent = True
    client = Client(target, timeout_s=DEADLINE_S)
    with ThreadPoolExecutor(1) as pool:
        counting = pool.submit(client.count, "words")
        while not server.asked:
            assert not counting.done()
        client.close()
        with pytest.raises(ShardUnavailable, match="the client is closing"):
            counting.result(DEADLINE_S)
