"""Durable bulk load over gRPC against the disk's own rate and against FAISS's."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.report import Table
from benchmarks.server import (
    POLL_S,
    SHARDS,
    TIMEOUT_S,
    absorbed,
    at_rest,
    scratch,
    serving,
)
from benchmarks.vectors import Float32Array, clustered

COLLECTION = "ingest"
DIM = 100
ROWS = 100_000
QUICK_ROWS = 30_000
ROUNDS = 5
QUICK_ROUNDS = 1
PIECE_ROWS = 1_000
"""Rows of one write to the disk, and of one call of FAISS."""


@dataclass(slots=True)
class Rates:
    """Rows a second of every round, and the nlist of the index when they were reached."""

    acknowledged: list[float] = field(default_factory=list)
    absorbed: list[float] = field(default_factory=list)
    at_rest: list[float] = field(default_factory=list)
    disk: list[float] = field(default_factory=list)
    faiss_absorbed: list[float] = field(default_factory=list)
    faiss_at_rest: list[float] = field(default_factory=list)
    nlist_absorbed: list[int] = field(default_factory=list)
    nlist_at_rest: list[int] = field(default_factory=list)


def measure(quick: bool) -> Table:
    """Measure a load, the disk and FAISS in turn."""
    size = QUICK_ROWS if quick else ROWS
    vectors = clustered(size, DIM)
    rates = Rates()
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        with scratch() as directory:
            load(directory / "rows", vectors, rates)
            rates.disk.append(size / disk_s(directory / "disk", vectors))
            rates.faiss_absorbed.append(size / faiss_s(size, rates.nlist_absorbed[-1]))
            rates.faiss_at_rest.append(size / faiss_s(size, rates.nlist_at_rest[-1]))
    return Table(
        name="ingest",
        title=f"Bulk load of {size:,} rows",
        columns=("what", "nlist", "rows/s", "lowest", "highest", "of ours until absorbed"),
        rows=[
            (
                what,
                span(nlists),
                median(samples),
                min(samples),
                max(samples),
                ratio(samples, rates.absorbed),
            )
            for what, nlists, samples in (
                ("ours, until all is acknowledged", [], rates.acknowledged),
                (
                    "ours, until the buffer is what absorbing leaves",
                    rates.nlist_absorbed,
                    rates.absorbed,
                ),
                ("ours, until no training runs any more", rates.nlist_at_rest, rates.at_rest),
                (f"the disk: pwrite + fdatasync, {PIECE_ROWS:,} rows a time", [], rates.disk),
                ("FAISS: add_with_ids, in process", rates.nlist_absorbed, rates.faiss_absorbed),
                ("FAISS: add_with_ids, in process", rates.nlist_at_rest, rates.faiss_at_rest),
            )
        ],
        notes=(
            f"d={DIM}, L2, 2 shards, clustered vectors, UpsertStream by one client on an empty "
            f"server each time; medians of {len(rates.disk)} rounds of all, ratios within a round. "
            "FAISS has an index and a core for each shard and is trained before the clock starts. "
            "The cost of a sync on a shared disk varies several times between rounds: read the "
            "disk's rate with its lowest and highest."
        ),
    )


def span(figures: list[int]) -> str:
    """Return the lowest and the highest of some figures, or one where they agree."""
    if not figures:
        return "-"
    lowest, highest = min(figures), max(figures)
    return f"{lowest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"


def ratio(over: list[float], under: list[float]) -> float:
    """Return the median of the rounds' ratios: the two of a round ran next to each other."""
    return median(upper / lower for upper, lower in zip(over, under, strict=True))


def load(directory: Path, vectors: Float32Array, rates: Rates) -> None:
    """Load into a new server and note the rates, and the nlist of its first shard."""
    with serving(directory) as server, server.connect() as client:
        client.create_collection(COLLECTION, dim=DIM, metric="l2")
        start = perf_counter()
        client.upsert(COLLECTION, np.arange(len(vectors)), vectors)
        rates.acknowledged.append(len(vectors) / (perf_counter() - start))
        for condition, samples, nlists in (
            (absorbed, rates.absorbed, rates.nlist_absorbed),
            (at_rest, rates.at_rest, rates.nlist_at_rest),
        ):
            while not condition(description := client.describe(COLLECTION)):
                if perf_counter() > start + TIMEOUT_S:
                    raise TimeoutError(f"did not come to rest: {description}")
                time.sleep(POLL_S)
            samples.append(len(vectors) / (perf_counter() - start))
            nlists.append(description.shards[0].nlist)


def disk_s(file: Path, vectors: Float32Array) -> float:
    """Write the same bytes piece by piece, each synced, and return the seconds it took."""
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
    """Return the seconds that FAISS takes in a process of its own, where no server runs."""
    command = [sys.executable, "-m", "benchmarks.faiss_add", str(size), str(DIM), str(nlist)]
    command += [str(PIECE_ROWS), str(SHARDS)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)
