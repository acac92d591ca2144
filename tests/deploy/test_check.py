"""`deploy/check` sees what it is there to see: copies of deploy/, each with one thing broken."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]

SHARD = "kustomize/shard/stateful-set.yaml"
BACKUP = "backup/cron-job.yaml"
ROUTER = "kustomize/router/deployment.yaml"


def check(directory: Path) -> subprocess.CompletedProcess[str]:
    """Run the check that lies in `directory`/deploy."""
    return subprocess.run(
        [str(directory / "deploy" / "check"), str(ROOT / "build" / "checkers" / "bin")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A directory that holds a copy of deploy/."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    return tmp_path


def test_an_unchanged_copy_passes(copied: Path) -> None:
    ended = check(copied)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize(
    ("file", "right", "wrong", "told"),
    [
        (SHARD, "readinessProbe:", "readynessProbe:", "'readynessProbe' was unexpected"),
        (ROUTER, "service: vectorshard.v1", "servise: vectorshard.v1", "'servise' was unexpected"),
        (ROUTER, "failureThreshold: 30", "failuresThreshold: 30", "'failuresThreshold' was unexp"),
        (SHARD, "port: 7701", 'port: "7701"', "is not of type 'integer'"),
        (SHARD, "runAsUser: 10001", "runAsUser: 0", "CKV_K8S_40"),
        (ROUTER, "allowPrivilege", "runAsNonRoot: false\n            allowPrivilege", "CKV_K8S_23"),
        (ROUTER, "readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false", "CKV_K8S_22"),
        (BACKUP, "backoffLimit: 3", "backofLimit: 3", "'backofLimit' was unexpected"),
        (BACKUP, "runAsUser: 10001", "runAsUser: 0", "CKV_K8S_40"),
        ("kustomize/shard/disruption-budget.yaml", "Budget", "Buget", "find schema for kind"),
        ("kustomize/kustomization.yaml", "- router", "- rooter", "rooter"),
        ("Dockerfile", "USER 10001:10001", "USER root", "DL3002"),
        ("Dockerfile", "python:3.11-slim-bookworm AS build", "python AS build", "DL3006"),
    ],
)
def test_what_is_broken_is_refused_and_named(
    copied: Path, file: str, right: str, wrong: str, told: str
) -> None:
    path = copied / "deploy" / file
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    ended = check(copied)
    assert (ended.returncode != 0, told in ended.stdout) == (True, True), ended.stdout
