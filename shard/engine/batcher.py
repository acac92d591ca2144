"""Items that arrive while a batch runs form the next batch.

There is no timer in front of a batch: an idle batcher runs an item immediately. Items with equal
keys share a lane, which has one batch in flight; lanes run independently of each other. A batcher
lives on one event loop and does not know what an item is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from vectorshard.shard.errors import DeadlineExceeded

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")

Run = Callable[[Sequence[Item], Callable[[], None]], Awaitable[Sequence[Outcome | Exception]]]
"""Runs a batch and returns one outcome per item, in order. An exception in place of an outcome is
raised to that item's caller; an exception that the call raises goes to every caller of the batch.
The second argument releases the lane: the next batch may start while this one still runs."""

_Lane = dict[asyncio.Future[Outcome], Item]
"""The items that wait, by the future of their caller, in the order of arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batching:
    """The knobs of a batcher. `weigh` gives each item a count and a size."""

    # Affects behaviour.
    cancellable: bool
    """Whether a batch is cancelled once all of its callers have left. True: the first item of an
    idle lane also runs in its caller's task, which saves a task and a future. False: a batch always
    runs to its end, in a task of the batcher; leave the hold-up unlimited if no two may overlap."""
    hold_up_s: float = math.inf
    """Longest time in seconds that a batch keeps its lane. Shorter: a batch that hangs delays fewer
    callers; longer: fewer batches in flight under load. Infinite: no timer per batch."""
    hold_up_part: float = 1.0
    """The part of a batch's own time to its deadline for which it keeps its lane. Smaller: waiting
    callers with a similar deadline still have time left when the batch hangs."""
    # Affects performance.
    count_full: float = math.inf
    """A batch is full at this count; its last item may exceed it. Larger: fewer batches, and the
    first caller of a batch waits longer for the work of the last."""
    size_max: float
    """A batch never exceeds this size, unless its first item does. Larger: fewer batches, more
    memory per batch."""


class Batcher(Generic[Item, Outcome]):
    """Runs items in batches, one batch at a time per lane, in the order of their arrival.

    Parameters
    ----------
    run
        Runs one batch.
    batching
        The knobs.
    weigh
        Returns the count and the size of an item.
    deadline_of
        Returns the deadline of an item, in seconds of `clock`. An item whose deadline passes while
        it waits fails with DeadlineExceeded; a batch ends all of its items, at whatever deadline.
        A batch holds up its lane by its earliest deadline.
    ready
        For batches that are not cancellable: awaited before each batch with the items that wait;
        must not raise. Items that arrive meanwhile still join. None: a batch may always run.
    clock
        Seconds since any moment.
    """

    def __init__(
        self,
        run: Run[Item, Outcome],
        batching: Batching,
        *,
        weigh: Callable[[Item], tuple[int, int]] = lambda _: (1, 1),
        deadline_of: Callable[[Item], float | None] = lambda _: None,
        ready: Callable[[Sequence[Item]], Awaitable[None]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._batching = batching
        self._weigh = weigh
        self._deadline_of = deadline_of
        self._ready = ready
        self._clock = clock
        self._lanes: dict[Hashable, _Lane[Outcome, Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, item: Item, key: Hashable = None) -> Outcome:
        """Run the item, alone or with others of its key, and return its outcome.

        A caller that is cancelled before its batch starts takes its item back.
        """
        lane = self._lanes.get(key)
        idle = lane is None
        if lane is None:
            self._lanes[key] = lane = {}
            if self._batching.cancellable:
                release = self._release_of(key, lane, self._deadline_of(item))
                try:
                    (outcome,) = await self._run((item,), release)
                finally:
                    release()
                if isinstance(outcome, Exception):
                    raise outcome
                return outcome
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        lane[future] = item
        if idle:
            self._start_next(key, lane)
        try:
            return await future
        except asyncio.CancelledError:
            # Otherwise abandoned items would pile up behind a batch that hangs.
            lane.pop(future, None)
            raise

    async def drain(self) -> None:
        """Return when no item waits and no task of the batcher runs."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    def _start_next(self, key: Hashable, lane: _Lane[Outcome, Item]) -> None:
        """Start the next batch of a lane, or forget the lane if no item waits."""
        if not lane:
            del self._lanes[key]
            return
        task = asyncio.get_running_loop().create_task(self._run_next(key, lane))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run_next(self, key: Hashable, lane: _Lane[Outcome, Item]) -> None:
        if self._ready is not None:
            await self._ready(list(lane.values()))
        batch = self._take(lane)
        if not batch:
            self._start_next(key, lane)
            return
        items = list(batch.values())
        deadlines = [each for each in map(self._deadline_of, items) if each is not None]
        release = self._release_of(key, lane, min(deadlines, default=None))
        if self._batching.cancellable:
            _cancel_once_done(asyncio.current_task(), batch)
        try:
            outcomes = await self._run(items, release)
            for future, outcome in zip(batch, outcomes, strict=True):
                _settle(future, outcome)
        except Exception as error:
            for future in batch:
                _settle(future, error)
        finally:
            release()

    def _take(self, lane: _Lane[Outcome, Item]) -> _Lane[Outcome, Item]:
        """Take the next batch out of a lane; fail the items whose deadline has passed."""
        batch: _Lane[Outcome, Item] = {}
        taken = []
        now, total_count, total_size = self._clock(), 0, 0
        for future, item in lane.items():
            if not future.done():  # otherwise its caller has just left
                deadline = self._deadline_of(item)
                if deadline is not None and deadline <= now:
                    future.set_exception(DeadlineExceeded("the deadline passed in the queue"))
                else:
                    count, size = self._weigh(item)
                    total_size += size
                    full = total_count >= self._batching.count_full
                    if batch and (full or total_size > self._batching.size_max):
                        break
                    batch[future] = item
                    total_count += count
            taken.append(future)
        for future in taken:
            del lane[future]
        return batch

    def _release_of(
        self, key: Hashable, lane: _Lane[Outcome, Item], deadline: float | None
    ) -> _Release:
        """Return what releases a lane: when called, or after the longest hold-up."""
        hold_up_s = self._batching.hold_up_s
        if deadline is not None:
            left_s = deadline - self._clock()
            hold_up_s = min(hold_up_s, self._batching.hold_up_part * left_s)
        return _Release(lambda: self._start_next(key, lane), hold_up_s)


class _Release:
    """Calls a function once: when it is called itself, or after some seconds."""

    __slots__ = ("_function", "_timer")

    def __init__(self, function: Callable[[], None], after_s: float) -> None:
        self._function: Callable[[], None] | None = function
        self._timer: asyncio.TimerHandle | None = None
        if after_s < math.inf:
            self._timer = asyncio.get_running_loop().call_later(after_s, self)

    def __call__(self) -> None:
        function, self._function = self._function, None
        if function is not None:
            if self._timer is not None:
                self._timer.cancel()
            function()


def _cancel_once_done(
    task: asyncio.Task[None] | None, futures: Iterable[asyncio.Future[Outcome]]
) -> None:
    """Cancel a task once all futures are done: every caller has left, or the task has ended."""
    assert task is not None
    waiting = 0

    def one_less(_: object) -> None:
        nonlocal waiting
        waiting -= 1
        if not waiting:
            task.cancel()  # does nothing if the task has ended

    for future in futures:
        waiting += 1
        future.add_done_callback(one_less)


def _settle(future: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
