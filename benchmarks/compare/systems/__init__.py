"""What is compared: one module a system.

A module imports its system inside its functions: only the environment that has it runs them.

    EFFORTS        the search efforts to choose from, cheapest first
    EMBEDDED       whether it lives in the process of its callers
    SERVER_WIDE    whether an effort holds for all connections
    AT_START       whether a server follows an effort only after a restart; False if absent
    WRITE_ROWS     rows of one write
    IMPORTS        what a client process imports before anything is timed
    Connection     see below
    start(directory) -> (target, pids)    servers only: run it over a directory until it answers
"""

from __future__ import annotations

import importlib
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]

NAMES = ("ours", "distributed_faiss", "chroma", "pgvector", "qdrant_edge", "zvec")
START_S = 60.0
HNSW_LINKS, HNSW_BUILD_EFFORT = 16, 100
"""Of every HNSW graph, whatever the system's defaults, so that their loads compare."""
HNSW_EFFORTS = tuple(sorted({round(10 * 1.2**step) for step in range(26)}))
"""ef of a search, 10 to 954."""


class Connection(Protocol):
    """One caller's access to a collection. Its rows have their numbers, from 0, as ids.

    Vectors and queries are float32 (rows, dim). `metric` is "cosine", for which all vectors have
    norm 1, or "l2".
    """

    def __init__(self, target: str, dim: int, metric: str) -> None: ...

    def create(self) -> None:
        """Create the collection, once, before any other connection is opened."""

    def write(self, first: int, vectors: Float32Array) -> None:
        """Write rows under the numbers from `first`; they are acknowledged when it returns."""

    def finish(self) -> None:
        """Return when all rows are in a trained index."""

    def tune(self, effort: float) -> None:
        """Set the effort of searches, one of EFFORTS."""

    def search(self, queries: Float32Array, k: int) -> Int64Array:
        """Return the rows of the k best of each query, int64 (queries, k), -1 after the last."""

    def count(self) -> int:
        """Return the number of rows."""

    def close(self) -> None:
        """Disconnect."""


class System(Protocol):
    """A module of this package."""

    EFFORTS: Sequence[float]
    EMBEDDED: bool
    SERVER_WIDE: bool
    WRITE_ROWS: int
    IMPORTS: Sequence[str]
    Connection: Callable[[str, int, str], Connection]
    start: Callable[[Path], tuple[str, list[int]]]


def load(name: str) -> System:
    """Return one of NAMES."""
    return cast(System, importlib.import_module(f"{__name__}.{name}"))


def free_port() -> str:
    """Return a port of 127.0.0.1 that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


def wait_for(connect: Callable[[], object]) -> None:
    """Return when a connection succeeds; after START_S its OSError is raised."""
    end = time.monotonic() + START_S
    while True:
        try:
            connect()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def padded(rows: Sequence[Sequence[Any]], k: int) -> Int64Array:
    """Return the row numbers of each query as one array (queries, k), -1 after the last."""
    found = np.full((len(rows), k), -1, np.int64)
    for query, of_query in enumerate(rows):
        found[query, : len(of_query)] = of_query
    return found
