"""Syncs the log marks of all collections of a shard, soon after they were written, on one thread.

A write does not wait for this sync: what a killed process wrote stays. After a power cut, damage to
a log may go unnoticed as far as its mark was not synced.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

import structlog

from vectorshard.shard.storage.log_end import LogEnd

SYNC_DELAY_S: Final = 0.08
"""How long a mark waits for its sync. Larger: fewer syncs, and a longer end of the log whose
damage in a power cut goes unnoticed."""

_log = structlog.get_logger(__name__)


class LogSync:
    """The thread that syncs log marks; it sleeps while nothing is written.

    `wait_s`, which tests replace, waits for a duration, or until a stop.
    """

    def __init__(self, wait_s: Callable[[float], object] | None = None) -> None:
        self._marks: tuple[LogEnd, ...] = ()
        self._changing = threading.Lock()
        self._written = threading.Event()
        self._stopping = threading.Event()
        self._wait_s = wait_s or self._stopping.wait
        self._thread = threading.Thread(target=self._loop, name="log-sync", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def attach(self, mark: LogEnd) -> None:
        """Sync a mark from now on, whenever it was written."""
        with self._changing:
            self._marks = (*self._marks, mark)
        mark.on_write = self._wake
        self._wake()

    def detach(self, mark: LogEnd) -> None:
        """Sync a mark no longer; closing the mark syncs it."""
        with self._changing:
            self._marks = tuple(each for each in self._marks if each is not mark)

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._written.set()
        if self._thread.is_alive():
            self._thread.join()

    def _wake(self) -> None:
        if not self._written.is_set():
            self._written.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            self._written.wait()
            self._wait_s(SYNC_DELAY_S)
            self.sync_all()

    def sync_all(self) -> None:
        """Sync the marks that were written since they were synced last."""
        self._written.clear()
        for mark in self._marks:
            try:
                mark.sync()
            except OSError as error:  # the mark refuses all later transactions
                _log.error("log mark sync failed", path=str(mark.path), error=str(error))
