"""Disks that leave something out, to show that crash states would tell."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.disk import Disk, DiskFile


class WithoutSync(Disk):
    """Does not sync files whose names begin like this."""

    def __init__(self, name: str) -> None:
        self._name = name

    def sync(self, file: DiskFile) -> None:
        if not file.path.name.startswith(self._name):
            super().sync(file)


class LateRowSync(Disk):
    """Syncs row files after the commit."""

    def __init__(self) -> None:
        self._late: list[DiskFile] = []

    def sync(self, file: DiskFile) -> None:
        if file.path.name.startswith("rows"):
            self._late.append(file)
        else:
            super().sync(file)

    def commit(self, connection: sqlite3.Connection) -> None:
        super().commit(connection)
        while self._late:
            with suppress(OSError):  # a compaction has closed it
                super().sync(self._late.pop())


class RepeatedSync(Disk):
    """Repeats a sync that failed: the second succeeds, but what the first lost stays lost."""

    def sync(self, file: DiskFile) -> None:
        try:
            super().sync(file)
        except OSError:
            super().sync(file)


class WithoutDirectorySync(Disk):
    """Does not sync directories."""

    def sync_directory(self, path: Path) -> None:
        pass


class WithoutLogSync(Disk):
    """Lets SQLite sync its log only at checkpoints."""

    def connect(self, path: Path) -> sqlite3.Connection:
        connection = super().connect(path)
        connection.execute("PRAGMA synchronous = NORMAL")
        return connection


BREAKAGES: Final[dict[str, Callable[[], Disk]]] = {
    "": Disk,
    **{f"no-{name}-sync": partial(WithoutSync, name) for name in ("rows", "index", "session")},
    **{f"no-{name}-sync": partial(WithoutSync, name) for name in ("register", "witness")},
    "late-rows-sync": LateRowSync,
    "repeated-sync": RepeatedSync,
    "no-directory-sync": WithoutDirectorySync,
    "no-log-sync": WithoutLogSync,
}
"""By their names in orders; the empty one leaves nothing out."""
