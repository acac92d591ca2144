"""Disks of a shard that are damaged, unreadable, full or short of files, as routers over it see it.

Each is done to each shard, before it is started again, and looked at by the router that runs, by a
new one, and by one over routers. Directories that are lost or old are in `test_lost_disks.py`.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from tests.crash_disk import FailingDisk
from tests.router.fan_out.examined import ADVICE, COUNT, EACH, IDS, rounds
from tests.router.fan_out.samples import found, upsert
from tests.router.fan_out.test_lost_disks import Fleet
from tests.shard.samples import config_of
from tests.tiny_disk import fill, needs_mount, tiny_disk
from vectorshard.router.fan_out.router import Router
from vectorshard.shard.engine import machine
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    CollectionUnreadable,
    Overloaded,
    ReadFailed,
    VectorShardError,
)
from vectorshard.shard.membership import ProblemKind
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.row_database import RowDatabase
from vectorshard.shard.types import (
    DeleteRequest,
    Effort,
    GetRequest,
    Include,
    Int64Array,
    RowErrorCode,
)

WORDS, OTHER = "words", "other"
LOG = "store.db-wal"
EXACT = Effort(exact=True)


@pytest.fixture
async def fleet(tmp_path: Path) -> AsyncIterator[Fleet]:
    fleet = Fleet(tmp_path)
    yield fleet
    await fleet.close()


@pytest.fixture
async def router(fleet: Fleet) -> Router:
    """A router that has filled two collections; the log has their rows."""
    router = await fleet.router()
    for name in (WORDS, OTHER):
        await router.create_collection(config_of(name))
        await router.upsert(replace(upsert(IDS), collection=name))
    await rounds(router)
    return router


async def killed(fleet: Fleet, harm: Callable[[], object]) -> None:
    """Start the shards again on what they would leave if they were killed now, and on a harm."""
    for server in fleet.servers:
        shutil.copytree(server.path, server.path.with_suffix(".killed"))

    def put_back() -> None:
        for server in fleet.servers:
            shutil.rmtree(server.path)
            server.path.with_suffix(".killed").rename(server.path)
        harm()

    await fleet.stopped(put_back)


async def looking(fleet: Fleet, router: Router) -> Sequence[Router]:
    """Return the running router, a new one, and one over routers."""
    return router, await fleet.router(), await fleet.tree()


async def require_whole(router: Router, name: str = WORDS) -> None:
    """A strict answer has all rows."""
    result = await found(router, collection=name, k=len(IDS), effort=EXACT)
    assert (result.receipt.coverage, len(result.hits.ids)) == (1.0, len(IDS))


async def require_refused(router: Router, ids: Int64Array, shard: int) -> None:
    """A write of these ids fails for the rows of one shard, which may be repeated."""
    errors = (await router.upsert(upsert(ids))).errors
    owners = router._children.placement.shards_of(ids)
    assert [error.row for error in errors] == np.flatnonzero(owners == shard).tolist()
    assert {error.code for error in errors} == {RowErrorCode.RESOURCE_EXHAUSTED}


# ---- damaged or unreadable at the start ----------------------------------------------------------


class Unreadable(Disk):
    """A disk on which no file of a collection may be opened."""

    def __init__(self, code: int) -> None:
        self.code = code

    def open(self, path: Path) -> DiskFile:
        if WORDS in path.parts:
            raise OSError(self.code, os.strerror(self.code))
        return super().open(path)


def flip(log: Path) -> None:
    """Change a bit in the middle of the log."""
    contents = bytearray(log.read_bytes())
    contents[len(contents) // 2] ^= 4
    log.write_bytes(contents)


def cut(log: Path) -> None:
    """Lose the second half of the log."""
    os.truncate(log, log.stat().st_size // 2)


@dataclass(frozen=True)
class Harm:
    """What is done to a file, or to the disk, and what the calls that need it raise then."""

    file: str
    do: Callable[[Path], object]
    error: type[VectorShardError] = CollectionDamaged
    disk: Disk | None = None


def nothing(_: Path) -> None:
    """Leave the files as they are."""


HARMS = {
    "log flipped": Harm(LOG, flip),
    "log cut": Harm(LOG, cut),
    "log removed": Harm(LOG, Path.unlink),
    "rows cut": Harm("rows-0.f32", lambda rows: os.truncate(rows, 100)),
    "reads fail": Harm(LOG, nothing, CollectionUnreadable, Unreadable(errno.EIO)),
    "no files": Harm(LOG, nothing, CollectionUnreadable, Unreadable(errno.EMFILE)),
}


@pytest.mark.parametrize("kind", HARMS)
@EACH
async def test_a_collection_that_is_set_aside_is_never_whole_and_its_other_half_serves(
    fleet: Fleet, router: Router, lost: int, kind: str
) -> None:
    harm, server = HARMS[kind], fleet.servers[lost]
    file = server.path / "collections" / WORDS / harm.file
    good = fleet.path / "good"
    here = (await router.describe(WORDS)).shards[1 - lost].ledger.live
    lost_ids = IDS[router._children.placement.shards_of(IDS) == lost]

    def do() -> None:
        shutil.copy(file, good)
        harm.do(file)
        server.disk = harm.disk or Disk()

    await killed(fleet, do)
    for each in await looking(fleet, router):
        for call in (
            found(each),
            found(each, min_coverage=0.75),
            each.count(COUNT),
            each.create_collection(config_of()),
            each.delete(DeleteRequest(collection=WORDS, ids=lost_ids)),
        ):
            with pytest.raises(harm.error, match=f"shard {lost}") as refused:
                await call
            assert not ADVICE.search(str(refused.value))
        lenient = await found(each, min_coverage=0.25, k=len(IDS), effort=EXACT)
        assert lenient.receipt.coverage == pytest.approx(0.5)
        assert len(lenient.hits.ids) == here
        assert "set aside" in lenient.receipt.shards[lost].missing_reason
        await require_whole(each, OTHER)
        await rounds(each)
        [problem] = await each.problems()
        assert (problem.shard, problem.collection) == (lost, WORDS)

    def heal() -> None:
        file.unlink(missing_ok=True)
        shutil.copy(good, file)
        server.disk = Disk()

    await server.stop()
    heal()
    server.start()
    for each in await looking(fleet, router):
        await rounds(each)
        await require_whole(each)
        assert await each.problems() == []


# ---- while it serves -----------------------------------------------------------------------------


@EACH
async def test_a_read_that_fails_on_one_shard_loses_nothing(
    fleet: Fleet, router: Router, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, harmed = RowDatabase.metadata, fleet.servers[lost].path
    get = GetRequest(collection=WORDS, ids=IDS, include=Include(metadata=True))

    def fail(database: RowDatabase, rows: list[int]) -> dict[int, bytes]:
        if not database.path.is_relative_to(harmed):
            return read(database, rows)
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_READ
        raise error

    written = replace(upsert(IDS), metadata=[b"\n\x0c\n\x04name\x12\x04\x1a\x02no"] * len(IDS))
    await router.upsert(written)
    for each in await looking(fleet, router):
        with monkeypatch.context() as patched:
            patched.setattr(RowDatabase, "metadata", fail)
            with pytest.raises(ReadFailed, match="the disk failed a read"):
                await each.get(get)
            await require_whole(each)
        assert (await each.get(get)).ids.tolist() == IDS.tolist()
        assert {problem.kind for problem in await each.problems()} <= {ProblemKind.UNREADABLE}


@EACH
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
async def test_a_shard_that_meets_a_limit_refuses_its_rows_and_takes_them_later(
    fleet: Fleet, router: Router, lost: int, code: int
) -> None:
    disk, server = FailingDisk(), fleet.servers[lost]
    await server.stop()
    server.disk = disk
    server.start()
    new = IDS + 1_000
    for each in await looking(fleet, router):
        await require_whole(each)
        disk.fail("commit", code=code)
        await require_refused(each, new, lost)
        assert (await each.upsert(upsert(new))).errors == ()
        assert await each.count(COUNT) == 2 * len(IDS)
        await each.delete(DeleteRequest(collection=WORDS, ids=new))
        assert await each.problems() == []


@needs_mount
@EACH
async def test_a_full_disk_of_one_shard_takes_no_search_along_and_a_drop_frees_it(
    fleet: Fleet, router: Router, lost: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "LOOK_S", 0.0)
    server = fleet.servers[lost]
    await router.create_collection(config_of("large", dim=512))
    vectors = np.ones((1_000, 512), dtype=np.float32)
    large = replace(upsert(np.arange(1_000)), collection="large", vectors=vectors)
    await router.upsert(large)
    new = IDS + 1_000
    with tiny_disk(fleet.path / "mount") as mount:

        def move() -> None:
            shutil.move(server.path, mount / "shard")
            server.path.symlink_to(mount / "shard")
            fill(mount)

        await fleet.stopped(move)
        routers = await looking(fleet, router)
        for each in routers:
            await require_whole(each)
            await require_refused(each, new, lost)
            with pytest.raises(Overloaded, match="disk"):
                await each.create_collection(config_of("new"))
            await rounds(each)
            kinds = {(problem.shard, problem.kind) for problem in await each.problems()}
            assert kinds == {(lost, ProblemKind.DISK_FULL)}
        await routers[-1].drop_collection("large")
        with pytest.raises(CollectionNotFound):
            await routers[0].describe("large")
        assert (await routers[0].upsert(upsert(new))).errors == ()
        await fleet.stopped(lambda: None)
        for each in await looking(fleet, router):
            assert await each.count(COUNT) == 2 * len(IDS)
        await fleet.close()


# ---- links ---------------------------------------------------------------------------------------


@EACH
async def test_a_linked_collection_is_dropped_and_its_shard_starts_again(
    fleet: Fleet, router: Router, lost: int
) -> None:
    place, target = fleet.servers[lost].path / "collections" / WORDS, fleet.path / "larger"

    def link() -> None:
        place.rename(target)
        place.symlink_to(target)

    await fleet.stopped(link)
    for each in await looking(fleet, router):
        await require_whole(each)
    await router.drop_collection(WORDS)
    assert not place.is_symlink()
    assert not target.exists()
    await fleet.stopped(lambda: None)
    for each in await looking(fleet, router):
        with pytest.raises(CollectionNotFound):
            await each.count(COUNT)
        await require_whole(each, OTHER)
        assert await each.problems() == []
    await router.create_collection(config_of())
    await router.upsert(upsert(IDS))
    await require_whole(router)
