"""The clients' search streams: in order or each for itself, in a window, honest about errors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from tests.client.fake_server import FakeServer
from tests.shard.samples import DEADLINE_S
from vectorshard import AsyncClient, Client, Hits
from vectorshard.shard.errors import (
    DeadlineExceeded,
    InvalidParameter,
    Overloaded,
    ShardUnavailable,
)

Batches = list[npt.NDArray[np.float32]]


@pytest.fixture
def filled(server: FakeServer) -> FakeServer:
    """The server, with a few rows of dim 3."""
    rows = np.random.default_rng(3).standard_normal((20, 3)).astype(np.float32)
    server.rows = {number: (row, b"") for number, row in enumerate(rows)}
    return server


@pytest.fixture
def sync(target: str) -> Iterator[Client]:
    """A client."""
    with Client(target, timeout_s=10) as client:
        yield client


@pytest_asyncio.fixture
async def aio(target: str) -> AsyncIterator[AsyncClient]:
    """An asyncio client."""
    async with AsyncClient(target, timeout_s=10) as client:
        yield client


@pytest.fixture
def batches() -> Batches:
    """Batches of one or two queries."""
    rng = np.random.default_rng(4)
    return [rng.standard_normal((1 + number % 2, 3)).astype(np.float32) for number in range(30)]


def check_same(got: Sequence[Hits], expected: Sequence[Hits]) -> None:
    """Assert that these are the same hits, batch by batch."""
    assert [list(hits) for hits in got] == [list(hits) for hits in expected]


# ---- Client -------------------------------------------------------------------------------------


def test_hits_come_in_the_order_of_the_batches_whatever_the_answers_order(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    def backwards(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for first in payloads:
            yield from map(filled.search_answer, [first, next(payloads), next(payloads)][::-1])

    filled.answer = backwards
    got = list(sync.search_stream("words", batches, k=4, in_flight=3))
    check_same(got, [sync.search("words", batch, k=4) for batch in batches])
    assert filled.asked == ["SearchStream"] + ["Search"] * len(batches)


def test_options_travel_with_every_batch(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    list(sync.search_stream("words", batches[:3], k=4, nprobe=7, vectors=True))
    assert {search.effort.nprobe for search in filled.searches} == {7}
    assert all(search.include.vectors for search in filled.searches)


def test_the_first_error_comes_after_the_hits_before_it(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    def third_fails(payloads: Iterator[bytes]) -> Iterator[bytes]:
        for number, payload in enumerate(payloads, start=1):
            filled.error = Overloaded("full") if number == 3 else None
            yield filled.search_answer(payload)

    filled.answer = third_fails
    hits = sync.search_stream("words", batches, k=4)
    assert (len(next(hits)), len(next(hits))) == (1, 2)
    with pytest.raises(Overloaded):
        next(hits)


@pytest.mark.usefixtures("filled")
def test_batches_that_fail_to_come_are_told_after_the_hits_before_them(
    sync: Client, batches: Batches
) -> None:
    def broken() -> Iterator[npt.NDArray[np.float32]]:
        yield from batches[:4]
        raise OSError("the disk")

    got: list[Hits] = []
    with pytest.raises(OSError, match="the disk"):
        got.extend(sync.search_stream("words", broken()))
    check_same(got, list(sync.search_stream("words", batches[:4])))


@pytest.mark.usefixtures("filled")
def test_no_more_batches_are_taken_than_are_in_flight(sync: Client, batches: Batches) -> None:
    taken = []

    def counted() -> Iterator[npt.NDArray[np.float32]]:
        for batch in batches:
            taken.append(batch)
            yield batch

    for number, _ in enumerate(sync.search_stream("words", counted(), in_flight=3), start=1):
        assert len(taken) <= number + 2
    assert len(taken) == len(batches)


def test_a_silent_server_ends_in_deadline_exceeded(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    def silent(payloads: Iterator[bytes]) -> Iterator[bytes]:
        yield filled.search_answer(next(payloads))
        filled.released.wait()

    filled.answer = silent
    hits = sync.search_stream("words", batches, timeout_s=0.1)
    next(hits)
    with pytest.raises(DeadlineExceeded, match=r"no answer for 0\.1 s"):
        next(hits)


def test_a_server_that_ends_the_stream_before_all_is_answered_is_unavailable(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    filled.answer = lambda payloads: map(filled.search_answer, [next(payloads)])
    with pytest.raises(ShardUnavailable, match="before it answered all"):
        list(sync.search_stream("words", batches, in_flight=1))


def test_who_takes_no_more_hits_ends_the_stream(
    filled: FakeServer, sync: Client, batches: Batches
) -> None:
    for _ in sync.search_stream("words", batches, in_flight=2):
        break
    assert filled.released.wait(DEADLINE_S)
    assert not [each for each in threading.enumerate() if each.name == "stream-watchdog"]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("in_flight", [0, 65])
async def test_what_is_in_flight_has_its_bounds(
    sync: Client, aio: AsyncClient, in_flight: int
) -> None:
    with pytest.raises(InvalidParameter, match="in_flight"):
        next(sync.search_stream("words", [], in_flight=in_flight))
    with pytest.raises(InvalidParameter, match="in_flight"):
        aio.search_stream(in_flight=in_flight)


# ---- AsyncClient --------------------------------------------------------------------------------


async def test_searches_side_by_side_share_one_stream(
    filled: FakeServer, aio: AsyncClient, batches: Batches
) -> None:
    async with aio.search_stream(in_flight=4) as stream:
        got = await asyncio.gather(*(stream.search("words", batch, k=4) for batch in batches))
    check_same(got, [await aio.search("words", batch, k=4) for batch in batches])
    assert filled.asked == ["SearchStream"] + ["Search"] * len(batches)


async def test_an_error_is_its_searchs_own(
    filled: FakeServer, aio: AsyncClient, batches: Batches
) -> None:
    async with aio.search_stream() as stream:
        filled.error = Overloaded("full")
        with pytest.raises(Overloaded):
            await stream.search("words", batches[0])
        filled.error = None
        assert len(await stream.search("words", batches[0])) == 1
    assert filled.asked == ["SearchStream"]


async def test_what_a_broken_stream_leaves_is_asked_by_a_call(
    filled: FakeServer, aio: AsyncClient, batches: Batches
) -> None:
    filled.answer = lambda payloads: iter([])
    async with aio.search_stream() as stream:
        for timeout_s in (None, 40.0):
            assert len(await stream.search("words", batches[1], timeout_s=timeout_s)) == 2
    assert filled.asked == ["SearchStream", "Search"] * 2
    assert filled.left_s == [pytest.approx(each, abs=5.0) for each in (10.0, 40.0)]


async def test_a_search_waits_for_a_place_no_longer_than_it_may_take(
    filled: FakeServer, aio: AsyncClient, batches: Batches
) -> None:
    def silent(payloads: Iterator[bytes]) -> Iterator[bytes]:
        next(payloads)
        filled.released.wait()
        yield b""

    filled.answer = silent
    async with aio.search_stream(in_flight=1) as stream:
        first = asyncio.ensure_future(stream.search("words", batches[0]))
        await asyncio.sleep(0)
        with pytest.raises(DeadlineExceeded, match="no place"):
            await stream.search("words", batches[0], timeout_s=0.05)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
