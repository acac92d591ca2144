"""How many bytes of writes, or of searches, a server holds at a time, whoever sends them.

Every write holds as much of the budget as its message has bytes, from when it is read until it is
acknowledged. Uploads wait for room, and so hold their clients back; single calls, which are there
already when they are first seen, are refused. A search holds what its answer may have, too. It
lives on an event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque

from vectorshard.shard.errors import Overloaded


class ByteBudget:
    """Bytes to take and to give back. Who waits gets them in the order of coming.

    Parameters
    ----------
    bytes_total
        How many there are. Who wants more gets all of them, alone.
    of_what
        What errors call those who hold them.
    """

    def __init__(self, bytes_total: int, of_what: str) -> None:
        self._total = bytes_total
        self._of_what = of_what
        self._held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def take_now(self, wanted: int) -> None:
        """Take bytes.

        Raises
        ------
        Overloaded
            If there are not as many, or others wait for them.
        """
        if self._waiting or not self._has(wanted):
            raise Overloaded(
                f"{self._held:,} bytes of {self._of_what} are in progress, "
                f"and {len(self._waiting)} wait"
            )
        self._held += wanted

    async def take(self, wanted: int) -> None:
        """Take bytes, once there are as many and nobody else waits for longer."""
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
                self._admit()
            else:  # cancelled with the bytes in hand
                self.give_back(wanted)
            raise

    def give_back(self, taken: int) -> None:
        """Give bytes back, to whoever waits."""
        self._held -= taken
        self._admit()

    def _has(self, wanted: int) -> bool:
        return not self._held or self._held + wanted <= self._total

    def _admit(self) -> None:
        while self._waiting and self._has(self._waiting[0][0]):
            wanted, turn = self._waiting[0]
            if turn.done():  # it is about to leave
                break
            self._waiting.popleft()
            self._held += wanted
            turn.set_result(None)
