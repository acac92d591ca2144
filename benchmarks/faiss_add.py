"""Print the seconds that FAISS takes to add clustered vectors to trained IVF indexes.

It adds as the shards do: each has an index, and a thread that uses one core. OpenMP threads that
share an index spin on each other, and lose most of their speed on a machine that they share.
A separate program: python -m benchmarks.faiss_add ROWS DIM NLIST PIECE_ROWS SHARDS
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import faiss
import numpy as np

from benchmarks.vectors import Float32Array, clustered

TRAINING_ROWS_A_LIST = 64


def trained(sample: Float32Array, nlist: int) -> faiss.IndexIVFFlat:
    """Return an empty index with `nlist` lists, trained on `sample` (rows, dim)."""
    dim = sample.shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(dim), dim, nlist, faiss.METRIC_L2)
    index.train(sample)
    return index


def add(index: faiss.IndexIVFFlat, vectors: Float32Array, piece_rows: int) -> None:
    """Add `vectors` (rows, dim), `piece_rows` in each call, on one core."""
    faiss.omp_set_num_threads(1)
    ids = np.arange(len(vectors))
    for first in range(0, len(vectors), piece_rows):
        piece = slice(first, first + piece_rows)
        index.add_with_ids(vectors[piece], ids[piece])


def main(rows: int, dim: int, nlist: int, piece_rows: int, shards: int) -> None:
    """Train an index for each shard, then add the shard's part of the rows."""
    parts = np.array_split(clustered(rows, dim), shards)
    indexes = [trained(part[: nlist * TRAINING_ROWS_A_LIST], nlist) for part in parts]
    with ThreadPoolExecutor(shards) as threads:
        start = perf_counter()
        list(threads.map(add, indexes, parts, [piece_rows] * shards))
        print(perf_counter() - start)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
