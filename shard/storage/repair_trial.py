"""What can be made of the database of a damaged row store, found in copies of its files.

First the copy is opened as a start opens it. If it does not add up, its log is read further than
SQLite does, and then that is opened; then the database without its log, which may be an older one.
If none adds up, the sound records are taken.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from vectorshard.shard.errors import CorruptData, DataDirectoryTooNew
from vectorshard.shard.rows.id_column import decode_ids
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.log_end import LogEnd
from vectorshard.shard.storage.repair_findings import Repair
from vectorshard.shard.storage.repair_log import LogPages, read_log
from vectorshard.shard.storage.repair_records import (
    Records,
    StorePages,
    contents_of,
    contradict,
    page_bytes_of,
    records_of,
    with_older,
)
from vectorshard.shard.storage.repair_rows import LiveRows
from vectorshard.shard.storage.row_store import RowStore
from vectorshard.shard.storage.row_store_format import FILE_NAME, StoredRows
from vectorshard.shard.storage.two_slots import Slot
from vectorshard.shard.types import IdType

LOG: Final = f"{FILE_NAME}-wal"


@dataclass(frozen=True, slots=True)
class WholeStore:
    """A store that adds up, open to be read: its database, and how many transactions it has."""

    path: Path
    store: RowStore
    stored: StoredRows
    transactions: int
    as_is: bool
    """Whether nothing had to be done to its files."""

    def reaches(self, mark: Slot) -> bool:
        """Whether it has all the transactions and commits that the log mark counts."""
        return self.transactions >= mark.counter and self.stored.sequence >= mark.value


class StoreTrial:
    """Finds what can be made of the store of a collection's directory.

    Parameters
    ----------
    work
        An empty directory for copies.
    repair
        Takes the findings.
    mark
        The log mark, None if it is unknown.
    opened
        Closes what was opened.
    """

    def __init__(
        self, path: Path, work: Path, repair: Repair, mark: Slot | None, opened: ExitStack
    ) -> None:
        self._path = path
        self._work = work
        self._repair = repair
        self._mark = mark
        self._opened = opened
        self.whole: WholeStore | None = None
        """The store, if one adds up."""
        self.records = Records()
        """Its sound records otherwise."""
        self.version = 0
        """The format version of the database."""

    def run(self) -> None:
        """Look for a store that adds up, or else for sound records; note what is found."""
        as_is = self._work / "as-is"
        as_is.mkdir()
        for name in (FILE_NAME, LOG):
            if (self._path / name).exists():
                shutil.copyfile(self._path / name, as_is / name)
        whole, reason = (
            _opened_whole(as_is, as_is=True) if (as_is / FILE_NAME).exists() else (None, "")
        )
        database = contents_of(as_is / FILE_NAME)
        alone = StorePages(database)
        if whole is not None:
            self.version = whole.store.version
            if self._is_enough(whole, alone, as_is / LOG):
                self._use(whole)
                return
            whole.store.close()
        log = read_log(bytes(contents_of(as_is / LOG)), page_bytes_of(bytes(database[:100])))
        pages = StorePages(database, log)
        self.version = pages.version
        self._note(pages, log, reason, has_base=len(database) > 0)
        merged = self._tried(pages, "merged")
        if merged is not None and self._mark is not None and merged.reaches(self._mark):
            self._use(merged)
            return
        found, older = records_of(pages), records_of(alone)
        without = self._tried(alone, "alone") if log.frames else None
        if contradict(found, older):
            self._repair.add(LOG, "it is the log of another store", "left out")
            best, found = without, older
        elif without is not None and self._has_more(without, merged):
            self._repair.add(LOG, f"it is older than {FILE_NAME}", "left out")
            best = without
        else:
            best = merged
        for each in (merged, without):
            if each is not None and each is not best:
                each.store.close()
        if best is not None:
            self._use(best)
            return
        self.records = with_older(*_newest_first(found, older))
        self._note_undone()

    def _is_enough(self, whole: WholeStore, alone: StorePages, log: Path) -> bool:
        """Whether a store that adds up has all that there was, as far as can be known."""
        if self._mark is not None:
            return whole.reaches(self._mark)
        if not log.exists() or not log.stat().st_size:
            return True
        ledger = records_of(alone).ledger
        return ledger is None or ledger.transactions <= whole.transactions

    def _has_more(self, without: WholeStore, merged: WholeStore | None) -> bool:
        """Whether a database has more without its log than with it."""
        if self._mark is not None and without.reaches(self._mark):
            return True
        return merged is not None and without.transactions > merged.transactions

    def _tried(self, pages: StorePages, name: str) -> WholeStore | None:
        """Write pages to a database of their own, and open it; None if it does not add up."""
        directory = self._work / name
        directory.mkdir()
        pages.write(Disk(), directory / FILE_NAME)
        return _opened_whole(directory, as_is=False)[0]

    def _note_undone(self) -> None:
        for note in self.records.undone:
            self._repair.add(FILE_NAME, note, "undone in a copy")

    def _use(self, whole: WholeStore) -> None:
        self._opened.callback(whole.store.close)
        self.whole = whole

    def _note(self, pages: StorePages, log: LogPages, reason: str, *, has_base: bool) -> None:
        add = self._repair.add
        if not has_base:
            add(FILE_NAME, "it is missing or empty", "made again of what its log holds")
        elif reason:
            add(FILE_NAME, self.plain(reason), "made again of what can be read")
        for note in pages.undone:
            add(FILE_NAME, note, "undone in a copy")
        for note in log.undone:
            add(LOG, note, "undone in a copy")
        if log.damaged:
            frames = ", ".join(map(str, log.damaged[:10]))
            add(
                LOG,
                f"{len(log.damaged)} of {log.frames} frames stay damaged: {frames}",
                "each record is verified by its own checksum",
            )

    def plain(self, text: str) -> str:
        """Return a text without the paths of the copies."""
        for directory in (self._path, *self._work.iterdir()):
            text = text.replace(f"{directory}{os.sep}", "").replace(f"{directory}: ", "")
        return text


def _opened_whole(directory: Path, *, as_is: bool) -> tuple[WholeStore | None, str]:
    """Open the copy of a store; return it, or None and what is wrong with it.

    The log mark plays no part.
    """
    path = directory / FILE_NAME
    LogEnd.create(Disk(), directory)
    with ExitStack() as opened:
        try:
            store = opened.enter_context(closing(RowStore.open(Disk(), directory)))
            stored = store.load()
            with store.loader() as loader:
                if wrong := loader.integrity():
                    return None, f"{FILE_NAME}: {wrong}"
                transactions = loader.ledger().transactions
        except (CorruptData, DataDirectoryTooNew, sqlite3.Error) as error:
            return None, str(error)
        opened.pop_all()
        return WholeStore(path, store, stored, transactions, as_is), ""


def live_rows_of(stored: StoredRows, id_type: IdType) -> LiveRows:
    """Return the live rows of what was loaded."""
    positions = np.arange(len(stored.squared_norms))
    numbers = stored.positions.rows_at(positions)
    kind = np.int64 if id_type is IdType.INT64 else np.object_
    ids = [decode_ids(id_type, blob, rows) for blob, rows in stored.ids]
    rows = LiveRows(
        numbers=numbers,
        positions=positions,
        ids=np.concatenate([np.zeros(0, dtype=kind), *ids]),
        content_hashes=stored.content_hashes,
        squared_norms=stored.squared_norms,
    )
    return rows.take(~np.isin(numbers, np.concatenate([stored.replaced, stored.deleted])))


def _newest_first(found: Records, alone: Records) -> tuple[Records, Records]:
    """Return the records with and without the log, those of the newer ledger first."""
    first, second = found.ledger, alone.ledger
    if first is not None and second is not None and second.transactions > first.transactions:
        return alone, found
    return found, alone
