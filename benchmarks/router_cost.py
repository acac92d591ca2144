"""What a router costs: one over 1, 2, 4 and 8 shards, beside a shard that is asked itself.

All hold the same rows, the shard that is asked itself all of them. Over one shard
a router shows its own cost; over more there is also that of searching the rows in more pieces.
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
"""Of the fleets."""
K = 10
ROWS = 40_000
QUICK_ROWS = 10_000
ROUNDS = 5
QUICK_ROUNDS = 1
DURATION_S = 2.0
QUICK_DURATION_S = 0.8
"""Of each run of the load generator."""
RATE_PER_S = 100.0
"""A fraction of what the slowest of them can serve on two cores, so that no queue is measured."""

ROUTER, DIRECT = "router", "one shard, asked itself"
STEADY = Calls(f"single queries, {RATE_PER_S:g} a second", 1_000, 1, rate_per_s=RATE_PER_S)
BATCH_ALONE = Calls("batches of 64, 1 in flight", 1, 64)
LOADS = (SINGLE_ALONE, STEADY, SINGLES, BATCH_ALONE, BATCHES)


@dataclass(frozen=True, slots=True)
class Quality:
    """What a search found of the true neighbours, and the lists that all shards probed for it."""

    recall: float
    lists: int


def fleet_name(shards: int) -> str:
    """Return what the table calls a fleet."""
    return f"{ROUTER} + {shards} shard{'s' if shards > 1 else ''}"


def measure(quick: bool) -> Table:
    """Measure every load on the shard that is asked itself, and on all fleets."""
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
            "who is asked",
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
            f"{rows:,} rows, d={DIM}, L2, k={K}, IVF_PQ, clustered vectors, queries that were "
            f"never written, target recall {target:g}; the recall is against exact neighbours. "
            "The rows are shared out among the shards of a fleet, and the one shard holds all of "
            "them; each shard trained on all of its rows and chose its nprobe itself, and the "
            "lists probed are those of all its shards. Each meets the target for the best of its "
            "own rows, of which the answer takes only some, so that more shards find more, and "
            "do more. All servers and the load generator share the machine's cores, and a search "
            "on a shard may use its part of them, at least one: on two cores 8 shards wait for "
            "each other, and what they would gain on machines of their own is not seen. One run "
            f"of vectorshard bench takes {duration_s:g} s, --closed where calls are in flight; "
            "with a rate, arrivals are those of chance, and a latency counts from the intended "
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
"""What has a ratio, in the order of the columns."""


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
    """Run the shard that is asked itself and all fleets, each trained on the same rows, at rest."""
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
    """Warm the servers up by a run that is not timed, and return how well they search.

    Raises
    ------
    RuntimeError
        If the load generator could not measure the recall.
    """
    recall = run_load(kind, BATCHES, truth, duration_s).recall
    if recall is None:
        raise RuntimeError(f"{kind.name}: the load generator told no recall")
    with kind.front.connect() as client:
        receipt = client.search(COLLECTION, clustered(1, DIM, part=1), K).receipt
    return Quality(recall, sum(shard.nprobe for shard in receipt.shards))
