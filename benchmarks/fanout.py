"""The plain fan-out: one process with its shards, and a router over two shard processes.

Both hold the same rows in the same indexes. The difference is the cost of a search between
processes, the baseline of a faster fan-out.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.report import Cell, Row, Table
from benchmarks.server import Server, scratch, serving, serving_fleet, wait_until_at_rest
from benchmarks.vectors import clustered
from vectorshard.client.client import Client

COLLECTION = "fanout"
DIM = 100
QUERIES = 1_000
ROWS = 100_000
QUICK_ROWS = 20_000
ROUNDS = 3
QUICK_ROUNDS = 1
DURATION_S = 0.8
"""Duration of each run of the load generator."""

EMBEDDED, FLEET = "embedded", "router + 2 shards"


@dataclass(frozen=True, slots=True)
class Calls:
    """A load: the calls in flight, and the queries of each; 0 is the empty call.

    Without `target_recall` the collection's applies. With `rate_per_s`, that many calls start per
    second, and `in_flight` is their maximum.
    """

    name: str
    in_flight: int
    queries: int
    collection: str = COLLECTION
    target_recall: float | None = None
    rate_per_s: float | None = None

    @property
    def options(self) -> list[str]:
        """The options of `vectorshard bench`."""
        pace = ["--closed"] if self.rate_per_s is None else ["--rps", f"{self.rate_per_s:g}"]
        options = [*pace, "--concurrency", str(self.in_flight), "--warmup", "0"]
        if not self.queries:
            return [*options, "--call", "empty"]
        options += ["--collection", self.collection, "--batch", str(self.queries)]
        if self.target_recall is None:
            return options
        return [*options, "--target-recall", str(self.target_recall)]


EMPTY_ALONE = Calls("empty call, 1 in flight", 1, 0)
SINGLE_ALONE = Calls("single query, 1 in flight", 1, 1)
SINGLES = Calls("single queries, 16 in flight", 16, 1)
BATCHES = Calls("batches of 64, 4 in flight", 4, 64)
LOADS = (SINGLE_ALONE, EMPTY_ALONE, SINGLES, Calls("empty calls, 16 in flight", 16, 0), BATCHES)


@dataclass(frozen=True, slots=True)
class Kind:
    """Running servers: the processes by name, first the one that clients call."""

    name: str
    processes: Mapping[str, Server]

    @property
    def front(self) -> Server:
        """The server that clients call."""
        return next(iter(self.processes.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a load. A call without queries counts as one; CPU of each process by its name.

    `recall` is None if the load's file has no ground truth.
    """

    queries_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: Mapping[str, float]
    client_us: float
    recall: float | None = None


def measure(quick: bool) -> Table:
    """Measure every load on both kinds of servers."""
    runs: dict[tuple[Calls, str], list[Run]] = {}
    with scratch() as directory, both_kinds(directory, QUICK_ROWS if quick else ROWS) as kinds:
        data = queries_file(directory)
        for kind in kinds:
            run_load(kind, SINGLES, data, DURATION_S)
        for round_ in range(QUICK_ROUNDS if quick else ROUNDS):
            for calls in LOADS:
                for kind in kinds if round_ % 2 else kinds[::-1]:
                    run = run_load(kind, calls, data, DURATION_S)
                    runs.setdefault((calls, kind.name), []).append(run)
        index = described_indexes(kinds)
    return Table(
        name="fanout",
        title="The plain fan-out: a router over two processes, and one process",
        columns=(
            "load",
            "servers",
            "queries/s",
            "p50, ms",
            "p99, ms",
            "p50 less the empty call's, ms",
            "CPU, µs a query: server called",
            "shard 0",
            "shard 1",
            "load generator",
            "queries/s of embedded",
            "rounds",
        ),
        rows=list(rows_of(runs)),
        notes=(
            f"{QUICK_ROWS if quick else ROWS:,} rows, d={DIM}, L2, k=10, 2 shards, clustered "
            f"vectors, {index}; a search on a shard may use its part of the cores. One run of "
            f"vectorshard bench --closed takes {DURATION_S:g} s; the kinds in turn; medians, the "
            "ratios are those of a round. Empty is GetServerInfo, which the router answers "
            "itself, and counts as a query. The p50 of one empty call in flight is subtracted from "
            "that of one query in flight. All processes share the cores, so the CPU of a query "
            "over all of them limits the rate; a router with its own cores is limited only by "
            "its own part."
        ),
    )


def rows_of(runs: Mapping[tuple[Calls, str], Sequence[Run]]) -> Iterator[Row]:
    """Yield the table's rows, the router's first: `runs` holds the same rounds of each."""
    for calls in LOADS:
        embedded = runs[calls, EMBEDDED]
        for kind in (FLEET, EMBEDDED):
            of_kind = runs[calls, kind]
            front, *shards = of_kind[0].cpu_us
            beyond: Cell = "-"
            if calls is SINGLE_ALONE:
                pairs = zip(of_kind, runs[EMPTY_ALONE, kind], strict=True)
                beyond = median(run.p50_ms - empty.p50_ms for run, empty in pairs)
            cpu: list[Cell] = [median(run.cpu_us[name] for run in of_kind) for name in shards]
            yield (
                calls.name,
                kind,
                median(run.queries_per_s for run in of_kind),
                median(run.p50_ms for run in of_kind),
                median(run.p99_ms for run in of_kind),
                beyond,
                median(run.cpu_us[front] for run in of_kind),
                *(cpu or ["-", "-"]),
                median(run.client_us for run in of_kind),
                median(
                    run.queries_per_s / other.queries_per_s
                    for run, other in zip(of_kind, embedded, strict=True)
                ),
                len(of_kind),
            )


# ---- the servers, and their load ----------------------------------------------------------------


@contextmanager
def both_kinds(directory: Path, rows: int) -> Iterator[Sequence[Kind]]:
    """Run both kinds of servers over the same rows, trained on all of them and at rest."""
    with (
        serving(directory / "embedded") as server,
        serving_fleet(directory / "fleet") as fleet,
        server.connect() as client,
        next(iter(fleet.values())).connect() as fleet_client,
    ):
        for each in (client, fleet_client):
            fill(each, rows)
        yield Kind(EMBEDDED, {"embedded": server}), Kind(FLEET, fleet)


def fill(client: Client, rows: int) -> None:
    """Write rows and train on all of them, so that the same rows make the same index."""
    client.create_collection(COLLECTION, dim=DIM, metric="l2")
    client.upsert(COLLECTION, np.arange(rows), clustered(rows, DIM))
    client.train(COLLECTION, wait=True)
    wait_until_at_rest(client, COLLECTION)


def described_indexes(kinds: Sequence[Kind]) -> str:
    """Return nlist and nprobe of all shards in a few words.

    Raises
    ------
    RuntimeError
        If the kinds differ: the comparison would be of different work.
    """
    told = set()
    for kind in kinds:
        with kind.front.connect() as client:
            shards = client.describe(COLLECTION).shards
        told.add(", ".join(f"nprobe {shard.nprobe} of {shard.nlist} lists" for shard in shards))
    if len(told) > 1:
        raise RuntimeError(f"the kinds' indexes differ: {sorted(told)}")
    return told.pop()


def queries_file(directory: Path) -> Path:
    """Write held-out queries for the load generator, without rows or ground truth."""
    file = directory / "queries.npz"
    queries = clustered(QUERIES, DIM, part=1)
    np.savez(file, vectors=queries[:1], queries=queries)
    return file


def load_command(kind: Kind, calls: Calls, data: Path, duration_s: float) -> list[str]:
    """Return the command that loads a server and prints the result as JSON."""
    command = [str(Path(sys.executable).with_name("vectorshard")), "bench", *calls.options]
    command += ["--target", kind.front.target, "--duration", str(duration_s), "--format", "json"]
    return [*command, "--data", str(data)] if calls.queries else command


def run_load(kind: Kind, calls: Calls, data: Path, duration_s: float) -> Run:
    """Load the servers once."""
    before_s = cpu_s_of(kind)
    ended = subprocess.run(
        load_command(kind, calls, data, duration_s), check=True, capture_output=True
    )
    after_s = cpu_s_of(kind)
    used_s = {name: after_s[name] - before_s[name] for name in after_s}
    return run_of(calls, ended.stdout, used_s)


def cpu_s_of(kind: Kind) -> dict[str, float]:
    """Return the seconds of CPU that each process has used so far."""
    return {name: server.cpu_s() for name, server in kind.processes.items()}


def run_of(calls: Calls, told_json: str | bytes, used_s: Mapping[str, float]) -> Run:
    """Return the load generator's result, and the CPU that the servers used meanwhile.

    Raises
    ------
    RuntimeError
        If not all calls succeeded.
    """
    told = json.loads(told_json)
    if set(told["codes"]) != {"OK"}:
        raise RuntimeError(f"not all calls succeeded: {told['codes']}")
    queries_a_call = calls.queries or 1
    queries = told["codes"]["OK"] * queries_a_call
    return Run(
        queries_per_s=told["rate_achieved_per_s"] * queries_a_call,
        p50_ms=told["latency_p50_ms"],
        p99_ms=told["latency_p99_ms"],
        cpu_us={name: 1e6 * seconds / queries for name, seconds in used_s.items()},
        client_us=told["client_cpu_us_per_call"] / queries_a_call,
        recall=told.get("recall"),
    )
