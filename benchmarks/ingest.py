"""Durable bulk load over gRPC, compared with the disk and FAISS, and with slower syncs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.fanout import queries_file
from benchmarks.growing import RATE_PER_S, Loading, Run, rest
from benchmarks.report import Row, Table
from benchmarks.server import (
    POLL_S,
    SHARDS,
    TIMEOUT_S,
    absorbed,
    at_rest,
    scratch,
    serving,
    wait_until_at_rest,
)
from benchmarks.vectors import Float32Array, clustered
from vectorshard.client.client import Client

COLLECTION = "ingest"
DIM = 100
ROWS = 100_000
QUICK_ROWS = 30_000
MORE_ROWS, QUICK_MORE_ROWS = 250_000, 60_000
"""Rows loaded during searches: too few to outgrow an index, which would start a training."""
ROUNDS = 5
QUICK_ROUNDS = 1
PIECE_ROWS = 1_000
"""Rows of one write to the disk, and of one call of FAISS."""

BAR_ROWS_PER_S = 50_000
BAR_DELAYED = 0.7
DELAY_MS = 5
BAR_P99 = 3.0
QUIET, LOADING = "quiet", "loading"

TRACER = (
    *("strace", "--daemonize", "--follow-forks", "--seccomp-bpf", "--quiet=all"),
    *("--output", "/dev/null", "--trace=fsync,fdatasync,set_robust_list"),
)
"""Stops the server only at its syncs; strace is a grandchild, so the server keeps its process id.

strace 6.1 stops a thread at every system call until the first traced one. Each thread begins with
set_robust_list, so that is traced too: without it an index trains at half its speed."""

DELAY = f"--inject=fsync,fdatasync:delay_exit={DELAY_MS}ms"
"""From outside the process, because SQLite syncs too."""


@dataclass(slots=True)
class Loads:
    """Rows per second of every load of a kind, and the nlist of the index at each point."""

    acknowledged: list[float] = field(default_factory=list)
    absorbed: list[float] = field(default_factory=list)
    at_rest: list[float] = field(default_factory=list)
    nlist_absorbed: list[int] = field(default_factory=list)
    nlist_at_rest: list[int] = field(default_factory=list)


def measure(quick: bool) -> list[Table]:
    """Measure loads alone, and searches during loads."""
    return [measure_loads(quick), measure_searches(quick)]


def measure_loads(quick: bool) -> Table:
    """Measure loads, the disk and FAISS in turn."""
    size = QUICK_ROWS if quick else ROWS
    vectors = clustered(size, DIM)
    untraceable = why_untraceable()
    plain, traced, delayed = Loads(), Loads(), Loads()
    disk: list[float] = []
    faiss_absorbed: list[float] = []
    faiss_at_rest: list[float] = []
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        with scratch() as directory:
            load(directory / "plain", vectors, plain)
            if not untraceable:
                load(directory / "traced", vectors, traced, TRACER)
                load(directory / "delayed", vectors, delayed, (*TRACER, DELAY))
            disk.append(size / disk_s(directory / "disk", vectors))
            faiss_absorbed.append(size / faiss_s(size, plain.nlist_absorbed[-1]))
            faiss_at_rest.append(size / faiss_s(size, plain.nlist_at_rest[-1]))

    def row(what: str, samples: list[float], nlists: Sequence[int] = (), bar: str = "-") -> Row:
        if not samples:
            return (f"{what}: {untraceable}", bar, *("-",) * 5)
        low, high = min(samples), max(samples)
        return (what, bar, span(nlists), median(samples), low, high, ratio(samples, plain.absorbed))

    later = f"{DELAY_MS} ms more in each sync"
    return Table(
        name="ingest",
        title=f"Bulk load of {size:,} rows",
        columns=("what", "bar", "nlist", "rows/s", "lowest", "highest", "of ours until absorbed"),
        rows=[
            row("ours, until acknowledged", plain.acknowledged),
            row(
                "ours, until absorbed",
                plain.absorbed,
                plain.nlist_absorbed,
                f">= {BAR_ROWS_PER_S:,} rows/s",
            ),
            row("ours, until no training runs", plain.at_rest, plain.nlist_at_rest),
            row("under strace, until acknowledged", traced.acknowledged),
            row("under strace, until absorbed", traced.absorbed, traced.nlist_absorbed),
            row(f"{later}, until acknowledged", delayed.acknowledged),
            row(
                f"{later}, until absorbed",
                delayed.absorbed,
                delayed.nlist_absorbed,
                f">= {BAR_DELAYED} of ours until absorbed",
            ),
            row(f"the disk: pwrite + fdatasync, {PIECE_ROWS:,} rows a time", disk),
            row("FAISS: add_with_ids, in process", faiss_absorbed, plain.nlist_absorbed),
            row("FAISS: add_with_ids, in process", faiss_at_rest, plain.nlist_at_rest),
        ],
        notes=(
            f"d={DIM}, L2, 2 shards, clustered vectors, UpsertStream by one client on an empty "
            f"server each time; medians of {len(disk)} rounds of all, ratios within a round. "
            "Until absorbed: all rows are acknowledged, and the buffer is back at the size that "
            "absorbing keeps. FAISS has an index and a core for each shard, trained before the "
            "clock starts. The cost of a sync on a shared disk varies several-fold between "
            "rounds: compare the disk's rate with its lowest and highest. "
            + of_traced(delayed, traced)
        ),
    )


def measure_searches(quick: bool) -> Table:
    """Measure searches during a load, and on the earlier rows alone, quiet."""
    size, more = (QUICK_ROWS, QUICK_MORE_ROWS) if quick else (ROWS, MORE_ROWS)
    vectors = clustered(size + more, DIM)
    runs: dict[str, list[Run]] = {QUIET: [], LOADING: []}
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        with (
            scratch() as directory,
            serving(directory / "rows") as server,
            server.connect() as client,
        ):
            loading = Loading(server.target, COLLECTION, queries_file(directory))
            client.create_collection(COLLECTION, dim=DIM, metric="l2")
            client.upsert(COLLECTION, np.arange(size), vectors[:size])
            wait_until_at_rest(client, COLLECTION)
            runs[QUIET].append(loading.during(rest))
            upload = partial(load_more, client, vectors, size)
            runs[LOADING].append(loading.during(upload))
    return Table(
        name="ingest",
        title=f"Searches while {more:,} rows are loaded",
        columns=("while", "bar", "took, s", "searches", "p50, ms", "p99, ms", "of quiet p99"),
        rows=list(rows_of_searches(runs)),
        notes=(
            f"d={DIM}, L2, k=10, 2 shards in one process, clustered vectors; single queries, "
            f"{RATE_PER_S} a second on average, from another process. {size:,} rows are stored and "
            "at rest; the load is one UpsertStream, timed until absorbed. Medians of "
            f"{len(runs[QUIET])} rounds, the ratio is that of a round."
        ),
    )


def rows_of_searches(runs: Mapping[str, Sequence[Run]]) -> Iterator[Row]:
    """Yield the rows of the quiet searches and of those during a load."""
    for name, of_name in runs.items():
        pairs = zip(of_name, runs[QUIET], strict=True)
        worse = median(run.p99_ms / quiet.p99_ms for run, quiet in pairs)
        told = f"<= {BAR_P99:g}, {'met' if worse <= BAR_P99 else 'missed'}"
        yield (
            name,
            told if name == LOADING else "-",
            median(run.took_s for run in of_name),
            sum(run.calls for run in of_name),
            median(run.p50_ms for run in of_name),
            median(run.p99_ms for run in of_name),
            worse,
        )


def load_more(client: Client, vectors: Float32Array, first: int) -> None:
    """Write the vectors, with ids from `first` on, and wait until they are absorbed.

    Raises
    ------
    TimeoutError
        If they are not absorbed in time.
    """
    client.upsert(COLLECTION, np.arange(first, len(vectors)), vectors[first:])
    end = perf_counter() + TIMEOUT_S
    while not absorbed(client.describe(COLLECTION)):
        if perf_counter() > end:
            raise TimeoutError(f"not absorbed in {TIMEOUT_S:g} s")
        time.sleep(POLL_S)


def of_traced(delayed: Loads, traced: Loads) -> str:
    """Return the rates of the delayed loads relative to traced loads without a delay."""
    if not delayed.absorbed:
        return "No sync was delayed."
    acknowledged = ratio(delayed.acknowledged, traced.acknowledged)
    until_absorbed = ratio(delayed.absorbed, traced.absorbed)
    return (
        f"`strace {DELAY}` delays SQLite's syncs as well as ours. Tracing alone has a cost: "
        f"relative to the rates under strace, the delayed ones are {acknowledged:.2f} until "
        f"acknowledged and {until_absorbed:.2f} until absorbed."
    )


def why_untraceable() -> str:
    """Return what prevents delayed syncs of a server here; empty if nothing does."""
    if shutil.which(TRACER[0]) is None:
        return "strace is not installed"
    tried = subprocess.run([*TRACER, DELAY, "true"], capture_output=True)
    return "strace is not permitted to trace" if tried.returncode else ""


def span(figures: Sequence[int]) -> str:
    """Return the lowest and the highest of some figures, or one if they are equal."""
    if not figures:
        return "-"
    lowest, highest = min(figures), max(figures)
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the rounds' ratios: the two runs of a round are adjacent."""
    return median(upper / lower for upper, lower in zip(over, under, strict=True))


def load(directory: Path, vectors: Float32Array, loads: Loads, tracer: Sequence[str] = ()) -> None:
    """Load into a new server and record the rates, and the nlist of its first shard."""
    with serving(directory, tracer) as server, server.connect() as client:
        client.create_collection(COLLECTION, dim=DIM, metric="l2")
        start = perf_counter()
        client.upsert(COLLECTION, np.arange(len(vectors)), vectors)
        loads.acknowledged.append(len(vectors) / (perf_counter() - start))
        for condition, samples, nlists in (
            (absorbed, loads.absorbed, loads.nlist_absorbed),
            (at_rest, loads.at_rest, loads.nlist_at_rest),
        ):
            while not condition(description := client.describe(COLLECTION)):
                if perf_counter() > start + TIMEOUT_S:
                    raise TimeoutError(f"the collection did not come to rest: {description}")
                time.sleep(POLL_S)
            samples.append(len(vectors) / (perf_counter() - start))
            nlists.append(description.shards[0].nlist)


def disk_s(file: Path, vectors: Float32Array) -> float:
    """Write the same bytes piece by piece, each synced, and return the seconds."""
    descriptor = os.open(file, os.O_CREAT | os.O_WRONLY)
    try:
        start = perf_counter()
        for first in range(0, len(vectors), PIECE_ROWS):
            piece = vectors[first : first + PIECE_ROWS]
            os.pwrite(descriptor, piece.data, first * vectors.itemsize * vectors.shape[1])
            os.fdatasync(descriptor)
        return perf_counter() - start
    finally:
        os.close(descriptor)


def faiss_s(size: int, nlist: int) -> float:
    """Return the seconds that FAISS takes in a separate process, without a server."""
    command = [sys.executable, "-m", "benchmarks.faiss_add", str(size), str(DIM), str(nlist)]
    command += [str(PIECE_ROWS), str(SHARDS)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)
