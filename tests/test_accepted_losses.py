"""Disks of a fleet that are lost, older, exchanged or gone in part: what callers see, and the cure.

Real shards in this process, without sockets: what a shard has on its disk is what is judged. The
rounds in which routers cross-examine are run by hand. tests/router/fan_out/test_lost_disks.py has
the cases without an operator, tests/system/test_lost_disks.py three of them with real processes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.shard.samples import config_of, corpus_of, identity_of, open_shard
from vectorshard.cli.embedded import open_embedded
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import DataDirectoryForeign, ShardMissing, WritesLost
from vectorshard.shard.membership import AcceptLossRequest, ProblemKind
from vectorshard.shard.types import (
    CountRequest,
    Effort,
    Role,
    RowErrorCode,
    SearchRequest,
    SearchResult,
    Token,
    UpsertRequest,
)

SHARDS = 2
ROWS = 200
OLDER_ROWS = 120
CORPUS = corpus_of(ROWS)
NEVER_S = 3_600.0
"""The interval of the routers' rounds: each is run by hand."""


@dataclass
class Fleet:
    """Shards on one disk, and routers over them."""

    path: Path
    shards: list[LocalShard]
    routers: list[Router]

    @classmethod
    async def open(cls, path: Path, routers: int = 1, shards_total: int = SHARDS) -> Fleet:
        shards = [
            open_shard(
                path / f"shard-{number}",
                identity=identity_of(number, shards_total, slots_of_shard(number, shards_total)),
            )
            for number in range(shards_total)
        ]
        fleet = cls(path, shards, [])
        for _ in range(routers):
            fleet.routers.append(
                await Router.connect(shards, Role.ROUTER, witness_interval_s=NEVER_S)
            )
        return fleet

    async def rounds(self, count: int = 2) -> None:
        """Let every router cross-examine the shards."""
        for _ in range(count):
            for router in self.routers:
                await router._examination.again()

    async def close(self) -> None:
        for router in self.routers:
            await router._examination.close()
        for shard in self.shards:
            await shard.close()

    async def put(self, first: int, last: int, router: int = 0) -> Token:
        rows = CORPUS.take(slice(first, last))
        request = UpsertRequest(collection="words", ids=rows.ids, vectors=rows.vectors)
        return (await self.routers[router].upsert(request)).token

    async def search(self, *, router: int = 0, **changes: Any) -> SearchResult:
        request = SearchRequest(
            collection="words",
            queries=CORPUS.vectors[:1],
            k=ROWS,
            effort=Effort(exact=True),
            **changes,
        )
        return await self.routers[router].search(request)


async def written(path: Path, older: Path | None = None, *, witnessed: bool = True) -> Token:
    """Leave a fleet of ROWS rows, and a copy of it as it was before the last of them."""
    fleet = await Fleet.open(path)
    await fleet.routers[0].create_collection(config_of())
    await fleet.put(0, OLDER_ROWS)
    await fleet.rounds()
    await fleet.close()
    if older is not None:
        shutil.copytree(path, older)
    fleet = await Fleet.open(path)
    token = await fleet.put(OLDER_ROWS, ROWS)
    if witnessed:
        await fleet.rounds()
    await fleet.close()
    return token


Harm = Callable[[Path, Path, int], None]


def wiped(path: Path, older: Path, shard: int) -> None:
    shutil.rmtree(path / f"shard-{shard}")


def collection_gone(path: Path, older: Path, shard: int) -> None:
    shutil.rmtree(path / f"shard-{shard}" / "collections" / "words")


def older_copy(path: Path, older: Path, shard: int) -> None:
    wiped(path, older, shard)
    shutil.copytree(older / f"shard-{shard}", path / f"shard-{shard}")


def older_collection(path: Path, older: Path, shard: int) -> None:
    collection_gone(path, older, shard)
    words = Path(f"shard-{shard}") / "collections" / "words"
    shutil.copytree(older / words, path / words)


HARMS: Sequence[Harm] = (wiped, collection_gone, older_copy, older_collection)


async def rows_of(fleet: Fleet, shard: int) -> int:
    """Return how many rows a shard holds that is not missing."""
    (description,) = (await fleet.shards[shard].describe("words")).shards
    return description.ledger.live


async def check_missing(fleet: Fleet, shard: int) -> None:
    """Check what callers of every router see while a shard is missing, again and again."""
    other = 1 - shard
    left = await rows_of(fleet, other)
    assert 0 < left < ROWS
    advice = f"accept-loss --shard-id {shard}"
    for number, router in enumerate(fleet.routers):
        with pytest.raises(ShardMissing, match=f"shard {shard}: .*{advice}"):
            await fleet.search(router=number)
        lenient = await fleet.search(router=number, min_coverage=0.4)
        assert lenient.receipt.coverage == 0.5
        assert len(lenient.hits.ids) == left
        receipts = {each.shard: each.missing_reason for each in lenient.receipt.shards}
        assert advice in receipts[shard]
        assert not receipts[other]
        with pytest.raises(ShardMissing, match=advice):
            await router.count(CountRequest(collection="words"))
        with pytest.raises(ShardMissing, match=advice):
            await router.create_collection(config_of())
        described = {each.shard: each for each in (await router.describe("words")).shards}
        assert advice in described[shard].missing_reason
        assert not described[other].missing_reason
        problems = [(each.shard, each.kind, each.collection) for each in await router.problems()]
        assert (shard, ProblemKind.MISSING, "words") in problems
        rows = CORPUS.take(slice(0, 40))
        result = await router.upsert(
            UpsertRequest(collection="words", ids=rows.ids, vectors=rows.vectors)
        )
        assert {error.code for error in result.errors} == {RowErrorCode.FAILED_PRECONDITION}
        assert result.accepted + len(result.errors) == len(rows)
        assert await rows_of(fleet, other) == left


@pytest.mark.parametrize("routers", [1, 2])
@pytest.mark.parametrize("shard", range(SHARDS))
@pytest.mark.parametrize("harm", HARMS)
async def test_a_shard_that_lost_its_disk_is_missing_until_the_loss_is_accepted(
    tmp_path: Path, harm: Harm, shard: int, routers: int
) -> None:
    path, older = tmp_path / "fleet", tmp_path / "older"
    token = await written(path, older)
    shutil.copytree(path, tmp_path / "whole")
    harm(path, older, shard)
    fleet = await Fleet.open(path, routers)
    await check_missing(fleet, shard)
    await fleet.rounds()
    await check_missing(fleet, shard)
    await fleet.close()

    fleet = await Fleet.open(path, routers)  # a restart changes nothing
    await check_missing(fleet, shard)
    left = await rows_of(fleet, 1 - shard)
    request = AcceptLossRequest(shard=shard)
    (shown,) = (await fleet.routers[-1].accept_loss(request)).losses
    assert shown.witnessed_accepted == ROWS - left
    await fleet.routers[-1].accept_loss(AcceptLossRequest(shard=shard, accept=True))
    await fleet.rounds(3)
    kept = await rows_of(fleet, shard)
    assert kept == (0 if harm in (wiped, collection_gone) else shown.accepted)
    for number, router in enumerate(fleet.routers):
        found = await fleet.search(router=number)
        assert (found.receipt.coverage, len(found.hits.ids)) == (1.0, left + kept)
        ledger = (await router.describe("words")).ledger
        assert (ledger.accepted, ledger.lost) == (ROWS, ROWS - left - kept)
        assert ledger.adds_up
        with pytest.raises(WritesLost, match=f"shard {shard}"):
            await fleet.search(router=number, token=token)
        assert not await router.problems()
    await fleet.put(0, ROWS)
    assert len((await fleet.search()).hits.ids) == ROWS
    await fleet.close()

    shutil.rmtree(path / f"shard-{shard}")  # the lost disk comes back
    shutil.copytree(tmp_path / "whole" / f"shard-{shard}", path / f"shard-{shard}")
    fleet = await Fleet.open(path, routers)
    with pytest.raises(ShardMissing, match=f"shard {shard}: "):
        await fleet.search(router=routers - 1)
    await fleet.close()


@pytest.mark.parametrize("harm", HARMS)
async def test_a_disk_that_is_put_back_serves_again(tmp_path: Path, harm: Harm) -> None:
    path, older = tmp_path / "fleet", tmp_path / "older"
    token = await written(path, older)
    shutil.copytree(path, tmp_path / "whole")
    harm(path, older, 1)
    fleet = await Fleet.open(path, 2)
    await check_missing(fleet, 1)
    await fleet.close()
    back = Path("shard-1")
    if harm in (collection_gone, older_collection):
        back /= "collections/words"
    shutil.rmtree(path / back, ignore_errors=True)
    shutil.copytree(tmp_path / "whole" / back, path / back)
    fleet = await Fleet.open(path, 2)
    for number in range(2):
        found = await fleet.search(router=number, token=token)
        assert (found.receipt.coverage, len(found.hits.ids)) == (1.0, ROWS)
    await fleet.close()


async def test_without_a_witness_of_the_last_rows_an_emptied_directory_is_noticed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "fleet"
    await written(path, witnessed=False)
    wiped(path, path, 0)
    fleet = await Fleet.open(path)
    await check_missing(fleet, 0)
    await fleet.close()


@pytest.mark.parametrize("shard", range(SHARDS))
async def test_an_embedded_server_whose_shard_is_wiped_starts_and_names_it(
    tmp_path: Path, shard: int
) -> None:
    engine = EngineConfig()
    router = await open_embedded(tmp_path, SHARDS, engine)
    await router.create_collection(config_of())
    request = UpsertRequest(collection="words", ids=CORPUS.ids, vectors=CORPUS.vectors)
    await router.upsert(request)
    await router.close()
    wiped(tmp_path, tmp_path, shard)
    router = await open_embedded(tmp_path, SHARDS, engine)
    with pytest.raises(ShardMissing, match=f"shard {shard}: its directory is another"):
        await router.count(CountRequest(collection="words"))
    await router.close()


async def test_an_embedded_server_with_a_directory_of_another_cluster_makes_none(
    tmp_path: Path,
) -> None:
    engine = EngineConfig()
    for path in (tmp_path, tmp_path / "other"):
        await (await open_embedded(path, 3, engine)).close()
    wiped(tmp_path, tmp_path, 0)
    wiped(tmp_path, tmp_path, 2)
    (tmp_path / "other" / "shard-2").rename(tmp_path / "shard-2")
    with pytest.raises(DataDirectoryForeign, match=r"different clusters: .*shard-1.*shard-2"):
        await open_embedded(tmp_path, 3, engine)
    assert not (tmp_path / "shard-0").exists()


async def test_two_shards_of_three_that_are_wiped_at_once_are_both_missing(tmp_path: Path) -> None:
    fleet = await Fleet.open(tmp_path, shards_total=3)
    await fleet.routers[0].create_collection(config_of())
    await fleet.put(0, ROWS)
    await fleet.rounds()
    await fleet.close()
    for shard in (0, 1):
        wiped(tmp_path, tmp_path, shard)
    fleet = await Fleet.open(tmp_path, shards_total=3)
    with pytest.raises(ShardMissing, match=r"shard 0: .*shard 1: "):
        await fleet.search()
    lenient = await fleet.search(min_coverage=0.2)
    assert len(lenient.hits.ids) == await rows_of(fleet, 2)
    for shard in (0, 1):
        await fleet.routers[0].accept_loss(AcceptLossRequest(shard=shard, accept=True))
    await fleet.rounds(3)
    assert (await fleet.search()).receipt.coverage == 1.0
    assert (await fleet.routers[0].describe("words")).ledger.accepted == ROWS
    await fleet.close()
