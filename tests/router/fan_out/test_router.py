"""The router over fakes: what it asks of whom, and what it makes of their answers and failures.

What it shares with every other shard is in tests/conformance.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from tests.router.fake_shard import FakeShard
from tests.shard.samples import config_of, int64s, some_vectors, strings
from vectorshard.router.fan_out.children import TIME_TO_ANSWER, TIME_TO_ANSWER_MAX_S, Children
from vectorshard.router.fan_out.merge import merge_top_k
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.search import MERGED_ON_LOOP
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    DimensionMismatch,
    IncarnationMismatch,
    Overloaded,
    PlacementMismatch,
    RowFileCorrupt,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionConfig,
    CollectionEntry,
    CountRequest,
    DeleteRequest,
    ExplainRequest,
    Explanation,
    GetRequest,
    IdType,
    Int64Array,
    Metric,
    Role,
    Rows,
    SearchRequest,
    SearchResult,
    TopK,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

HITS = [[(3, 0.5), (1, 2.0)], [(30, 0.0), (10, 1.0)], [(200, 0.25), (100, 9.0)]]


def search(**changes: object) -> SearchRequest:
    request = SearchRequest(collection="words", queries=some_vectors(1), k=10)
    return replace(request, **changes)  # type: ignore[arg-type]  # by name


def upsert(ids: Int64Array) -> UpsertRequest:
    return UpsertRequest(collection="words", ids=ids, vectors=some_vectors(len(ids)))


@pytest.fixture
def children() -> list[FakeShard]:
    """Three shards that have the collection and a few hits each."""
    return [FakeShard(shard, 3, hits=[HITS[shard]]).with_collection() for shard in range(3)]


async def found(router: Router, **changes: object) -> SearchResult:
    return await router.search(search(**changes))


async def remembering(children: list[FakeShard]) -> Router:
    """Return a router that knows the collection already."""
    router = await Router.connect(children)
    await router.count(CountRequest(collection="words"))
    return router


# ---- searches -----------------------------------------------------------------------------------


async def test_hits_of_all_children_are_merged_best_first(children: list[FakeShard]) -> None:
    result = await found(await Router.connect(children), k=4)
    assert result.hits.ids.tolist() == [30, 200, 3, 10]
    assert [shard.rows_visible for shard in result.receipt.shards] == [2, 2, 2]
    assert result.receipt.coverage == 1.0


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
        FakeShard(shard, 3, hits=[sorted(scored[shard::3], key=best)]).with_collection()
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
    children: list[FakeShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    with pytest.raises(ShardUnavailable, match=f"shard 1: .*{failure}") as caught:
        await found(router)
    assert "shard 0:" not in str(caught.value)
    assert "shard 2:" not in str(caught.value)


async def test_a_search_that_asks_for_less_is_answered_and_says_what_is_missing(
    children: list[FakeShard],
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


async def test_one_of_three_is_enough_for_who_asks_for_no_more(children: list[FakeShard]) -> None:
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
    children: list[FakeShard], left_s: float, kept_s: float
) -> None:
    router = await remembering(children)
    deadline = time.monotonic() + left_s
    await router.search(search(), call=Call(deadline=deadline))
    [(_, _, call)] = [asked for asked in children[0].calls if asked[0] == "search"]
    assert call.deadline == pytest.approx(deadline - kept_s, abs=0.05)


@dataclass
class Hangs(FakeShard):
    """Answers no search before it is let go."""

    let_go: asyncio.Event = field(default_factory=asyncio.Event)

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
    children: list[FakeShard], answers: bool
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
    children: list[FakeShard], monkeypatch: pytest.MonkeyPatch
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
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await found(router, min_coverage=0.0)


async def test_what_a_router_below_does_not_cover_is_not_covered_here(
    children: list[FakeShard],
) -> None:
    children[2].coverage = 0.0
    router = await remembering(children)
    with pytest.raises(ShardUnavailable, match="shard 2: asleep"):
        await found(router)
    result = await found(router, min_coverage=0.5)
    assert result.receipt.coverage == pytest.approx(2 / 3, abs=1e-3)
    assert result.receipt.shards[2].missing_reason == "asleep"


@pytest.mark.parametrize(
    "failure", [RowFileCorrupt("bits"), Overloaded("full"), RuntimeError("bug")]
)
async def test_a_failure_that_is_no_absence_is_passed_on_and_never_hidden(
    children: list[FakeShard], failure: VectorShardError
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    with pytest.raises(type(failure), match=str(failure)):
        await found(router, min_coverage=0.0)


async def test_a_router_over_routers_names_the_leaf_shards(children: list[FakeShard]) -> None:
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
    children: list[FakeShard],
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


async def owner_of(router: Router, children: Sequence[FakeShard]) -> FakeShard:
    """Return the child that owns the id of `explain`."""
    await router.get(GetRequest(collection="words", ids=int64s(7)))
    [owner] = [child for child in children if child.asked("get")]
    return owner


@pytest.mark.parametrize("in_a_tree", [False, True])
async def test_an_explanation_is_its_owners_and_its_rank_counts_the_rows_of_all(
    children: list[FakeShard], in_a_tree: bool
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


async def test_a_hit_of_elsewhere_ranks_among_the_rows_of_all(children: list[FakeShard]) -> None:
    for child in children:
        child.explanation = Explanation(exact_rank=5)
    router = await Router.connect(children)
    told = await router.explain(explain(score=0.5))
    assert (told.exists, told.exact_rank) == (False, 1 + 3 * 4)


async def test_an_id_that_does_not_exist_is_asked_of_its_owner_alone(
    children: list[FakeShard],
) -> None:
    router = await Router.connect(children)
    owner = await owner_of(router, children)
    owner.explanation = Explanation(shard=owner.shard, deleted=True)
    assert await router.explain(explain()) == owner.explanation
    assert sum(len(child.asked("explain")) for child in children) == 1


@pytest.mark.parametrize("missing", [0, 1, 2])
async def test_there_is_no_explanation_without_all_children(
    children: list[FakeShard], missing: int
) -> None:
    for child in children:
        child.explanation = Explanation(exists=True, exact_rank=1)
    router = await remembering(children)
    children[missing].failure = ShardUnavailable(f"shard {missing} is gone fishing")
    with pytest.raises(ShardUnavailable, match=f"shard {missing} is gone"):
        await router.explain(explain())


async def test_an_explanation_is_of_the_collection_that_is_there_now(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.with_collection(incarnation="second")
        child.explanation = Explanation(exists=True, exact_rank=1)
    assert (await router.explain(explain())).exact_rank == 1
    assert {call.incarnation for _, _, call in children[0].calls[-1:]} == {"second"}


# ---- writes and reads ---------------------------------------------------------------------------


async def test_each_row_goes_to_the_shard_of_its_slot_and_errors_come_back_by_its_index(
    children: list[FakeShard],
) -> None:
    for child in children:
        child.row_errors = [2]
    ids = np.random.default_rng(5).permutation(60)
    result = await (await Router.connect(children)).upsert(upsert(ids))
    assert result.accepted == 57
    assert result.token.sequences == {0: 40, 1: 41, 2: 42}
    parts = [child.asked("upsert")[0] for child in children]
    expected = []
    for part in parts:
        assert isinstance(part, UpsertRequest)
        positions = [ids.tolist().index(id_) for id_ in part.ids.tolist()]
        assert positions == sorted(positions)
        np.testing.assert_array_equal(part.vectors, some_vectors(60)[positions])
        expected.append(positions[2])
    assert [error.row for error in result.errors] == sorted(expected)
    assert sum(len(part.ids) for part in parts if isinstance(part, UpsertRequest)) == 60


async def test_rows_of_one_shard_trouble_no_other(children: list[FakeShard]) -> None:
    router = await remembering(children)
    await router.upsert(upsert(int64s(7)))
    await router.delete(DeleteRequest(collection="words", ids=int64s(7)))
    await router.get(GetRequest(collection="words", ids=int64s(7)))
    for method in ("upsert", "delete", "get"):
        assert sorted(len(child.asked(method)) for child in children) == [0, 0, 1]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ShardUnavailable("gone fishing"), 14),
        (DeadlineExceeded("gone fishing"), 4),
        (Overloaded("gone fishing"), 8),
    ],
    ids=["UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"],
)
async def test_rows_of_a_missing_child_are_errors_and_those_of_others_are_written(
    children: list[FakeShard], failure: VectorShardError, code: int
) -> None:
    router = await remembering(children)
    children[1].failure = failure
    children[2].row_errors = [0]
    ids = np.random.default_rng(5).permutation(60)
    result = await router.upsert(upsert(ids))
    of_shard = slots_of(ids) * 3 // SLOTS_TOTAL
    missing, refused = np.flatnonzero(of_shard == 1), np.flatnonzero(of_shard == 2)[0]
    assert result.accepted == 60 - len(missing) - 1
    assert [error.row for error in result.errors] == sorted([*missing, refused])
    told = f"shard 1: {type(failure).__name__}: gone fishing"
    for error in result.errors:
        expected = (6, "shard 2") if error.row == refused else (code, told)
        assert (error.code, error.message) == expected
    assert result.token.sequences == {0: 40, 2: 42}


async def test_rows_of_a_missing_leaf_are_errors_through_any_number_of_routers(
    children: list[FakeShard],
) -> None:
    below = [
        await Router.connect(children[:2], partial=True),
        await Router.connect(children[2:], partial=True),
    ]
    router = await Router.connect(below)
    await router.count(CountRequest(collection="words"))
    children[0].failure = ShardUnavailable("gone fishing")
    result = await router.upsert(upsert(np.arange(60)))
    missing = np.flatnonzero(slots_of(np.arange(60)) * 3 // SLOTS_TOTAL == 0)
    assert [error.row for error in result.errors] == missing.tolist()
    assert {error.message for error in result.errors} == {"shard 0: ShardUnavailable: gone fishing"}
    children[1].failure = ShardUnavailable("asleep")
    result = await router.upsert(upsert(np.arange(60)))
    assert result.accepted == len(children[2].asked("upsert")[0].ids)  # type: ignore[attr-defined]


async def test_a_write_that_no_child_has_done_fails(children: list[FakeShard]) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = ShardUnavailable(f"shard {child.shard} has gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await router.upsert(upsert(np.arange(60)))


async def test_a_failure_that_is_not_of_its_rows_alone_is_the_whole_writes(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    children[1].failure = RowFileCorrupt("bits")
    with pytest.raises(RowFileCorrupt):
        await router.upsert(upsert(np.arange(60)))


async def test_a_deletion_that_reached_only_some_fails_and_may_be_repeated(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    children[1].failure = ShardUnavailable("gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await router.delete(DeleteRequest(collection="words", ids=np.arange(60)))


async def test_counts_and_deletions_are_summed_and_gets_are_put_in_the_order_asked(
    children: list[FakeShard],
) -> None:
    router = await Router.connect(children)
    ids = np.random.default_rng(5).permutation(60)
    assert await router.count(CountRequest(collection="words")) == 0 + 1 + 2
    assert await router.count(CountRequest(collection="words", ids=ids)) == 60
    assert (await router.delete(DeleteRequest(collection="words", ids=ids))).deleted == 60
    rows = await router.get(GetRequest(collection="words", ids=ids))
    assert rows.ids.tolist() == [id_ for id_ in ids.tolist() if id_ % 2 == 0]


async def test_descriptions_are_gathered_by_shard(children: list[FakeShard]) -> None:
    below = [
        await Router.connect(children[1:], partial=True),
        await Router.connect(children[:1], partial=True),
    ]
    router = await Router.connect(below)
    description = await router.describe("words")
    assert [shard.shard for shard in description.shards] == [0, 1, 2]
    assert description.ledger.accepted == 33
    assert description.ledger.adds_up
    trained = await router.train(TrainRequest(collection="words"))
    assert [shard.shard for shard in trained] == [0, 1, 2]


async def test_a_router_over_one_name_of_two_incarnations_describes_and_trains_neither(
    children: list[FakeShard],
) -> None:
    router = await Router.connect(children)
    children[2].with_collection(incarnation="second")
    with pytest.raises(IncarnationMismatch):
        await router.describe("words")
    with pytest.raises(IncarnationMismatch):
        await router.train(TrainRequest(collection="words"))


class Loses(FakeShard):
    """Commits a write, and is gone before it says so."""

    async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
        await super().upsert(request, call=call)
        raise ShardUnavailable("gone")


@pytest.mark.parametrize(
    "refusal",
    [
        PlacementMismatch("another"),
        IncarnationMismatch("another"),
        CollectionNotFound("none"),
        Overloaded("full"),
    ],
    ids=type,
)
@pytest.mark.parametrize("refused", [0, 2])
async def test_a_write_that_is_refused_here_and_perhaps_done_there_is_not_repeated(
    children: list[FakeShard], refusal: VectorShardError, refused: int
) -> None:
    losing = {shard: Loses(shard, 3).with_collection() for shard in {0, 1, 2} - {refused}}
    for shard, loses in losing.items():
        children[shard] = loses
    router = await remembering(children)
    children[refused].failure = refusal
    with pytest.raises(ShardUnavailable, match="the write may be incomplete, repeat it: gone"):
        await router.upsert(upsert(np.arange(60)))
    assert [len(loses.asked("upsert")) for loses in losing.values()] == [1, 1]


async def test_a_write_that_every_child_is_too_busy_for_is_refused_as_it_is(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = Overloaded("full")
    with pytest.raises(Overloaded, match="full"):
        await router.upsert(upsert(np.arange(60)))


async def test_strings_that_are_missing_are_left_out_of_what_was_asked_in_its_order() -> None:
    ids = strings(*(str(number) for number in np.random.default_rng(5).permutation(60)))

    class Some(FakeShard):
        """Has the ids that end in 7 or 8."""

        async def get(self, request: GetRequest, *, call: Call = NO_LIMIT) -> Rows:
            assert request.ids is not None
            there = [id_ for id_ in request.ids.tolist() if id_[-1] in "78"]
            return Rows(ids=strings(*there), metadata=[id_.encode() for id_ in there])

    shards = [Some(shard, 3).with_collection() for shard in range(3)]
    for shard in shards:
        entry = shard.entries["words"]
        named = replace(entry.config, id_type=IdType.STRING)
        shard.entries["words"] = replace(entry, config=named)
    router = await Router.connect(shards)
    rows = await router.get(GetRequest(collection="words", ids=ids))
    assert rows.ids.tolist() == [id_ for id_ in ids.tolist() if id_[-1] in "78"]
    assert rows.metadata == [id_.encode() for id_ in rows.ids.tolist()]


async def test_nothing_of_a_write_that_fails_goes_on_after_it(children: list[FakeShard]) -> None:
    written: list[int] = []

    class Slow(FakeShard):
        """Takes some turns of the event loop to write."""

        async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
            for _ in range(20):
                await asyncio.sleep(0)
            written.append(self.shard)
            return await super().upsert(request, call=call)

    children[2] = Slow(2, 3).with_collection()
    router = await remembering(children)
    children[0].failure = RowFileCorrupt("bits")
    with pytest.raises(RowFileCorrupt):
        await router.upsert(upsert(np.arange(60)))
    assert written == [2], "else it would write over what its caller writes next"


async def test_the_deadline_travels_with_every_call(children: list[FakeShard]) -> None:
    router = await Router.connect(children)
    call = Call(deadline=-12_345.0)  # long over: nothing is left to be kept
    await router.search(search(), call=call)
    await router.upsert(upsert(np.arange(60)), call=call)
    await router.count(CountRequest(collection="words"), call=call)
    await router.describe("words", call=call)
    for child in children:
        assert {each.deadline for _, _, each in child.calls} == {-12_345.0}


# ---- collections --------------------------------------------------------------------------------


async def test_a_creation_that_reached_only_some_is_completed(children: list[FakeShard]) -> None:
    del children[1].entries["words"], children[2].entries["words"]
    entry, new = await (await Router.connect(children)).create_collection(config_of())
    assert (entry.incarnation, new) == ("first", True)
    assert {child.entries["words"].incarnation for child in children} == {"first"}


async def test_a_creation_that_fails_on_some_can_be_repeated(children: list[FakeShard]) -> None:
    for child in children:
        child.entries.clear()
    router = await Router.connect(children)
    children[2].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.create_collection(config_of())
    children[2].failure = None
    entry, _ = await router.create_collection(config_of())
    assert {child.entries["words"] for child in children} == {entry}


async def test_a_creation_asks_nobody_when_a_child_has_become_unknown_meanwhile(
    children: list[FakeShard],
) -> None:
    for child in children:
        child.entries.clear()
    known = Children(children, Role.ROUTER)
    await known.connect()

    class Forgotten(FakeShard):
        """Becomes unknown while it is asked what it has."""

        async def list_collections(self, *, call: Call = NO_LIMIT) -> Sequence[CollectionEntry]:
            known[2].topology = None
            return []

    known[1].shard = Forgotten(1, 3)
    with pytest.raises(ShardUnavailable):
        await Router(known).create_collection(config_of())
    assert not children[0].asked("create")


async def test_a_name_that_any_child_uses_for_something_else_is_taken(
    children: list[FakeShard],
) -> None:
    children[0].entries.clear()
    other = CollectionEntry(config=config_of(dim=99), incarnation="other")
    children[2].entries["words"] = other
    with pytest.raises(CollectionExists):
        await (await Router.connect(children)).create_collection(config_of())
    assert children[0].entries == {}


async def test_what_a_drop_left_over_is_not_completed_to_a_collection_again(
    children: list[FakeShard],
) -> None:
    del children[0].entries["words"]  # where it is dropped first
    router = await Router.connect(children)
    with pytest.raises(IncarnationMismatch, match="drop it once more"):
        await router.create_collection(config_of())
    await router.drop_collection("words")
    _, new = await router.create_collection(config_of())
    assert new


async def test_leftovers_of_a_half_finished_drop_are_refused_by_a_creation(
    children: list[FakeShard],
) -> None:
    children[2].with_collection(incarnation="second")
    router = await Router.connect(children)
    with pytest.raises(IncarnationMismatch, match="drop it once more"):
        await router.create_collection(config_of())
    await router.drop_collection("words")
    await router.create_collection(config_of())


async def test_who_is_slower_in_creating_the_same_takes_what_is_there(
    children: list[FakeShard],
) -> None:
    for child in children:
        child.entries.clear()

    class Faster(FakeShard):
        """Somebody else creates the collection here just before."""

        async def create_collection(
            self, config: CollectionConfig, *, call: Call = NO_LIMIT
        ) -> tuple[CollectionEntry, bool]:
            if not self.entries:
                self.with_collection(incarnation="theirs")
            return await super().create_collection(config, call=call)

    children[0] = Faster(0, 3)
    entry, _ = await (await Router.connect(children)).create_collection(config_of())
    assert entry.incarnation == "theirs"
    assert {child.entries["words"].incarnation for child in children} == {"theirs"}


async def test_a_drop_that_cannot_begin_where_names_are_decided_drops_nothing(
    children: list[FakeShard],
) -> None:
    router = await Router.connect(children)
    children[0].drop_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.drop_collection("words")
    assert all(child.entries for child in children)


async def test_a_drop_means_the_collection_that_was_there_when_it_was_asked(
    children: list[FakeShard],
) -> None:
    class Later(FakeShard):
        """Drop and creation of others arrive just before."""

        async def drop_collection(self, name: str, *, call: Call = NO_LIMIT) -> None:
            self.with_collection(incarnation="second")
            await super().drop_collection(name, call=call)

    children[2] = Later(2, 3).with_collection()
    await (await Router.connect(children)).drop_collection("words")
    assert [bool(child.entries) for child in children] == [False, False, True]


async def test_a_drop_that_reached_only_some_is_completed(children: list[FakeShard]) -> None:
    router = await Router.connect(children)
    children[1].drop_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.drop_collection("words")
    children[1].drop_failure = None
    assert [bool(child.entries) for child in children] == [False, True, False]
    await router.drop_collection("words")
    assert not any(child.entries for child in children)
    with pytest.raises(CollectionNotFound):
        await router.drop_collection("words")


async def test_collections_of_any_child_are_listed_once(children: list[FakeShard]) -> None:
    children[1].with_collection("another")
    listed = await (await Router.connect(children)).list_collections()
    assert [entry.config.name for entry in listed] == ["another", "words"]


async def test_a_collection_is_looked_up_once_and_its_incarnation_sent_with_every_call(
    children: list[FakeShard],
) -> None:
    router = await Router.connect(children)
    for _ in range(3):
        await router.search(search())
    for child in children:
        assert len(child.asked("list collections")) == 1
        sent = {call.incarnation for name, _, call in child.calls if name == "search"}
        assert sent == {"first"}


async def test_a_router_that_remembers_a_dropped_collection_looks_again(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.with_collection(incarnation="second")
    assert await router.count(CountRequest(collection="words")) == 3
    for child in children:
        child.entries.clear()
    with pytest.raises(CollectionNotFound):
        await router.search(search())
    for child in children:
        child.with_collection(incarnation="third")
    result = await router.search(search())
    assert result.receipt.coverage == 1.0


async def test_a_collection_that_was_created_anew_with_another_dim_is_served_as_it_is_now(
    children: list[FakeShard],
) -> None:
    routers = [await remembering(children) for _ in range(2)]
    for child in children:
        child.entries["words"] = CollectionEntry(config=config_of(dim=16), incarnation="second")
    ids, vectors = np.arange(60), some_vectors(60, dim=16)
    result = await routers[0].upsert(UpsertRequest(collection="words", ids=ids, vectors=vectors))
    assert result.accepted == 60
    for router in routers:
        hits = (await found(router, queries=vectors[:1])).hits
        assert hits.ids.tolist() == [30, 200, 3, 10, 1, 100]
        with pytest.raises(DimensionMismatch):
            await found(router)
    for child in children:
        sent = {call.incarnation for name, _, call in child.calls if name in ("upsert", "search")}
        assert sent == {"second"}


async def test_a_bad_request_is_refused_by_a_router_that_remembers_the_collection(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    for _ in range(2):
        with pytest.raises(DimensionMismatch):
            await found(router, queries=some_vectors(1, dim=16))
    assert not any(child.asked("search") for child in children)
    assert len((await found(router)).hits.ids) == 6


async def test_a_caller_that_means_another_incarnation_is_not_helped_on(
    children: list[FakeShard],
) -> None:
    router = await remembering(children)
    with pytest.raises(IncarnationMismatch):
        await router.search(search(), call=Call(incarnation="older"))
    await router.search(search(), call=Call(incarnation="first"))


# ---- the tree -----------------------------------------------------------------------------------


async def test_children_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(PlacementMismatch):
        await Router.connect([FakeShard(0, 2), FakeShard(0, 2)])


async def test_rows_of_a_slot_that_no_child_owns_have_no_shard(children: list[FakeShard]) -> None:
    router = await Router.connect(children[:2], partial=True)
    with pytest.raises(ShardUnavailable, match="no known shard owns slot"):
        await router.upsert(upsert(np.arange(60)))


async def test_closing_closes_the_children(children: list[FakeShard]) -> None:
    await (await Router.connect(children)).close()
    assert all(child.closed for child in children)
