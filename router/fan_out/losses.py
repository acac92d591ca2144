"""The acceptance of a loss: what a shard has lost, and that it is to go on without it.

The router works it out from its last round, since it knows more than any shard. Then the shard
makes its directory the member of its collections, and raises its life: from then on the lost
directory is refused. Then the other shards learn of the new member. Each step may be repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import structlog

from vectorshard.router.fan_out import verdicts
from vectorshard.router.fan_out.children import Child, Children, all_answers
from vectorshard.router.fan_out.examination import Examination
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind
from vectorshard.shard.errors import (
    CollectionNotFound,
    ShardMissing,
    ShardUnavailable,
    Unsupported,
    VectorShardError,
)
from vectorshard.shard.membership import (
    AcceptedLoss,
    AcceptLossRequest,
    AcceptLossResult,
    CollectionReport,
    CollectionState,
    Member,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.types import Call, CollectionConfig

_log = structlog.get_logger(__name__)


class Losses:
    """The losses of the leaf shards of a router."""

    def __init__(self, children: Children, examination: Examination) -> None:
        self._children = children
        self._examination = examination

    async def accept(self, request: AcceptLossRequest, call: Call) -> AcceptLossResult:
        """Return what a leaf shard has lost, and have it recorded if the request says so.

        A request that a router above has filled in is passed on. Nothing is lost, and nothing
        changes, if nothing is missing there: the request may have been done before.

        Raises
        ------
        InvalidParameter
            If there is no such shard.
        ShardUnavailable
            If it does not answer.
        """
        child = self._children.of_shard(request.shard)
        if request.losses:
            return await child.shard.accept_loss(request, call=child.to(call))
        report, missing = await self._missing_on(request.shard, call)
        if not missing:
            return AcceptLossResult(losses=(), life=report.life)
        stale = self._stale_on(report, missing)
        gone = {each.incarnation for each in stale}
        missing = [each for each in missing if each.incarnation not in gone]
        configs = await self._configs(call)
        life = self._examination.memory.newest_life(report) + 1
        own = Member(shard=request.shard, directory=report.directory, life=life)
        losses = tuple(
            self._loss(request.shard, verdict, configs, own)
            for verdict in sorted(missing, key=lambda each: each.name)
        )
        dropped = tuple(_dropped(request.shard, each, configs) for each in stale)
        if not request.accept:
            return AcceptLossResult(losses=losses + dropped, life=life)
        _log.warning("accepting the loss of a shard", shard=request.shard, life=life)
        for each in stale:
            meant = replace(call, incarnation=each.incarnation)
            await child.shard.drop_collection(each.name, call=child.to(meant))
        filled = replace(request, losses=losses, life=life)
        result = await child.shard.accept_loss(filled, call=child.to(call))
        for loss in losses:
            await self._settle(loss, call)
        for _ in range(2):
            await self._examination.again()
        return replace(result, losses=(*result.losses, *dropped))

    async def _missing_on(
        self, shard: int, call: Call
    ) -> tuple[ShardReport, list[CollectionVerdict]]:
        """Return the report of a shard, and the collections that are missing there."""
        await self._examination.again()
        await self._examination.examined(call)
        report = self._examination.reports.get(shard)
        if report is None:
            raise ShardUnavailable(
                f"shard {shard} does not answer: start it, on an empty directory if its own is lost"
            )
        missing = [
            verdict
            for verdict in self._examination.verdicts.values()
            if not verdict.dropped and verdict.by_shard[shard].kind is Kind.MISSING
        ]
        if unheard := self._examination.unheard():
            # A new life makes void what they remember of the old one.
            listed = ", ".join(map(str, unheard))
            raise ShardUnavailable(
                f"shard {listed} does not answer: what shard {shard} has lost is not known without"
            )
        return report, missing

    def _stale_on(
        self, report: ShardReport, missing: Sequence[CollectionVerdict]
    ) -> list[CollectionReport]:
        """Return the collections that only an old disk brought back.

        The others have later ones of those names, which are missing on the shard.
        """
        elsewhere = {
            each.incarnation: each.name
            for number, other in self._examination.reports.items()
            for each in other.collections
            if number != report.shard and each.state is CollectionState.LIVE
        }
        names = {each.name for each in missing if each.incarnation in elsewhere}
        return [
            each
            for each in report.collections
            if each.state is CollectionState.LIVE
            and each.name in names
            and each.incarnation not in elsewhere
        ]

    async def _configs(self, call: Call) -> dict[str, CollectionConfig]:
        """Return the configurations that the shards have, by incarnation."""
        call = replace(call, incarnation="")
        configs: dict[str, CollectionConfig] = {}
        for child in self._children.known():
            try:
                entries = await child.shard.list_collections(call=child.to(call))
            except VectorShardError as error:
                _log.warning("not asked for its collections", child=child.name, reason=str(error))
                continue
            configs = {entry.incarnation: entry.config for entry in entries} | configs
        return configs

    def _loss(
        self,
        shard: int,
        verdict: CollectionVerdict,
        configs: dict[str, CollectionConfig],
        own: Member,
    ) -> AcceptedLoss:
        config = configs.get(verdict.incarnation)
        if config is None:
            raise ShardMissing(
                f"no shard has collection {verdict.name!r} now, so there is nothing to go on with: "
                f"put a disk that has it back, of shard {shard} or of another"
            )
        loss = verdicts.loss_of(
            shard, verdict, self._examination.reports, self._examination.memory, config
        )
        others = {member.shard: member for member in loss.members}
        members = [member for _, member in sorted((others | {shard: own}).items())]
        return replace(loss, members=tuple(members) if others else ())

    async def _settle(self, loss: AcceptedLoss, call: Call) -> None:
        """Have the other shards know the new member."""
        if not loss.members:
            return
        request = SettleRequest(
            collection=loss.collection,
            incarnation=loss.incarnation,
            stage=loss.stage,
            members=loss.members,
        )

        async def settle(child: Child) -> None:
            try:
                await child.shard.settle(request, call=child.to(call))
            except Unsupported:
                pass
            except (ShardMissing, CollectionNotFound) as error:  # it has lost it too
                _log.warning("not settled", child=child.name, reason=str(error))

        await all_answers(settle(child) for child in self._children.known())


def _dropped(
    shard: int, stale: CollectionReport, configs: Mapping[str, CollectionConfig]
) -> AcceptedLoss:
    """Return how the operator is shown that an accepted loss drops a collection: all its rows."""
    config = configs.get(stale.incarnation)
    if config is None:
        raise ShardUnavailable(f"shard {shard} did not list collection {stale.name!r}: try again")
    return AcceptedLoss(
        collection=stale.name,
        incarnation=stale.incarnation,
        reason=(
            f"shard {shard}: its disk has an earlier collection of this name, which no other shard "
            "has: that one is dropped, with its rows on this shard"
        ),
        config=config,
        sequence=stale.sequence,
        witnessed_sequence=stale.sequence,
        witnessed_accepted=stale.accepted,
        witnessed_live=stale.live,
    )
