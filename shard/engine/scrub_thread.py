"""The thread that scrubs the collections of a shard, one at a time, with rests between pieces.

One collection's pass runs to its end before the next begins: a shard with a thousand collections
verifies no faster, and opens their stores one after the other.
"""

from __future__ import annotations

import os
import threading
from typing import Final

import structlog

from vectorshard.shard.engine.collection import Collection
from vectorshard.shard.index.ivf_index import use_cores

LOOK_S: Final = 60.0
"""How long to sleep at most while no pass is due."""

NICENESS: Final = 10
"""Searches come first where they compete for a core."""

_log = structlog.get_logger(__name__)


class ScrubThread:
    """Runs the scrubs of what is attached. Any thread attaches and detaches."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._collections: tuple[Collection, ...] = ()
        self._stopping = False
        self._thread = threading.Thread(target=self._loop, name="scrub", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def attach(self, collection: Collection) -> None:
        """Scrub a collection from now on."""
        with self._changed:
            self._collections = (*self._collections, collection)
            self._changed.notify_all()

    def detach(self, collection: Collection) -> None:
        """Scrub a collection no longer. A piece that is being verified ends first, in a moment."""
        with self._changed:
            self._collections = tuple(each for each in self._collections if each is not collection)
            self._changed.notify_all()

    def stop(self) -> None:
        """End the thread after the present piece."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()

    def _loop(self) -> None:
        use_cores(1)
        os.nice(NICENESS)  # on Linux, of this thread alone
        while not self._stopping:
            self._rest(self.run_due())

    def run_due(self) -> float:
        """Run the passes that are due; return the seconds until the next one is."""
        for collection in self._collections:
            rest_s: float | None = 0.0
            while rest_s is not None and collection in self._collections and not self._stopping:
                rest_s = self._step(collection)
                if rest_s:
                    self._rest(rest_s)
        due = [each.scrub.due_in_s for each in self._collections]
        return min([LOOK_S, *due])

    def _step(self, collection: Collection) -> float | None:
        try:
            return collection.scrub.step()
        except Exception:
            if not collection.closed:
                _log.exception("scrub failed", collection=collection.entry.config.name)
            return None

    def _rest(self, rest_s: float) -> None:
        """Sleep, until a stop or a change of the collections at most."""
        seen = self._collections
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopping or self._collections is not seen, max(rest_s, 0.001)
            )
