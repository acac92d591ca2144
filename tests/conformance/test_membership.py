"""What every shard and router tells of the disks behind it."""

from __future__ import annotations

from tests.conformance.backends import Stage
from tests.shard.samples import config_of, corpus_of
from vectorshard.shard.membership import (
    CollectionReport,
    CollectionState,
    ExchangeRequest,
    SettleRequest,
)
from vectorshard.shard.membership import Stage as CreateStage
from vectorshard.shard.protocol import Shard


async def test_every_leaf_shard_reports_what_it_has(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(100))
    reports = await stage.shard.exchange(ExchangeRequest())
    assert [report.shard for report in reports] == list(range(stage.shards_total))
    assert len({(report.directory, report.session) for report in reports}) == stage.shards_total
    found = [collection for report in reports for collection in report.collections]
    assert {(each.name, each.state) for each in found} == {("words", CollectionState.LIVE)}
    assert {each.stage for each in found} == {CreateStage.COMPLETE}
    assert sum(each.accepted for each in found) == sum(each.live for each in found) == 100
    assert not await stage.shard.problems()


async def test_a_shard_that_is_opened_again_says_so(stage: Stage) -> None:
    await stage.create(config_of())
    before = await stage.shard.exchange(ExchangeRequest())
    topology = await stage.shard.topology()
    await stage.reopen()
    after = await stage.shard.exchange(ExchangeRequest())
    assert [each.directory for each in after] == [each.directory for each in before]
    assert all(now.opens > then.opens for now, then in zip(after, before, strict=True))
    sessions = {each.session for each in (await stage.shard.topology()).shards}
    assert not sessions & {each.session for each in topology.shards}


async def test_a_stage_that_is_reached_is_settled_again_without_effect(stage: Stage) -> None:
    await stage.create(config_of())
    await stage.put(corpus_of(100))
    before = await _collections(stage.shard)
    incarnation = before[0].incarnation
    request = SettleRequest(collection="words", incarnation=incarnation, stage=CreateStage.KNOWN)
    await stage.shard.settle(request)
    assert await _collections(stage.shard) == before


async def _collections(shard: Shard) -> list[CollectionReport]:
    reports = await shard.exchange(ExchangeRequest())
    return [collection for report in reports for collection in report.collections]
