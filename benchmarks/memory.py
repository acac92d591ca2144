"""The anonymous memory of a server per row; the page cache, which holds the rows, is excluded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import Server, scratch, serving, wait_until_at_rest
from benchmarks.vectors import clustered

COLLECTION = "memory"
DIM = 768
ROWS = 50_000
QUICK_ROWS = 15_000
FEW_ROWS = 5_000
QUERIES = 256
K = 10
BAR = 1 / 8
REST_S = 8.0
"""Longer than a server takes to measure the recall of the queries and to release that memory."""


def measure(quick: bool) -> Table:
    """Measure a server that loaded the rows, and one that was started over them."""
    size = QUICK_ROWS if quick else ROWS
    raw_bytes = DIM * np.dtype(np.float32).itemsize
    rows: list[Row] = []

    def add(state: str, against: str, row_bytes: float) -> None:
        part = row_bytes / raw_bytes
        bar = f"<= {BAR:g}, {'met' if part <= BAR else 'missed'}"
        rows.append((state, against, row_bytes, part, bar))

    with scratch() as directory:
        with serving(directory / "empty") as running:
            empty_bytes = filled(running, 0)
        with serving(directory / "few") as running:
            few_loaded_bytes = filled(running, FEW_ROWS)
            running.stop()
        with serving(directory / "rows") as running:
            loaded_bytes = filled(running, size)
            with running.connect() as client:
                told = sum(shard.memory_bytes for shard in client.describe(COLLECTION).shards)
            running.stop()
        with serving(directory / "few") as running:
            few_bytes = searched(running)
        with serving(directory / "rows") as running:
            started_bytes = searched(running)
    add("as DescribeCollection reports", "-", told / size)
    started = "started over the rows, searched"
    loaded = "loaded, trained, searched"
    few, more = f"the same with {FEW_ROWS:,} rows", size - FEW_ROWS
    add(started, few, (started_bytes - few_bytes) / more)
    add(loaded, few, (loaded_bytes - few_loaded_bytes) / more)
    add(started, "an empty collection", (started_bytes - empty_bytes) / size)
    add(loaded, "an empty collection", (loaded_bytes - empty_bytes) / size)
    return Table(
        name="memory",
        title=f"Memory of {size:,} rows, d={DIM}, beyond the page cache",
        columns=("server", "minus that of", "bytes a row", "of the raw vector", "bar"),
        rows=rows,
        notes=(
            "RssAnon of /proc, minus that of another server after the same search; COSINE, IVF_PQ, "
            f"2 shards in one process, clustered vectors, trained on all rows, {QUERIES} queries "
            "in one call, and then eight seconds of rest, in which the shards measure their recall "
            "and release that memory. The difference to an empty collection includes costs that "
            "do not depend on the number of rows: searching an index, training one, an upload."
        ),
    )


def filled(server: Server, rows: int) -> int:
    """Write rows, train on all of them and search; return the server's own memory then."""
    with server.connect() as client:
        client.create_collection(COLLECTION, dim=DIM)
        if rows:
            client.upsert(COLLECTION, np.arange(rows), clustered(rows, DIM))
            client.train(COLLECTION, wait=True)
            wait_until_at_rest(client, COLLECTION)
    return searched(server)


def searched(server: Server) -> int:
    """Search once, and return the server's own memory then."""
    with server.connect() as client:
        client.search(COLLECTION, clustered(QUERIES, DIM, part=1), K)
    time.sleep(REST_S)
    return own_bytes(server)


def own_bytes(server: Server) -> int:
    """Return the memory of a server that no file backs."""
    for line in Path(f"/proc/{server.child.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc does not report RssAnon")
