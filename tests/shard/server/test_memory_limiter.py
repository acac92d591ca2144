"""The limiter of all writes: who waits, who is refused, and that nothing of it is lost."""

from __future__ import annotations

import asyncio

import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.errors import Overloaded
from vectorshard.shard.server.memory_limiter import MemoryLimiter


async def taking(limiter: MemoryLimiter, *wanted: int) -> list[asyncio.Task[None]]:
    """Begin to take, one after the other."""
    tasks = [asyncio.create_task(limiter.acquire(each)) for each in wanted]
    await asyncio.sleep(0)
    return tasks


async def done(*tasks: asyncio.Task[None]) -> list[bool]:
    """Return which have ended once nothing more happens by itself."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_what_is_there_is_had_at_once_and_the_rest_when_it_comes_back() -> None:
    limiter = MemoryLimiter(10, "writes")
    tasks = await taking(limiter, 6, 4, 1)
    assert await done(*tasks) == [True, True, False]
    limiter.release(4)
    assert await done(*tasks) == [True, True, True]


async def test_turns_are_taken_in_order_so_that_large_messages_do_not_wait_for_ever() -> None:
    limiter = MemoryLimiter(10, "writes")
    tasks = await taking(limiter, 6, 9, 1)
    assert await done(*tasks) == [True, False, False]
    with pytest.raises(Overloaded, match=r"6 of 10 bytes are in use and 2 requests wait"):
        limiter.acquire_nowait(1)
    limiter.release(6)
    assert await done(*tasks) == [True, True, True]
    with pytest.raises(Overloaded):
        limiter.acquire_nowait(1)


async def test_a_message_larger_than_all_is_had_alone() -> None:
    limiter = MemoryLimiter(10, "writes")
    tasks = await taking(limiter, 1, 11, 1)
    assert await done(*tasks) == [True, False, False]
    limiter.release(1)
    assert await done(*tasks) == [True, True, False]
    limiter.release(11)
    assert await done(*tasks) == [True, True, True]


async def test_who_leaves_while_waiting_lets_the_others_pass() -> None:
    limiter = MemoryLimiter(10, "writes")
    tasks = await taking(limiter, 6, 9, 1)
    tasks[1].cancel()
    assert await done(*tasks) == [True, True, True]
    limiter.release(6)
    limiter.release(1)
    limiter.acquire_nowait(10)


async def test_who_leaves_in_the_moment_of_getting_gives_it_back() -> None:
    limiter = MemoryLimiter(10, "writes")
    tasks = await taking(limiter, 10, 10, 10)
    limiter.release(10)
    tasks[1].cancel()
    assert await done(*tasks) == [True, True, True]
    assert tasks[1].cancelled()
    await asyncio.wait_for(tasks[2], DEADLINE_S)
