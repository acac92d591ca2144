"""A link over a stream of the test's own: who waits for what, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from tests.shard.samples import DEADLINE_S
from vectorshard.client.link import (
    STALLED_S,
    WINDOW_BYTES,
    WINDOW_REQUESTS,
    Link,
    LinkBroken,
    LinkBusy,
)
from vectorshard.shard.errors import DeadlineExceeded, ShardUnavailable
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    StreamRequest,
    decode_search_stream_request,
    encode_search_stream_response,
)

NOW = 1_000.0


class FakeStream:
    """A stream whose other end is the test. It allows one write and one read at a time."""

    def __init__(self) -> None:
        self.written: list[StreamRequest] = []
        self.takes = asyncio.Event()
        """Whether writes return."""
        self.takes.set()
        self.fails: Exception | None = None
        """What writes end with."""
        self.cancelled = False
        self.ended = False
        self._messages: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._writes = self._reads = False

    async def write(self, payload: bytes) -> None:
        """Take a message."""
        assert not self._writes, "two writes at once end a stream"
        self._writes = True
        self.written.append(decode_search_stream_request(payload))
        await self.takes.wait()
        self._writes = False
        if self.cancelled:
            raise ConnectionAbortedError("cancelled")
        if self.fails is not None:
            raise self.fails

    async def end(self) -> None:
        """Hear that no more messages come."""
        assert not self._writes, "two writes at once end a stream"
        self.ended = True

    async def read(self) -> bytes | None:
        """Return what the test says."""
        assert not self._reads
        self._reads = True
        message = await self._messages.get()
        self._reads = False
        if isinstance(message, Exception):
            raise message
        return message

    def cancel(self) -> None:
        """End it."""
        if not self.cancelled:
            self.cancelled = True
            self.takes.set()
            self._messages.put_nowait(ConnectionAbortedError("cancelled"))

    @property
    def asked(self) -> list[int]:
        """The request_ids of the searches that arrived."""
        return [request.request_id for request in self.written if not request.cancels]

    @property
    def withdrawn(self) -> list[int]:
        """The request_ids of the Cancels that arrived."""
        return [request.request_id for request in self.written if request.cancels]

    async def says(self, *messages: bytes | Exception | None) -> None:
        """Have the link read messages; None is the end, an exception a failure."""
        for message in messages:
            self._messages.put_nowait(message)
        await settled()

    async def answers(self, *request_ids: int) -> None:
        """Answer requests in this order, each with its number."""
        for request_id in request_ids:
            answer = StreamAnswer(request_id=request_id, response=str(request_id).encode())
            await self.says(encode_search_stream_response(answer))


async def settled() -> None:
    """Return when nothing more happens by itself."""
    for _ in range(20):
        await asyncio.sleep(0)


class Asking:
    """A link, its stream, and callers of it."""

    def __init__(self) -> None:
        self.stream = FakeStream()
        self.now = NOW
        self.link = Link(self.stream, "the shard", clock=lambda: self.now)
        self.callers: list[asyncio.Task[StreamAnswer]] = []

    async def ask(self, *searches: bytes, **how: Any) -> list[asyncio.Task[StreamAnswer]]:
        """Ask side by side; the callers are numbered as their requests are, from 1."""
        asked = [asyncio.ensure_future(self.link.ask(search, **how)) for search in searches]
        self.callers += asked
        await settled()
        return asked

    def answered(self) -> list[int]:
        """Return which callers have an answer; each must have its own."""
        done = []
        for number, caller in enumerate(self.callers, start=1):
            if caller.done() and not caller.cancelled() and caller.exception() is None:
                answer = StreamAnswer(request_id=number, response=str(number).encode())
                assert caller.result() == answer
                done.append(number)
        return done


@pytest_asyncio.fixture
async def asking() -> AsyncIterator[Asking]:
    """A link that is open."""
    asking = Asking()
    yield asking
    await asyncio.wait_for(asking.link.close(), DEADLINE_S)
    for caller in asking.callers:
        caller.cancel()
    await asyncio.gather(*asking.callers, return_exceptions=True)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "something is left running"


async def outcome(waiting: Coroutine[Any, Any, Any] | asyncio.Future[Any]) -> Any:
    """Wait for what must end without help."""
    return await asyncio.wait_for(waiting, DEADLINE_S)


# ---- answers ------------------------------------------------------------------------------------


async def test_every_caller_gets_its_own_answer_in_whatever_order_they_come(
    asking: Asking,
) -> None:
    await asking.ask(b"a", b"b", b"c")
    assert [request.search for request in asking.stream.written] == [b"a", b"b", b"c"]
    await asking.stream.answers(3)
    assert asking.answered() == [3]
    await asking.stream.answers(1, 2)
    assert asking.answered() == [1, 2, 3]


async def test_a_request_says_whom_how_long_and_how_much(asking: Asking) -> None:
    await asking.ask(b"a", deadline=NOW + 1.2341, incarnation="i1", answer_bytes_max=9)
    await asking.ask(b"b")
    assert asking.stream.written == [
        StreamRequest(
            request_id=1, search=b"a", timeout_ms=1_235, incarnation="i1", answer_bytes_max=9
        ),
        StreamRequest(request_id=2, search=b"b"),
    ]


async def test_a_time_beyond_what_the_contract_can_say_is_cut(asking: Asking) -> None:
    await asking.ask(b"a", deadline=NOW + 1e9)
    assert asking.stream.written[0].timeout_ms == 2**32 - 1


async def test_an_answer_to_what_was_not_asked_breaks_the_link(asking: Asking) -> None:
    (caller,) = await asking.ask(b"a")
    await asking.stream.answers(0)
    with pytest.raises(LinkBroken, match="not in flight"):
        await outcome(caller)


# ---- callers that leave -------------------------------------------------------------------------


async def test_a_caller_that_leaves_disturbs_nobody_and_the_server_is_told(
    asking: Asking,
) -> None:
    first, _, _ = await asking.ask(b"a", b"b", b"c")
    first.cancel()
    await settled()
    assert first.cancelled()
    assert asking.stream.withdrawn == [1]
    await asking.stream.answers(2, 1, 3)
    assert asking.answered() == [2, 3]


async def test_a_caller_whose_time_is_over_disturbs_nobody_not_even_in_a_write(
    asking: Asking,
) -> None:
    asking.stream.takes.clear()
    hurried, patient = await asking.ask(b"a", deadline=NOW + 0.001) + await asking.ask(b"b")
    with pytest.raises(DeadlineExceeded, match="the shard: no answer"):
        await outcome(hurried)
    assert asking.stream.asked == [1], "the write goes on"
    asking.stream.takes.set()
    await settled()
    assert asking.stream.asked == [1, 2]
    assert asking.stream.withdrawn == [], "the server knows the time too"
    await asking.stream.answers(1, 2)
    assert (await outcome(patient)).response == b"2"


async def test_a_caller_that_comes_too_late_is_told_at_once(asking: Asking) -> None:
    with pytest.raises(DeadlineExceeded):
        await outcome(asking.link.ask(b"a", deadline=NOW))
    assert not asking.stream.written


# ---- the window ---------------------------------------------------------------------------------


async def test_a_full_window_that_is_silent_is_unavailable_at_once(asking: Asking) -> None:
    await asking.ask(*[b"a"] * WINDOW_REQUESTS)
    asking.now += STALLED_S
    with pytest.raises(ShardUnavailable, match=r"the shard is stalled for 1.0 s: 64 requests"):
        await outcome(asking.link.ask(b"a"))
    await asking.stream.answers(5)
    await asking.ask(b"b")
    assert len(asking.stream.asked) == WINDOW_REQUESTS + 1


async def test_a_full_window_is_only_busy_as_long_as_answers_come(asking: Asking) -> None:
    asking.now += 100
    await asking.ask(*[b"a"] * WINDOW_REQUESTS)
    for number in (1, 2, 3):
        with pytest.raises(LinkBusy):
            await outcome(asking.link.ask(b"a"))
        asking.now += 0.9 * STALLED_S
        await asking.stream.answers(number)
        await asking.ask(b"b")
    asking.now += STALLED_S
    with pytest.raises(ShardUnavailable, match="stalled"):
        await outcome(asking.link.ask(b"a"))


async def test_bytes_fill_the_window_too(asking: Asking) -> None:
    third = b"x" * (WINDOW_BYTES // 3)
    await asking.ask(third, third)
    with pytest.raises(LinkBusy, match="2 requests"):
        await outcome(asking.link.ask(third))
    await asking.ask(b"small")
    await asking.stream.answers(1)
    await asking.ask(third)
    assert asking.stream.asked == [1, 2, 3, 4]


async def test_what_is_larger_than_the_window_is_sent_alone(asking: Asking) -> None:
    await asking.ask(b"x" * (WINDOW_BYTES + 1))
    with pytest.raises(LinkBusy):
        await outcome(asking.link.ask(b"a"))


async def test_a_server_that_answers_nothing_fills_the_window_though_nobody_waits_any_more(
    asking: Asking,
) -> None:
    for _ in range(WINDOW_REQUESTS):
        (caller,) = await asking.ask(b"a")
        caller.cancel()
    await settled()
    asking.now += STALLED_S
    with pytest.raises(ShardUnavailable, match="stalled"):
        await outcome(asking.link.ask(b"a"))
    await asking.stream.answers(*range(1, WINDOW_REQUESTS + 1))
    await asking.ask(b"b")
    assert asking.stream.asked[-1] == WINDOW_REQUESTS + 1


async def test_a_server_that_takes_nothing_gets_no_more_than_the_window_once_it_does(
    asking: Asking,
) -> None:
    asking.stream.takes.clear()
    await asking.ask(*[b"a"] * WINDOW_REQUESTS)
    for caller in asking.callers:
        caller.cancel()
    await settled()
    asking.now += STALLED_S
    with pytest.raises(ShardUnavailable, match="stalled"):
        await outcome(asking.link.ask(b"a"))
    assert asking.stream.asked == [1]
    asking.stream.takes.set()
    for _ in range(2 * WINDOW_REQUESTS // 10):
        await settled()
    assert len(asking.stream.written) == 2 * WINDOW_REQUESTS, "each of them, and its Cancel"


# ---- retirement ---------------------------------------------------------------------------------


async def test_a_link_that_is_retired_ends_when_all_in_flight_is_answered(asking: Asking) -> None:
    await asking.ask(b"a", b"b")
    asking.link.drain()
    await asking.stream.answers(2)
    assert not asking.stream.ended
    with pytest.raises(LinkBroken):
        await outcome(asking.link.ask(b"c"))
    asking.callers[0].cancel()
    await settled()
    assert asking.stream.withdrawn == [1], "its server is still told of those who leave"
    assert not asking.stream.ended
    await asking.stream.answers(1)
    assert asking.stream.ended
    assert not asking.link.broken, "the server has the last word"
    await asking.stream.says(None)
    assert asking.link.broken
    assert asking.answered() == [2]


async def test_an_idle_link_that_is_retired_ends_at_once(asking: Asking) -> None:
    asking.link.drain()
    await settled()
    assert asking.stream.ended


async def test_a_retired_link_whose_stream_breaks_says_so(asking: Asking) -> None:
    (caller,) = await asking.ask(b"a")
    asking.link.drain()
    await asking.stream.says(ConnectionResetError("gone"))
    with pytest.raises(LinkBroken, match="gone"):
        await outcome(caller)


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "cause"),
    [
        (ConnectionResetError("gone"), "gone"),
        (None, "None"),
        (b"\xff\xff\xff", "does not parse|not"),
    ],
)
async def test_a_link_that_breaks_ends_what_is_in_flight_and_says_why(
    asking: Asking, said: bytes | Exception | None, cause: str
) -> None:
    await asking.ask(b"a", b"b", b"c")
    await asking.stream.answers(2)
    assert not asking.link.broken
    await asking.stream.says(said)
    assert asking.link.broken
    assert asking.answered() == [2]
    for caller in (asking.callers[0], asking.callers[2]):
        with pytest.raises(LinkBroken, match=cause):
            await outcome(caller)
    with pytest.raises(LinkBroken):
        await outcome(asking.link.ask(b"d"))
    assert asking.stream.cancelled


async def test_a_write_that_fails_breaks_the_link(asking: Asking) -> None:
    asking.stream.fails = ConnectionResetError("gone")
    (caller,) = await asking.ask(b"a")
    with pytest.raises(LinkBroken, match="gone"):
        await outcome(caller)
    assert asking.stream.cancelled


async def test_closing_ends_what_is_in_flight(asking: Asking) -> None:
    asking.stream.takes.clear()
    await asking.ask(b"a", b"b")
    await outcome(asking.link.close())
    for caller in asking.callers:
        with pytest.raises(LinkBroken):
            await outcome(caller)


async def test_closing_twice_or_a_broken_link_does_no_harm(asking: Asking) -> None:
    await asking.stream.says(None)
    await outcome(asking.link.close())
    await outcome(asking.link.close())
    assert asking.link.broken
