"""Open a data directory of the last format under the recorder, and check what a power cut leaves.

The directories are those of `tests/fixtures`: `closed`, which a stopped server left, and `killed`.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Final

from tests.crash_recorder.check import HurriedDisk, found_in, logged, opened
from tests.crash_recorder.plan import Expected, Found
from tests.crash_recorder.recorder import Recorder
from tests.shard.engine.contents import IDENTITY
from vectorshard.shard.engine.local_shard import LocalShard
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import Ledger

ARCHIVE: Final = Path(__file__).parents[1] / "fixtures" / "data_directory.tar.gz"
DIRECTORIES: Final = ("closed", "killed")
FIRST_OF_TWO: Final = replace(IDENTITY, cluster="", shards_total=2, slots=((0, 2_047),))

Contents = dict[str, tuple[Found, Ledger]]


def unpack(directory: Path) -> None:
    """Unpack the archive into an empty directory."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(directory, filter="data")


async def contents_of(shard: LocalShard) -> Contents:
    """Read everything, and the ledgers without how much of them is indexed."""
    contents = {}
    for name, found in (await found_in(shard)).items():
        ledger = (await shard.describe(name)).shards[0].ledger
        assert ledger.adds_up
        contents[name] = found, replace(ledger, buffered=0, indexed=0)
    return contents


async def _contents(directory: Path) -> Contents:
    async with opened(HurriedDisk(), directory, trains=False, identity=FIRST_OF_TWO) as shard:
        return await contents_of(shard)


def contents(directory: Path) -> Contents:
    """Open a directory, and return what is in it."""
    with logged():
        return asyncio.run(_contents(directory))


def check_upgrade(
    contents_before: Contents, directory: Path, _expected: Expected, _number: int
) -> Counter[str]:
    """Check that a directory has the expected contents, after this start and the next."""
    for _ in range(2):
        assert contents(directory) == contents_before
    return Counter()


async def upgrade(directory: Path) -> None:
    """Open a directory twice, as an operator does who starts the new release."""
    for _ in range(2):
        async with opened(Disk(), directory, trains=False, identity=FIRST_OF_TWO) as shard:
            await contents_of(shard)


def upgrade_all(root: Path, unpacked: Path) -> None:
    """Upgrade a copy of each directory below `root`."""
    recorder = Recorder()
    for name in DIRECTORIES:
        shutil.copytree(unpacked / name / "shard-0", root / name / "shard-0")
        recorder.settle()
        recorder.mark(json.dumps({"life": name, "after": None}))
        asyncio.run(upgrade(root / name))
        recorder.mark(json.dumps({"end": name}))
