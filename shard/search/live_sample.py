"""A uniform sample of the queries of live searches. Pure.

Algorithm L (Li, 1994) determines in advance which query it takes next, so a search whose queries
are not taken costs an addition and a comparison. Its threshold falls as more queries are offered;
here it stops falling once the sample represents `window` queries. From then on each query is taken
with the same probability and replaces a random one: the queries of `window` queries ago have a
third of their weight left. So the sample follows the traffic and never has to start empty again.
"""

from __future__ import annotations

import math
import threading

import numpy as np

from vectorshard.shard.types import Float32Array


class LiveSample:
    """A reservoir of queries. Thread-safe.

    Parameters
    ----------
    size
        Queries kept, at least 1.
    window
        Queries that the sample represents once so many were offered; at least `size`.
    dim
        Components of a query.
    random
        Used only under the lock.
    """

    def __init__(self, size: int, window: int, dim: int, random: np.random.Generator) -> None:
        self._size = size
        self._dim = dim
        self._random = random
        self._lock = threading.Lock()
        self._offered = 0
        self._taken = 0
        self._next = 0  # the number of the next query to take, from 0
        self._threshold = 1.0
        self._threshold_least = size / window
        self._queries: Float32Array | None = None

    def __len__(self) -> int:
        """The number of queries in the sample."""
        return min(self._taken, self._size)

    @property
    def taken(self) -> int:
        """The number of queries ever taken into the sample."""
        return self._taken

    @property
    def memory_bytes(self) -> int:
        """Bytes of the queries; 0 before the first is offered."""
        return 0 if self._queries is None else self._queries.nbytes

    def offer(self, queries: Float32Array) -> bool:
        """Offer the queries of a search, float32 (queries, dim); return whether any was taken."""
        with self._lock:
            first = self._offered
            self._offered += len(queries)
            if self._offered <= self._next:
                return False
            self._take(queries, first)
        return True

    def queries(self) -> Float32Array:
        """Return a copy of the sample, float32 (queries, dim), in arbitrary order."""
        with self._lock:
            if self._queries is None:
                return np.zeros((0, self._dim), np.float32)
            return self._queries[: len(self)].copy()

    def _take(self, queries: Float32Array, first: int) -> None:
        """Take from queries numbered from `first` on; the lock is held."""
        if self._queries is None:
            self._queries = np.empty((self._size, self._dim), np.float32)
        while self._next < self._offered:
            filling = self._taken < self._size
            slot = self._taken if filling else int(self._random.integers(self._size))
            self._queries[slot] = queries[self._next - first]
            self._taken += 1
            self._next += 1
            if self._taken >= self._size:
                self._next += self._queries_skipped()

    def _queries_skipped(self) -> int:
        """Lower the threshold, and return how many queries to skip before the next one taken."""
        least, random = self._threshold_least, self._random
        # 1 - random() is in (0, 1]: its logarithm is finite.
        sunk = self._threshold * math.exp(math.log(1.0 - random.random()) / self._size)
        self._threshold = max(sunk, least)
        if self._threshold >= 1.0:
            return 0
        return int(math.log(1.0 - random.random()) / math.log1p(-self._threshold))
