"""What of the server needs no process; the rest is in tests/system."""

from __future__ import annotations

from shard import server as shard_server
from shard.config import Limits


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
