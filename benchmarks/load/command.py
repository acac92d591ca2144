"""`vectorshard bench`: its options. What measures is imported when the command runs.

The command line finds this by the entry point `vectorshard.commands` and turns an expected failure
into a line.
"""

from __future__ import annotations

import signal
from typing import Annotated

import typer

from benchmarks.load.plan import Arrivals, CallKind, Format, Plan

OPTIONAL_PACKAGES = frozenset({"hdrh", "h5py"})
"""Those of the extra `bench`."""
RATE_PER_S = 100.0
DURATION_S = 10.0
CONCURRENCY_OPEN = 1_000
CONCURRENCY_CLOSED = 16


def bench(
    target: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The server to load.")
    ] = "127.0.0.1:7700",
    collection: Annotated[str, typer.Option(help="Where to search or to write.")] = "bench",
    call: Annotated[
        CallKind, typer.Option(help="What to call; empty is a call that does nothing.")
    ] = CallKind.search,
    rps: Annotated[
        float | None,
        typer.Option(min=0.001, help=f"Calls a second, open loop. Default: {RATE_PER_S:g}."),
    ] = None,
    arrivals: Annotated[
        Arrivals, typer.Option(help="How the starts are spaced.")
    ] = Arrivals.poisson,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="Closed loop: every caller waits for its answer."),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Calls in flight: at most, default {CONCURRENCY_OPEN:,}; "
            f"--closed: always, default {CONCURRENCY_CLOSED}.",
        ),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="TCP connections.")] = 1,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help=f"How long calls start. Default: {DURATION_S:g}, or until --total.",
        ),
    ] = None,
    total: Annotated[int | None, typer.Option(min=1, help="End after this many calls.")] = None,
    warmup: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time before calls count.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Time allowed for each call.")
    ] = 10.0,
    batch: Annotated[int, typer.Option(min=1, help="Queries or rows a call.")] = 1,
    k: Annotated[int, typer.Option(min=1, help="Hits for each query.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row.")] = False,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Inverted lists to probe.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="The recall to aim at.")] = None,
    data: Annotated[
        str, typer.Option(metavar="FILE|synthetic", help="A .hdf5, .npz or .npy file, or clusters.")
    ] = "synthetic",
    vectors_key: Annotated[
        str, typer.Option(help="The array of rows. Default: vectors, or train in an .hdf5.")
    ] = "",
    queries_key: Annotated[
        str, typer.Option(help="The array of queries. Default: test or queries, else the rows.")
    ] = "",
    neighbors_key: Annotated[
        str, typer.Option(help="The true nearest row numbers of each query. Default: neighbors.")
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="Rows of synthetic data.")] = 100_000,
    ingest: Annotated[
        bool,
        typer.Option(
            "--ingest", help="Create the collection, write the rows, wait until it is trained."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Decides the arrivals and the order.")] = 7,
    form: Annotated[
        Format, typer.Option("--format", help="How to tell the result.")
    ] = Format.summary,
) -> None:
    """Load a server, and tell rate, latencies, statuses and recall.

    Exit code: 0 when a call succeeded, 1 when none did, 130 after Ctrl-C, with the result so far.
    """
    if closed and rps is not None:
        raise typer.BadParameter("--rps is for the open loop; --closed has no rate of its own")
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise typer.BadParameter("give at most one of --exact, --nprobe and --target-recall")
    try:
        from benchmarks.load.output import write
        from benchmarks.load.run import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in OPTIONAL_PACKAGES:
            raise
        typer.echo(f"error: needs {package}: pip install 'vectorshard[bench]'", err=True)
        raise typer.Exit(1) from None
    result = run(
        Plan(
            target=target,
            call=call,
            collection=collection,
            rate_per_s=None if closed else rps or RATE_PER_S,
            arrivals=arrivals,
            concurrency=concurrency or (CONCURRENCY_CLOSED if closed else CONCURRENCY_OPEN),
            connections=connections,
            duration_s=DURATION_S if duration is None and total is None else duration,
            calls_total=total,
            warmup_s=warmup,
            timeout_s=timeout,
            batch=batch,
            k=k,
            exact=exact,
            nprobe=nprobe,
            target_recall=target_recall,
            data=data,
            vectors_key=vectors_key,
            queries_key=queries_key,
            neighbors_key=neighbors_key,
            rows=rows,
            ingest=ingest,
            seed=seed,
        )
    )
    write(result, form)
    if result.interrupted:
        raise typer.Exit(128 + signal.SIGINT)
    if not result.codes.get("OK"):
        raise typer.Exit(1)
