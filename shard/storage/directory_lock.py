"""The lock of a data directory: one process uses it at a time.

The kernel releases the lock when the process ends, however it ends. docs/formats.md describes the
file.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vectorshard.shard.errors import DataDirectoryLocked
from vectorshard.shard.storage.disk import Disk, DiskFile

LOCK_FILE: Final = "LOCK"


def locked(disk: Disk, path: Path) -> DiskFile:
    """Lock a directory and write who did; return the open file, for `unlock`.

    Raises DataDirectoryLocked, with the pid, if another process uses it.
    """
    lock = disk.open(path / LOCK_FILE)
    try:
        _lock(lock.descriptor, path)
        disk.write(lock, 0, f"{os.getpid():<20}\n".encode())  # of one length: files only grow
    except BaseException:
        lock.close()
        raise
    return lock


def unlock(lock: DiskFile) -> None:
    """End a lock and close its file: a forked child may have a copy of the open file."""
    fcntl.flock(lock.descriptor, fcntl.LOCK_UN)
    lock.close()


@contextmanager
def locked_unchanged(path: Path) -> Iterator[None]:
    """Hold the lock of a directory in which nothing may change, not even the lock's file.

    A directory without that file is used by no process.
    """
    try:
        descriptor = os.open(path / LOCK_FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield
        return
    try:
        _lock(descriptor, path)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        pid = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
        if pid == str(os.getpid()):
            reason = f"{path} is open in this process: close it first, or choose another directory"
        else:
            reason = f"{path} is in use by process {pid}: stop it, or choose another directory"
        raise DataDirectoryLocked(reason) from error
