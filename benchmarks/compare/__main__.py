"""Compare ours with other vector stores: python -m benchmarks.compare [--quick] [--only NAME].

Writes figures as JSON after each system, and takes up there if it is started again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.compare.dataset import Dataset
from benchmarks.compare.environment import HOME, ROOT, commit_of, install, versions
from benchmarks.compare.measure import (
    KINDS,
    TARGET,
    Loaded,
    Plan,
    curve,
    harm,
    medians,
    ratio,
    rounds,
    say,
    start,
)
from benchmarks.compare.report import table
from benchmarks.compare.systems import NAMES
from benchmarks.glove import FILE
from benchmarks.report import this_machine

SEED = 7
QUICK_ROWS = 20_000
OURS = NAMES[0]

Report = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--data", type=Path, default=FILE, metavar="FILE.hdf5")
    parser.add_argument("--rows", type=int, help="a random part of them")
    parser.add_argument("--only", choices=NAMES[1:], action="append", help="may be repeated")
    parser.add_argument("--distributed-faiss", type=Path, metavar="DIR", help="its checkout")
    parser.add_argument("--quick", action="store_true", help="ours alone, 20,000 rows, short")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each run")
    parser.add_argument("--budget-s", type=float, default=2_400, help="starts no system after it")
    parser.add_argument("--json", type=Path, default=ROOT / "build" / "compare.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.seconds = 1, min(options.seconds, 0.5)
        options.rows = options.rows or QUICK_ROWS
    began, home = time.monotonic(), Path(tempfile.mkdtemp(prefix="vectorshard-compare-"))
    home.chmod(0o755)  # PostgreSQL may be another user's
    try:
        rows = Dataset.read(options.data, options.rows, SEED)
        told = begun(options, rows)
        plan = Plan(rows, home, options.rounds, options.seconds, min(2.0, options.seconds))
        others = () if options.quick else options.only or NAMES[1:]
        left = [name for name in others if name not in told["systems"]]
        compare(options, told, left, plan, began)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(table(told))


def begun(options: argparse.Namespace, rows: Dataset) -> Report:
    """Return the report as it is: of the same rows, so far; or a new one."""
    asked = {
        "file": options.data.name,
        "rows": len(rows.train),
        "dim": rows.train.shape[1],
        "metric": rows.metric,
        "queries": len(rows.queries),
        "target_recall": TARGET,
        "seed": SEED,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "machine": asdict(this_machine()),
        "commit": commit_of(ROOT),
    }
    if options.json.exists():
        told: Report = json.loads(options.json.read_text())
        if told["asked"] == asked:
            return told
    return {"asked": asked, "started": time.strftime("%Y-%m-%d %H:%M"), "systems": {}, "absent": {}}


def compare(
    options: argparse.Namespace, told: Report, left: Sequence[str], plan: Plan, began: float
) -> None:
    """Measure ours, if it is not in the report, and each of the others beside it."""
    if left:
        say(f"installing into {HOME}")
        told["not_installed"] = install()
    ours = start(OURS, plan, "")
    try:
        if OURS not in told["systems"]:
            measure(options, told, OURS, {OURS: ours}, plan)
        for name in left:
            checkout: Path | None = options.distributed_faiss
            needs_it = name == "distributed_faiss"
            if time.monotonic() - began > options.budget_s:
                told["absent"][name] = "the budget was spent"
            elif needs_it and checkout is None:
                told["absent"][name] = "no checkout was given"
            else:
                told["absent"].pop(name, None)
                try:
                    extra = str(checkout.resolve()) if needs_it and checkout else ""
                    theirs = start(name, plan, extra)
                    measure(options, told, name, {OURS: ours, name: theirs}, plan)
                except Exception as error:
                    told["absent"][name] = reason(error)
                    say(f"{name}: {told['absent'][name]}")
            save(options.json, told)
    finally:
        ours.running.kill()


def measure(
    options: argparse.Namespace,
    told: Report,
    name: str,
    systems: Mapping[str, Loaded],
    plan: Plan,
) -> None:
    """Measure one system, beside ours if it is another, and add it to the report."""
    began, loaded = time.monotonic(), systems[name]
    report = dict(loaded.report, versions=versions(name, options.distributed_faiss))
    try:
        runs = rounds(systems, plan)
        report["kinds"] = {kind: medians(runs[name][kind]) for kind in KINDS}
        for kind in KINDS:
            report["kinds"][kind]["of_ours"] = ratio(runs[name][kind], runs[OURS][kind])
        report["ours_meanwhile"] = {kind: medians(runs[OURS][kind]) for kind in KINDS}
        report["curve"] = curve(loaded, plan)
    finally:
        if name != OURS:
            loaded.running.kill()
    try:
        report["harm"] = harm(loaded, plan)
    except (RuntimeError, TimeoutError) as error:
        report["harm"] = {"error": reason(error)}
    report |= {"load_average": os.getloadavg(), "took_s": time.monotonic() - began}
    told["systems"][name] = report
    save(options.json, told)
    say(f"{name}: {report}")


def reason(error: Exception) -> str:
    """Return the last line of an error, after its class."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['-'])[-1][:200]}"


def save(file: Path, told: Report) -> None:
    """Write the report."""
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".new")
    unfinished.write_text(json.dumps(told, indent=1) + "\n")
    unfinished.replace(file)


if __name__ == "__main__":
    main()
