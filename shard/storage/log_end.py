"""The log mark: how far the log of a row store has come, kept in a separate file.

SQLite takes a damaged or shortened log for one that ends there, and so forgets commits without a
word. Therefore every transaction is counted in the database, and the count is written here once its
COMMIT has returned, before its caller is answered. The write is synced soon after, on a background
thread: a killed process loses nothing that was written, and a power cut only what was not synced
yet. A start that finds fewer transactions in the database knows that its log was cut.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from vectorshard.shard.errors import RowStoreCorrupt, WritesStopped
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.two_slots import Slot, TwoSlots

FILE_NAME: Final = "log-end"


class LogEnd:
    """The log mark of one collection. One thread at a time writes; any thread syncs or closes."""

    def __init__(self, slots: TwoSlots) -> None:
        self._slots = slots
        self._failure = ""
        self._unsynced = False
        self._closed = False
        self._syncing = threading.Lock()
        self.on_write: Callable[[], None] = lambda: None
        """Called when there is something to sync; returns immediately."""
        self.on_failure: Callable[[str], object] = lambda _: None
        """Called with the reason when a sync has failed, after which no transaction begins."""

    @property
    def path(self) -> Path:
        """Where the mark is."""
        return self._slots.path

    @property
    def transactions(self) -> int:
        """The transactions of the newest mark that was written; 0 if none is sound."""
        newest = self._slots.newest
        return 0 if newest is None else newest.counter

    def stored(self) -> Slot | None:
        """Read the newest mark from the file; None if both slots are damaged."""
        return TwoSlots.read(self._slots.path)

    @staticmethod
    def create(disk: Disk, directory: Path) -> None:
        """Write the mark of a store without a transaction, durably."""
        TwoSlots.create(disk, directory / FILE_NAME, Slot(0))

    @classmethod
    def open(cls, disk: Disk, directory: Path) -> LogEnd:
        """Open the mark of a collection's directory, which exists."""
        return cls(TwoSlots.open(disk, directory / FILE_NAME))

    def catch_up(self, transactions: int, sequence: int) -> None:
        """Write the mark of what a start found, if the mark is behind: a crash came before it."""
        newest = self._slots.newest
        if newest is None or newest.counter < transactions:
            self.write(transactions, sequence)

    def write(self, transactions: int, sequence: int) -> None:
        """Write the mark after a transaction.

        Raises WritesStopped if that fails: the transaction is committed, but a damage to the log
        would not be noticed.
        """
        try:
            self._slots.write(Slot(transactions, sequence))
        except OSError as error:
            self._failure = f"a write of the log mark failed ({error})"
            raise WritesStopped(f"{self._failure}; the write may have been done") from error
        self._unsynced = True
        self.on_write()

    def check(self) -> None:
        """Raise WritesStopped if a mark could not be written or synced; nothing was done then."""
        if self._failure:
            raise WritesStopped(self._failure)

    def sync(self) -> None:
        """Make the mark durable, if it is not yet. An OSError stops all later transactions."""
        with self._syncing:
            if self._closed or not self._unsynced:
                return
            self._unsynced = False
            try:
                self._slots.sync()
            except OSError as error:
                self._failure = f"a sync of the log mark failed ({error})"
                self.on_failure(self._failure)
                raise

    def rest(self) -> None:
        """Sync the mark, and close its file until `reopen`. No write may be running."""
        self.sync()
        with self._syncing:
            self._slots.close()

    def reopen(self) -> None:
        """Open the file again: before a transaction, which must not fail at its mark for that."""
        self._slots.reopen()

    def close(self) -> None:
        """Sync the mark if the disk allows, and close its file; it may be closed already."""
        with suppress(OSError):  # what it would prove is in the database, or still in the log
            self.sync()
        with self._syncing:
            if not self._closed:
                self._closed = True
                self._slots.close()


def check_log_end(directory: Path, transactions: int, sequence: int) -> None:
    """Raise RowStoreCorrupt if a store has fewer transactions or commits than its log mark.

    Raises OSError if the disk fails.
    """
    path = directory / FILE_NAME
    mark = TwoSlots.read(path)
    if mark is None:
        raise RowStoreCorrupt(f"{path}, the log mark, is missing or damaged")
    if transactions < mark.counter or sequence < mark.value:
        raise RowStoreCorrupt(
            f"{directory}: store.db ends after transaction {transactions} (commit {sequence}), but "
            f"{path.name} has {mark.counter} (commit {mark.value}): its log is damaged, or the "
            "files are of different times"
        )
