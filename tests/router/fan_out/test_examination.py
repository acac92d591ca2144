"""A shard that lost its disk is noticed by what the others know, and served as missing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NoReturn

import numpy as np
import pytest
import structlog.testing

from tests.router.fan_out.examined import (
    COUNT,
    EACH,
    HARMS,
    IDS,
    Ticks,
    filled,
    incarnation_of,
    require_missing,
    restarted,
    rounds,
    router_over,
)
from tests.router.fan_out.samples import found, upsert
from tests.router.fan_out.witnessed_shard import WitnessedShard
from tests.shard.samples import DEADLINE_S, config_of
from vectorshard.router.fan_out.examination import WITNESS_INTERVAL_S
from vectorshard.router.fan_out.memory import ROUND_S
from vectorshard.router.fan_out.router import Router
from vectorshard.router.fan_out.verdicts import Kind
from vectorshard.shard.errors import (
    CollectionNotFound,
    ShardMissing,
    ShardUnavailable,
)
from vectorshard.shard.membership import Stage
from vectorshard.shard.server.telemetry import LedgerCollector, ProblemsCollector
from vectorshard.shard.types import (
    NO_LIMIT,
    Call,
    CollectionEntry,
    DeleteRequest,
    RowErrorCode,
    Token,
)


@pytest.fixture
async def shards() -> list[WitnessedShard]:
    return [WitnessedShard(shard, 2) for shard in range(2)]


@pytest.fixture
async def router(shards: list[WitnessedShard]) -> Router:
    return await filled(shards)


# ---- creates -------------------------------------------------------------------------------------


async def test_a_create_is_settled_in_two_rounds_with_all_members(
    shards: list[WitnessedShard], router: Router
) -> None:
    for shard in shards:
        assert [each.stage for each in shard.settled] == [Stage.KNOWN, Stage.COMPLETE]
        members = shard.records.members[incarnation_of(shard)]
        assert [each.directory for each in members] == [each.records.directory for each in shards]
    before = [len(shard.settled) for shard in shards]
    _, new = await router.create_collection(config_of())
    assert not new
    assert [len(shard.settled) for shard in shards] == before


@pytest.mark.parametrize("stage", [Stage.KNOWN, Stage.COMPLETE])
async def test_a_create_that_ended_between_two_rounds_is_finished_by_the_next_router(
    shards: list[WitnessedShard], stage: Stage
) -> None:
    router = await router_over(shards)
    settle = shards[1].settle

    async def settle_until(request: object, **call: object) -> None:
        if request.stage is stage:  # type: ignore[attr-defined]
            raise ShardUnavailable("gone")
        await settle(request, **call)  # type: ignore[arg-type]

    shards[1].settle = settle_until  # type: ignore[method-assign]
    with pytest.raises(ShardUnavailable):
        await router.create_collection(config_of())
    shards[1].settle = settle  # type: ignore[method-assign]
    await rounds(await router_over(shards), number=3)
    assert {each.records.stages[incarnation_of(each)] for each in shards} == {Stage.COMPLETE}


async def test_a_create_that_reached_one_shard_is_finished_by_the_next_router(
    shards: list[WitnessedShard],
) -> None:
    router = await router_over(shards)
    create = shards[1].create_collection

    async def fail(*args: object, **call: object) -> NoReturn:
        raise ShardUnavailable("gone")

    shards[1].create_collection = fail  # type: ignore[method-assign]
    with pytest.raises(ShardUnavailable):
        await router.create_collection(config_of())
    shards[1].create_collection = create  # type: ignore[method-assign]
    other = await router_over(shards)
    await rounds(other, number=3)
    await other.upsert(upsert(IDS))
    assert await other.count(COUNT) == len(IDS)


async def test_an_old_shard_is_created_on_as_it_always_was(shards: list[WitnessedShard]) -> None:
    shards[1].old = True
    router = await router_over(shards)
    await router.create_collection(config_of())
    assert not shards[0].settled
    await router.upsert(upsert(IDS))
    await rounds(router)
    assert await router.count(COUNT) == len(IDS)


async def test_members_are_written_once_all_shards_are_new(shards: list[WitnessedShard]) -> None:
    for shard in shards:
        shard.old = True
    old_router = await router_over(shards)
    await old_router.create_collection(config_of())
    await old_router.upsert(upsert(IDS))
    for shard in shards:
        shard.old = False
    router = await router_over(shards)
    await rounds(router, number=3)
    assert all(len(each.records.members[incarnation_of(each)]) == 2 for each in shards)
    assert await router.count(COUNT) == len(IDS)


# ---- what is lost --------------------------------------------------------------------------------


@HARMS
@EACH
async def test_what_is_lost_is_missing_for_a_running_router_and_a_new_one(
    shards: list[WitnessedShard],
    router: Router,
    lost: int,
    harm: Callable[[WitnessedShard], None],
) -> None:
    harm(shards[lost])
    await require_missing(router, lost)
    await require_missing(await router_over(shards), lost)


@EACH
async def test_an_older_copy_is_missing(
    shards: list[WitnessedShard], router: Router, lost: int
) -> None:
    copied = shards[lost].copied()
    await router.upsert(upsert(IDS + 1_000))
    await rounds(router)
    shards[lost].put_back(copied)
    await require_missing(router, lost)
    await require_missing(await router_over(shards), lost)


@EACH
@pytest.mark.parametrize("deletes", [False, True])
async def test_a_router_remembers_what_it_acknowledged_before_a_witness_does(
    shards: list[WitnessedShard], router: Router, lost: int, deletes: bool
) -> None:
    copied = shards[lost].copied()
    if deletes:
        await router.delete(DeleteRequest(collection="words", ids=IDS))
    else:
        await router.upsert(upsert(IDS + 1_000))
    shards[lost].put_back(copied)
    with pytest.raises(ShardMissing, match=f"shard {lost}: it is older than what others remember"):
        await found(router)


async def test_a_shard_that_was_only_restarted_is_served(
    shards: list[WitnessedShard], router: Router
) -> None:
    for shard in shards:
        shard.restart()
        assert await router.count(COUNT) == len(IDS)
        assert (await router.upsert(upsert(IDS))).errors == ()
    assert await router.problems() == []


async def test_the_log_names_what_is_missing_once_and_no_shard_that_is_only_restarted(
    shards: list[WitnessedShard], router: Router
) -> None:
    with structlog.testing.capture_logs() as logged:
        shards[1].restart()
        await restarted(router)
        await rounds(await router_over(shards), number=3)
        shards[1].failure = ShardUnavailable("gone")
        await rounds(router)
        shards[1].failure = None
        await rounds(router)
    assert [entry for entry in logged if "missing" in entry["event"]] == []
    copied = shards[1].copied()
    shards[1].wipe()
    with structlog.testing.capture_logs() as logged:
        for _ in range(2):
            await restarted(router)
            await rounds(router)
            shards[1].restart()
        shards[1].put_back(copied)
        await restarted(router)
        await rounds(router)
    told = [(entry["event"], entry["shard"]) for entry in logged if "missing" in entry["event"]]
    assert told == [("shard missing", 1), ("shard no longer missing", 1)]


async def test_rows_of_others_are_written_and_those_of_a_missing_shard_are_row_errors(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].wipe()
    result = await router.upsert(upsert(IDS))
    missing = np.flatnonzero(router._children.placement.shards_of(IDS) == 1)
    assert [error.row for error in result.errors] == missing.tolist()
    assert {error.code for error in result.errors} == {RowErrorCode.FAILED_PRECONDITION}
    assert "ShardMissing" in result.errors[0].message
    assert result.accepted == len(IDS) - len(missing)


@EACH
async def test_a_drop_while_a_shard_is_missing_drops_what_lives(
    shards: list[WitnessedShard], router: Router, lost: int
) -> None:
    copied = shards[lost].copied()
    shards[lost].wipe()
    await router.drop_collection("words")
    assert not shards[1 - lost].entries
    with pytest.raises(CollectionNotFound):
        await router.count(COUNT)
    shards[lost].put_back(copied)  # the lost volume comes back
    await rounds(router)
    assert not shards[lost].entries
    await router.create_collection(config_of())
    assert await router.count(COUNT) == 0


@EACH
async def test_a_lost_collection_is_dropped_everywhere(
    shards: list[WitnessedShard], router: Router, lost: int
) -> None:
    shards[lost].lose("words")
    await router.drop_collection("words")
    await rounds(router)
    assert await router.problems() == []
    _, new = await router.create_collection(config_of())
    assert new


async def test_a_drop_that_reached_one_shard_is_finished(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].drop_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.drop_collection("words")
    with pytest.raises(CollectionNotFound):
        await router.count(COUNT)
    assert await router.list_collections() == []
    shards[1].drop_failure = None
    await rounds(await router_over(shards))
    assert not shards[1].entries


async def test_a_shard_that_does_not_answer_is_no_loss(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].failure = ShardUnavailable("gone")
    await rounds(router)
    with pytest.raises(ShardUnavailable) as raised:
        await found(router)
    assert not isinstance(raised.value, ShardMissing)
    shards[1].failure = None
    assert await router.count(COUNT) == len(IDS)


async def test_a_round_that_lasted_too_long_accuses_nobody(shards: list[WitnessedShard]) -> None:
    now_s = [0.0]
    router = await Router.connect(shards, sleep=Ticks().sleep, clock=lambda: now_s[0])
    await router.create_collection(config_of())
    await rounds(router)
    exchange = shards[0].exchange

    async def exchange_slowly(*args: object, **call: object) -> object:
        now_s[0] += ROUND_S + 1
        return await exchange(*args, **call)  # type: ignore[arg-type]

    shards[0].exchange = exchange_slowly  # type: ignore[assignment,method-assign]
    shards[1].lose("words")
    await rounds(router)
    assert await router.problems() == []
    shards[0].exchange = exchange  # type: ignore[method-assign]
    await rounds(router)
    assert [problem.shard for problem in await router.problems()] == [1]


async def test_a_missing_shard_that_does_not_answer_stays_missing(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].wipe()
    await require_missing(router, 1)
    shards[1].failure = ShardUnavailable("gone")
    await rounds(router)
    with pytest.raises(ShardMissing):
        await found(router)


# ---- no answer before the examination ------------------------------------------------------------


async def test_a_strict_call_waits_for_the_examination_and_a_lenient_one_does_not(
    shards: list[WitnessedShard], router: Router
) -> None:
    may_report = asyncio.Event()
    exchange = shards[1].exchange

    async def slow(*args: object, **call: object) -> object:
        await may_report.wait()
        return await exchange(*args, **call)  # type: ignore[arg-type]

    shards[1].exchange = slow  # type: ignore[method-assign, assignment]
    shards[1].wipe()
    await router._children.learn(NO_LIMIT)
    strict = asyncio.ensure_future(router.count(COUNT))
    result = await found(router, min_coverage=0.25)
    assert "not yet cross-examined" in result.receipt.shards[1].missing_reason
    assert not strict.done()
    may_report.set()
    with pytest.raises(ShardMissing):
        await strict


# ---- two routers, and routers over routers -------------------------------------------------------


async def test_reports_are_handed_to_the_others_once(
    shards: list[WitnessedShard], router: Router
) -> None:
    statements = [shard.records.remembered.statements for shard in shards]
    assert [[each.shard for each in kept] for kept in statements] == [[1], [0]]
    assert all(each.sequence for kept in statements for each in kept)


async def test_no_call_for_rows_waits_for_an_exchange(
    shards: list[WitnessedShard], router: Router
) -> None:
    before = [len(shard.exchanges) for shard in shards]
    for _ in range(5):
        await router.upsert(upsert(IDS))
        await router.delete(DeleteRequest(collection="words", ids=IDS[:5]))
        await found(router)
        await router.count(COUNT)
    assert [len(shard.exchanges) for shard in shards] == before


async def test_a_router_examines_its_shards_once_a_second(shards: list[WitnessedShard]) -> None:
    assert WITNESS_INTERVAL_S == 1.0
    pauses: list[tuple[float, int]] = []
    enough = asyncio.Event()

    async def pause(duration_s: float) -> None:
        pauses.append((duration_s, len(shards[1].exchanges)))
        if len(pauses) == 5:
            enough.set()
            await asyncio.Event().wait()

    router = await Router.connect(shards, sleep=pause)
    await asyncio.wait_for(enough.wait(), DEADLINE_S)
    await router.close()
    assert {duration_s for duration_s, _ in pauses} == {WITNESS_INTERVAL_S}
    exchanges = [count for _, count in pauses]
    assert exchanges == sorted(set(exchanges))


async def test_two_routers_under_writes_accuse_nobody(
    shards: list[WitnessedShard], router: Router
) -> None:
    other = await router_over(shards)
    for step in range(20):
        writes = [each.upsert(upsert(IDS + 1_000 * step)) for each in (router, other)]
        await asyncio.gather(*writes, rounds(router, number=1), rounds(other, number=1))
        assert await router.problems() == await other.problems() == []


async def tree_over(shards: Sequence[WitnessedShard]) -> tuple[Router, list[Router]]:
    """Return a router over a router for each shard, and those."""
    below = [await router_over([shard], partial=True) for shard in shards]
    return await router_over(below), below


@HARMS
@EACH
async def test_a_loss_is_noticed_through_two_routers(
    shards: list[WitnessedShard], lost: int, harm: Callable[[WitnessedShard], None]
) -> None:
    upper, _ = await tree_over(shards)
    await upper.create_collection(config_of())
    await upper.upsert(upsert(IDS))
    await rounds(upper)
    assert {each.records.stages[incarnation_of(each)] for each in shards} == {Stage.COMPLETE}
    assert all(len(each.records.members[incarnation_of(each)]) == 2 for each in shards)
    harm(shards[lost])
    await require_missing(upper, lost)
    upper, _ = await tree_over(shards)
    await require_missing(upper, lost)


@EACH
async def test_an_older_copy_is_noticed_by_the_router_above(
    shards: list[WitnessedShard], lost: int
) -> None:
    upper, _ = await tree_over(shards)
    await upper.create_collection(config_of())
    await upper.upsert(upsert(IDS))
    copied = shards[lost].copied()
    await upper.upsert(upsert(IDS + 1_000))
    await rounds(upper)
    shards[lost].put_back(copied)
    upper, below = await tree_over(shards)
    await require_missing(upper, lost)
    with pytest.raises(ShardMissing):  # the router above has told it
        await found(below[lost], min_coverage=0.0)


async def test_an_answer_with_rows_of_a_missing_shard_is_left_out() -> None:
    shards = [WitnessedShard(shard, 3) for shard in range(3)]
    below = await router_over(shards[1:], partial=True)
    upper = await router_over([shards[0], below])
    await upper.create_collection(config_of())
    incarnation = incarnation_of(shards[1])
    upper._examination._absent = {incarnation: {1: ShardMissing("shard 1: lost")}}
    result = await found(upper, min_coverage=0.25)
    assert result.receipt.coverage == pytest.approx(1 / 3, abs=1e-3)
    reasons = [each.missing_reason for each in result.receipt.shards]
    assert reasons[:2] == ["", "ShardMissing: shard 1: lost"]
    assert "has yet to learn" in reasons[2]
    below._examination._absent = dict(upper._examination._absent)
    result = await found(upper, min_coverage=0.25)
    assert result.receipt.coverage == pytest.approx(2 / 3, abs=1e-3)


async def test_a_collection_that_a_shard_has_not_got_yet_takes_no_rows(
    shards: list[WitnessedShard],
) -> None:
    other = await router_over(shards)
    entry = CollectionEntry(config=config_of(), incarnation="first")
    await shards[0].create_collection(config_of(), call=Call(incarnation="first"))
    create = shards[1].create_collection

    async def fail(*args: object, **call: object) -> NoReturn:
        raise ShardUnavailable("its disk is slow")

    shards[1].create_collection = fail  # type: ignore[method-assign]
    ids = IDS[other._children.placement.shards_of(IDS) == 0]
    await rounds(other)
    with pytest.raises(ShardUnavailable, match="is being created"):
        await other.upsert(upsert(ids))
    shards[1].create_collection = create  # type: ignore[method-assign]
    assert (await other.upsert(upsert(IDS))).errors == ()
    assert shards[1].entries["words"] == entry


async def test_a_shard_that_was_started_again_is_handed_all_reports_again(
    shards: list[WitnessedShard], router: Router
) -> None:
    before = shards[1].records.remembered
    assert before.statements
    shards[1].records.remembered = type(before)()  # it has lost what it remembered
    shards[1].restart()
    await rounds(router)
    assert shards[1].records.remembered.statements == before.statements


def report_no_change(shards: Sequence[WitnessedShard]) -> None:
    """From here on, have the shards return the reports of now."""
    for shard in shards:
        shard.report = partial(replace, shard.report())  # type: ignore[method-assign]


async def test_what_a_router_learns_is_held_against_reports_that_have_not_changed(
    shards: list[WitnessedShard], router: Router
) -> None:
    report_no_change(shards)
    await rounds(router)
    assert await router.problems() == []
    report = shards[1].report()
    [collection] = report.collections
    later = Token(
        incarnation=collection.incarnation,
        sequences={1: collection.sequence + 1},
        sessions={1: report.session},
    )
    router._examination.acknowledged(later)
    await rounds(router)
    assert [problem.shard for problem in await router.problems()] == [1]


async def test_a_router_below_that_was_started_again_is_handed_all_reports_again(
    shards: list[WitnessedShard],
) -> None:
    upper, _ = await tree_over(shards)
    await upper.create_collection(config_of())
    await rounds(upper, number=3)
    report_no_change(shards)
    await rounds(upper)
    started_again = await router_over(shards[:1], partial=True)
    upper._children[0].shard = started_again
    await rounds(upper)
    assert started_again._examination._from_above == {1: shards[1].report()}


async def test_a_write_has_a_witness_after_one_round(
    shards: list[WitnessedShard], router: Router
) -> None:
    await router.upsert(upsert(IDS + 1_000))
    await rounds(router, number=1)
    for shard in shards:
        [kept] = shard.records.remembered.statements
        assert kept.sequence == shards[kept.shard].state.sequence


async def test_a_create_by_a_router_of_an_earlier_release_gets_its_members(
    shards: list[WitnessedShard],
) -> None:
    for shard in shards:
        await shard.create_collection(config_of(), call=Call(incarnation="first"))
    router = await router_over(shards)
    await router.upsert(upsert(IDS))
    await rounds(router, number=3)
    assert all(len(each.records.members["first"]) == 2 for each in shards)
    shards[1].wipe()
    await require_missing(router, 1)


async def test_metrics_tell_of_a_collection_that_no_shard_serves(
    shards: list[WitnessedShard], router: Router
) -> None:
    for shard in shards:
        shard.lose("words")
    await restarted(router)
    await rounds(router)
    loop = asyncio.get_running_loop()
    collectors = ProblemsCollector(router, loop), LedgerCollector(router, loop)
    metrics = {
        metric.name: metric
        for each in collectors
        for metric in await asyncio.to_thread(each.collect)
    }
    told = [sample.labels for sample in metrics["vectorshard_problems"].samples]
    assert [(each["kind"], each["shard"], each["collection"]) for each in told] == [
        ("missing", "0", "words"),
        ("missing", "1", "words"),
    ]
    assert not metrics["vectorshard_rows"].samples


async def test_one_round_that_accuses_a_shard_by_mistake_hinders_no_create(
    shards: list[WitnessedShard], router: Router
) -> None:
    """Its reports are not of one moment: a drop meanwhile looks like a loss."""
    await rounds(router)
    examination, incarnation = router._examination, incarnation_of(shards[0])
    true = examination.verdicts[incarnation]
    lost = replace(true.by_shard[0], kind=Kind.MISSING, reason="lost", whole_directory=True)
    mistaken = replace(true, by_shard={**true.by_shard, 0: lost})
    examination.verdicts = {**examination.verdicts, incarnation: mistaken}
    assert (await router.create_collection(replace(config_of(), name="points")))[1]
