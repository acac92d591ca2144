"""Who waits travels together: while one batch of items runs, those that arrive form the next.

There is no timer: an idle coalescer runs an item at once. It lives on an event loop and runs its
batches in a thread; it knows nothing of what an item is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


class Coalescer(Generic[Item, Outcome]):
    """Runs items in batches, one batch at a time, in the order of their arrival.

    Parameters
    ----------
    run
        Called in `executor` with a batch; returns one outcome for each item, in order. An outcome
        that is an exception is raised to that item's caller alone; an exception that `run` raises
        goes to every caller of the batch.
    executor
        Where batches run.
    weigh
        How much of a batch an item takes.
    batch_weight
        Where a batch ends; its first item may weigh more.
    ready
        Awaited before each batch, with what waits: meanwhile `executor` is free for others. None
        when a batch may always run.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Outcome | Exception]],
        executor: Executor,
        weigh: Callable[[Item], int] = lambda _: 1,
        batch_weight: int = 1_024,
        ready: Callable[[Sequence[Item]], Awaitable[None]] | None = None,
    ) -> None:
        self._run = run
        self._executor = executor
        self._weigh = weigh
        self._batch_weight = batch_weight
        self._ready = ready
        self._waiting: list[tuple[Item, asyncio.Future[Outcome]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def submit(self, item: Item) -> Outcome:
        """Run the item with the next batch and return its outcome.

        A caller that is cancelled before its batch starts takes its item back; later it only stops
        waiting for the outcome.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Outcome] = loop.create_future()
        self._waiting.append((item, future))
        if self._runner is None:
            self._runner = loop.create_task(self._run_batches())
        try:
            return await future
        except asyncio.CancelledError:
            # Else what callers gave up would pile up behind a batch that hangs.
            self._waiting = [waits for waits in self._waiting if waits[1] is not future]
            raise

    async def drain(self) -> None:
        """Return when nothing waits or runs."""
        while self._runner is not None:
            await asyncio.wait([self._runner])

    async def _run_batches(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._ready is not None:
                    await self._ready([item for item, _ in self._waiting])
                batch = self._next_batch()
                if not batch:
                    continue
                items = [item for item, _ in batch]
                try:
                    outcomes = await loop.run_in_executor(self._executor, self._run, items)
                except Exception as error:
                    outcomes = [error] * len(batch)
                for (_, future), outcome in zip(batch, outcomes, strict=True):
                    _settle(future, outcome)
        finally:
            self._runner = None

    def _next_batch(self) -> list[tuple[Item, asyncio.Future[Outcome]]]:
        """Take the items of the next batch; a caller may have left in this very moment."""
        weight = 0
        taken = 0
        for item, _ in self._waiting:
            weight += self._weigh(item)
            if taken and weight > self._batch_weight:
                break
            taken += 1
        batch = self._waiting[:taken]
        del self._waiting[:taken]
        return [(item, future) for item, future in batch if not future.done()]


def _settle(future: asyncio.Future[Outcome], outcome: Outcome | Exception) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
