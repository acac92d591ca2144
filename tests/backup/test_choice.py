"""Which backup a target stands for, and when its operator has to choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.backup.samples import MANIFEST, put_manifest
from vectorshard.backup.choice import located
from vectorshard.backup.failures import BackupAmbiguous, BackupNotFound
from vectorshard.backup.fleets import fleets_of
from vectorshard.backup.layout import manifest_object
from vectorshard.backup.manifest import LeftOut, Manifest, Scope
from vectorshard.backup.targets import DirectoryTarget

PARTIAL = replace(MANIFEST, left_out=(LeftOut(collection="words", shard=1, reason="missing"),))
ODD = replace(
    MANIFEST,
    scope=Scope.CHOSEN,
    collections=tuple(
        replace(each, config=replace(each.config, name="odd")) for each in MANIFEST.collections
    ),
)
BOTH = replace(MANIFEST, collections=MANIFEST.collections + ODD.collections)


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    """Return an empty target."""
    return DirectoryTarget(tmp_path / "target", create=True, paced=False)


def of_other_disks(manifest: Manifest) -> Manifest:
    """Return a manifest of another fleet whose cluster has the same name: the default one."""
    collections = tuple(
        replace(
            each,
            incarnation="other",
            members=(),
            shards=tuple(replace(shard, directory="other") for shard in each.shards),
        )
        for each in manifest.collections
    )
    return replace(manifest, collections=collections)


def put(target: DirectoryTarget, number: int, manifest: Manifest = MANIFEST) -> str:
    """Store a manifest under a number, and return the name: each clock is before the last one."""
    name = f"{number:08}-202601{28 - number:02}T000000Z-0000000a"
    put_manifest(target, name, manifest)
    return name


def test_a_backup_is_named_by_its_target_or_by_its_own_name(target: DirectoryTarget) -> None:
    with pytest.raises(BackupNotFound):
        located(target.where)
    put(target, 3, PARTIAL)
    with pytest.raises(BackupNotFound, match="no complete backup"):
        located(target.where)
    first, second = put(target, 1), put(target, 2)
    for where, name in {
        target.where: second,
        f"{target.where}/": second,
        f"{target.where}/{first}": first,
        f"{target.where}/{manifest_object(first)}": first,
    }.items():
        found, found_name = located(where)
        assert (found.where, found_name) == (target.where, name)


def test_a_target_stands_for_its_newest_backup_of_all_collections(target: DirectoryTarget) -> None:
    odd = put(target, 1, ODD)
    with pytest.raises(BackupAmbiguous, match=f"all collections; choose .*: {odd} of odd$"):
        located(target.where)
    both, newer = put(target, 2, BOTH), put(target, 3, ODD)
    assert located(target.where)[1] == both
    assert located(target.where, ["odd"])[1] == newer
    assert located(target.where, ["words"])[1] == both
    assert located(target.where, ["odd", "words"])[1] == both
    with pytest.raises(BackupNotFound, match="no complete backup of absent, odd"):
        located(target.where, ["absent", "odd"])


def test_a_target_of_several_fleets_stands_for_none(target: DirectoryTarget) -> None:
    whole = put(target, 1)
    put(target, 2, ODD)
    other = put(target, 3, of_other_disks(ODD))
    for collections in ((), ["odd"]):
        with pytest.raises(BackupAmbiguous) as refused:
            located(target.where, collections)
        text = f"name one: {other} of cluster (only odd); {whole} of cluster"
        assert str(refused.value).endswith(text)
    assert located(f"{target.where}/{other}")[1] == other


def test_backups_that_share_a_directory_or_an_incarnation_are_of_one_fleet() -> None:
    new_disk = replace(
        BOTH,
        collections=tuple(
            replace(each, members=(), shards=(replace(each.shards[0], directory="new"),))
            for each in BOTH.collections
        ),
    )
    recreated = replace(
        new_disk,
        collections=tuple(replace(each, incarnation="new") for each in new_disk.collections),
    )
    empty = replace(MANIFEST, collections=())
    backups = [
        ("5", recreated),
        ("4", of_other_disks(BOTH)),
        ("3", empty),
        ("2", new_disk),
        ("1", BOTH),
        ("0", replace(empty, cluster="b")),
    ]
    names = [[name for name, _ in fleet] for fleet in fleets_of(backups)]
    assert names == [["5", "3", "2", "1"], ["4"], ["0"]]
