"""The measurements of benchmarks/README.md: python -m benchmarks [--quick] [--only NAME]."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter

from rich.console import Console

from benchmarks.report import (
    Table,
    command_of,
    markdown,
    rich_table,
    this_machine,
    write_json,
)

LOG_WIDTH = 130
"""Columns where there is no terminal."""
OF_WORDS = frozenset({"codes", "words", "targets"})
"""The measurements that need the words of `make glove`."""


def measurements() -> Mapping[str, Callable[[bool], Table | Sequence[Table]]]:
    """Return each measurement by its name; its argument is whether to be quick.

    numpy reads the environment when it is imported, so nothing may import it before this.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # idle threads of OpenBLAS spin on a core
    from benchmarks import (
        batch,
        codes,
        exact,
        fanout,
        filters,
        growing,
        ingest,
        memory,
        million,
        profile,
        router_cost,
        start,
        targets,
        transport,
        words,
    )

    return {
        "batch": batch.measure,
        "start": start.measure,
        "ingest": ingest.measure,
        "codes": codes.measure,
        "exact": exact.measure,
        "transport": transport.measure,
        "fanout": fanout.measure,
        "router": router_cost.measure,
        "filters": filters.measure,
        "growing": growing.measure,
        "words": words.measure,
        "targets": targets.measure,
        "memory": memory.measure,
        "million": million.measure,
        "profile": profile.measure,
    }


def main() -> None:
    """Run the measurements of the command line and print their tables."""
    names = (
        "batch",
        "start",
        "ingest",
        "codes",
        "exact",
        "transport",
        "fanout",
        "router",
        "filters",
        "growing",
        "words",
        "targets",
        "memory",
        "million",
        "profile",
    )
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, for a trial")
    parser.add_argument("--only", choices=names, action="append", help="may be repeated")
    parser.add_argument("--markdown", action="store_true", help="print Markdown for the README")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, unrounded")
    arguments = parser.parse_args()
    console, progress = Console(highlight=False), Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    machine = this_machine()
    options = ["--quick"] if arguments.quick else []
    tables = []
    measured_by = measurements()
    from benchmarks.glove import FILE as WORDS_FILE  # imports numpy, so only after `measurements`

    for name, measure in measured_by.items():
        if arguments.only and name not in arguments.only:
            continue
        if name in OF_WORDS and not WORDS_FILE.exists():
            progress.print(f"{name} skipped: {WORDS_FILE} does not exist (run `make glove`)")
            continue
        load_before, start = os.getloadavg()[0], perf_counter()
        progress.print(f"{name} ...")
        measured = measure(arguments.quick)
        took_s = perf_counter() - start
        ran_on = f"{machine}; load average {load_before:.1f} before, {took_s:.0f} s"
        for table in [measured] if isinstance(measured, Table) else measured:
            tables.append(table)
            if arguments.markdown:
                print(markdown(table, command_of(table, options), ran_on), flush=True)
            else:
                console.print(rich_table(table, command_of(table, options), ran_on), markup=False)
    if arguments.json:
        write_json(arguments.json, tables, machine)


if __name__ == "__main__":
    main()
