"""The children of a router that starts before them, loses them, and mistakes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import structlog.testing

from tests.router.model_shard import FaultyShard
from tests.shard.samples import DEADLINE_S, some_vectors
from vectorshard.router.fan_out.children import LEARNING_TIMEOUT_S, Children
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import SLOTS_TOTAL
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.errors import PlacementMismatch, ShardUnavailable
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.rows.slots import slots_of
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CountRequest,
    DeleteRequest,
    GetRequest,
    Int64Array,
    ListRequest,
    Role,
    SearchRequest,
    UpdateRequest,
    UpsertRequest,
    UpsertResult,
)

NAMES = ["first:1", "second:2", "third:3"]
COUNT = CountRequest(collection="words")
ROWS = ListRequest(collection="words")
SEARCH = SearchRequest(collection="words", queries=some_vectors(1), k=10)
MANY_IDS = np.arange(60)


class Sleeps:
    """Stands in for waiting: notes how long, and lasts until the test ends it."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self._began = asyncio.Semaphore(0)
        self._ends: asyncio.Queue[None] = asyncio.Queue()

    async def __call__(self, wait_s: float) -> None:
        """Sleep."""
        self.asked_s.append(wait_s)
        self._began.release()
        await self._ends.get()

    async def end_one(self) -> None:
        """Let the sleep that lasts end, and return when the next one begins or none is left."""
        await asyncio.wait_for(self._began.acquire(), DEADLINE_S)
        self._ends.put_nowait(None)
        for _ in range(20):  # turns of the event loop: nothing that runs there waits for anything
            await asyncio.sleep(0)

    def last(self) -> bool:
        """Whether somebody sleeps."""
        return not self._began.locked()


def shards_of(number: int = 3) -> list[FaultyShard]:
    """Return all shards of a placement, with the collection."""
    return [
        FaultyShard(shard, number, hits=[[(shard, float(shard))]]).with_collection()
        for shard in range(number)
    ]


def ids_of_shard(shard: int, shards_total: int) -> Int64Array:
    """Return ids that live on a shard."""
    ids: Int64Array = MANY_IDS[slots_of(MANY_IDS) * shards_total // SLOTS_TOTAL == shard]
    return ids


def upsert(ids: Int64Array) -> UpsertRequest:
    """Return a write of these ids."""
    return UpsertRequest(collection="words", ids=ids, vectors=some_vectors(len(ids)))


async def connected(
    shards: Sequence[Shard], sleeps: Sleeps | None = None, *, partial: bool = False
) -> tuple[Children, Router]:
    """Return the children of a router, and the router, which knows the collection if it can."""
    children = Children(
        shards,
        Role.ROUTER,
        names=NAMES[: len(shards)],
        partial=partial,
        sleep=sleeps or Sleeps(),
    )
    await children.connect()
    router = Router(children)
    if children.topology.shards and not children.placement.missing_shards:
        await router.count(COUNT)
    return children, router


# ---- a router that starts before its shards -----------------------------------------------------


async def test_a_router_starts_while_a_child_is_missing_and_finds_it_later() -> None:
    shards, sleeps = shards_of(), Sleeps()
    shards[1].silence = ShardUnavailable("second:2: refused")
    children, router = await connected(shards, sleeps)
    assert [child.number for child in children.known()] == [0, 2]
    with pytest.raises(ShardUnavailable, match="second:2: refused"):
        await router.count(COUNT)
    await sleeps.end_one()
    await sleeps.end_one()
    shards[1].silence = None
    await sleeps.end_one()
    assert children.missing() is None
    assert not sleeps.last(), "nobody is asked any more once all are known"
    assert await router.count(COUNT) == 0 + 1 + 2
    assert len((await router.topology()).shards) == 3
    await router.close()


async def test_a_router_starts_though_nobody_is_there() -> None:
    shards = shards_of(2)
    for shard in shards:
        shard.silence = ShardUnavailable("not yet")
    children, router = await connected(shards)
    topology = await router.topology()
    assert (topology.shards, topology.shards_total) == ((), 0)
    for ask in (router.count(COUNT), router.search(SEARCH), router.upsert(upsert(MANY_IDS))):
        with pytest.raises(ShardUnavailable, match="not yet"):
            await ask
    assert not any(shard.calls for shard in shards)
    await children.close()


async def test_only_unknown_children_are_asked_in_the_background_at_most_a_second_apart() -> None:
    shards, sleeps = shards_of(), Sleeps()
    shards[1].silence = ShardUnavailable("refused")
    children, _ = await connected(shards, sleeps)
    for _ in range(12):
        await sleeps.end_one()
    assert [shard.topologies_told for shard in shards] == [1, 13, 1]
    assert min(sleeps.asked_s) >= 0.1
    assert max(sleeps.asked_s) <= 1.1
    assert sleeps.asked_s[-1] >= 1.0
    await children.close()


async def test_children_that_contradict_each_other_are_refused_at_the_start_and_closed() -> None:
    shards = [FaultyShard(0, 2), FaultyShard(0, 2)]
    with pytest.raises(
        PlacementMismatch, match=r"second:2: .*shard 0 is reached through two downstream"
    ):
        await connected(shards)
    assert all(shard.closed for shard in shards)


async def test_a_child_gets_two_seconds_to_say_who_it_is_whoever_asks() -> None:
    asked: list[Call] = []

    class Noting(FaultyShard):
        """Notes how long it is given."""

        async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
            asked.append(call)
            return await super().topology(call=call)

    children, _ = await connected([Noting(0, 1).with_collection()])
    await children.learn(Call(deadline=time.monotonic() + 60))
    for call in asked:
        assert call.deadline == pytest.approx(time.monotonic() + LEARNING_TIMEOUT_S, abs=1.5)


# ---- a child that is not who it was -------------------------------------------------------------


async def test_a_child_is_asked_under_the_fingerprint_of_what_it_told() -> None:
    shards = shards_of()
    children, router = await connected(shards)
    await router.search(SEARCH)
    for child, shard in zip(children.all(), shards, strict=True):
        topology = await shard.topology()
        assert child.fingerprint == fingerprint_of(topology)
        assert {call.placement for _, _, call in shard.calls} == {child.fingerprint}


async def test_rows_of_a_child_that_becomes_unknown_while_it_is_asked_name_its_shard() -> None:
    class Leaving(FaultyShard):
        """Belongs to another cluster once it is asked to write, and the router learns of that."""

        async def upsert(self, request: UpsertRequest, *, call: Call = NO_LIMIT) -> UpsertResult:
            self.cluster = "another"
            await children.learn(NO_LIMIT)
            raise ShardUnavailable("gone")

    shards = shards_of()
    shards[1] = Leaving(1, 3).with_collection()
    children, router = await connected(shards)
    result = await router.upsert(upsert(MANY_IDS))
    assert [child.number for child in children.known()] == [0, 2]
    assert {error.message for error in result.errors} == {"shard 1: ShardUnavailable: gone"}
    await router.close()


UPDATE = UpdateRequest(collection="words", target_recall=0.9)

EVERY_CALL: dict[str, Callable[[Router], Awaitable[object]]] = {
    "count": lambda router: router.count(COUNT),
    "search": lambda router: router.search(SEARCH),
    "lenient search": lambda router: router.search(replace(SEARCH, min_coverage=0.1)),
    "get": lambda router: router.get(GetRequest(collection="words", ids=MANY_IDS)),
    "upsert": lambda router: router.upsert(upsert(MANY_IDS)),
    "list collections": lambda router: router.list_collections(),
    "describe": lambda router: router.describe("words"),
    "update": lambda router: router.update_collection(UPDATE),
    "drop": lambda router: router.drop_collection("words"),
}


@pytest.mark.parametrize("ask", EVERY_CALL.values(), ids=EVERY_CALL)
async def test_a_call_that_a_child_refuses_as_meant_for_another_is_made_once_more_after_learning(
    ask: Callable[[Router], Awaitable[object]],
) -> None:
    shards = shards_of()
    children, router = await connected(shards)
    for shard in shards:
        shard.cluster = "made anew"
    await ask(router)
    assert children.topology.cluster == "made anew"
    assert children.missing() is None


async def test_whoever_is_refused_while_another_has_learned_already_asks_once_more_too() -> None:
    shards = shards_of()
    children, router = await connected(shards)
    refused, learned = asyncio.Event(), asyncio.Event()

    class Slow(FaultyShard):
        """Refuses only after everything has been learned by somebody else."""

        async def count(self, request: CountRequest, *, call: Call = NO_LIMIT) -> int:
            refused.set()
            await learned.wait()
            return await super().count(request, call=call)

    slow = Slow(0, 3).with_collection()
    children[0].shard = slow
    waiting = asyncio.ensure_future(router.count(COUNT))
    await refused.wait()
    for shard in (slow, *shards):
        shard.cluster = "made anew"
    await children.learn(NO_LIMIT)
    learned.set()
    assert await waiting == 0 + 1 + 2


async def test_a_child_that_comes_back_as_another_shard_is_unknown_and_named_with_its_reason() -> (
    None
):
    shards, sleeps = shards_of(), Sleeps()
    children, router = await connected(shards, sleeps)
    shards[1].shard = 2
    for _ in range(2):
        with pytest.raises(PlacementMismatch, match=r"second:2: .*shard 2"):
            await router.count(COUNT)
    assert [child.number for child in children.known()] == [0, 2]
    asked = len(shards[1].calls)
    result = await router.search(replace(SEARCH, min_coverage=0.5))
    assert [shard.shard for shard in result.receipt.shards] == [0, 1, 2]
    assert "second:2" in result.receipt.shards[1].missing_reason
    assert len(shards[1].calls) == asked, "nothing is sent to an unknown child"
    shards[1].shard = 1
    await sleeps.end_one()
    assert await router.count(COUNT) == 0 + 1 + 2
    await router.close()


async def test_a_child_that_is_another_is_looked_up_anew_and_no_other_child_is() -> None:
    shards, sleeps = shards_of(), Sleeps()
    children, _ = await connected(shards, sleeps)
    shards[1].shard = 2
    await children.learn(NO_LIMIT)
    assert [shard.resolutions for shard in shards] == [0, 0, 0], "nobody knew"
    await sleeps.end_one()
    assert [shard.resolutions for shard in shards] == [0, 1, 0]
    shards[1].silence = ShardUnavailable("hangs")
    await sleeps.end_one()
    await sleeps.end_one()
    assert [shard.resolutions for shard in shards] == [0, 2, 0], "it is gone, not another"
    await children.close()


async def test_a_router_below_that_knows_no_shard_any_more_is_unknown() -> None:
    shards = shards_of()

    class Bare(FaultyShard):
        """A router that was started anew, before its shards."""

        async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
            return replace(await super().topology(), role=Role.ROUTER, shards_total=0, shards=())

    children, router = await connected(shards)
    children[1].shard = Bare(1, 3)
    await children.learn(NO_LIMIT)
    assert [child.number for child in children.known()] == [0, 2]
    with pytest.raises(ShardUnavailable, match="second:2: it reaches no shard yet"):
        await router.count(COUNT)
    await children.close()


async def test_learning_keeps_what_a_silent_child_was() -> None:
    shards = shards_of()
    children, router = await connected(shards)
    shards[1].silence = ShardUnavailable("hangs")
    await children.learn(NO_LIMIT)
    assert children.missing() is None
    assert await router.count(COUNT) == 0 + 1 + 2
    assert len((await router.topology()).shards) == 3


async def test_a_failure_of_learning_that_nobody_expected_is_not_hidden() -> None:
    shards = shards_of()
    children, _ = await connected(shards)
    shards[1].silence = RuntimeError("bug")  # type: ignore[assignment]  # no error of ours
    with pytest.raises(RuntimeError, match="bug"):
        await children.learn(NO_LIMIT)


async def test_all_who_are_refused_at_once_learn_together() -> None:
    shards = shards_of()
    children, _ = await connected(shards)
    before = shards[0].topologies_told
    await asyncio.gather(*(children.learn(NO_LIMIT) for _ in range(200)))
    assert shards[0].topologies_told == before + 1
    await children.learn(NO_LIMIT)
    assert shards[0].topologies_told == before + 2


async def test_a_caller_who_leaves_or_runs_out_of_time_does_not_end_what_others_learn() -> None:
    shards = shards_of()
    children, _ = await connected(shards)
    told = asyncio.Event()

    class Slow(FaultyShard):
        """Takes its time to say who it is."""

        async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
            await told.wait()
            return await super().topology(call=call)

    children[0].shard = Slow(0, 3)
    leaving, staying = (asyncio.ensure_future(children.learn(NO_LIMIT)) for _ in range(2))
    await asyncio.wait_for(children.learn(Call(deadline=time.monotonic())), DEADLINE_S)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not staying.done()
    told.set()
    await asyncio.wait_for(staying, DEADLINE_S)


async def test_the_log_names_the_address_of_a_downstream_shard_and_the_shards_behind_it() -> None:
    shards, sleeps = shards_of(), Sleeps()
    shards[1].silence = ShardUnavailable("refused")
    with structlog.testing.capture_logs() as logged:
        children, _ = await connected(shards, sleeps)
        shards[1].silence = None
        await sleeps.end_one()
    told = {(entry["event"], entry["target"], str(entry.get("leaf_shards"))) for entry in logged}
    assert told == {
        *(("downstream shard known", NAMES[shard], f"[{shard}]") for shard in range(3)),
        ("downstream shard unknown", NAMES[1], "None"),
    }
    assert not [entry for entry in logged if "shard" in entry]
    await children.close()


async def test_learning_in_the_background_goes_on_after_a_failure_that_nobody_expected() -> None:
    shards, sleeps = shards_of(), Sleeps()
    shards[1].silence = ShardUnavailable("refused")
    children, _ = await connected(shards, sleeps)
    shards[1].silence = RuntimeError("bug")  # type: ignore[assignment]  # no error of ours
    with structlog.testing.capture_logs() as logged:
        await sleeps.end_one()
    assert [entry["event"] for entry in logged] == ["learning the placement failed"]
    shards[1].silence = None
    await sleeps.end_one()
    assert children.missing() is None
    await children.close()


# ---- what is not asked, and what is said of it --------------------------------------------------


async def test_a_write_to_an_unknown_child_is_refused_before_any_child_is_asked() -> None:
    shards = shards_of()
    shards[1].silence = ShardUnavailable("second:2: refused")
    _, router = await connected(shards)
    for ask in (
        router.upsert(upsert(MANY_IDS)),
        router.delete(DeleteRequest(collection="words", ids=MANY_IDS)),
        router.get(GetRequest(collection="words", ids=MANY_IDS)),
        router.list_collections(),
        router.drop_collection("words"),
    ):
        with pytest.raises(ShardUnavailable, match="second:2: refused"):
            await ask
    methods = {name for shard in shards for name, _, _ in shard.calls}
    assert methods == {"list collections"}, "only looking the collection up"
    await router.close()


async def test_a_write_that_concerns_known_children_only_is_served() -> None:
    shards = shards_of()
    shards[1].silence = ShardUnavailable("refused")
    _, router = await connected(shards)
    ids = np.concatenate([ids_of_shard(0, 3), ids_of_shard(2, 3)])
    assert (await router.upsert(upsert(ids))).accepted == len(ids)
    assert not shards[1].calls
    await router.close()


async def test_a_receipt_names_the_missing_shards_though_they_were_never_seen() -> None:
    shards = shards_of()
    for shard in shards[1:]:
        shard.silence = ShardUnavailable("refused")
    _, router = await connected(shards)
    receipt = (await router.search(replace(SEARCH, min_coverage=0.3))).receipt
    assert (receipt.shards_total, receipt.shards_answered) == (3, 1)
    assert [shard.shard for shard in receipt.shards] == [0, 1, 2]
    assert ["refused" in shard.missing_reason for shard in receipt.shards] == [False, True, True]
    assert receipt.coverage == pytest.approx(1 / 3, abs=1e-3)
    with pytest.raises(
        ShardUnavailable, match=r"coverage 0\.333 is below min_coverage 0\.500.*shard 2"
    ):
        await router.search(replace(SEARCH, min_coverage=0.5))
    with pytest.raises(ShardUnavailable, match="refused"):
        await router.search(SEARCH)
    await router.close()


@pytest.mark.parametrize("order", [1, -1])
async def test_below_another_router_each_shard_is_named_once_and_by_who_reaches_it(
    order: int,
) -> None:
    shards = shards_of(4)
    shards[1].silence = ShardUnavailable("second:2: refused")
    lower = [(await connected(shards[first : first + 2], partial=True))[1] for first in (0, 2)]
    children, router = await connected(lower[::order])
    await router.search(replace(SEARCH, min_coverage=0.5))
    shards[3].failure = ShardUnavailable("gone fishing")
    receipt = (await router.search(replace(SEARCH, min_coverage=0.5))).receipt
    assert [shard.shard for shard in receipt.shards] == [0, 1, 2, 3]
    assert "refused" in receipt.shards[1].missing_reason
    assert receipt.shards[2].missing_reason == ""
    assert "gone fishing" in receipt.shards[3].missing_reason
    assert receipt.coverage == pytest.approx(1 / 2, abs=1e-3)
    with pytest.raises(ShardUnavailable, match="refused"):
        await router.search(SEARCH)
    await children.close()


async def test_a_shard_that_no_child_leads_to_is_named() -> None:
    shards = shards_of()
    lower = [(await connected([shards[shard]], partial=True))[1] for shard in (0, 2)]
    _, router = await connected(lower)
    receipt = (await router.search(replace(SEARCH, min_coverage=0.5))).receipt
    assert [shard.shard for shard in receipt.shards] == [0, 1, 2]
    assert "no downstream shard reaches it" in receipt.shards[1].missing_reason
    with pytest.raises(ShardUnavailable, match=r"shard 1: .*no downstream shard reaches it"):
        await router.search(SEARCH)
    for short in (router.count(COUNT), router.describe("words"), router.list_rows(ROWS)):
        with pytest.raises(ShardUnavailable, match="no downstream shard reaches shard 1 yet"):
            await short
    await router.close()


async def test_shards_that_a_router_below_finds_later_are_learned() -> None:
    shards, below, above = shards_of(4), Sleeps(), Sleeps()
    shards[1].silence = ShardUnavailable("refused")
    lower = [
        (await connected(shards[first : first + 2], below, partial=True))[1] for first in (0, 2)
    ]
    children, router = await connected(lower, above)
    late = upsert(ids_of_shard(1, 4))
    with pytest.raises(ShardUnavailable, match="no known shard owns slot"):
        await router.upsert(late)
    shards[1].silence = None
    await below.end_one()
    await above.end_one()
    assert children.placement.missing_shards == []
    assert (await router.upsert(late)).accepted == len(late.ids)
    await router.close()


@pytest.mark.parametrize("order", [1, -1])
async def test_names_are_decided_and_rows_listed_by_the_first_shard_whatever_the_children_s_order(
    order: int,
) -> None:
    shards = shards_of(4)
    lower = [(await connected(shards[first : first + 2], partial=True))[1] for first in (0, 2)]
    children, router = await connected(lower[::order])
    assert [child.first_shard for child in children.in_order()] == [0, 2]
    shards[0].failure = ShardUnavailable("gone fishing")
    with pytest.raises(ShardUnavailable, match="gone fishing"):
        await router.list_rows(ROWS)
    assert [len(shard.asked("list")) for shard in shards] == [1, 0, 0, 0]
    await router.close()


async def test_a_part_of_the_placement_that_misses_a_child_covers_less_than_all() -> None:
    shards = shards_of()
    shards[1].silence = ShardUnavailable("refused")
    children, router = await connected(shards[:2], partial=True)
    receipt = (await router.search(replace(SEARCH, min_coverage=0.2))).receipt
    assert receipt.coverage == pytest.approx(1 / 3, abs=1e-3)
    with pytest.raises(ShardUnavailable, match="refused"):
        await router.search(replace(SEARCH, min_coverage=0.9))
    await children.close()


async def test_a_part_of_the_placement_misses_nothing_when_all_its_children_are_there() -> None:
    _, router = await connected(shards_of(4)[1:3], partial=True)
    receipt = (await router.search(SEARCH)).receipt
    assert [shard.shard for shard in receipt.shards] == [1, 2]
    assert receipt.coverage == 1.0


async def test_a_search_when_every_child_has_become_unknown_says_why() -> None:
    shards = shards_of(2)
    children, router = await connected(shards)
    shards[0].shard, shards[1].shard = 1, 0
    for _ in range(2):
        with pytest.raises(PlacementMismatch, match=r"first:1: .*; second:2: "):
            await router.search(replace(SEARCH, min_coverage=0.1))
    assert children.known() == []
    await children.close()


async def test_a_delete_that_children_share_is_not_repeated() -> None:
    shards = shards_of()
    _, router = await connected(shards)
    shards[1].cluster = shards[2].cluster = "made anew"
    request = DeleteRequest(collection="words", ids=MANY_IDS)
    with pytest.raises(ShardUnavailable, match="repeat it"):
        await router.delete(request)
    assert len(shards[0].asked("delete")) == 1, "its ids are gone: a second count would miss them"


async def test_an_upsert_that_is_done_in_part_is_not_repeated() -> None:
    shards = shards_of()
    _, router = await connected(shards)
    shards[1].cluster = shards[2].cluster = "made anew"
    with pytest.raises(ShardUnavailable, match="repeat it"):
        await router.upsert(upsert(MANY_IDS))
    assert len(shards[0].asked("upsert")) == 1, "somebody may have written over it meanwhile"


async def test_an_upsert_that_is_done_in_part_is_not_repeated_in_another_placement() -> None:
    shards = shards_of()
    _, router = await connected(shards)
    write = shards[0].upsert

    async def write_and_change(*args: object, **call: object) -> object:
        result = await write(*args, **call)  # type: ignore[arg-type]
        shards[0].cluster = "made anew"
        return result

    shards[0].upsert = write_and_change  # type: ignore[assignment,method-assign]
    shards[1].cluster = shards[2].cluster = "made anew"
    with pytest.raises(ShardUnavailable, match="repeat it"):
        await router.upsert(upsert(MANY_IDS))
    assert [len(shard.asked("upsert")) for shard in shards] == [1, 1, 1]


async def test_a_delete_of_one_child_is_made_once_more() -> None:
    shards = shards_of()
    _, router = await connected(shards)
    ids = ids_of_shard(1, 3)
    await router.upsert(upsert(ids))
    for shard in shards:
        shard.cluster = "made anew"
    result = await router.delete(DeleteRequest(collection="words", ids=ids))
    assert result.deleted == len(ids)
    assert len(shards[1].asked("delete")) == 2


async def test_a_shared_delete_that_is_refused_by_all_is_made_once_more() -> None:
    shards = shards_of()
    _, router = await connected(shards)
    await router.upsert(upsert(MANY_IDS))
    for shard in shards:
        shard.cluster = "made anew"
    request = DeleteRequest(collection="words", ids=MANY_IDS)
    assert (await router.delete(request)).deleted == len(MANY_IDS)
    assert [len(shard.asked("delete")) for shard in shards] == [2, 2, 2]


# ---- the end ------------------------------------------------------------------------------------


async def test_closing_ends_the_background_task_and_closes_every_child() -> None:
    shards, sleeps = shards_of(), Sleeps()
    shards[1].silence = ShardUnavailable("refused")
    children, _ = await connected(shards, sleeps)
    await sleeps.end_one()
    before = asyncio.all_tasks()
    await children.close()
    assert len(before - asyncio.all_tasks()) == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert all(shard.closed for shard in shards)
