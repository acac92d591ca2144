"""Searches and explanations of a router over fakes: what it asks of whom, and what it answers."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from tests.router.fan_out.samples import found, remembering, search
from tests.router.model_shard import FaultyShard
from tests.shard.samples import int64s, some_vectors
from vectorshard.router.fan_out.children import TIME_TO_ANSWER, TIME_TO_ANSWER_MAX_S
from vectorshard.router.fan_out.merge import merge_top_k
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.search import MERGED_ON_LOOP
from vectorshard.shard.descriptions import ExplainRequest, Explanation
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionUnreadable,
    DeadlineExceeded,
    Overloaded,
    ReadFailed,
    RowFileCorrupt,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    GetRequest,
    Int64Array,
    Metric,
    Role,
    SearchRequest,
    SearchResult,
    TopK,
)


async def test_hits_of_all_children_are_merged_best_first(children: list[FaultyShard]) -> None:
    result = await found(await Router.connect(children), k=4)
    assert result.hits.ids.tolist() == [30, 200, 3, 10]
    assert [shard.rows_visible for shard in result.receipt.shards] == [2, 2, 2]
    assert result.receipt.coverage == 1.0


async def test_answers_that_cover_the_same_share_a_receipt_and_others_have_their_own(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    first, again = await found(router), await found(router)
    assert again.receipt is first.receipt
    children[2].failure = ShardUnavailable("no route to host")
    fewer = await found(router, min_coverage=0.5)
    assert fewer.receipt.shards_answered == 2
    children[2].failure = None
    assert (await found(router)).receipt == first.receipt


@pytest.mark.parametrize("hits", [MERGED_ON_LOOP - 1, MERGED_ON_LOOP, 2 * MERGED_ON_LOOP])
async def test_many_hits_are_merged_beside_the_event_loop_and_no_differently(
    monkeypatch: pytest.MonkeyPatch, hits: int
) -> None:
    merged_on: list[int] = []

    def watched(blocks: Sequence[TopK], k: int, metric: Metric) -> tuple[TopK, Int64Array]:
        merged_on.append(threading.get_ident())
        return merge_top_k(blocks, k, metric)

    monkeypatch.setattr("vectorshard.router.fan_out.merge.merge_top_k", watched)
    scored = [(id_, float(id_ % 1_000)) for id_ in range(hits)]
    children = [
        FaultyShard(shard, 3, hits=[sorted(scored[shard::3], key=best)]).with_collection()
        for shard in range(3)
    ]
    result = await found(await Router.connect(children), k=hits)
    assert result.hits.ids.tolist() == [id_ for id_, _ in sorted(scored, key=best)]
    on_the_loop = [thread == threading.get_ident() for thread in merged_on]
    assert on_the_loop == [hits < MERGED_ON_LOOP]


def best(hit: tuple[int, float]) -> tuple[float, int]:
    """Sort hits as L2 ranks them."""
    return hit[1], hit[0]


@pytest.mark.parametrize(
    "failure", [ShardUnavailable("gone fishing"), DeadlineExceeded("too late")]
)
async def test_a_missing_child_fails_the_search_and_is_named(
    children: list[FaultyShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    with pytest.raises(ShardUnavailable, match=f"shard 1: .*{failure}") as caught:
        await found(router)
    assert "shard 0:" not in str(caught.value)
    assert "shard 2:" not in str(caught.value)


async def test_a_search_that_asks_for_less_is_answered_and_says_what_is_missing(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    children[1].failure = ShardUnavailable("gone fishing")
    result = await found(router, min_coverage=0.6)
    assert result.hits.ids.tolist() == [200, 3, 1, 100]
    receipt = result.receipt
    assert receipt.coverage == pytest.approx(2 / 3, abs=1e-3)
    assert (receipt.shards_total, receipt.shards_answered) == (3, 2)
    assert [shard.shard for shard in receipt.shards] == [0, 1, 2]
    assert [bool(shard.missing_reason) for shard in receipt.shards] == [False, True, False]
    assert "gone fishing" in receipt.shards[1].missing_reason
    with pytest.raises(ShardUnavailable, match=r"coverage 0\.66. is below min_coverage 0\.700"):
        await found(router, min_coverage=0.7)


async def test_one_of_three_is_enough_for_who_asks_for_no_more(children: list[FaultyShard]) -> None:
    router = await remembering(children)
    for child in children[:2]:
        child.failure = ShardUnavailable("gone")
    result = await found(router, min_coverage=0.3)
    assert result.hits.ids.tolist() == [200, 100]
    assert result.receipt.shards_answered == 1


@pytest.mark.parametrize(
    ("left_s", "kept_s"), [(1.0, TIME_TO_ANSWER), (100.0, TIME_TO_ANSWER_MAX_S)]
)
async def test_children_have_a_little_less_time_than_their_caller(
    children: list[FaultyShard], left_s: float, kept_s: float
) -> None:
    router = await remembering(children)
    deadline = time.monotonic() + left_s
    await router.search(search(), call=Call(deadline=deadline))
    [(_, _, call)] = [asked for asked in children[0].calls if asked[0] == "search"]
    assert call.deadline == pytest.approx(deadline - kept_s, abs=0.05)


class Hangs(FaultyShard):
    """Answers no search before it is let go."""

    def __init__(self, shard: int, shards_total: int) -> None:
        super().__init__(shard, shards_total)
        self.let_go = asyncio.Event()

    async def search(self, request: SearchRequest, *, call: Call = NO_LIMIT) -> SearchResult:
        result = await super().search(request, call=call)
        await self.let_go.wait()
        return result


async def turns() -> None:
    """Let everything go on that waits for nothing."""
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("answers", [False, True], ids=["all hang", "one answers"])
async def test_who_is_missing_at_once_lets_nobody_start_before_a_child_has_answered(
    children: list[FaultyShard], answers: bool
) -> None:
    hanging = [Hangs(1, 3)] if answers else [Hangs(1, 3), Hangs(2, 3)]
    for hangs in hanging:
        hangs.with_collection()
        children[hangs.shard] = hangs
    router = await remembering(children)
    children[0].failure = ShardUnavailable("not asked")
    callers = [asyncio.ensure_future(found(router, min_coverage=0.3)) for _ in range(5)]
    await turns()
    if answers:  # and the one that hangs has had as long again
        for _ in range(10_000):
            if len(children[1].asked("search")) == 2:
                break
            await asyncio.sleep(0)
    assert len(children[1].asked("search")) == (2 if answers else 1)
    for hangs in hanging:
        hangs.let_go.set()
    await asyncio.gather(*callers)
    assert len(children[1].asked("search")) == 2, (
        "the first alone, those that came meanwhile as one"
    )


async def test_the_next_search_starts_when_all_children_have_answered(
    children: list[FaultyShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Hangs(1, 3)
    slow.with_collection()
    children[1] = slow
    router = await remembering(children)
    loop = asyncio.get_running_loop()
    call_later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda _, *what: call_later(60, *what))
    callers = [asyncio.ensure_future(found(router)) for _ in range(3)]
    await turns()
    assert len(children[0].asked("search")) == 1, "one lags, and its time is not over"
    slow.let_go.set()
    await asyncio.gather(*callers)
    assert len(children[0].asked("search")) == 2


async def test_nothing_at_all_is_no_answer_whatever_is_asked_for(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await found(router, min_coverage=0.0)


async def test_what_a_router_below_does_not_cover_is_not_covered_here(
    children: list[FaultyShard],
) -> None:
    children[2].coverage = 0.0
    router = await remembering(children)
    with pytest.raises(ShardUnavailable, match="shard 2: asleep"):
        await found(router)
    result = await found(router, min_coverage=0.5)
    assert result.receipt.coverage == pytest.approx(2 / 3, abs=1e-3)
    assert result.receipt.shards[2].missing_reason == "asleep"


@pytest.mark.parametrize("failure", [CollectionDamaged("bits"), RowFileCorrupt("bits")])
async def test_damage_is_an_absence_for_those_who_accept_it_and_an_error_for_others(
    children: list[FaultyShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    with pytest.raises(type(failure), match="bits"):
        await found(router)
    result = await found(router, min_coverage=0.5)
    assert result.receipt.coverage == pytest.approx(2 / 3, abs=1e-3)
    reason = result.receipt.shards[1].missing_reason
    assert reason.startswith(type(failure).__name__)
    assert ("bits" in reason) is not failure.is_servers_own
    with pytest.raises(CollectionDamaged, match="shard 1: "):
        await found(router, min_coverage=0.9)


@pytest.mark.parametrize("failure", [ReadFailed("EIO"), CollectionUnreadable("EIO")])
async def test_what_a_shard_cannot_read_is_an_absence_that_waiting_does_not_resolve(
    children: list[FaultyShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    result = await found(router, min_coverage=0.5)
    assert result.receipt.shards[1].missing_reason.startswith(type(failure).__name__)
    with pytest.raises(type(failure), match="shard 1: ") as raised:
        await found(router)
    assert not raised.value.retryable


async def test_of_several_lasting_absences_the_lost_disk_is_the_error(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    children[0].failure = CollectionUnreadable("EIO")
    children[1].failure = ShardMissing("lost")
    with pytest.raises(ShardMissing, match="shard 0: CollectionUnreadable: EIO"):
        await found(router, min_coverage=0.9)


@pytest.mark.parametrize("failure", [Overloaded("full"), RuntimeError("bug")])
async def test_a_failure_that_is_no_absence_is_passed_on_and_never_hidden(
    children: list[FaultyShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    with pytest.raises(type(failure), match=str(failure)):
        await found(router, min_coverage=0.0)


async def test_a_router_over_routers_names_the_leaf_shards(children: list[FaultyShard]) -> None:
    below = [
        await Router.connect(children[:2], partial=True),
        await Router.connect(children[2:], partial=True),
    ]
    router = await Router.connect(below)
    topology = await router.topology()
    assert (topology.role, len(topology.shards)) == (Role.ROUTER, 3)
    result = await found(router)
    assert result.hits.ids.tolist() == [30, 200, 3, 10, 1, 100]
    assert [shard.shard for shard in result.receipt.shards] == [0, 1, 2]
    children[0].failure = ShardUnavailable("gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await found(router)


async def test_a_lenient_answer_of_a_tree_says_of_each_leaf_why_it_is_missing(
    children: list[FaultyShard],
) -> None:
    lowest = await Router.connect(children[:2], partial=True)
    below = [
        await Router.connect([lowest], partial=True),
        await Router.connect(children[2:], partial=True),
    ]
    router = await Router.connect(below)
    await router.count(CountRequest(collection="words"))
    children[1].failure = ShardUnavailable("gone fishing")
    deadline = time.monotonic() + 10.0
    result = await router.search(search(min_coverage=0.5), call=Call(deadline=deadline))
    reasons = [shard.missing_reason for shard in result.receipt.shards]
    assert reasons == ["", "ShardUnavailable: gone fishing", ""]
    assert result.receipt.coverage == pytest.approx(2 / 3, abs=1e-3)
    [asked] = [call for method, _, call in children[0].calls if method == "search"]
    kept_s = 3 * TIME_TO_ANSWER_MAX_S
    assert asked.deadline == pytest.approx(deadline - kept_s, abs=0.05), "a part for each router"
    for child in children:
        child.failure = ShardUnavailable(f"shard {child.shard} has gone")
    with pytest.raises(ShardUnavailable) as caught:
        await found(router, min_coverage=0.5)
    for shard in range(3):
        assert f"shard {shard} has gone" in str(caught.value)


# ---- explanations -------------------------------------------------------------------------------


def explain(**changes: object) -> ExplainRequest:
    request = ExplainRequest(collection="words", query=some_vectors(1), id=int64s(7))
    return replace(request, **changes)  # type: ignore[arg-type]  # by name


async def owner_of(router: Router, children: Sequence[FaultyShard]) -> FaultyShard:
    """Return the child that owns the id of `explain`."""
    await router.get(GetRequest(collection="words", ids=int64s(7)))
    [owner] = [child for child in children if child.asked("get")]
    return owner


@pytest.mark.parametrize("in_a_tree", [False, True])
async def test_an_explanation_is_its_owners_and_its_rank_counts_the_rows_of_all(
    children: list[FaultyShard], in_a_tree: bool
) -> None:
    tops: Sequence[Shard] = children
    if in_a_tree:
        tops = [
            await Router.connect(children[:2], partial=True),
            await Router.connect(children[2:], partial=True),
        ]
    router = await Router.connect(tops)
    owner = await owner_of(router, children)
    for shard, child in enumerate(children):
        child.explanation = Explanation(exact_rank=10 ** (shard + 1))
    owner.explanation = Explanation(
        exists=True, shard=owner.shard, list=4, nprobe_needed=2, exact_rank=3, score=0.25
    )
    told = await router.explain(explain())
    others = sum(10 ** (child.shard + 1) - 1 for child in children if child is not owner)
    assert told == replace(owner.explanation, exact_rank=3 + others)
    for child in children:
        [asked] = child.asked("explain")
        assert isinstance(asked, ExplainRequest)
        assert asked.score == (None if child is owner else 0.25)


async def test_a_hit_of_elsewhere_ranks_among_the_rows_of_all(children: list[FaultyShard]) -> None:
    for child in children:
        child.explanation = Explanation(exact_rank=5)
    router = await Router.connect(children)
    told = await router.explain(explain(score=0.5))
    assert (told.exists, told.exact_rank) == (False, 1 + 3 * 4)


async def test_an_id_that_does_not_exist_is_asked_of_its_owner_alone(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    owner = await owner_of(router, children)
    owner.explanation = Explanation(shard=owner.shard, deleted=True)
    assert await router.explain(explain()) == owner.explanation
    assert sum(len(child.asked("explain")) for child in children) == 1


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_there_is_no_explanation_without_all_children(
    children: list[FaultyShard], missing: int
) -> None:
    for child in children:
        child.explanation = Explanation(exists=True, exact_rank=1)
    router = await remembering(children)
    children[missing].failure = ShardUnavailable(f"shard {missing} is gone fishing")
    with pytest.raises(ShardUnavailable, match=f"shard {missing} is gone"):
        await router.explain(explain())


async def test_an_explanation_is_of_the_collection_that_is_there_now(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.with_collection(incarnation="second")
        child.explanation = Explanation(exists=True, exact_rank=1)
    assert (await router.explain(explain())).exact_rank == 1
    assert {call.incarnation for _, _, call in children[0].calls[-1:]} == {"second"}
