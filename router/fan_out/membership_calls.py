"""The calls about membership, as a router answers them."""

from __future__ import annotations

from collections.abc import Sequence

from vectorshard.router.fan_out.children import Children, all_answers
from vectorshard.router.fan_out.examination import Examination
from vectorshard.router.fan_out.losses import Losses
from vectorshard.shard.membership import (
    AcceptLossRequest,
    AcceptLossResult,
    ExchangeRequest,
    Problem,
    SettleRequest,
    ShardReport,
)
from vectorshard.shard.types import NO_LIMIT, Call


class MembershipCalls:
    """The part of a router that examines its shards."""

    def __init__(self, children: Children, examination: Examination) -> None:
        self._children = children
        self._examination = examination
        self._losses = Losses(children, examination)

    async def problems(self, *, call: Call = NO_LIMIT) -> Sequence[Problem]:
        """Return what an operator has to look at, as of the last examination."""
        return self._examination.problems()

    async def exchange(
        self, request: ExchangeRequest, *, call: Call = NO_LIMIT
    ) -> Sequence[ShardReport]:
        """Examine the shards with what a router above knows, and return their reports."""
        return await self._examination.exchange(request)

    async def settle(self, request: SettleRequest, *, call: Call = NO_LIMIT) -> None:
        """Settle a collection on every shard, or on the one that is meant."""
        await all_answers(
            child.shard.settle(request, call=child.to(call))
            for child in self._children.in_order()
            if request.shard is None
            or request.shard in self._children.placement.shards_of_child(child.number)
        )

    async def accept_loss(
        self, request: AcceptLossRequest, *, call: Call = NO_LIMIT
    ) -> AcceptLossResult:
        """Work out what a shard has lost, and have it record that, if the request says so."""
        return await self._losses.accept(request, call)
