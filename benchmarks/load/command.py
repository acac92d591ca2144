"""The options of `vectorshard bench`. The load generator is imported when the command runs.

`vectorshard.cli.app` finds this module in the checkout, and prints an expected failure as one line.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.load.bars import Bar, bar_of, missed
from benchmarks.load.plan import Arrivals, CallKind, Format, Plan

if TYPE_CHECKING:
    from benchmarks.load.result import Result

OPTIONAL_PACKAGES = frozenset({"hdrh", "h5py"})
"""The packages of the extra `bench`."""
INSTALL_BENCH = "install the extra in the checkout with pip install -e '.[server,bench]'"
BAR_MISSED = 3
"""The exit code where a --fail-if holds."""
RATE_PER_S = 100.0
DURATION_S = 10.0
CONCURRENCY_OPEN = 1_000
CONCURRENCY_CLOSED = 16


def bench(
    target: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Address of the server.")
    ] = "127.0.0.1:7700",
    collection: Annotated[str, typer.Option(help="Name of the collection.")] = "bench",
    call: Annotated[
        CallKind, typer.Option(help="The RPC to call; empty is GetServerInfo, which does nothing.")
    ] = CallKind.search,
    rps: Annotated[
        float | None,
        typer.Option(min=0.001, help=f"Calls per second, open loop. Default: {RATE_PER_S:g}."),
    ] = None,
    arrivals: Annotated[
        Arrivals, typer.Option(help="Spacing of the starts, open loop.")
    ] = Arrivals.poisson,
    closed: Annotated[
        bool,
        typer.Option("--closed", help="Closed loop: each caller waits for its answer."),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"Calls in flight. Open loop: the maximum, default {CONCURRENCY_OPEN:,}; "
            f"--closed: the constant number, default {CONCURRENCY_CLOSED}.",
        ),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Number of TCP connections.")] = 1,
    duration: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            metavar="SECONDS",
            help=f"How long to start calls. Default: {DURATION_S:g}, or until --total.",
        ),
    ] = None,
    total: Annotated[int | None, typer.Option(min=1, help="End after this many calls.")] = None,
    warmup: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Time before calls count.")
    ] = 1.0,
    timeout: Annotated[
        float, typer.Option(min=0.001, metavar="SECONDS", help="Timeout of each call.")
    ] = 10.0,
    batch: Annotated[int, typer.Option(min=1, help="Queries or rows in each call.")] = 1,
    k: Annotated[int, typer.Option(min=1, help="Hits for each query.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Score every row.")] = False,
    nprobe: Annotated[int | None, typer.Option(min=1, help="Inverted lists to probe.")] = None,
    target_recall: Annotated[float | None, typer.Option(help="Recall to aim for.")] = None,
    filter_: Annotated[
        str | None,
        typer.Option("--filter", metavar="CONDITION", help="Search only rows that pass."),
    ] = None,
    data: Annotated[
        str, typer.Option(metavar="FILE|synthetic", help="A .hdf5, .npz or .npy file, or clusters.")
    ] = "synthetic",
    vectors_key: Annotated[
        str, typer.Option(help="The array of rows. Default: vectors, or train in an .hdf5 file.")
    ] = "",
    queries_key: Annotated[
        str, typer.Option(help="The array of queries. Default: test or queries, else the rows.")
    ] = "",
    neighbors_key: Annotated[
        str, typer.Option(help="The array of ground truth: row numbers. Default: neighbors.")
    ] = "",
    rows: Annotated[int, typer.Option(min=1, help="Number of synthetic rows.")] = 100_000,
    ingest: Annotated[
        bool,
        typer.Option(
            "--ingest", help="First create the collection, write the rows and wait for training."
        ),
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of arrivals and query order.")] = 7,
    fail_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="End with exit code 3 if this holds, or is unknown: 'p99>20ms', 'qps<500', "
            "'errors>0.1%', 'recall<0.95'. Repeatable.",
        ),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="Format of the result.")
    ] = Format.summary,
    as_json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
) -> None:
    """Load a server, and report rate, latencies, statuses and recall.

    Exit code: 0 if a call succeeded, 1 if none did, 3 if a --fail-if holds, 130 after Ctrl-C,
    with the result so far.
    """
    if closed and rps is not None:
        raise typer.BadParameter("--rps and --closed are mutually exclusive")
    if exact + (nprobe is not None) + (target_recall is not None) > 1:
        raise typer.BadParameter("give at most one of --exact, --nprobe and --target-recall")
    if filter_ is not None and call is not CallKind.search:
        raise typer.BadParameter("--filter goes with --call search")
    bars = [bar_of(text) for text in fail_if or ()]
    try:
        from benchmarks.load.output import write
        from benchmarks.load.run import run
    except ModuleNotFoundError as missing:
        package = (missing.name or "").partition(".")[0]
        if package not in OPTIONAL_PACKAGES:
            raise
        typer.echo(f"error: the module {package} is not installed; {INSTALL_BENCH}", err=True)
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
            filter=filter_,
            data=data,
            vectors_key=vectors_key,
            queries_key=queries_key,
            neighbors_key=neighbors_key,
            rows=rows,
            ingest=ingest,
            seed=seed,
        )
    )
    write(result, Format.json if as_json else form)
    end(result, bars)


def end(result: Result, bars: Sequence[Bar]) -> None:
    """Print why a run fails, and end with its exit code unless that is 0."""
    reasons = [*missed(bars, result)]
    for reason in reasons:
        typer.echo(f"failed: {reason}", err=True)
    if result.interrupted:
        raise typer.Exit(128 + signal.SIGINT)
    if not result.codes.get("OK"):
        raise typer.Exit(1)
    if reasons:
        raise typer.Exit(BAR_MISSED)
