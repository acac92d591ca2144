"""`vectorshard backup`: its options and tables; tests/system has its work."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.backup.fleet import BEGUN
from tests.backup.samples import MANIFEST, put_manifest
from tests.cli.conftest import Run
from vectorshard.backup.failures import BackupIncomplete, ObjectNotFound, TargetError
from vectorshard.backup.layout import backup_name, manifest_object
from vectorshard.backup.manifest import LeftOut, Scope
from vectorshard.backup.run import Made
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.cli import backups
from vectorshard.cli.backups import BackupExit, exit_code
from vectorshard.shard.errors import (
    CollectionDamaged,
    CollectionNotFound,
    InternalError,
    ShardMissing,
    ShardUnavailable,
)

PARTIAL = replace(MANIFEST, left_out=(LeftOut(collection="words", shard=1, reason="lost"),))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Return a target with a complete backup, a partial one and a damaged one."""
    stored = DirectoryTarget(tmp_path / "target", create=True, paced=False)
    names = [backup_name(day + 1, BEGUN + timedelta(days=day), "0000000a") for day in range(3)]
    put_manifest(stored, names[0], MANIFEST)
    put_manifest(stored, names[1], PARTIAL)
    stored.put(manifest_object(names[2]), b"damaged")
    return tmp_path / "target"


def test_backups_are_listed_the_newest_first(
    run: Run, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [
        json.loads(line) for line in run("backup", "list", target, "--json").stdout.split("\n")[:-1]
    ]
    assert [line.get("complete") for line in lines] == [None, False, True]
    assert "invalid JSON" in lines[0]["error"]
    assert lines[2]["collections"] == ["words"]
    assert (lines[2]["rows"], lines[2]["bytes"]) == (2, 300)
    assert lines[2]["age_s"] > 0
    assert (lines[2]["number"], lines[2]["scope"]) == (1, "all")
    monkeypatch.setattr("vectorshard.cli.output.LOG_WIDTH", 60)
    shown = run("backup", "list", target).stdout
    assert all(line["name"] in shown.split() for line in lines)
    assert shown.index("00000003") < shown.index("partial") < shown.index("complete")
    assert "has no backups" in run("backup", "list", target / "backups").stdout
    assert run("backup", "list", target / "absent").exit_code == BackupExit.TARGET_FAILED


def test_the_scope_and_the_clusters_are_listed_and_no_age_is_negative(
    run: Run, tmp_path: Path
) -> None:
    stored = DirectoryTarget(tmp_path, paced=False)
    chosen = replace(MANIFEST, scope=Scope.CHOSEN, ended="2999-01-01T00:00:00Z")
    put_manifest(stored, backup_name(1, BEGUN, "0000000a"), chosen)
    [line] = run("backup", "list", tmp_path, "--json").stdout.splitlines()
    assert (json.loads(line)["scope"], json.loads(line)["age_s"]) == ("chosen", 0)
    assert "of cluster" not in run("backup", "list", tmp_path).stdout
    other = replace(MANIFEST, cluster="b")
    put_manifest(stored, backup_name(2, BEGUN, "0000000a"), other)
    assert "all of b" in run("backup", "list", tmp_path).stdout


def test_a_prune_prints_what_goes(run: Run, target: Path) -> None:
    shown = run("backup", "prune", target, "--keep", 1, "--dry-run").stdout
    told = json.loads(run("backup", "prune", target, "--keep", 1, "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["backups"], told["objects"]) == (True, [], 0)
    assert "would delete 0 backups" in shown
    assert (
        "objects stay for the next prune: the manifest of 00000003-20260103T000000Z-0000000a"
        in shown
    )
    assert run("backup", "prune", target).exit_code == BackupExit.USAGE
    assert run("backup", "prune", target, "--keep", 0).exit_code == BackupExit.USAGE


def test_an_interrupted_backup_says_that_there_is_none(
    run: Run, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupt(*_: Any) -> Made:
        raise KeyboardInterrupt

    monkeypatch.setattr(backups, "_back_up", interrupt)
    ended = run("backup", "--to", target)
    assert ended.exit_code == 130
    assert ended.stderr.startswith("stopped: no backup was made; repeat the command.")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (TargetError("full"), 22),
        (ObjectNotFound("x"), 22),
        (BackupIncomplete("rows"), 21),
        (ShardUnavailable("x"), 21),
        (ShardMissing("x"), 21),
        (CollectionDamaged("x"), 21),
        (CollectionNotFound("x"), 1),
        (InternalError("x"), 1),
    ],
)
def test_the_exit_code_names_the_cause(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_a_partial_backup_says_so_and_ends_with_its_code(
    run: Run, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(name="n", manifest=PARTIAL, copied_rows=2, copied_bytes=300, notes=("a note",))

    async def back_up(*_: Any) -> Made:
        return made

    monkeypatch.setattr(backups, "_back_up", back_up)
    ended = run("backup", "--to", target, "--partial", "--metrics-file", tmp_path / "m")
    assert ended.exit_code == BackupExit.PARTIAL
    assert "note: a note" in ended.stdout
    assert "left out: collection 'words', shard 1: lost" in ended.stdout
    assert "PARTIAL, 1 collection, 2 rows" in ended.stdout
    assert "vectorshard_backup_last_run_success 0" in (tmp_path / "m").read_text()
    ended = run("backup", "--to", target, "--partial", "--json")
    assert ended.exit_code == BackupExit.PARTIAL
    told = json.loads(ended.stdout)
    assert (told["name"], told["complete"], told["copied_rows"]) == ("n", False, 2)
    assert told["left_out"] == [{"collection": "words", "shard": 1, "reason": "lost"}]
    assert run("backup").exit_code == BackupExit.USAGE
    ended = run("backup", "--to", target, "--metrics-file", tmp_path / "absent" / "m")
    assert ended.exit_code == BackupExit.PARTIAL
    assert "note: the metrics were not written" in ended.stderr
    assert "PARTIAL, 1 collection" in ended.stdout
