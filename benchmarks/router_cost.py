"""The cost of a router over 1, 2, 4 and 8 shards, compared with one shard called directly.

All hold the same rows. Over one shard a router shows its own cost; over more shards there is also
the cost of searching the rows in more pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.fanout import (
    BATCHES,
    COLLECTION,
    DIM,
    QUERIES,
    SINGLE_ALONE,
    SINGLES,
    Calls,
    Kind,
    Run,
    fill,
    queries_file,
    run_load,
)
from benchmarks.load.recall import nearest_rows
from benchmarks.report import Row, Table
from benchmarks.server import scratch, serving_fleet, serving_shard
from benchmarks.vectors import clustered
from vectorshard.shard.types import Metric

SHARDS = (1, 2, 4, 8)
"""Shards of the fleets."""
K = 10
ROWS = 40_000
QUICK_ROWS = 10_000
ROUNDS = 5
QUICK_ROUNDS = 1
DURATION_S = 2.0
QUICK_DURATION_S = 0.8
"""Duration of each run of the load generator."""
RATE_PER_S = 100.0
"""A fraction of the capacity of the slowest fleet on two cores, so that no queue builds up."""

ROUTER, DIRECT = "router", "one shard, called directly"
STEADY = Calls(f"single queries, {RATE_PER_S:g} a second", 1_000, 1, rate_per_s=RATE_PER_S)
BATCH_ALONE = Calls("batches of 64, 1 in flight", 1, 64)
LOADS = (SINGLE_ALONE, STEADY, SINGLES, BATCH_ALONE, BATCHES)


@dataclass(frozen=True, slots=True)
class Quality:
    """The recall of a search, and the lists that all shards probed for it."""

    recall: float
    lists: int


def fleet_name(shards: int) -> str:
    """Return the name of a fleet in the table."""
    return f"{ROUTER} + {shards} shard{'s' if shards > 1 else ''}"


def measure(quick: bool) -> Table:
    """Measure every load on the shard called directly, and on all fleets."""
    rows, duration_s = (QUICK_ROWS, QUICK_DURATION_S) if quick else (ROWS, DURATION_S)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    runs: dict[tuple[Calls, str], list[Run]] = {}
    with scratch() as directory, all_kinds(directory, rows) as kinds:
        truth = truth_file(directory, rows)
        qualities = {kind.name: quality_of(kind, truth, duration_s) for kind in kinds}
        data = queries_file(directory)
        for round_ in range(rounds):
            turn = round_ % len(kinds)
            for calls in LOADS:
                for kind in [*kinds[turn:], *kinds[:turn]]:
                    run = run_load(kind, calls, data, duration_s)
                    runs.setdefault((calls, kind.name), []).append(run)
        with kinds[0].front.connect() as client:
            target = client.describe(COLLECTION).config.target_recall
    return Table(
        name="router",
        title="What a router costs, over 1, 2, 4 and 8 shard processes",
        columns=(
            "load",
            "server called",
            "queries/s",
            "p50, ms",
            "p99, ms",
            "CPU, µs a query: router",
            "all shards",
            "p50 / one shard's",
            "p99 / one shard's",
            "queries/s / one shard's",
            "CPU of all / one shard's",
            f"recall@{K}",
            "lists probed",
        ),
        rows=list(rows_of(runs, qualities)),
        notes=(
            f"{rows:,} rows, d={DIM}, L2, k={K}, IVF_PQ, clustered vectors, held-out "
            f"queries, target recall {target:g}; the recall is against exact neighbours. "
            "The rows are distributed over the shards of a fleet; the single shard holds all of "
            "them. Each shard trained on all of its rows and chose its own nprobe; the lists "
            "probed are those of all shards. Each shard meets the target for its own best rows, of "
            "which the answer takes only some, so more shards find more and do more work. All "
            "servers and the load generator share the machine's cores, and a search on a shard may "
            "use its part of them, at least one: on two cores 8 shards wait for each other, and "
            "the gain on separate machines is not visible. One run "
            f"of vectorshard bench takes {duration_s:g} s, --closed where calls are in flight; "
            "with a rate, arrivals are random, and a latency counts from the intended "
            f"start. All in turn within each round; medians of the rounds ({rounds}), a ratio is "
            "that of a round."
        ),
    )


FIGURES: tuple[Callable[[Run], float], ...] = (
    lambda run: run.p50_ms,
    lambda run: run.p99_ms,
    lambda run: run.queries_per_s,
    lambda run: sum(run.cpu_us.values()),
)
"""The figures with a ratio, in the order of the columns."""


def rows_of(
    runs: Mapping[tuple[Calls, str], Sequence[Run]], qualities: Mapping[str, Quality]
) -> Iterator[Row]:
    """Yield the table's rows; `runs` holds the same rounds of each of those in `qualities`."""
    for calls in LOADS:
        direct = runs[calls, DIRECT]
        for name, quality in qualities.items():
            of_kind = runs[calls, name]
            yield (
                calls.name,
                name,
                median(run.queries_per_s for run in of_kind),
                median(run.p50_ms for run in of_kind),
                median(run.p99_ms for run in of_kind),
                median(run.cpu_us.get(ROUTER, 0) for run in of_kind),
                median(sum(run.cpu_us.values()) - run.cpu_us.get(ROUTER, 0) for run in of_kind),
                *(
                    median(
                        figure(run) / figure(other)
                        for run, other in zip(of_kind, direct, strict=True)
                    )
                    for figure in FIGURES
                ),
                quality.recall,
                quality.lists,
            )


# ---- the servers, and what they find ------------------------------------------------------------


@contextmanager
def all_kinds(directory: Path, rows: int) -> Iterator[Sequence[Kind]]:
    """Run the shard called directly and all fleets, each trained on the same rows, at rest."""
    with ExitStack() as running:
        shard = running.enter_context(serving_shard(directory / "direct"))
        kinds = [Kind(DIRECT, {"shard 0": shard})]
        for shards in SHARDS:
            name = fleet_name(shards)
            fleet = running.enter_context(serving_fleet(directory / f"fleet-{shards}", shards))
            kinds.append(Kind(name, fleet))
        for kind in kinds:
            with kind.front.connect() as client:
                fill(client, rows)
        yield kinds


def truth_file(directory: Path, rows: int) -> Path:
    """Write the rows and the queries with their exact neighbours for the load generator."""
    file = directory / "truth.npz"
    vectors, queries = clustered(rows, DIM), clustered(QUERIES, DIM, part=1)
    neighbors = nearest_rows(vectors, queries, K, Metric.L2)
    np.savez(file, vectors=vectors, queries=queries, neighbors=neighbors)
    return file


def quality_of(kind: Kind, truth: Path, duration_s: float) -> Quality:
    """Warm the servers up with a run that is not timed, and return their recall.

    Raises
    ------
    RuntimeError
        If the load generator could not measure the recall.
    """
    recall = run_load(kind, BATCHES, truth, duration_s).recall
    if recall is None:
        raise RuntimeError(f"{kind.name}: the load generator reported no recall")
    with kind.front.connect() as client:
        receipt = client.search(COLLECTION, clustered(1, DIM, part=1), K).receipt
    return Quality(recall, sum(shard.nprobe for shard in receipt.shards))
