"""A disk that is really full: a small file system in memory, which needs root to be mounted."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TINY_BYTES = 8 * 1024 * 1024


def _can_mount() -> bool:
    with tempfile.TemporaryDirectory() as path:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "tmpfs", path], check=False, capture_output=True
        )
        if mounted.returncode == 0:
            subprocess.run(["umount", path], check=True)
        return mounted.returncode == 0


needs_mount = pytest.mark.skipif(
    shutil.which("mount") is None or not _can_mount(), reason="needs root, to mount a file system"
)


@contextmanager
def tiny_disk(mount: Path, size_bytes: int = TINY_BYTES) -> Iterator[Path]:
    """Lend a directory on a file system of so many bytes."""
    mount.mkdir()
    options = f"size={size_bytes}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill(mount: Path) -> Path:
    """Write a file until not another byte fits; return it."""
    path = mount / "filler"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for size in (64 * 1024, 4096, 1):
            try:
                while True:
                    os.write(descriptor, bytes(size))
            except OSError:
                continue
    finally:
        os.close(descriptor)
    assert os.statvfs(mount).f_bavail == 0
    return path
