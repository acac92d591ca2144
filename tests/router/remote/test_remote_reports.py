"""Reports over the network: those that have not changed are sent once."""

from __future__ import annotations

from tests.router.fan_out.witnessed_shard import WitnessedShard
from tests.router.offline_shard import OfflineShard
from tests.shard.samples import config_of
from vectorshard.shard.membership import ExchangeRequest, ShardReport
from vectorshard.shard.types import Call


class Steady(WitnessedShard):
    """A shard whose version grows when a test says so."""

    def report(self) -> ShardReport:
        self.version -= 1
        return super().report()


async def test_an_unchanged_report_is_the_one_of_before() -> None:
    shard = Steady(0, 1)
    await shard.create_collection(config_of(), call=Call(incarnation="i"))
    remote = OfflineShard(shard)
    [first] = await remote.exchange(ExchangeRequest())
    [again] = await remote.exchange(ExchangeRequest())
    assert again == first
    assert shard.exchanges[-1].known[0].version == first.version
    await shard.drop_collection("words", call=Call(incarnation="i"))
    shard.version += 1
    [dropped] = await remote.exchange(ExchangeRequest())
    assert dropped != first
    assert dropped == shard.report()
