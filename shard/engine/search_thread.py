"""The search thread of a shard. Searches that wait for it and are alike run together, as one.

The event loop hands over each search as it arrives, and receives the answers of a joined search in
one callback. A joined search costs little more than the largest of its parts, and each caller gets
the answer that it would have got alone: an invalid query fails only its own caller, and so does a
deadline. The search continues until the last of its callers has left or must be answered.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.machine import limited
from vectorshard.shard.engine.search_batching import (
    JOINED_ANSWER_BYTES,
    JOINED_QUERIES,
    alike,
    answer_bytes_max,
    joined,
    parted,
)
from vectorshard.shard.engine.validation import admit_vectors
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    InvalidRequest,
    ShardUnavailable,
)
from vectorshard.shard.index.ivf_index import use_cores
from vectorshard.shard.types import Call, SearchRequest, SearchResult

TOO_LATE: Final = "the deadline passed before the search began"


@dataclass(slots=True, eq=False)
class Asked:
    """One caller's search. The caller has left if `answer` is done before the search."""

    collection: Collection
    request: SearchRequest
    deadline: float | None
    answer: asyncio.Future[SearchResult]

    def is_late(self, now: float) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and self.deadline < now


Outcome = SearchResult | Exception
_Lanes = dict[Hashable, list[Asked]]


class SearchThread:
    """Runs the searches of a shard, one joined search at a time.

    Searches that are not alike take turns, in the order of their arrival.

    Parameters
    ----------
    name
        Of the thread.
    cores
        That one FAISS call may use.
    clock
        Seconds, as in `call.deadline`.
    """

    def __init__(self, name: str, cores: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._arrived: SimpleQueue[Asked | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, args=(cores,), name=name, daemon=True)
        self._thread.start()

    def search(
        self, collection: Collection, request: SearchRequest, call: Call
    ) -> asyncio.Future[SearchResult]:
        """Search, alone or with others; cancel the future to leave. Call it on the event loop.

        Raises ShardUnavailable after `close`.
        """
        if self._closed:
            raise ShardUnavailable("the shard is closed")
        answer: asyncio.Future[SearchResult] = asyncio.get_running_loop().create_future()
        self._arrived.put(Asked(collection, request, call.deadline, answer))
        if self._closed:  # meanwhile, and the thread may have ended
            raise ShardUnavailable("the shard is closed")
        return answer

    def close(self) -> None:
        """Answer the searches that wait, and end the thread; blocking."""
        self._closed = True
        self._arrived.put(None)
        self._thread.join()

    # ---- on the thread --------------------------------------------------------------------------

    def _loop(self, cores: int) -> None:
        use_cores(cores)
        lanes: _Lanes = {}
        open_ = True
        while open_ or lanes:
            open_ = self._take_in(lanes) and open_
            for lane in list(lanes)[:1]:
                batch, late, rest = self._batch_of(lanes.pop(lane))
                if rest:
                    lanes[lane] = rest  # behind the others
                _hand_back(late, [DeadlineExceeded(TOO_LATE)] * len(late))
                if batch:
                    _hand_back(batch, self._outcomes(batch))

    def _take_in(self, lanes: _Lanes) -> bool:
        """Sort what has arrived into lanes; wait if there is nothing. False after `close`."""
        while not (lanes and self._arrived.empty()):
            asked = self._arrived.get()
            if asked is None:
                return False
            request = asked.request
            lane = (asked.collection, request.queries.shape[1], *alike(request))
            try:
                lanes.setdefault(lane, []).append(asked)
            except TypeError as error:  # a value in a filter cannot be hashed
                _hand_back([asked], [error])
        return True

    def _batch_of(self, lane: list[Asked]) -> tuple[list[Asked], list[Asked], list[Asked]]:
        """Return which searches of a lane run next, which are too late, and which wait on."""
        now, queries, answer_bytes = self._clock(), 0, 0
        batch: list[Asked] = []
        late: list[Asked] = []
        for place, asked in enumerate(lane):
            if asked.answer.done():
                continue
            if asked.is_late(now):
                late.append(asked)
                continue
            answer_bytes += answer_bytes_max(asked.request)
            if batch and (queries >= JOINED_QUERIES or answer_bytes > JOINED_ANSWER_BYTES):
                return batch, late, lane[place:]
            batch.append(asked)
            queries += len(asked.request.queries)
        return batch, late, []

    def _outcomes(self, batch: Sequence[Asked]) -> Sequence[Outcome]:
        """Run a joined search; return the outcome of each caller."""
        waiting = list(batch)

        def go_on() -> None:
            """Fail the callers whose deadlines have passed; raise if none is left."""
            now = self._clock()
            late = [asked for asked in waiting if asked.is_late(now)]
            waiting[:] = [
                asked for asked in waiting if not asked.answer.done() and not asked.is_late(now)
            ]
            error = DeadlineExceeded("the deadline passed during the search")
            if not waiting:
                raise error
            _hand_back(late, [error] * len(late))

        collection = batch[0].collection
        try:
            outcomes: Sequence[Outcome] = limited(_searched, batch, go_on)
        except Exception as error:
            if not collection.closed:
                named = collection.state.noticed.error_of(error)
                named.__cause__ = error if named is not error else error.__cause__
                error = named
            outcomes = [error] * len(batch)
        if collection.closed:  # by now, another collection's files may be in their place
            name = collection.entry.config.name
            outcomes = [CollectionNotFound(f"collection {name!r} was dropped")] * len(batch)
        return outcomes


def _searched(batch: Sequence[Asked], go_on: Callable[[], None]) -> Sequence[Outcome]:
    """Search for all callers at once; those whose queries are invalid get their own error."""
    collection, requests = batch[0].collection, [asked.request for asked in batch]
    config, request = collection.entry.config, joined(requests)
    try:
        queries = admit_vectors(config, request.queries, "queries")
    except InvalidRequest as error:
        if len(batch) == 1:
            return [error]
        alone = [_refusal_of(asked) for asked in batch]
        assert any(alone)
        valid = [asked for asked, refused in zip(batch, alone, strict=True) if refused is None]
        answers = iter(_searched(valid, go_on) if valid else ())
        return [refused or next(answers) for refused in alone]
    return parted(collection.reads.search(request, go_on, queries), requests)


def _refusal_of(asked: Asked) -> InvalidRequest | None:
    try:
        admit_vectors(asked.collection.entry.config, asked.request.queries, "queries")
    except InvalidRequest as error:
        return error
    return None


def _hand_back(batch: Sequence[Asked], outcomes: Iterable[Outcome]) -> None:
    if batch:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits
            batch[0].answer.get_loop().call_soon_threadsafe(_settle, batch, outcomes)


def _settle(batch: Sequence[Asked], outcomes: Iterable[Outcome]) -> None:
    for asked, outcome in zip(batch, outcomes, strict=True):
        if not asked.answer.done():
            if isinstance(outcome, Exception):
                asked.answer.set_exception(outcome)
            else:
                asked.answer.set_result(outcome)
