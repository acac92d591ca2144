"""The scrub: verifies all that one collection stores and derives, piece by piece.

A pass checks, in this order: the records of the row store, against their checksums and against
memory; the rows, each by its content hash, with their norms, their entries in the id index, their
filter columns and their codes in the index; the id index for entries that should not be there; the
sum of the content hashes; the derived files. docs/operations.md says what a finding means.

Derived parts are rebuilt, rows are noted as damaged, and damaged records are a problem. A pass
beside writes, drops, compactions and trainings must not raise a false alarm: each piece takes a new
snapshot, and looks again under a lock at what seems wrong. No lock is held between two pieces.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import structlog

from vectorshard.shard.descriptions import Scrub as Description
from vectorshard.shard.engine.maintenance import Maintenance
from vectorshard.shard.engine.scrub_files import FileScrub
from vectorshard.shard.engine.scrub_findings import RECORDS_CURE, Findings, Piece
from vectorshard.shard.engine.scrub_index import IN_FULL_EVERY, IndexScrub
from vectorshard.shard.engine.scrub_rows import RowScrub
from vectorshard.shard.engine.state import CollectionState
from vectorshard.shard.errors import CorruptData, ReadFailed
from vectorshard.shard.storage.disk import DISK_ERRORS, is_disk_full, is_exhausted

SHARE_OF_RECORDS: Final = 0.1
SHARE_OF_ROWS: Final = 0.8
"""Of the progress of a pass; the rest is for the id index, the sum and the files."""

_log = structlog.get_logger(__name__)


class Scrub:
    """The scrub of one collection on one shard. One thread at a time steps; any describes.

    Parameters
    ----------
    clock
        Seconds since 1970, and since any moment: passes are due by it.
    cpu
        Seconds of CPU time that the calling thread has used.
    """

    def __init__(
        self,
        state: CollectionState,
        maintenance: Maintenance,
        clock: Callable[[], float] = time.time,
        cpu: Callable[[], float] = time.thread_time,
    ) -> None:
        self._state = state
        self._config = state.engine.scrub
        self._clock = clock
        self._cpu = cpu
        self._findings = Findings(state.noticed, state.entry.config.name)
        self._index = IndexScrub(state, maintenance, self._findings)
        self._stepping = threading.Lock()
        self._pass: Iterator[Piece] | None = None
        self._due_at = clock() + self._config.first_after_s
        self._disk_due_at = self._due_at
        self._passes = 0
        self._rows = 0
        self._progress = 0.0
        self._last: tuple[float, bool] = (0.0, False)

    @property
    def description(self) -> Description:
        """What the scrub has done since the shard started."""
        last_pass_at, read_disk = self._last
        return Description(
            passes=self._passes,
            progress=round(self._progress, 4),
            last_pass_at=last_pass_at,
            last_pass_read_disk=read_disk,
            rows=self._rows,
            findings=self._findings.texts,
            findings_total=self._findings.total,
        )

    @property
    def due_in_s(self) -> float:
        """Seconds until the next pass is due; 0 during one, infinite if passes are turned off."""
        if self._pass is not None:
            return 0.0
        if self._config.interval_s <= 0:
            return float("inf")
        return max(0.0, self._due_at - self._clock())

    def step(self) -> float | None:
        """Verify the next piece, if a pass is due or has begun.

        Returns the seconds to rest until the next step, None at the end of a pass or before one.
        """
        with self._stepping:
            now = self._clock()
            if self._pass is None:
                if self.due_in_s > 0:
                    return None
                read_disk = now >= self._disk_due_at
                self._due_at = now + self._config.interval_s
                if read_disk:
                    self._disk_due_at = now + self._config.disk_interval_s
                self._pass = self._new_pass(read_disk)
            began = self._cpu()
            try:
                piece = self._next_piece(self._pass)
            except BaseException:
                self._pass = None
                raise
            if piece is None:
                self._pass = None
                return None
            return self._rest_s(piece, self._cpu() - began)

    def run_pass(self, read_disk: bool = False) -> Description:
        """Verify everything without a rest, all codes and filter columns included."""
        with self._stepping:
            running = self._new_pass(read_disk, in_all_windows=True)
            while self._next_piece(running) is not None:
                pass
        return self.description

    def _rest_s(self, piece: Piece, cpu_s: float) -> float:
        config = self._config
        return max(
            cpu_s * (1.0 / config.core_share - 1.0),
            piece.rows / config.rows_per_s,
            piece.bytes / config.bytes_per_s,
        )

    def _next_piece(self, running: Iterator[Piece]) -> Piece | None:
        """Verify a piece; None at the end, which comes at once if the collection closes."""
        with self._state.files_lock.read():
            if self._state.closed:
                return None
            piece = next(running, None)
        if piece is not None:
            self._rows += piece.rows
        return piece

    # ---- a pass ---------------------------------------------------------------------------------

    def _new_pass(self, read_disk: bool, *, in_all_windows: bool = False) -> Iterator[Piece]:
        state = self._state
        files = FileScrub(state, self._findings, read_disk=read_disk)
        rows = RowScrub(state, self._findings, self._index, read_disk=read_disk)
        began, before = self._clock(), self._rows
        self._progress = 0.0
        yield from self._guarded(files.records(), "records")
        self._progress = SHARE_OF_RECORDS
        yield from self._check_rows(rows, in_all_windows=in_all_windows)
        self._progress = SHARE_OF_RECORDS + SHARE_OF_ROWS
        yield from self._guarded(rows.check_keywords(), "filter columns")
        yield from self._guarded(rows.check_id_index(), "id index")
        yield from self._guarded(files.content_sum(), "sum")
        yield from self._guarded(files.files(), "files")
        self._index.check_trained()
        self._passes += 1
        self._progress = 0.0
        now = self._clock()
        self._last = now, rows.did_read_disk
        _log.info(
            "scrub pass ended",
            collection=state.entry.config.name,
            rows=self._rows - before,
            seconds=round(now - began, 3),
            read_disk=rows.did_read_disk,
            findings=self._findings.total,
        )

    def _check_rows(self, rows: RowScrub, *, in_all_windows: bool) -> Iterator[Piece]:
        window, first = self._passes, 0
        while first < (rows_total := self._state.snapshot.rows):
            last = min(first + self._index.window_rows(), rows_total)
            in_full = in_all_windows or window % IN_FULL_EVERY == 0
            held = yield from self._index.held(first, last, with_codes=in_full)
            while first < last:
                after = min(rows.next_row(first, with_columns=in_full), last)
                here = None if held is None else held.of(first, after)
                pieces = rows.pieces(first, after, here, with_columns=in_full)
                yield from self._guarded(pieces, "rows")
                first = after
                self._progress = SHARE_OF_RECORDS + SHARE_OF_ROWS * first / rows_total
            window += 1

    def _guarded(self, pieces: Iterator[Piece], what: str) -> Iterator[Piece]:
        """Verify a part of a pass; an error ends this part alone, and is a finding."""
        try:
            yield from pieces
        except CorruptData as error:
            self._findings.add(f"{what}: {error}", RECORDS_CURE)
        except (ReadFailed, *DISK_ERRORS, MemoryError) as error:
            if is_exhausted(error) or is_disk_full(error):  # a limit of the machine: next time
                _log.warning("scrub skipped", what=what, error=str(error))
            else:
                self._findings.read_failed(error)
