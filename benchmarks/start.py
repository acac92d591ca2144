"""From the start of the process to serving, with rows on disk."""

from __future__ import annotations

import resource
import subprocess
import sys
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.report import Row, Table
from benchmarks.server import Server, described, scratch, serving, wait_until_at_rest
from benchmarks.vectors import clustered

COLLECTION = "start"
DIM = 100
K = 10
ROWS = 336_000
QUICK_ROWS = 40_000
ROUNDS = 5
QUICK_ROUNDS = 2
WRITTEN_BEFORE_KILL_ROWS = 1_000
BAR_S = 3.0


class Starts:
    """The starts of one kind: seconds to serving and to the first answer, and what was found.

    Seconds of CPU stay the same when other work uses the cores.
    """

    def __init__(self) -> None:
        self.cpu_s: list[float] = []
        self.serving_s: list[float] = []
        self.answered_s: list[float] = []
        self.found = ""

    def row(self, kind: str) -> Row:
        """Return the table's row."""
        return (
            kind,
            median(self.serving_s),
            median(self.answered_s),
            max(self.answered_s),
            median(self.cpu_s),
            self.found,
            len(self.serving_s),
        )


def measure(quick: bool) -> Table:
    """Measure starts after each kind of end, in turn with an empty start and the imports."""
    size = QUICK_ROWS if quick else ROWS
    rounds = QUICK_ROUNDS if quick else ROUNDS
    during_load, after_term, after_kill, empty, imports = (Starts() for _ in range(5))
    with scratch() as directory:
        rows = directory / "rows"
        with serving(rows) as running:  # and killed as soon as it has acknowledged
            fill(running, size)
        with serving(rows) as running:
            note(running, during_load)
            with running.connect() as client:
                wait_until_at_rest(client, COLLECTION)
            running.stop()
        for round_ in range(rounds):
            time_imports(imports)
            with serving(directory / f"empty-{round_}") as running:
                create(running)
                note(running, empty)
            with serving(rows) as running:
                note(running, after_term)
                write_more(running, size + round_ * WRITTEN_BEFORE_KILL_ROWS)
            with serving(rows) as running:
                note(running, after_kill)
                running.stop()
    return Table(
        name="start",
        title=f"From process start to serving, {size:,} rows",
        columns=(
            "start",
            "to `listening on`, s",
            "to the first answer, s",
            "longest, s",
            "CPU, s",
            "the index then",
            "starts",
        ),
        rows=[
            after_term.row("after SIGTERM"),
            after_kill.row(f"after kill -9, {WRITTEN_BEFORE_KILL_ROWS:,} rows written just before"),
            during_load.row("after kill -9 as soon as the load was acknowledged"),
            empty.row("on an empty data directory"),
            imports.row("`python -c 'import numpy, faiss, grpc'`, from start to end"),
        ],
        notes=(
            f"d={DIM}, L2, 2 shards, clustered vectors, a warm page cache; medians, the kinds in "
            f"turn. The first answer is a search for {K} hits by a new client (on the empty "
            "directory: a collection created and searched); CPU is that of all cores until then. "
            f"The bar is {BAR_S:g} s for 336,000 rows."
        ),
    )


def fill(running: Server, size: int) -> None:
    """Write all rows into a new collection."""
    vectors = clustered(size, DIM)
    create(running)
    with running.connect() as client:
        client.upsert(COLLECTION, np.arange(size), vectors)


def create(running: Server) -> None:
    """Create the collection, empty."""
    with running.connect() as client:
        client.create_collection(COLLECTION, dim=DIM, metric="l2")


def note(running: Server, starts: Starts) -> None:
    """Search a server that was just started once, and record the time from its start."""
    with running.connect() as client:
        client.search(COLLECTION, clustered(1, DIM, part=1), K)
        starts.answered_s.append(perf_counter() - running.started)
        starts.cpu_s.append(running.cpu_s())
        starts.serving_s.append(running.served - running.started)
        starts.found = described(client.describe(COLLECTION))


def write_more(running: Server, first_id: int) -> None:
    """Write some new rows, which no index file holds yet."""
    with running.connect() as client:
        ids = np.arange(first_id, first_id + WRITTEN_BEFORE_KILL_ROWS)
        client.upsert(COLLECTION, ids, clustered(WRITTEN_BEFORE_KILL_ROWS, DIM, part=2))


def time_imports(starts: Starts) -> None:
    """Record the time of an interpreter that only imports what every server here needs."""
    start, cpu_before = perf_counter(), cpu_of_children_s()
    subprocess.run([sys.executable, "-c", "import numpy, faiss, grpc"], check=True)
    elapsed_s = perf_counter() - start
    starts.cpu_s.append(cpu_of_children_s() - cpu_before)
    starts.serving_s.append(elapsed_s)
    starts.answered_s.append(elapsed_s)
    starts.found = "-"


def cpu_of_children_s() -> float:
    """Return the seconds of CPU of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
