"""What is measured of a system: its load, searches beside ours, and what it loses.

Everything that two systems are compared by is measured in turn, ours and then the other's, several
times; figures are medians of the rounds and ratios those of a round.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.compare.dataset import Dataset
from benchmarks.compare.running import WORKERS, Running

TARGET = 0.95
KINDS: Mapping[str, tuple[int, int]] = {"alone": (1, 1), "sixteen": (16, 1), "batches": (4, 64)}
"""Callers, and queries of a call."""
AHEAD_S = 1.0
"""Time for all callers to connect before a run starts."""
CURVE = (-6, -3, 0, 3, 6)
"""Steps of the efforts in the picture from the chosen one."""
LIMIT_S = 120.0
SMALLER = 4
GROWING_ROWS, MORE_ROWS = 60_000, 10_000
QUIET_S = 3.0
RECOVERY_S = 30.0
PROBES, LAST_PROBES = 400, 100
FOUND = 0.99
RECALL_QUERIES = 1_000
POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Plan:
    """What is loaded, where it happens, and how long it takes."""

    rows: Dataset
    directory: Path
    rounds: int
    duration_s: float
    curve_s: float


@dataclass(frozen=True, slots=True)
class Loaded:
    """A system with its rows, and the effort that reaches the recall."""

    running: Running
    rows: int
    effort: float
    report: dict[str, Any]


def say(text: str) -> None:
    """Tell what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def start(name: str, plan: Plan, extra: str) -> Loaded:
    """Load a system with all rows within LIMIT_S, or else with a part, and choose its effort."""
    rows = plan.rows
    size = len(rows.train)
    while True:
        directory, of_rows = fresh(plan.directory, name), plan.directory / f"rows-{size}"
        if not of_rows.exists():
            (rows if size == len(rows.train) else rows.first(size)).save(of_rows)
        running = Running(name, directory, of_rows, extra)
        try:
            report = filled(running, size)
            effort, sample = tuned(running)
            report |= {
                "rows": size,
                "effort": effort,
                "recall_of_sample": sample,
                "recall": running.ask("recall", is_tuning=False, queries=1 << 30),
                "pss_bytes": running.pss_bytes(),
            }
            say(f"{name}: {report}")
            return Loaded(running, size, effort, report)
        except TimeoutError:
            running.kill()
            if size < len(rows.train):
                raise TimeoutError(f"{size:,} rows take longer than {LIMIT_S:g} s") from None
            say(f"{name}: {size:,} rows take longer than {LIMIT_S:g} s")
            size //= SMALLER
        except BaseException:
            running.kill()
            raise


def fresh(home: Path, name: str) -> Path:
    """Return a directory that does not exist yet; earlier ones of this system are removed."""
    for earlier in home.glob(f"{name}.*"):
        if earlier.is_dir():
            shutil.rmtree(earlier, ignore_errors=True)
    return home / f"{name}.{time.time_ns()}"


def filled(running: Running, size: int) -> dict[str, Any]:
    """Write all rows; return the seconds until acknowledged, and until indexed."""
    running.ask("create")
    end = time.monotonic() + LIMIT_S
    written = running.ask("write", LIMIT_S + 30, start=0, stop=size, limit_s=LIMIT_S)
    if written["rows"] < size:
        raise TimeoutError
    indexed_s = running.ask("finish", max(1.0, end - time.monotonic()))
    return {"written_s": written["took_s"], "load_s": written["took_s"] + indexed_s}


def tuned(running: Running) -> tuple[float, float]:
    """Return the cheapest effort that reaches TARGET on the sample, and its recall."""
    efforts = running.system.EFFORTS
    low, high, recalls = 0, len(efforts) - 1, {}
    while low < high:
        middle = (low + high) // 2
        recalls[middle] = recall_at(running, efforts[middle])
        if recalls[middle] >= TARGET:
            high = middle
        else:
            low = middle + 1
    if low not in recalls:
        recalls[low] = recall_at(running, efforts[low])
    running.set_effort(efforts[low], 1)
    return efforts[low], recalls[low]


def recall_at(running: Running, effort: float, *, is_tuning: bool = True) -> float:
    """Return the recall at an effort."""
    running.set_effort(effort, 1)
    recall: float = running.ask("recall", is_tuning=is_tuning, queries=RECALL_QUERIES)
    return recall


def run(running: Running, effort: float, kind: str, duration_s: float) -> dict[str, float]:
    """Search for a while: queries/s, latencies in ms, CPU of the system and of callers in us."""
    callers, batch = KINDS[kind]
    workers = min(callers, len(running.workers), WORKERS)
    each = callers // workers
    running.set_effort(effort, each)
    at = time.time() + AHEAD_S
    asked = [
        worker.ask("search", callers=each, batch=batch, at=at, duration_s=duration_s)
        for worker in running.workers[:workers]
    ]
    time.sleep(max(0.0, at - time.time()))
    cpu_s = running.cpu_s()
    time.sleep(duration_s)
    cpu_s = running.cpu_s() - cpu_s
    told = [answer.result(60.0) for answer in asked]
    latencies = np.concatenate([each["latencies"] for each in told])
    queries = len(latencies) * batch
    return {
        "queries_per_s": queries / duration_s,
        "p50_ms": float(np.percentile(latencies, 50)),
        "p99_ms": float(np.percentile(latencies, 99)),
        "cpu_us": 1e6 * cpu_s / queries,
        "callers_cpu_us": 1e6 * sum(each["cpu_s"] for each in told) / queries,
    }


def rounds(systems: Mapping[str, Loaded], plan: Plan) -> dict[str, dict[str, list[Any]]]:
    """Run every kind on each system in turn; return the runs of each kind and system."""
    runs: dict[str, dict[str, list[Any]]] = {name: {kind: [] for kind in KINDS} for name in systems}
    for round_ in range(plan.rounds):
        for kind in KINDS:
            turn = list(systems.items())
            for name, loaded in turn if round_ % 2 else turn[::-1]:
                figures = run(loaded.running, loaded.effort, kind, plan.duration_s)
                runs[name][kind].append(figures)
    return runs


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure."""
    return {figure: median(each[figure] for each in runs) for figure in runs[0]}


def ratio(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> float:
    """Return the median of the rounds' ratios: our queries/s to theirs."""
    pairs = zip(ours, theirs, strict=True)
    return median(one["queries_per_s"] / other["queries_per_s"] for one, other in pairs)


def curve(loaded: Loaded, plan: Plan) -> list[dict[str, float]]:
    """Return recall and queries/s of each kind at some efforts around the chosen one."""
    efforts = loaded.running.system.EFFORTS
    chosen = efforts.index(loaded.effort)
    points = []
    for place in sorted({min(max(chosen + step, 0), len(efforts) - 1) for step in CURVE}):
        point = {"recall": recall_at(loaded.running, efforts[place], is_tuning=False)}
        for kind in KINDS:
            figures = run(loaded.running, efforts[place], kind, plan.curve_s)
            point[kind] = figures["queries_per_s"]
        points.append(point)
    return points


def harm(loaded: Loaded, plan: Plan) -> dict[str, Any]:
    """Search while rows are written and the index trains; then kill -9, and start again.

    A steady caller searches from the first row until the index is trained, and then on a quiet
    system. MORE_ROWS are written after that, and the system is killed when the last of them is
    acknowledged.
    """
    size = min(GROWING_ROWS, loaded.rows * 3 // 4)
    more = min(MORE_ROWS, loaded.rows - size)
    running = loaded.running.again(fresh(plan.directory, f"{loaded.running.name}-harm"))
    try:
        running.ask("create")
        watcher = len(running.workers) - 1
        with suppress(RuntimeError):  # some take an effort only when they are trained
            running.set_effort(loaded.effort, 1)
        growing = watched(running, watcher, lambda: fill_within(running, size))
        running.set_effort(loaded.effort, 1)
        quiet = watched(running, watcher, lambda: time.sleep(QUIET_S))
        written = running.ask("write", start=size, stop=size + more, limit_s=LIMIT_S)
        running.kill()
        again = recovered(running, written["rows"], loaded.effort)
        return {"rows": size, "growing": growing, "quiet": quiet, "recovery": again}
    finally:
        running.kill()


def fill_within(running: Running, size: int) -> None:
    """Write rows and wait for the index."""
    running.ask("write", LIMIT_S + 30, start=0, stop=size, limit_s=LIMIT_S)
    running.ask("finish", LIMIT_S)


def watched(running: Running, watcher: int, work: Callable[[], None]) -> dict[str, Any]:
    """Do some work under a steady caller; return what that caller saw."""
    watching = running.workers[watcher].ask("watch")
    began = time.monotonic()
    try:
        work()
        took_s = time.monotonic() - began
    finally:
        running.ask("unwatch", worker=watcher)
    seen = watching.result(60.0)
    latencies, recalls = seen["latencies"], seen["recalls"]
    return {
        "took_s": took_s,
        "answered": len(latencies),
        "refused": seen["refused"],
        "p50_ms": float(np.percentile(latencies, 50)) if latencies else None,
        "p99_ms": float(np.percentile(latencies, 99)) if latencies else None,
        "recall": float(np.mean(recalls)) if recalls else None,
        "lowest_recall": float(np.min(recalls)) if recalls else None,
    }


def recovered(killed: Running, acknowledged: int, effort: float) -> dict[str, Any]:
    """Start a killed system again; return when it served, and when it found every probe."""
    chosen = np.random.default_rng(0).permutation(acknowledged)[:PROBES]
    rows = [*map(int, chosen), *range(max(0, acknowledged - LAST_PROBES), acknowledged)]
    report: dict[str, Any] = {"acknowledged": acknowledged, "count": 0, "found": 0.0}
    try:
        running = killed.again(killed.directory)
    except RuntimeError as error:
        return report | {"error": str(error)}
    try:
        report["served_s"] = time.monotonic() - running.began
        while time.monotonic() < running.began + RECOVERY_S:
            try:
                running.set_effort(effort, 1)
                report |= running.ask("probe", RECOVERY_S, rows=rows)
            except (RuntimeError, TimeoutError) as error:
                report["error"] = str(error)
            if report["count"] >= acknowledged and report["found"] >= FOUND:
                report.pop("error", None)
                return report | {"all_found_s": time.monotonic() - running.began}
            time.sleep(POLL_S)
        return report
    finally:
        running.kill()
