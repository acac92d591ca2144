"""The cost of background work for searches: training, retraining and compaction.

The load comes from another process, at a steady rate well below the server's capacity, so that the
wait of a search shows in its own latency only. Every phase is compared with a quiet run over the
same rows in the same round.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.fanout import queries_file
from benchmarks.report import Row, Table
from benchmarks.server import POLL_S, TIMEOUT_S, scratch, serving, wait_until_at_rest
from benchmarks.vectors import clustered
from vectorshard.client.client import Client
from vectorshard.shard.types import Float32Array, IndexConfig

COLLECTION = "growing"
DIM = 100
ROWS = 200_000
QUICK_ROWS = 60_000
ROUNDS = 5
QUICK_ROUNDS = 1
RATE_PER_S = 100
"""Single queries a second, at random moments."""
QUIET_S = 4.0
AFTER_S = 0.5
"""Time for the removal of the garbage of a compaction."""
SHORT_S = 0.7
"""A quiet run for the compaction, which takes as long: of so few searches, the first over the new
connection among them, the 99th percentile is nearly the largest."""

BAR = 3.0
PHASES = {
    "training the first index": "quiet, all rows buffered",
    "retraining": "quiet, trained",
    "compaction": "quiet, trained, as short",
}
"""Each phase, and the quiet run that it is compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The searches of one run: how many, for how long, and their latencies."""

    calls: int
    took_s: float
    p50_ms: float
    p99_ms: float


def measure(quick: bool) -> Table:
    """Measure every phase on a new server each round."""
    size = QUICK_ROWS if quick else ROWS
    vectors = clustered(size, DIM)
    runs: dict[str, list[Run]] = {}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        with scratch() as directory, serving(directory / "data") as server:
            loading = Loading(server.target, COLLECTION, queries_file(directory))
            with server.connect() as client:
                for name, run in one_round(client, loading, vectors):
                    runs.setdefault(name, []).append(run)
    return Table(
        name="growing",
        title=f"Searches of {size:,} rows while the server works on them",
        columns=("while", "bar", "took, s", "searches", "p50, ms", "p99, ms", "of quiet p99"),
        rows=list(rows_of(runs)),
        notes=(
            f"d={DIM}, L2, k=10, 2 shards in one process, clustered vectors; single queries, "
            f"{RATE_PER_S} a second on average, from another process, from just before the work "
            f"until its end, {AFTER_S:g} s longer for a compaction; medians of "
            f"{len(runs['compaction'])} rounds, the ratio is that of a round. Compaction drops "
            "half of the rows, which were deleted before; the last deletes start it."
        ),
    )


def rows_of(runs: Mapping[str, list[Run]]) -> Iterator[Row]:
    """Yield the table's rows, each quiet run before the phases compared with it."""
    for name, of_name in runs.items():
        quiet = runs.get(PHASES.get(name, ""), of_name)
        yield (
            name,
            f"<= {BAR:g}" if name in PHASES else "-",
            median(run.took_s for run in of_name),
            sum(run.calls for run in of_name),
            median(run.p50_ms for run in of_name),
            median(run.p99_ms for run in of_name),
            median(run.p99_ms / other.p99_ms for run, other in zip(of_name, quiet, strict=True)),
        )


def one_round(client: Client, loading: Loading, vectors: Float32Array) -> Iterator[tuple[str, Run]]:
    """Yield each phase and quiet run by its name, in the order of a collection's life."""
    size = len(vectors)
    untrained = IndexConfig(min_training_size=size)
    client.create_collection(COLLECTION, dim=DIM, metric="l2", index=untrained)
    client.upsert(COLLECTION, np.arange(size), vectors)
    yield "quiet, all rows buffered", loading.during(rest)
    yield "training the first index", loading.during(lambda: train(client))
    wait_until_at_rest(client, COLLECTION)
    yield "quiet, trained", loading.during(rest)
    yield "quiet, trained, as short", loading.during(lambda: time.sleep(SHORT_S))
    yield "retraining", loading.during(lambda: train(client))
    wait_until_at_rest(client, COLLECTION)
    almost = np.arange(size * 48 // 100)
    client.delete(COLLECTION, almost)
    last = np.arange(len(almost), size * 53 // 100)
    yield "compaction", loading.during(lambda: compact(client, last))


def rest() -> None:
    """Leave the server alone."""
    time.sleep(QUIET_S)


def train(client: Client) -> None:
    """Train an index and wait for it."""
    client.train(COLLECTION, wait=True)


def compact(client: Client, last: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Delete the rows that trigger a compaction, and wait for its end.

    Raises
    ------
    TimeoutError
        If the rows are not compacted in time.
    """
    before = [shard.disk_bytes for shard in client.describe(COLLECTION).shards]
    client.delete(COLLECTION, last)
    end = perf_counter() + TIMEOUT_S
    while any(
        shard.disk_bytes > 0.8 * disk_bytes
        for shard, disk_bytes in zip(client.describe(COLLECTION).shards, before, strict=True)
    ):
        if perf_counter() > end:
            raise TimeoutError(f"the rows were not compacted in {TIMEOUT_S:g} s")
        time.sleep(POLL_S)
    time.sleep(AFTER_S)


@dataclass(frozen=True, slots=True)
class Loading:
    """A steady load of searches from another process: the server, collection and queries."""

    target: str
    collection: str
    queries: Path

    def during(self, work: Callable[[], None]) -> Run:
        """Do some work under load, and return the searches of that time.

        Raises
        ------
        RuntimeError
            If the load does not start, or not all searches succeeded.
        """
        child = subprocess.Popen(self._command(), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            self._wait_until_calls_start(child)
            started = perf_counter()
            work()
            took_s = perf_counter() - started
            child.send_signal(signal.SIGTERM)
            told_json, _ = child.communicate(timeout=TIMEOUT_S)
        finally:
            child.kill()
            child.wait()
        told = json.loads(told_json)
        if set(told["codes"]) != {"OK"}:
            raise RuntimeError(f"not all searches succeeded: {told['codes']}")
        return Run(
            calls=told["calls"],
            took_s=took_s,
            p50_ms=told["latency_p50_ms"],
            p99_ms=told["latency_p99_ms"],
        )

    def _command(self) -> list[str]:
        vectorshard = str(Path(sys.executable).with_name("vectorshard"))
        options = ["--target", self.target, "--collection", self.collection]
        options += ["--data", str(self.queries)]
        options += ["--rps", str(RATE_PER_S), "--warmup", "0", "--duration", str(TIMEOUT_S)]
        return [vectorshard, "bench", *options, "--format", "json"]

    @staticmethod
    def _wait_until_calls_start(child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        told = []
        for line in child.stderr:
            told.append(line.decode(errors="replace"))
            if told[-1].startswith("calls start"):
                return
        raise RuntimeError(f"the load did not start:\n{''.join(told)}")
