"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

import asyncio

import grpc

from shard import server as shard_server
from shard.config import Limits
from tests.shard.samples import DEADLINE_S


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
