"""Creates and drops that some shards have and others have not: brought to their end.

A create is settled in two rounds over all shards (shard.membership.Stage), so that a shard that
holds a row knows that every other one has had the collection. A router that meets an unfinished
create or drop finishes it, if no shard is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import structlog

from vectorshard.router.fan_out.children import Child, Children, all_answers
from vectorshard.router.fan_out.examination import EXCHANGE_TIMEOUT_S, Examination, is_due
from vectorshard.router.fan_out.verdicts import CollectionVerdict, Kind
from vectorshard.shard.errors import (
    CollectionNotFound,
    IncarnationMismatch,
    Unsupported,
    VectorShardError,
)
from vectorshard.shard.membership import Member, SettleRequest, Stage
from vectorshard.shard.types import Call, CollectionConfig

_log = structlog.get_logger(__name__)


class Settlement:
    """Settles the collections of a router."""

    def __init__(self, children: Children, examination: Examination) -> None:
        self._children = children
        self._examination = examination
        examination.when_due = self._finish_all

    def is_settled(self, incarnation: str) -> bool:
        """Whether the last round has found a collection complete on all shards."""
        verdict = self._examination.verdicts.get(incarnation)
        return (
            verdict is not None
            and verdict.stage_due is None
            and all(each.kind is Kind.PRESENT for each in verdict.by_shard.values())
        )

    async def settle(
        self, name: str, incarnation: str, members: Sequence[Member], call: Call
    ) -> None:
        """Settle a create that has reached all shards: first KNOWN on all, then COMPLETE."""
        for stage in (Stage.KNOWN, Stage.COMPLETE):
            await self._settle(name, incarnation, stage, members, call)

    async def _settle(
        self, name: str, incarnation: str, stage: Stage, members: Sequence[Member], call: Call
    ) -> None:
        request = SettleRequest(
            collection=name, incarnation=incarnation, stage=stage, members=tuple(members)
        )
        call = replace(call, incarnation=incarnation, staged=False)
        children = self._children.in_order()
        await all_answers(child.shard.settle(request, call=child.to(call)) for child in children)

    # ---- drops ----------------------------------------------------------------------------------

    def lost_parts(self, name: str) -> set[str]:
        """Return the incarnations of a name that shards have lost or set aside, or drop."""
        lost = {
            verdict.incarnation
            for verdict in self._examination.named(name)
            if verdict.missing() or (verdict.dropped and is_due(verdict))
        }
        return lost | self._examination.set_aside(name).keys()

    async def drop(self, name: str, incarnation: str, call: Call) -> None:
        """Drop a collection on every shard that has it, or knows of it."""
        meant = replace(call, incarnation=incarnation)

        async def drop(child: Child) -> None:
            with suppress(CollectionNotFound, IncarnationMismatch):
                await child.shard.drop_collection(name, call=child.to(meant))

        await all_answers(drop(child) for child in self._children.in_order())
        self._examination.dropped(incarnation)
        if not incarnation:  # no verdict says that it is dropped
            await self._examination.again()

    # ---- what is unfinished ---------------------------------------------------------------------

    async def finish(self, name: str, call: Call) -> None:
        """Examine the shards, and finish what is unfinished of a name."""
        await self._examination.again()
        due = [verdict for verdict in self._examination.named(name) if is_due(verdict)]
        await self._finish_all(due, call.deadline)

    async def _finish_all(
        self, due: Sequence[CollectionVerdict], deadline: float | None = None
    ) -> None:
        for verdict in due:
            call = Call(deadline=deadline or self._children.clock() + EXCHANGE_TIMEOUT_S)
            try:
                await self._finish(verdict, call)
            except VectorShardError as error:  # the next round finds it again
                _log.warning("not finished yet", collection=verdict.name, reason=str(error))

    async def _finish(self, verdict: CollectionVerdict, call: Call) -> None:
        name, incarnation = verdict.name, verdict.incarnation
        _log.info("finishing", collection=name, dropped=verdict.dropped)
        if verdict.dropped:
            await self.drop(name, incarnation, call)
        elif verdict.completable:
            await self._complete(verdict, call)
        elif verdict.stage_due is Stage.KNOWN:
            await self.settle(name, incarnation, verdict.members_due, call)
        else:
            with suppress(Unsupported):
                await self._settle(name, incarnation, Stage.COMPLETE, verdict.members_due, call)

    async def _complete(self, verdict: CollectionVerdict, call: Call) -> None:
        """Create a collection where it is lacking, and settle it."""
        config = await self.config_of(verdict, call)
        members = self._examination.members()  # raises if a shard was started again meanwhile
        if config is None or not members or self._examination.lost(verdict.name):
            return
        meant = replace(call, incarnation=verdict.incarnation, staged=True)
        children = self._children.in_order()
        calls = [child.to(meant) for child in children]
        await all_answers(
            child.shard.create_collection(config, call=child_call)
            for child, child_call in zip(children, calls, strict=True)
        )
        await self.settle(verdict.name, verdict.incarnation, members, call)

    async def config_of(self, verdict: CollectionVerdict, call: Call) -> CollectionConfig | None:
        """Return the configuration of a collection that a shard has; None if none has it."""
        call = replace(call, incarnation="")
        for child in self._children.in_order():
            for entry in await child.shard.list_collections(call=child.to(call)):
                if entry.incarnation == verdict.incarnation:
                    return entry.config
        return None
