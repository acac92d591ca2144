"""Room on the disk for what a collection writes in the background: row, index and filter files.

That work can wait, and deletes cannot: they need what is left of the reserve. So the work asks for
room first. Without it, or when the disk proves to be full, it is put off with one line in the log,
and tried again once there is room.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import structlog

from vectorshard.shard.storage.disk import is_disk_full

RETRY_S: Final = 30.0
"""How soon work is tried again that met a full disk though there seemed to be room: a quota does
not show in the free space."""

_log = structlog.get_logger(__name__)


class PutOff(Exception):
    """The work waits for room on the disk."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    size: int
    not_before: float


class Room:
    """Which background work of a collection waits for room. `clock` is in seconds.

    The builder and the absorber use it, each for its own kinds of work; any thread may ask.
    """

    def __init__(self, collection: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._collection = collection
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self.shortage: Callable[[int], str] = lambda _: ""
        """Returns why so many bytes may not be written now; empty if they may."""

    @property
    def is_waited_for(self) -> bool:
        """Whether some work was put off: it becomes due without any other change."""
        return bool(self._waiting)

    def is_there_for(self, work: str) -> bool:
        """Whether work may begin: it was not put off, or there is room for it by now."""
        if not self._waiting or (waiting := self._waiting.get(work)) is None:
            return True
        return self._clock() >= waiting.not_before and not self.shortage(waiting.size)

    @contextmanager
    def taken_by(self, work: str, size: int) -> Iterator[None]:
        """Enter work that writes about `size` bytes. Raises PutOff if the disk has no room."""
        if reason := self.shortage(size):
            self._put_off(work, _Waiting(size, self._clock()), reason)
            raise PutOff(reason)
        try:
            yield
        except Exception as error:
            if not is_disk_full(error):
                raise
            self._put_off(work, _Waiting(size, self._clock() + RETRY_S), str(error))
            raise PutOff(str(error)) from error
        if self._waiting.pop(work, None) is not None:
            _log.info("background work done that was put off", work=work, **self._of)

    def _put_off(self, work: str, waiting: _Waiting, reason: str) -> None:
        if work not in self._waiting:
            _log.warning("background work put off", work=work, reason=reason, **self._of)
        self._waiting[work] = waiting

    @property
    def _of(self) -> dict[str, str]:
        return {"collection": self._collection}
