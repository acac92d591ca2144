"""Copying one shard's rows of one collection into a target, as blocks.

The shard may restart in the middle: then another copy is opened. The blocks that are written stay
in use if the shard still has the commits that they are from, because rows never change.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from vectorshard.backup.failures import BackupIncomplete
from vectorshard.backup.layout import folder_of
from vectorshard.backup.manifest import (
    NO_DEAD_ROWS,
    DeadRows,
    ShardBackup,
    StoredBlock,
    session_names,
)
from vectorshard.backup.targets import Target
from vectorshard.shard.copies import (
    CloseCopyRequest,
    Copy,
    OpenCopyRequest,
    ReadCopyRequest,
)
from vectorshard.shard.errors import (
    CopyEnded,
    CorruptData,
    DeadlineExceeded,
    InternalError,
    Overloaded,
    PlacementMismatch,
    ReadFailed,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.row_bitmap import decode_rows
from vectorshard.shard.storage.checksum import checksum
from vectorshard.shard.storage.content_hash import sum_bytes, sum_of
from vectorshard.shard.storage.row_block import RowBlock, joined
from vectorshard.shard.types import Call, Int64Array
from vectorshard.shard.witnesses import session_at

READ_BYTES: Final = 512 * 1024
"""Rows that are read in one call. More: longer pauses of the searches of that shard."""

REST: Final = 0.5
"""The rest after each read, relative to the time that it took: searches go first."""

BLOCK_BYTES: Final = 4 * 1024 * 1024
"""The size of a block. Larger: fewer objects, more memory."""

SMALL_BYTES: Final = BLOCK_BYTES // 2
"""A last block that is smaller is written again with the rows that follow: else each backup would
add a small one for ever."""

DEAD_ROWS_MIN: Final = 10_000
DEAD_SHARE: Final = 0.5
"""A shard is copied as a whole once so much of its blocks is dead."""

INLINE_BYTES_MAX: Final = 64 * 1024
"""A larger set of dead rows is an object, instead of a part of the manifest."""

REST_S: Final = 0.5
REST_MAX_S: Final = 10.0

TRANSIENT: Final = (CopyEnded, DeadlineExceeded, Overloaded, PlacementMismatch, ShardUnavailable)
"""After these errors a call may succeed later, unless they are among the lasting ones."""
_LASTING: Final = (ShardMissing, ReadFailed, CorruptData)


class Report(Protocol):
    """Is told of the progress of a backup, on the event loop."""

    def expected(self, collection: str, shard: int, rows: int) -> None:
        """A shard of a collection probably has so many rows to copy."""

    def opened(self, collection: str, shard: int, rows: int) -> None:
        """A shard of a collection has so many rows to copy; it is told again after a restart."""

    def copied(self, collection: str, shard: int, rows: int, size_bytes: int) -> None:
        """So many more rows are copied."""


@dataclass(frozen=True, slots=True)
class Known:
    """A collection, by name and incarnation."""

    name: str
    incarnation: str


class Skipped(Exception):
    """A shard that a backup must leave out, and why."""

    def __init__(self, error: VectorShardError) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Progress:
    """What is copied of a shard: blocks up to `next_row`, at `sequence` of `session`."""

    directory: str
    life: int
    sequence: int
    session: int
    next_row: int
    blocks: tuple[StoredBlock, ...] = ()
    damaged: tuple[int, ...] = ()

    def is_of(self, copy: Copy) -> bool:
        """Whether the copied rows are those of another copy too: they are in its history."""
        return (
            (self.directory, self.life) == (copy.directory, copy.life)
            and 0 < self.sequence <= copy.sequence
            and 0 < self.session == session_at(copy.sessions, self.sequence)
            and self.next_row <= copy.rows
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The rows of [first_row, next_row) that live, in the pieces that were read."""

    first_row: int
    next_row: int
    blocks: Sequence[RowBlock]
    damaged: tuple[int, ...]


class ShardCopier:
    """Copies what one leaf shard has of a collection. Use `run`, once.

    Parameters
    ----------
    note
        Is given texts for the operator.
    patience_s
        How long the shard may be unavailable without a row read.
    skip_damaged
        Whether to leave damaged rows out, instead of refusing them.
    """

    def __init__(
        self,
        server: Shard,
        target: Target,
        collection: Known,
        shard: int,
        *,
        report: Report,
        note: Callable[[str], None],
        timeout_s: float,
        patience_s: float,
        skip_damaged: bool,
        new_hex: Callable[[], str],
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self._server = server
        self._target = target
        self._collection = collection
        self._shard = shard
        self._report = report
        self._note = note
        self._timeout_s = timeout_s
        self._patience_s = patience_s
        self._skip_damaged = skip_damaged
        self._new_hex = new_hex
        self._clock = clock
        self._sleep = sleep
        self._progressed_at = clock()
        self._progress: _Progress | None = None
        self.copied_rows = 0
        """Rows that were written."""
        self.copied_bytes = 0
        """Bytes that were written."""

    @property
    def where(self) -> str:
        """The shard of the collection, for people."""
        return f"collection {self._collection.name!r}, shard {self._shard}"

    async def run(self, base: ShardBackup | None) -> tuple[Copy, ShardBackup]:
        """Copy the rows that `base` lacks, or all of them. Raises Skipped."""
        self._progress = _progress_of(base) if base is not None else None
        self._progressed_at = self._clock()
        rest_s = REST_S
        while True:
            try:
                return await self._copy_once()
            except (BackupIncomplete, *_LASTING) as error:
                raise Skipped(self._named(error)) from error
            except TRANSIENT as error:
                if self._clock() - self._progressed_at > self._patience_s:
                    raise Skipped(self._named(error)) from error
                self._note(f"{self.where}: copied again from where it was: {error}")
            await self._sleep(rest_s)
            rest_s = min(2 * rest_s, REST_MAX_S)

    def _named(self, error: VectorShardError) -> VectorShardError:
        """Return the error, or one that names the shard if its text does not."""
        if f"shard {self._shard}" in str(error):
            return error
        return BackupIncomplete(f"{self.where}: {error}")

    async def _copy_once(self) -> tuple[Copy, ShardBackup]:
        below = self._progress.next_row if self._progress is not None else 0
        request = OpenCopyRequest(
            collection=self._collection.name, shard=self._shard, dead_below=below
        )
        copy = await self._server.open_copy(request, call=self._call())
        try:
            self._require_sound(copy.damaged)
            begun, dead = self._begin(copy)
            to_copy = copy.live - (begun.next_row - len(dead))
            self._report.opened(self._collection.name, self._shard, to_copy)
            total, hashes = await self._copy_rows(copy)
        finally:
            closing = CloseCopyRequest(
                collection=self._collection.name, shard=self._shard, copy=copy.copy
            )
            with suppress(VectorShardError):
                await self._server.close_copy(closing, call=self._call())
        progress = self._progress
        assert progress is not None
        damaged = np.setdiff1d(np.array(progress.damaged, dtype=np.int64), dead)
        whole = begun.next_row == 0 and not len(damaged)
        new_damaged = int(np.sum(damaged >= begun.next_row))
        if begun.next_row - len(dead) + total + new_damaged != copy.live:
            raise InternalError(f"{self.where}: {total:,} rows came, which are not those that live")
        if whole and sum_bytes(hashes) != copy.content_sum:
            raise InternalError(f"{self.where}: the rows do not add up to the shard's content sum")
        return copy, await self._backup_of(copy, progress, dead, damaged)

    def _begin(self, copy: Copy) -> tuple[_Progress, Int64Array]:
        """Return what need not be copied, and which rows of it are dead."""
        before = self._progress
        none = np.zeros(0, dtype=np.int64)
        fresh = _Progress(
            directory=copy.directory,
            life=copy.life,
            sequence=copy.sequence,
            session=session_at(copy.sessions, copy.sequence),
            next_row=0,
        )
        if before is None or not before.is_of(copy):
            if before is not None and before.blocks:
                self._note(f"{self.where}: copied as a whole: its disk has another history")
            begun, dead = fresh, none
        else:
            dead = decode_rows(copy.dead)
            begun = replace(
                before, sequence=copy.sequence, session=fresh.session, blocks=before.blocks
            )
            stored = sum(block.rows for block in begun.blocks)
            gone = stored - (begun.next_row - len(dead))
            if gone > max(DEAD_ROWS_MIN, DEAD_SHARE * stored):
                self._note(f"{self.where}: copied as a whole: most of its stored rows are dead")
                begun, dead = fresh, none
        self._progress = begun
        return begun, dead

    async def _copy_rows(self, copy: Copy) -> tuple[int, int]:
        """Read and store the rows from where the progress is; return their number and sum."""
        total, hashes = 0, 0
        putting: asyncio.Task[None] | None = None
        first = self._progress.next_row if self._progress is not None else 0
        try:
            while first < copy.rows:
                part = await self._read_block(copy, first)
                for rows in part.blocks:
                    total += len(rows)
                    hashes += sum_of(rows.content_hashes)
                if putting is not None:
                    await putting
                putting = asyncio.ensure_future(self._store(part))
                first = part.next_row
            if putting is not None:
                await putting
        except BaseException:
            if putting is not None:  # it cannot be stopped, and is garbage or progress
                await asyncio.gather(putting, return_exceptions=True)
            raise
        return total, hashes

    async def _read_block(self, copy: Copy, first: int) -> _Part:
        """Read the rows of one block."""
        blocks: list[RowBlock] = []
        damaged: tuple[int, ...] = ()
        next_row, room = first, BLOCK_BYTES
        while room > 0 and next_row < copy.rows:
            request = ReadCopyRequest(
                collection=self._collection.name,
                shard=self._shard,
                copy=copy.copy,
                first_row=next_row,
                bytes_max=min(READ_BYTES, room),
            )
            begun = time.perf_counter()
            found = await self._server.read_copy(request, call=self._call())
            await self._sleep(REST * (time.perf_counter() - begun))
            self._require_sound(found.damaged)
            damaged += found.damaged
            if found.block:
                blocks.append(RowBlock.decode(found.block))
                self._report.copied(
                    self._collection.name, self._shard, len(blocks[-1]), len(found.block)
                )
            next_row = found.next_row
            room -= len(found.block)
        return _Part(first_row=first, next_row=next_row, blocks=blocks, damaged=damaged)

    async def _store(self, part: _Part) -> None:
        progress = self._progress
        assert progress is not None
        blocks = progress.blocks
        if part.blocks:
            rows = joined(part.blocks)
            stored = rows.encode()
            block = StoredBlock(
                name=f"{self._folder(progress)}{part.first_row}-{part.next_row}-"
                f"{self._new_hex()}.block",
                first_row=part.first_row,
                next_row=part.next_row,
                rows=len(rows),
                size_bytes=len(stored),
                crc32c=checksum(stored),
            )
            await asyncio.to_thread(self._target.put, block.name, stored)
            blocks = (*blocks, block)
            self.copied_rows += len(rows)
            self.copied_bytes += len(stored)
        self._progress = replace(
            progress,
            next_row=part.next_row,
            blocks=blocks,
            damaged=(*progress.damaged, *part.damaged),
        )
        self._progressed_at = self._clock()

    def _folder(self, progress: _Progress) -> str:
        incarnation = self._collection.incarnation
        return folder_of(incarnation, self._shard, progress.directory, progress.life)

    async def _backup_of(
        self, copy: Copy, progress: _Progress, dead: Int64Array, damaged: Int64Array
    ) -> ShardBackup:
        bitmap = copy.dead if len(dead) else b""
        stored = DeadRows.inline(bitmap) if bitmap else NO_DEAD_ROWS
        if len(bitmap) > INLINE_BYTES_MAX:
            name = f"{self._folder(progress)}{copy.sequence}-{self._new_hex()}.dead"
            await asyncio.to_thread(self._target.put, name, bitmap)
            stored = replace(stored, bitmap="", name=name)
        return ShardBackup(
            shard=self._shard,
            directory=copy.directory,
            life=copy.life,
            first_sequences=copy.sessions.first_sequences,
            sessions=session_names(copy.sessions),
            sequence=copy.sequence,
            rows=copy.rows,
            live=copy.live,
            ledger=copy.ledger,
            content_sum=copy.content_sum.hex(),
            blocks=progress.blocks,
            dead=stored,
            damaged=tuple(damaged.tolist()),
        )

    def _require_sound(self, damaged: tuple[int, ...]) -> None:
        if damaged and not self._skip_damaged:
            shown = ", ".join(map(str, damaged[:10]))
            more = f" and {len(damaged) - 10:,} more" if len(damaged) > 10 else ""
            raise BackupIncomplete(
                f"{self.where}: damaged rows ({shown}{more}). `vectorshard describe` names their "
                "ids: upsert or delete them, or leave them out with --partial"
            )

    def _call(self) -> Call:
        return Call(
            deadline=time.monotonic() + self._timeout_s, incarnation=self._collection.incarnation
        )


def _progress_of(base: ShardBackup) -> _Progress:
    """Return what an earlier backup holds, but for a small last block."""
    blocks = base.blocks
    next_row = base.rows
    if blocks and blocks[-1].size_bytes < SMALL_BYTES:
        next_row = blocks[-1].first_row
        blocks = blocks[:-1]
    return _Progress(
        directory=base.directory,
        life=base.life,
        sequence=base.sequence,
        session=base.session,
        next_row=next_row,
        blocks=blocks,
    )
