"""The scrub of a collection's other files and of its records: against their checksums, and against
what the server has in memory."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Final

from vectorshard.shard.engine.scrub_findings import (
    MEMORY_CURE,
    RECORDS_CURE,
    Findings,
    Piece,
)
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.storage.checksum import checksum_after
from vectorshard.shard.storage.content_hash import SUM_MODULUS, sum_bytes, sum_of
from vectorshard.shard.storage.file_reader import FileReader
from vectorshard.shard.storage.filter_file import Origin, has_columns_file, is_sound
from vectorshard.shard.storage.record_check import Found, RecordCheck, small_tables

FILE_PIECE_BYTES: Final = 1024 * 1024
SUM_PIECE_ROWS: Final = 16_384
TRIES: Final = 5
"""How often to look again while commits or compactions change what is compared."""


class FileScrub:
    """One pass over everything of a collection but its rows and its index in memory."""

    def __init__(self, state: CollectionState, findings: Findings, *, read_disk: bool) -> None:
        self._state = state
        self._findings = findings
        self._read_disk = read_disk

    # ---- store.db -------------------------------------------------------------------------------

    def records(self) -> Iterator[Piece]:
        """Check the records of the store, against their checksums and against memory."""
        state = self._state
        for text in small_tables(state.row_store, pages=self._read_disk):
            self._findings.add(f"store.db: {text}", RECORDS_CURE)
        yield Piece()
        self._check_ledger()
        yield Piece()
        for _ in range(TRIES):
            with state.writes_lock.read():  # a compaction replaces both or none
                columns, last = state.columns, state.row_store.last_compaction
                snapshot = state.snapshot
            check = RecordCheck(
                state.row_store, last, columns, snapshot.tombstones, snapshot.sequence
            )
            del snapshot
            while not check.done:
                found = check.next_piece()
                if state.row_store.last_compaction is not last:
                    break
                self._tell(found)
                yield Piece(0, found.bytes_read)
            if check.done:
                return

    def _tell(self, found: Found) -> None:
        state = self._state
        for text in found.damaged:
            self._findings.add(f"store.db: {text}", RECORDS_CURE)
        for text in found.memory:
            self._findings.add(f"memory differs from store.db: {text}", MEMORY_CURE)
        for sound in found.differ:
            with state.writes_lock.write():
                state.columns.correct(sound.first, sound.squared_norms, sound.content_hashes)
            self._findings.add(
                "norms or content hashes in memory differed from store.db, from position "
                f"{sound.first} on; repaired"
            )

    def _check_ledger(self) -> None:
        """Compare the ledger in the store with the one in memory, of the same commit."""
        state = self._state
        differed = False
        for _ in range(TRIES):  # what is committed is published a moment later
            before = state.snapshot
            with state.row_store.loader() as loader, loader.one_moment():
                sequence, ledger = loader.newest_sequence(), loader.ledger()
            if sequence != before.sequence:
                continue
            stored = ledger.accepted, ledger.replaced, ledger.deleted, ledger.lost
            expected = before.rows + before.lost, before.replaced, before.deleted, before.lost
            if stored == expected and sum_bytes(ledger.sum) == before.sum:
                return
            differed = state.snapshot is before
        if differed:
            self._findings.add("store.db: the ledger differs from the one in memory", RECORDS_CURE)

    # ---- the sum of the content hashes ----------------------------------------------------------

    def content_sum(self) -> Iterator[Piece]:
        """Add up the content hashes of the live rows, and compare with the ledger's sum."""
        snapshot = self._state.snapshot
        hashes, positions = snapshot.content_hashes, snapshot.positions
        tombstones, rows, expected = snapshot.tombstones, snapshot.rows, snapshot.sum
        del snapshot
        total = 0
        for first in range(0, rows, SUM_PIECE_ROWS):
            live = tombstones.live_rows(first, min(first + SUM_PIECE_ROWS, rows))
            total += sum_of(hashes[positions.of(live)])
            yield Piece()
        if sum_bytes(total % SUM_MODULUS) != expected:
            self._findings.add(
                "the content hashes of the live rows do not add up to the ledger's sum",
                MEMORY_CURE,
            )

    # ---- derived files --------------------------------------------------------------------------

    def files(self) -> Iterator[Piece]:
        """Check the index file, the filter file and the log mark."""
        yield from self._index_file()
        yield from self._filter_file()
        self._log_mark()
        yield Piece()

    def _index_file(self) -> Iterator[Piece]:
        state = self._state
        stored = state.row_store.index_file
        if stored is None:
            return
        found = yield from self._crc32c(state.directory / stored.name)
        newest = state.row_store.index_file
        if newest is None or newest.name != stored.name or newest.crc32c != stored.crc32c:
            return  # a checkpoint replaced it
        if found != (stored.file_bytes, stored.crc32c):
            self._findings.add(f"{stored.name} was damaged; it is written again")
            state.checkpoint.ask_index()
            state.on_change()

    def _crc32c(self, path: Path) -> Generator[Piece, None, tuple[int, int]]:
        """Return the length of a file and its checksum; zeros if it is gone."""
        size = crc32c = 0
        try:
            with FileReader(self._state.disk, path, past_cache=self._read_disk) as reader:
                while piece := reader.read(size, FILE_PIECE_BYTES):
                    crc32c = checksum_after(crc32c, piece)
                    size += len(piece)
                    yield Piece(0, len(piece))
        except FileNotFoundError:
            return 0, 0
        return size, crc32c

    def _filter_file(self) -> Iterator[Piece]:
        state = self._state
        rows = state.checkpoint.columns_rows
        if not rows:
            return
        path = state.directory / f"filters-{rows}.columns"
        contents = bytearray()
        try:
            with FileReader(state.disk, path, past_cache=self._read_disk) as reader:
                while piece := reader.read(len(contents), FILE_PIECE_BYTES):
                    contents += piece
                    yield Piece(0, len(piece))
        except FileNotFoundError:
            if has_columns_file(state.directory):
                return  # it is being replaced
        sound = is_sound(bytes(contents), rows, Origin.of(state.row_store))
        if state.checkpoint.columns_rows == rows and not sound:
            self._findings.add(f"{path.name} was damaged; it is written again")
            state.checkpoint.ask_columns()
            state.on_change()

    def _log_mark(self) -> None:
        state = self._state
        log_end = state.row_store.log_end
        for _ in range(TRIES):  # a mark may be written meanwhile
            least = log_end.transactions
            mark = log_end.stored()
            if mark is not None and mark.counter >= least:
                return
        self._findings.add("log-end was damaged; it is written again")
        state.row_store.mark_again()
