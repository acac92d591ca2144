"""A shard's part in noticing lost disks: its report, what it remembers of others, accepted losses.

The rules that judge reports are a router's (router.fan_out.verdicts). Nothing here is on the path
of a write or a search.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.collection_set import CollectionSet, Served, in_thread
from vectorshard.shard.errors import IncarnationMismatch, InvalidParameter
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    AcceptLossResult,
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    Member,
    Membership,
    Problem,
    ProblemKind,
    ShardReport,
)
from vectorshard.shard.storage.data_directory import name_of_kept
from vectorshard.shard.storage.disk import DISK_ERRORS, Disk
from vectorshard.shard.storage.register import Register, Registered
from vectorshard.shard.storage.stored_entry import stored_entry
from vectorshard.shard.storage.witness import read_witness, write_witness
from vectorshard.shard.types import CollectionEntry
from vectorshard.shard.witnesses import remembered

STATEMENTS_MAX: Final = 256
"""Collections of all other shards, up to which their commits are remembered: 60 KB a second."""
WITNESSES_MIN: Final = 2
"""Shards that remember the commits of one shard beyond that: those before it, by number."""

_log = structlog.get_logger(__name__)


class ShardMembership:
    """What a shard reports and remembers. Belongs to the event loop.

    Parameters
    ----------
    thread
        One thread, which merges and writes what is remembered.
    """

    def __init__(self, disk: Disk, collections: CollectionSet, thread: ThreadPoolExecutor) -> None:
        self._disk = disk
        self._collections = collections
        self._directory = directory = collections.directory
        self._thread = thread
        self._exchanging = asyncio.Lock()
        self._remembered = read_witness(directory.path)
        self._unwritten = False
        self._brought_back: dict[str, str] = {}
        self._reported: dict[str, CollectionReport] = {}
        identity = directory.identity
        self._report = ShardReport(
            cluster=identity.cluster,
            shard=identity.shard,
            directory=directory.directory,
            life=directory.life,
            opens=directory.opens,
            session=directory.session,
        )

    # ---- the report -----------------------------------------------------------------------------

    def report(self) -> ShardReport:
        """Return what this shard has and remembers. Reads nothing from the disk."""
        collections = self._collections
        dropped = [
            CollectionReport(
                name=entry.name, incarnation=entry.incarnation, state=CollectionState.DROPPED
            )
            for entry in self._directory.register.entries
            if entry.state is Registered.DROPPED
        ]
        gone = {each.incarnation for each in dropped}
        is_forgotten = self._directory.register.is_forgotten
        reported = [self._report_of(served) for served in collections.served.values()]
        self._reported = {each.incarnation: each for each in reported}
        aside = [
            each.report
            for each in collections.set_aside
            if each.incarnation not in gone and not is_forgotten(each.incarnation)
        ]
        report = replace(
            self._report,
            life=self._directory.life,
            collections=(*reported, *aside, *dropped),
            statements=self._remembered.statements,
            seen=self._remembered.seen,
        )
        if report != self._report:
            self._report = replace(report, version=report.version + 1)
        return self._report

    def _report_of(self, served: Served) -> CollectionReport:
        """Return what a collection has, and the same object while that does not change."""
        collection, membership = served.collection, served.membership
        snapshot = collection.snapshot
        former = self._reported.get(collection.entry.incarnation)
        accepted = snapshot.rows + snapshot.lost
        if former is not None and (
            (former.sequence, former.accepted) == (snapshot.sequence, accepted)
            and (former.stage, former.members) == (membership.stage, membership.members)
        ):
            return former
        return CollectionReport(
            name=collection.entry.config.name,
            incarnation=collection.entry.incarnation,
            state=CollectionState.LIVE,
            stage=membership.stage,
            members=membership.members,
            sessions=collection.state.row_store.sessions,
            sequence=snapshot.sequence,
            accepted=accepted,
            live=snapshot.live,
            sum=snapshot.sum,
        )

    def kept_files(self, collection: str = "") -> list[Problem]:
        """Name the files that a repair or an accepted loss replaced, of one collection or of all.

        Reads a directory.
        """
        shard = self._directory.identity.shard
        return [
            Problem(
                shard=shard,
                kind=ProblemKind.DAMAGED,
                collection=name_of_kept(path.name) or "",
                text=(
                    f"{path} keeps files that a repair or an accepted loss replaced: remove them "
                    "once nothing in them is of use"
                ),
            )
            for path in self._directory.kept_directories(collection)
        ]

    # ---- the exchange ---------------------------------------------------------------------------

    async def exchange(self, request: ExchangeRequest) -> ShardReport:
        """Take in what other shards report; return this shard's report.

        What is remembered is durable then, if the disk allows: else it is written later.
        """
        register, own = self._directory.register, self._report
        if any(register.state_of(each) is Registered.DROPPED for each in request.forget):
            change = partial(register.forget, request.forget)
            await self._collections.to_its_end(self._change_tombstones(change))
        others = [
            each
            for each in request.others
            if each.cluster == own.cluster and each.shard != own.shard
        ]
        # Those of former exchanges too: a router does not send again what a disk failed to keep.
        back = self._brought_back | _brought_back(others, register)
        if back:
            await self._collections.to_its_end(
                self._change_tombstones(partial(register.recall, back))
            )
            self._brought_back = {each: back[each] for each in back if register.is_forgotten(each)}
        if others or self._unwritten:
            async with self._exchanging:
                await in_thread(self._thread, self._take_in, others)
        return self.report()

    async def _change_tombstones(self, change: Callable[[], None]) -> None:
        async with self._collections.changing:
            try:
                await self._collections.change(change)
            except Exception as error:
                _log.warning("tombstones not written", reason=str(error))

    def _take_in(self, others: Sequence[ShardReport]) -> None:
        register, own = self._directory.register, self._report.shard
        merged = remembered(self._remembered, others, register.live, own)
        total = self._directory.identity.shards_total
        is_small = (total - 1) * len(register.live) <= STATEMENTS_MAX
        watched = {
            (own + step) % total for step in range(1, total if is_small else WITNESSES_MIN + 1)
        }
        statements = tuple(each for each in merged.statements if each.shard in watched)
        merged = replace(merged, statements=statements)
        if merged == self._remembered and not self._unwritten:
            return
        self._remembered, self._unwritten = merged, True
        try:
            write_witness(self._disk, self._directory.path, merged)
            self._unwritten = False
        except DISK_ERRORS as error:
            _log.warning("witness file not written", reason=str(error))

    # ---- accepted losses ------------------------------------------------------------------------

    async def accept_loss(self, request: AcceptLossRequest) -> AcceptLossResult:
        """Show what is lost, or record it. Each step is durable, and may be repeated.

        The later life of the directory is the last step: until then others find the loss again.
        """
        directory = self._directory
        identity = directory.identity
        if request.shard != identity.shard:
            raise InvalidParameter(
                f"this is shard {identity.shard}, not {request.shard}", field="shard"
            )
        losses, life = request.losses, request.life
        if not losses and not life:
            losses, life = self._own_losses(), directory.life + 1
            if not losses:
                return AcceptLossResult(losses=(), life=directory.life)
            if request.accept and identity.shards_total > 1:
                raise InvalidParameter(
                    "this shard is one of several: call a router, which knows what the others "
                    "remember",
                    field="shard",
                )
        if not request.accept:
            return AcceptLossResult(losses=losses, life=directory.life)
        async with self._collections.changing:
            for loss in losses:
                await self._accept(loss, life)
            await self._collections.change(directory.raise_life, life)
        _log.warning(
            "loss accepted",
            shard=identity.shard,
            life=directory.life,
            collections=[loss.collection for loss in losses],
        )
        return AcceptLossResult(losses=losses, life=directory.life)

    def _own_losses(self) -> tuple[AcceptedLoss, ...]:
        """Return what this shard misses as far as it can tell alone, without a witness."""
        found = []
        for aside in self._collections.set_aside:
            path = self._directory.collection_directory(aside.name)
            entry = aside.entry or stored_entry(path)
            if entry is not None and entry.config.name == aside.name and aside.incarnation:
                found.append(
                    AcceptedLoss(
                        collection=aside.name,
                        incarnation=aside.incarnation,
                        reason=aside.reason,
                        config=entry.config,
                    )
                )
        return tuple(found)

    async def _accept(self, loss: AcceptedLoss, life: int) -> None:
        collections, register = self._collections, self._directory.register
        if register.was_dropped(loss.incarnation):
            return
        registered = register.live_incarnation(loss.collection)
        if registered not in ("", loss.incarnation):
            raise IncarnationMismatch(
                f"collection {loss.collection!r} was dropped and created again"
            )
        own = replace(collections.own_member, life=life)
        served = collections.served.get(loss.collection)
        if served is not None:
            change = partial(_keep_older, served, loss, own)
            await collections.change(change)
            return
        membership = Membership(
            directory=own.directory, stage=loss.stage, members=_with(loss.members, own)
        )
        replace_files = partial(self._replace_files, loss, membership)
        collection = await collections.change(replace_files)
        collections.set_aside.forget(loss.collection)
        collections.serve(collection)

    def _replace_files(self, loss: AcceptedLoss, membership: Membership) -> Collection:
        """Put an empty collection in the place of what is there, which is kept. Blocking."""
        self._collections.set_damaged_apart(loss.collection)
        entry = CollectionEntry(config=loss.config, incarnation=loss.incarnation)
        collection = self._collections.create_files(entry, membership)
        try:
            collection.writes.record_loss(_rows_lost(collection, loss))
        except BaseException:
            collection.close()
            raise
        return collection


def _brought_back(others: Sequence[ShardReport], register: Register) -> dict[str, str]:
    """Return dropped collections, with their names, that a shard has again: its disk is old."""
    return {
        each.incarnation: each.name
        for report in others
        for each in report.collections
        if each.state is not CollectionState.DROPPED and register.is_forgotten(each.incarnation)
    }


def _keep_older(served: Served, loss: AcceptedLoss, own: Member) -> None:
    """Make what a shard still has of a collection count as the whole. Blocking."""
    collection, membership = served.collection, served.membership
    collection.writes.set_membership(
        replace(
            membership,
            directory=own.directory,
            stage=max(membership.stage, loss.stage),
            members=_with(loss.members or membership.members, own),
        )
    )
    collection.writes.record_loss(_rows_lost(collection, loss))


def _rows_lost(collection: Collection, loss: AcceptedLoss) -> int:
    """Return the rows that a collection has lost in all; repeating it changes nothing."""
    lost = collection.snapshot.lost
    if loss.witnessed_accepted is None:
        return lost
    return max(lost, loss.witnessed_accepted - collection.snapshot.rows)


def _with(members: Sequence[Member], own: Member) -> tuple[Member, ...]:
    """Return members in which this shard is as it is now; none if there were none."""
    if not members:
        return ()
    others = [each for each in members if each.shard != own.shard]
    return tuple(sorted((*others, own), key=lambda each: each.shard))
