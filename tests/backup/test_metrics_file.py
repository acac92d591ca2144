"""The metrics of a scheduled backup."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.backup.fleet import BEGUN
from tests.backup.samples import BLOCK, MANIFEST
from vectorshard.backup.layout import backup_name, manifest_object
from vectorshard.backup.manifest import LeftOut
from vectorshard.backup.metrics_file import write_metrics
from vectorshard.backup.targets import DirectoryTarget

PREFIX = "vectorshard_backup_"


def metrics_of(path: Path) -> dict[str, float]:
    """Return the metrics in a file, as a collector parses them."""
    families = text_string_to_metric_families(path.read_text())
    return {each.name.removeprefix(PREFIX): each.samples[0].value for each in families}


def test_the_age_of_the_last_complete_backup_survives_runs_that_fail(tmp_path: Path) -> None:
    target, path = DirectoryTarget(tmp_path, paced=False), tmp_path / "backup.prom"
    write_metrics(path, None, now=BEGUN, success=False)
    run = {"last_run_timestamp_seconds": BEGUN.timestamp(), "last_run_success": 0.0}
    assert metrics_of(path) == run
    partial = replace(MANIFEST, left_out=(LeftOut(collection="words", shard=0, reason="lost"),))
    for day, manifest in enumerate((MANIFEST, partial)):
        name = backup_name(BEGUN + timedelta(days=day), "0000000a")
        target.put(manifest_object(name), manifest.encode())
    later = BEGUN + timedelta(days=3)
    write_metrics(path, target, now=later, success=False)
    assert metrics_of(path) == {
        "last_run_timestamp_seconds": later.timestamp(),
        "last_run_success": 0.0,
        "last_complete_timestamp_seconds": BEGUN.timestamp() + 60,
        "last_complete_duration_seconds": 60.0,
        "last_complete_rows": 2.0,
        "last_complete_bytes": float(BLOCK.size_bytes),
    }
    write_metrics(path, target, now=later, success=True)
    assert metrics_of(path)["last_run_success"] == 1.0
    assert not path.with_name("backup.prom.new").exists()
