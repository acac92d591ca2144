"""A restore that is killed at any step: no server starts on what is left, and it is repeatable."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, Final

import pytest

from tests.backup.made import SECOND
from tests.backup.test_restore import PICTURES, WORDS, Seen, places, seen, two_backups
from vectorshard.backup.manifest import Manifest
from vectorshard.backup.restore import Backup, Restore, wanted_of
from vectorshard.backup.targets import DirectoryTarget
from vectorshard.cli.embedded import open_embedded
from vectorshard.shard.config import EngineConfig
from vectorshard.shard.errors import DataDirectoryError
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.restore_marker import RESTORING_FILE

STEPS: Final = (
    "make_directory",
    "open",
    "write",
    "extend",
    "sync",
    "sync_directory",
    "rename",
    "remove",
    "remove_directory",
    "connect",
    "commit",
    "checkpoint",
    "disconnect",
)
SHARDS = 2
NAMES = {WORDS: WORDS, PICTURES: PICTURES}


class CountingDisk(Disk):
    """A disk that kills its process before one of its steps; they are counted from 0."""

    def __init__(self, killed_at: int = -1) -> None:
        self.steps = 0
        self.killed_at = killed_at
        for name in STEPS:
            setattr(self, name, self._counted(getattr(self, name)))

    def _counted(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if self.steps == self.killed_at:
                os.kill(os.getpid(), signal.SIGKILL)
            self.steps += 1
            return step(*arguments, **options)

        return counted


def killed(backup: Backup, data: Path, step: int) -> None:
    """Restore in a process that is killed before a step."""
    child = os.fork()
    if not child:
        try:
            disk = CountingDisk(step)
            wanted = wanted_of(backup.manifest, [])
            Restore(backup, places(data, SHARDS), disk).run(data, wanted)
        finally:
            os._exit(1)  # it was not killed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


def contents(data: Path) -> list[Path]:
    """Return what is in a directory, if it exists."""
    return list(data.iterdir()) if data.exists() else []


async def check_killed(backup: Backup, data: Path, expected: dict[str, Seen]) -> bool:
    """Check what a killed restore left, repeat it, and return whether it was marked."""
    marked = (data / RESTORING_FILE).exists()
    if marked:
        with pytest.raises(DataDirectoryError, match="has not ended"):
            await open_embedded(data, SHARDS, EngineConfig())
    else:
        if contents(data):  # it was killed after its last step
            assert await seen(data, SHARDS, NAMES) == expected
            return False
    Restore(backup, places(data, SHARDS)).run(data, wanted_of(backup.manifest, []))
    assert await seen(data, SHARDS, NAMES) == expected
    return marked


def made(tmp_path: Path) -> Backup:
    target = DirectoryTarget(tmp_path / "target", create=True, paced=False)
    manifest: Manifest = two_backups(tmp_path / "old", target, 1)
    return Backup(target=target, name=SECOND, manifest=manifest)


async def check_kills(tmp_path: Path, kills: int) -> None:
    """Kill a restore at its first steps, its last ones, and others by chance."""
    backup, disk, whole = made(tmp_path), CountingDisk(), tmp_path / "whole"
    Restore(backup, places(whole, SHARDS), disk).run(whole, wanted_of(backup.manifest, []))
    expected = await seen(whole, SHARDS, NAMES)
    steps = disk.steps
    others = Random(7).sample(range(2, steps - 3), min(kills, steps) - 5)
    marked = 0
    for step in sorted({0, 1, steps - 3, steps - 2, steps - 1, *others}):
        data = tmp_path / "killed" / "data"
        killed(backup, data, step)
        marked += await check_killed(backup, data, expected)
        shutil.rmtree(data)
    assert marked >= kills - 3


async def test_a_killed_restore_is_not_served_and_is_repeatable(tmp_path: Path) -> None:
    await check_kills(tmp_path, 10)


@pytest.mark.system_long
async def test_a_restore_may_be_killed_at_any_step(tmp_path: Path) -> None:
    await check_kills(tmp_path, 10_000)
