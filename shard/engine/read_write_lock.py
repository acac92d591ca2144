"""A lock that is shared by many readers or held by one writer, fair to both.

FAISS allows concurrent searches of an index, but crashes if rows are added meanwhile. Neither side
starves: a waiting writer blocks new readers, and a writer that releases the lock admits all waiting
readers before the next writer (phase-fair, after Brandenburg and Anderson, 2009).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class ReadWriteLock:
    """Shared by readers, exclusive for a writer. Not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._readers = 0
        self._writing = False
        self._writers_waiting = 0
        self._readers_waiting = 0
        self._readers_admitted = 0

    def read(self) -> Self:
        """Hold the lock together with other readers, as a context."""
        return self

    def __enter__(self) -> Self:
        with self._lock:
            if self._writing or self._writers_waiting:
                self._wait_for_turn()
            self._readers += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                self._changed.notify_all()

    def _wait_for_turn(self) -> None:
        self._readers_waiting += 1
        try:
            while self._writing or (self._writers_waiting and not self._readers_admitted):
                self._changed.wait()
        finally:
            self._readers_waiting -= 1
            self._readers_admitted = max(0, self._readers_admitted - 1)

    @contextmanager
    def write(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._writers_waiting += 1
            try:
                while self._writing or self._readers or self._readers_admitted:
                    self._changed.wait()
            finally:
                self._writers_waiting -= 1
            self._writing = True
        try:
            yield
        finally:
            with self._changed:
                self._writing = False
                self._readers_admitted = self._readers_waiting
                self._changed.notify_all()
