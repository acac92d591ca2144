"""Data directories that are lost, old or exchanged, under routers over real shards."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.router.fan_out.examined import (
    COUNT,
    EACH,
    IDS,
    require_missing,
    restarted,
    rounds,
    router_over,
)
from tests.router.fan_out.samples import found, upsert
from tests.shard.samples import config_of, identity_of, open_shard
from vectorshard.router.fan_out import memory
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.descriptions import Topology
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    CollectionUnreadable,
    PlacementMismatch,
    ShardMissing,
    ShardUnavailable,
    VectorShardError,
)
from vectorshard.shard.membership import AcceptLossRequest, ProblemKind
from vectorshard.shard.protocol import Shard
from vectorshard.shard.rows.fingerprint import fingerprint_of
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import NO_LIMIT, Call, GetRequest


class Server:
    """Where a shard is served. A test stops it, harms its directory, and starts it again."""

    def __init__(self, path: Path, shard: int) -> None:
        self.path = path
        self.number = shard
        self.disk = Disk()
        self.shard: LocalShard | None = None
        self.start()

    def start(self) -> None:
        """Open the directory."""
        identity = identity_of(self.number, 2, slots_of_shard(self.number, 2))
        self.shard = open_shard(self.path, identity=identity, disk=self.disk)

    async def stop(self) -> None:
        """Close the directory."""
        shard, self.shard = self.shard, None
        if shard is not None:
            await shard.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def ask(*arguments: object, call: Call = NO_LIMIT) -> object:
            if self.shard is None:
                raise ShardUnavailable(f"no server answers for shard {self.number}")
            if call.placement not in ("", fingerprint_of(await self.shard.topology())):
                raise PlacementMismatch(f"shard {self.number} was started again")
            return await getattr(self.shard, name)(*arguments, call=call)

        return ask

    async def topology(self, *, call: Call = NO_LIMIT) -> Topology:
        """Say who it is, whoever is meant."""
        if self.shard is None:
            raise ShardUnavailable(f"no server answers for shard {self.number}")
        return await self.shard.topology()

    async def close(self) -> None:
        """Go on: other routers ask it too."""


class Fleet:
    """Two shards, and a router that has filled a collection on them."""

    def __init__(self, path: Path) -> None:
        self.servers = [Server(path / f"shard-{shard}", shard) for shard in range(2)]
        self.path = path
        self.routers: list[Router] = []

    async def router(self) -> Router:
        """Return another router."""
        router = await router_over(cast("list[Shard]", self.servers))
        self.routers.append(router)
        return router

    async def tree(self) -> Router:
        """Return a router over a router for each shard."""
        below = [await router_over([cast("Shard", each)], partial=True) for each in self.servers]
        upper = await router_over(below)
        self.routers += [*below, upper]
        return upper

    async def stopped(self, harm: Callable[[], object]) -> None:
        """Harm the directories while no shard is open."""
        await asyncio.gather(*(server.stop() for server in self.servers))
        harm()
        for server in self.servers:
            server.start()

    async def close(self) -> None:
        """End all."""
        for router in self.routers:
            await router._examination.close()
        await asyncio.gather(*(server.stop() for server in self.servers))


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture
async def router(fleet: Fleet) -> Router:
    router = await fleet.router()
    await router.create_collection(config_of())
    await router.upsert(upsert(IDS))
    await rounds(router)
    return router


def emptied(path: Path) -> None:
    """Lose the whole directory."""
    shutil.rmtree(path)


def without_collection(path: Path) -> None:
    """Lose the directory of the collection."""
    shutil.rmtree(path / "collections" / "words")


def exchange(first: Path, second: Path) -> None:
    """Put each of two directories in the place of the other."""
    aside = first.with_name("aside")
    first.rename(aside)
    second.rename(first)
    aside.rename(second)


async def missing_everywhere(fleet: Fleet, router: Router, lost: int) -> None:
    """A running router, a new one, and one over routers say that a shard is missing."""
    await require_missing(router, lost)
    await require_missing(await fleet.router(), lost)
    await require_missing(await fleet.tree(), lost)


@pytest.mark.parametrize("harm", [emptied, without_collection])
@EACH
async def test_a_lost_directory_is_missing(
    fleet: Fleet, router: Router, lost: int, harm: Callable[[Path], None]
) -> None:
    await fleet.stopped(lambda: harm(fleet.servers[lost].path))
    await missing_everywhere(fleet, router, lost)


async def test_each_collection_of_a_lost_directory_is_a_problem(
    fleet: Fleet, router: Router
) -> None:
    await router.create_collection(replace(config_of(), name="points"))
    await rounds(router)
    await fleet.stopped(lambda: emptied(fleet.servers[0].path))
    await rounds(router)
    problems = [(each.shard, each.collection) for each in await router.problems()]
    assert problems == [(0, "points"), (0, "words")]


def unreadable(path: Path) -> None:
    """Put a directory in the place of the row store."""
    store = path / "collections" / "words" / "store.db"
    store.unlink()
    store.mkdir()


def unidentified(path: Path) -> None:
    """Empty the row store, without a register: the shard cannot tell which collection it was."""
    (path / "register.json").unlink()
    os.truncate(path / "collections" / "words" / "store.db", 0)


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (unreadable, CollectionUnreadable, "store.db is not a file"),
        (unidentified, CollectionDamaged, "store.db is not a row store: it has 0 bytes"),
    ],
)
async def test_what_no_shard_can_read_is_never_absent_and_can_be_dropped(
    fleet: Fleet,
    router: Router,
    harm: Callable[[Path], None],
    error: type[VectorShardError],
    said: str,
) -> None:
    def harm_all() -> None:
        for server in fleet.servers:
            harm(server.path)

    await fleet.stopped(harm_all)
    for each in (router, await fleet.router(), await fleet.tree()):
        for call in (
            found(each),
            found(each, min_coverage=0.1),
            each.count(COUNT),
            each.describe("words"),
            each.create_collection(config_of()),
            each.upsert(upsert(IDS)),
        ):
            with pytest.raises(error, match=said):
                await call
        await rounds(each)
        assert {problem.shard for problem in await each.problems()} == {0, 1}
    await router.drop_collection("words")
    with pytest.raises(CollectionNotFound):
        await router.describe("words")
    assert (await router.create_collection(config_of()))[1]
    await rounds(router)
    assert not await router.problems()


@EACH
async def test_a_shard_that_cannot_identify_a_collection_accuses_no_other(
    fleet: Fleet, router: Router, lost: int
) -> None:
    await fleet.stopped(lambda: unidentified(fleet.servers[lost].path))
    for each in (router, await fleet.router(), await fleet.tree()):
        with pytest.raises(CollectionDamaged, match=f"shard {lost}: .*it has 0 bytes"):
            await each.count(COUNT)
        await rounds(each)
        problems = await each.problems()
        assert [(problem.shard, problem.kind) for problem in problems] == [
            (lost, ProblemKind.DAMAGED)
        ]
        result = await found(each, min_coverage=0.25)
        assert result.receipt.coverage == pytest.approx(0.5)
        shards = (await each.describe("words")).shards
        assert [bool(shard.missing_reason) for shard in shards] == [lost == 0, lost == 1]


@EACH
async def test_a_copy_of_a_directory_that_is_served_in_its_place_is_missing(
    fleet: Fleet, router: Router, lost: int
) -> None:
    path, copy = fleet.servers[lost].path, fleet.path / "copy"
    await fleet.stopped(lambda: shutil.copytree(path, copy))
    await restarted(router)
    await rounds(router)
    await fleet.stopped(lambda: exchange(path, copy))  # with the same rows
    await missing_everywhere(fleet, router, lost)


@EACH
async def test_an_older_copy_is_missing(fleet: Fleet, router: Router, lost: int) -> None:
    path, copy = fleet.servers[lost].path, fleet.path / "copy"
    await fleet.stopped(lambda: shutil.copytree(path, copy))
    await router.upsert(upsert(IDS + 1_000))
    await rounds(router)

    def put_back() -> None:
        shutil.rmtree(path)
        shutil.copytree(copy, path)

    await fleet.stopped(put_back)
    await missing_everywhere(fleet, router, lost)


async def test_exchanged_collections_are_missing_on_both_shards(
    fleet: Fleet, router: Router
) -> None:
    both = [server.path / "collections" for server in fleet.servers]
    await fleet.stopped(lambda: exchange(*both))
    for each in (router, await fleet.router(), await fleet.tree()):
        for call in (
            each.count(COUNT),
            found(each),
            each.upsert(upsert(IDS)),
            each.create_collection(config_of()),
        ):
            with pytest.raises(ShardMissing):
                await call
    await fleet.stopped(lambda: exchange(*both))
    await rounds(router)
    assert await router.count(COUNT) == len(IDS)


async def test_two_shards_wiped_at_once_are_an_error_for_who_remembers_them(
    fleet: Fleet, router: Router
) -> None:

    def wipe_both() -> None:
        for server in fleet.servers:
            emptied(server.path)

    await fleet.stopped(wipe_both)
    for call in (router.count(COUNT), found(router, min_coverage=0.1)):
        with pytest.raises(ShardMissing, match="no shard has the collection now") as refused:
            await call
        assert "accept-loss" not in str(refused.value)
    with pytest.raises(ShardMissing, match="nothing to go on with: put a disk that has it back"):
        await router.accept_loss(AcceptLossRequest(shard=1))


async def test_restarts_are_no_loss(fleet: Fleet, router: Router) -> None:
    for _ in range(2):
        await fleet.stopped(lambda: None)
        assert await router.count(COUNT) == len(IDS)
        assert (await router.upsert(upsert(IDS))).errors == ()
        assert await (await fleet.tree()).count(COUNT) == len(IDS)
        assert await router.problems() == []


@pytest.mark.parametrize("harm", [emptied, without_collection])
@EACH
async def test_a_loss_is_accepted_and_the_lost_disk_is_refused(
    fleet: Fleet, router: Router, lost: int, harm: Callable[[Path], None]
) -> None:
    path, kept = fleet.servers[lost].path, fleet.path / "kept"
    before = (await router.describe("words")).shards

    def keep_and_harm() -> None:
        shutil.copytree(path, kept)
        harm(path)

    await fleet.stopped(keep_and_harm)
    router = await fleet.router()
    [loss] = (await router.accept_loss(AcceptLossRequest(shard=lost, accept=True))).losses
    assert loss.witnessed_accepted == before[lost].ledger.accepted
    after = (await router.describe("words")).shards[lost].ledger
    assert after.adds_up
    assert (after.lost, after.live) == (before[lost].ledger.accepted, 0)
    await router.upsert(upsert(IDS))
    assert await router.count(COUNT) == len(IDS)
    await fleet.stopped(lambda: None)
    assert await (await fleet.tree()).count(COUNT) == len(IDS)

    def bring_back() -> None:
        shutil.rmtree(path)
        shutil.copytree(kept, path)

    await fleet.stopped(bring_back)
    await missing_everywhere(fleet, router, lost)
    if harm is emptied:  # once more: the shard cannot tell which of the two it is
        await fleet.stopped(lambda: emptied(path))
        with pytest.raises(ShardMissing, match="it was emptied again, or the lost disk is back"):
            await router.count(COUNT)


@pytest.mark.parametrize("is_created_again", [False, True])
@EACH
async def test_a_dropped_collection_that_an_old_disk_brings_back_is_dropped_there_too(
    fleet: Fleet,
    router: Router,
    lost: int,
    is_created_again: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, copy = fleet.servers[lost].path, fleet.path / "copy"
    await fleet.stopped(lambda: shutil.copytree(path, copy))
    await router.drop_collection("words")
    monkeypatch.setattr(memory, "FORGET_AFTER_S", 0.0)
    await rounds(router, number=4)
    assert [each.collections for each in router._examination.reports.values()] == [(), ()]
    monkeypatch.undo()
    if is_created_again:
        await router.create_collection(config_of())
        await router.upsert(upsert(IDS + 1_000))
        await rounds(router)

    def put_back() -> None:
        shutil.rmtree(path)
        shutil.copytree(copy, path)

    await fleet.stopped(put_back)
    for each in (router, await fleet.router(), await fleet.tree()):
        await rounds(each)
        if not is_created_again:
            with pytest.raises(CollectionNotFound):
                await each.count(COUNT)
            assert await each.problems() == []
            assert not (await each.accept_loss(AcceptLossRequest(shard=1 - lost))).losses
            continue
        await require_missing(each, lost)
        other = await each.accept_loss(AcceptLossRequest(shard=1 - lost, accept=True))
        assert (other.losses, other.life) == ((), 1)
    if is_created_again:
        await router.accept_loss(AcceptLossRequest(shard=lost, accept=True))
    else:
        await router.create_collection(config_of())
    await router.upsert(upsert(IDS))
    assert len((await router.get(GetRequest(collection="words", ids=IDS))).ids) == len(IDS)


@EACH
async def test_a_drop_while_a_shard_is_missing_frees_the_name(
    fleet: Fleet, router: Router, lost: int
) -> None:
    await fleet.stopped(lambda: emptied(fleet.servers[lost].path))
    await router.drop_collection("words")
    _, new = await router.create_collection(config_of())
    assert new
    await router.upsert(upsert(IDS))
    assert await (await fleet.router()).count(COUNT) == len(IDS)


@EACH
async def test_nothing_is_created_while_a_shard_runs_on_another_directory(
    fleet: Fleet, router: Router, lost: int
) -> None:
    path, kept = fleet.servers[lost].path, fleet.path / "kept"
    other = replace(config_of(), name="points")

    def keep_and_empty() -> None:
        path.rename(kept)

    await fleet.stopped(keep_and_empty)
    for each in (router, await fleet.router(), await fleet.tree()):
        with pytest.raises(ShardMissing, match=f"shard {lost}: its directory is another .*'words'"):
            await each.create_collection(other)

    def put_back() -> None:
        shutil.rmtree(path)
        kept.rename(path)

    await fleet.stopped(put_back)
    assert (await router.create_collection(other))[1]


async def test_a_lost_collection_alone_hinders_no_create(fleet: Fleet, router: Router) -> None:
    await fleet.stopped(lambda: without_collection(fleet.servers[0].path))
    with pytest.raises(ShardMissing):
        await router.count(COUNT)
    assert (await router.create_collection(replace(config_of(), name="points")))[1]
