"""The metrics of a scheduled backup."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.backup.fleet import BEGUN
from tests.backup.samples import BLOCK, MANIFEST, put_manifest
from vectorshard.backup.layout import backup_name
from vectorshard.backup.manifest import LeftOut, Scope
from vectorshard.backup.metrics_file import write_metrics
from vectorshard.backup.targets import DirectoryTarget

PREFIX = "vectorshard_backup_"


def metrics_of(path: Path) -> dict[str, float]:
    """Return the metrics in a file, as a collector parses them."""
    families = text_string_to_metric_families(path.read_text())
    return {
        f"{each.name.removeprefix(PREFIX)}{cluster_of(sample)}": sample.value
        for each in families
        for sample in each.samples
    }


def cluster_of(sample: Sample) -> str:
    """Return the label of a sample, if it is not that of the only cluster."""
    cluster = sample.labels.get("cluster", "cluster")
    return f" of {cluster}" * (cluster != "cluster")


def test_only_backups_of_all_collections_count_for_each_cluster_and_none_is_of_the_future(
    tmp_path: Path,
) -> None:
    target, path = DirectoryTarget(tmp_path, paced=False), tmp_path / "backup.prom"
    strange = 'a "quoted\\ one'
    backups = [
        MANIFEST,
        replace(MANIFEST, scope=Scope.CHOSEN, ended="2025-12-31T09:00:00Z"),
        replace(MANIFEST, cluster=strange, ended="2025-01-01T00:00:00Z"),
    ]
    for number, manifest in enumerate(backups, 1):
        put_manifest(target, backup_name(number, BEGUN, "0000000a"), manifest)
    write_metrics(path, target, now=BEGUN, success=True)
    found = metrics_of(path)
    assert found["last_complete_timestamp_seconds"] == BEGUN.timestamp()
    assert found[f"last_complete_timestamp_seconds of {strange}"] < BEGUN.timestamp() - 86_400
    assert found[f"last_complete_duration_seconds of {strange}"] == 0.0


def test_the_age_of_the_last_complete_backup_survives_runs_that_fail(tmp_path: Path) -> None:
    target, path = DirectoryTarget(tmp_path, paced=False), tmp_path / "backup.prom"
    write_metrics(path, None, now=BEGUN, success=False)
    run = {"last_run_timestamp_seconds": BEGUN.timestamp(), "last_run_success": 0.0}
    assert metrics_of(path) == run
    partial = replace(MANIFEST, left_out=(LeftOut(collection="words", shard=0, reason="lost"),))
    for day, manifest in enumerate((MANIFEST, partial)):
        name = backup_name(day + 1, BEGUN + timedelta(days=day), "0000000a")
        put_manifest(target, name, manifest)
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
