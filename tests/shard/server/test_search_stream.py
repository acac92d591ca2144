"""A search stream's window: what is read, what is answered when, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import pytest_asyncio

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.config import Limits
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    LimitExceeded,
    MalformedMessage,
    Overloaded,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.server.search_stream import SearchStreamHandler
from vectorshard.shard.server.status import read_status, status_of
from vectorshard.shard.server.stream_window import WINDOW_BYTES
from vectorshard.shard.types import NO_LIMIT, Call, SearchRequest
from vectorshard.shard.wire.search_stream import (
    StreamAnswer,
    StreamRequest,
    decode_search_stream_response,
    encode_search_stream_request,
)

LIMITS = Limits(stream_requests=4)
BAD = b"bad"
NOW = 1_000.0

QUERY = np.zeros((1, 4), dtype=np.float32)


@dataclass
class Streamed:
    """A stream whose messages come, and whose searches end, when the test says so.

    A search is known by the name of its collection.
    """

    call: Call = NO_LIMIT
    queries: dict[str, int] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    withdrawn: list[str] = field(default_factory=list)
    answers: list[StreamAnswer] = field(default_factory=list)
    now: float = NOW

    def __post_init__(self) -> None:
        self.read = 0
        self.draining = asyncio.Event()
        self.some_answer = asyncio.Event()
        self.client_reads = asyncio.Event()
        self.client_reads.set()
        self._messages: asyncio.Queue[bytes | Exception | None] = asyncio.Queue()
        self._outcomes: dict[str, asyncio.Future[bytes]] = {}
        self.stream = SearchStreamHandler(
            self._payloads(),
            self._decode,
            self._search,
            _status,
            call=self.call,
            limits=LIMITS,
            draining=self.draining,
            clock=lambda: self.now,
        )
        self.outcome = asyncio.ensure_future(self._take())

    async def _payloads(self) -> AsyncIterator[bytes]:
        while (message := await self._messages.get()) is not None:
            self.read += 1
            if isinstance(message, Exception):
                raise message
            yield message

    def _decode(self, payload: bytes) -> SearchRequest:
        if payload == BAD:
            raise MalformedMessage("what is this", field="message")
        name = payload.decode()
        queries = np.broadcast_to(QUERY, (self.queries.get(name, 1), 4))
        return SearchRequest(collection=name, queries=queries, k=1)

    async def _search(self, request: SearchRequest, call: Call) -> bytes:
        name = request.collection
        self.begun.append(name)
        self.calls.append(call)
        try:
            return await self._outcomes.setdefault(name, asyncio.Future())
        except asyncio.CancelledError:
            self.withdrawn.append(name)
            raise

    async def _take(self) -> None:
        async for payload in self.stream.answers():
            self.answers.append(decode_search_stream_response(payload))
            self.some_answer.set()
            await self.client_reads.wait()

    async def sends(self, *messages: StreamRequest | bytes | Exception | None) -> None:
        """Have messages arrive; None is the client's end."""
        for message in messages:
            if isinstance(message, StreamRequest):
                message = encode_search_stream_request(message)
            self._messages.put_nowait(message)
        await settled()

    async def ends(self, *names: str, answer: bytes = b"") -> None:
        """Let searches succeed, in this order, with the given answer or their name."""
        for name in names:
            self._outcomes.setdefault(name, asyncio.Future()).set_result(answer or name.encode())
            await settled()

    async def fails(self, name: str, error: Exception) -> None:
        """Let a search fail."""
        self._outcomes.setdefault(name, asyncio.Future()).set_exception(error)
        await settled()

    def answered(self) -> list[tuple[int, bytes | None]]:
        """Return the answers so far, None for errors."""
        return [(answer.request_id, answer.response) for answer in self.answers]

    def error(self, answer: int = -1) -> VectorShardError:
        """Return the error that an answer is."""
        assert self.answers[answer].response is None
        return read_status(self.answers[answer].error)[1]

    async def ended(self) -> None:
        """Wait for the end; raise what ended it."""
        await asyncio.wait_for(self.outcome, DEADLINE_S)


def _status(error: Exception) -> bytes:
    assert isinstance(error, VectorShardError), error
    return bytes(status_of(error).SerializeToString())


def search(request_id: int, name: str = "", **changes: int | str) -> StreamRequest:
    """Return a search, named like its request_id if not otherwise."""
    request = StreamRequest(request_id=request_id, search=(name or str(request_id)).encode())
    return replace(request, **changes)  # type: ignore[arg-type]  # fields of it


def cancel(request_id: int) -> StreamRequest:
    """Return a Cancel."""
    return StreamRequest(request_id=request_id, cancels=True)


async def settled() -> None:
    """Return when nothing more happens by itself."""
    for _ in range(30):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def streamed() -> AsyncIterator[Streamed]:
    streamed = Streamed()
    yield streamed
    await close(streamed)


async def close(streamed: Streamed) -> None:
    """Close a stream as a server does whose client is gone."""
    streamed.outcome.cancel()
    await asyncio.gather(streamed.outcome, return_exceptions=True)
    await streamed.stream.close()
    await settled()
    assert asyncio.all_tasks() == {asyncio.current_task()}, "something is left running"


# ---- answers ------------------------------------------------------------------------------------


async def test_searches_run_side_by_side_and_are_answered_as_they_end(streamed: Streamed) -> None:
    await streamed.sends(search(1), search(2), search(3))
    assert streamed.begun == ["1", "2", "3"]
    await streamed.ends("3", "1")
    assert streamed.answered() == [(3, b"3"), (1, b"1")]
    await streamed.sends(None)
    assert not streamed.outcome.done()
    await streamed.ends("2")
    await streamed.ended()
    assert streamed.answered() == [(3, b"3"), (1, b"1"), (2, b"2")]


async def test_a_stream_without_requests_ends(streamed: Streamed) -> None:
    await streamed.sends(None)
    await streamed.ended()
    assert not streamed.answers


async def test_a_failure_is_its_requests_alone(streamed: Streamed) -> None:
    await streamed.sends(search(1), search(2))
    await streamed.fails("1", Overloaded("full"))
    assert isinstance(streamed.error(), Overloaded)
    await streamed.ends("2")
    assert streamed.answered() == [(1, None), (2, b"2")]


@pytest.mark.parametrize(
    ("message", "request_id"),
    [
        (b"\xff\xff\xff", 0),
        (StreamRequest(request_id=7, search=BAD), 7),
        (StreamRequest(request_id=8), 8),
        (b"", 0),
    ],
)
async def test_garbage_spoils_its_own_answer_and_the_stream_goes_on(
    streamed: Streamed, message: StreamRequest | bytes, request_id: int
) -> None:
    await streamed.sends(search(1), message, search(2))
    assert streamed.answered() == [(request_id, None)]
    assert isinstance(streamed.error(), MalformedMessage)
    await streamed.ends("2", "1")
    assert streamed.answered()[1:] == [(2, b"2"), (1, b"1")]


async def test_a_request_id_in_flight_is_refused_alone_and_free_again_later(
    streamed: Streamed,
) -> None:
    await streamed.sends(search(1, "first"), search(1, "second"))
    error = streamed.error()
    assert isinstance(error, InvalidParameter)
    assert error.field == "request_id"
    assert streamed.begun == ["first"]
    await streamed.ends("first")
    await streamed.sends(search(1, "third"))
    await streamed.ends("third")
    assert streamed.answered() == [(1, None), (1, b"first"), (1, b"third")]


async def test_an_answer_that_is_larger_than_asked_for_is_refused(streamed: Streamed) -> None:
    await streamed.sends(search(1, answer_bytes_max=10), search(2, answer_bytes_max=10))
    await streamed.ends("1", answer=b"x" * 10)
    await streamed.ends("2", answer=b"x" * 11)
    assert streamed.answered() == [(1, b"x" * 10), (2, None)]
    error = streamed.error()
    assert isinstance(error, LimitExceeded)
    assert error.field == "answer_bytes_max"


# ---- whom and how long --------------------------------------------------------------------------


async def test_each_message_says_whom_and_how_long_within_what_the_stream_says() -> None:
    streamed = Streamed(call=Call(deadline=NOW + 10, incarnation="x", placement="p1"))
    await streamed.sends(
        search(1, timeout_ms=3_000, incarnation="i1"), search(2, timeout_ms=30_000), search(3)
    )
    assert streamed.calls == [
        Call(deadline=NOW + 3, incarnation="i1", placement="p1"),
        Call(deadline=NOW + 10, placement="p1"),
        Call(deadline=NOW + 10, placement="p1"),
    ]
    await close(streamed)


async def test_a_request_without_any_deadline_gets_one(streamed: Streamed) -> None:
    await streamed.sends(search(1))
    assert streamed.calls == [Call(deadline=NOW + LIMITS.default_timeout_ms / 1_000)]
    await close(streamed)


async def test_a_request_whose_time_is_over_is_withdrawn_and_told(streamed: Streamed) -> None:
    await streamed.sends(search(1, timeout_ms=1), search(2))
    await asyncio.wait_for(streamed.some_answer.wait(), DEADLINE_S)
    assert streamed.answered() == [(1, None)]
    assert isinstance(streamed.error(), DeadlineExceeded)
    assert streamed.withdrawn == ["1"]
    await streamed.ends("2")
    assert streamed.answered()[1:] == [(2, b"2")]


async def test_time_counts_from_the_arrival_also_while_there_is_no_room(
    streamed: Streamed,
) -> None:
    await streamed.sends(*(search(number) for number in range(1, 5)), search(5, timeout_ms=50))
    assert streamed.read == 5
    streamed.now += 0.05
    await streamed.ends("1")
    await settled()
    assert streamed.answered() == [(1, b"1"), (5, None)]
    assert isinstance(streamed.error(), DeadlineExceeded)


async def test_a_cancel_ends_what_still_runs(streamed: Streamed) -> None:
    await streamed.sends(search(1), search(2), cancel(1), cancel(9))
    assert streamed.answered() == [(1, None)]
    code, _ = read_status(streamed.answers[0].error)
    assert code.name == "CANCELLED"
    await streamed.ends("2")
    await streamed.sends(cancel(2))
    assert streamed.answered() == [(1, None), (2, b"2")]


# ---- the window ---------------------------------------------------------------------------------


async def test_no_more_is_read_than_there_are_places(streamed: Streamed) -> None:
    await streamed.sends(*(search(number) for number in range(1, 9)))
    assert streamed.begun == ["1", "2", "3", "4"]
    assert streamed.read == 5, "one waits for a place"
    await streamed.ends("2")
    assert streamed.begun == ["1", "2", "3", "4", "5"]


async def test_an_answer_keeps_its_place_until_it_is_sent(streamed: Streamed) -> None:
    streamed.client_reads.clear()
    await streamed.sends(*(search(number) for number in range(1, 9)))
    await streamed.ends("1", "2", "3", "4")
    assert (streamed.read, len(streamed.begun)) == (5, 4)
    streamed.client_reads.set()
    await settled()
    assert len(streamed.begun) == 8


async def test_garbage_does_not_fill_the_memory_of_a_client_that_does_not_read(
    streamed: Streamed,
) -> None:
    streamed.client_reads.clear()
    await streamed.sends(*[b"\xff\xff\xff"] * 50)
    assert streamed.read == 5
    streamed.client_reads.set()
    await settled()
    assert len(streamed.answers) > 4


async def test_bytes_are_counted_by_what_an_answer_may_take(streamed: Streamed) -> None:
    half = WINDOW_BYTES // 2 // 12 + 1
    streamed.queries = {"1": half, "2": half, "3": 4 * half}
    await streamed.sends(search(1), search(2), search(3), search(4))
    assert streamed.begun == ["1"], "the two are a little too much"
    await streamed.ends("1")
    assert streamed.begun == ["1", "2"], "answered, it counts with what it took"
    await streamed.ends("2")
    assert streamed.begun == ["1", "2", "3"], "what is too large runs alone"
    await streamed.ends("3")
    assert streamed.begun == ["1", "2", "3", "4"]


# ---- ends ---------------------------------------------------------------------------------------


async def test_a_drain_answers_what_runs_refuses_what_comes_and_ends(streamed: Streamed) -> None:
    await streamed.sends(search(1), search(2))
    streamed.draining.set()
    await streamed.sends(search(3))
    assert streamed.answered() == [(3, None)]
    assert isinstance(streamed.error(), ShardUnavailable)
    await streamed.ends("2", "1")
    with pytest.raises(ShardUnavailable, match="draining"):
        await streamed.ended()
    assert streamed.answered()[1:] == [(2, b"2"), (1, b"1")]
    assert streamed.begun == ["1", "2"]


async def test_a_drain_ends_an_idle_stream_at_once(streamed: Streamed) -> None:
    await streamed.sends(search(1))
    await streamed.ends("1")
    streamed.draining.set()
    with pytest.raises(ShardUnavailable, match="draining"):
        await streamed.ended()


async def test_a_stream_that_was_sent_whole_ends_well_though_the_server_drains(
    streamed: Streamed,
) -> None:
    await streamed.sends(search(1), None)
    streamed.draining.set()
    await streamed.ends("1")
    await streamed.ended()
    assert streamed.answered() == [(1, b"1")]


async def test_what_ends_the_messages_is_raised_after_the_answers(streamed: Streamed) -> None:
    await streamed.sends(search(1), ConnectionError("gone"))
    await streamed.ends("1")
    with pytest.raises(ConnectionError):
        await streamed.ended()
    assert streamed.answered() == [(1, b"1")]


async def test_closing_withdraws_what_runs(streamed: Streamed) -> None:
    await streamed.sends(search(1), search(2))
    await close(streamed)
    assert streamed.withdrawn == ["1", "2"]
    assert not streamed.answers
