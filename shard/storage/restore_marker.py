"""Directories on which no server starts: a restore into them has not ended, or they hold backups.

A restore writes the marker first and removes it last, so that directories that were built in part
are never served (docs/formats.md). What is restored must not enter here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vectorshard.shard.errors import DataDirectoryError, DataDirectoryForeign

RESTORING_FILE: Final = "RESTORING"

_OF_BACKUPS: Final = ("backups", "numbers")
"""Folders of a target of backups, once it has one. No data directory has them."""


def require_restored(directory: Path) -> None:
    """Raise DataDirectoryError if a restore into a directory, or the one above, has not ended.

    Raises DataDirectoryForeign for a target of backups: it would be served without their rows.
    """
    if all((directory / name).is_dir() for name in _OF_BACKUPS):
        raise DataDirectoryForeign(
            f"{directory} holds backups: `vectorshard restore {directory} --data DIR` builds a "
            "data directory from one"
        )
    for place in (directory, directory.parent):
        if (place / RESTORING_FILE).exists():
            raise DataDirectoryError(
                f"a restore into {place} has not ended, so its rows are incomplete: repeat that "
                "restore, or choose another directory"
            )
