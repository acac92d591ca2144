"""Routers that examine their shards when a test says so, and what they answer if one is missing."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

import numpy as np
import pytest

from tests.router.fan_out.samples import found, upsert
from tests.router.fan_out.witnessed_shard import WitnessedShard
from tests.shard.samples import config_of, some_vectors
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.descriptions import ExplainRequest
from vectorshard.shard.errors import ShardMissing
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    NO_LIMIT,
    CountRequest,
    DeleteRequest,
    GetRequest,
    ListRequest,
    TrainRequest,
    UpdateRequest,
)

IDS = np.arange(200)
COUNT = CountRequest(collection="words")


ADVICE = re.compile(r"\b(create|drop)\b", re.IGNORECASE)
"""What no refusal may suggest while half of a collection lives."""


class Ticks:
    """The pauses between a router's rounds: each lasts until the test says so."""

    def __init__(self) -> None:
        self._may_go_on = asyncio.Event()

    async def sleep(self, _: float) -> None:
        await self._may_go_on.wait()


async def router_over(shards: Sequence[Shard], *, partial: bool = False) -> Router:
    """Return a router whose background rounds do not come: tests ask for them."""
    return await Router.connect(shards, sleep=Ticks().sleep, partial=partial)


async def rounds(*routers: Router, number: int = 2) -> None:
    """Let every router examine its shards."""
    for _ in range(number):
        for router in routers:
            await router._examination._examine_now()


async def restarted(router: Router) -> None:
    """Have a router notice that shards were started again."""
    await router._children.learn(NO_LIMIT)


async def require_missing(router: Router, lost: int) -> None:
    """Every call says which shard is missing, and none says that something should be created."""
    ids = IDS[router._children.placement.shards_of(IDS) == lost]
    query = some_vectors(1)
    for call in (
        found(router),
        router.count(COUNT),
        router.get(GetRequest(collection="words", ids=ids[:1])),
        router.delete(DeleteRequest(collection="words", ids=ids)),
        router.create_collection(config_of()),
        router.train(TrainRequest(collection="words")),
        router.update_collection(UpdateRequest(collection="words", target_recall=0.5)),
        router.explain(ExplainRequest(collection="words", query=query, id=ids[:1])),
        router.upsert(upsert(ids)),
    ):
        with pytest.raises(
            ShardMissing, match=f"shard {lost}: .*vectorshard accept-loss"
        ) as refused:
            await call
        assert not ADVICE.search(str(refused.value))

    async def list_all() -> None:
        cursor = None
        while True:
            request = ListRequest(collection="words", page_size=50, cursor=cursor)
            cursor = (await router.list_rows(request)).cursor

    with pytest.raises(ShardMissing):
        await list_all()
    result = await found(router, min_coverage=0.25)
    assert result.receipt.coverage == pytest.approx(0.5)
    reason = result.receipt.shards[lost].missing_reason
    assert reason.startswith(f"ShardMissing: shard {lost}: ")
    assert not ADVICE.search(reason)
    with pytest.raises(ShardMissing):
        await found(router, min_coverage=0.75)
    description = await router.describe("words")
    assert description.shards[lost].missing_reason
    assert not description.shards[1 - lost].missing_reason
    await rounds(router)
    [problem] = await router.problems()
    assert (problem.shard, problem.kind, problem.collection) == (
        lost,
        ProblemKind.MISSING,
        "words",
    )


# ---- shards that remember each other ------------------------------------------------------------


async def filled(shards: Sequence[WitnessedShard]) -> Router:
    """Return a router with a collection that has rows on every shard, and witnesses of them."""
    router = await router_over(shards)
    await router.create_collection(config_of())
    await router.upsert(upsert(IDS))
    await rounds(router)
    return router


def incarnation_of(shard: WitnessedShard) -> str:
    return shard.entries["words"].incarnation


def wipe(shard: WitnessedShard) -> None:
    """Lose the whole directory."""
    shard.wipe()


def lose(shard: WitnessedShard) -> None:
    """Lose the collection's directory."""
    shard.lose("words")


HARMS = pytest.mark.parametrize("harm", [wipe, lose])
EACH = pytest.mark.parametrize("lost", [0, 1])
