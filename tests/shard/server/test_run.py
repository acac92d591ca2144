"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

import asyncio
import math
from typing import Any, cast

import grpc
import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.config import Limits
from vectorshard.shard.server import run as shard_server
from vectorshard.shard.server.service import VectorService


def test_a_connection_sends_a_fixed_number_of_bytes_before_they_are_read_however_fast_it_is() -> (
    None
):
    options = dict(shard_server.server_options(Limits()))
    assert options["grpc.http2.bdp_probe"] == 0
    assert options["grpc.http2.lookahead_bytes"] == shard_server.READ_AHEAD_BYTES <= 4 * 2**20


def test_connections_and_the_calls_on_each_are_bounded() -> None:
    options = dict(shard_server.server_options(Limits(connections=7, connection_calls=5)))
    assert options["grpc.max_allowed_incoming_connections"] == 7
    assert options["grpc.max_concurrent_streams"] == 5


async def test_a_connection_too_many_is_closed_when_it_is_made() -> None:
    server = grpc.aio.server(options=shard_server.server_options(Limits(connections=2)))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
    heads = [await asyncio.wait_for(reader.read(1), DEADLINE_S) for reader, _ in connections[:2]]
    assert all(heads), "HTTP/2 begins with the server's settings"
    assert await asyncio.wait_for(connections[2][0].read(1), DEADLINE_S) == b""
    for _, writer in connections:
        writer.close()
    await server.stop(None)


async def test_a_compressed_message_is_refused() -> None:
    async def answer(payload: bytes, _: object) -> bytes:
        return payload

    handlers: dict[str, Any] = {"Echo": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.aio.server(options=shard_server.server_options(Limits()))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/any/Echo")
        assert await echo(b"x" * 1_000, timeout=DEADLINE_S) == b"x" * 1_000
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await echo(b"x" * 1_000, compression=grpc.Compression.Gzip, timeout=DEADLINE_S)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    await server.stop(None)


def test_a_connection_that_does_nothing_does_not_keep_its_place() -> None:
    options = dict(shard_server.server_options(Limits()))
    assert options["grpc.server_handshake_timeout_ms"] == 5_000
    assert options["grpc.max_connection_idle_ms"] == 300_000


class Called:
    """A service that was called just now, so often as it is asked about it."""

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def quiet_s(self) -> float:
        self.calls -= 1
        return 0.0 if self.calls >= 0 else math.inf


@pytest.mark.parametrize(
    ("calls", "at_most_s", "asked"),
    [(0, 60.0, 1), (5, 60.0, 6), (1_000, 0.0, 1)],
    ids=["nobody calls", "callers that leave", "no time for them"],
)
async def test_a_server_that_stops_waits_until_nobody_calls(
    monkeypatch: pytest.MonkeyPatch, calls: int, at_most_s: float, asked: int
) -> None:
    monkeypatch.setattr(shard_server, "QUIET_S", 0.001)
    service = Called(calls)
    leaving = shard_server.callers_left(cast("VectorService", service), at_most_s)
    await asyncio.wait_for(leaving, DEADLINE_S)
    assert calls - service.calls == asked
