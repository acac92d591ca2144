"""A client process: python -m benchmarks.compare.worker SYSTEM DATASET.

Takes commands as lines of JSON, each {"number", "do", ...}, and answers each with its number, in
any order: every command has a thread. `DATASET` is a directory of dataset.save. An embedded system
lives in this process.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.dataset import Dataset, K, recall_of
from benchmarks.compare.systems import Connection, Int64Array, load

TUNING_BATCH = 64
WARM_UPS = 3
WATCH_PER_S = 100
"""Searches a second of a watch; a later one is asked as soon as the one before is answered."""


class Worker:
    """The commands, one method each. Durations are in seconds, latencies in milliseconds."""

    def __init__(self, system: str, directory: str) -> None:
        self._system = load(system)
        self._target = ""
        self._directory = Path(directory)
        self._rows = Dataset.open(self._directory)
        acknowledged = self._directory / "acknowledged"
        self._acknowledged = np.memmap(acknowledged, np.int64, "r+", shape=(1,))
        self._connections: list[Connection] = []
        self._is_watching = threading.Event()

    def imports(self) -> None:
        """Import the system's client, which may take seconds."""
        for name in self._system.IMPORTS:
            importlib.import_module(name)

    def target(self, target: str) -> None:
        """Set what connections are made to; those of before are gone."""
        self._connections = []
        self._target = target

    def connected(self, callers: int = 1) -> list[Connection]:
        """Return a connection for each caller; those of an embedded system share one."""
        wanted = 1 if self._system.EMBEDDED else callers
        while len(self._connections) < wanted:
            dim = self._rows.train.shape[1]
            opened = self._system.Connection(self._target, dim, self._rows.metric)
            self._connections.append(opened)
        return (self._connections * callers)[:callers]

    def create(self) -> None:
        """Create the collection."""
        self._acknowledged[0] = 0
        self.connected()[0].create()

    def write(self, start: int, stop: int, limit_s: float) -> dict[str, float]:
        """Write rows until one write ends after the limit."""
        [writer] = self.connected()
        began = time.perf_counter()
        for first in range(start, stop, self._system.WRITE_ROWS):
            last = min(first + self._system.WRITE_ROWS, stop)
            writer.write(first, np.ascontiguousarray(self._rows.train[first:last]))
            self._acknowledged[0] = last
            if time.perf_counter() - began > limit_s:
                break
        took_s = time.perf_counter() - began
        self._rows = Dataset.open(self._directory)  # unmaps the rows: they are not its memory
        return {"rows": int(self._acknowledged[0]), "took_s": took_s}

    def finish(self) -> float:
        """Return the seconds until all rows are in a trained index."""
        began = time.perf_counter()
        self.connected()[0].finish()
        return time.perf_counter() - began

    def tune(self, effort: float, callers: int, is_first: bool) -> None:
        """Set the effort for `callers` connections; a server-wide one is set by the first."""
        connections = self.connected(callers)
        for connection in connections[:1] if self._system.SERVER_WIDE else connections:
            if is_first or not self._system.SERVER_WIDE:
                connection.tune(effort)

    def recall(self, is_tuning: bool, queries: int) -> float:
        """Return recall@10 of the sample that efforts are chosen by, or of held-out queries."""
        asked, truth = self._rows.sample(is_tuning, queries)
        batches = range(0, len(asked), TUNING_BATCH)
        [caller] = self.connected()
        found = [caller.search(asked[first : first + TUNING_BATCH], K) for first in batches]
        return recall_of(np.concatenate(found), truth)

    def search(self, callers: int, batch: int, at: float, duration_s: float) -> dict[str, Any]:
        """Search held-out queries from each caller until the end; return all latencies."""
        asked, _ = self._rows.sample(False, 1 << 30)
        latencies: list[list[float]] = [[] for _ in range(callers)]
        failures: list[Exception] = []

        def call(connection: Connection, mine: list[float], seed: int) -> None:
            order = np.random.default_rng(seed).permutation(len(asked) - batch + 1)
            for _ in range(WARM_UPS):
                connection.search(asked[:batch], K)
            time.sleep(max(0.0, at - time.time()))
            end = time.perf_counter() + duration_s
            for first in cycle(order):
                start = time.perf_counter()
                if start >= end:
                    break
                connection.search(asked[first : first + batch], K)
                mine.append(round(1e3 * (time.perf_counter() - start), 4))

        def call_until_failure(*arguments: Any) -> None:
            try:
                call(*arguments)
            except Exception as error:
                failures.append(error)

        callables = zip(self.connected(callers), latencies, range(callers), strict=True)
        threads = [threading.Thread(target=call_until_failure, args=each) for each in callables]
        cpu_s = time.process_time()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return {"latencies": list(chain(*latencies)), "cpu_s": time.process_time() - cpu_s}

    def watch(self) -> dict[str, Any]:
        """Search at a steady rate until `unwatch`: latencies, refusals, and recall.

        The truth of a search is that of the rows which were acknowledged when it began.
        """
        asked, truth = self._rows.sample(False, 1 << 30)
        [caller] = self.connected()
        self._is_watching.set()
        latencies: list[float] = []
        recalls: list[float] = []
        refused, due = 0, time.perf_counter()
        while self._is_watching.is_set():
            number = (len(latencies) + refused) % len(asked)
            due = max(due + 1 / WATCH_PER_S, time.perf_counter())
            time.sleep(max(0.0, due - time.perf_counter()))
            rows = int(self._acknowledged[0])
            try:
                found = caller.search(asked[number : number + 1], K)[0]
            except Exception:
                refused += 1
                continue
            latencies.append(1e3 * (time.perf_counter() - due))
            if (recall := recall_among(found, truth[number], rows)) is not None:
                recalls.append(recall)
        return {"latencies": latencies, "recalls": recalls, "refused": refused}

    def unwatch(self) -> None:
        """End the watch."""
        self._is_watching.clear()

    def probe(self, rows: list[int]) -> dict[str, float]:
        """Count the rows, and search for each of some: the share that finds itself."""
        [caller] = self.connected()
        vectors = np.ascontiguousarray(self._rows.train[rows])
        batches = range(0, len(rows), TUNING_BATCH)
        found = [caller.search(vectors[first : first + TUNING_BATCH], K) for first in batches]
        hits = (np.concatenate(found) == np.asarray(rows)[:, None]).any(axis=1)
        return {"count": caller.count(), "found": float(hits.mean())}


def recall_among(found: Int64Array, truth: Int64Array, rows: int) -> float | None:
    """Return the recall of `found` (k,) among the first `rows` rows, or None if none is true.

    `truth` are the nearest of all rows, best first. A row found beyond `rows` was written in the
    meantime, and displaces the last of the true ones.
    """
    known = truth[truth < rows][: len(found)]
    known = known[: len(found) - np.count_nonzero(found >= rows)]
    return float(np.isin(known, found).mean()) if len(known) else None


def main() -> None:
    """Answer the commands of standard input until it ends."""
    worker = Worker(*sys.argv[1:3])
    writing = threading.Lock()

    def answer(number: int, do: str, arguments: dict[str, Any]) -> None:
        try:
            told: dict[str, Any] = {"result": getattr(worker, do)(**arguments)}
        except Exception as error:
            told = {"error": f"{do}: {type(error).__name__}: {error}"}
        with writing:
            print(json.dumps({"number": number, **told}), file=answers, flush=True)

    for line in sys.stdin:
        command = json.loads(line)
        arguments = (command.pop("number"), command.pop("do"), command)
        threading.Thread(target=answer, args=arguments, daemon=True).start()


if __name__ == "__main__":
    answers, sys.stdout = sys.stdout, sys.stderr  # what systems print
    main()
