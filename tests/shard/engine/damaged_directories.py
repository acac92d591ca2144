"""A data directory as a killed process leaves it, copies of it to harm, and their repair."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

from tests.shard.engine.contents import ENTRY, IDENTITY, SEED, Contents, Writes, applied, opened
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.membership import Member, Membership, Stage
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.storage.repair import Given, Wanted, repair
from vectorshard.shard.storage.repair_findings import Repair
from vectorshard.shard.types import Metric

LOG: Final = "store.db-wal"


@dataclass(frozen=True)
class Killed:
    """A data directory with one collection, the same a day before, and what each must hold."""

    path: Path
    contents: Contents
    yesterday: Path
    contents_yesterday: Contents

    def copy(self, to: Path) -> Path:
        """Copy the data directory; return where its collection is."""
        shutil.copytree(self.path, to)
        return to / "collections" / ENTRY.config.name


def settled(collection: Collection, path: Path) -> None:
    """Let the files of a collection say to which data directory they belong."""
    directory = path.name
    member = Member(shard=IDENTITY.shard, directory=directory, life=1)
    collection.writes.set_membership(
        Membership(directory=directory, stage=Stage.COMPLETE, members=(member,))
    )


def killed(path: Path, *, compacted: bool, seed: int = SEED) -> Killed:
    """Write 21 commits, perhaps with a compaction among them, and look as if killed then."""
    write = Writes(ENTRY.config.id_type, seed)
    place = path / "shard-0"
    with opened(Disk(), place, ENTRY) as collection:
        contents = applied(collection, Contents(Metric.L2), write.upsert(range(100)))
    yesterday, contents_yesterday = Path(shutil.copytree(place, path / "yesterday")), contents
    with opened(Disk(), place, ENTRY) as collection:
        for commit in range(20):
            contents = applied(collection, contents, write.upsert(range(commit * 5, commit * 9)))
            if compacted and commit == 10:
                collection.compaction.run(lambda: None)
                while collection.compaction.sweep_due:
                    collection.compaction.sweep()
        contents = applied(collection, contents, write.delete(range(0, 60, 7)))
        shutil.copytree(place, path / "killed")
    return Killed(path / "killed", contents, yesterday, contents_yesterday)


def flip(path: Path, bit: int) -> None:
    """Change one bit of a file."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flip_some(path: Path, random: Random) -> int:
    """Change one bit of a file; return which."""
    bit = random.randrange(path.stat().st_size * 8)
    flip(path, bit)
    return bit


def repaired(directory: Path, *, write: bool = True, drop_damaged: bool = False) -> list[Repair]:
    """Repair a data directory: what was found of itself, then of its collections."""
    wanted = Wanted(write=write, drop_damaged=drop_damaged, work=directory.parent)
    return repair(Disk(), directory, wanted, Given(slots_of=lambda shard, total: IDENTITY.slots))


def repaired_words(directory: Path, *, write: bool = True, drop_damaged: bool = False) -> Repair:
    """Repair a data directory; return what was found of its collection."""
    return repaired(directory, write=write, drop_damaged=drop_damaged)[1]


@contextmanager
def unchanged(directory: Path) -> Iterator[None]:
    """Assert that nothing in a directory changes: no file, no name, no time."""

    def state() -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path.relative_to(directory)): (
                path.stat().st_mtime_ns,
                path.stat().st_size,
                path.read_bytes() if path.is_file() else b"",
            )
            for path in directory.rglob("*")
        }

    before = state()
    yield
    assert state() == before
