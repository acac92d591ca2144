"""A shard whose files were repaired: whole if everything came back, else MISSING until accepted.

Real shards in this process, without sockets; tests/shard/engine/test_repair.py has the repairs.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.shard.samples import config_of
from tests.test_accepted_losses import (
    CORPUS,
    OLDER_ROWS,
    ROWS,
    Fleet,
    check_missing,
    rows_of,
    written,
)
from vectorshard.cli.embedded import open_embedded
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.errors import ShardMissing, WritesLost
from vectorshard.shard.membership import AcceptLossRequest
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.register import Register
from vectorshard.shard.storage.repair import Given, Wanted, repair
from vectorshard.shard.storage.repair_findings import Outcome, Repair
from vectorshard.shard.types import CountRequest, SearchRequest, UpsertRequest

SHARD = 1


def harmed(path: Path, statement: str, shard: int = SHARD) -> None:
    """Change the database of a collection that no server has open."""
    database = path / f"shard-{shard}" / "collections" / "words" / "store.db"
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute(statement)


def repaired(path: Path, shard: int = SHARD) -> Repair:
    directory = path / f"shard-{shard}"
    found = repair(Disk(), directory, Wanted(write=True), Given(slots_of=slots_of_shard))
    assert found[0].outcome is Outcome.SOUND
    return found[1]


@pytest.mark.parametrize("witnessed", [True, False])
@pytest.mark.parametrize("commit", [1, 2])
async def test_a_shard_that_lost_a_commit_is_missing_until_the_loss_is_accepted(
    tmp_path: Path, witnessed: bool, commit: int
) -> None:
    path = tmp_path / "fleet"
    token = await written(path, witnessed=witnessed)
    harmed(path, f"UPDATE commits SET crc32c = 7, ids = x'00' WHERE sequence = {commit}")
    found = repaired(path)
    assert (found.whole, found.commits_lost) == (False, (commit,))
    fleet = await Fleet.open(path)
    await fleet.rounds()
    await check_missing(fleet, SHARD)
    kept, left = await rows_of(fleet, SHARD), await rows_of(fleet, 1 - SHARD)
    assert kept < ROWS - left
    shown = await fleet.routers[0].accept_loss(AcceptLossRequest(shard=SHARD))
    (loss,) = shown.losses
    assert loss.witnessed_accepted is not None
    assert loss.witnessed_accepted - loss.accepted == ROWS - left - kept
    await fleet.routers[0].accept_loss(AcceptLossRequest(shard=SHARD, accept=True))
    await fleet.rounds(3)
    result = await fleet.search()
    assert (result.receipt.coverage, len(result.hits.ids)) == (1.0, left + kept)
    ledger = (await fleet.routers[0].describe("words")).ledger
    assert ledger.adds_up
    assert (ledger.accepted, ledger.lost) == (ROWS, ROWS - left - kept)
    with pytest.raises(WritesLost, match=f"shard {SHARD}"):
        await fleet.search(token=token)
    await fleet.put(0, OLDER_ROWS)
    await fleet.put(OLDER_ROWS, ROWS)
    assert len((await fleet.search()).hits.ids) == ROWS
    await fleet.close()


async def test_a_shard_of_which_everything_was_restored_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    token = await written(path)
    harmed(path, "UPDATE ledger SET accepted = 3, deleted = 9, sum = zeroblob(16)")
    assert repaired(path).whole
    fleet = await Fleet.open(path)
    await fleet.rounds()
    found = await fleet.search(token=token)
    assert (found.receipt.coverage, len(found.hits.ids)) == (1.0, ROWS)
    await fleet.close()


@pytest.mark.parametrize("file", ["shard.json", "session", "register.json", "witness.json"])
@pytest.mark.parametrize("gone", [True, False])
async def test_files_of_the_directory_are_made_again_and_nothing_is_missing(
    tmp_path: Path, file: str, gone: bool
) -> None:
    path = tmp_path / "fleet"
    token = await written(path)
    fleet = await Fleet.open(path)
    await fleet.rounds(3)  # the collections name their members
    await fleet.close()
    harmed_file = path / f"shard-{SHARD}" / file
    if gone:
        harmed_file.unlink()
    else:
        harmed_file.write_bytes(b"7" * harmed_file.stat().st_size)
    directory = path / f"shard-{SHARD}"
    given = Given(cluster="cluster", slots_of=slots_of_shard)
    found = repair(Disk(), directory, Wanted(write=True), given)
    sound = file == "witness.json" and gone
    expected = [Outcome.SOUND if sound else Outcome.REPAIRED, Outcome.SOUND]
    assert [each.outcome for each in found] == expected
    assert (directory / f"damaged.{file}.1").exists() == (not gone)
    again = repair(Disk(), directory, Wanted(), given)
    assert [each.outcome for each in again] == [Outcome.SOUND, Outcome.SOUND]
    fleet = await Fleet.open(path)
    await fleet.rounds()
    result = await fleet.search(token=token)
    assert (result.receipt.coverage, len(result.hits.ids)) == (1.0, ROWS)
    await fleet.close()


@pytest.mark.parametrize("at", [b'"life": ', b'"format_version": ', b'"cluster'])
async def test_a_flipped_bit_of_the_identity_is_undone(tmp_path: Path, at: bytes) -> None:
    path = tmp_path / "fleet"
    await written(path)
    file = path / f"shard-{SHARD}" / "shard.json"
    sound = file.read_bytes()
    flipped = bytearray(sound)
    flipped[sound.index(at) + len(at)] ^= 1
    file.write_bytes(flipped)
    found = repair(Disk(), file.parent, Wanted(write=True), Given(slots_of=slots_of_shard))
    assert [each.outcome for each in found] == [Outcome.REPAIRED, Outcome.SOUND]
    assert file.read_bytes() == sound


async def test_an_identity_that_is_stored_nowhere_else_has_to_be_given(tmp_path: Path) -> None:
    path = tmp_path / "fleet"
    await written(path)
    directory = path / f"shard-{SHARD}"
    (directory / "shard.json").write_bytes(b"{")
    found = repair(Disk(), directory, Wanted(write=True), Given(slots_of=slots_of_shard))
    assert found[0].outcome is Outcome.REFUSED
    assert "--cluster" in found[0].cure
    wrong = Given(shard=0, shards_total=3, cluster="cluster", slots_of=slots_of_shard)
    found = repair(Disk(), directory, Wanted(write=True), wrong)
    assert found[0].outcome is Outcome.REFUSED
    assert (directory / "shard.json").read_bytes() == b"{"


async def test_a_register_is_made_again_of_all_collections_though_one_is_looked_at(
    tmp_path: Path,
) -> None:
    router = await open_embedded(tmp_path, 1, EngineConfig())
    for name in ("words", "others"):
        await router.create_collection(config_of(name))
    await router.close()
    directory = tmp_path / "shard-0"
    before = Register.read(directory)
    (directory / "register.json").unlink()
    wanted = Wanted(write=True, collection="words")
    found = repair(Disk(), directory, wanted, Given(slots_of=slots_of_shard))
    assert [each.collection for each in found] == ["", "words"]
    after = Register.read(directory)
    assert before is not None
    assert after is not None
    assert sorted(map(repr, after.collections)) == sorted(map(repr, before.collections))


async def test_a_sole_shard_that_lost_a_commit_is_missing_too(tmp_path: Path) -> None:
    engine = EngineConfig()
    router = await open_embedded(tmp_path, 1, engine)
    await router.create_collection(config_of())
    for half in (slice(0, OLDER_ROWS), slice(OLDER_ROWS, ROWS)):
        rows = CORPUS.take(half)
        request = UpsertRequest(collection="words", ids=rows.ids, vectors=rows.vectors)
        token = (await router.upsert(request)).token
    await router.close()
    harmed(tmp_path, "UPDATE commits SET crc32c = 7, ids = x'00' WHERE sequence = 2", shard=0)
    assert repaired(tmp_path, shard=0).commits_lost == (2,)
    router = await open_embedded(tmp_path, 1, engine)
    count = CountRequest(collection="words")
    for call in (router.count(count), router.upsert(request)):
        with pytest.raises(ShardMissing, match="a repair gave up commits"):
            await call
    await router.accept_loss(AcceptLossRequest(shard=0, accept=True))
    assert await router.count(count) == OLDER_ROWS
    with pytest.raises(WritesLost):
        await router.search(
            SearchRequest(collection="words", queries=CORPUS.vectors[:1], k=1, token=token)
        )
    await router.upsert(request)
    assert await router.count(count) == ROWS
    await router.close()
