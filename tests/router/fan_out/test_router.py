"""The router over fakes: what it asks of whom, and what it makes of their answers and failures.

What it shares with every other shard is in tests/conformance.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import numpy as np
import pytest

from tests.router.fan_out.samples import remembering, search, upsert
from tests.router.model_shard import FaultyShard
from tests.shard.samples import int64s, some_vectors, strings
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    IncarnationMismatch,
    Overloaded,
    PlacementMismatch,
    RowFileCorrupt,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    IdType,
    Rows,
    TrainRequest,
    UpsertRequest,
    UpsertResult,
)

# ---- writes and reads ---------------------------------------------------------------------------


async def test_each_row_goes_to_the_shard_of_its_slot_and_errors_come_back_by_its_index(
    children: list[FaultyShard],
) -> None:
    for child in children:
        child.row_errors = [2]
    ids = np.random.default_rng(5).permutation(60)
    result = await (await Router.connect(children)).upsert(upsert(ids))
    assert result.accepted == 57
    assert result.token.sequences == {0: 2, 1: 12, 2: 22}
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


async def test_rows_of_one_shard_trouble_no_other(children: list[FaultyShard]) -> None:
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
    children: list[FaultyShard], failure: VectorShardError, code: int
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
    assert result.token.sequences == {0: 2, 2: 22}


async def test_rows_of_a_missing_leaf_are_errors_through_any_number_of_routers(
    children: list[FaultyShard],
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


async def test_a_write_that_no_child_has_done_fails(children: list[FaultyShard]) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = ShardUnavailable(f"shard {child.shard} has gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await router.upsert(upsert(np.arange(60)))


async def test_a_failure_that_is_not_of_its_rows_alone_is_the_whole_writes(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    children[1].failure = RowFileCorrupt("bits")
    with pytest.raises(RowFileCorrupt):
        await router.upsert(upsert(np.arange(60)))


async def test_a_deletion_that_reached_only_some_fails_and_may_be_repeated(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    children[1].failure = ShardUnavailable("gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await router.delete(DeleteRequest(collection="words", ids=np.arange(60)))


async def test_counts_and_deletions_are_summed_and_gets_are_put_in_the_order_asked(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    ids = np.random.default_rng(5).permutation(60)
    assert await router.count(CountRequest(collection="words")) == 0 + 1 + 2
    await router.upsert(upsert(np.arange(60)))
    assert await router.count(CountRequest(collection="words", ids=ids)) == 60
    assert (await router.delete(DeleteRequest(collection="words", ids=ids[:30]))).deleted == 30
    assert await router.count(CountRequest(collection="words", ids=ids)) == 30
    rows = await router.get(GetRequest(collection="words", ids=ids))
    assert rows.ids.tolist() == ids[30:].tolist()


async def test_descriptions_are_gathered_by_shard(children: list[FaultyShard]) -> None:
    below = [
        await Router.connect(children[1:], partial=True),
        await Router.connect(children[:1], partial=True),
    ]
    router = await Router.connect(below)
    description = await router.describe("words")
    assert [shard.shard for shard in description.shards] == [0, 1, 2]
    assert description.ledger.accepted == 0 + 1 + 2
    assert description.ledger.adds_up
    trained = await router.train(TrainRequest(collection="words"))
    assert [shard.shard for shard in trained] == [0, 1, 2]


async def test_a_router_over_one_name_of_two_incarnations_describes_and_trains_neither(
    children: list[FaultyShard],
) -> None:
    router = await Router.connect(children)
    children[2].with_collection(incarnation="second")
    with pytest.raises(IncarnationMismatch):
        await router.describe("words")
    with pytest.raises(IncarnationMismatch):
        await router.train(TrainRequest(collection="words"))


class Loses(FaultyShard):
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
    children: list[FaultyShard], refusal: VectorShardError, refused: int
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
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    for child in children:
        child.failure = Overloaded("full")
    with pytest.raises(Overloaded, match="full"):
        await router.upsert(upsert(np.arange(60)))


async def test_a_delete_that_one_shard_is_too_full_for_says_so(
    children: list[FaultyShard],
) -> None:
    router = await remembering(children)
    children[1].failure = full = Overloaded("the disk is full")
    full.retry_delay_s = 5.0
    with pytest.raises(Overloaded, match=r"may be incomplete, .*: the disk is full") as refused:
        await router.delete(DeleteRequest(collection="words", ids=np.arange(60)))
    assert refused.value.retry_delay_s == 5.0


async def test_strings_that_are_missing_are_left_out_of_what_was_asked_in_its_order() -> None:
    ids = strings(*(str(number) for number in np.random.default_rng(5).permutation(60)))

    class Some(FaultyShard):
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


async def test_nothing_of_a_write_that_fails_goes_on_after_it(children: list[FaultyShard]) -> None:
    written: list[int] = []

    class Slow(FaultyShard):
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


async def test_the_deadline_travels_with_every_call(children: list[FaultyShard]) -> None:
    router = await Router.connect(children)
    call = Call(deadline=-12_345.0)  # long over: nothing is left to be kept
    await router.search(search(), call=call)
    await router.upsert(upsert(np.arange(60)), call=call)
    await router.count(CountRequest(collection="words"), call=call)
    await router.describe("words", call=call)
    for child in children:
        assert {each.deadline for _, _, each in child.calls} == {-12_345.0}


# ---- the tree -----------------------------------------------------------------------------------


async def test_children_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(PlacementMismatch):
        await Router.connect([FaultyShard(0, 2), FaultyShard(0, 2)])


async def test_rows_of_a_slot_that_no_child_owns_have_no_shard(children: list[FaultyShard]) -> None:
    router = await Router.connect(children[:2], partial=True)
    with pytest.raises(ShardUnavailable, match="no known shard owns slot"):
        await router.upsert(upsert(np.arange(60)))


async def test_closing_closes_the_children(children: list[FaultyShard]) -> None:
    await (await Router.connect(children)).close()
    assert all(child.closed for child in children)
