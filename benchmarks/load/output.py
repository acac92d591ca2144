"""A result as a table, as JSON or as CSV. Nothing here measures."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.load.plan import Format
from benchmarks.load.result import Result
from vectorshard.shard.texts import counted

LOG_WIDTH = 110
"""Columns where there is no terminal."""


def write(result: Result, form: Format) -> None:
    """Write a result to stdout."""
    if form is Format.json:
        print(as_json(result))
    elif form is Format.csv:
        print(as_csv(result), end="")
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = shutil.get_terminal_size((LOG_WIDTH, 0)).columns  # it reads COLUMNS
        console.print(summary(result))
        for warning in result.warnings:
            console.print(Text(f"warning: {warning}", style="yellow"))


def as_json(result: Result) -> str:
    """Return one object; the keys are the fields of `Result`."""
    return json.dumps(asdict(result), indent=2)


def as_csv(result: Result) -> str:
    """Return a header and one row; statuses as ``OK:12 UNAVAILABLE:1``, warnings after ``; ``."""
    fields = asdict(result)
    fields["codes"] = " ".join(f"{code}:{calls}" for code, calls in result.codes.items())
    fields["warnings"] = "; ".join(result.warnings)
    text = io.StringIO()
    rows = csv.DictWriter(text, fields, lineterminator="\n")
    rows.writeheader()
    rows.writerow(fields)
    return text.getvalue()


def summary(result: Result) -> Table:
    """Return a table for a terminal."""
    title = Text(title_of(result), style="bold")
    table = Table(title=title, title_justify="left", box=None, show_header=False)
    for name, told in lines_of(result):
        table.add_row(name, Text(told))
    return table


def title_of(result: Result) -> str:
    """Return the title: what ran, where."""
    what = result.call if result.collection is None else f"{result.call} in {result.collection}"
    return f"{what} at {result.target}" + (", interrupted" if result.interrupted else "")


def lines_of(result: Result) -> Iterator[tuple[str, str]]:
    """Yield the names and texts of a summary's lines."""
    if result.mode == "open":
        how = f"open loop, {result.rate_offered_per_s:,.6g} calls/s offered, {result.arrivals}"
    else:
        how = "closed loop"
    yield "load", f"{how}; concurrency {result.concurrency:,}, connections {result.connections:,}"
    if result.batch is not None:
        searched = "" if result.k is None else f", k={result.k}, effort: {result.effort}"
        filtered = "" if result.filter is None else f", filter: {result.filter}"
        yield "a call", f"batch {result.batch:,}{searched}{filtered}"
    unfinished = f", {result.calls_unfinished:,} unfinished" if result.calls_unfinished else ""
    yield "calls", f"{result.calls:,} in {result.elapsed_s:.2f} s{unfinished}"
    items = ""
    if result.queries_per_s is not None:
        items = f", {result.queries_per_s:,.1f} queries/s"
    if result.rows_per_s is not None:
        items = f", {result.rows_per_s:,.1f} rows/s"
    yield "achieved", f"{result.rate_achieved_per_s:,.1f} calls/s{items}"
    yield "status", ", ".join(f"{code} {calls:,}" for code, calls in result.codes.items()) or "-"
    yield (
        "latency, ms",
        figures(
            p50=result.latency_p50_ms,
            p90=result.latency_p90_ms,
            p99=result.latency_p99_ms,
            p99_9=result.latency_p99_9_ms,
            max=result.latency_max_ms,
            mean=result.latency_mean_ms,
        ),
    )
    if result.recall is not None:
        yield f"recall@{result.k}", f"{result.recall:.4f} over {result.recall_queries:,} queries"
    if result.mode == "open":
        yield "generator's lag, ms", figures(p99=result.lag_p99_ms, max=result.lag_max_ms)
    if result.waited_calls:
        longest = figures(max=result.waited_max_ms)
        yield "waited for a slot", f"{counted(result.waited_calls, 'call')}, ms {longest}"
    cpu = result.client_cpu_us_per_call
    yield (
        "generator's CPU",
        f"{'-' if cpu is None else f'{cpu:.0f} µs'} a call, {result.client_cpu_cores:.2f} cores",
    )


def figures(**milliseconds: float | None) -> str:
    """Return named figures in one line."""
    return "  ".join(
        f"{name.replace('_', '.')} {'-' if figure is None else f'{figure:,.2f}'}"
        for name, figure in milliseconds.items()
    )
