"""One UpsertStream: messages are read ahead within a window and acknowledged in order.

The window is what bounds an upload's memory: when writes are slow it fills, nothing more is read,
and the network holds the client back. Messages are written side by side, in whatever order a shard
or the shards behind a router take them; only one that shares an id with a message in flight waits
for it, so that the later message of an id wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from shard.errors import ShardUnavailable
from shard.types import IdArray, UpsertRequest

WINDOW_MESSAGES: Final = 8
"""Messages of one upload that are read but not yet acknowledged; the next waits in the network."""

WINDOW_BYTES: Final = 16 * 1024 * 1024
"""Bytes of messages that are being written; one message may have more, and is then alone."""


@dataclass(slots=True, eq=False)
class _Writing:
    """A message that is being written."""

    ids: IdArray
    message_bytes: int
    acknowledgement: asyncio.Future[bytes]


class Upload:
    """The messages of one stream. Reading begins at once; `close` must be called.

    Parameters
    ----------
    payloads
        The messages as they come.
    decode
        Reads one, or raises what is wrong with it.
    write
        Writes it, and returns its acknowledgement. Called with what `decode` returned.
    draining
        Set when the server stops: nothing more is begun.
    """

    def __init__(
        self,
        payloads: AsyncIterator[bytes],
        decode: Callable[[bytes], tuple[UpsertRequest, int]],
        write: Callable[[UpsertRequest, int], Awaitable[bytes]],
        draining: asyncio.Event,
    ) -> None:
        self._payloads = payloads
        self._decode = decode
        self._write = write
        self._draining = draining
        self._turned_away = False
        self._in_flight: list[_Writing] = []
        # Of the messages in the window one is waited for, and one waits for room in the queue.
        queued = WINDOW_MESSAGES - 2
        self._window: asyncio.Queue[asyncio.Future[bytes] | None] = asyncio.Queue(queued)
        self._reader = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        """Start writing each message as soon as it may be; None ends the window."""
        try:
            async for payload in self._payloads:
                if self._draining.is_set():
                    self._turned_away = True
                    return
                writing = await self._begin(payload)
                refused = writing.acknowledgement.done()
                await self._window.put(writing.acknowledgement)
                if refused:  # nothing behind it will be acknowledged
                    return
        finally:
            await self._window.put(None)

    async def _begin(self, payload: bytes) -> _Writing:
        """Start to write a message, once there is room for it and no earlier one has its ids."""
        try:
            request, request_id = self._decode(payload)
        except Exception as error:
            refused: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            refused.set_exception(error)
            refused.exception()  # it may be that nobody gets to hear of it
            return _Writing(np.zeros(0, dtype=np.int64), 0, refused)
        while self._must_wait(request.ids, len(payload)):
            in_flight = [writing.acknowledgement for writing in self._in_flight]
            await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
        acknowledgement = asyncio.ensure_future(self._write(request, request_id))
        acknowledgement.add_done_callback(_look_at)
        writing = _Writing(request.ids, len(payload), acknowledgement)
        self._in_flight.append(writing)
        return writing

    def _must_wait(self, ids: IdArray, message_bytes: int) -> bool:
        self._in_flight = [each for each in self._in_flight if not each.acknowledgement.done()]
        if not self._in_flight:
            return False
        in_flight_bytes = sum(writing.message_bytes for writing in self._in_flight)
        if in_flight_bytes + message_bytes > WINDOW_BYTES:
            return True
        return any(share_an_id(ids, writing.ids) for writing in self._in_flight)

    async def acknowledgements(self) -> AsyncIterator[bytes]:
        """Yield the acknowledgements in order; raise the first message's error.

        Raises
        ------
        ShardUnavailable
            If the server drains: what was not acknowledged must be sent again elsewhere.
        """
        drained = asyncio.ensure_future(self._draining.wait())
        try:
            while True:
                taken = asyncio.ensure_future(self._window.get())
                await asyncio.wait({taken, drained}, return_when=asyncio.FIRST_COMPLETED)
                acknowledgement = taken.result() if taken.done() else None
                if acknowledgement is not None:
                    yield await acknowledgement
                elif taken.done() and not self._turned_away:
                    await self._reader  # raises what ended it, if that was not the client's end
                    return
                else:
                    taken.cancel()
                    raise ShardUnavailable("the server is draining; send the rest elsewhere")
        finally:
            drained.cancel()

    async def close(self) -> None:
        """Stop reading, and withdraw what is being written: it may be written all the same."""
        self._reader.cancel()
        while not self._window.empty():  # make room for the reader's last word
            self._window.get_nowait()
        await asyncio.gather(self._reader, return_exceptions=True)
        for writing in self._in_flight:
            writing.acknowledgement.cancel()  # a shard that hangs must not keep it for ever


def share_an_id(ids: IdArray, others: IdArray) -> bool:
    """Whether an id is in both arrays, (rows,) each. Ids of different kinds are different."""
    if not len(ids) or not len(others) or ids.dtype != others.dtype:
        return False
    if ids.dtype == np.object_:
        return not set(ids.tolist()).isdisjoint(others.tolist())
    if ids.max() < others.min() or others.max() < ids.min():
        return False
    return bool(np.isin(ids, others).any())


def _look_at(acknowledgement: asyncio.Future[bytes]) -> None:
    """Take note of an outcome that perhaps nobody waits for, so that asyncio does not report it."""
    if not acknowledgement.cancelled():
        acknowledgement.exception()
