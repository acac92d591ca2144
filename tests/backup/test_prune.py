"""Pruning: what goes, what stays, and that nothing goes that a running backup will need."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.backup.fleet import BEGUN, Fleet, rows_in
from tests.backup.samples import MANIFEST, put_manifest
from tests.backup.test_choice import of_other_disks
from tests.backup.test_run import Between
from vectorshard.backup import copying
from vectorshard.backup.failures import FormatUnknown, TargetError
from vectorshard.backup.layout import (
    BACKUPS,
    BLOCKS,
    NUMBERS,
    RUNNING,
    backup_name,
    backup_names,
    manifest_object,
    number_object,
    read_manifest,
)
from vectorshard.backup.leases import EXPIRED_S, Kind, Lease, LeaseLost
from vectorshard.backup.manifest import LeftOut, Manifest, Scope
from vectorshard.backup.prune import AGE_MIN_S, Pruned, prune
from vectorshard.backup.targets import UNFINISHED, DirectoryTarget
from vectorshard.shard.storage.checksum import checksum

PARTIAL = replace(MANIFEST, left_out=(LeftOut(collection="words", shard=1, reason="missing"),))


@pytest.fixture
def target(tmp_path: Path) -> DirectoryTarget:
    """Return an empty target."""
    return DirectoryTarget(tmp_path / "target", create=True, paced=False)


def name_of(day: int) -> str:
    """Return the name of a day's backup."""
    return backup_name(day + 1, BEGUN + timedelta(days=day), "0000000a")


def age(target: DirectoryTarget, seconds: float, prefix: str = BLOCKS) -> None:
    """Make objects older."""
    for each in list(target.list(prefix)):
        path = Path(target.where) / each.name
        os.utime(path, (each.written_at - seconds,) * 2)


def pruned(target: DirectoryTarget, keep: int = 1, **options: Any) -> Pruned:
    """Prune a target."""
    return prune(target, keep=keep, **options)


def test_the_newest_complete_backups_stay_and_what_is_younger_than_they(
    target: DirectoryTarget,
) -> None:
    for day in range(8):
        manifest = PARTIAL if day in (1, 5, 7) else MANIFEST
        put_manifest(target, name_of(day), manifest)
        age(target, 86_400, BACKUPS)
    assert pruned(target, keep=3, dry_run=True).backups == tuple(map(name_of, (2, 1, 0)))
    assert len(backup_names(target)) == 8
    assert pruned(target, keep=3, keep_days=6.5).backups == (name_of(1), name_of(0))
    assert pruned(target, keep=1).backups == tuple(map(name_of, (5, 4, 3, 2)))
    assert backup_names(target) == [name_of(7), name_of(6)]
    assert pruned(target, keep=5).backups == ()


CHOSEN = replace(
    MANIFEST,
    scope=Scope.CHOSEN,
    collections=tuple(
        replace(each, config=replace(each.config, name="odd")) for each in MANIFEST.collections
    ),
)
BOTH = replace(MANIFEST, collections=MANIFEST.collections + CHOSEN.collections)
EMPTY = replace(MANIFEST, collections=())
OTHER = replace(MANIFEST, cluster="other")
NAMESAKE = of_other_disks(MANIFEST)


@pytest.mark.parametrize(
    ("backups", "keep", "gone"),
    [
        ([BOTH, CHOSEN, CHOSEN, CHOSEN], 2, {1}),
        ([BOTH, BOTH, CHOSEN, CHOSEN], 2, set()),
        ([BOTH, BOTH, CHOSEN, CHOSEN, CHOSEN], 2, {2}),
        ([CHOSEN, CHOSEN, MANIFEST, MANIFEST, CHOSEN], 1, {0, 1, 2}),
        ([CHOSEN, MANIFEST, CHOSEN, BOTH, MANIFEST], 2, {0, 1}),
        ([BOTH, MANIFEST, MANIFEST], 2, {0}),  # odd was dropped long ago
        ([BOTH, MANIFEST, MANIFEST], 3, set()),
        ([MANIFEST, OTHER, OTHER, OTHER], 2, {1}),
        ([OTHER, PARTIAL, MANIFEST], 1, {1}),
        ([MANIFEST, NAMESAKE, NAMESAKE, NAMESAKE], 2, {1}),
        ([MANIFEST, EMPTY, EMPTY, EMPTY], 2, {1}),  # a fleet that has lost everything
        ([EMPTY, EMPTY], 1, {0}),
    ],
)
def test_the_newest_of_every_cluster_and_of_each_of_its_collections_stay(
    target: DirectoryTarget, backups: list[Manifest], keep: int, gone: set[int]
) -> None:
    for day, manifest in enumerate(backups):
        put_manifest(target, name_of(day), manifest)
    assert {*pruned(target, keep=keep).backups} == {*map(name_of, gone)}
    assert pruned(target, keep=keep).backups == ()


def test_what_is_newer_is_said_by_the_number_not_by_a_clock(target: DirectoryTarget) -> None:
    ahead = backup_name(1, BEGUN + timedelta(days=365), "0000000a")
    for name in (ahead, backup_name(2, BEGUN, "0000000a"), backup_name(3, BEGUN, "00000009")):
        put_manifest(target, name, MANIFEST)
    assert pruned(target, keep=2).backups == (ahead,)


def test_a_prune_leaves_the_greatest_number(target: DirectoryTarget) -> None:
    for number in (8, 9, 10):
        target.put(number_object(number), b"")
    pruned(target)
    assert [each.name for each in target.list(NUMBERS)] == [number_object(10)]


def test_objects_stay_where_a_backup_is_not_to_be_seen(target: DirectoryTarget) -> None:
    target.put("blocks/i/0-d-1/0-1-0000000b.block", b"rows")
    age(target, AGE_MIN_S + 1)
    assert "no backup is to be seen" in pruned(target).held
    put_manifest(target, name_of(0), MANIFEST)
    target.put(number_object(2), b"")
    assert pruned(target).held == "the backup of number 2 is not to be seen"
    put_manifest(target, name_of(1), MANIFEST)
    assert pruned(target).objects == 1


def test_what_other_releases_or_people_left_stops_a_prune(target: DirectoryTarget) -> None:
    target.put("blocks/i/0-d-1/0-1-0000000b.block", b"rows")
    age(target, AGE_MIN_S + 1)
    put_manifest(target, name_of(0), MANIFEST)
    target.put("backups/named-otherwise.json", b"{}")
    assert pruned(target).held == "backups/named-otherwise.json is no backup of this release"
    of_format_1 = json.loads(MANIFEST.encode()) | {"format_version": 1}
    del of_format_1["crc32c"]
    canonical = json.dumps(of_format_1, separators=(",", ":"), sort_keys=True).encode()
    stored = json.dumps({**of_format_1, "crc32c": checksum(canonical)}).encode()
    target.put("backups/20260101T000000Z-0000000a.json", stored)
    with pytest.raises(FormatUnknown, match="format_version is 1"):
        pruned(target)
    assert len(list(target.list(BLOCKS))) == 1


def test_only_old_objects_that_no_backup_names_go(target: DirectoryTarget) -> None:
    [needed] = MANIFEST.objects()
    put_manifest(target, name_of(0), MANIFEST)
    for name in (needed, "blocks/i/0-d-1/9-10-0000000b.block", "blocks/x/0-d-1/0-1-0000000c.block"):
        target.put(name, b"rows")
    unfinished = Path(target.where) / f"{needed}{UNFINISHED}"
    unfinished.write_bytes(b"half")
    assert pruned(target).objects == 0, "they are young"
    age(target, AGE_MIN_S + 1)
    target.put("blocks/i/0-d-1/10-11-0000000d.block", b"rows")
    done = pruned(target)
    assert (done.objects, done.size_bytes, done.held) == (3, 12, "")
    assert [each.name for each in target.list(BLOCKS)] == [
        needed,
        "blocks/i/0-d-1/10-11-0000000d.block",
    ]
    assert list(target.list(RUNNING)) == []


def test_objects_stay_while_a_backup_runs_or_a_manifest_is_damaged(
    target: DirectoryTarget,
) -> None:
    target.put("blocks/i/0-d-1/0-1-0000000b.block", b"rows")
    age(target, AGE_MIN_S + 1)
    put_manifest(target, name_of(0), MANIFEST)
    target.put(manifest_object(name_of(1)), b"damaged")
    assert "damaged" in pruned(target).held
    put_manifest(target, name_of(2), MANIFEST)
    lease = Lease(target, Kind.BACKUP, "00000001")
    done = pruned(target)
    assert (done.backups, done.held) == ((name_of(1), name_of(0)), "a backup is being made")
    lease.end()
    assert pruned(target).objects == 1


def test_the_lease_of_a_process_that_has_died_is_removed(target: DirectoryTarget) -> None:
    Lease(target, Kind.BACKUP, "00000001")
    target.put(f"{RUNNING}00000002.json", b"of a later version")
    put_manifest(target, name_of(0), MANIFEST)
    target.put("blocks/i/0-d-1/0-1-0000000b.block", b"rows")
    age(target, AGE_MIN_S + 1)
    age(target, EXPIRED_S - 60, RUNNING)
    assert pruned(target).held == "a backup is being made"
    age(target, 120, RUNNING)
    assert pruned(target).objects == 1
    assert list(target.list(RUNNING)) == []


def test_a_backup_of_a_later_version_stops_a_prune(target: DirectoryTarget) -> None:
    fields = {**json.loads(MANIFEST.encode()), "format_version": 3}
    del fields["crc32c"]
    canonical = json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()
    put_manifest(target, name_of(0), MANIFEST)
    stored = json.dumps({**fields, "crc32c": checksum(canonical)}).encode()
    target.put(manifest_object(name_of(1)), stored)
    put_manifest(target, name_of(2), MANIFEST)
    with pytest.raises(FormatUnknown):
        pruned(target)
    assert len(backup_names(target)) == 3
    assert list(target.list(RUNNING)) == []


def test_a_process_that_was_stopped_for_long_deletes_nothing_more(
    target: DirectoryTarget,
) -> None:
    for day in range(4):
        put_manifest(target, name_of(day), MANIFEST)
    times = itertools.chain([0.0] * 6, itertools.repeat(EXPIRED_S))
    with pytest.raises(LeaseLost, match="not renewed for 900 s"):
        pruned(target, clock=lambda: next(times))
    assert len(backup_names(target)) == 3


# ---- with backups -------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Return a router over two shards with 300 rows, which are many blocks."""
    monkeypatch.setattr(copying, "BLOCK_BYTES", 2_000)
    monkeypatch.setattr(copying, "SMALL_BYTES", 1_000)
    fleet = await Fleet(tmp_path).open()
    await fleet.create()
    await fleet.put(range(300))
    yield fleet
    await fleet.server.close()


async def test_pruned_backups_take_only_their_own_blocks_with_them(fleet: Fleet) -> None:
    held = []
    for seed in range(4):
        await fleet.put(range(100 * seed, 100 * seed + 150), seed=seed)
        made = await fleet.back_up(full=seed == 2)
        held.append((made, dict(fleet.rows)))
    age(fleet.target, AGE_MIN_S + 1)
    done = pruned(fleet.target, keep=2)
    assert done.objects > 10
    assert backup_names(fleet.target) == [held[3][0].name, held[2][0].name]
    for made, rows in held[2:]:
        assert rows_in(fleet.target, made.manifest) == rows
    needed = {name for made, _ in held[2:] for name in made.manifest.objects()}
    assert {each.name for each in fleet.target.list(BLOCKS)} == needed


async def test_a_backup_keeps_what_it_builds_on_though_a_prune_runs_beside_it(
    fleet: Fleet,
) -> None:
    first = await fleet.back_up()
    await fleet.back_up(full=True)
    await fleet.put(range(50), seed=7)
    done: list[Pruned] = []

    def pruning(name: str, request: object) -> None:
        if name == "open_copy":
            age(fleet.target, AGE_MIN_S + 1)
            done.append(pruned(fleet.target))

    made = await fleet.back_up(server=Between(fleet.server, pruning))
    assert done[0].held == "a backup is being made"
    assert done[0].backups == (first.name,)
    assert rows_in(fleet.target, made.manifest) == fleet.rows


async def test_a_backup_that_began_during_a_prune_notices_what_that_deleted(fleet: Fleet) -> None:
    first = await fleet.back_up()
    prune_lease = Lease(fleet.target, Kind.PRUNE, "00000001")  # it has seen no backup yet
    lists = 0

    def deleting(name: str, request: object) -> None:
        nonlocal lists
        lists += 1
        if name == "read_copy":
            for each in first.manifest.objects():
                fleet.target.delete(each)
            prune_lease.end()

    with pytest.raises(TargetError, match="deleted or changed meanwhile"):
        await fleet.back_up(server=Between(fleet.server, deleting))
    assert backup_names(fleet.target) == [first.name]
    with pytest.raises(TargetError):
        rows_in(fleet.target, read_manifest(fleet.target, "absent"))


async def test_a_backup_waits_for_a_prune_before_its_manifest(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune_lease = Lease(fleet.target, Kind.PRUNE, "00000001")
    waits: list[str] = []
    others = Lease.others

    def ending(lease: Lease) -> Any:
        found = others(lease)
        waits.append(str(backup_names(fleet.target)))
        if len(waits) == 3:
            prune_lease.end()
        return found

    monkeypatch.setattr(Lease, "others", ending)
    await fleet.back_up()
    assert waits == ["[]"] * 4
