"""Which large numbers of hits searches asked for, so that the index is calibrated for them. Pure.

A calibration measures up to 100 hits; 300 and 1,000 cost more than all of these and most
collections never need them. The first search for so many scores every row, and the builder then
measures the search parameters in its idle time. A restart finds them in the index's record, and
takes them as asked for, so that the next index has them too.
"""

from __future__ import annotations

import threading

from vectorshard.shard.index.calibration import LARGE_K, calibrated_k
from vectorshard.shard.search.snapshot import TrainedIndex


class LargeK:
    """The values of LARGE_K that searches of one collection on one shard need. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._asked: frozenset[int] = frozenset()

    def ask(self, index: TrainedIndex | None, k: int) -> bool:
        """Note a search for k hits that `index` is not calibrated for.

        Returns whether it is the first that needs this calibration.
        """
        if index is None or not index.calibration.lacks(k):
            return False
        wanted = calibrated_k(k)
        if wanted in self._asked:
            return False
        with self._lock:
            is_first = wanted not in self._asked
            self._asked |= {wanted}
        return is_first

    def remember(self, index: TrainedIndex | None) -> None:
        """Take as asked for what a stored index was calibrated for."""
        if index is not None:
            with self._lock:
                self._asked |= set(index.calibration.basis.large_k)

    def due(self, index: TrainedIndex | None) -> int | None:
        """Return the smallest k to measure next; None if nothing is due."""
        if index is None:
            return None
        asked = self._asked
        return next((k for k in LARGE_K if k in asked and index.calibration.lacks(k)), None)
