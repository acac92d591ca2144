"""One UpsertStream: messages are read ahead within a window and acknowledged in order.

When writes are slow, the window fills, or the memory limiter that all writes of a server share is
exhausted. Then the server stops reading, and the network holds the client back. Messages are
written concurrently, in any order. Only a message that shares an id with a message in flight waits
for that one, so that the later message of an id wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Final

import numpy as np

from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.server.memory_limiter import MemoryLimiter
from vectorshard.shard.server.stream_window import StreamWindow
from vectorshard.shard.types import IdArray, UpsertRequest

WINDOW_MESSAGES: Final = 8
"""Messages of one stream that are read but not yet acknowledged; the next waits in the network."""


class UpsertStreamHandler:
    """The messages of one stream. Reading begins immediately; `close` must be called.

    A message counts in the window until its acknowledgement is sent, and its bytes until it is
    written.

    Parameters
    ----------
    payloads
        The messages as they arrive.
    decode
        Reads a message. Its error ends the stream.
    write
        Writes what `decode` returned, and returns the acknowledgement.
    draining
        Set when the server stops: no further message is begun.
    memory
        Limits the bytes of all writes of the server.
    """

    def __init__(
        self,
        payloads: AsyncIterator[bytes],
        decode: Callable[[bytes], tuple[UpsertRequest, int]],
        write: Callable[[UpsertRequest, int], Awaitable[bytes]],
        draining: asyncio.Event,
        memory: MemoryLimiter,
    ) -> None:
        self._payloads = payloads
        self._decode = decode
        self._write = write
        self._draining = draining
        self._memory = memory
        self._turned_away = False
        self._window = StreamWindow(WINDOW_MESSAGES)
        self._in_flight: list[tuple[IdArray, asyncio.Future[bytes]]] = []
        self._begun: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue()
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        """Begin to write each message as soon as possible; None ends the queue."""
        try:
            async for payload in self._payloads:
                if self._draining.is_set():
                    self._turned_away = True
                    return
                await self._begin(payload)
                await self._window.room_for(0)  # read no message that has no place
        finally:
            self._begun.put_nowait(None)

    async def _begin(self, payload: bytes) -> None:
        """Begin to write a message, once it fits in and no earlier one in flight has its ids."""
        request, request_id = self._decode(payload)
        payload_bytes = len(payload)
        self._in_flight = [each for each in self._in_flight if not each[1].done()]
        conflicting = [writing for ids, writing in self._in_flight if share_an_id(request.ids, ids)]
        if conflicting:
            await asyncio.wait(conflicting)
        await self._window.room_for(payload_bytes)
        await self._memory.acquire(payload_bytes)
        self._window.enter(payload_bytes)
        writing = asyncio.ensure_future(self._write(request, request_id))
        writing.add_done_callback(partial(self._end, payload_bytes))
        self._in_flight.append((request.ids, writing))
        self._begun.put_nowait(writing)

    def _end(self, payload_bytes: int, written: asyncio.Future[bytes]) -> None:
        """Free the bytes of a message that is written."""
        self._window.resize(payload_bytes, 0)
        self._memory.release(payload_bytes)
        if not written.cancelled():
            written.exception()  # retrieved here: after a failure the later ones are not awaited

    async def answers(self) -> AsyncIterator[bytes]:
        """Yield the acknowledgements in order; raise the first message's error.

        Raises ShardUnavailable if the server drains: unacknowledged messages must be sent to
        another server.
        """
        drained = asyncio.ensure_future(self._draining.wait())
        taken: asyncio.Future[asyncio.Future[bytes] | None] | None = None
        try:
            while True:
                taken = asyncio.ensure_future(self._begun.get())
                await asyncio.wait({taken, drained}, return_when=asyncio.FIRST_COMPLETED)
                writing = taken.result() if taken.done() else None
                if writing is not None:
                    yield await writing
                    self._window.leave(0)
                elif taken.done() and not self._turned_away:
                    await self._reader  # raises what ended it, unless the client did
                    return
                else:
                    raise ShardUnavailable(
                        "the server is draining: send the unacknowledged messages again"
                    )
        finally:
            drained.cancel()
            if taken is not None:
                taken.cancel()

    async def close(self) -> None:
        """Stop reading, and cancel the writes in flight, which may still take effect."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        for _, writing in self._in_flight:
            writing.cancel()  # not awaited: a shard that hangs must not block this


def share_an_id(ids: IdArray, others: IdArray) -> bool:
    """Return whether an id is in both arrays, (rows,) each. Ids of different kinds differ."""
    if not len(ids) or not len(others) or ids.dtype != others.dtype:
        return False
    if ids.dtype == np.object_:
        return not set(ids.tolist()).isdisjoint(others.tolist())
    if ids.max() < others.min() or others.max() < ids.min():
        return False
    return bool(np.isin(ids, others).any())
