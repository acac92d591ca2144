"""The window of a stream on the server: what is full makes the reader of the stream wait.

While the reader waits, the network holds the client back.
"""

from __future__ import annotations

import asyncio
from typing import Final

from vectorshard.shard.wire.window import Window

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Bytes of one stream's messages in flight; a larger message is in flight alone."""


class StreamWindow(Window):
    """A window of `WINDOW_BYTES` with one reader, which waits for room in it.

    `resize` and `leave` call no base method: two such calls took 0.3 us of every streamed search.
    """

    __slots__ = ("_freed",)

    def __init__(self, messages_max: int) -> None:
        super().__init__(messages_max, WINDOW_BYTES)
        self._freed = asyncio.Event()

    async def room_for(self, message_bytes: int) -> None:
        """Return once a message of this size fits in."""
        while not self.has_room(message_bytes):
            self._freed.clear()
            await self._freed.wait()

    def resize(self, before_bytes: int, after_bytes: int) -> None:
        """Count a message in flight with another size than before."""
        self.bytes += after_bytes - before_bytes
        self._freed.set()

    def leave(self, message_bytes: int) -> None:
        """Count a message out, with the size that it has now."""
        self.messages -= 1
        self.bytes -= message_bytes
        self._freed.set()
