"""How many bytes of writes, or of searches, a server holds in memory at a time.

A write holds the bytes of its message from when it is read until it is acknowledged; a search
holds the bytes of its queries and of its expected response. An upsert stream waits for bytes, and
so holds its client back. A unary call is in memory already when the server first sees it: the
server refuses it. A limiter belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from vectorshard.shard.errors import Overloaded


class MemoryLimiter:
    """Bytes to acquire and release, first come, first served: `bytes_total` of them.

    A larger request gets them all, alone. Errors name what holds them: ``writes``.
    """

    def __init__(self, bytes_total: int, holders: str) -> None:
        self._total = bytes_total
        self._holders = holders
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def acquire_nowait(self, wanted: int) -> None:
        """Acquire bytes. Raises Overloaded if fewer are free, or others wait for them."""
        if self._waiting or not self._has(wanted):
            raise Overloaded(
                f"too many bytes of {self._holders} in progress: {self._held:,} of "
                f"{self._total:,} bytes are in use and {len(self._waiting)} requests wait"
            )
        self._held += wanted

    async def acquire(self, wanted: int) -> None:
        """Acquire bytes, once they are free and all earlier callers have theirs."""
        if not self._waiting and self._has(wanted):
            self._held += wanted
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.remove((wanted, turn))
                self._grant()
            else:  # the bytes were granted before the cancellation arrived
                self.release(wanted)
            raise

    def release(self, acquired: int) -> None:
        """Release bytes to the callers that wait."""
        self._held -= acquired
        self._grant()

    def _has(self, wanted: int) -> bool:
        return not self._held or self._held + wanted <= self._total

    def _grant(self) -> None:
        while self._waiting and self._has(self._waiting[0][0]):
            wanted, turn = self._waiting[0]
            if turn.done():  # cancelled, and about to leave the queue
                break
            self._waiting.popleft()
            self._held += wanted
            turn.set_result(None)
