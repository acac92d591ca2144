"""The directory into which a restore builds: empty before it, and not served until it has ended.

Whatever a killed restore has left is removed by the next one, and nothing else ever is.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from vectorshard.backup.failures import DirectoryNotEmpty
from vectorshard.shard.errors import DataDirectoryLocked
from vectorshard.shard.storage.disk import Disk, DiskFile
from vectorshard.shard.storage.restore_marker import RESTORING_FILE

_ALWAYS_THERE: Final = frozenset({"lost+found"})
"""What is in the root of an empty file system."""
_SHARDS: Final = "shard-*"
_OF_A_SHARD: Final = frozenset(
    {"LOCK", "ballast", "collections", "register.json", "session", "shard.json", "witness.json"}
)
"""What a restore makes: below a directory of several shards, or in that of one."""
_UNFINISHED: Final = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """A directory, and the backup that is restored into it."""

    disk: Disk
    data: Path
    backup: str

    @property
    def marker(self) -> Path:
        """The file that keeps servers from starting here."""
        return self.data / RESTORING_FILE


@contextmanager
def building(destination: Destination) -> Iterator[None]:
    """Mark a directory as incomplete, durably, while the body builds in it.

    After an exception or a crash it stays marked. Raises DirectoryNotEmpty if something is in it
    that no unfinished restore has left, and DataDirectoryLocked if a restore runs.
    """
    disk, data = destination.disk, destination.data
    _make_durably(disk, data.absolute())
    marker = _locked(disk, destination)
    try:
        content = json.dumps({"backup": destination.backup}).encode() + b"\n"
        disk.write(marker, 0, content)
        disk.sync(marker)
        disk.sync_directory(data)
        _remove_built(destination)
        yield
        disk.sync_directory(data)
        disk.remove(destination.marker)
        disk.sync_directory(data)
    finally:
        marker.close()


def _refuse_contents(data: Path) -> None:
    found = sorted(path.name for path in data.iterdir() if path.name not in _ALWAYS_THERE)
    if found:
        more = f" and {len(found) - 5} more" if len(found) > 5 else ""
        raise DirectoryNotEmpty(
            f"{data} is not empty, it contains {', '.join(found[:5])}{more}: a restore needs an "
            "empty or a new directory"
        )


def _locked(disk: Disk, destination: Destination) -> DiskFile:
    """Open and lock the marker; a restore that had it may have ended, and removed it, between."""
    while True:
        if not destination.marker.exists():
            _refuse_contents(destination.data)
        marker = disk.open(destination.marker)
        try:
            fcntl.flock(marker.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            marker.close()
            text = f"another restore into {destination.data} is running"
            raise DataDirectoryLocked(text) from error
        if _is_in_place(marker, destination.marker):
            return marker
        marker.close()


def _is_in_place(file: DiskFile, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.descriptor), path.stat())
    except FileNotFoundError:
        return False


def _remove_built(destination: Destination) -> None:
    """Remove what a killed restore has left; DirectoryNotEmpty if anything else is there."""
    disk, data = destination.disk, destination.data
    built = {path for path in data.glob(_SHARDS) if path.is_dir()}
    built |= {data / name for name in _OF_A_SHARD} | {
        data / f"{name}{_UNFINISHED}" for name in _OF_A_SHARD
    }
    strays = {path for path in data.iterdir() if path.name not in _ALWAYS_THERE}
    strays -= {*built, destination.marker}
    if strays:
        listed = ", ".join(sorted(path.name for path in strays)[:5])
        raise DirectoryNotEmpty(
            f"{data} contains {listed}, which the restore before did not make: remove that, or "
            "choose another directory"
        )
    for path in sorted(built):
        if path.is_dir():
            disk.remove_tree(path)
        elif path.exists():
            disk.remove(path)
    disk.sync_directory(data)


def _make_durably(disk: Disk, path: Path) -> None:
    if not path.is_dir():
        _make_durably(disk, path.parent)
        disk.make_directory(path)
        disk.sync_directory(path.parent)
