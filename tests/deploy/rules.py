"""What must hold of the rendered manifests, and that no checker asks.

Pure: documents in, faults out. Schemas know fields, and policies know dangers. That the ports, the
flags, the selectors and the shards' numbers agree with each other and with the program is for these
rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vectorshard.cli.addresses import shard_addresses
from vectorshard.shard.errors import InvalidParameter
from vectorshard.shard.server.run import DRAIN_S
from vectorshard.shard.wire.rpcs import SERVICE_NAME

Document = Mapping[str, Any]
"""A manifest, or a part of one."""

Parse = Callable[[str, Sequence[str]], Mapping[str, Any]]
"""Parse the arguments of a subcommand as the program does; ValueError says what it refuses."""

LEAST_UID = 10_000
"""Below it, a user of the container may be a user of the node."""

MARGIN_S = 10
"""From the end of the drain until Kubernetes kills."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A StatefulSet or Deployment, and what its one container is told."""

    document: Document
    container: Document
    params: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Kind and name, for a reader."""
        return name_of(self.document)

    @property
    def spec(self) -> Document:
        """The pod's specification."""
        spec: Document = self.document["spec"]["template"]["spec"]
        return spec

    @property
    def labels(self) -> Mapping[str, str]:
        """The pod's labels."""
        labels: Mapping[str, str] = self.document["spec"]["template"]["metadata"]["labels"]
        return labels

    @property
    def ports(self) -> Mapping[str, int]:
        """The container's ports by name."""
        return {port["name"]: port["containerPort"] for port in self.container["ports"]}


def name_of(document: Document) -> str:
    """Return Kind/name."""
    return f"{document['kind']}/{document['metadata']['name']}"


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    """Return the documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether a selector of labels holds for `labels`."""
    return bool(selector) and selector.items() <= labels.items()


def faults(documents: Sequence[Document], version: str, parse: Parse) -> Iterator[str]:
    """Yield what is wrong with the manifests of vectorshard `version`, a line each."""
    workloads = []
    for document in of_kind(documents, "StatefulSet", "Deployment"):
        containers = document["spec"]["template"]["spec"]["containers"]
        if len(containers) != 1:
            yield f"{name_of(document)}: one container is expected"
            continue
        try:
            params = parse(*arguments(document, containers[0]))
        except ValueError as error:
            yield f"{name_of(document)}: args: {error}"
            continue
        workloads.append(Workload(document, containers[0], params))
    for workload in workloads:
        for told in (
            *probe_faults(workload),
            *security_faults(workload),
            *port_faults(workload),
            *life_faults(workload),
            *selector_faults(workload, documents),
        ):
            yield f"{workload.name}: {told}"
        image = workload.container["image"]
        if not image.endswith(f":{version}") and "@sha256:" not in image:
            yield f"{workload.name}: the image is not that of version {version}"
    yield from fleet_faults(workloads, documents)
    yield from policy_faults(workloads, documents)
    yield from budget_faults(documents)


def arguments(document: Document, container: Document) -> tuple[str, list[str]]:
    """Return the subcommand and its arguments, with $(NAME) replaced by the label it stands for."""
    values = {}
    for variable in container.get("env", ()):
        path = variable["valueFrom"]["fieldRef"]["fieldPath"]
        label = path.removeprefix("metadata.labels['").removesuffix("']")
        values[variable["name"]] = document["spec"]["template"]["metadata"]["labels"].get(label, "")
    expanded = []
    for argument in container["args"]:
        for name, value in values.items():
            argument = argument.replace(f"$({name})", value)
        expanded.append(argument)
    return expanded[0], expanded[1:]


def probe_faults(workload: Workload) -> Iterator[str]:
    """Yield what is wrong with the probes: all three, by gRPC, of the right service."""
    asked = {"startupProbe": "", "readinessProbe": SERVICE_NAME, "livenessProbe": ""}
    for probe, service in asked.items():
        grpc = workload.container.get(probe, {}).get("grpc")
        if grpc is None:
            yield f"there is no {probe} by gRPC"
        elif grpc["port"] != workload.ports.get("health"):
            yield f"{probe} asks another port than health"
        elif grpc.get("service", "") != service:
            yield f"{probe} asks for {grpc.get('service', '')!r} instead of {service!r}"


def security_faults(workload: Workload) -> Iterator[str]:
    """Yield what a pod may do that it need not."""
    pod = workload.spec.get("securityContext", {})
    if pod.get("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if pod.get("runAsUser", 0) < LEAST_UID or pod.get("runAsGroup", 0) < LEAST_UID:
        yield "runAsUser or runAsGroup could be one of the node's"
    if pod.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "seccompProfile is not RuntimeDefault"
    if workload.spec.get("automountServiceAccountToken") is not False:
        yield "it gets a token of the Kubernetes API"
    wanted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    containers = [*workload.spec["containers"], *workload.spec.get("initContainers", ())]
    if any(container.get("securityContext") != wanted for container in containers):
        yield f"the container's securityContext is not {wanted}"


def port_faults(workload: Workload) -> Iterator[str]:
    """Yield where flags and ports of the container contradict each other."""
    for flag, port in (("listen", "grpc"), ("metrics", "metrics"), ("health", "health")):
        if workload.params[flag] != f"0.0.0.0:{workload.ports.get(port)}":
            yield f"--{flag} is not 0.0.0.0 and the port {port}"


def life_faults(workload: Workload) -> Iterator[str]:
    """Yield whether Kubernetes would kill a pod that drains."""
    before_stop = workload.container.get("lifecycle", {}).get("preStop", {})
    before_s = before_stop.get("sleep", {}).get("seconds", 0)
    before_s += workload.params["lame_duck"]
    if workload.spec.get("terminationGracePeriodSeconds", 30) < before_s + DRAIN_S + MARGIN_S:
        yield "terminationGracePeriodSeconds is too short for the drain"


def selector_faults(workload: Workload, documents: Sequence[Document]) -> Iterator[str]:
    """Yield where what belongs to a workload does not select its pods, once, and no others."""
    if not selects(workload.document["spec"]["selector"]["matchLabels"], workload.labels):
        yield "its selector does not select its pods"
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        selecting = [
            document
            for document in of_kind(documents, kind)
            if selects(pod_selector(document), workload.labels)
        ]
        if len(selecting) != 1:
            yield f"{len(selecting)} of kind {kind} select its pods, not 1"
    same = [
        name_of(document)
        for document in of_kind(documents, "StatefulSet", "Deployment")
        if selects(document["spec"]["selector"]["matchLabels"], workload.labels)
    ]
    if len(same) != 1:
        yield f"its pods are claimed by {', '.join(same)}"


def pod_selector(document: Document) -> Mapping[str, str]:
    """Return the labels of the pods that a Service, a budget or a policy is about."""
    spec = document["spec"]
    selector = spec.get("podSelector", spec.get("selector", {}))
    labels: Mapping[str, str] = selector.get("matchLabels", {})
    return selector if document["kind"] == "Service" else labels


def fleet_faults(workloads: Sequence[Workload], documents: Sequence[Document]) -> Iterator[str]:
    """Yield where router, shards and Services disagree about who the shards are."""
    namespaces = {
        document["metadata"].get("namespace") or document["metadata"]["name"]
        for document in documents
    }
    if len(namespaces) != 1:
        yield f"more namespaces than one: {', '.join(sorted(namespaces))}"
        return
    [namespace] = namespaces
    shards = sorted(
        (workload for workload in workloads if "shard_id" in workload.params),
        key=lambda workload: int(workload.params["shard_id"]),
    )
    numbers = [workload.params["shard_id"] for workload in shards]
    if numbers != list(range(len(shards))):
        yield f"the shards' numbers are {numbers}"
    if any(workload.params["shards"] != len(shards) for workload in shards):
        yield f"--shards is not {len(shards)} for every shard"
    if len({workload.params["cluster"] for workload in shards}) != 1:
        yield "the shards belong to different clusters"
    services = {
        document["metadata"]["name"]: document for document in of_kind(documents, "Service")
    }
    addresses = []
    for workload in shards:
        if workload.document["spec"].get("replicas", 1) != 1:
            yield f"{workload.name}: a shard has one copy"
        name = workload.document["spec"]["serviceName"]
        service = services.get(name)
        if service is None or service["spec"].get("clusterIP") != "None":
            yield f"{workload.name}: there is no headless Service {name}"
        elif not selects(service["spec"]["selector"], workload.labels):
            yield f"{workload.name}: Service {name} selects others"
        addresses.append(f"{name}.{namespace}:{workload.ports.get('grpc')}")
        mounts = {mount["mountPath"]: mount["name"] for mount in workload.container["volumeMounts"]}
        claims = {
            claim["metadata"]["name"] for claim in workload.document["spec"]["volumeClaimTemplates"]
        }
        if mounts.get(str(workload.params["data"])) not in claims:
            yield f"{workload.name}: --data is not on a volume of its own"
    routers = [workload for workload in workloads if "shard" in workload.params]
    if not routers:
        yield "there is no router"
    for workload in routers:
        try:
            named = shard_addresses(workload.params["shard"], workload.params["shards"])
        except InvalidParameter as error:
            yield f"{workload.name}: {error}"
        else:
            if list(named) != addresses:
                yield f"{workload.name}: --shard and --shards are not {addresses}"


def policy_faults(workloads: Sequence[Workload], documents: Sequence[Document]) -> Iterator[str]:
    """Yield ports of Services and policies that the pods behind them do not have."""
    for document in of_kind(documents, "Service", "NetworkPolicy"):
        spec = document["spec"]
        behind = [
            workload for workload in workloads if selects(pod_selector(document), workload.labels)
        ]
        if not behind:
            yield f"{name_of(document)}: it selects no pods"
        asked = [port["targetPort"] for port in spec.get("ports", ())] + [
            port["port"] for rule in spec.get("ingress", ()) for port in rule["ports"]
        ]
        for workload in behind:
            if missing := set(asked) - set(workload.ports):
                yield f"{name_of(document)}: {workload.name} has no port {', '.join(missing)}"
        if document["kind"] == "Service" and any(
            port["port"] not in workload.ports.values()
            for port in spec["ports"]
            for workload in behind
        ):
            yield f"{name_of(document)}: its port is not that of its pods"
    for document in of_kind(documents, "NetworkPolicy"):
        for rule in document["spec"].get("ingress", ()):
            for peer in rule.get("from", ()):
                wanted = peer.get("podSelector", {}).get("matchLabels")
                if wanted and not any(selects(wanted, workload.labels) for workload in workloads):
                    yield f"{name_of(document)}: it lets in pods that there are not"


def budget_faults(documents: Sequence[Document]) -> Iterator[str]:
    """Yield the budgets by which a pod that is not ready holds up a drain of its node for ever.

    Kubernetes' default counts it as the one that may be missing, and lets nobody evict it.
    """
    for document in of_kind(documents, "PodDisruptionBudget"):
        if document["spec"].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
            yield f"{name_of(document)}: unhealthyPodEvictionPolicy is not AlwaysAllow"
