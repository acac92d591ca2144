"""h2load against our server and stock grpcio, and against our load generator.

h2load is written in C and does not implement gRPC: it posts the same bytes repeatedly. So its rate
is the server's capacity, and its CPU a lower bound of a client's. All loads go over one connection,
and the compared runs alternate.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter

import grpc
import numpy as np

from benchmarks.load.connections import SERVICE
from benchmarks.load.plan import Plan
from benchmarks.load.requests import Requests, empty_calls, searches
from benchmarks.report import Row, Table
from benchmarks.server import Server, scratch, serving, wait_until_at_rest
from benchmarks.start import cpu_of_children_s
from benchmarks.stock import VERSION, install, serving_stock
from benchmarks.vectors import clustered

COLLECTION = "transport"
DIM = 100
ROWS = 10_000
CONCURRENCY = 16
EMPTY_CALLS, SEARCHES = 10_000, 3_000
"""Calls of a round."""
QUICK_PART = 10
ALONE_CALLS = 2_000
"""Calls of a round with one in flight."""
ROUNDS = 5
SERVER_ROUNDS = 9
"""Rounds of the two servers, whose ratio has a bar."""
QUICK_ROUNDS = 2
BAR = 1.3

OURS, THEIRS = "vectorshard bench --closed", "h2load"
STOCK, SERVER = f"stock grpcio {VERSION}, asyncio", "ours, empty call"
STOCK_NOT_INSTALLED = f"{STOCK}: could not be installed"
NOT_INSTALLED = f"{THEIRS}: not installed (Debian: nghttp2-client)"
FRAME_BYTES = 5
"""gRPC puts a flag and a length before a message."""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of a generator. CPU in seconds, for all its calls."""

    calls_per_s: float
    p50_ms: float
    client_s: float
    server_s: float


Generate = Callable[[Server, int], Load]
"""Makes the given number of calls."""


def measure(quick: bool) -> list[Table]:
    """Measure our server and a stock one, and our load generator and h2load."""
    return [measure_servers(quick), measure_generators(quick)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A server in one round: many calls in flight, and one."""

    many: Load
    alone: Load


def measure_servers(quick: bool) -> Table:
    """Measure calls that do nothing, on our server and on a server of stock grpcio."""
    rounds = QUICK_ROUNDS if quick else SERVER_ROUNDS
    part = QUICK_PART if quick else 1
    pairs: dict[str, list[Pair]] = {}
    missing = NOT_INSTALLED if not shutil.which(THEIRS) else STOCK_NOT_INSTALLED
    if shutil.which(THEIRS) and install():
        with (
            scratch() as directory,
            serving_stock(directory / "stock.log") as stock,
            serving(directory / "rows") as ours,
        ):
            load = partial(h2load, directory, empty_calls())
            servers = {STOCK: stock, SERVER: ours}
            for server in servers.values():
                load(server, EMPTY_CALLS // QUICK_PART)
            pairs = {name: [] for name in servers}
            for round_ in range(rounds):
                for name in sorted(servers, reverse=bool(round_ % 2)):
                    many = load(servers[name], EMPTY_CALLS // part)
                    alone = load(servers[name], ALONE_CALLS // part, in_flight=1)
                    pairs[name].append(Pair(many, alone))
    return Table(
        name="transport",
        title="An empty call compared with stock grpcio",
        columns=(
            "server",
            f"calls/s, {CONCURRENCY} in flight",
            "p50, ms, 1 in flight",
            "its CPU, µs a call",
            "rate / stock's",
            "p50 / stock's",
            "bar",
            "rounds",
        ),
        rows=rows_of_servers(pairs, EMPTY_CALLS // part)
        or [(missing, "-", "-", "-", "-", "-", "-", 0)],
        notes=(
            f"h2load over one connection, {EMPTY_CALLS // part:,} calls of GetServerInfo with "
            f"{CONCURRENCY} in flight and {ALONE_CALLS // part:,} with one, the servers in turn; "
            "medians, a ratio is the median of the rounds'. The stock server has default options, "
            "no uvloop, and a handler that answers with no bytes (`stock_server.py`); ours parses, "
            "counts, times and answers. The CPU is that of many calls in flight."
        ),
    )


def rows_of_servers(pairs: Mapping[str, list[Pair]], calls: int) -> list[Row]:
    """Return a row of each server, from its rounds of `calls` with many in flight."""
    return [
        (
            name,
            median(pair.many.calls_per_s for pair in of_name),
            median(pair.alone.p50_ms for pair in of_name),
            median(1e6 * pair.many.server_s / calls for pair in of_name),
            median(
                pair.many.calls_per_s / stock.many.calls_per_s
                for pair, stock in zip(of_name, pairs[STOCK], strict=True)
            ),
            median(
                pair.alone.p50_ms / stock.alone.p50_ms
                for pair, stock in zip(of_name, pairs[STOCK], strict=True)
            ),
            "-" if name == STOCK else f"rate >= {BAR}",
            len(of_name),
        )
        for name, of_name in pairs.items()
    ]


def measure_generators(quick: bool) -> Table:
    """Measure calls that do nothing and single searches in a small collection."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    part = QUICK_PART if quick else 1
    query = clustered(1, DIM, part=1)
    rows: list[Row] = []
    with (
        scratch() as directory,
        serving(directory / "rows") as server,
        server.connect() as client,
    ):
        client.create_collection(COLLECTION, dim=DIM, metric="l2")
        client.upsert(COLLECTION, np.arange(ROWS), clustered(ROWS, DIM))
        wait_until_at_rest(client, COLLECTION)
        file = directory / "query.npz"
        np.savez(file, vectors=query, queries=query)
        found = searches(Plan(target="", collection=COLLECTION), query)
        search_options = ["--collection", COLLECTION, "--data", str(file)]
        for what, calls, options, requests in (
            ("empty", EMPTY_CALLS // part, ["--call", "empty"], empty_calls()),
            ("search", SEARCHES // part, search_options, found),
        ):
            generators: dict[str, Generate] = {OURS: partial(bench, options)}
            if shutil.which(THEIRS):
                generators[THEIRS] = partial(h2load, directory, requests)
            rows += rows_of(what, in_turn(generators, server, calls, rounds), calls)
    return Table(
        name="transport",
        title="The load generator compared with h2load",
        columns=(
            "call",
            "generator",
            "calls/s",
            "p50, ms",
            "its CPU, µs a call",
            "the server's, µs a call",
            "rate / h2load's",
            "rounds",
        ),
        rows=rows,
        notes=(
            f"{CONCURRENCY} calls in flight over one connection, {EMPTY_CALLS // part:,} empty "
            f"ones or {SEARCHES // part:,} searches a round; medians, the ratio is the median of "
            "the rounds'. Both post the same bytes: empty is GetServerInfo, search is one query "
            f"for 10 hits among {ROWS:,} rows, d={DIM}, L2, 2 shards. Server and generator share "
            "the cores: if the server could use all of them, it lacks what the generator uses."
        ),
    )


def in_turn(
    generators: dict[str, Generate], server: Server, calls: int, rounds: int
) -> dict[str, list[Load]]:
    """Run every generator in every round; each round starts with a different one."""
    loads: dict[str, list[Load]] = {name: [] for name in generators}
    names = list(generators)
    for generate in generators.values():
        generate(server, max(CONCURRENCY, calls // 10))
    for round_ in range(rounds):
        turn = round_ % len(names)
        for name in names[turn:] + names[:turn]:
            loads[name].append(generators[name](server, calls))
    return loads


def rows_of(what: str, loads: dict[str, list[Load]], calls: int) -> list[Row]:
    """Return the table's rows of one kind of call."""
    rows: list[Row] = [
        (
            what,
            name,
            median(load.calls_per_s for load in of_name),
            median(load.p50_ms for load in of_name),
            median(1e6 * load.client_s / calls for load in of_name),
            median(1e6 * load.server_s / calls for load in of_name),
            "-"
            if THEIRS not in loads
            else median(
                load.calls_per_s / theirs.calls_per_s
                for load, theirs in zip(of_name, loads[THEIRS], strict=True)
            ),
            len(of_name),
        )
        for name, of_name in loads.items()
    ]
    if THEIRS not in loads:
        rows.append((what, NOT_INSTALLED, "-", "-", "-", "-", "-", 0))
    return rows


def bench(options: list[str], server: Server, calls: int) -> Load:
    """Make calls with our generator, in a separate process."""
    command = [str(Path(sys.executable).with_name("vectorshard")), "bench", "--closed"]
    command += ["--target", server.target, "--concurrency", str(CONCURRENCY), "--warmup", "0"]
    command += ["--total", str(calls), "--format", "json", *options]
    server_before_s = server.cpu_s()
    ended = subprocess.run(command, check=True, capture_output=True)
    server_s = server.cpu_s() - server_before_s
    told = json.loads(ended.stdout)
    if told["codes"] != {"OK": calls}:
        raise RuntimeError(f"not all calls succeeded: {told['codes']}")
    return Load(
        calls_per_s=told["rate_achieved_per_s"],
        p50_ms=told["latency_p50_ms"],
        client_s=told["client_cpu_us_per_call"] * calls / 1e6,
        server_s=server_s,
    )


def h2load(
    directory: Path,
    requests: Requests,
    server: Server,
    calls: int,
    in_flight: int = CONCURRENCY,
) -> Load:
    """Make calls with h2load.

    It counts every answer with HTTP status 200, which a failed gRPC call has too. So a proper call
    is made first, and every answer must have as many bytes as its answer.

    Raises
    ------
    RuntimeError
        If its calls were not all answered alike.
    """
    (post,) = posts(directory, requests, server, 1)
    log = directory / "h2load.log"
    log.unlink(missing_ok=True)
    server_before_s, client_before_s = server.cpu_s(), cpu_of_children_s()
    start = perf_counter()
    command = [*post.command(calls, in_flight), f"--log-file={log}"]
    ended = subprocess.run(command, check=True, capture_output=True)
    elapsed_s = perf_counter() - start
    client_s, server_s = cpu_of_children_s() - client_before_s, server.cpu_s() - server_before_s
    post.check(calls, ended.stdout)
    times_us = [int(line.split("\t")[2]) for line in log.read_text().splitlines()]
    return Load(
        calls_per_s=calls / elapsed_s,
        p50_ms=median(times_us) / 1e3,
        client_s=client_s,
        server_s=server_s,
    )


@dataclass(frozen=True, slots=True)
class Post:
    """A request that h2load posts repeatedly: its address, and the answer's number of bytes."""

    address: str
    body: Path
    answer_bytes: int

    def command(self, calls: int, in_flight: int) -> list[str]:
        """Return the command that posts it `calls` times, over one connection."""
        command = [THEIRS, "-n", str(calls), "-c", "1", "-m", str(in_flight), "-d", str(self.body)]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        return [*command, self.address]

    def check(self, calls: int, told: bytes) -> None:
        """Check the output of h2load.

        Raises
        ------
        RuntimeError
            If its calls were not all answered like the proper call.
        """
        data = re.search(rb"\((\d+)\) data", told)
        if data is None or int(data[1]) != calls * (FRAME_BYTES + self.answer_bytes):
            raise RuntimeError(f"h2load's calls were not answered as they should be:\n{told!r}")


def posts(directory: Path, requests: Requests, server: Server, number: int) -> list[Post]:
    """Make the first `number` calls properly, and return what h2load posts for each."""
    path = SERVICE + requests.rpc
    made = []
    with grpc.insecure_channel(server.target) as channel:
        rpc: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        for each in range(number):
            request = requests[each]
            answer = rpc(request)
            body = directory / f"body-{each}"
            body.write_bytes(b"\0" + len(request).to_bytes(4, "big") + request)
            made.append(Post(f"http://{server.target}{path}", body, len(answer)))
    return made
