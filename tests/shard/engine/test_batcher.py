"""Who arrives while a batch runs travels together; nobody pays for another's mistake."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from tests.shard.samples import DEADLINE_S
from vectorshard.shard.engine.batcher import Batcher, Batching

Item = TypeVar("Item")


class Work:
    """Squares numbers, batch by batch, each when it is allowed to; negative ones are refused."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)
        self.failure: Exception | None = None

    def __call__(self, items: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(items))
        self.begun.release()
        assert self.allowed.acquire(timeout=DEADLINE_S)
        if self.failure is not None:
            raise self.failure
        return [ValueError(f"{item}") if item < 0 else item * item for item in items]

    def allow(self, batches: int = 1) -> None:
        self.allowed.release(batches)

    async def wait_until_one_runs(self) -> None:
        assert await asyncio.to_thread(self.begun.acquire, timeout=DEADLINE_S)


def batcher_of(
    work: Callable[[Sequence[Item]], Sequence[int | Exception]],
    executor: Executor,
    size_max: int = 1_024,
    **how: Any,
) -> Batcher[Item, int]:
    """Return a batcher as writes have it: its batches run to their end, in a thread."""

    async def run(items: Sequence[Item], _: object) -> Sequence[int | Exception]:
        return await asyncio.get_running_loop().run_in_executor(executor, work, items)

    return Batcher(run, Batching(cancellable=False, size_max=size_max), **how)


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def batcher(work: Work) -> Iterator[Batcher[int, int]]:
    with ThreadPoolExecutor(1) as executor:
        yield batcher_of(work, executor, size_max=4)


async def submitted(batcher: Batcher[int, int], *items: int) -> list[asyncio.Task[int]]:
    """Submit items in this order and return when all of them wait."""
    tasks = [asyncio.ensure_future(batcher.submit(item)) for item in items]
    await asyncio.sleep(0)
    return tasks


async def test_an_idle_batcher_runs_an_item_at_once_and_alone(
    batcher: Batcher[int, int], work: Work
) -> None:
    work.allow(2)
    assert await batcher.submit(3) == 9
    assert await batcher.submit(4) == 16
    assert work.batches == [[3], [4]]


async def test_who_arrives_while_a_batch_runs_travels_together_in_order_of_arrival(
    batcher: Batcher[int, int], work: Work
) -> None:
    first = await submitted(batcher, 1)
    await work.wait_until_one_runs()
    others = await submitted(batcher, 4, 2, 3)
    work.allow(2)
    assert await asyncio.gather(*first, *others) == [1, 16, 4, 9]
    assert work.batches == [[1], [4, 2, 3]]


async def test_no_batch_begins_while_another_runs(work: Work) -> None:
    with ThreadPoolExecutor(2) as executor:
        batcher = batcher_of(work, executor)
        tasks = await submitted(batcher, 1)
        await work.wait_until_one_runs()
        tasks += await submitted(batcher, 2)
        await asyncio.sleep(0)  # a turn for the next batch
        free = asyncio.get_running_loop().run_in_executor(executor, int)
        assert await asyncio.wait_for(free, DEADLINE_S) == 0, "the other thread is free"
        work.allow(2)
        assert await asyncio.gather(*tasks) == [1, 4]
    assert work.batches == [[1], [2]]


async def test_a_batch_has_a_bound_and_the_rest_goes_next(
    batcher: Batcher[int, int], work: Work
) -> None:
    tasks = await submitted(batcher, *range(10))
    work.allow(10)
    assert await asyncio.gather(*tasks) == [item * item for item in range(10)]
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_a_batch_ends_at_its_weight_and_a_single_heavier_item_goes_alone(work: Work) -> None:
    with ThreadPoolExecutor(1) as executor:
        batcher = batcher_of(work, executor, size_max=10, weigh=lambda item: (1, item))
        items = [4, 6, 1, 25, 3, 7, 1, 11, 11]
        tasks = await submitted(batcher, *items)
        work.allow(len(items))
        assert await asyncio.gather(*tasks) == [item * item for item in items]
    assert work.batches == [[4, 6], [1], [25], [3, 7], [1], [11], [11]]


async def test_a_refused_item_harms_nobody_else(batcher: Batcher[int, int], work: Work) -> None:
    tasks = await submitted(batcher, 1, -2, 3)
    work.allow()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert (outcomes[0], outcomes[2]) == (1, 9)
    assert isinstance(outcomes[1], ValueError)


async def test_a_failing_batch_fails_for_all_in_it_and_the_next_one_runs(
    batcher: Batcher[int, int], work: Work
) -> None:
    work.failure = OSError("the disk is gone")
    tasks = await submitted(batcher, 1, 2)
    work.allow()
    for task in tasks:
        with pytest.raises(OSError, match="the disk is gone"):
            await task
    work.failure = None
    work.allow()
    assert await batcher.submit(5) == 25


async def test_who_gives_up_before_its_batch_starts_takes_its_item_back(
    batcher: Batcher[int, int], work: Work
) -> None:
    (first,) = await submitted(batcher, 1)
    await work.wait_until_one_runs()
    second, third = await submitted(batcher, 2, 3)
    second.cancel()
    await asyncio.sleep(0)
    work.allow(2)
    assert list(await asyncio.gather(first, third)) == [1, 9]
    assert work.batches == [[1], [3]]
    assert second.cancelled()


async def test_who_gives_up_later_does_not_stop_the_work(
    batcher: Batcher[int, int], work: Work
) -> None:
    first, second = await submitted(batcher, 1, 2)
    await work.wait_until_one_runs()
    first.cancel()
    work.allow()
    assert await second == 4
    assert work.batches == [[1, 2]]
    assert first.cancelled()


async def test_a_batch_that_everybody_gave_up_is_not_run(
    batcher: Batcher[int, int], work: Work
) -> None:
    (first,) = await submitted(batcher, 1)
    await work.wait_until_one_runs()
    (second,) = await submitted(batcher, 2)
    second.cancel()
    await asyncio.sleep(0)
    work.allow()
    await first
    await batcher.drain()
    assert work.batches == [[1]]


async def test_draining_waits_for_what_runs_and_for_what_waits(
    batcher: Batcher[int, int], work: Work
) -> None:
    await batcher.drain()
    tasks = await submitted(batcher, 1)
    await work.wait_until_one_runs()
    tasks += await submitted(batcher, 2)
    draining = asyncio.ensure_future(batcher.drain())
    work.allow()
    await work.wait_until_one_runs()
    assert not draining.done()
    work.allow()
    await draining
    assert [await task for task in tasks] == [1, 4]


async def test_what_callers_give_up_does_not_pile_up_behind_a_batch_that_hangs() -> None:
    class Item:
        """Something large."""

    hangs = threading.Event()

    def run(items: Sequence[Item]) -> list[int]:
        hangs.wait(DEADLINE_S)
        return [1] * len(items)

    with ThreadPoolExecutor(1) as executor:
        batcher = batcher_of(run, executor)
        first = asyncio.ensure_future(batcher.submit(Item()))
        await asyncio.sleep(0)  # a turn for the batch to be taken
        await asyncio.sleep(0)
        item = Item()
        given_up = weakref.ref(item)
        second = asyncio.ensure_future(batcher.submit(item))
        del item
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.wait([second])
        del second
        await asyncio.sleep(0)  # a turn for its last traces to go
        gc.collect()
        gone = given_up() is None
        hangs.set()
        assert await first == 1
    assert gone


async def test_a_batch_waits_until_it_may_run_and_takes_along_who_comes_meanwhile(
    work: Work,
) -> None:
    ready = asyncio.Event()
    asked: list[list[int]] = []

    async def wait(items: Sequence[int]) -> None:
        asked.append(list(items))
        await ready.wait()

    with ThreadPoolExecutor(1) as executor:
        batcher = batcher_of(work, executor, ready=wait)
        tasks = await submitted(batcher, 1)
        tasks += await submitted(batcher, 2)
        assert await asyncio.get_running_loop().run_in_executor(executor, int) == 0, "it is free"
        assert work.batches == []
        ready.set()
        work.allow(2)
        assert await asyncio.gather(*tasks) == [1, 4]
    assert (asked, work.batches) == ([[1]], [[1, 2]])
