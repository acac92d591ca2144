"""The settings of grpc are in force in the processes that run, and none is misspelt."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import grpc
import pytest

from tests.system.conftest import ServerProcess, Starter, new_name, unary_bytes
from vectorshard.cli.__main__ import ENVIRONMENT

pytestmark = pytest.mark.system

CALLS = 200
ROUNDS = 3
DEADLINE_S = 20.0
EXPERIMENTS = ENVIRONMENT["GRPC_EXPERIMENTS"]
DEFAULT = "-monitoring_experiment"
"""An experiment without any effect: grpc's own choice for all others."""


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


def times_woken(server: ServerProcess) -> int:
    """Return how often threads of the event engine have waited for something so far."""
    assert server.process is not None
    woken = 0
    for thread in Path(f"/proc/{server.process.pid}/task").iterdir():
        if (thread / "comm").read_text().strip() == "event_engine":
            status = (thread / "status").read_text()
            woken += int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return woken


def times_woken_by_calls(server: ServerProcess, rpc: str) -> int:
    """Make calls one by one, and return how often they woke the event engine.

    Its timers wake it too, the more often the longer the calls take: the quickest round counts.
    """
    with grpc.insecure_channel(server.address) as channel:
        call: Callable[..., bytes] = unary_bytes(channel, rpc)
        call(b"", timeout=DEADLINE_S)
        woken = [times_woken(server)]
        for _ in range(ROUNDS):
            for _ in range(CALLS):
                call(b"", timeout=DEADLINE_S)
            woken.append(times_woken(server))
        return min(after - before for before, after in pairwise(woken))


def test_the_event_engine_takes_no_part_in_the_calls_of_a_server(start_server: Starter) -> None:
    server = start_server()
    assert times_woken_by_calls(server, "GetServerInfo") < CALLS


def test_the_event_engine_takes_no_part_in_the_calls_of_a_link(start_server: Starter) -> None:
    fleet = start_server.fleet()
    with fleet.client() as client:
        client.create_collection(new_name(), dim=2)
    assert times_woken_by_calls(fleet.router, "ListCollections") < CALLS


def test_with_the_event_engine_a_call_wakes_it(
    start_server: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the other tests look at does tell: the caller's wish wins, and shows."""
    monkeypatch.setenv("GRPC_EXPERIMENTS", DEFAULT)
    server = start_server()
    assert times_woken_by_calls(server, "GetServerInfo") > CALLS
