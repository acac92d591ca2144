"""The options of a channel."""

from __future__ import annotations

from vectorshard.client.channel import CLIENT_OPTIONS
from vectorshard.router.remote import connection
from vectorshard.shard.config import Limits


def test_a_channel_takes_messages_up_to_the_limit_of_the_contract() -> None:
    for options in (dict(CLIENT_OPTIONS), dict(connection.CHANNEL_OPTIONS)):
        for direction in ("send", "receive"):
            assert options[f"grpc.max_{direction}_message_length"] == Limits().message_bytes
