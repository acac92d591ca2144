"""What a shard has lost is shown to an operator, accepted, and served without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.router.fan_out.examined import (
    COUNT,
    EACH,
    HARMS,
    IDS,
    filled,
    incarnation_of,
    require_missing,
    restarted,
    rounds,
    router_over,
)
from tests.router.fan_out.samples import found, upsert
from tests.router.fan_out.witnessed_shard import WitnessedShard
from tests.shard.samples import config_of
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.errors import InvalidParameter, ShardMissing, ShardUnavailable
from vectorshard.shard.membership import AcceptLossRequest


@pytest.fixture
async def shards() -> list[WitnessedShard]:
    return [WitnessedShard(shard, 2) for shard in range(2)]


@pytest.fixture
async def router(shards: list[WitnessedShard]) -> Router:
    return await filled(shards)


@HARMS
@EACH
async def test_a_loss_is_shown_and_then_accepted(
    shards: list[WitnessedShard],
    router: Router,
    lost: int,
    harm: Callable[[WitnessedShard], None],
) -> None:
    accepted = {shard.shard: shard.state.held["words"].ledger.accepted for shard in shards}
    copied = shards[lost].copied()
    harm(shards[lost])
    await restarted(router)
    shown = await router.accept_loss(AcceptLossRequest(shard=lost))
    [loss] = shown.losses
    assert (loss.collection, loss.accepted, loss.witnessed_accepted) == (
        "words",
        0,
        accepted[lost],
    )
    assert not shards[lost].asked("accept_loss")
    with pytest.raises(ShardMissing):
        await router.count(COUNT)
    done = await router.accept_loss(AcceptLossRequest(shard=lost, accept=True))
    assert done.life == 2
    for shard in shards:
        assert shard.records.members[incarnation_of(shard)][lost].life == 2
    assert await router.problems() == []
    assert await router.count(COUNT) == accepted[1 - lost]
    await router.upsert(upsert(IDS))
    assert await (await router_over(shards)).count(COUNT) == len(IDS)
    shards[lost].put_back(copied)  # the lost volume comes back
    await require_missing(router, lost)


@EACH
async def test_a_loss_whose_acceptance_another_shard_has_not_heard_of_is_accepted_again(
    shards: list[WitnessedShard], router: Router, lost: int
) -> None:
    shards[lost].wipe()
    await restarted(router)
    shards[1 - lost].settle_failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable):
        await router.accept_loss(AcceptLossRequest(shard=lost, accept=True))
    assert shards[lost].records.life == 2  # that is done
    shards[1 - lost].settle_failure = None
    router = await router_over(shards)
    await router.accept_loss(AcceptLossRequest(shard=lost, accept=True))
    await rounds(router, number=3)
    for shard in shards:
        assert shard.records.members[incarnation_of(shard)][lost].life == shards[lost].records.life
    await router.upsert(upsert(IDS))
    assert await (await router_over(shards)).count(COUNT) == len(IDS)


async def test_a_loss_without_a_witness_is_unknown(shards: list[WitnessedShard]) -> None:
    router = await router_over(shards)
    await router.create_collection(config_of())
    shards[1].wipe()
    for shard in shards:
        shard.records.remembered = type(shard.records.remembered)()
    other = await router_over(shards)
    [loss] = (await other.accept_loss(AcceptLossRequest(shard=1))).losses
    assert loss.witnessed_accepted is None


async def test_nothing_is_accepted_where_nothing_is_missing(router: Router) -> None:
    result = await router.accept_loss(AcceptLossRequest(shard=0, accept=True))
    assert (result.losses, result.life) == ((), 1)
    with pytest.raises(InvalidParameter, match=r"2 is not in 0\.\.1"):
        await router.accept_loss(AcceptLossRequest(shard=2, accept=True))


async def test_no_loss_is_accepted_of_a_shard_that_does_not_answer(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable, match="shard 1 does not answer"):
        await router.accept_loss(AcceptLossRequest(shard=1, accept=True))


async def test_no_loss_is_accepted_while_a_shard_that_may_remember_is_away(
    shards: list[WitnessedShard], router: Router
) -> None:
    shards[1].wipe()
    await restarted(router)
    await require_missing(router, 1)
    shards[0].failure = ShardUnavailable("gone")
    with pytest.raises(ShardUnavailable, match="shard 0 does not answer: what shard 1 has lost"):
        await router.accept_loss(AcceptLossRequest(shard=1, accept=True))


async def test_a_collection_that_an_old_disk_brings_back_is_not_served_and_goes_with_its_loss(
    shards: list[WitnessedShard], router: Router
) -> None:
    copied = shards[1].copied()
    await router.drop_collection("words")
    await rounds(router)
    for shard in shards:  # as after a while
        shard.records.dropped.clear()
        shard.records.names.clear()
    await router.create_collection(config_of())
    present = incarnation_of(shards[0])
    await router.upsert(upsert(IDS))
    await rounds(router)
    shards[1].put_back(copied)
    router = await router_over(shards)
    assert incarnation_of(shards[1]) != present
    for call in (found(router), found(router, min_coverage=0.1), router.count(COUNT)):
        with pytest.raises(ShardMissing, match="two collections are named 'words'"):
            await call
    [problem] = await router.problems()
    assert "drop" not in problem.text
    old = incarnation_of(shards[1])
    had = shards[1].state.held["words"].ledger.accepted
    shown = (await router.accept_loss(AcceptLossRequest(shard=1))).losses
    assert [each.incarnation for each in shown] == [present, old]
    assert (shown[1].accepted, shown[1].witnessed_accepted) == (0, had)
    assert "that one is dropped" in shown[1].reason
    assert incarnation_of(shards[1]) == old
    done = await router.accept_loss(AcceptLossRequest(shard=1, accept=True))
    assert done.losses == shown
    assert incarnation_of(shards[1]) == present
    await router.upsert(upsert(IDS))
    assert await router.count(COUNT) == len(IDS)
