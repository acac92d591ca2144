"""The limits of the machine that a shard runs on: open files, memory, room on the disk.

A limit that is reached is Overloaded: the call had no effect and may succeed later. The disk counts
as sound, and writes stop before it is full.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, TypeVar

import structlog

from vectorshard.shard.config import EngineConfig
from vectorshard.shard.errors import (
    DataDirectoryFull,
    DataDirectoryUnusable,
    LimitsTooLow,
    Overloaded,
)
from vectorshard.shard.membership import Problem, ProblemKind
from vectorshard.shard.storage.disk import DISK_ERRORS, Disk, is_disk_full, is_exhausted

LOOK_S: Final = 0.1
"""How long the free space of a disk counts as known. Shorter: more calls of statvfs."""

DISK_FULL_RETRY_S: Final = 5.0
"""When to repeat what a full disk refused: an operator must make room first."""

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("9p", "afs", "beegfs", "ceph", "cifs", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs"),
        *("nfs4", "orangefs", "pvfs2", "smb2", "smb3", "smbfs", "virtiofs"),
        *("fuse.ceph-fuse", "fuse.cephfs", "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs"),
        *("fuse.mountpoint-s3", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs", "fuse.sshfs"),
    }
)
"""Types of file systems whose files are on another machine."""

FULL: Final = "the disk is full: drop a collection, or enlarge the disk, and retry"
OUT_OF_FILES: Final = (
    "the server is at its limit of open files or memory: raise the limit of open files "
    "(`ulimit -Hn`, LimitNOFILE of systemd), or the memory of the server, and retry"
)

_MB: Final = 1_000_000

_log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def limit_reached(error: BaseException) -> Overloaded | None:
    """Return what a caller is told if a limit of the machine is the cause; else None."""
    if is_disk_full(error):
        full = Overloaded(FULL)
        full.retry_delay_s = DISK_FULL_RETRY_S
        return full
    return Overloaded(OUT_OF_FILES) if is_exhausted(error) else None


def limited(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function; raise Overloaded if it meets a limit of the machine."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        if (overloaded := limit_reached(error)) is None:
            raise
        raise overloaded from error


def naming_start_failures(
    directory: Path, start: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Call what opens a data directory; give its failures the names that operators act on.

    Raises
    ------
    DataDirectoryFull
        If the disk has no room.
    LimitsTooLow
        If too few files may be open, or memory is short.
    DataDirectoryUnusable
        If the disk fails, is read-only, or denies access.
    """
    try:
        return start(*args, **kwargs)
    except (*DISK_ERRORS, MemoryError) as error:
        if is_disk_full(error):
            raise DataDirectoryFull(
                f"{directory}: the disk is full, and a start writes some small files: free space, "
                "or enlarge the disk"
            ) from error
        if is_exhausted(error):
            raise LimitsTooLow(f"{directory}: {OUT_OF_FILES}") from error
        what, where = str(error), directory
        if isinstance(error, OSError) and error.strerror:
            what, where = error.strerror, error.filename or directory
        raise DataDirectoryUnusable(
            f"{where}: {what}: check the disk, how it is mounted, and who owns its files"
        ) from error


class Machine:
    """The machine as one shard sees it. Any thread may use it.

    Parameters
    ----------
    clock
        Seconds since any moment.
    """

    def __init__(
        self,
        disk: Disk,
        directory: Path,
        engine: EngineConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._config = engine.machine
        self._collections_max = engine.limits.collections
        self._clock = clock
        self._looked_at = -LOOK_S
        self._shortage = ""
        self._file_system = disk.file_system(directory)
        if self._file_system in NETWORK_FILE_SYSTEMS:
            _log.warning("network file system", directory=str(directory), type=self._file_system)

    def require_room(self) -> None:
        """Raise Overloaded if the free space of the disk is below the reserve."""
        if self._short_of_room():
            refusal = Overloaded(self._shortage)
            refusal.retry_delay_s = DISK_FULL_RETRY_S
            raise refusal

    def require_place(self, collections: int) -> None:
        """Raise Overloaded if a shard with so many collections has no place for another."""
        self.require_room()
        if collections >= self._collections_max:
            raise Overloaded(f"this shard holds the maximum of {collections} collections")
        if collections >= self._config.collections_max:
            raise Overloaded(
                f"this shard holds {collections} collections, and {self._config.limit_too_low}"
            )

    def _short_of_room(self) -> bool:
        """Look at the free space unless that was just done; return whether it is too little."""
        now = self._clock()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            try:
                free, size = self._disk.free_bytes(self._directory)
            except OSError:  # then the writes themselves find out
                return bool(self._shortage)
            reserve = self._config.reserve_of(size)
            was, self._shortage = self._shortage, ""
            if free < reserve:
                self._shortage = (
                    f"the disk has {_in_words(free)} free and the server keeps "
                    f"{_in_words(reserve)}: drop a collection, or enlarge the disk"
                )
            if bool(was) != bool(self._shortage):
                event = _log.error if self._shortage else _log.info
                what = "disk nearly full" if self._shortage else "disk has room again"
                event(what, directory=str(self._directory), free_bytes=free, reserve_bytes=reserve)
        return bool(self._shortage)

    def problems(self, shard: int) -> list[Problem]:
        """Return what an operator should change about the machine."""
        found = []
        if self._short_of_room():
            text = f"{self._directory}: {self._shortage}; upserts are refused"
            found.append(Problem(shard=shard, kind=ProblemKind.DISK_FULL, text=text))
        if self._config.limit_too_low:
            text = self._config.limit_too_low
            found.append(Problem(shard=shard, kind=ProblemKind.LIMIT, text=text))
        if self._file_system in NETWORK_FILE_SYSTEMS:
            text = (
                f"{self._directory} is on a network file system ({self._file_system}): locks and "
                "syncs may not hold there; use a disk of this machine"
            )
            found.append(Problem(shard=shard, kind=ProblemKind.DISK_UNSAFE, text=text))
        return found


def _in_words(size: int) -> str:
    """Return a number of bytes in MB, or in kB if it is small."""
    return f"{size // _MB} MB" if size >= 10 * _MB else f"{size // 1_000} kB"
