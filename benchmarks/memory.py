"""What a row costs a server in memory of its own: the page cache, which holds the rows, aside."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import Server, described, scratch, serving, wait_until_at_rest
from benchmarks.vectors import clustered

COLLECTION = "memory"
DIM = 768
ROWS = 50_000
QUICK_ROWS = 10_000
QUERIES = 256
K = 10
BAR = 1 / 8


def measure(quick: bool) -> Table:
    """Measure a server that has loaded the rows, and one that was started over them."""
    size = QUICK_ROWS if quick else ROWS
    raw_bytes = DIM * np.dtype(np.float32).itemsize
    rows: list[Row] = []
    queries = clustered(QUERIES, DIM, part=1)

    def row(state: str, row_bytes: float, found: str) -> Row:
        part = row_bytes / raw_bytes
        return (state, row_bytes, part, f"<= {BAR:g}, {'met' if part <= BAR else 'missed'}", found)

    def row_of(running: Server, state: str, empty_bytes: int) -> Row:
        with running.connect() as client:
            index = described(wait_until_at_rest(client, COLLECTION))
            client.search(COLLECTION, queries, K)
        return row(state, (own_bytes(running) - empty_bytes) / size, index)

    with scratch() as directory:
        with serving(directory / "rows") as running, running.connect() as client:
            client.create_collection(COLLECTION, dim=DIM)
            client.search(COLLECTION, queries, K)
            empty_bytes = own_bytes(running)
            client.upsert(COLLECTION, np.arange(size), clustered(size, DIM))
            client.train(COLLECTION, wait=True)
            rows.append(row_of(running, "loaded, trained, searched", empty_bytes))
            told = sum(shard.memory_bytes for shard in client.describe(COLLECTION).shards)
            rows.append(row("what DescribeCollection tells then", told / size, "-"))
            running.stop()
        with serving(directory / "empty") as running, running.connect() as client:
            client.create_collection(COLLECTION, dim=DIM)
            client.search(COLLECTION, queries, K)
            empty_bytes = own_bytes(running)
        with serving(directory / "rows") as running:
            rows.append(row_of(running, "started over the rows, searched", empty_bytes))
    return Table(
        name="memory",
        title=f"Memory of {size:,} rows, d={DIM}, beyond the page cache",
        columns=("server", "bytes a row", "of the raw vector", "bar", "the index then"),
        rows=rows,
        notes=(
            "RssAnon of /proc, less that of a server whose collection is empty; COSINE, IVF_PQ, 2 "
            f"shards in one process, clustered vectors, {QUERIES} queries in one call. What a "
            "training or an upload took and malloc keeps is in the first row."
        ),
    )


def own_bytes(server: Server) -> int:
    """Return the memory of a server that no file backs."""
    for line in Path(f"/proc/{server.child.pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc tells no RssAnon")
