"""The rendered manifests obey the rules, and the rules see what no checker sees."""

from __future__ import annotations

import copy
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.deploy.rules import faults, name_of
from vectorshard import __version__
from vectorshard.cli.app import app

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
YAML_TO_JSON = "import json, sys, yaml; json.dump([*yaml.safe_load_all(sys.stdin)], sys.stdout)"

ROUTER = "Deployment/vectorshard-router"
SHARD = "StatefulSet/vectorshard-shard-1"
CONTAINER = "spec.template.spec.containers.0"
LABELS = "spec.template.metadata.labels"


@pytest.fixture(scope="module")
def documents() -> Any:
    """The manifests as kubectl renders them; not to be changed."""
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "deploy" / "kustomize")],
        stdout=subprocess.PIPE,
        check=True,
    )
    read = subprocess.run(
        [str(ROOT / "build" / "checkers" / "bin" / "python"), "-c", YAML_TO_JSON],
        input=rendered.stdout,
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(read.stdout)


def parse(command: str, arguments: Sequence[str]) -> Mapping[str, Any]:
    """Parse as `vectorshard COMMAND ARGUMENTS` does."""
    commands: Mapping[str, Any] = getattr(typer.main.get_command(app), "commands")  # noqa: B009
    if command not in commands:
        raise ValueError(f"no command {command}")
    try:
        params: Mapping[str, Any] = commands[command].make_context(command, [*arguments]).params
    except Exception as refused:
        raise ValueError(str(refused)) from None
    return params


def changed(documents: Any, name: str, path: str, value: Any) -> Any:
    """Return a copy with `value` at the dotted `path` of a document; None removes what is there."""
    copied = copy.deepcopy(documents)
    [part] = [document for document in copied if name_of(document) == name]
    *parents, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    for step in parents:
        part = part[step]
    if value is None:
        del part[last]
    else:
        part[last] = value
    return copied


def test_the_manifests_agree_with_themselves_and_with_the_program(documents: Any) -> None:
    assert not list(faults(documents, __version__, parse))


def test_the_scheduled_backup_is_of_commands_that_there_are() -> None:
    rendered = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "deploy" / "backup")],
        stdout=subprocess.PIPE,
        check=True,
    )
    read = subprocess.run(
        [str(ROOT / "build" / "checkers" / "bin" / "python"), "-c", YAML_TO_JSON],
        input=rendered.stdout,
        stdout=subprocess.PIPE,
        check=True,
    )
    [job] = [each for each in json.loads(read.stdout) if each["kind"] == "CronJob"]
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    containers = [*pod["initContainers"], *pod["containers"]]
    assert {each["image"] for each in containers} == {f"vectorshard:{__version__}"}
    backup, prune = (each["args"] for each in containers)
    assert parse(backup[0], backup[1:])["to"] == prune[2] == "/backups/fleet"
    commands: Any = typer.main.get_command(app)
    group = commands.commands["backup"]
    context = group.make_context("backup", ["list", "x"])
    made = group.get_command(context, prune[1]).make_context(prune[1], [*prune[2:]])
    assert made.params["keep"] == 7


@pytest.mark.parametrize(
    ("name", "path", "value", "fault"),
    [
        (ROUTER, f"{CONTAINER}.startupProbe", None, "no startupProbe"),
        (ROUTER, f"{CONTAINER}.readinessProbe", {"tcpSocket": {"port": 7700}}, "no readinessProbe"),
        (SHARD, f"{CONTAINER}.livenessProbe.grpc.port", 7700, "another port"),
        (SHARD, f"{CONTAINER}.readinessProbe.grpc.service", "", "instead of"),
        (SHARD, f"{CONTAINER}.livenessProbe.grpc.service", "x", "instead of"),
        (SHARD, "spec.template.spec.securityContext.runAsNonRoot", None, "runAsNonRoot"),
        (ROUTER, "spec.template.spec.securityContext.runAsUser", 0, "runAsUser"),
        (ROUTER, "spec.template.spec.securityContext.seccompProfile", None, "seccompProfile"),
        (ROUTER, "spec.template.spec.automountServiceAccountToken", None, "token"),
        (SHARD, f"{CONTAINER}.securityContext.runAsUser", 0, "securityContext"),
        (SHARD, f"{CONTAINER}.securityContext.readOnlyRootFilesystem", False, "securityContext"),
        (SHARD, f"{CONTAINER}.args.2", "--shard=2", "args"),
        (SHARD, f"{CONTAINER}.args.0", "shards", "args"),
        (SHARD, f"{CONTAINER}.args.2", "--shards=3", "--shards is not 2"),
        (SHARD, f"{CONTAINER}.args.3", "--cluster=other", "different clusters"),
        (SHARD, f"{CONTAINER}.args.4", "--data=/var/data", "--data"),
        (SHARD, f"{CONTAINER}.args.5", "--listen=127.0.0.1:7700", "--listen"),
        (SHARD, f"{CONTAINER}.args.6", "--metrics=0.0.0.0:9091", "--metrics"),
        (ROUTER, f"{CONTAINER}.args.5", "--health=0.0.0.0:7700", "--health"),
        (SHARD, f"{CONTAINER}.args.8", "--lame-duck=40", "too short"),
        (SHARD, f"{CONTAINER}.env.0.valueFrom.fieldRef.fieldPath", "metadata.name", "args"),
        (SHARD, f"{LABELS}.vectorshard/shard", "0", "shards' numbers"),
        (SHARD, f"{LABELS}.vectorshard/shard", "2", "does not select its pods"),
        (SHARD, "spec.replicas", 2, "one copy"),
        (SHARD, "spec.serviceName", "vectorshard-shard", "no headless Service"),
        (SHARD, f"{CONTAINER}.image", "vectorshard:0.0.9", "image"),
        (SHARD, "spec.template.spec.terminationGracePeriodSeconds", None, "too short"),
        (ROUTER, f"{CONTAINER}.lifecycle.preStop.sleep.seconds", 30, "too short"),
        (ROUTER, f"{CONTAINER}.args.1", "--shard=vectorshard-shard-1.vectorshard:7700", "--shard"),
        (ROUTER, f"{CONTAINER}.args.2", None, "requires --shards"),
        (ROUTER, f"{CONTAINER}.args.2", "--shards=3", "--shards are not"),
        (ROUTER, "metadata.namespace", "other", "namespaces"),
        (ROUTER, LABELS, {"app.kubernetes.io/name": "vectorshard"}, "0 of kind Service"),
        (ROUTER, "spec.template.spec.containers", [], "one container"),
        (ROUTER, "kind", "Job", "there is no router"),
        (SHARD, "spec.selector.matchLabels", {"app.kubernetes.io/component": "shard"}, "claimed"),
        ("Service/vectorshard-shard-1", "spec.selector", {"vectorshard/shard": "0"}, "others"),
        ("Service/vectorshard-router", "spec.selector", {"x": "y"}, "it selects no pods"),
        ("Service/vectorshard-shard-0", "spec.clusterIP", None, "no headless Service"),
        ("Service/vectorshard-shard-0", "spec.ports.0.targetPort", "http", "no port http"),
        ("Service/vectorshard-router", "spec.ports.0.port", 80, "not that of its pods"),
        ("PodDisruptionBudget/vectorshard-shard-0", "spec.selector", {}, "0 of kind PodDis"),
        (
            "PodDisruptionBudget/vectorshard-shard-1",
            "spec.unhealthyPodEvictionPolicy",
            "IfHealthyBudget",
            "unhealthyPodEvictionPolicy",
        ),
        ("NetworkPolicy/vectorshard-router", "spec.ingress.0.ports.0.port", "http", "no port http"),
        (
            "NetworkPolicy/vectorshard-shard",
            "spec.ingress.0.from.0.podSelector.matchLabels",
            {"app.kubernetes.io/component": "rooter"},
            "pods that there are not",
        ),
    ],
)
def test_a_manifest_that_contradicts_the_rest_is_named(
    documents: Any, name: str, path: str, value: Any, fault: str
) -> None:
    told = list(faults(changed(documents, name, path, value), __version__, parse))
    assert any(fault in line for line in told), told
