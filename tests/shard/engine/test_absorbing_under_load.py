"""Rows are absorbed while many threads search: no crash, no row missing, no row twice.

FAISS crashes the process when an index is added to while it is searched, so the load runs in a
child process, this module's `main`. Each round begins with a small index, whose inverted lists
then move in memory again and again as they grow.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from vectorshard.shard.config import BufferConfig, EngineConfig
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.engine.index_builder import build_index
from vectorshard.shard.storage.disk import Disk
from vectorshard.shard.types import (
    CollectionConfig,
    CollectionEntry,
    Effort,
    Float32Array,
    IdType,
    IndexConfig,
    Metric,
    NlistRule,
    SearchRequest,
    UpsertRequest,
)

DIM = 64
ROUNDS = 4
ROWS_TRAINED_ON = 400
ROWS_ABSORBED = 6_000
SEARCHING_THREADS = 3
QUERIES = 8
ENGINE = EngineConfig(buffer=BufferConfig(absorb_piece_rows=20))
ENTRY = CollectionEntry(
    config=CollectionConfig(
        name="words",
        dim=DIM,
        metric=Metric.L2,
        id_type=IdType.INT64,
        index=IndexConfig(nlist_rule=NlistRule.FIXED, nlist=4),
    ),
    incarnation="first",
)


def test_searches_find_every_row_once_while_rows_are_absorbed() -> None:
    root = Path(__file__).parents[3]
    load = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-m", __name__],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert load.returncode == 0, f"ended with {load.returncode}:\n{load.stderr}"


def main() -> None:
    """Run the load; an exception, or a crash, ends the process."""
    random = np.random.default_rng(1)
    for _ in range(ROUNDS):
        rows = ROWS_TRAINED_ON + ROWS_ABSORBED
        vectors = random.standard_normal((rows, DIM)).astype(np.float32)
        with tempfile.TemporaryDirectory() as directory:
            Collection.create(Disk(), Path(directory), ENTRY)
            with closing(Collection.open(Disk(), Path(directory), 0, ENGINE)) as collection:
                run_round(collection, vectors)


def run_round(collection: Collection, vectors: Float32Array) -> None:
    """Train on the first rows, then absorb the others while threads search for all of them."""
    write(collection, vectors, 0, ROWS_TRAINED_ON)
    build_index(collection, lambda: 0.0)
    write(collection, vectors, ROWS_TRAINED_ON, len(vectors))
    absorbed = threading.Event()
    with ThreadPoolExecutor(SEARCHING_THREADS) as threads:
        searches: list[Future[None]] = [
            threads.submit(search_until, absorbed, collection, vectors, seed)
            for seed in range(SEARCHING_THREADS)
        ]
        try:
            while collection.maintenance.absorb_piece() and not any(
                search.done() for search in searches
            ):
                pass
        finally:
            absorbed.set()
        for search in searches:
            search.result()
    ledger = collection.reads.ledger()
    assert ledger.adds_up
    assert ledger.indexed == len(vectors)


def write(collection: Collection, vectors: Float32Array, first: int, last: int) -> None:
    """Write rows under their row numbers."""
    ids = np.arange(first, last)
    request = UpsertRequest(collection="words", ids=ids, vectors=vectors[first:last])
    (outcome,) = collection.writes.apply([request])
    assert not isinstance(outcome, Exception), outcome


def search_until(
    absorbed: threading.Event, collection: Collection, vectors: Float32Array, seed: int
) -> None:
    """Search for random rows; each is its own nearest hit, and no row is found twice."""
    random = np.random.default_rng(seed)
    while not absorbed.is_set():
        wanted = random.choice(len(vectors), QUERIES, replace=False)
        found = collection.reads.search(
            SearchRequest(collection="words", queries=vectors[wanted], k=5, effort=Effort(nprobe=4))
        )
        hits = found.hits.ids.reshape(QUERIES, 5)
        assert hits[:, 0].tolist() == wanted.tolist()
        assert all(len(set(hits_of_query)) == 5 for hits_of_query in hits.tolist())


if __name__ == "__main__":
    main()
