"""One UpsertStream: messages are read ahead within a window and acknowledged in order.

When writes are slow the window fills, or the budget that all writes of a server share is spent;
then nothing more is read, and the network holds the client back. Messages are written side by side,
in whatever order a shard or the shards behind a router take them; only one that shares an id with a
message in flight waits for it, so that the later message of an id wins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from vectorshard.shard.errors import ShardUnavailable
from vectorshard.shard.server.memory_limiter import ByteBudget
from vectorshard.shard.types import IdArray, UpsertRequest

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
    budget
        Whose bytes a message holds while it is written.
    """

    def __init__(
        self,
        payloads: AsyncIterator[bytes],
        decode: Callable[[bytes], tuple[UpsertRequest, int]],
        write: Callable[[UpsertRequest, int], Awaitable[bytes]],
        draining: asyncio.Event,
        budget: ByteBudget,
    ) -> None:
        self._payloads = payloads
        self._decode = decode
        self._write = write
        self._draining = draining
        self._budget = budget
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
        await self._wait_for_room(request.ids, len(payload))
        await self._budget.take(len(payload))
        acknowledgement = asyncio.ensure_future(self._write(request, request_id))
        acknowledgement.add_done_callback(_look_at)
        acknowledgement.add_done_callback(lambda _: self._budget.give_back(len(payload)))
        writing = _Writing(request.ids, len(payload), acknowledgement)
        self._in_flight.append(writing)
        return writing

    async def _wait_for_room(self, ids: IdArray, message_bytes: int) -> None:
        """Return once no message in flight has an id of these, and the window has room."""
        in_the_way = [
            writing.acknowledgement
            for writing in self._still_in_flight()
            if share_an_id(ids, writing.ids)
        ]
        if in_the_way:
            await asyncio.wait(in_the_way)
        while in_flight := self._still_in_flight():
            if sum(writing.message_bytes for writing in in_flight) + message_bytes <= WINDOW_BYTES:
                return
            await asyncio.wait(
                [writing.acknowledgement for writing in in_flight],
                return_when=asyncio.FIRST_COMPLETED,
            )

    def _still_in_flight(self) -> list[_Writing]:
        self._in_flight = [each for each in self._in_flight if not each.acknowledgement.done()]
        return self._in_flight

    async def acknowledgements(self) -> AsyncIterator[bytes]:
        """Yield the acknowledgements in order; raise the first message's error.

        Raises
        ------
        ShardUnavailable
            If the server drains: what was not acknowledged must be sent again elsewhere.
        """
        drained = asyncio.ensure_future(self._draining.wait())
        taken: asyncio.Future[asyncio.Future[bytes] | None] | None = None
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
                    raise ShardUnavailable("the server is draining; send the rest elsewhere")
        finally:
            drained.cancel()
            if taken is not None:
                taken.cancel()

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
