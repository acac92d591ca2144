"""The age of the last backup as a file, for the textfile collector of node_exporter."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from vectorshard.backup.failures import TargetError
from vectorshard.backup.layout import manifests
from vectorshard.backup.manifest import Manifest
from vectorshard.backup.targets import Target
from vectorshard.shard.storage.disk import Disk

_HELP: Final = {
    "vectorshard_backup_last_run_timestamp_seconds": "When the last run of a backup ended.",
    "vectorshard_backup_last_run_success": "1 if the last run made a complete backup, else 0.",
    "vectorshard_backup_last_complete_timestamp_seconds": "When the newest complete backup ended.",
    "vectorshard_backup_last_complete_duration_seconds": "Duration of the newest complete backup.",
    "vectorshard_backup_last_complete_rows": "Live rows in the newest complete backup.",
    "vectorshard_backup_last_complete_bytes": "Bytes of the blocks of the newest complete backup.",
}


def moment_of(text: str) -> datetime:
    """Return a moment of a manifest."""
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def newest_complete(target: Target) -> Manifest | None:
    """Return the newest complete backup of a target, or None."""
    for _, found in manifests(target):
        if isinstance(found, Manifest) and found.complete:
            return found
    return None


def write_metrics(
    path: Path, target: Target | None, *, now: datetime, success: bool, disk: Disk | None = None
) -> None:
    """Write the file in place of the one that may be there.

    Without a target that can be read, the metrics of the newest complete backup are absent.
    """
    values: dict[str, float] = {
        "vectorshard_backup_last_run_timestamp_seconds": now.timestamp(),
        "vectorshard_backup_last_run_success": float(success),
    }
    found = None
    if target is not None:
        with suppress(TargetError):
            found = newest_complete(target)
    if found is not None:
        begun, ended = moment_of(found.begun), moment_of(found.ended)
        values |= {
            "vectorshard_backup_last_complete_timestamp_seconds": ended.timestamp(),
            "vectorshard_backup_last_complete_duration_seconds": (ended - begun).total_seconds(),
            "vectorshard_backup_last_complete_rows": float(found.live),
            "vectorshard_backup_last_complete_bytes": float(found.size_bytes),
        }
    lines = [
        f"# HELP {name} {_HELP[name]}\n# TYPE {name} gauge\n{name} {value:.17g}\n"
        for name, value in values.items()
    ]
    (disk or Disk()).write_new_file(path.absolute(), "".join(lines).encode())
