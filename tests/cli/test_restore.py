"""The commands `restore` and `verify`: what they print, and how they end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.backup.made import SECOND
from tests.backup.samples import put_manifest
from tests.backup.test_restore import ROWS, WORDS, two_backups
from tests.cli.conftest import Run
from vectorshard.backup.manifest import LeftOut, Manifest, Scope
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.backup.verify import Verified, verify_quickly
from vectorshard.cli import restore

NEWER = "00000003-20261202T020000Z-0000cccc"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """A target with two backups of one shard, the newer one's manifest; a partial one is newest."""
    path = tmp_path_factory.mktemp("cli")
    target = DirectoryTarget(path / "target", create=True, paced=False)
    manifest = two_backups(path / "old", target, 1)
    gone = LeftOut(collection=WORDS, shard=1, reason="shard 1 does not answer")
    partial = replace(manifest, left_out=(gone,), shards_total=2)
    put_manifest(target, NEWER, partial)
    return path / "target", manifest


def test_a_restore_shows_what_it_built_and_how_to_start_it(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, manifest = made
    data = tmp_path / "new"
    ended = run("restore", target, "--data", data, "--shards", 2, "--collection", f"{WORDS}=w")
    assert ended.exit_code == 0, ended.output
    assert f"restored from {SECOND}" in ended.output, "the newest complete one"
    assert manifest.collections[0].content_sum in ended.output
    assert f"restored {manifest.collections[0].live:,} rows" in ended.output
    assert f"vectorshard serve --shards 2 --data {data}" in ended.output.replace("\n", " ")
    assert sorted(path.name for path in data.iterdir()) == ["shard-0", "shard-1"]
    whole = json.loads(run("restore", target, "--data", tmp_path / "j", "--json").stdout)
    [restored] = [each for each in whole["collections"] if each["name"] == WORDS]
    assert restored["content_sum"] == manifest.collections[0].content_sum
    assert (whole["backup"], whole["lacks"]) == (SECOND, [])
    assert whole["start"] == f"vectorshard serve --shards 1 --data {tmp_path / 'j'}"
    again = run("restore", target, "--data", data)
    assert again.exit_code == 1
    assert "is not empty, it contains shard-0, shard-1" in again.stderr


def test_a_restore_of_more_shards_than_files_may_be_open_is_refused(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restore, "raise_limit", lambda: 512)
    refused = run("restore", made[0], "--data", tmp_path / "d", "--shards", 120)
    assert refused.exit_code == 1
    assert "needs 1,264 open files, and the limit is 512" in refused.stderr
    assert not (tmp_path / "d").exists()


def test_a_shard_of_a_fleet_is_restored_into_its_own_directory(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, _ = made
    alone = ("restore", target / SECOND, "--data", tmp_path / "d", "--shards", 3, "--shard-id")
    unnamed = run("restore", target, *alone[2:], 1, "--cluster", "grown")
    assert unnamed.exit_code == 2
    said = "".join(unnamed.output.replace("│", " ").split())
    assert f"{SECOND}isthenewest" in said
    assert "needs --cluster" in run(*alone, 1).output.replace("\n", " ")
    assert "must be less" in run(*alone, 3, "--cluster", "grown").output.replace("\n", " ")
    ended = run(*alone, 1, "--cluster", "grown")
    assert ended.exit_code == 0, ended.output
    assert "vectorshard shard --shard-id 1 --shards 3" in ended.output.replace("\n", " ")
    assert (tmp_path / "d" / "shard.json").exists()


def test_a_shard_that_rejoins_its_fleet_has_its_cluster(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, manifest = made
    data = tmp_path / "d"
    for wrong in ((), ("--shard-id", 0, "--cluster", "c"), ("--shard-id", 0, "--shards", 1)):
        refused = run("restore", target, "--data", data, "--rejoin", *wrong)
        assert refused.exit_code == 2, refused.output
    ended = run("restore", target, "--data", data, "--rejoin", "--shard-id", 0)
    assert ended.exit_code == 0, ended.output
    assert "then: vectorshard accept-loss --shard-id 0" in ended.output
    assert f'"cluster": "{manifest.cluster}"' in (data / "shard.json").read_text()


def test_a_partial_backup_is_restored_only_on_request(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, _ = made
    data = tmp_path / "new"
    refused = run("restore", target / NEWER, "--data", data)
    assert refused.exit_code == 20
    assert "shard 1 does not answer" in refused.stderr
    assert not data.exists()
    ended = run("restore", target / NEWER, "--data", data, "--partial")
    assert ended.exit_code == 0, ended.output
    assert "the backup lacks collection 'words', shard 1" in ended.output


def test_a_backup_of_chosen_collections_says_so_and_no_shard_rejoins_with_it(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, manifest = made
    name = "00000004-20250101T000000Z-0000dddd"
    chosen = replace(manifest, scope=Scope.CHOSEN, collections=manifest.collections[:1])
    stored = DirectoryTarget(target)
    put_manifest(stored, name, chosen)
    try:
        assert f"backup {SECOND}" in run("verify", target).output
        said = f"backup {name} has only chosen collections: {chosen.collections[0].name}"
        assert said in run("verify", target / name).output.replace("\n", " ")
        wanted = f"{chosen.collections[0].name}=again"
        ended = run("restore", target, "--data", tmp_path / "a", "--collection", wanted)
        assert f"restored from {name}" in ended.output, "the newest that has it"
        rejoin = ("--data", tmp_path / "b", "--rejoin", "--shard-id", 0)
        refused = run("restore", target / name, *rejoin)
        assert (refused.exit_code, "that were not chosen" in refused.stderr) == (20, True)
        put_manifest(stored, name, replace(chosen, cluster="another"))
        refused = run("restore", target, "--data", tmp_path / "c")
        assert (refused.exit_code, "several fleets" in refused.stderr) == (22, True)
    finally:
        stored.delete(f"backups/{name}.json")


def test_a_verification_ends_with_a_code_for_what_it_found(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, manifest = made
    for options in ((), ("--quick",)):
        whole = run("verify", target, *options)
        assert whole.exit_code == 0, whole.output
        assert whole.output.rstrip().endswith("sound")
        assert run("verify", target / NEWER, *options).exit_code == 20
    assert f"{2 * ROWS - 20:,} rows in" in run("verify", target).output
    victim = target / next(manifest.blocks()).name
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"\0")
    try:
        harmed = run("verify", target)
        assert harmed.exit_code == 23
        assert victim.name in harmed.output.replace("\n", "")
        assert run("verify", target, "--quick").exit_code == 0
        refused = run("restore", target, "--data", tmp_path / "harmed")
        assert refused.exit_code == 23
        assert "an earlier backup may be whole" in refused.stderr
        told = run("verify", target, "--json")
        assert (told.exit_code, json.loads(told.stdout)["sound"]) == (23, False)
        assert victim.name in json.loads(told.stdout)["findings"][0]
    finally:
        victim.write_bytes(good)
    sound = json.loads(run("verify", target, "--json").stdout)
    assert (sound["sound"], sound["rows"], sound["findings"]) == (True, 2 * ROWS - 20, [])
    absent = run("verify", tmp_path / "nowhere")
    assert absent.exit_code == 22
    assert "there is no such directory" in absent.stderr


def test_a_newer_backup_that_cannot_be_used_is_not_passed_over_in_silence(
    run: Run, made: tuple[Path, Manifest], tmp_path: Path
) -> None:
    target, _ = made
    name = "00000005-20261203T000000Z-0000eeee"
    damaged, taken = target / "backups" / f"{name}.json", target / "numbers" / "00000007"
    damaged.write_bytes(b"")
    try:
        ended = run("verify", target)
        assert ended.exit_code == 23
        assert f"a newer backup than {SECOND} is unreadable" in ended.output
        assert ended.output.rstrip().endswith("sound"), "the one that was verified"
        told = json.loads(run("verify", target, "--json").stdout)
        assert name in told["newer_unreadable"][0]
        assert run("verify", target / SECOND).exit_code == 0
        restored = run("restore", target, "--data", tmp_path / "new")
        assert restored.exit_code == 0
        assert f"a newer backup than {SECOND} is unreadable" in restored.output
        damaged.unlink()
        taken.parent.mkdir(exist_ok=True)
        taken.touch()
        ended = run("verify", target)
        assert ended.exit_code == 0
        assert "a newer backup took number 7, and is not there" in ended.output
    finally:
        damaged.unlink(missing_ok=True)
        taken.unlink(missing_ok=True)


def test_a_backup_that_is_pruned_while_it_is_verified_is_not_called_damaged(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = DirectoryTarget(tmp_path / "target", create=True, paced=False)
    two_backups(tmp_path / "old", target, 1)

    def pruned(where: DirectoryTarget, manifest: Manifest) -> Verified:
        for each in [*where.list("backups/"), *where.list("blocks/")]:
            where.delete(each.name)
        return verify_quickly(where, manifest)

    monkeypatch.setattr("vectorshard.backup.verify.verify_quickly", pruned)
    ended = run("verify", tmp_path / "target", "--quick")
    assert ended.exit_code == 22
    assert "was deleted while it was verified" in ended.stderr
