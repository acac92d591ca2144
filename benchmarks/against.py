"""This build against another one: python -m benchmarks.against CHECKOUT [--rounds N] [--only KIND].

CHECKOUT is a checkout of another commit with its own environment (`make setup` there). Both builds
serve the same rows at the same time, each from its own processes, and this process loads them in
turn; the ratio of a round compares two adjacent loads. The measure is the CPU of all server
processes per request, because the rate also depends on other work of the machine. A third server,
again of the other build, shows how much two equal builds differ in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import numpy as np
from rich.console import Console

from benchmarks.report import Row, Table, markdown, rich_table, this_machine
from benchmarks.server import Server, scratch, start_command, wait_until_at_rest
from benchmarks.vectors import Float32Array, clustered
from vectorshard import AsyncClient, Client

COLLECTION: Final = "against"
DIM: Final = 100
K: Final = 10
ROWS: Final = 100_000
QUERIES: Final = 1_024
WRITE_ROWS: Final = 640
"""Rows per message, about as many as the client's uploads send at d=100."""
WRITES: Final = 40
THIS, OTHER, AGAIN = "this build", "the other", "the other again"
EMBEDDED, FLEET = "embedded", "router + 2 shards"


@dataclass(frozen=True, slots=True)
class Contestant:
    """One running build: its processes, the first of which the load calls."""

    name: str
    servers: Sequence[Server]

    @property
    def target(self) -> str:
        """HOST:PORT that the load calls."""
        return self.servers[0].target

    def cpu_s(self) -> float:
        """Return the CPU seconds of all its processes so far."""
        return sum(server.cpu_s() for server in self.servers)


@dataclass(frozen=True, slots=True)
class Load:
    """A kind of load: its calls, and how many are in flight. `call` makes the n-th of a round."""

    name: str
    calls: int
    in_flight: int
    call: Callable[[AsyncClient, int, int], Awaitable[object]]
    requests_a_call: int = 1


@dataclass(frozen=True, slots=True)
class Round:
    """The cost of a request in one load of one round: CPU of the servers and wall time, in us."""

    cpu_us: float
    wall_us: float


def loads(queries: Float32Array) -> Sequence[Load]:
    """Return the kinds of load, for `queries` (QUERIES, dim)."""

    def search(batch: int, k: int) -> Callable[[AsyncClient, int, int], Awaitable[object]]:
        async def call(client: AsyncClient, number: int, _: int) -> object:
            first = number * batch % (QUERIES - batch + 1)
            return await client.search(COLLECTION, queries[first : first + batch], k=k)

        return call

    async def upsert(client: AsyncClient, number: int, round_: int) -> object:
        ids = np.arange(WRITE_ROWS) + ROWS + (round_ * WRITES + number) * WRITE_ROWS
        vectors = clustered(WRITE_ROWS, DIM, part=2 + number)
        return await client.upsert(f"{COLLECTION}-writes", ids, vectors)

    return (
        Load("one query at a time", 600, 1, search(1, K)),
        Load("16 in flight", 3_000, 16, search(1, K)),
        Load("batches of 64", 150, 4, search(64, K), 64),
        Load("batches of 64, k=100", 60, 4, search(64, 100), 64),
        Load(f"upserts of {WRITE_ROWS} rows", WRITES, 4, upsert, WRITE_ROWS),
    )


@contextmanager
def contestants(programs: Mapping[str, Path], shape: str) -> Iterator[Sequence[Contestant]]:
    """Run all builds in one shape; they are killed when the context ends."""
    with scratch() as directory, ExitStack() as running:
        started = []
        for number, (name, program) in enumerate(programs.items()):
            home = directory / str(number)
            home.mkdir()

            def run(*options: str, log: Path, program: Path = program) -> Server:
                command = [str(program), *options, "--listen", "127.0.0.1:0"]
                server = start_command(command, log)
                running.callback(server.kill)
                return server

            if shape == EMBEDDED:
                options = ["serve", "--shards", "2", "--data", str(home / "rows")]
                servers = [run(*options, log=home / "log")]
            else:
                shards = [
                    run(
                        *("shard", "--shard-id", str(shard), "--shards", "2", "--cores", "1"),
                        *("--data", str(home / f"shard-{shard}")),
                        log=home / f"log-{shard}",
                    )
                    for shard in range(2)
                ]
                targets = [word for shard in shards for word in ("--shard", shard.target)]
                servers = [run("router", *targets, log=home / "log"), *shards]
            started.append(Contestant(name, servers))
        yield started


def fill(contestant: Contestant, rows: Float32Array, queries: Float32Array) -> float:
    """Write the rows, train, and return the recall of the queries at the default target."""
    with Client(contestant.target, timeout_s=120.0) as client:
        for name in (COLLECTION, f"{COLLECTION}-writes"):
            client.create_collection(name, dim=DIM, metric="l2")
        client.upsert(COLLECTION, np.arange(len(rows)), rows)
        client.train(COLLECTION, wait=True, timeout_s=120.0)
        wait_until_at_rest(client, COLLECTION)
        found = client.search(COLLECTION, queries, k=K).ids.reshape(len(queries), K)
        exact = client.search(COLLECTION, queries, k=K, exact=True).ids.reshape(len(queries), K)
        hits = [len(np.intersect1d(*pair)) for pair in zip(found, exact, strict=True)]
        return float(np.mean(hits)) / K


async def run_load(load: Load, contestant: Contestant, round_: int) -> Round:
    """Run one load on a build, after one call that is not timed."""
    async with AsyncClient(contestant.target, timeout_s=60.0) as client:
        numbers = iter(range(load.calls))

        async def caller() -> None:
            for number in numbers:
                await load.call(client, number, round_)

        await load.call(client, load.calls - 1, round_)
        cpu_s, start = contestant.cpu_s(), perf_counter()
        await asyncio.gather(*(caller() for _ in range(load.in_flight)))
        wall_s = perf_counter() - start
        requests = load.calls * load.requests_a_call
        return Round(1e6 * (contestant.cpu_s() - cpu_s) / requests, 1e6 * wall_s / requests)


def measure(other: Path, rounds: int, only: Sequence[str]) -> Table:
    """Measure all loads in both shapes."""
    mine = Path(sys.executable).with_name("vectorshard")
    theirs = other.resolve() / ".venv" / "bin" / "vectorshard"
    programs = {THIS: mine, OTHER: theirs, AGAIN: theirs}
    rows, queries = clustered(ROWS, DIM), clustered(QUERIES, DIM, part=1)
    table: list[Row] = []
    for shape in (EMBEDDED, FLEET):
        with contestants(programs, shape) as running:
            recalls = {each.name: fill(each, rows, queries) for each in running}
            for load in loads(queries):
                if only and not any(word in f"{shape} {load.name}" for word in only):
                    continue
                measured: dict[str, list[Round]] = {each.name: [] for each in running}
                for round_ in range(rounds + 1):  # the first does not count
                    turn = round_ % len(running)
                    for each in (*running[turn:], *running[:turn]):
                        taken = asyncio.run(run_load(load, each, round_))
                        if round_:
                            measured[each.name].append(taken)
                table.append(row_of(shape, load, measured, recalls))
    return Table(
        name="against",
        title="This build against another",
        columns=(
            "shape",
            "load",
            "CPU us, this",
            "the other",
            "ratio of CPU (> 1: this is cheaper)",
            "ratio of two equal builds",
            "ratio of rates (> 1: this is faster)",
            "recall, this / the other",
        ),
        rows=table,
        notes=(
            f"{ROWS:,} rows, d={DIM}, L2, k={K}, 2 shards, clustered vectors, IVF_PQ, default "
            f"target; {rounds} rounds after one that does not count, the builds in turn. CPU is "
            "that of all server processes per query or row; one other process makes the load. "
            "Medians; a ratio is the median of the rounds' ratios, the other / this."
        ),
    )


def row_of(
    shape: str,
    load: Load,
    measured: Mapping[str, Sequence[Round]],
    recalls: Mapping[str, float],
) -> Row:
    """Return the row of one load."""

    def ratio(over: str, under: str, of: Callable[[Round], float]) -> float:
        pairs = zip(measured[over], measured[under], strict=True)
        return median(of(upper) / max(of(lower), 1e-9) for upper, lower in pairs)

    def cpu_us(taken: Round) -> float:
        return taken.cpu_us

    return (
        shape,
        load.name,
        round(median(each.cpu_us for each in measured[THIS]), 1),
        round(median(each.cpu_us for each in measured[OTHER]), 1),
        round(ratio(OTHER, THIS, cpu_us), 3),
        round(ratio(OTHER, AGAIN, cpu_us), 3),
        round(ratio(OTHER, THIS, lambda taken: taken.wall_us), 3),
        f"{recalls[THIS]:.3f} / {recalls[OTHER]:.3f}",
    )


def main() -> None:
    """Run the loads of the command line and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.against", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout of another commit, set up")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", action="append", default=[], help="loads with this in the name")
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    arguments = parser.parse_args()
    table = measure(arguments.other, arguments.rounds, arguments.only)
    command = " ".join([".venv/bin/python -m benchmarks.against", *sys.argv[1:]])
    ran_on = str(this_machine())
    if arguments.markdown:
        print(markdown(table, command, ran_on))
    else:
        console = Console(highlight=False, width=150)
        console.print(rich_table(table, command, ran_on), markup=False)


if __name__ == "__main__":
    main()
