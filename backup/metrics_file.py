"""The age of the last backup as a file, for the textfile collector of node_exporter."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Final

from vectorshard.backup.failures import TargetError
from vectorshard.backup.layout import manifests
from vectorshard.backup.manifest import Manifest
from vectorshard.backup.moments import moment_of
from vectorshard.backup.targets import Target
from vectorshard.shard.storage.disk import Disk

_HELP: Final = {
    "vectorshard_backup_last_run_timestamp_seconds": "When the last run of a backup ended.",
    "vectorshard_backup_last_run_success": "1 if the last run made a complete backup, else 0.",
    "vectorshard_backup_last_complete_timestamp_seconds": "When the newest backup of all ended.",
    "vectorshard_backup_last_complete_duration_seconds": "Duration of the newest backup of all.",
    "vectorshard_backup_last_complete_rows": "Live rows in the newest backup of all.",
    "vectorshard_backup_last_complete_bytes": "Bytes of the blocks of the newest of all.",
}


def newest_whole(target: Target) -> dict[str, Manifest]:
    """Return the newest backup of each cluster that has all of its collections, completely."""
    newest: dict[str, Manifest] = {}
    for _, found in manifests(target):
        if isinstance(found, Manifest) and found.whole:
            newest.setdefault(found.cluster, found)
    return newest


def write_metrics(
    path: Path, target: Target | None, *, now: datetime, success: bool, disk: Disk | None = None
) -> None:
    """Write the file in place of the one that may be there.

    Without a target that can be read, the metrics of the newest complete backups are absent. Only
    backups of all collections count. None is younger than `now`, whatever clock has dated it.
    """
    values: dict[str, float] = {
        "vectorshard_backup_last_run_timestamp_seconds": now.timestamp(),
        "vectorshard_backup_last_run_success": float(success),
    }
    newest: dict[str, Manifest] = {}
    if target is not None:
        with suppress(TargetError):
            newest = newest_whole(target)
    samples = {name: f"{name} {value:.17g}\n" for name, value in values.items()}
    for cluster, found in sorted(newest.items()):
        begun, ended = moment_of(found.begun), moment_of(found.ended)
        label = f'{{cluster="{escaped(cluster)}"}}'
        for name, value in {
            "timestamp_seconds": min(ended, now).timestamp(),
            "duration_seconds": max(0.0, (ended - begun).total_seconds()),
            "rows": float(found.live),
            "bytes": float(found.size_bytes),
        }.items():
            full = f"vectorshard_backup_last_complete_{name}"
            samples[full] = samples.get(full, "") + f"{full}{label} {value:.17g}\n"
    lines = [
        f"# HELP {name} {_HELP[name]}\n# TYPE {name} gauge\n{lines}"
        for name, lines in samples.items()
    ]
    (disk or Disk()).write_new_file(path.absolute(), "".join(lines).encode())


def escaped(text: str) -> str:
    """Return a text as the value of a label."""
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
