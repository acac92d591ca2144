"""Hundreds of kills, in rounds of the kill tests: a server, the shards of a fleet, a router.

`make test-long` plays rounds until `--kills` are done, and resumes: see `rounds.py`. The seed of a
round draws the moments of its kills.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.conftest import Starter
from tests.system.rounds import Line, resumed_rounds
from tests.system.test_kill import kill_a_server, kill_routers, kill_shards

KILLS_A_ROUND = 10
"""Of a server at least so many, until all background work was seen."""


def played(start_server: Starter, _: Path, seed: int) -> Line:
    """Play a round; return which process was killed in it, and how often."""
    kind = ("server", "shard", "router")[seed % 3]
    kills = KILLS_A_ROUND
    if kind == "server":
        kills = kill_a_server(start_server, KILLS_A_ROUND, seed)
    elif kind == "shard":
        kill_shards(start_server, KILLS_A_ROUND, seed)
    else:
        kill_routers(start_server, KILLS_A_ROUND)
    return {"killed": kind, "kills": kills}


@pytest.mark.system_long
def test_hundreds_of_kills_lose_nothing_and_revive_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rounds = resumed_rounds("kills", played, tmp_path_factory, monkeypatch)
    kills = 0
    while kills < request.config.getoption("--kills"):
        kills += next(rounds)["kills"]
    print(f"{kills} kills")
