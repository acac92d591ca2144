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
    DiskFailed,
    LimitsTooLow,
    Overloaded,
)
from vectorshard.shard.membership import Problem, ProblemKind
from vectorshard.shard.storage.disk import (
    DISK_ERRORS,
    Disk,
    is_disk_full,
    is_exhausted,
    is_locked,
    is_on_read_only_disk,
)
from vectorshard.shard.texts import counted

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

LOCKED: Final = (
    "another program has locked store.db, so the write was not begun: end that program, such as an "
    "SQL shell or a tool that copies databases (`fuser store.db`), and retry"
)

READ_ONLY: Final = (
    "the file system is read-only: find the cause in the kernel's log, mount it writable, and "
    "repeat the call"
)

NEARLY_NOTHING_BYTES: Final = 1_000_000
"""With less, a disk counts as full, whatever the reserve: a commit may need that much."""

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
    if is_locked(error):
        return Overloaded(LOCKED)
    return Overloaded(OUT_OF_FILES) if is_exhausted(error) else None


def limited(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function; raise Overloaded if it meets a limit of the machine.

    DiskFailed if the disk is read-only.
    """
    try:
        return function(*args, **kwargs)
    except Exception as error:
        if (overloaded := limit_reached(error)) is not None:
            raise overloaded from error
        if is_on_read_only_disk(error):
            raise DiskFailed(READ_ONLY) from error
        raise


def naming_disk_failures(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call what changes the set of collections; raise DiskFailed if the disk fails."""
    try:
        return limited(function, *args, **kwargs)
    except DISK_ERRORS as error:
        what = error.strerror if isinstance(error, OSError) else None
        raise DiskFailed(
            f"the disk failed the change ({what or error}): check the disk, and who owns its "
            "files, and repeat the call"
        ) from error


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
        if is_on_read_only_disk(error):
            raise DataDirectoryUnusable(
                f"{directory}: the file system is read-only: find the cause in the kernel's log, "
                "mount it writable, and start again"
            ) from error
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
        self._is_full = False
        self._is_read_only = False
        self._file_system = disk.file_system(directory)
        if self._file_system in NETWORK_FILE_SYSTEMS:
            _log.warning("network file system", directory=str(directory), type=self._file_system)

    def require_room(self) -> None:
        """Raise Overloaded if the free space of the disk is below the reserve.

        DiskFailed if it is read-only.
        """
        self.require_writable()
        if self._shortage:
            refusal = Overloaded(self._shortage)
            refusal.retry_delay_s = DISK_FULL_RETRY_S
            raise refusal

    def require_writable(self) -> None:
        """Raise DiskFailed if the file system of the directory is read-only."""
        self._look()
        if self._is_read_only:
            raise DiskFailed(READ_ONLY)

    def shortage(self, size: int) -> str:
        """Return why work in the background may not write so many bytes; empty if it may.

        Half of the reserve stays, for deletes, and what else is in progress.
        """
        try:
            free, total = self._disk.free_bytes(self._directory)
        except OSError:
            return ""
        kept = self._config.reserve_of(total) // 2
        if free - size >= kept:
            return ""
        return (
            f"the disk has {_in_words(free)} free, and the work needs {_in_words(size)}, beside "
            f"{_in_words(kept)} that the server keeps: drop a collection, or enlarge the disk"
        )

    def require_place(self, collections: int) -> None:
        """Raise Overloaded if a shard with so many collections has no place for another."""
        self.require_room()
        held = counted(collections, "collection")
        if collections >= self._collections_max:
            raise Overloaded(f"this shard holds the maximum of {held}")
        if collections >= self._config.collections_max:
            raise Overloaded(f"this shard holds {held}, and {self._config.limit_too_low}")

    def _look(self) -> None:
        """Look at the disk, unless that was just done."""
        now = self._clock()
        if now - self._looked_at < LOOK_S:
            return
        self._looked_at = now
        try:
            free, size = self._disk.free_bytes(self._directory)
            read_only = self._disk.is_read_only(self._directory)
        except OSError:  # then the writes themselves find out
            return
        reserve = self._config.reserve_of(size)
        was, was_read_only = self._is_full, self._is_read_only
        self._is_read_only = read_only
        self._is_full = free < max(reserve, NEARLY_NOTHING_BYTES)
        self._shortage = ""
        if free < reserve:
            self._shortage = (
                f"the disk has {_in_words(free)} free and the server keeps "
                f"{_in_words(reserve)}: drop a collection, or enlarge the disk"
            )
        if was != self._is_full:
            event = _log.error if self._is_full else _log.info
            what = "disk nearly full" if self._is_full else "disk has room again"
            event(what, directory=str(self._directory), free_bytes=free, reserve_bytes=reserve)
        if was_read_only != read_only:
            event = _log.error if read_only else _log.info
            what = "disk is read-only" if read_only else "disk is writable again"
            event(what, directory=str(self._directory))

    def problems(self, shard: int) -> list[Problem]:
        """Return what an operator should change about the machine."""
        found = []
        self._look()
        if self._is_full:
            told = f"{self._shortage}; upserts are refused" if self._shortage else FULL
            text = f"{self._directory}: {told}"
            found.append(Problem(shard=shard, kind=ProblemKind.DISK_FULL, text=text))
        if self._is_read_only:
            text = f"{self._directory}: {READ_ONLY}; nothing is written"
            found.append(Problem(shard=shard, kind=ProblemKind.WRITES_STOPPED, text=text))
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
