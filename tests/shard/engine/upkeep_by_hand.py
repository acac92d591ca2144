"""The background work of one collection without threads, at times that a test chooses."""

from __future__ import annotations

from vectorshard.shard.engine.background import BackgroundThreads
from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.index.ivf_index import use_cores


class UpkeepByHand:
    """Does what the builder and the absorber would do by `now`, in seconds of any clock."""

    def __init__(self, collection: Collection) -> None:
        use_cores(1)  # as the threads do
        self.now = 1_000.0
        self._collection = collection
        self._threads = BackgroundThreads(self._clock, self._clock)

    def _clock(self) -> float:
        return self.now

    def run(self) -> None:
        """Do all that is due, as threads that are never late would."""
        busy = True
        while busy:
            self.absorb()
            busy = self._threads.build_step(self._collection)

    def absorb(self) -> None:
        """Absorb the buffer if it is large enough."""
        maintenance = self._collection.maintenance
        while maintenance.absorbing_due:
            maintenance.absorb_piece()

    def wait(self, seconds: float) -> None:
        """Let time pass, with a look after each second, as long as something waits for time."""
        for _ in range(round(seconds)):
            self.now += 1.0
            self.run()
