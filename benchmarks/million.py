"""A start over a million rows: compared with fewer rows, and searches from a cold page cache."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import scratch, serving, wait_until_at_rest
from benchmarks.start import COLLECTION, DIM, K, Starts, create, fill, note
from benchmarks.start import ROWS as FEWER_ROWS
from benchmarks.vectors import clustered

ROWS = 1_000_000
QUICK_ROWS, QUICK_FEWER_ROWS = 60_000, 20_000
ROUNDS = 5
QUICK_ROUNDS = 2
BAR_S = 3.0
COLD_S, QUICK_COLD_S = 60.0, 5.0
"""How long searches are timed after a start."""
QUERIES = 1_000
GROWING_UP_S = 600.0
"""Longest time that the automatic training may take after the load."""
WARM, COLD = "a warm page cache", "a cold page cache"


def measure(quick: bool) -> Sequence[Table]:
    """Measure starts over both sizes in turn, and the first minute of the larger one."""
    sizes = (QUICK_FEWER_ROWS, QUICK_ROWS) if quick else (FEWER_ROWS, ROWS)
    starts = {size: Starts() for size in sizes}
    empty = Starts()
    with scratch() as directory:
        for size in sizes:
            with serving(directory / str(size)) as running:
                fill(running, size)
                with running.connect() as client:
                    wait_until_at_rest(client, COLLECTION, GROWING_UP_S)
                running.stop()
        for round_ in range(QUICK_ROUNDS if quick else ROUNDS):
            with serving(directory / f"empty-{round_}") as running:
                create(running)
                note(running, empty)
            for size in sizes:
                with serving(directory / str(size)) as running:
                    note(running, starts[size])
                    running.stop()
        rows = directory / str(sizes[-1])
        for_s = QUICK_COLD_S if quick else COLD_S
        minutes = [minute(rows, state, for_s) for state in (WARM, COLD)]
    fewer, more = sizes
    grown = growth(starts[fewer], starts[more], empty)
    linear = more / fewer
    return [
        Table(
            name="million",
            title=f"From process start to serving, {more:,} rows",
            columns=(
                "rows",
                "to `listening on`, s",
                "to the first answer, s",
                "longest, s",
                "CPU, s",
                "the index then",
                "starts",
            ),
            rows=[
                empty.row("none"),
                *(starts[size].row(f"{size:,}") for size in sizes),
            ],
            notes=(
                f"d={DIM}, L2, 2 shards, clustered vectors, {WARM}; after SIGTERM, at rest before; "
                f"medians, the sizes in turn. The bar is {BAR_S:g} s to the first answer, "
                f"and at most linear growth: beyond the start of an empty server, {linear:.2f} "
                f"times the rows take {grown:.2f} times as long."
            ),
        ),
        Table(
            name="million",
            title=f"The first searches after a start, {more:,} rows",
            columns=(
                "start with",
                "first answer, ms",
                "p50, ms",
                "p99, ms",
                "longest, ms",
                "p99 of the last third, ms",
                "searches",
            ),
            rows=minutes,
            notes=(
                f"One client, single queries for {K} hits one after the other, for {for_s:g} s "
                f"from when the server listens; {QUERIES:,} held-out queries, in "
                "turn. Before a cold start the kernel drops all files of the data "
                "directory (posix_fadvise, DONTNEED)."
            ),
        ),
    ]


def growth(fewer: Starts, more: Starts, empty: Starts) -> float:
    """Return how many times as long the larger start takes, beyond the start of an empty server.

    It is infinite if the smaller start takes no longer than that of an empty server.
    """
    nothing_s = median(empty.answered_s)
    beyond_s = median(fewer.answered_s) - nothing_s
    return (median(more.answered_s) - nothing_s) / beyond_s if beyond_s > 0 else float("inf")


def minute(directory: Path, state: str, for_s: float) -> Row:
    """Start over the rows, search for a while, and return the table's row."""
    if state == COLD:
        for file in files_of(directory):
            forget(file)
    queries = clustered(QUERIES, DIM, part=1)
    took_ms: list[float] = []
    with serving(directory) as running:
        with running.connect() as client:
            end = perf_counter() + for_s
            while (start := perf_counter()) < end:
                client.search(COLLECTION, queries[len(took_ms) % QUERIES], K)
                took_ms.append(1e3 * (perf_counter() - start))
        running.stop()
    last = took_ms[-(len(took_ms) // 3) :]
    return (
        state,
        took_ms[0],
        median(took_ms),
        float(np.percentile(took_ms, 99)),
        max(took_ms),
        float(np.percentile(last, 99)),
        len(took_ms),
    )


def files_of(directory: Path) -> Iterator[Path]:
    """Yield all files below a directory."""
    return (path for path in directory.rglob("*") if path.is_file())


def forget(file: Path) -> None:
    """Drop a file, which no process maps, from the page cache."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the kernel drops only what is on disk
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
