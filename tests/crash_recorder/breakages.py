"""Disks that leave something out, to show that crash states would tell."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Final

from vectorshard.shard.storage.disk import Disk, DiskFile


class WithoutRowSync(Disk):
    """Does not sync row files."""

    def sync(self, file: DiskFile) -> None:
        if not file.path.name.startswith("rows"):
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
            super().sync(self._late.pop())


class WithoutIndexSync(Disk):
    """Does not sync index files before they are named in the store."""

    def sync(self, file: DiskFile) -> None:
        if not file.path.name.startswith("index"):
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


BREAKAGES: Final[dict[str, type[Disk]]] = {
    "": Disk,
    "no-row-sync": WithoutRowSync,
    "late-row-sync": LateRowSync,
    "no-index-sync": WithoutIndexSync,
    "no-directory-sync": WithoutDirectorySync,
    "no-log-sync": WithoutLogSync,
}
"""By their names in orders; the empty one leaves nothing out."""
