"""Making a backup: copy the rows of all shards through the servers, then write the manifest.

Each shard is copied at a separate moment. What the newest complete backups hold is not copied
again: the rows below some number are the same for ever, and the rows that died since are listed.
Until the manifest is there, nothing refers to what was written; a prune removes it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, TypeVar

from vectorshard.backup.copying import (
    REST_S,
    TRANSIENT,
    Known,
    Report,
    ShardCopier,
    Skipped,
)
from vectorshard.backup.failures import BackupIncomplete, ObjectExists, TargetError
from vectorshard.backup.fleets import fleets_of
from vectorshard.backup.layout import (
    backup_name,
    manifest_object,
    manifests,
    newest_number,
    number_object,
)
from vectorshard.backup.leases import Kind, Lease
from vectorshard.backup.manifest import (
    CollectionBackup,
    LeftOut,
    Manifest,
    Scope,
    ShardBackup,
)
from vectorshard.backup.moments import moment_of, text_of
from vectorshard.backup.targets import Target
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.copies import Copy
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    InvalidParameter,
    ShardMissing,
    VectorShardError,
)
from vectorshard.shard.membership import CollectionState, ExchangeRequest
from vectorshard.shard.protocol import Shard
from vectorshard.shard.storage.content_hash import sum_bytes, sum_from_bytes
from vectorshard.shard.texts import counted
from vectorshard.shard.types import Call, Role, Token
from vectorshard.shard.wire.opaque import encode_token

PRUNE_POLL_S: Final = 2.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to back up. `collections`: all of them if it is empty.

    `partial` leaves out damaged rows and missing shards instead of refusing; `full` copies
    everything again; `parallel` shards are copied at once; `timeout_s` is that of a call, and
    `patience_s` how long a shard may be unavailable.
    """

    collections: tuple[str, ...] = ()
    partial: bool = False
    full: bool = False
    parallel: int = 1
    timeout_s: float = 30.0
    patience_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A backup that was made: its name, its manifest, and what the operator should read."""

    name: str
    manifest: Manifest
    copied_rows: int
    copied_bytes: int
    notes: tuple[str, ...]


@dataclass(slots=True)
class Surroundings:
    """Clocks, chance and rests of a backup, which tests replace."""

    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))
    clock: Callable[[], float] = time.monotonic
    new_hex: Callable[[], str] = field(default=lambda: secrets.token_hex(4))
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


class Backup:
    """One backup, from `server` into `target`. Use `run`, once.

    Parameters
    ----------
    server
        A router over all shards, or the only shard.
    version
        Of this program, for the manifest.
    report
        Is told of the progress.
    """

    def __init__(
        self,
        server: Shard,
        target: Target,
        wanted: Wanted,
        *,
        version: str,
        report: Report,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._server = server
        self._target = target
        self._wanted = wanted
        self._version = version
        self._report = report
        self._around = surroundings or Surroundings()
        self._notes: list[str] = []
        self._left_out: list[LeftOut] = []
        self._copied = (0, 0)
        self._newest: Manifest | None = None

    async def run(self) -> Made:
        """Make the backup.

        Raises
        ------
        BackupIncomplete, ShardMissing, CollectionDamaged, ReadFailed, ShardUnavailable
            If rows are damaged or a shard is missing, unless a partial backup is wanted.
        CollectionNotFound
            If a collection that is named does not exist.
        TargetError
            If the target fails.
        Unsupported
            If the server is of an earlier release.
        """
        around = self._around
        begun = around.now()
        lease = await asyncio.to_thread(
            Lease, self._target, Kind.BACKUP, around.new_hex(), around.clock
        )
        renewing = asyncio.ensure_future(self._keep_renewing(lease))
        try:
            made = await self._make(begun, lease)
        finally:
            renewing.cancel()
            with suppress(asyncio.CancelledError):
                await renewing
            with suppress(TargetError):
                await asyncio.to_thread(lease.end)
        return made

    async def _keep_renewing(self, lease: Lease) -> None:
        while True:
            await self._around.sleep(5.0)
            with suppress(TargetError):  # what matters is whether it is in time: `require`
                await asyncio.to_thread(lease.renew_if_due)

    async def _make(self, begun: datetime, lease: Lease) -> Made:
        topology = await self._server.topology(call=self._call())
        if not topology.shards_total:
            raise BackupIncomplete("the server does not know its shards yet: try again")
        if topology.role is Role.SHARD and topology.shards_total > 1:
            raise InvalidParameter(
                f"the server is one of {topology.shards_total} shards: name a router over them",
                field="target",
            )
        entries = await self._entries(topology.shards_total)
        await asyncio.to_thread(self._compare_with_newest, begun)
        bases = {} if self._wanted.full else await asyncio.to_thread(self._bases, entries)
        await self._tell_expected(entries, bases)
        previous = max((name for name, _ in bases.values()), default="")
        collections: list[CollectionBackup] = []
        for entry in entries:
            name = entry.name
            try:
                made = await self._collection(entry, topology.shards_total, bases)
            except (CollectionNotFound, IncarnationMismatch) as error:
                if self._wanted.collections:
                    raise
                self._notes.append(f"{name} was dropped meanwhile, and is not in it: {error}")
                continue
            if made is not None:
                collections.append(made)
        manifest = Manifest(
            number=0,  # it has none yet
            scope=Scope.CHOSEN if self._wanted.collections else Scope.ALL,
            cluster=topology.cluster,
            shards_total=topology.shards_total,
            slots_total=SLOTS_TOTAL,
            version=self._version,
            begun=text_of(begun),
            ended=text_of(self._around.now()),
            previous=previous,
            collections=tuple(collections),
            left_out=tuple(self._left_out),
        )
        self._note_other_fleet(manifest)
        await self._check_objects(lease, manifest)
        manifest = replace(manifest, number=await asyncio.to_thread(self._take_number))
        backup = backup_name(manifest.number, begun, self._around.new_hex())
        lease.require()
        await asyncio.to_thread(
            self._target.put, manifest_object(backup), manifest.encode(), if_absent=True
        )
        rows, size_bytes = self._copied
        return Made(
            name=backup,
            manifest=manifest,
            copied_rows=rows,
            copied_bytes=size_bytes,
            notes=tuple(self._notes),
        )

    def _call(self) -> Call:
        return Call(deadline=time.monotonic() + self._wanted.timeout_s)

    async def _entries(self, shards_total: int) -> Sequence[Known]:
        """Return the collections to back up, by name."""
        found = sorted(await self._known(shards_total), key=lambda each: each.name)
        names = {each.name for each in found}
        for name in self._wanted.collections:
            if name not in names:
                raise CollectionNotFound(f"collection {name!r} does not exist")
        wanted = self._wanted.collections or names
        return [each for each in found if each.name in wanted]

    async def _known(self, shards_total: int) -> set[Known]:
        """Return all collections; for a partial backup, those of the shards that answer."""
        until = self._around.clock() + self._wanted.patience_s
        while True:
            try:
                entries = await self._server.list_collections(call=self._call())
                found = {Known(each.config.name, each.incarnation) for each in entries}
                if not self._wanted.collections:
                    await self._look_for_unlisted(found)
                return found
            except TRANSIENT as error:
                lasting = isinstance(error, ShardMissing)
                if lasting or self._around.clock() >= until:
                    return await self._reported(shards_total, error)
            await self._around.sleep(REST_S)

    async def _reported(self, shards_total: int, refusal: VectorShardError) -> set[Known]:
        """Return the collections in the reports of the shards that answer."""
        reports = await self._server.exchange(ExchangeRequest(), call=self._call())
        silent = sorted({*range(shards_total)} - {report.shard for report in reports})
        if not self._wanted.partial:
            named = f"shard {', '.join(map(str, silent))} does not answer: " if silent else ""
            raise BackupIncomplete(f"{named}{refusal}")
        return {
            Known(each.name, each.incarnation)
            for report in reports
            for each in report.collections
            if each.state is CollectionState.LIVE
        }

    async def _look_for_unlisted(self, listed: set[Known]) -> None:
        """Refuse, or leave out, what no shard can list: its files are gone, or unreadable."""
        reports = await self._server.exchange(ExchangeRequest(), call=self._call())
        every = [(report.shard, each) for report in reports for each in report.collections]
        known = {each.incarnation for each in listed}
        known |= {each.incarnation for _, each in every if each.state is CollectionState.DROPPED}
        for shard, each in every:
            if each.state is CollectionState.LIVE or each.incarnation in known:
                continue
            if not self._wanted.partial:
                raise BackupIncomplete(f"collection {each.name!r}, shard {shard}: {each.reason}")
            self._leave_out(Known(each.name, each.incarnation), shard, each.reason)

    def _compare_with_newest(self, begun: datetime) -> None:
        """Note what an operator should know of the newest backup in the target; blocking."""
        newest: Manifest | None = None
        for name, each in manifests(self._target):
            if isinstance(each, Manifest):
                newest = each
                break
            self._notes.append(f"backup {name} is unreadable, and is not built on: {each}")
        self._newest = newest
        if newest is None:
            return
        if begun < moment_of(newest.ended):
            self._notes.append(
                f"the clock here says {text_of(begun)}, which is before the end of the backup "
                f"before, {newest.ended}: one of them is wrong. Backups are ordered by number"
            )

    def _note_other_fleet(self, manifest: Manifest) -> None:
        newest = self._newest
        if newest is None or len(fleets_of([("", newest), ("", manifest)])) == 1:
            return
        self._notes.append(
            f"the newest backup in {self._target.where} is of another fleet, of cluster "
            f"{newest.cluster}: better give each its own target. This is of {manifest.cluster}"
        )

    def _take_number(self) -> int:
        """Return a number above those of all backups, which no other backup gets; blocking."""
        number = newest_number(self._target)
        while True:
            number += 1
            with suppress(ObjectExists):
                self._target.put(number_object(number), b"", if_absent=True)
                return number

    def _bases(self, entries: Sequence[Known]) -> dict[str, tuple[str, CollectionBackup]]:
        """Return the newest complete backup of each collection, by incarnation; blocking."""
        missing = {entry.incarnation for entry in entries}
        found: dict[str, tuple[str, CollectionBackup]] = {}
        for name, manifest in manifests(self._target):
            if not missing:
                break
            if not isinstance(manifest, Manifest) or not manifest.complete:
                continue
            for each in manifest.collections:
                if each.incarnation in missing:
                    missing.discard(each.incarnation)
                    sound = tuple(shard for shard in each.shards if self._is_sound(name, shard))
                    found[each.incarnation] = name, replace(each, shards=sound)
        return found

    def _is_sound(self, name: str, shard: ShardBackup) -> bool:
        """Whether the objects of an earlier backup are there, as it states; else note it."""
        wrong = _wrong_objects(self._target, shard.sizes())
        if wrong:
            self._notes.append(
                f"backup {name} is DAMAGED: {wrong[0]} is missing or has another size. Shard "
                f"{shard.shard} is copied as a whole; `vectorshard verify` the earlier backups"
            )
        return not wrong

    async def _tell_expected(
        self,
        entries: Sequence[Known],
        bases: dict[str, tuple[str, CollectionBackup]],
    ) -> None:
        """Tell about how many rows there are to copy, as far as the server knows."""
        for entry in entries:
            base = bases.get(entry.incarnation)
            held = {each.shard: each.live for each in base[1].shards} if base else {}
            name = entry.name
            with suppress(VectorShardError):
                description = await self._server.describe(name, call=self._call())
                for shard in description.shards:
                    rows = shard.ledger.live - held.get(shard.shard, 0)
                    self._report.expected(name, shard.shard, max(0, rows))

    # ---- a collection ----------------------------------------------------------------------------

    async def _collection(
        self,
        entry: Known,
        shards_total: int,
        bases: dict[str, tuple[str, CollectionBackup]],
    ) -> CollectionBackup | None:
        base = bases.get(entry.incarnation)
        by_shard = {each.shard: each for each in base[1].shards} if base else {}
        at_once = asyncio.Semaphore(max(1, self._wanted.parallel))

        async def copied(shard: int) -> tuple[Copy, ShardBackup] | None:
            async with at_once:
                return await self._shard(entry, shard, by_shard.get(shard))

        tasks = [asyncio.ensure_future(copied(shard)) for shard in range(shards_total)]
        try:
            found = [each for each in await asyncio.gather(*tasks) if each is not None]
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        return _joined([copy for copy, _ in found], [shard for _, shard in found])

    async def _shard(
        self, entry: Known, shard: int, base: ShardBackup | None
    ) -> tuple[Copy, ShardBackup] | None:
        copier = ShardCopier(
            self._server,
            self._target,
            entry,
            shard,
            report=self._report,
            note=self._notes.append,
            timeout_s=self._wanted.timeout_s,
            patience_s=self._wanted.patience_s,
            skip_damaged=self._wanted.partial,
            new_hex=self._around.new_hex,
            clock=self._around.clock,
            sleep=self._around.sleep,
        )
        try:
            copy, made = await copier.run(base)
        except Skipped as skipped:
            error = skipped.error
            if not self._wanted.partial:
                raise error from None
            self._leave_out(entry, shard, str(error))
            return None
        finally:
            rows, size_bytes = self._copied
            self._copied = rows + copier.copied_rows, size_bytes + copier.copied_bytes
        if made.damaged:
            self._leave_out(entry, shard, f"{len(made.damaged):,} damaged rows")
        return copy, made

    def _leave_out(self, entry: Known, shard: int, reason: str) -> None:
        self._left_out.append(LeftOut(collection=entry.name, shard=shard, reason=reason))

    # ---- the end ---------------------------------------------------------------------------------

    async def _check_objects(self, lease: Lease, manifest: Manifest) -> None:
        """Raise TargetError if a prune has deleted what the manifest needs; see `leases`."""
        while True:
            others = await asyncio.to_thread(lease.others)
            if not any(each.kind is Kind.PRUNE and not each.is_over for each in others):
                break
            await self._around.sleep(PRUNE_POLL_S)
        if wrong := await asyncio.to_thread(_wrong_objects, self._target, manifest.sizes()):
            raise TargetError(
                f"{self._target.where}: {counted(len(wrong), 'object')} of earlier backups "
                f"deleted or changed meanwhile, such as {wrong[0]}: run it again"
            )


def _wrong_objects(target: Target, sizes: Mapping[str, int]) -> list[str]:
    """Return which objects a target lacks, or has with other sizes; blocking."""
    folders = {name.rpartition("/")[0] + "/" for name in sizes}
    there = {each.name: each.size_bytes for folder in folders for each in target.list(folder)}
    return sorted(name for name, size_bytes in sizes.items() if there.get(name) != size_bytes)


def _joined(copies: Sequence[Copy], shards: Sequence[ShardBackup]) -> CollectionBackup | None:
    """Return the backup of a collection; None if no shard of it could be copied."""
    if not copies:
        return None
    first = copies[0]
    if len({copy.incarnation for copy in copies}) > 1:
        raise InvalidParameter("its shards have different collections", field="collection")
    newest = max(copies, key=lambda copy: copy.stage)
    token = Token(
        incarnation=first.incarnation,
        sequences={each.shard: each.sequence for each in shards if each.sequence},
        sessions={each.shard: each.session for each in shards if each.session},
    )
    return CollectionBackup(
        config=first.config,
        incarnation=first.incarnation,
        stage=newest.stage,
        members=newest.members,
        token=b64encode(encode_token(token)).decode(),
        content_sum=sum_bytes(sum(sum_from_bytes(each.sum) for each in shards)).hex(),
        live=sum(each.live for each in shards),
        shards=tuple(shards),
    )
