"""A batch of queries compared with the same queries one by one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import described, scratch, serving, wait_until_at_rest
from benchmarks.timing import Samples, in_turn
from benchmarks.vectors import Float32Array, clustered
from vectorshard.client.client import Client

COLLECTION = "batch"
DIM = 100
K = 10
BATCHES = (8, 64)
QUERIES = 512

BUFFERING_ROWS = 1_200
"""Too few on each of two shards to train an index."""
ROWS = (BUFFERING_ROWS, 5_000, 100_000)
QUICK_ROWS = (BUFFERING_ROWS, 5_000, 20_000)


def measure(quick: bool) -> Table:
    """Measure at several sizes of the collection, with and without `exact`."""
    queries = clustered(QUERIES, DIM, part=1)
    rows: list[Row] = []
    for size in QUICK_ROWS if quick else ROWS:
        with (
            scratch() as directory,
            serving(directory / "rows") as server,
            server.connect() as client,
        ):
            index = fill(client, size)
            for exact in (False, True):
                samples = in_turn(
                    {
                        name: partial(ask, client, queries, queries_a_batch, asked_at_once, exact)
                        for queries_a_batch in BATCHES
                        for name, asked_at_once in (
                            (f"batch {queries_a_batch}", queries_a_batch),
                            (f"singles {queries_a_batch}", 1),
                        )
                    },
                    budget_s=1.5 if quick else 8.0,
                )
                rows += rows_of(samples, size, index, exact)
    return Table(
        name="batch",
        title="A batch compared with its queries one by one",
        columns=(
            "rows",
            "index",
            "search",
            "queries",
            "batch, ms",
            "one by one, ms",
            "ratio (>= 1: not slower)",
            "rounds",
        ),
        rows=rows,
        notes=(
            f"d={DIM}, L2, k={K}, 2 shards, clustered vectors, one client, queries that were never "
            "written. Medians; both kinds run in every round, and the ratio is the median of the "
            "rounds' ratios, one by one / batch."
        ),
    )


def fill(client: Client, size: int) -> str:
    """Write `size` rows, wait for the index if there are enough, and return its state."""
    client.create_collection(COLLECTION, dim=DIM, metric="l2")
    client.upsert(COLLECTION, np.arange(size), clustered(size, DIM))
    if size > BUFFERING_ROWS:
        client.train(COLLECTION, wait=True)
        return described(wait_until_at_rest(client, COLLECTION))
    return described(client.describe(COLLECTION))


def ask(
    client: Client,
    queries: Float32Array,
    queries_a_batch: int,
    asked_at_once: int,
    exact: bool,
    round_: int,
) -> None:
    """Search the queries of a round, `asked_at_once` in each call."""
    first = round_ * queries_a_batch % QUERIES
    for begin in range(first, first + queries_a_batch, asked_at_once):
        client.search(COLLECTION, queries[begin : begin + asked_at_once], K, exact=exact)


def rows_of(samples: Samples, size: int, index: str, exact: bool) -> Iterator[Row]:
    """Yield the table's rows of one size and kind of search."""
    for queries_a_batch in BATCHES:
        batch, singles = f"batch {queries_a_batch}", f"singles {queries_a_batch}"
        yield (
            size,
            index,
            "exact" if exact else "default",
            queries_a_batch,
            samples.median_ms(batch),
            samples.median_ms(singles),
            samples.ratio(singles, batch),
            samples.rounds,
        )
