"""A running system and its client processes, seen from outside: commands, CPU, memory, SIGKILL."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.compare.environment import PYTHON, ROOT
from benchmarks.compare.systems import load

WORKERS = 4
START_S = 90.0
STOP_S = 20.0
ASK_S = 120.0


class Child:
    """A process of this package, and what it answers."""

    def __init__(self, module: str, arguments: list[str], python: str, extra: str, log: Path):
        environment = {**os.environ, "PYTHONPATH": extra} if extra else dict(os.environ)
        command = [python, "-m", f"benchmarks.compare.{module}", *arguments]
        with log.open("ab") as stderr:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=ROOT,
                env=environment,
            )
        self._answers: dict[int, Future[Any]] = {}
        self._ended = threading.Event()
        self._listener = threading.Thread(target=self._listen, daemon=True)

    def listen(self) -> None:
        """Take answers, in a thread."""
        self._listener.start()

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        if self._listener.is_alive():
            self._listener.join(STOP_S)
        with suppress(BrokenPipeError):
            self.process.communicate(timeout=STOP_S)

    def ask(self, do: str, **arguments: Any) -> Future[Any]:
        """Send a command; return its answer to come, RuntimeError if it fails."""
        number = len(self._answers)
        future = self._answers[number] = Future()
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            line = json.dumps({"number": number, "do": do, **arguments})
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        if self._ended.is_set():
            self._fail_all()
        return future

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told = json.loads(line)
            future = self._answers[told["number"]]
            if "error" in told:
                future.set_exception(RuntimeError(told["error"]))
            else:
                future.set_result(told["result"])
        self._ended.set()
        self._fail_all()

    def _fail_all(self) -> None:
        for future in list(self._answers.values()):
            if not future.done():
                with suppress(Exception):
                    future.set_exception(RuntimeError("the client process ended"))


class Running:
    """A system over a directory, started at `began`; and its workers.

    `extra` is a folder to import from.
    """

    def __init__(self, name: str, directory: Path, rows: Path, extra: str) -> None:
        self.name, self.directory, self.rows, self._extra = name, directory, rows, extra
        self.system = load(name)
        self._python = sys.executable if name == "ours" else str(PYTHON)
        self._log = directory.with_suffix(".log")
        self._server: Child | None = None
        self._roots: list[int] = []
        self._effort = 0.0
        self.workers: list[Child] = []
        try:
            for _ in range(1 if self.system.EMBEDDED else WORKERS):
                self.workers.append(self._child("worker", [name, str(rows)], extra))
                self.workers[-1].listen()
            self.ask_all("imports", [{}] * WORKERS)
            self.began = time.monotonic()
            if self.system.EMBEDDED:
                self._roots = [self.workers[0].process.pid]
                self.ask_all("target", [{"target": str(directory)}] * WORKERS)
            else:
                self._serve()
        except BaseException:
            self.kill()
            raise

    def again(self, directory: Path) -> Running:
        """Return the same system, over the same rows, in another directory or again in its own."""
        again = Running(self.name, directory, self.rows, self._extra)
        again._effort = self._effort if directory == self.directory else 0.0
        return again

    def _serve(self) -> None:
        self._server = self._child("serve", [self.name, str(self.directory)], self._extra)
        target, self._roots = self._started()
        self.ask_all("target", [{"target": target}] * WORKERS)

    def set_effort(self, effort: float, callers: int) -> None:
        """Set the effort for so many callers of each worker."""
        each = [
            {"effort": effort, "callers": callers, "is_first": worker is self.workers[0]}
            for worker in self.workers
        ]
        if not getattr(self.system, "AT_START", False):
            self.ask_all("tune", each)
        elif effort != self._effort:
            self.ask_all("tune", each[:1])
            self._kill_server()
            self._serve()
            self._effort = effort

    def _child(self, module: str, arguments: list[str], extra: str) -> Child:
        return Child(module, arguments, self._python, extra, self._log)

    def _started(self) -> tuple[str, list[int]]:
        assert self._server is not None
        assert self._server.process.stdout is not None
        waiting = threading.Timer(START_S, self._server.process.kill)
        waiting.start()
        line = self._server.process.stdout.readline()
        waiting.cancel()
        if not line:
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"it did not start: {''.join(last)}")
        told = json.loads(line)
        return told["target"], told["pids"]

    def ask(self, do: str, within_s: float = ASK_S, worker: int = 0, **arguments: Any) -> Any:
        """Have a worker do something, and return its answer.

        Raises
        ------
        RuntimeError
            If it fails.
        TimeoutError
            If it takes longer.
        """
        return self.workers[worker].ask(do, **arguments).result(within_s)

    def ask_all(self, do: str, each: Sequence[Mapping[str, Any]]) -> list[Any]:
        """Have a worker each do something at the same time; return all answers."""
        pairs = zip(self.workers, each, strict=False)
        asked = [worker.ask(do, **arguments) for worker, arguments in pairs]
        return [answer.result(ASK_S) for answer in asked]

    def pids(self) -> set[int]:
        """Return the system's processes: of an embedded one, its callers'."""
        below: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                below.setdefault(int(fields[1]), []).append(int(entry.name))
        found, left = set(), list(self._roots)
        while left:
            pid = left.pop()
            found.add(pid)
            left += below.get(pid, [])
        return found

    def cpu_s(self) -> float:
        """Return the CPU seconds that its processes have used so far."""
        ticks = 0
        for pid in self.pids():
            with suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def pss_bytes(self) -> int:
        """Return its proportional set size: shared pages count once in all."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total

    def _kill_server(self) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._server is not None:
            self._server.end()
        end = time.monotonic() + STOP_S
        while any(Path(f"/proc/{pid}/exe").exists() for pid in self._roots):
            if time.monotonic() > end:
                break
            time.sleep(0.01)

    def kill(self) -> None:
        """End it with SIGKILL, and its workers."""
        self._kill_server()
        for child in self.workers:
            child.end()
