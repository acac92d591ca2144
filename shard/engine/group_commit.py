"""Group commit: the writes that arrive while one commit runs share the next.

One commit of a collection is in flight at a time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from typing import Final

from vectorshard.shard.engine.batcher import Batcher, Batching
from vectorshard.shard.engine.commit_plan import COMMIT_IDS_MAX, WriteOutcome
from vectorshard.shard.types import DeleteRequest, UpsertRequest

Write = UpsertRequest | DeleteRequest

WRITES: Final = Batching(cancellable=False, size_max=COMMIT_IDS_MAX)
"""A commit that has begun is never cancelled, and no other commit overlaps it."""


def commit_batcher(
    apply: Callable[[Sequence[Write]], Sequence[WriteOutcome | Exception]],
    room_for_rows: Callable[[], Future[None]],
    threads: Executor,
    slow_writers_wait_s: float,
) -> Batcher[Write, WriteOutcome]:
    """Return the queue of a collection's writes.

    Parameters
    ----------
    apply
        Commits a group of writes; runs in `threads`.
    room_for_rows
        Returns what is done once the training buffer has room. A group with an upsert waits for it
        without a thread, so that other collections' commits go on.
    slow_writers_wait_s
        The longest such wait.
    """

    async def run(writes: Sequence[Write], _: object) -> Sequence[WriteOutcome | Exception]:
        return await asyncio.get_running_loop().run_in_executor(threads, apply, writes)

    async def wait_for_room(writes: Sequence[Write]) -> None:
        if any(isinstance(write, UpsertRequest) for write in writes):
            room = asyncio.wrap_future(room_for_rows())
            await asyncio.wait([room], timeout=slow_writers_wait_s)
            room.cancel()

    return Batcher(run, WRITES, weigh=_weight_of, ready=wait_for_room)


def _weight_of(write: Write) -> tuple[int, int]:
    """Return a count of 1 and the number of ids that a write names; a filter weighs as one."""
    return 1, 1 if write.ids is None else len(write.ids)
