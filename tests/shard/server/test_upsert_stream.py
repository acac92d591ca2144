"""The window of an upload: what is read ahead, what waits for what, and what is acknowledged."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import permutations
from random import Random
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st

from tests.shard.samples import DEADLINE_S, int64s, some_vectors, strings
from vectorshard.shard.errors import MalformedMessage, Overloaded, ShardUnavailable
from vectorshard.shard.server import upsert_stream as upload_module
from vectorshard.shard.server.memory_limiter import MemoryLimiter
from vectorshard.shard.server.stream_window import WINDOW_BYTES
from vectorshard.shard.server.upsert_stream import (
    WINDOW_MESSAGES,
    UpsertStreamHandler,
    share_an_id,
)
from vectorshard.shard.types import IdArray, UpsertRequest

BAD = b"bad"


@dataclass
class Message:
    """A message of an upload: its ids, and, as soon as it is being written, how that ends."""

    ids: IdArray
    message_bytes: int = 10
    written: asyncio.Future[bytes] = field(default_factory=asyncio.Future)

    @property
    def request(self) -> UpsertRequest:
        """What it says."""
        return UpsertRequest(collection="words", ids=self.ids, vectors=some_vectors(len(self.ids)))


class Stream:
    """An upload whose writes end when the test says so."""

    def __init__(
        self,
        messages: Sequence[Message | bytes],
        *,
        ends: bool = True,
        memory: MemoryLimiter | None = None,
    ) -> None:
        self.messages = messages
        self.read = 0
        self.begun: list[int] = []
        self.withdrawn: list[int] = []
        self.draining = asyncio.Event()
        self._ends = ends
        self.upload = UpsertStreamHandler(
            self._payloads(),
            self._decode,
            self._write,
            self.draining,
            memory or MemoryLimiter(WINDOW_BYTES, "writes"),
        )
        self.acknowledged: list[bytes] = []
        self.outcome = asyncio.ensure_future(self._take())

    async def _payloads(self) -> AsyncIterator[bytes]:
        for number, message in enumerate(self.messages):
            self.read = number + 1
            if isinstance(message, bytes):
                yield message
            else:
                yield str(number).encode().ljust(message.message_bytes)
        if not self._ends:
            await asyncio.Event().wait()

    def _decode(self, payload: bytes) -> tuple[UpsertRequest, int]:
        if payload == BAD:
            raise MalformedMessage("what is this", field="message")
        number = int(payload)
        return self.message(number).request, number

    async def _write(self, request: UpsertRequest, request_id: int) -> bytes:
        self.begun.append(request_id)
        try:
            return await self.message(request_id).written
        except asyncio.CancelledError:
            self.withdrawn.append(request_id)
            raise

    async def _take(self) -> None:
        async for acknowledgement in self.upload.answers():
            self.acknowledged.append(acknowledgement)

    def message(self, number: int) -> Message:
        """Return a message that is not bad."""
        message = self.messages[number]
        assert isinstance(message, Message)
        return message

    async def end(self, *numbers: int) -> None:
        """Let writes end, in this order."""
        for number in numbers:
            self.message(number).written.set_result(str(number).encode())
            await settled()

    async def ended(self) -> None:
        """Wait for the end; raise what ended it."""
        await asyncio.wait_for(self.outcome, DEADLINE_S)

    async def close(self) -> None:
        """Close the upload; nobody waits for acknowledgements any more."""
        self.outcome.cancel()
        await asyncio.gather(self.outcome, return_exceptions=True)
        await self.upload.close()


async def settled() -> None:
    """Return when nothing more happens by itself."""
    for _ in range(50):
        await asyncio.sleep(0)


Open = Callable[..., Stream]


@pytest_asyncio.fixture
async def opened() -> AsyncIterator[Open]:
    """Return what opens a stream, which is closed with the test."""
    streams: list[Stream] = []

    def open_stream(
        messages: Sequence[Message | bytes], kind: type[Stream] = Stream, **options: Any
    ) -> Stream:
        streams.append(kind(messages, **options))
        return streams[-1]

    yield open_stream
    for stream in streams:
        await stream.close()


def apart(number: int, message_bytes: int = 10) -> list[Message]:
    """Return messages that share no id."""
    return [Message(int64s(2 * row, 2 * row + 1), message_bytes) for row in range(number)]


# ---- order --------------------------------------------------------------------------------------


async def test_messages_are_written_side_by_side_and_acknowledged_in_order(opened: Open) -> None:
    stream = opened(apart(5))
    await settled()
    assert stream.begun == [0, 1, 2, 3, 4]
    await stream.end(3, 1, 4)
    assert stream.acknowledged == []
    await stream.end(0)
    assert stream.acknowledged == [b"0", b"1"]
    await stream.end(2)
    assert stream.acknowledged == [b"0", b"1", b"2", b"3", b"4"]
    await stream.ended()


async def test_a_message_that_shares_an_id_waits_for_the_one_before_it(opened: Open) -> None:
    messages = [Message(int64s(*ids)) for ids in ((1, 2), (3,), (2, 9), (4,))]
    stream = opened(messages)
    await settled()
    assert stream.begun == [0, 1]
    await stream.end(1)
    assert stream.begun == [0, 1], "that was another message"
    await stream.end(0)
    assert stream.begun == [0, 1, 2, 3]
    await stream.end(3, 2)
    await stream.ended()
    assert stream.acknowledged == [b"0", b"1", b"2", b"3"]


@given(
    ids=st.lists(st.lists(st.integers(0, 12), max_size=4, unique=True), max_size=12),
    choose=st.randoms(use_true_random=False),
)
def test_messages_of_one_id_are_written_one_after_the_other_whichever_write_ends_first(
    ids: list[list[int]], choose: Random
) -> None:
    async def upload() -> None:
        stream = Stream([Message(int64s(*each)) for each in ids])
        try:
            await end_in_any_order(stream)
        finally:
            await stream.close()

    async def end_in_any_order(stream: Stream) -> None:
        ended: list[int] = []
        await settled()
        while in_flight := [number for number in stream.begun if number not in ended]:
            for number, other in permutations(in_flight, 2):
                assert set(ids[number]).isdisjoint(ids[other])
            assert len(stream.begun) - len(stream.acknowledged) <= WINDOW_MESSAGES
            ended.append(choose.choice(in_flight))
            await stream.end(ended[-1])
        assert stream.begun == list(range(len(ids)))
        await stream.ended()
        assert stream.acknowledged == [str(number).encode() for number in range(len(ids))]

    asyncio.run(upload())


# ---- the window ---------------------------------------------------------------------------------


async def test_no_more_messages_are_read_than_the_window_holds(opened: Open) -> None:
    stream = opened(apart(3 * WINDOW_MESSAGES))
    await settled()
    assert stream.read == len(stream.begun) == WINDOW_MESSAGES
    await stream.end(1, 2)
    assert stream.read == WINDOW_MESSAGES, "the first is not acknowledged"
    await stream.end(0)
    assert stream.read == len(stream.begun) == WINDOW_MESSAGES + 3


async def test_no_more_bytes_are_written_at_once_than_the_window_holds(opened: Open) -> None:
    stream = opened(apart(5, message_bytes=WINDOW_BYTES // 2))
    await settled()
    assert stream.begun == [0, 1]
    assert stream.read == 3, "what does not fit is the last that is read"
    await stream.end(1)
    assert stream.begun == [0, 1, 2], "its bytes are free though it is not acknowledged"
    await stream.end(0, 2)
    assert stream.begun == [0, 1, 2, 3, 4]


async def test_a_message_larger_than_the_window_is_written_alone(opened: Open) -> None:
    stream = opened(
        [*apart(1), Message(int64s(50), message_bytes=WINDOW_BYTES + 1), Message(int64s(60))]
    )
    await settled()
    assert stream.begun == [0]
    await stream.end(0)
    assert stream.begun == [0, 1]
    await stream.end(1)
    assert stream.begun == [0, 1, 2]


async def test_messages_that_are_written_are_let_go(opened: Open) -> None:
    messages: list[Message | bytes] = [*apart(40)]
    stream = opened(messages)
    ids = []
    for number in range(40):
        await settled()
        ids.append(weakref.ref(stream.message(number).ids))
        await stream.end(number)
        messages[number] = b""
    gc.collect()
    alive = sum(each() is not None for each in ids)
    assert alive <= WINDOW_MESSAGES


# ---- ends ---------------------------------------------------------------------------------------


async def test_an_upload_without_messages_ends(opened: Open) -> None:
    stream = opened([])
    await stream.ended()
    assert stream.acknowledged == []


async def test_a_bad_message_is_told_after_the_acknowledgements_before_it(opened: Open) -> None:
    stream = opened([*apart(2), BAD, Message(int64s(77))])
    await stream.end(1)
    assert not stream.outcome.done()
    await stream.end(0)
    assert stream.acknowledged == [b"0", b"1"]
    with pytest.raises(MalformedMessage):
        await stream.ended()


async def test_nothing_is_written_after_a_bad_message(opened: Open) -> None:
    stream = opened([*apart(2), BAD, Message(int64s(77))])
    await settled()
    assert stream.begun == [0, 1]


async def test_a_write_that_fails_ends_the_upload_there_and_the_others_are_withdrawn(
    opened: Open,
) -> None:
    stream = opened(apart(4))
    await settled()
    stream.message(1).written.set_exception(Overloaded("full"))
    await settled()
    assert not stream.outcome.done()
    await stream.end(0)
    with pytest.raises(Overloaded):
        await stream.ended()
    assert stream.acknowledged == [b"0"]
    await stream.upload.close()
    await settled()
    assert stream.withdrawn == [2, 3]


async def test_what_ends_the_stream_of_messages_is_raised_after_the_acknowledgements() -> None:
    class Broken(Stream):
        """Its network fails after the messages."""

        async def _payloads(self) -> AsyncIterator[bytes]:
            async for payload in super()._payloads():
                yield payload
            raise ConnectionError("gone")

    stream = Broken(apart(2))
    await settled()
    await stream.end(0, 1)
    with pytest.raises(ConnectionError):
        await stream.ended()
    assert stream.acknowledged == [b"0", b"1"]
    await stream.close()


async def test_a_drain_acknowledges_what_has_begun_and_turns_the_rest_away(opened: Open) -> None:
    stream = opened(apart(3 * WINDOW_MESSAGES))
    await settled()
    stream.draining.set()
    await settled()
    assert not stream.outcome.done()
    await stream.end(*range(WINDOW_MESSAGES))
    with pytest.raises(ShardUnavailable, match="draining"):
        await stream.ended()
    assert stream.acknowledged == [str(number).encode() for number in stream.begun]
    assert len(stream.begun) == WINDOW_MESSAGES


async def test_a_drain_ends_an_upload_that_sends_nothing(opened: Open) -> None:
    stream = opened(apart(1), ends=False)
    await settled()
    await stream.end(0)
    stream.draining.set()
    with pytest.raises(ShardUnavailable, match="draining"):
        await stream.ended()
    assert stream.acknowledged == [b"0"]


async def test_an_upload_that_has_been_sent_whole_ends_well_though_the_server_drains(
    opened: Open,
) -> None:
    stream = opened(apart(3))
    await settled()
    stream.draining.set()
    await stream.end(0, 1, 2)
    await stream.ended()
    assert stream.acknowledged == [b"0", b"1", b"2"]
    await stream.close()


@pytest.mark.parametrize("messages", [0, 1, WINDOW_MESSAGES, 3 * WINDOW_MESSAGES])
async def test_closing_leaves_nothing_running(opened: Open, messages: int) -> None:
    stream = opened(apart(messages), ends=False)
    await settled()
    await stream.close()
    await settled()
    assert stream.withdrawn == stream.begun
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_who_stops_waiting_for_acknowledgements_leaves_only_the_reader(opened: Open) -> None:
    stream = opened([], ends=False)
    await settled()
    stream.outcome.cancel()
    await settled()
    assert len(asyncio.all_tasks() - {asyncio.current_task()}) == 1


async def test_a_message_looks_once_for_ids_in_its_way(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = 0

    def look(ids: IdArray, others: IdArray) -> bool:
        nonlocal looked
        looked += 1
        return share_an_id(ids, others)

    monkeypatch.setattr(upload_module, "share_an_id", look)
    messages = [*apart(5), Message(int64s(0, 2))]
    stream = opened(messages)
    await settled()
    assert looked == 0 + 1 + 2 + 3 + 4 + 5
    await stream.end(4, 3, 0)
    assert stream.begun == [0, 1, 2, 3, 4]
    await stream.end(1)
    assert stream.begun == [0, 1, 2, 3, 4, 5]
    assert looked == 15
    await stream.end(2, 5)
    await stream.ended()


async def test_all_uploads_together_hold_no_more_than_the_limit(opened: Open) -> None:
    memory = MemoryLimiter(50, "writes")
    streams = [opened(apart(6), memory=memory) for _ in range(4)]
    await settled()
    assert sum(len(stream.begun) for stream in streams) == 5
    assert all(stream.read <= len(stream.begun) + 1 for stream in streams), "one waits, unread"
    with pytest.raises(Overloaded):
        memory.acquire_nowait(1)
    withdrawn, *others = streams
    await withdrawn.close()
    await settled()
    for _ in range(6):
        for stream in others:
            for number in set(stream.begun):
                if not stream.message(number).written.done():
                    await stream.end(number)
    for stream in others:
        await stream.ended()
        assert stream.begun == list(range(6))
    await settled()
    memory.acquire_nowait(50)


async def test_closing_before_anything_was_read_does_no_harm(opened: Open) -> None:
    stream = opened(apart(2))
    await stream.upload.close()
    assert stream.begun == []
    await stream.close()


# ---- ids ----------------------------------------------------------------------------------------


@given(st.lists(st.integers(-40, 40), unique=True), st.lists(st.integers(-40, 40), unique=True))
def test_integer_ids_are_shared_as_sets_share_them(left: list[int], right: list[int]) -> None:
    assert share_an_id(int64s(*left), int64s(*right)) == bool(set(left) & set(right))


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True),
    st.lists(st.integers(-(2**63), 2**63 - 1), unique=True),
    st.booleans(),
)
def test_large_integer_ids_are_told_apart(left: list[int], right: list[int], shared: bool) -> None:
    if shared:
        right = [*right, *left[:1]]
    assert share_an_id(int64s(*left), int64s(*right)) == bool(set(left) & set(right))


@given(st.lists(st.text(max_size=2), unique=True), st.lists(st.text(max_size=2), unique=True))
def test_string_ids_are_shared_as_sets_share_them(left: list[str], right: list[str]) -> None:
    assert share_an_id(strings(*left), strings(*right)) == bool(set(left) & set(right))


def test_ids_of_different_kinds_are_different() -> None:
    assert not share_an_id(int64s(1, 2), strings("1", "2"))
    assert not share_an_id(np.zeros(0, dtype=np.int64), strings("a"))
