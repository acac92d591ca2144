"""A backup under writes, a kill -9 and a restore: what is restored is what was there.

Two rounds in `make test`; `make test-long` plays as many as `--restores` says, and resumes: rounds
that ended well are in `build/restores.jsonl`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.source_tree import ROOT
from tests.system import conftest
from tests.system.conftest import Starter, servers
from tests.system.restores import Round

RESULTS = ROOT / "build" / "restores.jsonl"


@pytest.mark.system
@pytest.mark.parametrize("seed", [2, 11])  # the same number of shards, and another
def test_a_restore_holds_what_was_backed_up_under_writes(
    start_server: Starter, tmp_path: Path, seed: int
) -> None:
    print(Round(start_server, tmp_path, seed).run())


@pytest.mark.system_long
def test_many_restores_hold_what_was_backed_up(
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conftest, "START_S", 200.0)  # it runs for an hour, and others may too
    monkeypatch.setattr(conftest, "STOP_S", 200.0)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.touch()
    done = {json.loads(line)["seed"] for line in RESULTS.read_text().splitlines()}
    for seed in range(request.config.getoption("--restores")):
        if seed in done:
            continue
        path = tmp_path_factory.mktemp(f"restores-{seed}", numbered=False)
        begun = time.monotonic()
        with servers(path) as starter:
            played = Round(starter, path, seed).run()
        line = {"seed": seed, "round": played, "seconds": round(time.monotonic() - begun, 1)}
        with RESULTS.open("a") as results:
            results.write(json.dumps(line) + "\n")
    print(f"{request.config.getoption('--restores')} restores")
