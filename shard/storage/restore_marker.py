"""The marker of a restore that has not ended: no server starts on such a directory.

A restore writes the marker first and removes it last, so that directories that were built in part
are never served (docs/formats.md). What is restored must not enter here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from vectorshard.shard.errors import DataDirectoryError

RESTORING_FILE: Final = "RESTORING"


def require_restored(directory: Path) -> None:
    """Raise DataDirectoryError if a restore into a directory, or the one above, has not ended."""
    for place in (directory, directory.parent):
        if (place / RESTORING_FILE).exists():
            raise DataDirectoryError(
                f"a restore into {place} has not ended, so its rows are incomplete: repeat that "
                "restore, or choose another directory"
            )
