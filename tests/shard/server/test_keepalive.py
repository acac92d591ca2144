"""Pings on an idle connection: those of a client's keepalive do not end it."""

from __future__ import annotations

import asyncio
import struct

import grpc

from tests.http2 import ACK, GOAWAY, PING, PREFACE, SETTINGS, frame
from vectorshard.shard.config import Limits
from vectorshard.shard.server.grpc_options import server_options

PINGS = 4
"""gRPC ends a connection with the third ping that comes too early."""

GAP_S = 1.02
"""Between pings: the server allows one a second; gRPC clients send one in 10 s at the most."""


async def kinds_of(reader: asyncio.StreamReader, found: list[tuple[int, int]]) -> None:
    """Add the kind and the flags of each frame that arrives."""
    while head := await reader.read(9):
        await reader.readexactly(int.from_bytes(head[:3], "big"))
        found.append((head[3], head[4]))


async def test_pings_on_an_idle_connection_are_answered_and_do_not_end_it() -> None:
    server = grpc.aio.server(options=server_options(Limits()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    found: list[tuple[int, int]] = []
    reading = asyncio.ensure_future(kinds_of(reader, found))
    writer.write(PREFACE + frame(SETTINGS))
    for number in range(PINGS):
        writer.write(frame(PING, payload=struct.pack(">Q", number)))
        await asyncio.sleep(GAP_S)
    reading.cancel()
    writer.close()
    await server.stop(None)
    assert found.count((PING, ACK)) == PINGS
    assert GOAWAY not in {kind for kind, _ in found}
