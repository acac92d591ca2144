"""Real servers to measure, as child processes on free ports: one, or a fleet."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

from vectorshard.client.client import Client
from vectorshard.shard.config import LISTENING, BufferConfig
from vectorshard.shard.descriptions import CollectionDescription
from vectorshard.shard.types import ShardState

SHARDS = 2
TIMEOUT_S = 120.0
POLL_S = 0.02


@dataclass(slots=True)
class Server:
    """A running server: its address, and when it was started and could serve.

    `started` and `served` are readings of time.perf_counter().
    """

    child: subprocess.Popen[str]
    target: str
    started: float
    served: float

    def connect(self) -> Client:
        """Return a new client of the server."""
        return Client(self.target, timeout_s=TIMEOUT_S)

    def cpu_s(self) -> float:
        """Return the seconds of CPU that it has used so far, on all cores."""
        # proc(5): utime and stime are fields 14 and 15; the second, a name, may contain blanks.
        fields = Path(f"/proc/{self.child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self) -> None:
        """Stop it with SIGTERM, and wait until it has ended."""
        self.child.send_signal(signal.SIGTERM)
        if code := self.child.wait(TIMEOUT_S):
            raise RuntimeError(f"the server exited with code {code}")

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        self.child.kill()
        self.child.wait(TIMEOUT_S)


def start(directory: Path, tracer: Sequence[str] = ()) -> Server:
    """Start a server over a data directory, with its log next to it, and wait until it serves.

    `tracer` is a command that runs the command after it in its own process id.

    Raises
    ------
    RuntimeError
        If it ends instead.
    """
    options = ["serve", "--shards", str(SHARDS), "--data", str(directory)]
    return _start(options, directory.with_suffix(".log"), tracer)


def _start(options: Sequence[str], log: Path, tracer: Sequence[str] = ()) -> Server:
    command = [*tracer, str(Path(sys.executable).with_name("vectorshard")), *options]
    return start_command([*command, "--listen", "127.0.0.1:0"], log)


def start_command(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Server:
    """Start a server by a command that prints its address, and wait until it serves.

    Without `environment`, the server inherits ours.

    Raises
    ------
    RuntimeError
        If it ends instead.
    """
    started = perf_counter()
    with log.open("ab") as stderr:
        child = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment
        )
    assert child.stdout is not None
    line = child.stdout.readline()
    served = perf_counter()
    if not line.startswith(LISTENING):
        child.kill()
        child.wait()
        raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')}")
    return Server(child, line.removeprefix(LISTENING).strip(), started, served)


@contextmanager
def serving(directory: Path, tracer: Sequence[str] = ()) -> Iterator[Server]:
    """Run a server; it is killed when the context ends, unless it was stopped before."""
    server = start(directory, tracer)
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def serving_shard(directory: Path, number: int = 0, shards: int = 1) -> Iterator[Server]:
    """Run a shard, by default the only one of its fleet, with its log next to it.

    A search may use its part of the machine's cores, as in `vectorshard serve`. The shard is killed
    when the context ends.
    """
    cores = max(1, len(os.sched_getaffinity(0)) // shards)
    options = ["shard", "--shard-id", str(number), "--shards", str(shards)]
    options += ["--data", str(directory), "--cores", str(cores)]
    shard = _start(options, directory.with_suffix(".log"))
    try:
        yield shard
    finally:
        shard.kill()


@contextmanager
def serving_fleet(directory: Path, shards: int = SHARDS) -> Iterator[Mapping[str, Server]]:
    """Run a router and its shards, one process each, by name; the router is the first.

    All are killed when the context ends.
    """
    directory.mkdir(parents=True)
    with ExitStack() as running:
        below = {
            f"shard {number}": running.enter_context(
                serving_shard(directory / f"shard-{number}", number, shards)
            )
            for number in range(shards)
        }
        options = ["router"]
        for shard in below.values():
            options += ["--shard", shard.target]
        router = _start(options, directory / "router.log")
        running.callback(router.kill)
        yield {"router": router, **below}


@contextmanager
def scratch() -> Iterator[Path]:
    """Yield a directory for this measurement alone; TMPDIR selects the disk."""
    with tempfile.TemporaryDirectory(prefix="vectorshard-bench-") as name:
        yield Path(name)


def absorbed(description: CollectionDescription) -> bool:
    """Whether every shard is trained and its buffer is down to the size that absorbing keeps."""
    return all(
        shard.state is ShardState.TRAINED and shard.ledger.buffered < BufferConfig().absorb_rows
        for shard in description.shards
    )


def at_rest(description: CollectionDescription) -> bool:
    """Whether every shard has also finished its training."""
    return absorbed(description) and not any(shard.training for shard in description.shards)


def wait_until_at_rest(
    client: Client, name: str, timeout_s: float = TIMEOUT_S
) -> CollectionDescription:
    """Return the description of a collection once no background work disturbs a measurement.

    Raises
    ------
    TimeoutError
        If it does not come to rest in time.
    """
    end = perf_counter() + timeout_s
    while not at_rest(description := client.describe(name)):
        if perf_counter() > end:
            raise TimeoutError(f"{name} did not come to rest in {timeout_s:g} s: {description}")
        time.sleep(POLL_S)
    return description


def described(description: CollectionDescription) -> str:
    """Return the state of the index on all shards in a few words."""
    states = sorted({shard.state.name for shard in description.shards})
    return f"{' / '.join(states)}, {description.ledger.buffered:,} buffered"
