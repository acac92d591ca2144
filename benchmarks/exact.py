"""Exact search compared with its lower bound: the bare product and an empty call."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import SHARDS, scratch, serving, wait_until_at_rest
from benchmarks.timing import in_turn
from benchmarks.vectors import Float32Array, clustered

COLLECTION = "exact"
DIM = 100
K = 10
BATCHES = (1, 8, 64)
QUERIES = 512
ROWS = (5_000, 100_000)
QUICK_ROWS = (5_000, 20_000)

BLOCK_ELEMENTS = 262_144
"""Products in one call of BLAS: 1 MB of float32, which stays in a core's cache."""


def measure(quick: bool) -> Table:
    """Measure batches of several sizes over collections of several sizes."""
    queries = clustered(QUERIES, DIM, part=1)
    rows: list[Row] = []
    for size in QUICK_ROWS if quick else ROWS:
        vectors = clustered(size, DIM)
        with (
            scratch() as directory,
            serving(directory / "rows") as server,
            server.connect() as client,
            ThreadPoolExecutor(SHARDS) as threads,
        ):
            client.create_collection(COLLECTION, dim=DIM, metric="l2")
            client.upsert(COLLECTION, np.arange(size), vectors)
            wait_until_at_rest(client, COLLECTION)

            def empty_call(round_: int) -> None:
                client.server_info()

            def search(at_once: int, round_: int) -> None:
                first = round_ * at_once % QUERIES
                client.search(COLLECTION, queries[first : first + at_once], K, exact=True)

            timed: dict[str, Callable[[int], object]] = {"empty": empty_call}
            for at_once in BATCHES:
                timed[f"search {at_once}"] = partial(search, at_once)
                product = Product(threads, vectors, queries[:at_once])
                timed[f"product {at_once}"] = product
            samples = in_turn(timed, budget_s=1.5 if quick else 8.0)
        for at_once in BATCHES:
            limit_ms = samples.median_ms(f"product {at_once}") + samples.median_ms("empty")
            search_ms = samples.median_ms(f"search {at_once}")
            rows.append(
                (
                    size,
                    at_once,
                    search_ms,
                    samples.median_ms(f"product {at_once}"),
                    samples.median_ms("empty"),
                    search_ms / limit_ms,
                    samples.rounds,
                )
            )
    return Table(
        name="exact",
        title="Exact search compared with the bare product and an empty call",
        columns=(
            "rows",
            "queries",
            "exact search, ms",
            "product, ms",
            "empty call, ms",
            "search / (product + empty call)",
            "rounds",
        ),
        rows=rows,
        notes=(
            f"d={DIM}, L2, k={K}, 2 shards, clustered vectors, one client; medians of rounds in "
            f"which each runs once. The product is numpy's in this process, {SHARDS} threads with "
            "half of the rows each, in blocks that stay in the cache, into reused memory; "
            "it selects nothing. The empty call is GetServerInfo."
        ),
    )


class Product:
    """rows @ queries.T, with one thread for the part of each shard.

    Parameters
    ----------
    threads
        One per shard.
    vectors
        float32 (rows, dim).
    queries
        float32 (queries, dim).
    """

    def __init__(
        self, threads: ThreadPoolExecutor, vectors: Float32Array, queries: Float32Array
    ) -> None:
        self._threads = threads
        self._parts = np.array_split(vectors, SHARDS)
        self._directions = queries.T
        self._block_rows = max(1, BLOCK_ELEMENTS // len(queries))
        self._blocks = [
            np.empty((min(self._block_rows, len(part)), len(queries)), np.float32)
            for part in self._parts
        ]

    def __call__(self, round_: int) -> None:
        """Compute it once."""
        list(self._threads.map(self._part, self._parts, self._blocks))

    def _part(self, part: Float32Array, block: Float32Array) -> None:
        for first in range(0, len(part), self._block_rows):
            rows = part[first : first + self._block_rows]
            np.matmul(rows, self._directions, out=block[: len(rows)])
