"""A shard whose disk is lost, restored into its fleet: missing, until its loss is accepted."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.backup.fleet import Silent
from tests.shard.samples import config_of, identity_of
from tests.test_accepted_losses import CORPUS, OLDER_ROWS, ROWS, Fleet
from vectorshard.backup.layout import read_manifest
from vectorshard.backup.restore import Backup, Restore, ShardPlace, part_of_shard, wanted_of
from vectorshard.backup.run import Backup as Making
from vectorshard.backup.run import Wanted
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.router.fan_out.placement import slots_of_shard
from vectorshard.shard.errors import ShardMissing
from vectorshard.shard.membership import AcceptLossRequest
from vectorshard.shard.types import GetRequest

LOST = 1


async def test_a_restored_shard_rejoins_its_fleet_with_what_the_backup_had(tmp_path: Path) -> None:
    target = DirectoryTarget(tmp_path / "target", create=True, paced=False)
    path = tmp_path / "fleet"
    fleet = await Fleet.open(path)
    await fleet.routers[0].create_collection(config_of())
    await fleet.put(0, OLDER_ROWS)
    made = await Making(fleet.routers[0], target, Wanted(), version="0", report=Silent()).run()
    await fleet.put(OLDER_ROWS, ROWS)
    await fleet.rounds()
    await fleet.close()

    shutil.rmtree(path / f"shard-{LOST}")
    manifest = read_manifest(target, made.name)
    backup = Backup(target=target, name=made.name, manifest=manifest)
    identity = identity_of(LOST, 2, slots_of_shard(LOST, 2))
    place = ShardPlace(path=path / f"shard-{LOST}", identity=identity)
    wanted = part_of_shard(wanted_of(manifest, []), LOST)
    (found,) = Restore(backup, [place], rejoin=True).run(place.path, wanted)
    assert found.rows == {LOST: wanted[0].backup.live}

    fleet = await Fleet.open(path)
    with pytest.raises(ShardMissing, match=f"shard {LOST}: its directory is another"):
        await fleet.search()
    await fleet.rounds(3)
    request = AcceptLossRequest(shard=LOST, accept=True)
    (loss,) = (await fleet.routers[0].accept_loss(request)).losses
    assert loss.live == found.rows[LOST]
    await fleet.rounds(3)
    answer = await fleet.search()
    described = await fleet.routers[0].describe("words")
    lost = described.ledger.lost
    assert 0 < lost < ROWS - OLDER_ROWS
    assert len(answer.hits.ids) == described.ledger.live == ROWS - lost
    assert described.ledger.accepted == ROWS
    assert described.ledger.adds_up
    older = CORPUS.take(slice(0, OLDER_ROWS))
    kept = await fleet.routers[0].get(GetRequest(collection="words", ids=older.ids))
    assert len(kept.ids) == OLDER_ROWS, "a row of the backup is lost"
    await fleet.put(OLDER_ROWS, ROWS)
    assert len((await fleet.search()).hits.ids) == ROWS
    await fleet.close()
