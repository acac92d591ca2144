"""When a channel is replaced, and what becomes of the old one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import grpc
import pytest_asyncio

from tests.shard.samples import DEADLINE_S
from vectorshard.router.remote.connection import (
    CHANNEL_OPTIONS,
    DRAIN_S,
    RENEWAL_S,
    Connection,
)
from vectorshard.shard.config import Limits
from vectorshard.shard.server.grpc_options import server_options


class FakeChannel:
    """A channel that leads nowhere."""

    def __init__(self) -> None:
        self.state = grpc.ChannelConnectivity.READY
        self.idle = asyncio.Event()
        """Set when no call runs any more."""
        self.closings: list[float | None] = []

    def get_state(self) -> grpc.ChannelConnectivity:
        """Return the state that the test has set."""
        return self.state

    def unary_unary(self, method: str, **_: Any) -> object:
        """Return something that is another for every method."""
        return (self, method)

    async def close(self, grace: float | None = None) -> None:
        """Close once no call runs, if there is time for that."""
        self.closings.append(grace)
        if grace is not None:
            await self.idle.wait()


class Connected:
    """A connection over fake channels."""

    def __init__(self) -> None:
        self.now = 0.0
        self.channels: list[FakeChannel] = []
        self.connection = Connection(
            "shard-0:7700", channel_to=self._channel, clock=lambda: self.now
        )

    def _channel(self, target: str) -> grpc.aio.Channel:
        assert target == "shard-0:7700"
        self.channels.append(FakeChannel())
        return cast("grpc.aio.Channel", self.channels[-1])

    @property
    def used(self) -> int:
        """The number of the channel in use."""
        return self.channels.index(cast("FakeChannel", self.connection.channel))


@pytest_asyncio.fixture
async def connected() -> AsyncIterator[Connected]:
    """A connection whose channel is old enough to be replaced."""
    connected = Connected()
    connected.now = RENEWAL_S
    yield connected
    await asyncio.wait_for(connected.connection.close(), DEADLINE_S)
    assert all(channel.closings for channel in connected.channels)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "something is left running"


async def test_whoever_is_answered_by_another_looks_the_name_up_anew(connected: Connected) -> None:
    connected.connection.resolve_again()
    assert len(connected.channels) == 2
    assert connected.used == 1
    connected.now += RENEWAL_S
    connected.connection.resolve_again()
    assert connected.used == 2


async def test_a_channel_has_some_time_before_it_is_replaced(connected: Connected) -> None:
    connected.connection.resolve_again()
    connected.now += 0.9 * RENEWAL_S
    connected.channels[1].state = grpc.ChannelConnectivity.TRANSIENT_FAILURE
    connected.connection.resolve_again()
    connected.connection.note_unanswered()
    assert len(connected.channels) == 2


async def test_a_channel_that_is_connected_by_now_is_kept(connected: Connected) -> None:
    connected.connection.note_unanswered()
    assert len(connected.channels) == 1
    connected.channels[0].state = grpc.ChannelConnectivity.CONNECTING
    connected.connection.note_unanswered()
    assert len(connected.channels) == 2


async def test_rpcs_are_those_of_the_channel_and_are_made_once(connected: Connected) -> None:
    count = connected.connection.rpc("Count")
    assert connected.connection.rpc("Count") is count
    assert connected.connection.rpc("Get") is not count
    connected.connection.resolve_again()
    assert connected.connection.rpc("Count") is not count


async def test_calls_go_on_over_a_channel_that_was_replaced(connected: Connected) -> None:
    old = connected.channels[0]
    connected.connection.resolve_again()
    await asyncio.sleep(0)
    assert old.closings == [DRAIN_S]
    old.idle.set()
    await asyncio.sleep(0)
    await connected.connection.close()
    assert old.closings == [DRAIN_S], "it was closed by then"


async def test_closing_waits_for_no_call_of_any_channel(connected: Connected) -> None:
    connected.connection.resolve_again()
    await asyncio.sleep(0)
    await asyncio.wait_for(connected.connection.close(), DEADLINE_S)
    assert [channel.closings[-1] for channel in connected.channels] == [None, None]


def test_a_host_that_is_gone_without_a_word_is_noticed_by_pings_that_its_server_bears() -> None:
    client, server = dict(CHANNEL_OPTIONS), dict(server_options(Limits()))
    assert client["grpc.keepalive_time_ms"] + client["grpc.keepalive_timeout_ms"] <= 8_000
    assert client["grpc.http2.ping_timeout_ms"] <= client["grpc.keepalive_timeout_ms"]
    assert client["grpc.http2.max_pings_without_data"] == 0, "a call that waits sends nothing"
    least_ms = server["grpc.http2.min_ping_interval_without_data_ms"]
    assert least_ms < client["grpc.keepalive_time_ms"], "else it closes the connection"
