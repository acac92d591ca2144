"""Make the calls of a schedule: one caller for each call that may be in flight.

Each caller takes the next start, waits for its time, sends, and records the answer. In an open loop
a start that finds all callers busy is taken late, by the next free caller. Its latency still counts
from its intended start, so that it includes every wait.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from time import perf_counter

import grpc
import uvloop

from benchmarks.load.record import Record
from benchmarks.load.schedule import Schedule, Start

Send = Callable[[int], Awaitable[bytes]]
"""Sends the n-th request; raises grpc.aio.AioRpcError for a status other than OK."""


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, replaceable in tests: `now` in seconds from any origin, `sleep` for seconds."""

    now: Callable[[], float] = perf_counter
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


def event_loop(*, is_open: bool) -> asyncio.AbstractEventLoop:
    """Return the event loop for an open or a closed loop of calls.

    The timers of uvloop and epoll count whole milliseconds, too coarse for the starts of an open
    loop; those of select(2) count microseconds. A closed loop needs no timers, and uvloop costs
    less.
    """
    if is_open:
        return asyncio.SelectorEventLoop(selectors.SelectSelector())
    return uvloop.new_event_loop()


async def make_calls(
    schedule: Schedule,
    sends: Sequence[Send],
    record: Record,
    *,
    concurrency: int,
    stopped: asyncio.Event,
    clock: Clock | None = None,
) -> float:
    """Make all calls of the schedule, and return the seconds.

    Parameters
    ----------
    sends
        One per connection; the callers are spread over them.
    concurrency
        Number of callers: the maximum of calls in flight.
    stopped
        Ends the run when it is set, and abandons the calls in flight.
    """
    clock = clock or Clock()
    begin = clock.now()
    callers = [
        asyncio.create_task(_call(schedule, sends[number % len(sends)], record, clock, begin))
        for number in range(concurrency)
    ]
    finished = asyncio.gather(*callers)
    stopping = asyncio.create_task(_cancel_when(stopped, finished))
    try:
        await finished
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
    finally:
        schedule.stop()
        for task in (stopping, *callers):
            task.cancel()
        await asyncio.gather(stopping, *callers, return_exceptions=True)
    return clock.now() - begin


async def _cancel_when(stopped: asyncio.Event, running: asyncio.Future[list[None]]) -> None:
    await stopped.wait()
    running.cancel()


async def _call(schedule: Schedule, send: Send, record: Record, clock: Clock, begin: float) -> None:
    now = clock.now
    free_s = 0.0  # a caller without an earlier call was free from the start
    while (start := schedule.take(taken_s := now() - begin)) is not None:
        if start.at_s > taken_s:
            await clock.sleep(start.at_s - taken_s)
        await _send(start, send, record, now, begin, free_s)
        free_s = now() - begin


async def _send(
    start: Start,
    send: Send,
    record: Record,
    now: Callable[[], float],
    begin: float,
    free_s: float,
) -> None:
    sent_s = now() - begin
    code, answer = "OK", None
    try:
        answer = await send(start.number)
    except grpc.aio.AioRpcError as error:
        code = error.code().name
        record.reasons.setdefault(code, error.details() or "")
    except asyncio.CancelledError:
        record.note_unfinished(start)
        raise
    record.note(
        start, free_s=free_s, sent_s=sent_s, ended_s=now() - begin, code=code, answer=answer
    )
