"""The settings of grpc are in force in the processes that run, and none is misspelt."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from tests.http2 import ACK, PREFACE, SETTINGS, WINDOW_UPDATE, frame
from tests.system.conftest import Starter, unary_bytes
from vectorshard.cli.__main__ import ENVIRONMENT

pytestmark = pytest.mark.system

CALLS = 200
ROUNDS = 3
DEADLINE_S = 20.0
EXPERIMENTS = ENVIRONMENT["GRPC_EXPERIMENTS"]
DEFAULT = "-monitoring_experiment"
"""An experiment without any effect: grpc's own choice for all others."""
NO_ENGINE = "-event_engine_client,-event_engine_listener"
FLOOD_S = 5.0
PAUSE_S = 0.02


def complaints(experiments: str) -> list[str]:
    """Return the lines in which a process with these experiments names an unknown one."""
    program = "import grpc; grpc.insecure_channel('127.0.0.1:1').close()"
    environment = {**os.environ, "GRPC_EXPERIMENTS": experiments, "GRPC_VERBOSITY": "error"}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=DEADLINE_S,
    )
    return [line for line in ended.stderr.splitlines() if "Unknown experiment" in line]


def test_this_grpc_knows_every_experiment_that_is_switched() -> None:
    assert not complaints(EXPERIMENTS)
    [told] = complaints(f"{EXPERIMENTS},-event_engine_misspelt")
    assert "event_engine_misspelt" in told


def times_woken(pid: int) -> int:
    """Return how often threads of the event engine have waited for something so far."""
    woken = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        if (thread / "comm").read_text().strip() == "event_engine":
            status = (thread / "status").read_text()
            woken += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return woken


def times_woken_by_calls(address: str, pid: int) -> int:
    """Make calls one by one, and return how often they woke the event engine of a process.

    Its timers wake it too, the more often the longer the calls take: the quickest round counts.
    """
    with grpc.insecure_channel(address) as channel:
        call: Callable[..., bytes] = unary_bytes(channel, "GetServerInfo")
        call(b"", timeout=DEADLINE_S)
        woken = [times_woken(pid)]
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                call(b"", timeout=DEADLINE_S)
            woken.append(times_woken(pid))
        return min(after - before for before, after in pairwise(woken))


CLIENT = """
import os, sys
from tests.system.test_transport import times_woken_by_calls
print(times_woken_by_calls(sys.argv[1], os.getpid()))
"""


def times_a_client_is_woken(address: str, experiments: str) -> int:
    """Return the same for a process that makes the calls."""
    program = [sys.executable, "-c", CLIENT, address]
    environment = {**os.environ, "GRPC_EXPERIMENTS": experiments}
    ended = subprocess.run(
        program, env=environment, capture_output=True, text=True, check=True, timeout=DEADLINE_S
    )
    return int(ended.stdout)


def test_the_event_engine_reads_for_a_server_and_not_for_its_clients(start_server: Starter) -> None:
    server = start_server(1)
    assert server.process is not None
    assert times_woken_by_calls(server.address, server.process.pid) > CALLS
    assert times_a_client_is_woken(server.address, EXPERIMENTS) < CALLS
    assert times_a_client_is_woken(server.address, DEFAULT) > CALLS, "what is counted does tell"


def test_the_callers_choice_of_experiments_wins(
    start_server: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", NO_ENGINE)
    server = start_server(1)
    assert server.process is not None
    assert times_woken_by_calls(server.address, server.process.pid) < CALLS


def flood(address: str, over: threading.Event) -> None:
    """Send WINDOW_UPDATE frames of one byte, without a pause, over one connection."""
    host, port = address.rsplit(":", 1)
    one = frame(WINDOW_UPDATE, payload=(1).to_bytes(4, "big"))
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(PREFACE + frame(SETTINGS) + frame(SETTINGS, ACK))
        while not over.is_set():
            connection.sendall(one * 10_000)


@pytest.mark.system_long
def test_a_connection_that_floods_the_server_with_frames_delays_no_other(
    start_server: Starter,
) -> None:
    server = start_server(1)
    over = threading.Event()
    flooding = threading.Thread(target=flood, args=(server.address, over))
    took_s: list[float] = []
    with grpc.insecure_channel(server.address) as channel:
        call: Callable[..., bytes] = unary_bytes(channel, "GetServerInfo")
        call(b"", timeout=DEADLINE_S)
        flooding.start()
        end = time.monotonic() + FLOOD_S
        while time.monotonic() < end:
            began = time.monotonic()
            call(b"", timeout=DEADLINE_S)
            took_s.append(time.monotonic() - began)
            time.sleep(PAUSE_S)
    over.set()
    flooding.join()
    print(f"{len(took_s)} calls next to a flood; the slowest took {1e3 * max(took_s):.0f} ms")
    assert max(took_s) < 0.5
