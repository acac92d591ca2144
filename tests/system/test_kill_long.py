"""Hundreds of kills, in rounds of the kill tests: a server, the shards of a fleet, a router.

`make test-long` plays rounds until `--kills` are done, and resumes: rounds that ended well are in
`build/kills.jsonl`. A round has a seed, which draws the moments.
"""

from __future__ import annotations

import json
import time
from itertools import count

import pytest

from tests.source_tree import ROOT
from tests.system import conftest
from tests.system.conftest import Starter, servers
from tests.system.test_kill import kill_a_server, kill_routers, kill_shards

RESULTS = ROOT / "build" / "kills.jsonl"
SERVER_KILLS, SHARD_KILLS, ROUTER_KILLS = 10, 10, 10
"""In a round of each kind; of a server at least so many."""


def played(start_server: Starter, seed: int) -> tuple[str, int]:
    """Play a round; return who was killed in it, and how often."""
    kind = ("server", "shard", "router")[seed % 3]
    if kind == "server":
        return kind, kill_a_server(start_server, SERVER_KILLS, seed)
    if kind == "shard":
        kill_shards(start_server, SHARD_KILLS, seed)
        return kind, SHARD_KILLS
    kill_routers(start_server, ROUTER_KILLS)
    return kind, ROUTER_KILLS


@pytest.mark.system_long
def test_hundreds_of_kills_lose_nothing_and_revive_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conftest, "START_S", 200.0)  # it runs for an hour, and others may too
    monkeypatch.setattr(conftest, "STOP_S", 200.0)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.touch()
    done = {line["seed"]: line for line in map(json.loads, RESULTS.read_text().splitlines())}
    kills = 0
    for seed in count():
        if kills >= request.config.getoption("--kills"):
            break
        if seed in done:
            kills += done[seed]["kills"]
            continue
        path = tmp_path_factory.mktemp(f"kills-{seed}", numbered=False)
        begun = time.monotonic()
        with servers(path) as starter:
            kind, killed = played(starter, seed)
        kills += killed
        line = {"seed": seed, "killed": kind, "kills": killed}
        line["seconds"] = round(time.monotonic() - begun, 1)
        with RESULTS.open("a") as results:
            results.write(json.dumps(line) + "\n")
    print(f"{kills} kills")
