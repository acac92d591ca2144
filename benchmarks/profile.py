"""The CPU of a query by place, in one process and in a router and its shards, by two profilers.

py-spy reads Python and native stacks, and shows which code runs. perf counts what the cores execute
and shows in which shared object, also in the kernel. Neither gives the total: the CPU of a query is
what the kernel charges to each process under the same load without a profiler.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from subprocess import DEVNULL, PIPE
from time import sleep
from typing import Self

from benchmarks.fanout import (
    BATCHES,
    QUICK_ROWS,
    ROWS,
    SINGLES,
    Calls,
    Kind,
    Run,
    both_kinds,
    cpu_s_of,
    load_command,
    queries_file,
    run_of,
)
from benchmarks.places import (
    OBJECTS,
    RUNNING,
    Place,
    Thread,
    objects_of,
    parts_of,
    stacks_of,
)
from benchmarks.report import Cell, Row, Table
from benchmarks.server import Server, scratch

LOADS = (SINGLES, BATCHES)
PROCESSES = ("embedded", "router", "shard 0")
"""The profiled processes; other shards do the same as the first."""

PLAIN_S, PY_SPY_S, PERF_S = 2, 7, 2
"""How long each load runs with and without a profiler."""
QUICK_S = 1
PY_SPY_HZ = 20
"""py-spy stops the process for several milliseconds to read native stacks. At three times this
rate, it sees FAISS half as often as perf does."""
PERF_HZ = 499

PLACES = (*RUNNING, Place.GIL)
CALLS_START = "calls start"
CLOCK_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
LOAD_LONGEST_S = 60.0
TIMEOUT_S = 30.0


Parts = Mapping[str, float]


class NotProfiled(Exception):
    """A profiler is missing, or is not permitted to profile the process; says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a profiler saw of each process under a load.

    `parts` are shares of a process's CPU, by process and then by place or shared object. `run` is
    the load of that time. If nothing was seen, `reason` says why.
    """

    parts: Mapping[str, Parts]
    run: Run | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """A load on a kind of servers: alone, and under each profiler."""

    plain: Run
    py_spy: Seen
    perf: Seen


Watches = Mapping[tuple[Calls, str], Watched]
"""By load, and by the kind of servers."""


def measure(quick: bool) -> tuple[Table, Table]:
    """Profile both kinds of servers under both loads."""
    rows = QUICK_ROWS if quick else ROWS
    with scratch() as directory, both_kinds(directory, rows) as kinds:
        data = queries_file(directory)
        watches = {
            (calls, kind.name): watch(kind, calls, data, directory, quick)
            for calls in LOADS
            for kind in kinds
        }
    setting = (
        f"{rows:,} rows as in fanout. µs of CPU a query: a process's CPU by /proc under the load "
        "without a profiler, distributed as the profiler saw it"
    )
    by_place = Table(
        name="profile",
        title="Where a query's time goes, by py-spy",
        columns=_columns("where"),
        rows=list(rows_of(watches, "py_spy", PLACES)),
        notes=(
            f"{setting}: to threads, inside and outside the kernel, by /proc, and the latter by "
            "the stacks of the thread, of which there are a few dozen: differences of ten points "
            "are noise. Waiting for the GIL is not CPU: it is the total time that the threads of a "
            "process wait for it, estimated from how often they were seen waiting. "
            f"{beside(watches, 'py_spy')}"
        ),
    )
    by_object = Table(
        name="profile",
        title="Where a query's time goes, by perf",
        columns=_columns("shared object"),
        rows=list(rows_of(watches, "perf", OBJECTS)),
        notes=f"{setting}. {beside(watches, 'perf')}",
    )
    return by_place, by_object


def _columns(what: str) -> tuple[str, ...]:
    figures = (
        column for process in PROCESSES for column in (f"{process}, µs a query", "of its CPU, %")
    )
    return ("load", what, *figures)


# ---- tables -------------------------------------------------------------------------------------


def rows_of(watches: Watches, profiler: str, names: Sequence[str]) -> Iterator[Row]:
    """Yield the rows of a profiler: for each load the CPU of a query, and the parts by `names`."""
    for calls in LOADS:
        seen, cpu_us = _of_load(watches, calls, profiler)
        sums: list[Cell] = [cell for process in PROCESSES for cell in _cells(1.0, cpu_us[process])]
        yield (calls.name, "all", *sums)
        for reason in dict.fromkeys(each.reason for each in seen.values()):
            if reason:
                yield (calls.name, reason, *("-" for _ in sums))
        if not any(each.parts for each in seen.values()):
            continue
        for name in names:
            cells: list[Cell] = []
            for process in PROCESSES:
                parts = seen[process].parts.get(process)
                part = None if parts is None else parts.get(name, 0.0)
                cells += _cells(part, cpu_us[process])
            yield (calls.name, name, *cells)


def _of_load(
    watches: Watches, calls: Calls, profiler: str
) -> tuple[dict[str, Seen], dict[str, float]]:
    """Return what the profiler saw of each process, and each process's CPU in µs a query."""
    seen, cpu_us = {}, {}
    for (other, _), watched in watches.items():
        if other is calls:
            for process, used_us in watched.plain.cpu_us.items():
                seen[process] = getattr(watched, profiler)
                cpu_us[process] = used_us
    return seen, cpu_us


def _cells(part: float | None, cpu_us: float) -> tuple[Cell, Cell]:
    """Return a part in µs and in percent; "-" if the profiler did not see it."""
    return ("-", "-") if part is None else (part * cpu_us, 100 * part)


def beside(watches: Watches, profiler: str) -> str:
    """Return the effect of the profiler: queries/s and CPU a query, without it and with it."""
    told = []
    for (calls, kind), watched in watches.items():
        plain, run = watched.plain, getattr(watched, profiler).run
        if run is not None:
            cpu = ", ".join(
                f"{process} {plain.cpu_us[process]:,.0f} -> {run.cpu_us[process]:,.0f}"
                for process in plain.cpu_us
                if process in PROCESSES
            )
            told.append(
                f"{calls.name}, {kind}: {plain.queries_per_s:,.0f} -> {run.queries_per_s:,.0f} "
                f"queries/s, µs a query {cpu}"
            )
    return f"Without and with the profiler: {'; '.join(told)}." if told else ""


# ---- measuring ----------------------------------------------------------------------------------


def watch(kind: Kind, calls: Calls, data: Path, directory: Path, quick: bool) -> Watched:
    """Load the servers three times: alone, under py-spy, under perf."""
    servers = {name: server for name, server in kind.processes.items() if name in PROCESSES}
    before = {name: threads_of(server) for name, server in servers.items()}
    with Loaded(kind, calls, data) as alone:
        sleep(QUICK_S if quick else PLAIN_S)
    threads = {name: used(before[name], threads_of(server)) for name, server in servers.items()}

    def py_spy() -> dict[str, Parts]:
        raws = py_spy_stacks(servers, directory, QUICK_S if quick else PY_SPY_S)
        return {name: parts_of(stacks_of(raw), threads[name]) for name, raw in raws.items()}

    def perf() -> dict[str, Parts]:
        counted = perf_samples(servers, directory, QUICK_S if quick else PERF_S)
        return {
            name: {what: samples / counts.total() for what, samples in counts.items()}
            for name, counts in counted.items()
        }

    def seen(look: Callable[[], dict[str, Parts]]) -> Seen:
        try:
            with Loaded(kind, calls, data) as meanwhile:
                parts = look()
        except NotProfiled as error:
            return Seen(parts={}, reason=str(error))
        return Seen(parts=parts, run=meanwhile.run)

    return Watched(plain=alone.run, py_spy=seen(py_spy), perf=seen(perf))


class Loaded:
    """A context in which servers are under load; `run` is its result, once it has ended."""

    run: Run

    def __init__(self, kind: Kind, calls: Calls, data: Path) -> None:
        self._kind = kind
        self._calls = calls
        self._command = load_command(kind, calls, data, LOAD_LONGEST_S)

    def __enter__(self) -> Self:
        """Wait until the first calls are made."""
        self._before_s = cpu_s_of(self._kind)
        self._load = subprocess.Popen(self._command, stdout=PIPE, stderr=PIPE, text=True)
        assert self._load.stderr is not None
        if not any(line.startswith(CALLS_START) for line in self._load.stderr):
            self._load.communicate(timeout=TIMEOUT_S)
            raise RuntimeError(f"the load generator ended with code {self._load.returncode}")
        return self

    def __exit__(self, failure: type[BaseException] | None, *others: object) -> None:
        """End the load; after a failure it may have made no call at all."""
        self._load.send_signal(signal.SIGTERM)
        told, _ = self._load.communicate(timeout=TIMEOUT_S)
        if failure is not None:
            return
        after_s = cpu_s_of(self._kind)
        used_s = {name: after_s[name] - self._before_s[name] for name in after_s}
        self.run = run_of(self._calls, told, used_s)


def threads_of(server: Server) -> dict[int, Thread]:
    """Return the threads of a process by number, with the CPU that each has used so far."""
    threads = {}
    for task in Path(f"/proc/{server.child.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended
            head, _, tail = (task / "stat").read_text().rpartition(")")
            fields = tail.split()
            user_s, system_s = (int(field) / CLOCK_TICKS_PER_S for field in fields[11:13])
            threads[int(task.name)] = Thread(head.partition("(")[2], user_s, system_s)
    return threads


def used(before: Mapping[int, Thread], after: Mapping[int, Thread]) -> dict[int, Thread]:
    """Return the threads with the CPU that they used between two moments."""
    spent = {}
    for number, thread in after.items():
        first = before.get(number, Thread("", 0.0, 0.0))
        user_s, system_s = thread.user_s - first.user_s, thread.system_s - first.system_s
        spent[number] = Thread(thread.name, user_s, system_s)
    return spent


def py_spy_stacks(
    servers: Mapping[str, Server], directory: Path, duration_s: int
) -> dict[str, str]:
    """Return the output of py-spy for each process, all at the same time.

    Raises
    ------
    NotProfiled
        If it is not installed, or not permitted to attach.
    """
    py_spy = Path(sys.executable).with_name("py-spy")
    if not py_spy.exists():
        raise NotProfiled("py-spy: not installed (it is in the extra bench)")
    files = {name: directory / f"{name}.raw" for name in servers}
    running = []
    for name, server in servers.items():
        command = [str(py_spy), "record", "--native", "--threads", "--idle", "--format", "raw"]
        command += ["--rate", str(PY_SPY_HZ), "--duration", str(duration_s)]
        command += ["--output", str(files[name]), "--pid", str(server.child.pid)]
        running.append(subprocess.Popen(command, stdout=DEVNULL, stderr=PIPE, text=True))
    for child in running:
        _, complaint = child.communicate(timeout=duration_s + TIMEOUT_S)
        if child.returncode:
            raise NotProfiled(f"py-spy failed: {complaint_of(complaint)}")
    return {name: file.read_text() for name, file in files.items()}


def perf_samples(
    servers: Mapping[str, Server], directory: Path, duration_s: int
) -> dict[str, Counter[str]]:
    """Return perf's samples of each process by shared object.

    Raises
    ------
    NotProfiled
        If it is not installed, or not permitted to attach.
    """
    if shutil.which("perf") is None:
        raise NotProfiled("perf: not installed (Debian: linux-perf)")
    file = str(directory / "perf.data")
    pids = ",".join(str(server.child.pid) for server in servers.values())
    record = ["perf", "record", "-F", str(PERF_HZ), "-g", "-o", file, "-p", pids]
    script = ["perf", "script", "-i", file, "-F", "pid,ip,sym,dso"]
    for command in ([*record, "--", "sleep", str(duration_s)], script):
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            raise NotProfiled(f"perf failed: {complaint_of(ended.stderr)}")
    counted = objects_of(ended.stdout)
    if not counted:
        raise NotProfiled("perf saw nothing")
    return {name: counted.get(server.child.pid, Counter()) for name, server in servers.items()}


def complaint_of(told: str) -> str:
    """Return the first line of an error output that is not empty, fit for a cell."""
    lines = (line.strip().removeprefix("Error:").strip() for line in told.splitlines())
    return next(filter(None, lines), "it gives no reason").replace("|", "/")
